//! A cluster in which nothing fails: what replication, forwarding and freshness cost.

use super::{Bench, MESSAGE_BYTES, milliseconds};
use crate::Error;
use crate::load::{Conversations, Request};
use crate::nodes::{Cluster, NODES, group_of_number};
use crate::process::{Node, Process};
use crate::report::Verdict;
use crate::run::{Measured, measure_over_in_turns};
use std::time::Duration;

const RATE_OF_SINGLE_MIN: f64 = 0.35;
const APPEND_P99_MAX: Duration = Duration::from_millis(25);
const FORWARDING_MAX: Duration = Duration::from_micros(500);
const IDLE_CORE_MAX: f64 = 0.02;

/// The node whose conversations are looked at apart, and another one.
const LEADER: usize = 0;
const FOLLOWER: usize = 1;

fn append() -> Request {
    Request::Append { events: 1, message_bytes: MESSAGE_BYTES, own_token_count: true }
}

impl Bench {
    /// A node by itself, with as many conversations as the cluster.
    fn single(&self, dir: &std::path::Path) -> Result<Process, Error> {
        let process = Node::in_dir(dir).start()?;
        let count = self.scale.conversations;
        self.create(&[process.address()], &[process.pid()], Conversations::first(count), count)?;
        Ok(process)
    }

    /// The conversations of a cluster whose groups one of its nodes leads.
    fn led_by(&self, cluster: &Cluster, node: usize) -> Result<Conversations, Error> {
        let leaders = cluster.leaders()?;
        let led = (0..self.scale.conversations).filter(|number| leaders[group_of_number(*number)] == node);
        let led: Vec<u64> = led.collect();
        if led.is_empty() { Err("a node leads nothing".into()) } else { Ok(Conversations::These(led)) }
    }

    pub(super) fn appends(&mut self) -> Result<(), Error> {
        let dir = self.temp_dir()?;
        let single = self.single(dir.path())?;
        let cluster = self.cluster_with(self.scale.conversations)?;
        let (all, pids) = (Conversations::first(self.scale.conversations), cluster.pids());
        let led = self.led_by(&cluster, LEADER)?;
        let leaders = cluster.leaderships()?;
        let connections = self.scale.connections;
        let load = |addresses: &[_], these: &Conversations| {
            self.timed(addresses, append(), these.clone(), connections)
        };
        let at = cluster.addresses();
        // The one that does not work costs the other its idle CPU, which `idle` shows.
        let loads = [
            (load(&[single.address()], &all), vec![single.pid()]),
            (load(at, &all), pids.clone()),
            (load(&at[LEADER..=LEADER], &led), pids.clone()),
            (load(&at[FOLLOWER..=FOLLOWER], &led), pids),
        ];
        let measured = measure_over_in_turns(&loads, self.scale.rounds)?;
        let labels = [
            "single node",
            "3 nodes, clients at all",
            "3 nodes, leader's groups, at it",
            "3 nodes, leader's groups, elsewhere",
        ];
        self.report.heading(&format!("durable quorum appends, {connections} connections"));
        for (label, one) in labels.iter().zip(&measured) {
            self.report.row(label, one, 1, &measured[0]);
        }
        self.append_figures(&measured, &leaders);
        Ok(())
    }

    fn append_figures(&mut self, measured: &[Measured], leaders: &[u64]) {
        let [single, spread, at_leader, elsewhere] = measured else {
            unreachable!("four loads, four results")
        };
        for (node, leads) in leaders.iter().enumerate() {
            let cost = format!("{:.1} µs, leads {leads} groups", spread.cpu_us_of(node));
            self.report.figure(&format!("CPU per append of the cluster, node-{}", node + 1), cost);
        }
        for (label, one) in [("sent to the leader", at_leader), ("sent to a follower", elsewhere)] {
            let others: Vec<String> = (0..NODES)
                .filter(|node| *node != LEADER)
                .map(|node| format!("{:.1} µs", one.cpu_us_of(node)))
                .collect();
            let cost = format!("{:.1} µs; followers {}", one.cpu_us_of(LEADER), others.join(", "));
            self.report.figure(&format!("CPU per append {label}: leader"), cost);
        }
        let ratio = spread.rate() / single.rate();
        self.report.at_least("quorum append rate, × single node", ratio, RATE_OF_SINGLE_MIN);
        let p99 = Duration::from_micros(spread.outcome.p99_us);
        self.report.bar(
            "quorum append p99",
            format!("{:.1} ms", p99.as_secs_f64() * 1e3),
            format!("< {}", milliseconds(APPEND_P99_MAX)),
            Verdict::of(p99 < APPEND_P99_MAX),
        );
    }

