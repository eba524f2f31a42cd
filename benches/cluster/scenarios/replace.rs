//! A node that lost its disk, and the one that takes its place: how long the others have to feed it, and who notices.

use super::{Bench, MESSAGE_BYTES};
use crate::Error;
use crate::clients::{Client, Crowd, History};
use crate::load::{Conversations, Extent, Load, Order, Request};
use crate::nodes::{Cluster, LOOK, NODES};
use crate::report::{Verdict, megabytes};
use crate::run::measure_over;
use crate::watch::{Moment, Watch, failures, in_words, rate};
use std::time::{Duration, Instant};

/// The rate while a node is fed, beside the rate before.
const RATE_KEPT_MIN: f64 = 0.8;
/// Events of one request that fills.
const BATCH: usize = 100;
/// The node that is replaced.
const REPLACED: usize = NODES - 1;
/// Longest wait for the replacement.
const WHOLE_MAX: Duration = Duration::from_secs(600);

/// When what became of the replacement.
struct Replaced {
    killed: Moment,
    /// It was let in and has the first of its replicas.
    admitted: Moment,
    /// It hosts all groups and has caught up in them, and the cluster moves nothing any more.
    whole: Moment,
    even: Moment,
    end: Moment,
}

impl Bench {
    pub(super) fn replace(&mut self) -> Result<(), Error> {
        let mut cluster = self.cluster_with(self.scale.conversations)?;
        let begin = Instant::now();
        self.fill(&cluster)?;
        let filled = begin.elapsed().as_secs_f64();
        self.report.title("a node that lost its data is replaced under load");
        let size = megabytes(self.scale.replaced_bytes);
        self.report.figure("filled with", format!("{size} of messages in {filled:.0} s"));
        let watch = Watch::start(&self.crowd_of_all(&cluster))?;
        let sent_before = bulk_bytes(&cluster)?;
        let times = self.replace_node(&mut cluster, &watch)?;
        let fetched = bulk_bytes(&cluster)? - sent_before;
        let seen = watch.stop()?.clients;
        self.replace_figures(&times, fetched, &seen);
        let alike = cluster.wait_alike()?;
        self.report.figure("load ended: all replicas alike after", format!("{:.1} s", alike.as_secs_f64()));
        Ok(())
    }

    fn replace_figures(&mut self, times: &Replaced, fetched: f64, seen: &[History]) {
        let Replaced { killed, admitted, whole, even, end } = *times;
        let times = [("let in", admitted), ("whole", whole), ("leaders even", even)];
        for (what, at) in times {
            self.report.figure(
                &format!("{what}, seconds after the kill"),
                format!("{:.1}", at.seconds_since(killed)),
            );
        }
        let fetching = whole.seconds_since(admitted);
        let speed = fetched / fetching / 1e6;
        self.report.figure(
            "sent as snapshots",
            format!("{} in {fetching:.1} s, {speed:.0} MB/s", megabytes(fetched as u64)),
        );
        let (before, alone) = (rate(seen, Moment(0), killed), rate(seen, killed, admitted));
        let meanwhile = rate(seen, admitted, whole);
        for (what, rate) in [
            ("before, three nodes", before),
            ("from the kill on, two nodes", alone),
            ("while it fetches", meanwhile),
            ("afterwards, three nodes", rate(seen, even, end)),
        ] {
            self.report.figure(&format!("appends per second, {what}"), format!("{rate:.0}"));
        }
        self.report.figure("attempts that failed", in_words(&failures(seen, Moment(0), end)));
        let kept = meanwhile / before;
        let verdict = Verdict::of(kept >= RATE_KEPT_MIN);
        self.report.bar(
            "append rate while a node is fed, × before",
            format!("{kept:.2} ×"),
            format!(">= {RATE_KEPT_MIN} ×"),
            verdict,
        );
    }

    fn fill(&self, cluster: &Cluster) -> Result<(), Error> {
        let load = Load {
            addresses: cluster.addresses().to_vec(),
            connections: super::PREPARING_CONNECTIONS,
            extent: Extent::Requests(self.scale.replaced_bytes / (BATCH * MESSAGE_BYTES) as u64),
            request: Request::Append { events: BATCH, message_bytes: MESSAGE_BYTES, own_token_count: true },
            conversations: Conversations::first(self.scale.conversations),
            order: Order::InTurn,
        };
        measure_over(&load, &cluster.pids()).map(drop)
    }

    /// As many clients as connections elsewhere, without pauses, over all conversations, at the nodes that stay.
    fn crowd_of_all(&self, cluster: &Cluster) -> Crowd {
        let (step, at) = (self.scale.connections, cluster.others(REPLACED));
        let client = |number: usize| {
            let mut addresses = at.clone();
            addresses.rotate_left(number % at.len());
            let conversations = (number as u64..self.scale.conversations).step_by(step).collect();
            Client { conversations, addresses }
        };
        let clients = (0..step).map(client).collect();
        Crowd { clients, pause: Duration::ZERO, message_bytes: MESSAGE_BYTES }
    }

    fn replace_node(&self, cluster: &mut Cluster, watch: &Watch) -> Result<Replaced, Error> {
        let all = hosted(cluster)?;
        std::thread::sleep(self.scale.around_replacement);
        let killed = watch.now();
        cluster.kill(REPLACED)?;
        cluster.wipe(REPLACED)?;
        // At once: it is for the cluster to let it in when its former self counts as dead.
        cluster.spawn(REPLACED)?;
        let deadline = Instant::now() + WHOLE_MAX;
        let mut wait = |what: &str, done: fn(&mut Cluster, f64) -> Result<bool, Error>| {
            while !done(cluster, all)? {
                if Instant::now() > deadline {
                    return Err(Error::from(format!("the replacement is not {what} in time")));
                }
                std::thread::sleep(LOOK);
            }
            Ok(watch.now())
        };
        let admitted = wait("let in", |cluster, _| Ok(hosted(cluster)? > 0.0))?;
        let whole = wait("whole", |cluster, all| {
            Ok(hosted(cluster)? >= all && cluster.moving()? == 0 && cluster.is_ready(REPLACED)?)
        })?;
        cluster.settle()?;
        let even = watch.now();
        std::thread::sleep(self.scale.around_replacement);
        Ok(Replaced { killed, admitted, whole, even, end: watch.now() })
    }
}

/// How many replicas the replacement, or its former self, runs.
fn hosted(cluster: &Cluster) -> Result<f64, Error> {
    Ok(cluster.metrics(REPLACED)?.value("fastpaca_groups_hosted"))
}

/// What the nodes that stay have sent as snapshots so far.
fn bulk_bytes(cluster: &Cluster) -> Result<f64, Error> {
    let name = r#"fastpaca_peer_bytes_sent_total{lane="bulk"}"#;
    let sent = |node| Ok(cluster.metrics(node)?.value(name));
    (0..NODES).filter(|node| *node != REPLACED).map(sent).sum()
}
