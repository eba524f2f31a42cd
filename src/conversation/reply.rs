//! What a command is answered with, and how a conversation is described.

use bytes::Bytes;

/// Whether a conversation accepts writes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Status {
    #[default]
    Active,
    /// Deleted: reads and replay go on, writes are refused.
    Tombstoned,
}

impl Status {
    pub fn as_str(self) -> &'static str {
        match self {
            Status::Active => "active",
            Status::Tombstoned => "tombstoned",
        }
    }
}

/// Everything about a conversation but its messages.
#[derive(Clone, PartialEq, Debug)]
pub struct Description {
    pub token_budget: u64,
    pub trigger_ratio: f64,
    /// A JSON object: the policy as received, or the default one.
    pub policy: Bytes,
    /// A JSON object.
    pub metadata: Bytes,
    pub status: Status,
    pub version: u64,
    pub last_seq: u64,
    pub created_at_ms: u64,
    pub updated_at_ms: u64,
}

/// The answer to an applied command. Refusals are answers too: every replica gives the same.
#[derive(Clone, PartialEq, Debug)]
pub enum Reply {
    /// To `Put` and `PatchMetadata`.
    Settled {
        created: bool,
        changed: bool,
        description: Description,
    },
    Appended {
        first_seq: u64,
        last_seq: u64,
        version: u64,
        token_counts: Vec<u32>,
        /// The same request was applied before; this is its answer.
        deduped: bool,
    },
    Compacted {
        version: u64,
    },
    Tombstoned {
        changed: bool,
    },
    /// To marks; how many conversations they took further.
    Marked {
        moved: u32,
    },
    /// To trims; how many messages they took out of the journal's keeping.
    Trimmed {
        events: u64,
    },
    /// To a restored piece; the version it led to.
    Restored {
        version: u64,
    },
    Refused(Refusal),
}

/// Why a command changed nothing.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Refusal {
    #[error("no such conversation")]
    NotFound,
    #[error("Conversation version changed (expected {expected}, found {current})")]
    Conflict { expected: u64, current: u64 },
    #[error("the conversation is tombstoned and takes no more writes")]
    Tombstoned,
    #[error("the idempotency key was used before with another request")]
    IdempotencyConflict,
    /// `covering` is the existing summary that the range would cut through.
    #[error("{message}")]
    InvalidRange { message: String, covering: Option<(u64, u64)> },
    /// Or too many messages or parts in them.
    #[error("the conversation has too many summaries: compact a range that contains some of them")]
    TooManySummaries,
    /// More requests with idempotency keys in ten minutes than are remembered.
    #[error("too many idempotency keys within ten minutes")]
    TooManyKeys { retry_after_ms: u64 },
    #[error("{message}")]
    InvalidMetadata { message: String },
}
