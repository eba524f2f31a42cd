//! The replicas of a node, as routing sees them.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::BoxFuture;

use super::local::{Local, Replica};
use crate::conversation::Reply;
use crate::metrics::Metrics;
use crate::raft::{Node, WriteFailure};
use crate::store::GroupStore;

impl Local for Node {
    fn node_id(&self) -> u128 {
        self.node_id
    }

    fn metrics(&self) -> &Metrics {
        &self.shared.metrics
    }

    fn has_space(&self) -> bool {
        Node::has_space(self)
    }

    fn replica(&self, group: u16) -> Option<Arc<dyn Replica>> {
        let group = self.groups.get(usize::from(group))?;
        Some(Arc::new(Hosted {
            groups: self.groups.clone(),
            group: group.store.group(),
            node_id: self.node_id,
        }))
    }

    fn hosted(&self) -> Vec<Arc<dyn Replica>> {
        (0..self.groups.len() as u16).filter_map(|group| self.replica(group)).collect()
    }
}

struct Hosted {
    groups: Arc<Vec<crate::raft::Group>>,
    group: u16,
    node_id: u128,
}

impl Hosted {
    fn get(&self) -> &crate::raft::Group {
        &self.groups[usize::from(self.group)]
    }
}

impl Replica for Hosted {
    fn group(&self) -> u16 {
        self.group
    }

    fn id(&self) -> u64 {
        self.get().replica
    }

    fn leader(&self) -> Option<u128> {
        self.get().is_leader().then_some(self.node_id)
    }

    fn leader_changed(&self) -> BoxFuture<'_, ()> {
        Box::pin(std::future::pending())
    }

    fn write(&self, command: Bytes) -> BoxFuture<'_, Result<Reply, WriteFailure>> {
        Box::pin(self.get().write(command))
    }

    fn read_index(&self) -> BoxFuture<'_, Result<u64, String>> {
        Box::pin(async {
            self.get().linearize().await?;
            Ok(0)
        })
    }

    fn wait_applied(&self, _: u64) -> BoxFuture<'_, Result<(), String>> {
        Box::pin(async { Ok(()) })
    }

    fn store(&self) -> &Arc<GroupStore> {
        &self.get().store
    }
}
