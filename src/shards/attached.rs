//! What routing works with once the node has recovered: the replicas here, the links, where groups are.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use tokio::sync::{Semaphore, SemaphorePermit, watch};
use tokio::time::timeout_at;

use super::fresh::Missed;
use super::indexes::Indexes;
use super::links::Links;
use super::local::{Local, Replica};
use super::placement::{META_GROUP, Placement};
use super::search::Deadline;
use super::watcher::WAITS_MAX;
use crate::metrics::Metrics;

/// Requests sent on to other nodes and not yet answered; more wait. A connection serves only so many calls at once, the
/// Raft log's among them, so that two nodes full of each other's requests must never come to that.
const FORWARDED_WRITES_MAX: usize = 256;
const FORWARDED_READS_MAX: usize = 256;

/// How many calls of each kind may be on their way.
pub(super) struct Room {
    pub writes: Semaphore,
    pub reads: Semaphore,
    pub waits: Semaphore,
}

impl Room {
    /// Room for one more read at another node.
    pub(super) async fn to_read(&self, deadline: &Deadline) -> Result<SemaphorePermit<'_>, Missed> {
        let room = timeout_at(deadline.answer_by, self.reads.acquire()).await;
        room.ok().and_then(Result::ok).ok_or_else(|| Missed::new("too many requests wait for other nodes"))
    }
}

/// All there is to route with.
pub(super) struct Attached {
    pub room: Room,
    pub local: Arc<dyn Local>,
    pub links: Arc<dyn Links>,
    pub indexes: Indexes,
    placement: watch::Receiver<Arc<Placement>>,
    /// Who led a group that is not hosted here when it was last asked, or had then what another host lacked.
    remembered: Mutex<HashMap<u16, u128>>,
    /// Replicas whose state may answer reads: recovered from this node's files, or caught up since.
    readable: Marks,
    /// Replicas that have once applied all that was committed.
    caught_up: Marks,
}

impl Attached {
    pub(super) fn new(
        local: Arc<dyn Local>,
        links: Arc<dyn Links>,
        placement: watch::Receiver<Arc<Placement>>,
    ) -> Self {
        let readable = Marks::new();
        for replica in local.hosted() {
            if replica.store().applied().0.is_some() {
                readable.set(&*replica);
            }
        }
        let room = Room {
            writes: Semaphore::new(FORWARDED_WRITES_MAX),
            reads: Semaphore::new(FORWARDED_READS_MAX),
            waits: Semaphore::new(WAITS_MAX),
        };
        Self {
            room,
            local,
            indexes: Indexes::new(links.clone()),
            links,
            placement,
            remembered: Mutex::default(),
            readable,
            caught_up: Marks::new(),
        }
    }

    pub(super) fn metrics(&self) -> &Metrics {
        self.local.metrics()
    }

    pub(super) fn placement(&self) -> Arc<Placement> {
        self.placement.borrow().clone()
    }

    /// Resolves when groups may have moved.
    pub(super) async fn placement_changed(&self) {
        let mut placement = self.placement.clone();
        placement.mark_unchanged();
        if placement.changed().await.is_err() {
            std::future::pending().await
        }
    }

    pub(super) fn remembered_leader(&self, group: u16) -> Option<u128> {
        self.remembered.lock().get(&group).copied()
    }

    pub(super) fn remember_leader(&self, group: u16, leader: Option<u128>) {
        let mut remembered = self.remembered.lock();
        match leader {
            Some(leader) => remembered.insert(group, leader),
            None => remembered.remove(&group),
        };
    }

    /// The replica here whose state may answer reads of a group. One that is still being filled may not, unless there
    /// is nobody else to ask.
    pub(super) fn readable(&self, group: u16) -> Option<Arc<dyn Replica>> {
        let replica = self.local.replica(group)?;
        let is_readable =
            self.readable.has(&*replica) || self.leads(&replica) || !self.is_hosted_elsewhere(group);
        (is_readable && !replica.store().is_installing()).then_some(replica)
    }

    pub(super) fn is_caught_up(&self, replica: &dyn Replica) -> bool {
        self.caught_up.has(replica)
    }

    /// Notes that a replica has applied all that was committed when it was asked.
    pub(super) fn set_caught_up(&self, replica: &dyn Replica) {
        self.readable.set(replica);
        self.caught_up.set(replica);
    }

    fn is_hosted_elsewhere(&self, group: u16) -> bool {
        let here = self.local.node_id();
        self.placement().hosts(group).iter().any(|node| *node != here && self.links.is_up(*node))
    }
}

/// One replica of each group that is marked; a replica that takes its place is not.
struct Marks(Vec<AtomicU64>);

impl Marks {
    fn new() -> Self {
        Self((0..=META_GROUP).map(|_| AtomicU64::new(0)).collect())
    }

    fn has(&self, replica: &dyn Replica) -> bool {
        self.0[usize::from(replica.group())].load(Ordering::Relaxed) == replica.id()
    }

    fn set(&self, replica: &dyn Replica) {
        self.0[usize::from(replica.group())].store(replica.id(), Ordering::Relaxed);
    }
}
