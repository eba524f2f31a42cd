//! Several servers that are to be one cluster, and everything a test does to them from outside.
//!
//! The addresses stay what they are over all lives of a server. A cluster of one is started without seeds and is a single
//! node like any other. When a test fails, the ends of the logs are printed and the directory is kept.

use super::client::Client;
use super::clock::Clock;
use super::faults::{Injected, SmallDisk, calls, can_trace, delayed};
use super::netns::{self, Network};
use super::ports::free_port;
use super::process::{Node, Process, START_MAX, StartError};
use super::{small_settings, test_dir};
use serde_json::Value;
use std::collections::HashMap;
use std::fs::File;
use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Shared by all nodes; what it is does not matter.
const SECRET: &str = "shared-by-the-nodes-of-a-test";

/// Where a node answers with the digest of every group it hosts and the index applied there:
/// `{"groups": {"17": {"applied": 42, "digest": "9f.."}}}`. Where nothing answers, replicas are compared by what clients see.
const DIGESTS_PATH: &str = "/internal/digests";

/// Longest wait for an answer that must come: above the server's own limits.
const ANSWER_MAX: Duration = Duration::from_secs(60);

/// Longest wait for an answer about the cluster itself.
const VIEW_MAX: Duration = Duration::from_secs(5);

/// Longest wait for all replicas to have applied the same, once nobody writes.
const ALIKE_MAX: Duration = Duration::from_secs(60);

/// Bytes of the disk of a node that is to run out of it.
const DISK_BYTES: u64 = 96 << 20;

/// What it keeps of that for what must go on.
const DISK_RESERVE_BYTES: u64 = 8 << 20;

/// What a sync takes on a slow disk.
const SLOW_SYNC: Duration = Duration::from_millis(200);

/// What a cluster is made of.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Shape {
    pub(crate) size: usize,
    /// Hosts of their own, whose only common knowledge is one name for all of them.
    pub(crate) hosts: bool,
    /// Wall clocks that can be moved.
    pub(crate) clocks: bool,
    /// Disks that can be filled.
    pub(crate) disks: bool,
    /// Disks of which each sync takes [`SLOW_SYNC`]. Not together with hosts.
    pub(crate) slow_syncs: bool,
}

impl Shape {
    pub(crate) fn of(size: usize) -> Shape {
        Shape { size, ..Shape::default() }
    }
}

/// Addresses of all servers, which clients share with the cluster; a server that joins later is added.
#[derive(Clone, Debug, Default)]
pub(crate) struct Addresses(Arc<Mutex<Vec<SocketAddr>>>);

impl Addresses {
    pub(crate) fn all(&self) -> Vec<SocketAddr> {
        self.0.lock().expect("nobody panics with the lock").clone()
    }

    fn add(&self, address: SocketAddr) {
        self.0.lock().expect("nobody panics with the lock").push(address);
    }
}

#[derive(Debug)]
pub(crate) struct Member {
    pub(crate) name: String,
    pub(crate) node: Node,
    address: SocketAddr,
    process: Option<Process>,
    pub(crate) clock: Option<Clock>,
    disk: Option<SmallDisk>,
}

pub(crate) struct Cluster {
    shape: Shape,
    pub(crate) members: Vec<Member>,
    pub(crate) network: Option<Network>,
    addresses: Addresses,
    /// Kept when a test fails.
    dir: Option<TempDir>,
}

impl Cluster {
    /// Prepared, with nothing started. `spare` more nodes can be added later. `None`, with a word about it, where this machine
    /// does not allow what the shape asks for.
    pub(crate) fn prepare(shape: Shape, spare: usize) -> Option<Cluster> {
        let network = if shape.hosts { Some(Network::of(shape.size + spare)?) } else { None };
        let mut cluster = Cluster {
            shape,
            members: Vec::new(),
            network,
            addresses: Addresses::default(),
            dir: Some(test_dir()),
        };
        for _ in 0..shape.size {
            cluster.prepare_member()?;
        }
        let seeds = cluster.seeds();
        for index in 0..shape.size {
            cluster.give_seeds(index, &seeds);
        }
        Some(cluster)
    }

