//! The cluster under measurement: three servers that share nothing but a list of addresses.

use crate::Error;
use crate::ask::{self, Metrics};
use crate::load::Id;
use crate::process::{Node, Process, START_MAX, cpu_time};
use fastpaca::conversation::ConversationId;
use fastpaca::shards::placement::{GROUPS, group_of};
use serde_json::Value;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::time::{Duration, Instant};
use tempfile::TempDir;

pub(crate) const NODES: usize = 3;

/// Shared by all nodes; what it is does not matter.
const SECRET: &str = "a-secret-of-the-bench";

/// Ports are taken from here: below what systems give to outgoing connections, so that nobody takes the port of a node
/// that is down.
const PORTS: std::ops::Range<u16> = 12_000..20_000;

/// Where a node says what every replica it hosts holds.
const DIGESTS_PATH: &str = "/internal/digests";

/// How far from its share of the leaderships a node may be for the cluster to count as even.
const UNEVEN_MAX: u64 = 8;
/// For so long nothing may change before a cluster counts as settled.
const SETTLED: Duration = Duration::from_secs(3);
/// Longest wait for that.
const SETTLE_MAX: Duration = Duration::from_secs(60);
/// Between two looks at the nodes.
pub(crate) const LOOK: Duration = Duration::from_millis(100);

pub(crate) struct Cluster {
    nodes: Vec<Node>,
    addresses: Vec<SocketAddr>,
    processes: Vec<Option<Process>>,
    /// Last, so that the servers have ended when the directory is removed.
    _dir: TempDir,
}

impl Cluster {
    /// Three empty nodes that have met and are ready.
    pub(crate) fn start(dir: TempDir) -> Result<Cluster, Error> {
        let ports = free_ports()?;
        let addresses: Vec<SocketAddr> = ports.map(|port| ([127, 0, 0, 1], port).into()).to_vec();
        let nodes = (0..NODES).map(|index| configured(dir.path(), &addresses, index)).collect();
        let processes = (0..NODES).map(|_| None).collect();
        let mut cluster = Cluster { nodes, addresses, processes, _dir: dir };
        for index in 0..NODES {
            cluster.spawn(index)?;
        }
        for process in cluster.processes.iter_mut().flatten() {
            process.wait_ready(START_MAX)?;
        }
        cluster.settle()?;
        Ok(cluster)
    }

    pub(crate) fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// The process ids of all nodes, which must run.
    pub(crate) fn pids(&self) -> Vec<u32> {
        self.processes.iter().flatten().map(Process::pid).collect()
    }

    /// The addresses without one.
    pub(crate) fn others(&self, index: usize) -> Vec<SocketAddr> {
        self.addresses.iter().copied().filter(|address| *address != self.addresses[index]).collect()
    }

    pub(crate) fn spawn(&mut self, index: usize) -> Result<(), Error> {
        let mut process = self.nodes[index].spawn()?;
        process.wait_listening(START_MAX)?;
        self.processes[index] = Some(process);
        Ok(())
    }

    pub(crate) fn wait_ready(&mut self, index: usize) -> Result<(), Error> {
        Ok(self.process(index)?.wait_ready(START_MAX)?)
    }

    pub(crate) fn is_ready(&mut self, index: usize) -> Result<bool, Error> {
        let process = self.process(index)?;
        if !process.is_running() {
            return Err(format!("node-{} has ended:\n{}", index + 1, process.log_end()).into());
        }
        Ok(process.probe("/health/ready") == Some(200))
    }

    /// SIGKILL.
    pub(crate) fn kill(&mut self, index: usize) -> Result<(), Error> {
        self.process(index)?.kill();
        self.processes[index] = None;
        Ok(())
    }

    /// SIGTERM, and waits for the end. Says how long that took.
    pub(crate) fn stop(&mut self, index: usize) -> Result<Duration, Error> {
        let begin = Instant::now();
        let process = self.process(index)?;
        process.terminate();
        let status = process.wait_exit(START_MAX).ok_or("the node does not end")?;
        if !status.success() {
            return Err(format!("the node ended with {status}:\n{}", process.log_end()).into());
        }
        self.processes[index] = None;
        Ok(begin.elapsed())
    }

    /// Takes its data from a node that does not run, and has it replace its former self from the next start on.
    pub(crate) fn wipe(&mut self, index: usize) -> Result<(), Error> {
        std::fs::remove_dir_all(self.nodes[index].data_dir())?;
        self.nodes[index] = self.nodes[index].clone().with_env("FASTPACA_REPLACE", "true");
        Ok(())
    }

    fn process(&mut self, index: usize) -> Result<&mut Process, Error> {
        self.processes[index].as_mut().ok_or_else(|| format!("node-{} does not run", index + 1).into())
    }

    pub(crate) fn metrics(&self, index: usize) -> Result<Metrics, Error> {
        Metrics::of(self.addresses[index])
    }

    /// How many groups each running node leads, the cluster's own among them.
    pub(crate) fn leaderships(&self) -> Result<Vec<u64>, Error> {
        self.running().map(|index| Ok(self.metrics(index)?.value("fastpaca_group_leaders") as u64)).collect()
    }

