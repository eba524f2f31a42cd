//! A node that dies, and a node that stops: how long clients wait, and what fails for them.

use super::{Bench, MESSAGE_BYTES, milliseconds};
use crate::Error;
use crate::clients::{Client, Crowd, Failure, History};
use crate::load::Conversations;
use crate::nodes::{Cluster, NODES, one_of_each_group};
use crate::report::{Verdict, seconds};
use crate::watch::{Gaps, Moment, Watch, failures, in_words};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

const KILL_GAP_MAX: Duration = Duration::from_secs(3);
const KILL_GAP_MEDIAN: Duration = Duration::from_millis(1_500);
const STOP_GAP_MAX: Duration = Duration::from_millis(300);

/// Clients of the node that stops, beside those of the others.
const STOPPING_CLIENTS: usize = 16;

type Failures = BTreeMap<Failure, u64>;

/// What became of one round of stops.
struct Stopped {
    /// Of all groups, from SIGTERM on.
    gaps: Gaps,
    /// At the nodes that stay.
    failed: Failures,
    /// At the one that does not.
    failed_there: Failures,
}

/// What became of one round of kills.
struct Killed {
    /// By group, in the time before the kill: what the load itself causes.
    before: Gaps,
    /// Groups that the killed node led, and the others.
    led: Gaps,
    others: Gaps,
    /// From the restart on, in any group.
    back: Gaps,
    ready_after: Duration,
    even_after: Duration,
}

impl Bench {
    /// A cluster with one conversation of every group.
    fn cluster_of_all_groups(&self) -> Result<(Cluster, Vec<u64>), Error> {
        let cluster = Cluster::start(self.temp_dir()?)?;
        let conversations = one_of_each_group();
        let count = conversations.len() as u64;
        let these = Conversations::These(conversations.clone());
        self.create(cluster.addresses(), &cluster.pids(), these, count)?;
        Ok((cluster, conversations))
    }

    /// A client for every conversation; the n-th begins with the n-th address and goes on with the next.
    fn crowd(&self, conversations: &[u64], addresses: &[SocketAddr]) -> Crowd {
        let client = |(number, conversation): (usize, &u64)| {
            let mut addresses = addresses.to_vec();
            let first = number % addresses.len();
            addresses.rotate_left(first);
            Client { conversations: vec![*conversation], addresses }
        };
        let clients = conversations.iter().enumerate().map(client).collect();
        Crowd { clients, pause: self.settings.pause, message_bytes: MESSAGE_BYTES }
    }

    pub(super) fn kill(&mut self) -> Result<(), Error> {
        let (mut cluster, conversations) = self.cluster_of_all_groups()?;
        self.report
            .title("kill -9 of one node under load, longest time without an acknowledged append by group");
        let (mut led, mut others) = (Gaps::new([]), Gaps::new([]));
        for round in 0..self.scale.rounds {
            let node = round % NODES;
            let killed = self.kill_one(&mut cluster, &conversations, node)?;
            self.report.figure("of its groups", &killed.led);
            self.report.figure("of the others' groups", &killed.others);
            self.report.figure("of all groups before the kill", &killed.before);
            self.report.figure("ready again after", seconds(killed.ready_after));
            self.report.figure("leaders even again after ready and", seconds(killed.even_after));
            self.report.figure("of all groups from the restart to then", &killed.back);
            led.add(killed.led);
            others.add(killed.others);
            let alike = cluster.wait_alike()?;
            self.report.figure("load ended: all replicas alike after", seconds(alike));
        }
        let mut all = led;
        all.add(others);
        for (what, gap, limit) in [
            ("longest gap of any group, kill -9", all.max(), KILL_GAP_MAX),
            ("longest gap, median over groups, kill -9", all.median(), KILL_GAP_MEDIAN),
        ] {
            self.report.bar(
                what,
                milliseconds(gap),
                format!("< {}", milliseconds(limit)),
                Verdict::of(gap < limit),
            );
        }
        Ok(())
    }

