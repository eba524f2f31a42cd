//! Whether a node has what it is to have of the cluster. Until it does it is not ready: whoever stops one node after the
//! other, each once the one before is ready, must not take a group's majority.

use std::time::Duration;

use super::service::Inner;
use super::state::{ClusterState, NodeId, NodeState, REPLICATION, Role};
use crate::shards::placement::GROUPS;

/// A state that has not changed for so long places all that it is going to place for now.
const PLANNED: Duration = Duration::from_secs(60);

impl Inner {
    /// What this node has yet to get, in words.
    pub(super) fn lacking(&self) -> Option<String> {
        let document = self.document.borrow().clone()?;
        let placed = placed_on(&document.state, self.me)?;
        let is_here = |(group, replica): &(u16, u64)| {
            self.parts.node.group(*group).is_some_and(|group| group.voters().contains_key(replica))
        };
        let planned = self.published.lock().elapsed() > PLANNED;
        let wanted = if planned { placed.len() } else { placed.len().max(share(&document.state)) };
        let here = placed.iter().filter(|replica| is_here(replica)).count();
        (here < wanted).then(|| format!("the node has got {here} of its {wanted} groups so far"))
    }
}

/// The conversation groups that a node is to have a voter of, and that voter; `None` if it is not active.
pub(super) fn placed_on(state: &ClusterState, node: NodeId) -> Option<Vec<(u16, u64)>> {
    let voters = state.hosted_by(node).filter(|(_, replica)| replica.role == Role::Voter);
    let voters = voters.filter(|(group, _)| *group < GROUPS).map(|(group, replica)| (group, replica.id));
    state.is(node, NodeState::Active).then(|| voters.collect())
}

/// How many of them every active node has in the end, at least.
pub(super) fn share(state: &ClusterState) -> usize {
    let active = state.active().count().max(1);
    usize::from(GROUPS) * active.min(REPLICATION) / active
}
