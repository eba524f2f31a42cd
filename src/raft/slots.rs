//! One slot per group of the cluster: its files on this node, and the replica that runs on them, if one does.

use std::sync::Arc;

use parking_lot::RwLock;

use super::group::Group;
use super::log_store::LogStore;
use crate::store::GroupStore;

/// The slots of a node, by group number.
pub(crate) struct Slots(Vec<Slot>);

/// What a node has of one group.
pub(crate) struct Slot {
    pub(crate) store: Arc<GroupStore>,
    pub(crate) log: LogStore,
    running: RwLock<Option<Arc<Group>>>,
    /// Held while a replica is started or removed.
    pub(super) turn: tokio::sync::Mutex<()>,
}

impl Slots {
    pub(crate) fn new(files: impl Iterator<Item = (Arc<GroupStore>, LogStore)>) -> Self {
        let slot = |(store, log)| Slot { store, log, running: RwLock::default(), turn: Default::default() };
        Self(files.map(slot).collect())
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Slot> {
        self.0.iter()
    }

    pub(crate) fn get(&self, group: u16) -> Option<&Slot> {
        self.0.get(usize::from(group))
    }

    pub(crate) fn running(&self) -> impl Iterator<Item = Arc<Group>> {
        self.0.iter().filter_map(Slot::group)
    }
}

impl Slot {
    /// The replica, while it runs.
    pub(crate) fn group(&self) -> Option<Arc<Group>> {
        self.running.read().clone()
    }

    pub(super) fn set(&self, group: Option<Arc<Group>>) {
        *self.running.write() = group;
    }
}
