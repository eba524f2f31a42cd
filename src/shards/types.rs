//! What the edge asks of the shards, and what it is answered.

use bytes::Bytes;

use crate::conversation::{ConversationId, Description, LeftOut, Segment, Status};

/// How fresh a read must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Consistency {
    /// Reflects every write acknowledged before the read began.
    #[default]
    Linearizable,
    /// Whatever this node has applied, at once.
    Local,
}

/// Freshness asked for by one read.
#[derive(Debug, Clone, Copy, Default)]
pub struct ReadOptions {
    pub consistency: Consistency,
    /// Wait (bounded) until this node has applied at least this version.
    pub min_version: Option<u64>,
}

/// Why a write has no business reply.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// Certainly not applied; safe to retry.
    #[error("{0}")]
    NotApplied(String),
    /// May have been applied, now or later.
    #[error("{0}")]
    UnknownOutcome(String),
    /// The node is shutting down; not applied.
    #[error("the node is draining")]
    Draining,
    /// No disk space is left for data; not applied.
    #[error("no disk space is left for appends")]
    Full,
}

/// Why a read has no answer.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error("{0}")]
    Unavailable(String),
    #[error("version {requested} lies in the future (current {current})")]
    VersionInFuture { requested: u64, current: u64 },
    #[error("{0}")]
    InvalidQuery(String),
    /// The window takes more than this, as nodes answer it to each other.
    #[error("the window takes more than {bytes_max} bytes")]
    WindowTooLarge { bytes_max: u64 },
    /// Part of what was asked for was trimmed, and the archive does not give it now.
    #[error("the archive cannot be read: {0}")]
    ArchiveUnavailable(String),
    /// Damaged or unreadable data; the text is for the log, not for the client.
    #[error("{0}")]
    Internal(String),
}

/// A window ready to be written out.
#[derive(Debug, Clone)]
pub struct Window {
    pub version: u64,
    pub used_tokens: u64,
    pub needs_compaction: bool,
    pub segments: Vec<Segment>,
    pub messages: Vec<WindowMessage>,
    /// Present when the query asked to explain.
    pub left_out: Vec<LeftOut>,
}

/// How full a window is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    pub used_tokens: u64,
    pub needs_compaction: bool,
}

/// One message of a window; `body` is the members of a JSON object without braces.
#[derive(Debug, Clone)]
pub struct WindowMessage {
    pub seq: u64,
    /// Set for the messages of a summary: the last seq the summary covers.
    pub to_seq: Option<u64>,
    pub body: Bytes,
    pub token_count: u32,
    pub inserted_at_ms: u64,
}

/// One event of the log; `body` is the members of a JSON object without braces.
#[derive(Debug, Clone)]
pub struct StoredEvent {
    pub seq: u64,
    pub body: Bytes,
    pub token_count: u32,
    pub inserted_at_ms: u64,
}

/// Order of a page of events.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Order {
    #[default]
    Ascending,
    Descending,
}

/// A page of the log, as asked for.
#[derive(Debug, Clone, Default)]
pub struct EventsQuery {
    /// Inclusive; negative counts from the end (-100 = the last 100).
    pub from_seq: Option<i64>,
    /// Inclusive.
    pub to_seq: Option<u64>,
    /// Exclusive lower bound (ascending) or upper bound (descending).
    pub cursor: Option<u64>,
    pub order: Order,
    /// Newest page first: skip this many newest events, answer in chronological order.
    pub tail_offset: Option<u64>,
    /// At most this many events ...
    pub limit: usize,
    /// ... and about this many bytes of bodies (at least one event).
    pub limit_bytes: u64,
}

/// A page of the log.
#[derive(Debug, Clone)]
pub struct EventPage {
    pub events: Vec<StoredEvent>,
    pub has_more: bool,
    pub version: u64,
    pub last_seq: u64,
    pub status: Status,
}

/// One version of a conversation, as a stream delivers it.
#[derive(Debug, Clone)]
pub enum Change {
    Event {
        version: u64,
        event: StoredEvent,
    },
    Compaction {
        version: u64,
        from_seq: u64,
        to_seq: u64,
    },
    /// Settings or metadata changed; streams show it as a `window` frame.
    Settings {
        version: u64,
    },
    Tombstoned {
        version: u64,
    },
}

/// Consecutive changes after a version.
#[derive(Debug, Clone)]
pub struct ChangePage {
    pub changes: Vec<Change>,
    /// The conversation's version when the page was read.
    pub version: u64,
    pub status: Status,
}

/// Which conversations to list.
#[derive(Debug, Clone, Default)]
pub struct ListQuery {
    pub prefix: Option<String>,
    pub status: Option<Status>,
    /// Top-level metadata keys that must equal these values (strings compare as text, others as JSON text).
    pub metadata: Vec<(String, String)>,
    pub limit: usize,
    /// Continue after this id.
    pub cursor: Option<String>,
    /// How fresh each group's share must be; the listing is no snapshot over groups.
    pub consistency: Consistency,
}

/// A page of the listing in id order.
#[derive(Debug, Clone, Default)]
pub struct ListPage {
    pub conversations: Vec<(ConversationId, Description)>,
    /// Set while more may follow, also on an empty page.
    pub next_cursor: Option<String>,
}

/// Whether this node should get traffic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Readiness {
    Ready,
    Starting(String),
    Draining,
    Degraded(String),
}