    fn running(&self) -> impl Iterator<Item = usize> {
        (0..NODES).filter(|index| self.processes[*index].is_some())
    }

    /// Waits until all groups have leaders, evenly spread, and nothing changes any more; says how long the change took.
    /// A cluster that does not get there within a bound is taken as it is.
    pub(crate) fn settle(&self) -> Result<Duration, Error> {
        let begin = Instant::now();
        let (mut last, mut since) = (Vec::new(), begin);
        loop {
            let leaders = self.leaderships()?;
            let even = u64::from(GROUPS) / leaders.len() as u64;
            let is_even = leaders.iter().all(|count| count.abs_diff(even) <= UNEVEN_MAX);
            if leaders != last {
                (last, since) = (leaders, Instant::now());
            }
            if (is_even && since.elapsed() > SETTLED) || begin.elapsed() > SETTLE_MAX {
                return Ok(since - begin);
            }
            std::thread::sleep(LOOK);
        }
    }

    /// The node that leads each conversation group, by number. Waits until every group has a leader.
    pub(crate) fn leaders(&self) -> Result<Vec<usize>, Error> {
        let begin = Instant::now();
        loop {
            let named = self.status()?["leaders_by_group"].take();
            let leader = |group: u16| {
                let name = named[group.to_string()].as_str()?;
                (0..NODES).find(|index| name == node_name(*index))
            };
            if let Some(leaders) = (0..GROUPS).map(leader).collect() {
                return Ok(leaders);
            }
            if begin.elapsed() > SETTLE_MAX {
                return Err(format!("groups are without a leader: {named}").into());
            }
            std::thread::sleep(LOOK);
        }
    }

    /// Groups whose members are not what they shall be.
    pub(crate) fn moving(&self) -> Result<u64, Error> {
        self.status()?["moving"].as_u64().ok_or_else(|| "no count of groups that move".into())
    }

    /// The cluster as the first node sees it.
    fn status(&self) -> Result<Value, Error> {
        ask::json(self.addresses[0], "/v1/cluster")
    }

    /// Waits until all nodes, in which nothing is written any more, have the same digests of all groups; says how long
    /// that took.
    pub(crate) fn wait_alike(&self) -> Result<Duration, Error> {
        let begin = Instant::now();
        loop {
            let digests = self.addresses.iter().map(|address| ask::json(*address, DIGESTS_PATH));
            let digests = digests.collect::<Result<Vec<Value>, Error>>()?;
            if digests.windows(2).all(|two| two[0]["groups"] == two[1]["groups"]) {
                return Ok(begin.elapsed());
            }
            if begin.elapsed() > START_MAX {
                return Err(format!("replicas differ: {digests:?}").into());
            }
            std::thread::sleep(LOOK);
        }
    }

    /// CPU of each running node while nothing is asked of it, as a share of one core.
    pub(crate) fn cores_used(&self, length: Duration) -> Result<Vec<f64>, Error> {
        let used = || self.pids().into_iter().map(cpu_time).collect::<Result<Vec<_>, _>>();
        let (begin, before) = (Instant::now(), used()?);
        std::thread::sleep(length);
        let (after, seconds) = (used()?, begin.elapsed().as_secs_f64());
        Ok(after
            .iter()
            .zip(&before)
            .map(|(after, before)| (*after - *before).as_secs_f64() / seconds)
            .collect())
    }
}

fn node_name(index: usize) -> String {
    format!("node-{}", index + 1)
}

fn configured(dir: &Path, addresses: &[SocketAddr], index: usize) -> Node {
    let name = node_name(index);
    let seeds: Vec<String> = addresses.iter().map(SocketAddr::to_string).collect();
    Node::in_dir(&dir.join(&name))
        .with_env("FASTPACA_NODE_NAME", name)
        .with_env("FASTPACA_LISTEN", addresses[index].to_string())
        .with_env("FASTPACA_CLUSTER_SEED", seeds.join(","))
        .with_env("FASTPACA_CLUSTER_SECRET", SECRET)
}

/// Ports nobody listens on, from a place that differs from one bench to the next.
fn free_ports() -> Result<[u16; NODES], Error> {
    let count = PORTS.end - PORTS.start;
    let first = (std::process::id() % u32::from(count)) as u16;
    let ports = (0..count).map(|step| PORTS.start + (first + step) % count);
    let free: Vec<u16> =
        ports.filter(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok()).take(NODES).collect();
    free.try_into().map_err(|_| "no free ports".into())
}

/// The group of the conversation of that number.
pub(crate) fn group_of_number(number: u64) -> usize {
    usize::from(group_of(
        &ConversationId::parse(&Id(number).to_string()).expect("letters and digits are an id"),
    ))
}

/// For each group, by number, the first conversation that belongs to it.
pub(crate) fn one_of_each_group() -> Vec<u64> {
    let mut found = vec![None; usize::from(GROUPS)];
    let mut missing = found.len();
    for number in 0.. {
        let slot = &mut found[group_of_number(number)];
        if slot.is_none() {
            *slot = Some(number);
            missing -= 1;
        }
        if missing == 0 {
            break;
        }
    }
    found.into_iter().flatten().collect()
}
