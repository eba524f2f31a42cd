//! The cluster state: the one document that says which nodes there are and who hosts which replica.
//!
//! It is the newest event of the meta group's only conversation, written by compare and set, so that it has one
//! history that all nodes agree on. A placement is what the members of a group *shall* be; group leaders bring
//! Raft's membership there. A replica is listed until its group's committed membership was seen without it, so
//! a node forgets a replica when, and only when, the document no longer lists it.
//!
//! As JSON, a group is a short array: the next replica id, then `[replica id, node, role]` for each replica, in order
//! of preference, where a node is its position among `nodes` and roles are 0 = voter, 1 = learner, 2 = leaving.
//! That takes 8.5 KB for 3 nodes and 9.9 KB for 9. Fields that are not known are ignored; `format` rises only when
//! that does not do.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::{Deserialize, Serialize};

pub use crate::shards::placement::META_GROUP;

/// Voters of a conversation group, as far as there are nodes.
///
/// With two nodes both are voters, and losing either stops writes until it is back or a third one joins. The
/// alternative, one voter and a learner, would go on without the learner, but could lose acknowledged writes
/// with the voter's disk. Two nodes are a stage between one and three; on the way, losing nothing matters more.
pub const REPLICATION: usize = 3;

/// Raised when older nodes could not make sense of the document.
const FORMAT: u32 = 1;

macro_rules! hex_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub u128);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:032x}", self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{self}")
            }
        }

        impl Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<$name, D::Error> {
                let text = String::deserialize(deserializer)?;
                let id = (text.len() == 32).then(|| u128::from_str_radix(&text, 16).ok()).flatten();
                id.map($name).ok_or_else(|| serde::de::Error::custom("an id is 32 hexadecimal digits"))
            }
        }
    };
}

hex_id! {
    /// A node's permanent id; an emptied data directory gets a new one. 32 hexadecimal digits as text.
    NodeId
}
hex_id! {
    /// A cluster's permanent id: that of the founding it came from. 32 hexadecimal digits as text.
    ClusterId
}

