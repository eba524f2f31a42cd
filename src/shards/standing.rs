//! Whether this node should get traffic, and the task that finds out what its replicas lack.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::time::sleep;

use super::attached::Attached;
use super::local::Replica;
use super::search::Deadline;
use super::{Inner, Readiness, STARTING, Shards};

/// How often it is looked for replicas that have not caught up yet.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// How long a round may take; replicas that are far behind are asked again in the next one.
const ROUND_MAX: Duration = Duration::from_secs(2);

impl Shards {
    /// Whether this node should get traffic: ready once it has its share of the groups, and every one of them has a leader
    /// and has caught up. A node that was ready, and has lost a leader, is degraded.
    pub fn readiness(&self) -> Readiness {
        if self.0.failure.is_raised() {
            return Readiness::Degraded("the node has failed and is stopping".into());
        }
        let flags = [&self.0.refuses_writes, &self.0.moving_out, &self.0.leaving];
        if flags.iter().any(|flag| flag.load(Ordering::Relaxed)) {
            return Readiness::Draining;
        }
        let Ok(attached) = self.attached() else { return Readiness::Starting(STARTING.into()) };
        if !attached.local.has_space() {
            return Readiness::Degraded("no disk space is left for appends".into());
        }
        if attached.local.disk_hangs() {
            return Readiness::Degraded("the disk takes no writes, and reports no error".into());
        }
        let was_ready = self.0.was_ready.load(Ordering::Relaxed);
        let share = || self.0.lacking_share.get().filter(|_| !was_ready).and_then(|lacking| lacking());
        match share().or_else(|| attached.lack()) {
            None => {
                self.0.was_ready.store(true, Ordering::Relaxed);
                Readiness::Ready
            }
            Some(lack) if was_ready => Readiness::Degraded(lack),
            Some(lack) => Readiness::Starting(lack),
        }
    }
}

impl Attached {
    /// What keeps the replicas here from serving.
    fn lack(&self) -> Option<String> {
        let hosted = self.local.hosted();
        if hosted.is_empty() {
            return Some("the node has not joined a cluster yet".into());
        }
        if self.placement().is_empty() {
            return Some("the node does not know yet which nodes host what".into());
        }
        if let Some(replica) = hosted.iter().find(|replica| replica.leader().is_none()) {
            return Some(format!("group {} has no leader", replica.group()));
        }
        if let Some(replica) = hosted.iter().find(|replica| self.leads(replica) && !replica.has_majority()) {
            return Some(format!(
                "group {} is led here, and most of its nodes cannot be reached",
                replica.group()
            ));
        }
        let behind = hosted.iter().find(|replica| !self.is_caught_up(&***replica))?;
        Some(format!("group {} has not caught up yet", behind.group()))
    }

    /// The replicas that have a leader and have not proved to have caught up.
    fn unproven(&self) -> Vec<Arc<dyn Replica>> {
        let mut hosted = self.local.hosted();
        hosted.retain(|replica| replica.leader().is_some() && !self.is_caught_up(&**replica));
        hosted
    }
}

/// Brings new replicas up to date once, so that reads may use them. Ends with the shards.
pub(super) async fn prove_replicas(shards: Weak<Inner>) {
    loop {
        let Some(inner) = shards.upgrade() else { return };
        if let Some(attached) = inner.attached.get() {
            let unproven = attached.unproven();
            if !unproven.is_empty() {
                // What is missed now is tried in the next round.
                let _ = attached.refresh_all(&unproven, &Deadline::after(ROUND_MAX)).await;
            }
        }
        drop(inner);
        sleep(LOOK_EVERY).await;
    }
}
