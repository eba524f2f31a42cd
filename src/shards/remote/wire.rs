//! Reads between nodes, as MessagePack maps: a node of an adjacent version may add members, which are ignored.
//!
//! These types are the contract on the wire; the names of their members must stay. What a newer version adds needs
//! `#[serde(default)]`. Names of variants stay too, and an unknown one is refused as a whole.

use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::shards::{Cursor, Excerpt};

/// One read of a conversation, for a node that hosts its group.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct ReadCall {
    pub id: String,
    /// Else whatever the node has applied.
    pub linearizable: bool,
    pub min_version: Option<u64>,
    /// How long to wait for that; five seconds unless said, and by nodes that do not know it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wait_ms: Option<u64>,
    pub question: Question,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) enum Question {
    Describe,
    Version,
    Window(WindowAsked),
    Usage { at_version: u64 },
    Events(EventsAsked),
    Changes { after_version: u64, limit_bytes: u64 },
    Digests { first: u64, limit: u64 },
    Excerpt(Cursor),
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct WindowAsked {
    pub budget_tokens: Option<u64>,
    pub at_version: Option<u64>,
    pub explain: bool,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct EventsAsked {
    pub from_seq: Option<i64>,
    pub to_seq: Option<u64>,
    pub cursor: Option<u64>,
    pub descending: bool,
    pub tail_offset: Option<u64>,
    pub limit: u64,
    pub limit_bytes: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) enum ReadAnswer {
    /// The conversation does not exist.
    Absent,
    Description(Description),
    Version(u64),
    Window(Window),
    Usage {
        used_tokens: u64,
        needs_compaction: bool,
    },
    Events(EventPage),
    Changes(ChangePage),
    Digests(DigestPage),
    Excerpt(Excerpt),
    /// The read needs the leader, which is that node as far as known.
    NotLeader {
        leader: Option<Node>,
    },
    /// Not to be had from this node, now.
    Unavailable(String),
    /// The version asked for was waited for in vain.
    Behind(String),
    VersionInFuture {
        requested: u64,
        current: u64,
    },
    InvalidQuery(String),
    Internal(String),
    /// What was trimmed cannot be read from the archive. Not sent before every node knows it, since nothing is trimmed
    /// before.
    ArchiveUnavailable(String),
    /// A node that does not know it tries again until its time is up, as it did when such an answer was not sent at all.
    WindowTooLarge {
        bytes_max: u64,
    },
}

/// A node's id in two halves, the higher one first: MessagePack has no number of 128 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Node(u64, u64);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Status {
    Active,
    Tombstoned,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Description {
    pub token_budget: u64,
    pub trigger_ratio: f64,
    pub policy: Bytes,
    pub metadata: Bytes,
    pub status: Status,
    pub version: u64,
    pub last_seq: u64,
    pub created_at_ms: u64,
    pub updated_at_ms: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Window {
    pub version: u64,
    pub used_tokens: u64,
    pub needs_compaction: bool,
    pub segments: Vec<Segment>,
    pub messages: Vec<WindowMessage>,
    pub left_out: Vec<LeftOut>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Segment {
    pub is_summary: bool,
    pub from_seq: u64,
    pub to_seq: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct WindowMessage {
    pub seq: u64,
    pub to_seq: Option<u64>,
    pub body: Bytes,
    pub token_count: u32,
    pub inserted_at_ms: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct LeftOut {
    pub from_seq: u64,
    pub to_seq: u64,
    pub reason: Reason,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Reason {
    OverLimit,
    OverMaxTokens,
    OverBudget,
    ExceedsBudget,
    MessageSkipped,
    PartsSkipped,
    CallCompacted,
    ResultCompacted,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Event {
    pub seq: u64,
    pub body: Bytes,
    pub token_count: u32,
    pub inserted_at_ms: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct EventPage {
    pub events: Vec<Event>,
    pub has_more: bool,
    pub version: u64,
    pub last_seq: u64,
    pub status: Status,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) enum Change {
    Event { version: u64, event: Event },
    Compaction { version: u64, from_seq: u64, to_seq: u64 },
    Settings { version: u64 },
    Tombstoned { version: u64 },
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct ChangePage {
    pub changes: Vec<Change>,
    pub version: u64,
    pub status: Status,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct DigestPage {
    pub version: u64,
    pub archived_version: Option<u64>,
    /// The higher half of each comes first.
    pub digests: Vec<(u64, u64)>,
}

/// Wait until the conversation's version exceeds `seen`, or for so long; the answer is the version as a number.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct WaitCall {
    pub id: String,
    pub seen: u64,
    pub wait_ms: u64,
}

/// A page of the listing of some groups.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct ListCall {
    pub groups: Vec<u16>,
    pub linearizable: bool,
    pub prefix: Option<String>,
    pub status: Option<Status>,
    pub metadata: Vec<(String, String)>,
    pub cursor: Option<String>,
    /// At most this many conversations.
    pub limit: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) enum ListAnswer {
    Page {
        conversations: Vec<(String, Description)>,
        /// Nothing up to this id is missing; beyond it, anything may be. `None` when this is all.
        upto: Option<String>,
    },
    Unavailable(String),
    Internal(String),
}

/// Why bytes of another node cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("undecodable: {0}")]
pub(crate) struct Undecodable(String);

pub(crate) fn encode<T: Serialize>(value: &T) -> Bytes {
    rmp_serde::to_vec_named(value).expect("writing plain values to memory does not fail").into()
}

pub(crate) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Undecodable> {
    rmp_serde::from_slice(bytes).map_err(|error| Undecodable(error.to_string()))
}

impl From<u128> for Node {
    fn from(id: u128) -> Self {
        Node((id >> 64) as u64, id as u64)
    }
}

impl From<Node> for u128 {
    fn from(Node(high, low): Node) -> Self {
        u128::from(high) << 64 | u128::from(low)
    }
}
