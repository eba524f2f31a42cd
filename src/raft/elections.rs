//! The node's one timer for elections: looks at every replica and starts those elections that are due.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use openraft::async_runtime::WatchReceiver;
use tokio_util::sync::CancellationToken;

use super::group::{Group, leader_node, leader_replica};
use super::liveness::{ElectionTimer, Leadership, Liveness};
use super::slots::Slots;
use crate::store::Failure;

/// How often every replica is looked at.
const TICK: Duration = Duration::from_millis(100);

/// The election timers of a node.
pub(crate) struct Elections {
    slots: Arc<Slots>,
    liveness: Arc<Liveness>,
    /// Per group: the leader is suspected, so that a candidate may be granted a pre-vote.
    suspicious: Vec<AtomicBool>,
    failure: Failure,
}

impl Elections {
    pub(crate) fn new(slots: Arc<Slots>, liveness: Arc<Liveness>, failure: Failure) -> Self {
        let suspicious = slots.iter().map(|_| AtomicBool::new(false)).collect();
        Self { slots, liveness, suspicious, failure }
    }

    /// Whether this node would support a candidate: not while the leader it knows is alive, nor while it leads itself
    /// with a quorum in reach.
    pub(crate) fn may_grant_pre_vote(&self, group: u16) -> bool {
        let Some(replica) = self.slots.get(group).and_then(|slot| slot.group()) else { return false };
        if replica.is_leader() {
            return !replica.claims_lead() || !replica.has_quorum_in_reach();
        }
        self.suspicious.get(usize::from(group)).is_some_and(|flag| flag.load(Ordering::Relaxed))
    }

    pub(crate) async fn serve(self: Arc<Self>, stop: CancellationToken) {
        let mut timers: Vec<(u64, ElectionTimer)> = Vec::new();
        timers.resize_with(self.slots.iter().count(), || (0, ElectionTimer::new(Instant::now())));
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(TICK) => {}
            }
            let now = Instant::now();
            for (slot, (replica, timer)) in self.slots.iter().zip(&mut timers) {
                let Some(group) = slot.group() else { continue };
                if *replica != group.replica() {
                    (*replica, *timer) = (group.replica(), ElectionTimer::new(now));
                }
                if let Some(reason) = group.broken() {
                    // A core that panicked or met a storage error answers nobody any more, and is not started again.
                    self.failure.raise(format!("Raft group {}: {reason}", group.number()), false);
                    return;
                }
                if self.is_due(&group, timer, now) {
                    // An error means that the group has stopped, which its own failure reports.
                    let _ = group.raft.trigger().elect(true).await;
                }
            }
        }
    }

    fn is_due(&self, group: &Group, timer: &mut ElectionTimer, now: Instant) -> bool {
        let number = group.number();
        let (leadership, rank) = {
            let metrics = group.metrics().borrow_watched();
            let leader = leader_replica(&metrics);
            // Who leaves by a change that is not committed yet may be the only one with the whole log.
            let configs = [&metrics.membership_config, &metrics.committed_membership_config];
            let mut rivals: BTreeSet<_> = configs.into_iter().flat_map(|config| config.voter_ids()).collect();
            rivals.retain(|id| leader != Some(*id) || *id == group.replica());
            let here = metrics.state.is_leader();
            // Learners and removed replicas never stand.
            let Some(place) = rivals.iter().position(|id| *id == group.replica()) else {
                let is_lost = leader_node(&metrics).is_none_or(|node| !self.liveness.answers(node));
                self.suspicious[usize::from(number)].store(is_lost, Ordering::Relaxed);
                return false;
            };
            let leadership = Leadership { term: metrics.current_term, leader: leader_node(&metrics), here };
            // Another order in every group, so that a lost node's groups spread over the others.
            (leadership, ((place + usize::from(number)) % rivals.len()) as u32)
        };
        let due = timer.tick(now, number, rank, leadership, &self.liveness);
        self.suspicious[usize::from(number)].store(timer.is_suspicious(), Ordering::Relaxed);
        due
    }
}
