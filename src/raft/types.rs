//! The types openraft is instantiated with.

use std::fmt;
use std::time::SystemTime;

use bytes::Bytes;
use openraft::type_config::alias;

use super::runtime::Runtime;
use crate::conversation::Reply;
use crate::journal::Position;

openraft::declare_raft_types!(
    /// Raft over encoded conversation commands.
    pub(crate) TypeConfig:
        D = Proposal,
        R = Answered,
        NodeId = u64,
        Node = Host,
        AsyncRuntime = Runtime,
);

/// What a proposer is told of its entry.
#[derive(Debug)]
pub(crate) struct Answered {
    /// None for Raft's own entries.
    pub reply: Option<Reply>,
    /// When applying it began and ended, while anything is traced.
    pub times: Option<(SystemTime, SystemTime)>,
}

/// A replica of one group. Never reused within a group, so that an emptied node cannot pass for its former self.
pub(crate) type ReplicaId = u64;
pub(crate) type LogId = alias::LogIdOf<TypeConfig>;
pub(crate) type Vote = alias::VoteOf<TypeConfig>;
pub(crate) type Entry = alias::EntryOf<TypeConfig>;
pub(crate) type Membership = openraft::Membership<ReplicaId, Host>;
pub(crate) type StoredMembership = alias::StoredMembershipOf<TypeConfig>;
pub(crate) type LeaderId = alias::CommittedLeaderIdOf<TypeConfig>;

/// The node that hosts a replica: its permanent id. Addresses live elsewhere, since they change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Host {
    pub node_id: u128,
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.node_id)
    }
}

/// An encoded command on its way through the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Proposal {
    /// [`crate::conversation::Command::encode`].
    pub command: Bytes,
    /// Where the encoding begins in this node's journal; known once the entry was appended here.
    pub at: Option<Position>,
}

impl fmt::Display for Proposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "command of {} bytes", self.command.len())
    }
}