    /// Prepared, started, and every node ready.
    pub(crate) fn start(shape: Shape) -> Option<Cluster> {
        let mut cluster = Cluster::prepare(shape, 0)?;
        cluster.start_all();
        cluster.wait_ready();
        Some(cluster)
    }

    fn prepare_member(&mut self) -> Option<()> {
        let index = self.members.len();
        let name = format!("node-{}", index + 1);
        let dir = self.dir().join(&name);
        std::fs::create_dir_all(&dir).expect("a test writes to its own directory");
        let mut node = small_settings(Node::in_dir(&dir)).with_env("FASTPACA_NODE_NAME", &name);
        let address = match &self.network {
            Some(network) => network.socket(index),
            None => SocketAddr::from(([127, 0, 0, 1], free_port())),
        };
        node = match &self.network {
            Some(network) => node
                .with_program(network.program(index))
                .with_reached_at(address)
                .with_env("FASTPACA_LISTEN", format!("0.0.0.0:{}", address.port())),
            None => node.with_env("FASTPACA_LISTEN", address.to_string()),
        };
        if self.shape.slow_syncs {
            if !can_trace() {
                return None;
            }
            node = node.with_program(delayed(calls::SYNC, SLOW_SYNC));
        }
        let mut clock = None;
        if self.shape.clocks {
            let (shiftable, shifted) = Clock::of(node, &dir)?;
            (clock, node) = (Some(shiftable), shifted);
        }
        let mut disk = None;
        if self.shape.disks {
            let small = SmallDisk::mount(&dir.join("disk"), DISK_BYTES)?;
            node = node
                .with_data_dir(&small.path().join("data"))
                .with_env("FASTPACA_DISK_RESERVE_BYTES", DISK_RESERVE_BYTES.to_string());
            disk = Some(small);
        }
        self.addresses.add(address);
        self.members.push(Member { name, node, address, process: None, clock, disk });
        Some(())
    }

    fn seeds(&self) -> String {
        match &self.network {
            Some(_) => format!("{}:{}", netns::NAME, self.members[0].address.port()),
            None => {
                let all = self.members.iter().map(|member| member.address.to_string());
                all.collect::<Vec<_>>().join(",")
            }
        }
    }

    fn give_seeds(&mut self, index: usize, seeds: &str) {
        if self.shape.size > 1 {
            self.set(index, "FASTPACA_CLUSTER_SEED", seeds);
            self.set(index, "FASTPACA_CLUSTER_SECRET", SECRET);
            self.set(index, "FASTPACA_CLUSTER_SIZE", &self.shape.size.to_string());
        }
    }

    /// A setting of one node, from its next life on.
    pub(crate) fn set(&mut self, index: usize, name: &str, value: &str) {
        let member = &mut self.members[index];
        member.node = member.node.clone().with_env(name, value);
    }

    /// Starts one node more, which knows the first ones.
    pub(crate) fn add(&mut self) -> usize {
        let (seeds, index) = (self.seeds(), self.members.len());
        self.prepare_member().expect("the first members could be prepared");
        self.give_seeds(index, &seeds);
        self.spawn(index);
        index
    }

    pub(crate) fn dir(&self) -> &Path {
        self.dir.as_ref().expect("it is taken when the cluster ends").path()
    }

    pub(crate) fn addresses(&self) -> Addresses {
        self.addresses.clone()
    }

    pub(crate) fn client(&self, index: usize) -> Client {
        Client::at(self.members[index].address, ANSWER_MAX)
    }

    pub(crate) fn start_all(&mut self) {
        (0..self.members.len()).for_each(|index| self.spawn(index));
    }

    /// Starts a node, if it does not run, and waits for nothing.
    pub(crate) fn spawn(&mut self, index: usize) {
        let member = &mut self.members[index];
        if member.process.as_mut().is_none_or(|process| !process.is_running()) {
            member.process =
                Some(member.node.spawn().unwrap_or_else(|error| panic!("{}: {error}", member.name)));
        }
    }

    /// Waits until every node that was started is ready.
    pub(crate) fn wait_ready(&mut self) {
        self.wait_ready_of(|_| true);
    }

