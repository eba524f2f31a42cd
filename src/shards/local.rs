//! What routing needs of the groups hosted here, as traits, so that it can be tested without Raft.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::BoxFuture;

use crate::conversation::Reply;
use crate::metrics::Metrics;
use crate::raft::WriteFailure;
use crate::store::GroupStore;

/// The replicas on this node.
pub(super) trait Local: Send + Sync + 'static {
    fn node_id(&self) -> u128;
    fn metrics(&self) -> &Metrics;
    /// Whether there is disk space for appends.
    fn has_space(&self) -> bool;
    /// Whether the disk has not taken what it was given for so long that others should lead.
    fn disk_hangs(&self) -> bool;
    /// The replica of a group, if it is hosted here and running.
    fn replica(&self, group: u16) -> Option<Arc<dyn Replica>>;
    fn hosted(&self) -> Vec<Arc<dyn Replica>>;
}

/// One group's replica on this node.
pub(super) trait Replica: Send + Sync + 'static {
    fn group(&self) -> u16;
    /// Never reused within a group: a replica that comes back empty has another.
    fn id(&self) -> u64;
    /// The node that leads the group, as far as it is known here and fresh; this node's own id when it is this one.
    fn leader(&self) -> Option<u128>;
    /// Whether so many replicas are in reach that a leader here could have something committed.
    fn has_majority(&self) -> bool;
    /// Resolves when [`Replica::leader`] may answer differently.
    fn leader_changed(&self) -> BoxFuture<'_, ()>;
    fn write(&self, command: Bytes) -> BoxFuture<'_, Result<Reply, WriteFailure>>;
    /// On the leader: an index such that state applied up to it reflects every write acknowledged before the call.
    fn read_index(&self) -> BoxFuture<'_, Result<u64, String>>;
    fn wait_applied(&self, index: u64) -> BoxFuture<'_, Result<(), String>>;
    fn store(&self) -> &Arc<GroupStore>;
}
