//! What joiners and operators do to the cluster state: admit, drain, undrain, remove. Pure.
//!
//! Each change touches node records only; [`crate::cluster::plan`] draws the consequences for replicas. A refusal
//! is meant for the one who asked, and leaves the state as it was.

use crate::cluster::plan::{Liveness, Observed};
use crate::cluster::state::{ClusterState, NodeId, NodeRecord, NodeState, Role};

/// Nodes that are not removed.
pub const NODES_MAX: usize = 64;
/// Removed nodes that are remembered; beyond that the one that joined first is forgotten.
pub const REMOVED_MAX: usize = 64;

/// Why a change is not made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error(
        "two nodes are called `{0}`: another node of that name is up, or was until a moment ago; give each its own FASTPACA_NODE_NAME, or, where this one takes the place of a node whose disk is lost, start it with FASTPACA_REPLACE=true"
    )]
    NameTaken(String),
    #[error(
        "`{0}` is known, but its data is not here: bring the data back, or run `fastpaca cluster remove {0}`, or start with FASTPACA_REPLACE=true"
    )]
    NameKnown(String),
    #[error("`{0}` was removed from this cluster: start it with an empty data directory to join anew")]
    WasRemoved(String),
    #[error("a later start of `{0}` is known: this was said by an earlier one")]
    Outdated(String),
    #[error("there is no node called `{0}` in this cluster")]
    Unknown(String),
    #[error("a cluster has at most {NODES_MAX} nodes")]
    Full,
    #[error("`{0}` is the last active node: nothing could take over what it holds")]
    LastActive(String),
    #[error("`{0}` is up and holds replicas: drain it first and wait until it is empty, or stop it")]
    NotDrained(String),
    #[error("`{name}` cannot be spared: without it, group {group} has no majority of its voters")]
    Majority { name: String, group: u16 },
    #[error("the leader of group {0} does not answer, so it is not known who can be spared; try again later")]
    NoLeader(u16),
}

impl ClusterState {
    /// Takes a node in, or back in: under a known id it updates the record, under a new one its name must be free.
    /// With `replace` a name is free when its holder is dead and can be spared; the holder then counts as removed.
    /// `record.state` is ignored. Answers whether anything changed.
    pub fn admit(
        &mut self,
        node: NodeId,
        record: NodeRecord,
        replace: bool,
        seen: &Observed,
    ) -> Result<bool, Refusal> {
        let holder = self.named(&record.name).filter(|holder| *holder != node);
        if let Some(known) = self.nodes.get(&node) {
            if known.state == NodeState::Removed {
                return Err(Refusal::WasRemoved(record.name));
            }
            if holder.is_some() {
                return Err(Refusal::NameTaken(record.name));
            }
            // What a process said before it ended may arrive after what the next one said.
            if record.incarnation < known.incarnation {
                return Err(Refusal::Outdated(record.name));
            }
            let updated = NodeRecord { state: known.state, joined_ms: known.joined_ms, ..record };
            let changed = *known != updated;
            self.nodes.insert(node, updated);
            return Ok(changed);
        }
        if let Some(holder) = holder {
            if seen.liveness(holder) != Liveness::Dead {
                return Err(Refusal::NameTaken(record.name));
            }
            if !replace {
                return Err(Refusal::NameKnown(record.name));
            }
            self.can_spare(holder, seen)?;
        }
        let members = self.nodes.values().filter(|record| record.state != NodeState::Removed).count();
        if members - usize::from(holder.is_some()) >= NODES_MAX {
            return Err(Refusal::Full);
        }
        if let Some(holder) = holder {
            self.mark_removed(holder);
        }
        self.nodes.insert(node, NodeRecord { state: NodeState::Active, ..record });
        Ok(true)
    }

    /// Its replicas move elsewhere; it serves on. Answers whether anything changed.
    pub fn drain(&mut self, name: &str) -> Result<bool, Refusal> {
        let node = self.find(name)?;
        if self.active().all(|other| other == node) {
            return Err(Refusal::LastActive(name.to_owned()));
        }
        Ok(self.set(node, NodeState::Draining))
    }

    /// It may host replicas again. Answers whether anything changed.
    pub fn undrain(&mut self, name: &str) -> Result<bool, Refusal> {
        let node = self.find(name)?;
        Ok(self.set(node, NodeState::Active))
    }

    /// Ends a node's membership for good: of one that was drained, or of one that is gone and can be spared.
    pub fn remove(&mut self, name: &str, seen: &Observed) -> Result<(), Refusal> {
        let node = self.find(name)?;
        if self.active().all(|other| other == node) {
            return Err(Refusal::LastActive(name.to_owned()));
        }
        if seen.liveness(node) == Liveness::Dead {
            self.can_spare(node, seen)?;
        } else if !self.is_empty(node) {
            return Err(Refusal::NotDrained(name.to_owned()));
        }
        self.mark_removed(node);
        Ok(())
    }

    /// Whether a node holds nothing but a learner of the meta group, as it does once drained.
    pub fn is_empty(&self, node: NodeId) -> bool {
        let meta = self.groups.len() - 1;
        self.hosted_by(node).all(|(group, replica)| usize::from(group) == meta && replica.role != Role::Voter)
    }

    /// In every group whose voter it is, those of the others that are up must be a majority: they have to agree to
    /// go on without it.
    fn can_spare(&self, node: NodeId, seen: &Observed) -> Result<(), Refusal> {
        for (group, _) in self.hosted_by(node) {
            let actual = seen.groups.get(&group).ok_or(Refusal::NoLeader(group))?;
            let others = actual.voters.values().filter(|voter| **voter != node);
            let up = others.filter(|voter| seen.liveness(**voter) == Liveness::Up).count();
            if actual.voters.values().any(|voter| *voter == node) && up <= actual.voters.len() / 2 {
                return Err(Refusal::Majority { name: self.nodes[&node].name.clone(), group });
            }
        }
        Ok(())
    }

    fn find(&self, name: &str) -> Result<NodeId, Refusal> {
        self.named(name).ok_or_else(|| Refusal::Unknown(name.to_owned()))
    }

    fn set(&mut self, node: NodeId, state: NodeState) -> bool {
        let record = self.nodes.get_mut(&node).expect("the caller found it");
        std::mem::replace(&mut record.state, state) != state
    }

    fn mark_removed(&mut self, node: NodeId) {
        self.set(node, NodeState::Removed);
        let removed = |(_, record): &(&NodeId, &NodeRecord)| record.state == NodeState::Removed;
        let oldest = self.nodes.iter().filter(removed).min_by_key(|(_, record)| record.joined_ms);
        let oldest = oldest.map(|(id, _)| *id);
        let count = self.nodes.iter().filter(removed).count();
        if let Some(oldest) = oldest.filter(|id| count > REMOVED_MAX && self.hosted_by(*id).next().is_none())
        {
            self.nodes.remove(&oldest);
        }
    }
}