    /// The same of some nodes.
    pub(crate) fn wait_ready_of(&mut self, wanted: impl Fn(usize) -> bool) {
        for (_, member) in self.members.iter_mut().enumerate().filter(|(node, _)| wanted(*node)) {
            let Some(process) = &mut member.process else { continue };
            if let Err(error) = process.wait_ready(START_MAX) {
                panic!("{} is not ready: {error}", member.name);
            }
        }
    }

    /// Waits until a node that was ready no longer is.
    pub(crate) async fn wait_unready(&self, index: usize) {
        let deadline = Instant::now() + START_MAX;
        while self.client(index).get("/health/ready").await.status == 200 {
            assert!(Instant::now() < deadline, "{} is still ready", self.members[index].name);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Waits until one node listens, ready or not.
    pub(crate) fn wait_listening(&mut self, index: usize) {
        let process = self.members[index].process.as_mut().expect("only what was started is waited for");
        process.wait_listening(START_MAX).unwrap_or_else(|error| panic!("{error}"));
    }

    /// What became of a start that must not succeed: the error it ended with, log included.
    pub(crate) fn start_refused(&mut self, index: usize) -> StartError {
        match self.members[index].node.start() {
            Ok(_) => panic!("{} was not refused", self.members[index].name),
            Err(error) => error,
        }
    }

    pub(crate) fn kill(&mut self, index: usize) {
        if let Some(mut process) = self.members[index].process.take() {
            process.kill();
        }
    }

    pub(crate) fn pause(&self, index: usize) {
        self.running(index).pause();
    }

    pub(crate) fn resume(&self, index: usize) {
        self.running(index).resume();
    }

    /// Asks for a shutdown and waits for its end, which must be a clean one.
    pub(crate) fn terminate(&mut self, index: usize) {
        let Some(mut process) = self.members[index].process.take() else { return };
        process.terminate();
        let name = &self.members[index].name;
        let status = process.wait_exit(START_MAX).unwrap_or_else(|| panic!("{name} does not end"));
        assert!(status.success(), "{name} ended with {status}:\n{}", process.log_end());
    }

    fn running(&self, index: usize) -> &Process {
        self.members[index].process.as_ref().expect("only what runs is stopped and continued")
    }

    /// Takes all data from a node, which does not run.
    pub(crate) fn wipe(&mut self, index: usize) {
        assert!(self.members[index].process.is_none(), "a running node is not wiped");
        std::fs::remove_dir_all(self.members[index].node.data_dir()).expect("the data is there");
    }

    /// Copies all data of a node, which does not run, to the side.
    pub(crate) fn back_up(&mut self, index: usize) {
        assert!(
            self.members[index].process.is_none(),
            "what a running node writes meanwhile would be missing"
        );
        copy_dir(self.members[index].node.data_dir(), &self.backup(index));
    }

    /// Puts back what was copied, in place of what the node has, which does not run.
    pub(crate) fn restore(&mut self, index: usize) {
        self.wipe(index);
        copy_dir(&self.backup(index), self.members[index].node.data_dir());
    }

    fn backup(&self, index: usize) -> PathBuf {
        self.dir().join(format!("{}-backup", self.members[index].name))
    }

    /// Waits until a node that runs has logged something with all of these words in one line.
    pub(crate) async fn wait_logged(&self, index: usize, words: &[&str]) {
        let deadline = Instant::now() + START_MAX;
        let has = |line: &str| words.iter().all(|word| line.contains(word));
        while !self.running(index).log().lines().any(has) {
            assert!(Instant::now() < deadline, "{} does not log {words:?}", self.members[index].name);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Leaves half of what the server keeps in reserve on the disk of a node. Piece by piece, for the server writes too.
    pub(crate) fn fill_disk(&self, index: usize) {
        let disk = self.members[index].disk.as_ref().expect("the shape has disks");
        let mut filler = File::create(disk.path().join("filler")).expect("a file takes no space yet");
        let piece = [0; 64 << 10];
        while disk.free_bytes() > DISK_RESERVE_BYTES / 2 {
            filler.write_all(&piece).expect("there is more than half of the reserve");
        }
    }

    /// Has no sync of a node return, until what is returned ends.
    pub(crate) fn hang_disk(&self, index: usize) -> Injected {
        Injected::into(self.running(index), calls::SYNC, "delay_enter=600000000")
    }

    pub(crate) fn empty_disk(&self, index: usize) {
        let disk = self.members[index].disk.as_ref().expect("the shape has disks");
        // An error means that it was not filled.
        std::fs::remove_file(disk.path().join("filler")).ok();
    }

    /// `GET /v1/cluster` as some node that answers sees it.
    pub(crate) async fn view(&self) -> Option<Value> {
        for index in 0..self.members.len() {
            if let Some(view) = self.get(index, "/v1/cluster").await {
                return Some(view);
            }
        }
        None
    }

    async fn get(&self, index: usize, path: &str) -> Option<Value> {
        let client = Client::at(self.members[index].address, VIEW_MAX);
        let answer = client.request(reqwest::Method::GET, path, None).await.ok()?;
        (answer.status == 200).then_some(answer.body)
    }

    /// The node that leads a group. `None` when the view does not tell it.
    pub(crate) async fn leader_of(&self, group: u16) -> Option<usize> {
        let view = self.view().await?;
        let leader = leader_in(&view, group)?;
        self.members.iter().position(|member| member.name == leader)
    }

    /// The nodes that run.
    pub(crate) fn running_members(&self) -> Vec<usize> {
        (0..self.members.len()).filter(|&index| self.members[index].process.is_some()).collect()
    }

    /// What differs between the replicas of a group, once all that run here have applied the same.
    pub(crate) async fn compare_digests(&self) -> Vec<String> {
        let deadline = Instant::now() + ALIKE_MAX;
        loop {
            match self.digests_differ().await {
                Ok(differences) => return differences,
                Err(why) if Instant::now() > deadline => return vec![why],
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    }

    /// The groups whose replicas differ; why they cannot be compared yet.
    async fn digests_differ(&self) -> Result<Vec<String>, String> {
        let mut known: HashMap<String, (usize, Value)> = HashMap::new();
        let mut differences = Vec::new();
        for index in self.running_members() {
            let node = index + 1;
            let answer = self.get(index, DIGESTS_PATH).await;
            let answer = answer.ok_or_else(|| format!("node {node} does not tell its digests"))?;
            for (group, replica) in answer["groups"].as_object().expect("groups is an object") {
                let (other, first) = known.entry(group.clone()).or_insert_with(|| (index, replica.clone()));
                let other = *other + 1;
                if first["applied"] != replica["applied"] {
                    return Err(format!(
                        "nodes {other} and {node} have not applied the same of group {group}"
                    ));
                }
                if first["digest"] != replica["digest"] {
                    differences.push(format!("group {group} differs between nodes {other} and {node}"));
                }
            }
        }
        if known.is_empty() { Err("no node tells a digest".into()) } else { Ok(differences) }
    }

    /// Waits until the view of the cluster is as wanted.
    pub(crate) async fn wait_view(&self, what: &str, wanted: impl Fn(&Value) -> bool) {
        let deadline = Instant::now() + START_MAX;
        loop {
            let view = self.view().await;
            if view.as_ref().is_some_and(&wanted) {
                return;
            }
            assert!(Instant::now() < deadline, "not {what} in time: {view:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

/// The name of a group's leader: from `leaders_by_group` where the view has it, or the only node there is, which leads all.
fn leader_in(view: &Value, group: u16) -> Option<&str> {
    let by_group = view["leaders_by_group"][group.to_string()].as_str();
    match view["nodes"].as_array()?.as_slice() {
        [only] => only["name"].as_str(),
        _ => by_group,
    }
}

fn copy_dir(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("a test writes to its own directory");
    for entry in std::fs::read_dir(from).expect("the data is there") {
        let entry = entry.expect("nobody takes it away");
        let to = to.join(entry.file_name());
        match entry.file_type().expect("the system knows").is_dir() {
            true => copy_dir(&entry.path(), &to),
            false => drop(std::fs::copy(entry.path(), to).expect("there is room")),
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        for member in &self.members {
            match &member.process {
                Some(process) => eprintln!("--- {}'s log ends:\n{}", member.name, process.log_end()),
                None => eprintln!("--- {} does not run", member.name),
            }
        }
        if let Some(dir) = self.dir.take() {
            eprintln!("kept: {}", dir.keep().display());
        }
    }
}
