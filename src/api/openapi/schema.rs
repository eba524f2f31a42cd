//! The shapes of bodies, for the API document alone: requests are read and answers written without them.
#![allow(dead_code, reason = "only their schemas are used")]

use serde_json::{Map, Value};
use utoipa::openapi::schema::{AnyOfBuilder, Components, OneOfBuilder, Schema};
use utoipa::openapi::{Ref, RefOr};
use utoipa::{PartialSchema, ToSchema};

use super::operators::{Cluster, Health, Node, NodeName};

/// A shape that is any, or exactly one, of two others.
macro_rules! alternatives {
    ($builder:ident: $name:ident = $first:ident | $second:ident) => {
        struct $name;

        impl PartialSchema for $name {
            fn schema() -> RefOr<Schema> {
                let refer = |name| Ref::from_schema_name(name);
                let built = $builder::new().item(refer(stringify!($first))).item(refer(stringify!($second)));
                RefOr::T(Schema::from(built))
            }
        }

        impl ToSchema for $name {}
    };
}

/// A component for every shape.
pub(super) fn components() -> Components {
    Components::builder()
        .schema_from::<Conversation>()
        .schema_from::<Settings>()
        .schema_from::<Policy>()
        .schema_from::<PolicyConfig>()
        .schema_from::<SkipKind>()
        .schema_from::<Status>()
        .schema_from::<ConversationList>()
        .schema_from::<ContextList>()
        .schema_from::<Part>()
        .schema_from::<MessageOfParts>()
        .schema_from::<MessageOfText>()
        .schema_from::<NewMessage>()
        .schema_from::<AppendEvent>()
        .schema_from::<AppendEventBatch>()
        .schema_from::<AppendEvents>()
        .schema_from::<AppendMessage>()
        .schema_from::<AppendMessageBatch>()
        .schema_from::<AppendMessages>()
        .schema_from::<Appended>()
        .schema_from::<BatchAppended>()
        .schema_from::<Message>()
        .schema_from::<EventPage>()
        .schema_from::<MessagePage>()
        .schema_from::<EventTail>()
        .schema_from::<MessageTail>()
        .schema_from::<Window>()
        .schema_from::<WindowMessage>()
        .schema_from::<Segment>()
        .schema_from::<SegmentType>()
        .schema_from::<LeftOut>()
        .schema_from::<Compact>()
        .schema_from::<Compacted>()
        .schema_from::<Health>()
        .schema_from::<NodeName>()
        .schema_from::<Cluster>()
        .schema_from::<Node>()
        .schema_from::<Error>()
        .schema_from::<Range>()
        .build()
}

/// Settings and state.
#[derive(ToSchema)]
struct Conversation {
    id: String,
    #[schema(minimum = 1, maximum = 9_007_199_254_740_991_u64)]
    token_budget: u64,
    #[schema(exclusive_minimum = 0, maximum = 1)]
    trigger_ratio: f64,
    policy: Policy,
    metadata: Map<String, Value>,
    status: Status,
    /// 0 at creation, then one more with every event and every other change.
    version: u64,
    last_seq: u64,
    #[schema(format = DateTime)]
    created_at: String,
    #[schema(format = DateTime)]
    updated_at: String,
}

#[derive(ToSchema)]
#[schema(rename_all = "snake_case")]
enum Status {
    Active,
    /// Deleted: reads and replay go on, writes are refused.
    Tombstoned,
}

/// What is to be settled; what is omitted stays as it is, or becomes the default at creation.
#[derive(ToSchema)]
struct Settings {
    #[schema(minimum = 1, maximum = 9_007_199_254_740_991_u64, default = 8000)]
    token_budget: Option<u64>,
    /// Also read from `policy.config.trigger_ratio` and `policy.trigger_ratio`.
    #[schema(exclusive_minimum = 0, maximum = 1, default = 0.7)]
    trigger_ratio: Option<f64>,
    policy: Option<Policy>,
    /// At most 64 KiB.
    metadata: Option<Map<String, Value>>,
}

