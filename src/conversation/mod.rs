//! The conversation core: ids, settings, commands, state, and the planning of windows and pages.
//!
//! Pure: no clock, no randomness, no environment, no IO, no iteration over hash maps. The same commands give the same
//! state, replies and windows on every replica.

mod apply;
mod codec;
mod command;
mod compaction;
mod history;
mod id;
mod idempotency;
mod log;
mod marks;
mod message;
mod metadata;
mod pairing;
mod part;
mod policy;
mod render;
mod reply;
mod reply_codec;
mod restore;
mod restore_codec;
mod runs;
mod state;
mod trims;
mod window;

pub use apply::{Effects, Outside, apply};
pub use codec::CodecError;
pub use command::{Action, Command, CompactRange, FrameLocation, Idempotency, Put};
pub use id::{ConversationId, InvalidId, MAX_ID_BYTES};
pub use idempotency::{IdempotencyIndex, IdempotencyRecord, KEPT_KEYS, KEPT_MS, MAX_KEYS};
pub use log::{
    EventRange, StreamItem, StreamKind, Version, VersionKind, changes_after, plan_events,
    version_after_event, versions_from,
};
pub use marks::{Entry, MAX_MARKS, Mark, Marks};
pub use message::{
    CallRef, EventRef, Location, MessageMeta, NewMessage, Parts, RoleKind, StoredPart, ToolLink,
};
pub use pairing::{MAX_PENDING_CALLS, PAIR_REACH};
pub use part::{
    InvalidPart, MAX_KIND_BYTES, MAX_PARTS, PartFacts, PartKind, PartMeta, ToolRef, inspect_part, tool_digest,
};
pub use policy::{
    Bounds, DEFAULT_LIMIT, DEFAULT_TOKEN_BUDGET, DEFAULT_TRIGGER_RATIO, InvalidPolicy, MAX_POLICY_BYTES,
    Policy, Settings, Strategy, valid_trigger_ratio,
};
pub use render::render_edited;
pub use reply::{Description, Refusal, Reply, Status};
pub use restore::{Restore, RestoreEnd, RestoredKeys, RestoredVersion};
pub use runs::{Change, ChangeKind, ChangeRun, EVENT_RUN, EventRun, History, HistoryError, Summary, run_of};
pub use state::{
    Conversation, MAX_METADATA_BYTES, MAX_SUMMARIES, MAX_SUMMARY_MESSAGES, MAX_SUMMARY_PARTS, unarchived,
};
pub use trims::{MAX_TRIMS, Standing, Trim, Trims};
pub use window::{
    Edit, LeftOut, PartEdit, PlanError, PlannedMessage, Reason, Segment, WindowPlan, WindowQuery, plan_usage,
    plan_window,
};

#[cfg(test)]
mod testing;
