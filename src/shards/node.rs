//! The replicas of a node, as routing sees them.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::BoxFuture;

use super::local::{Local, Replica};
use crate::conversation::Reply;
use crate::metrics::Metrics;
use crate::raft::{Group, Node, WriteFailure};
use crate::store::GroupStore;

impl Local for Node {
    fn node_id(&self) -> u128 {
        Node::node_id(self)
    }

    fn metrics(&self) -> &Metrics {
        &self.shared.metrics
    }

    fn has_space(&self) -> bool {
        Node::has_space(self)
    }

    fn disk_hangs(&self) -> bool {
        Node::disk_hangs(self)
    }

    fn replica(&self, group: u16) -> Option<Arc<dyn Replica>> {
        Some(self.group(group)?)
    }

    fn hosted(&self) -> Vec<Arc<dyn Replica>> {
        Node::hosted(self).into_iter().map(|group| group as Arc<dyn Replica>).collect()
    }
}

impl Replica for Group {
    fn group(&self) -> u16 {
        self.number()
    }

    fn id(&self) -> u64 {
        self.replica()
    }

    fn leader(&self) -> Option<u128> {
        Group::leader(self)
    }

    fn has_majority(&self) -> bool {
        self.has_quorum_in_reach()
    }

    fn leader_changed(&self) -> BoxFuture<'_, ()> {
        Box::pin(Group::leader_changed(self))
    }

    fn write(&self, command: Bytes) -> BoxFuture<'_, Result<Reply, WriteFailure>> {
        Box::pin(Group::write(self, command))
    }

    fn read_index(&self) -> BoxFuture<'_, Result<u64, String>> {
        Box::pin(async { Group::read_index(self).await.map_err(|error| error.to_string()) })
    }

    fn wait_applied(&self, index: u64) -> BoxFuture<'_, Result<(), String>> {
        Box::pin(async move { Group::wait_applied(self, index).await.map_err(|error| error.to_string()) })
    }

    fn store(&self) -> &Arc<GroupStore> {
        &self.store
    }
}