/// How windows are built.
#[derive(ToSchema)]
struct Policy {
    #[schema(pattern = "^(last_n|skip_parts|strip_tool_results|manual|budget)$", default = "last_n")]
    strategy: Option<String>,
    config: Option<PolicyConfig>,
}

/// What a strategy does not use is kept and ignored.
#[derive(ToSchema)]
struct PolicyConfig {
    /// Newest messages kept.
    #[schema(minimum = 1, default = 400)]
    limit: Option<u64>,
    /// Tokens the window may hold; the budget by default.
    #[schema(minimum = 1)]
    max_tokens: Option<u64>,
    /// `skip_parts`: beginnings of the part types to drop; `tool` and `reasoning` by default.
    skip_kinds: Option<Vec<SkipKind>>,
    /// `off` lets a cut separate a tool call from its result.
    #[schema(pattern = "^(on|off)$", default = "on")]
    pairing: Option<String>,
    #[schema(exclusive_minimum = 0, maximum = 1)]
    trigger_ratio: Option<f64>,
}

/// The beginning of a part's type.
#[derive(ToSchema)]
#[schema(min_length = 1)]
struct SkipKind(String);

#[derive(ToSchema)]
struct ConversationList {
    conversations: Vec<Conversation>,
    /// Set while more may follow, also on an empty page.
    #[schema(required)]
    next_cursor: Option<String>,
}

#[derive(ToSchema)]
struct ContextList {
    contexts: Vec<Conversation>,
    /// Set while more may follow, also on an empty page.
    #[schema(required)]
    next_cursor: Option<String>,
}

/// One part of a message. Anything beside `type` is the client's.
#[derive(ToSchema)]
struct Part {
    #[schema(max_length = 64)]
    r#type: String,
}

/// A message to be appended: of parts, or of one text.
#[derive(ToSchema)]
struct MessageOfParts {
    #[schema(min_length = 1)]
    role: String,
    parts: Vec<Part>,
    metadata: Option<Map<String, Value>>,
    /// Taken verbatim; counted by the server when absent.
    #[schema(maximum = 4_294_967_295_u64)]
    token_count: Option<u64>,
}

/// A message of one text part.
#[derive(ToSchema)]
struct MessageOfText {
    #[schema(min_length = 1)]
    role: String,
    /// Stands for one part of type `text`; where there are `parts`, those count.
    content: String,
    metadata: Option<Map<String, Value>>,
    /// Taken verbatim; counted by the server when absent.
    #[schema(maximum = 4_294_967_295_u64)]
    token_count: Option<u64>,
}

alternatives!(AnyOfBuilder: NewMessage = MessageOfParts | MessageOfText);

macro_rules! append {
    ($either:ident: $one:ident { $event:ident } | $batch:ident { $events:ident }) => {
        #[derive(ToSchema)]
        struct $one {
            $event: NewMessage,
            /// 1 to 128 bytes.
            #[schema(min_length = 1, max_length = 128)]
            idempotency_key: Option<String>,
            if_version: Option<u64>,
        }

        /// All or nothing.
        #[derive(ToSchema)]
        struct $batch {
            #[schema(min_items = 1, max_items = 1000)]
            $events: Vec<NewMessage>,
            /// 1 to 128 bytes.
            #[schema(min_length = 1, max_length = 128)]
            idempotency_key: Option<String>,
            if_version: Option<u64>,
        }

        alternatives!(OneOfBuilder: $either = $one | $batch);
    };
}

append!(AppendEvents: AppendEvent { event } | AppendEventBatch { events });
append!(AppendMessages: AppendMessage { message } | AppendMessageBatch { messages });

/// The answer to a single append.
#[derive(ToSchema)]
struct Appended {
    seq: u64,
    version: u64,
    #[schema(maximum = 4_294_967_295_u64)]
    token_estimate: u64,
    /// Present (`true`) when the answer is that of an earlier request with the same key.
    deduped: Option<bool>,
}