    fn kill_one(
        &mut self,
        cluster: &mut Cluster,
        conversations: &[u64],
        node: usize,
    ) -> Result<Killed, Error> {
        cluster.settle()?;
        let leaders = cluster.leaders()?;
        let watch = Watch::start(&self.crowd(conversations, cluster.addresses()))?;
        std::thread::sleep(self.scale.before_fault);
        let killed = watch.now();
        cluster.kill(node)?;
        std::thread::sleep(self.scale.after_fault);
        let restarted = watch.now();
        let begin = Instant::now();
        cluster.spawn(node)?;
        cluster.wait_ready(node)?;
        let ready_after = begin.elapsed();
        let even_after = cluster.settle()?;
        let end = watch.now();
        let seen = watch.stop()?.clients;
        let (first, led) = (Moment(0), |group: usize| leaders[group] == node);
        let gaps = |from: Moment, to: Moment, wanted: &dyn Fn(usize) -> bool| {
            let of_group =
                |(group, history): (usize, &History)| wanted(group).then(|| history.longest_gap(from, to));
            Gaps::new(seen.iter().enumerate().filter_map(of_group))
        };
        let name = format!("node-{}", node + 1);
        let rate = crate::watch::rate(&seen, first, killed);
        self.report.figure(&format!("{name}: appends per second before"), format!("{rate:.0}"));
        let failed = failures(&seen, killed, restarted);
        self.report.figure("attempts that failed, until repeated", in_words(&failed));
        self.report.figure("the same after its restart", in_words(&failures(&seen, restarted, end)));
        Ok(Killed {
            before: gaps(first, killed, &|_| true),
            led: gaps(killed, restarted, &led),
            others: gaps(killed, restarted, &|group| !led(group)),
            back: gaps(restarted, end, &|_| true),
            ready_after,
            even_after,
        })
    }

    pub(super) fn stop(&mut self) -> Result<(), Error> {
        let (mut cluster, conversations) = self.cluster_of_all_groups()?;
        self.report.title("SIGTERM of one node under load");
        let mut all = Gaps::new([]);
        let (mut failed, mut failed_there) = (Failures::new(), Failures::new());
        for round in 0..self.scale.rounds {
            let stopped = self.stop_one(&mut cluster, &conversations, round % NODES)?;
            all.add(stopped.gaps);
            merge(&mut failed, stopped.failed);
            merge(&mut failed_there, stopped.failed_there);
        }
        failed_there.remove(&Failure::Refused);
        for (what, failed) in [
            ("failed requests at the nodes that stay", failed),
            ("the same at the stopping node, bar refused", failed_there),
        ] {
            let count: u64 = failed.values().sum();
            self.report.bar(what, count, "0", Verdict::of(count == 0));
        }
        self.report.bar(
            "longest gap of any group, SIGTERM",
            milliseconds(all.max()),
            format!("< {}", milliseconds(STOP_GAP_MAX)),
            Verdict::of(all.max() < STOP_GAP_MAX),
        );
        Ok(())
    }

    fn stop_one(
        &mut self,
        cluster: &mut Cluster,
        conversations: &[u64],
        node: usize,
    ) -> Result<Stopped, Error> {
        cluster.settle()?;
        let watch = Watch::start(&self.crowd_around(cluster, conversations, node))?;
        std::thread::sleep(self.scale.before_fault);
        let stopping = watch.now();
        let took = cluster.stop(node)?;
        std::thread::sleep(self.scale.after_fault / 2);
        let end = watch.now();
        let seen = watch.stop()?.clients;
        let (elsewhere, there) = seen.split_at(conversations.len());
        let gaps = |from, to| Gaps::new(elsewhere.iter().map(|history| history.longest_gap(from, to)));
        let (before, gaps) = (gaps(Moment(0), stopping), gaps(stopping, end));
        let (failed, failed_there) = (failures(elsewhere, stopping, end), failures(there, stopping, end));
        let name = format!("node-{}", node + 1);
        let rate = crate::watch::rate(&seen, Moment(0), stopping);
        self.report.figure(&format!("{name}: appends per second before"), format!("{rate:.0}"));
        self.report.figure("ended after", seconds(took));
        self.report.figure("longest gaps before", before);
        self.report.figure("longest gaps from SIGTERM on", &gaps);
        self.report.figure("failed at the others", in_words(&failed));
        let closed = there.iter().flat_map(|history| &history.closed).filter(|at| **at >= stopping.0).count();
        let seen_there = format!("{}; {closed} connections closed between requests", in_words(&failed_there));
        self.report.figure(&format!("{STOPPING_CLIENTS} clients of it saw"), seen_there);
        cluster.spawn(node)?;
        cluster.wait_ready(node)?;
        Ok(Stopped { gaps, failed, failed_there })
    }

    /// A client for every conversation at the nodes that stay, as behind a load balancer, and some more at the one that
    /// does not, which go on elsewhere when they must.
    fn crowd_around(&self, cluster: &Cluster, conversations: &[u64], stopping: usize) -> Crowd {
        let mut crowd = self.crowd(conversations, &cluster.others(stopping));
        let mut addresses = vec![cluster.addresses()[stopping]];
        addresses.extend(cluster.others(stopping));
        let client = |number: usize| Client {
            conversations: vec![conversations[number * conversations.len() / STOPPING_CLIENTS]],
            addresses: addresses.clone(),
        };
        crowd.clients.extend((0..STOPPING_CLIENTS).map(client));
        crowd
    }
}

fn merge(into: &mut Failures, from: Failures) {
    for (failure, count) in from {
        *into.entry(failure).or_default() += count;
    }
}
