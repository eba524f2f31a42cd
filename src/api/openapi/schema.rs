//! The shapes of bodies, for the API document alone: requests are read and answers written without them.
#![allow(dead_code, reason = "only their schemas are used")]

use serde_json::{Map, Value};
use utoipa::ToSchema;
use utoipa::openapi::schema::Components;

/// A component for every shape.
pub(super) fn components() -> Components {
    Components::builder()
        .schema_from::<Conversation>()
        .schema_from::<Settings>()
        .schema_from::<Policy>()
        .schema_from::<PolicyConfig>()
        .schema_from::<Status>()
        .schema_from::<ConversationList>()
        .schema_from::<ContextList>()
        .schema_from::<Part>()
        .schema_from::<NewMessage>()
        .schema_from::<AppendEvents>()
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
    #[schema(minimum = 1)]
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
    #[schema(minimum = 1, default = 8000)]
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
    skip_kinds: Option<Vec<String>>,
    /// `off` lets a cut separate a tool call from its result.
    #[schema(pattern = "^(on|off)$", default = "on")]
    pairing: Option<String>,
    trigger_ratio: Option<f64>,
}

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

/// A message to be appended.
#[derive(ToSchema)]
struct NewMessage {
    #[schema(min_length = 1)]
    role: String,
    /// Required, unless `content` is given.
    parts: Option<Vec<Part>>,
    /// Stands for one part of type `text`.
    content: Option<String>,
    metadata: Option<Map<String, Value>>,
    /// Taken verbatim; counted by the server when absent.
    token_count: Option<u32>,
}

/// Either one event, or a batch.
#[derive(ToSchema)]
struct AppendEvents {
    event: Option<NewMessage>,
    #[schema(min_items = 1, max_items = 1000)]
    events: Option<Vec<NewMessage>>,
    /// 1 to 128 bytes.
    #[schema(min_length = 1, max_length = 128)]
    idempotency_key: Option<String>,
    if_version: Option<u64>,
}

/// Either one message, or a batch.
#[derive(ToSchema)]
struct AppendMessages {
    message: Option<NewMessage>,
    #[schema(min_items = 1, max_items = 1000)]
    messages: Option<Vec<NewMessage>>,
    /// 1 to 128 bytes.
    #[schema(min_length = 1, max_length = 128)]
    idempotency_key: Option<String>,
    if_version: Option<u64>,
}

/// The answer to a single append.
#[derive(ToSchema)]
struct Appended {
    seq: u64,
    version: u64,
    token_estimate: u32,
    /// Present (`true`) when the answer is that of an earlier request with the same key.
    deduped: Option<bool>,
}

/// The answer to a batch.
#[derive(ToSchema)]
struct BatchAppended {
    first_seq: u64,
    last_seq: u64,
    version: u64,
    token_estimates: Vec<u32>,
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
    token_count: u32,
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
    token_count: u32,
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

#[derive(ToSchema)]
struct Health {
    #[schema(pattern = "^(ok|starting|draining|degraded)$")]
    status: String,
    reason: Option<String>,
}

/// The node that is meant; the one that is asked by default.
#[derive(ToSchema)]
struct NodeName {
    name: Option<String>,
}

#[derive(ToSchema)]
struct Cluster {
    /// Null until the node belongs to one.
    cluster_id: Option<String>,
    /// Of the cluster state; rises with every change.
    version: u64,
    /// Groups that conversations are spread over.
    groups: u64,
    /// Those that no node within reach leads.
    groups_without_leader: u64,
    /// Those whose members are not yet what they shall be.
    moving: u64,
    /// Group number to the name of the node that leads it; 256 is the group of the cluster state itself.
    leaders_by_group: Map<String, Value>,
    nodes: Vec<Node>,
}

#[derive(ToSchema)]
struct Node {
    name: String,
    id: String,
    address: String,
    #[schema(pattern = "^(joining|active|draining)$")]
    state: String,
    /// From the node that answers.
    #[schema(pattern = "^(up|down)$")]
    link: String,
    /// How long the link has been so.
    link_seconds: Option<u64>,
    /// Why it is down.
    link_error: Option<String>,
    /// How long the last ping took there and back.
    rtt_us: Option<u64>,
    /// Groups hosted; of a node that does not answer, those it shall host.
    groups: u64,
    /// Groups led.
    leaders: u64,
    /// Entries of the log that are committed and not applied there; null while the node does not answer.
    lag: Option<u64>,
    /// Rises with every start of the node.
    incarnation: Option<u64>,
    /// The lowest and the highest version of the protocol between nodes that it speaks.
    #[schema(min_items = 2, max_items = 2)]
    protocol: Vec<u16>,
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