/// The answer to a batch.
#[derive(ToSchema)]
struct BatchAppended {
    first_seq: u64,
    last_seq: u64,
    version: u64,
    token_estimates: Vec<u64>,
    /// Present (`true`) when the answer is that of an earlier request with the same key.
    deduped: Option<bool>,
}

/// A message of the log.
#[derive(ToSchema)]
struct Message {
    seq: u64,
    role: String,
    parts: Vec<Part>,
    metadata: Map<String, Value>,
    #[schema(maximum = 4_294_967_295_u64)]
    token_count: u64,
    #[schema(format = DateTime)]
    inserted_at: String,
}

#[derive(ToSchema)]
struct EventPage {
    events: Vec<Message>,
    /// The `cursor` of the next page; null when reading downwards found nothing.
    #[schema(required)]
    next_cursor: Option<u64>,
    has_more: bool,
}

#[derive(ToSchema)]
struct MessagePage {
    messages: Vec<Message>,
    /// The `cursor` of the next page; null when reading downwards found nothing.
    #[schema(required)]
    next_cursor: Option<u64>,
    has_more: bool,
}

#[derive(ToSchema)]
struct EventTail {
    events: Vec<Message>,
    /// The `offset` of the next older page; null at the beginning of the log.
    #[schema(required)]
    next_offset: Option<u64>,
    has_more: bool,
}

#[derive(ToSchema)]
struct MessageTail {
    messages: Vec<Message>,
    /// The `offset` of the next older page; null at the beginning of the log.
    #[schema(required)]
    next_offset: Option<u64>,
    has_more: bool,
}

/// What to send to the model.
#[derive(ToSchema)]
struct Window {
    version: u64,
    messages: Vec<WindowMessage>,
    /// Never more than the budget in force.
    used_tokens: u64,
    needs_compaction: bool,
    segments: Vec<Segment>,
    /// With `explain=true`.
    left_out: Option<Vec<LeftOut>>,
}

/// A message of a window: of the log, or of a summary.
#[derive(ToSchema)]
struct WindowMessage {
    seq: u64,
    /// Present on a summary's messages: the last seq it covers; `seq` is the first.
    to_seq: Option<u64>,
    role: String,
    parts: Vec<Part>,
    metadata: Map<String, Value>,
    #[schema(maximum = 4_294_967_295_u64)]
    token_count: u64,
    #[schema(format = DateTime)]
    inserted_at: String,
}

/// A stretch of the log the window covers.
#[derive(ToSchema)]
struct Segment {
    r#type: SegmentType,
    from_seq: u64,
    to_seq: u64,
}

#[derive(ToSchema)]
#[schema(rename_all = "snake_case")]
enum SegmentType {
    Summary,
    Live,
}

/// A stretch of the log that is not in the window, and why.
#[derive(ToSchema)]
struct LeftOut {
    from_seq: u64,
    to_seq: u64,
    reason: String,
}

/// Replaces a range of the window; the log stays as it is.
#[derive(ToSchema)]
struct Compact {
    /// The first seq by default.
    #[schema(minimum = 1)]
    from_seq: Option<u64>,
    /// The last seq by default.
    #[schema(minimum = 1)]
    to_seq: Option<u64>,
    #[schema(min_items = 1, max_items = 1000)]
    replacement: Vec<NewMessage>,
    if_version: Option<u64>,
}

#[derive(ToSchema)]
struct Compacted {
    version: u64,
}

/// Why a request was not served.
#[derive(ToSchema)]
struct Error {
    /// A word for programs; see the table of errors.
    error: String,
    /// A sentence for people, which names the field.
    message: String,
    /// With `conflict`.
    expected_version: Option<u64>,
    /// With `conflict`.
    current_version: Option<u64>,
    /// With `invalid_range`: the summary the range would cut through.
    covering: Option<Range>,
    /// With `too_large`.
    limit_bytes: Option<u64>,
    /// With `rate_limited`.
    retry_after_ms: Option<u64>,
    /// With `internal` and `unknown_outcome`: finds the request in the log.
    request_id: Option<String>,
}

#[derive(ToSchema)]
struct Range {
    from_seq: u64,
    to_seq: u64,
}
