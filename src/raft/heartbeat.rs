//! What a node tells every other one a few times a second: that it lives, and which groups it leads.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::liveness::{ELECTION_TIMEOUT, HEARTBEAT, Liveness};
use super::slots::Slots;
use crate::journal::Journal;
use crate::metrics::Metrics;
use crate::peer::{Answer, Lane, Peers, Refused, Remote, Service};

/// The method that carries heartbeats.
pub(crate) const METHOD: u16 = 15;

/// Where Raft runs nothing has run for so long: others are to lead.
const STUCK_AFTER: Duration = Duration::from_secs(3);

const VERSION: u8 = 1;
/// The sender is about to stop, or can take no appends: it wants to lead nothing.
const LEAVING: u8 = 1;
const HEADER_BYTES: usize = 2;
const CLAIM_BYTES: usize = 10;

/// Sends and receives heartbeats.
pub(crate) struct Heartbeats {
    slots: Arc<Slots>,
    liveness: Arc<Liveness>,
    journal: Journal,
    metrics: Metrics,
    leaving: AtomicBool,
    /// When the runtime of requests and of Raft, which is not that of heartbeats, last ran something.
    ran: Mutex<Instant>,
}

impl Heartbeats {
    pub(crate) fn new(
        slots: Arc<Slots>,
        liveness: Arc<Liveness>,
        journal: Journal,
        metrics: Metrics,
    ) -> Self {
        let (leaving, ran) = (AtomicBool::new(false), Mutex::new(Instant::now()));
        Self { slots, liveness, journal, metrics, leaving, ran }
    }

    /// From the next heartbeat on, others know that this node is about to stop.
    pub(crate) fn leave(&self) {
        self.leaving.store(true, Ordering::Relaxed);
    }

    /// Shows that the runtime it is run on, that of Raft, does something from now on.
    pub(crate) fn show_pulse(self: Arc<Self>, stop: CancellationToken) -> impl Future<Output = ()> {
        // Replicas may have taken long to start, while nobody was to see it.
        *self.ran.lock() = Instant::now();
        async move {
            while stop.run_until_cancelled(tokio::time::sleep(HEARTBEAT)).await.is_some() {
                *self.ran.lock() = Instant::now();
            }
        }
    }

    fn is_stuck(&self) -> bool {
        self.ran.lock().elapsed() > STUCK_AFTER
    }

    pub(crate) async fn serve(self: Arc<Self>, peers: Peers, stop: CancellationToken) {
        let mut links = peers.links();
        let mut linked = BTreeSet::new();
        let (mut hung, mut stuck) = (false, false);
        let mut ticks = tokio::time::interval(HEARTBEAT);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let up: BTreeSet<(u128, u64)> = {
                let links = links.borrow_and_update();
                let remotes =
                    links.iter().filter(|link| link.is_up()).filter_map(|link| link.remote.as_ref());
                remotes.map(|remote| (remote.node_id, remote.incarnation)).collect()
            };
            for (node, _) in linked.difference(&up) {
                self.liveness.set_linked(*node, false);
            }
            // A node that has just come within reach hears at once who leads.
            for (node, _) in up.difference(&linked) {
                self.liveness.set_linked(*node, true);
                self.send(&peers, *node);
            }
            linked = up;
            tokio::select! {
                () = stop.cancelled() => return,
                changed = links.changed() => if changed.is_err() { return },
                _ = ticks.tick() => {
                    self.log_change_of_disk(&mut hung);
                    self.log_change_of_pulse(&mut stuck);
                    linked.iter().for_each(|(node, _)| self.send(&peers, *node));
                }
            }
        }
    }

    fn send(self: &Arc<Self>, peers: &Peers, node: u128) {
        self.metrics.heartbeats_total.inc();
        let (this, peers, body) = (self.clone(), peers.clone(), self.encode());
        tokio::spawn(async move {
            let sent = Instant::now();
            let answer = peers.call(node, Lane::Control, METHOD, &[body], ELECTION_TIMEOUT).await;
            if answer.is_ok() && this.liveness.answered(node, sent) {
                this.greet(node).await;
            }
        });
    }

    /// Has a node's replicas of all groups led here hear from their leader: what was lost while a link was down, such as the
    /// last commit, is said again. A node answers once its replicas run; before they have heard from their leader, none of them
    /// can take over the lead.
    async fn greet(&self, node: u128) {
        for group in self.slots.running().filter(|group| group.is_leader()) {
            group.greet(node).await;
        }
    }

    fn log_change_of_disk(&self, hung: &mut bool) {
        match (std::mem::replace(hung, self.journal.hangs()), *hung) {
            (false, true) => warn!(event = "disk_hangs", "a write has not come back: others are to lead"),
            (true, false) => info!(event = "disk_answers", "the write has come back"),
            _ => {}
        }
    }

    fn log_change_of_pulse(&self, stuck: &mut bool) {
        match (std::mem::replace(stuck, self.is_stuck()), *stuck) {
            (false, true) => {
                warn!(event = "threads_stuck", "no thread of requests is free: others are to lead");
            }
            (true, false) => info!(event = "threads_free", "threads of requests are free again"),
            _ => {}
        }
    }

    fn encode(&self) -> Bytes {
        let (leaving, is_stuck) = (self.leaving.load(Ordering::Relaxed), self.is_stuck());
        let wants_none = leaving || is_stuck || !self.journal.has_space() || self.journal.hangs();
        let mut out = vec![VERSION, u8::from(wants_none) * LEAVING];
        for group in self.slots.running().filter(|group| !is_stuck && group.claims_lead()) {
            out.extend_from_slice(&group.number().to_le_bytes());
            out.extend_from_slice(&group.term().to_le_bytes());
        }
        out.into()
    }
}

impl Service for Heartbeats {
    fn call<'a>(&'a self, from: &'a Remote, _method: u16, body: Bytes) -> Answer<'a> {
        let answer = match decode(&body) {
            Some((leaving, claims)) => {
                self.liveness.heard(from.node_id, from.incarnation, leaving, claims, Instant::now());
                Ok(Bytes::new())
            }
            None => Err(Refused("undecodable heartbeat".into())),
        };
        Box::pin(std::future::ready(answer))
    }
}

fn decode(body: &[u8]) -> Option<(bool, HashMap<u16, u64>)> {
    let (header, claims) = body.split_at_checked(HEADER_BYTES)?;
    if header[0] != VERSION || !claims.len().is_multiple_of(CLAIM_BYTES) {
        return None;
    }
    let claims = claims.chunks_exact(CLAIM_BYTES).map(|claim| {
        let (group, term) = claim.split_at(2);
        let term = term.try_into().map(u64::from_le_bytes);
        Some((u16::from_le_bytes(group.try_into().ok()?), term.ok()?))
    });
    Some((header[1] & LEAVING != 0, claims.collect::<Option<_>>()?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn golden_bytes() {
        let mut body = vec![1, 1];
        body.extend_from_slice(&[3, 0, 9, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(decode(&body), Some((true, HashMap::from([(3, 9)]))));
        assert_eq!(decode(&[1, 0]), Some((false, HashMap::new())));
        assert_eq!(decode(&[2, 0]), None);
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(body in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = decode(&body);
        }
    }
}