    pub(super) fn forwarded(&mut self) -> Result<(), Error> {
        let dir = self.temp_dir()?;
        let single = self.single(dir.path())?;
        let cluster = self.cluster_with(self.scale.conversations)?;
        let measured = self.three_ways(&single, &cluster, append(), 1)?;
        self.report.heading("durable appends to conversations of one leader, 1 connection");
        self.three_rows(&measured);
        let [_, here, elsewhere] = &measured[..] else { return Err("three loads give three results".into()) };
        let added = elsewhere.outcome.p50_us as i64 - here.outcome.p50_us as i64;
        self.report.bar(
            "forwarded append, p50, added",
            format!("{:.2} ms", added as f64 / 1e3),
            format!("< {:.1} ms", FORWARDING_MAX.as_secs_f64() * 1e3),
            Verdict::of(added < FORWARDING_MAX.as_micros() as i64),
        );
        Ok(())
    }

    pub(super) fn reads(&mut self) -> Result<(), Error> {
        let dir = self.temp_dir()?;
        let single = self.single(dir.path())?;
        let cluster = self.cluster_with(self.scale.conversations)?;
        for connections in [1, self.scale.connections] {
            let measured = self.three_ways(&single, &cluster, Request::Describe, connections)?;
            self.report.heading(&format!("linearizable reads of a conversation, {connections} connections"));
            self.three_rows(&measured);
        }
        Ok(())
    }

    /// The same request at a node by itself, at the leader's node, and at another.
    fn three_ways(
        &self,
        single: &Process,
        cluster: &Cluster,
        request: Request,
        connections: usize,
    ) -> Result<Vec<Measured>, Error> {
        let led = self.led_by(cluster, LEADER)?;
        let load = |address, these| self.timed(&[address], request, these, connections);
        let all = Conversations::first(self.scale.conversations);
        let at = cluster.addresses();
        let loads = [
            (load(single.address(), all), vec![single.pid()]),
            (load(at[LEADER], led.clone()), cluster.pids()),
            (load(at[FOLLOWER], led), cluster.pids()),
        ];
        measure_over_in_turns(&loads, self.scale.rounds)
    }

    fn three_rows(&mut self, measured: &[Measured]) {
        for (label, one) in ["single node", "at the leader's node", "at another node"].iter().zip(measured) {
            self.report.row(label, one, 1, &measured[0]);
        }
    }

    pub(super) fn idle(&mut self) -> Result<(), Error> {
        let cluster = self.cluster_with(self.scale.conversations)?;
        cluster.settle()?;
        let heartbeats = || -> Result<Vec<f64>, Error> {
            (0..NODES).map(|node| Ok(cluster.metrics(node)?.value("fastpaca_heartbeats_total"))).collect()
        };
        let before = heartbeats()?;
        let cores = cluster.cores_used(self.scale.idle)?;
        let after = heartbeats()?;
        self.report.title("a cluster with nothing to do");
        for (node, core) in cores.iter().enumerate() {
            let sent = (after[node] - before[node]) / self.scale.idle.as_secs_f64();
            self.report
                .figure(&format!("heartbeats sent per second, node-{}", node + 1), format!("{sent:.1}"));
            self.report.bar(
                &format!("idle CPU of node-{}, of one core", node + 1),
                format!("{:.2} %", core * 100.0),
                format!("< {:.0} %", IDLE_CORE_MAX * 100.0),
                Verdict::of(*core < IDLE_CORE_MAX),
            );
        }
        Ok(())
    }
}