/// A replica within its group. Never reused there, so that an emptied node cannot pass for its former self.
pub type ReplicaId = u64;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterState {
    pub cluster: ClusterId,
    pub nodes: BTreeMap<NodeId, NodeRecord>,
    /// By number; the last one is [`META_GROUP`].
    pub groups: Vec<GroupPlacement>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRecord {
    pub name: String,
    /// `host:port` where its peers reach it.
    pub address: String,
    pub state: NodeState,
    /// Of the start in which it last told its address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub incarnation: Option<u64>,
    /// How it is known again after a restart.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mark: Option<Mark>,
    /// The lowest and the highest peer protocol it speaks.
    pub protocol: (u16, u16),
    /// Unix milliseconds.
    pub joined_ms: i64,
}

/// What a node wrote to its own disk before it told it: a node that comes back without it has data from before that time. See
/// [`crate::peer::Mark`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    pub value: u64,
    /// Random number of the process that told it.
    pub instance: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NodeState {
    Active,
    /// Serves, while its replicas move elsewhere.
    Draining,
    /// Never comes back under this id. Kept so that it can be told so.
    Removed,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GroupPlacement {
    /// In order of preference: the first voter is the preferred leader.
    pub replicas: Vec<Replica>,
    pub next_replica: ReplicaId,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Replica {
    pub id: ReplicaId,
    pub node: NodeId,
    pub role: Role,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    Voter,
    Learner,
    /// Shall be no member; its node keeps it until the committed membership was seen without it.
    Leaving,
}

/// A document that this version cannot use.
#[derive(Debug, thiserror::Error)]
pub enum BadDocument {
    #[error("the cluster state is not valid JSON of its kind: {0}")]
    Json(#[from] serde_json::Error),
    #[error("the cluster state has format {0}, this version reads {FORMAT}: upgrade this node")]
    Format(u32),
    #[error("the cluster state contradicts itself: {0}")]
    Inconsistent(String),
}

impl ClusterState {
    /// A new cluster. The placement depends on the ids of its members alone, for ever: nodes of adjacent versions
    /// compute it on their own when a cluster is founded.
    pub fn found(cluster: ClusterId, nodes: BTreeMap<NodeId, NodeRecord>) -> ClusterState {
        let groups = founding_placement(&nodes.keys().copied().collect(), META_GROUP);
        ClusterState { cluster, nodes, groups }
    }

    /// Whether every member speaks this version of the peer protocol or a newer one.
    pub fn all_speak(&self, protocol: u16) -> bool {
        let mut members = self.nodes.values().filter(|node| node.state != NodeState::Removed);
        members.all(|node| node.protocol.1 >= protocol)
    }

    pub fn encode(&self) -> String {
        let position = |node: NodeId| self.nodes.range(..node).count();
        let short = |replica: &Replica| (replica.id, position(replica.node), replica.role as u8);
        let group = |group: &GroupPlacement| (group.next_replica, group.replicas.iter().map(short).collect());
        let wire = Wire {
            format: FORMAT,
            cluster: self.cluster,
            nodes: self.nodes.clone(),
            groups: self.groups.iter().map(group).collect(),
        };
        serde_json::to_string(&wire).expect("strings, numbers and maps with string keys")
    }

    pub fn decode(text: &str) -> Result<ClusterState, BadDocument> {
        let Probe { format } = serde_json::from_str(text)?;
        if format != FORMAT {
            return Err(BadDocument::Format(format));
        }
        let wire: Wire = serde_json::from_str(text)?;
        let ids: Vec<NodeId> = wire.nodes.keys().copied().collect();
        let replica = |(id, node, role): (ReplicaId, usize, u8)| {
            let node =
                *ids.get(node).ok_or_else(|| format!("replica {id} is on node {node} of {}", ids.len()))?;
            Ok(Replica { id, node, role: Role::from_ordinal(role)? })
        };
        let group = |(next_replica, replicas): ShortGroup| {
            let replicas = replicas.into_iter().map(replica).collect::<Result<_, String>>()?;
            Ok(GroupPlacement { replicas, next_replica })
        };
        let groups = wire.groups.into_iter().map(group).collect::<Result<_, String>>();
        let groups = groups.map_err(BadDocument::Inconsistent)?;
        let state = ClusterState { cluster: wire.cluster, nodes: wire.nodes, groups };
        state.check().map_err(BadDocument::Inconsistent)?;
        Ok(state)
    }

    fn check(&self) -> Result<(), String> {
        if self.groups.len() != usize::from(META_GROUP) + 1 {
            return Err(format!("{} groups", self.groups.len()));
        }
        for (number, group) in self.groups.iter().enumerate() {
            let ids: BTreeSet<ReplicaId> = group.replicas.iter().map(|replica| replica.id).collect();
            let nodes: BTreeSet<NodeId> = group.replicas.iter().map(|replica| replica.node).collect();
            if ids.len() != group.replicas.len() || nodes.len() != group.replicas.len() {
                return Err(format!("group {number} names a replica or a node twice"));
            }
            if ids.last().is_some_and(|id| *id >= group.next_replica) {
                return Err(format!("group {number} would reuse a replica id"));
            }
        }
        Ok(())
    }

    /// Nodes that shall host replicas.
    pub fn active(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.nodes.iter().filter(|(_, record)| record.state == NodeState::Active).map(|(id, _)| *id)
    }

    pub fn is(&self, node: NodeId, state: NodeState) -> bool {
        self.nodes.get(&node).is_some_and(|record| record.state == state)
    }

    /// The node that holds a name, unless it was removed.
    pub fn named(&self, name: &str) -> Option<NodeId> {
        let holds = |record: &NodeRecord| record.name == name && record.state != NodeState::Removed;
        self.nodes.iter().find(|(_, record)| holds(record)).map(|(id, _)| *id)
    }

    /// What a node shall host: group and replica.
    pub fn hosted_by(&self, node: NodeId) -> impl Iterator<Item = (u16, Replica)> + '_ {
        let here = move |group: &GroupPlacement| group.on(node);
        (0u16..).zip(&self.groups).filter_map(move |(number, group)| Some((number, here(group)?)))
    }
}

impl GroupPlacement {
    /// Appends a replica under an id that was never used.
    pub fn add(&mut self, node: NodeId, role: Role) {
        self.replicas.push(Replica { id: self.next_replica, node, role });
        self.next_replica += 1;
    }

    pub fn on(&self, node: NodeId) -> Option<Replica> {
        self.replicas.iter().find(|replica| replica.node == node).copied()
    }

    pub fn voters(&self) -> BTreeMap<ReplicaId, NodeId> {
        self.with(Role::Voter).map(|replica| (replica.id, replica.node)).collect()
    }

    pub fn learners(&self) -> BTreeMap<ReplicaId, NodeId> {
        self.with(Role::Learner).map(|replica| (replica.id, replica.node)).collect()
    }

    /// The preferred leader.
    pub fn preferred(&self) -> Option<Replica> {
        self.with(Role::Voter).next()
    }

    fn with(&self, role: Role) -> impl Iterator<Item = Replica> + '_ {
        self.replicas.iter().filter(move |replica| replica.role == role).copied()
    }
}

/// Voters of the meta group, which every node hosts: its other replicas learn.
pub fn meta_voters(nodes: usize) -> usize {
    match nodes {
        0..=2 => nodes,
        3 | 4 => 3,
        _ => 5,
    }
}

/// Consecutive members host a group, so that replicas are balanced; whoever of them leads least is preferred. Every
/// other round the second and third change places, so that a lost node's groups do not all fall to one.
pub(super) fn founding_placement(members: &BTreeSet<NodeId>, conversations: u16) -> Vec<GroupPlacement> {
    let members: Vec<NodeId> = members.iter().copied().collect();
    let (nodes, width) = (members.len(), members.len().min(REPLICATION));
    let mut leads = vec![0; nodes];
    let place = |hosts: &[usize], voters: usize| {
        let mut group = GroupPlacement { next_replica: 1, ..GroupPlacement::default() };
        for (at, host) in hosts.iter().enumerate() {
            group.add(members[*host], if at < voters { Role::Voter } else { Role::Learner });
        }
        group
    };
    let mut groups = Vec::new();
    for group in 0..usize::from(conversations) {
        let mut hosts: Vec<usize> = (0..width).map(|at| (group * width + at) % nodes).collect();
        let first = (0..width).min_by_key(|at| (leads[hosts[*at]], *at)).expect("a cluster has a member");
        hosts.rotate_left(first);
        if group / nodes % 2 == 1 && width > 2 {
            hosts.swap(1, 2);
        }
        leads[hosts[0]] += 1;
        groups.push(place(&hosts, width));
    }
    groups.push(place(&(0..nodes).collect::<Vec<_>>(), meta_voters(nodes)));
    groups
}

impl Role {
    fn from_ordinal(ordinal: u8) -> Result<Role, String> {
        let roles = [Role::Voter, Role::Learner, Role::Leaving];
        roles.get(usize::from(ordinal)).copied().ok_or_else(|| format!("there is no role {ordinal}"))
    }
}

type ShortGroup = (ReplicaId, Vec<(ReplicaId, usize, u8)>);

#[derive(Deserialize)]
struct Probe {
    format: u32,
}

#[derive(Serialize, Deserialize)]
struct Wire {
    format: u32,
    cluster: ClusterId,
    nodes: BTreeMap<NodeId, NodeRecord>,
    groups: Vec<ShortGroup>,
}
