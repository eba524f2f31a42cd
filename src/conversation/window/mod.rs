//! Windows: which messages, within a token budget, a model is to see. Pure planning; no body is read.
//!
//! A window is a function of the log, the summaries and the settings as of one version, and of the budget asked for.
//! What the contract leaves open is decided so:
//!
//! - Summaries do not count towards a policy's `limit`, the leading system message does; everything counts towards the
//!   budget. Who comes first when room is short: see `select`.
//! - A summary is shown whole or not at all. When it begins the log with a system message, it stays like one.
//! - Tool calls and results that are tied together (also through a third message) are taken or left as one. Where only
//!   one side is to be had, because the other was compacted away or is of a skipped kind, the part goes, and the message
//!   with it if nothing else is in it. A call without any result yet is pending and stays.
//! - Once results are stripped, calls are mere text, and nothing is tied.
//! - `max_tokens` is the policy's own wish: what it leaves out does not ask for compaction.

mod assemble;
mod candidates;
mod edits;
mod select;
mod summaries;
mod view;

use self::assemble::assemble;
use self::candidates::Candidates;
use self::select::{Caps, Selection};
use self::summaries::{PlannedSummary, plan_summaries};
use self::view::View;
use super::history::Events;
use super::message::Location;
use super::runs::{History, HistoryError};
use super::{Conversation, ConversationId};

/// How a window was asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct WindowQuery {
    /// In place of the conversation's budget, larger or smaller.
    pub budget_tokens: Option<u64>,
    /// The window as it was when this version was current.
    pub at_version: Option<u64>,
    /// Also say what was left out and why.
    pub explain: bool,
}

/// Why there is no window.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    #[error("version {requested} lies in the future (current {current})")]
    VersionInFuture { requested: u64, current: u64 },
    #[error("the window has more than {max} live messages")]
    TooManyMessages { max: u64 },
    #[error(transparent)]
    History(#[from] HistoryError),
}

/// A window, in the order a model is to read it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct WindowPlan {
    /// The version the window shows.
    pub version: u64,
    /// Tokens of all `messages`; never above the budget in force.
    pub used_tokens: u64,
    /// What the policy would keep without the budget exceeds `trigger_ratio` × `token_budget`, or the budget forced
    /// something out.
    pub needs_compaction: bool,
    pub segments: Vec<Segment>,
    pub messages: Vec<PlannedMessage>,
    /// Empty unless asked to explain. By position; every seq is in a summary segment, in `messages` or in here.
    pub left_out: Vec<LeftOut>,
}

/// A stretch of the log that the window shows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Segment {
    /// By the replacement of a compaction.
    Summary { from_seq: u64, to_seq: u64 },
    /// By its own messages. Messages that the policy emptied do not interrupt it.
    Live { from_seq: u64, to_seq: u64 },
}

/// A message of a window.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PlannedMessage {
    /// The first seq of the summary this message belongs to, or its own.
    pub seq: u64,
    /// For a message of a summary, the last seq of the summary.
    pub to_seq: Option<u64>,
    pub location: Location,
    /// After the edit.
    pub token_count: u32,
    pub inserted_at_ms: u64,
    pub edit: Edit,
}

/// How the stored body becomes the one shown.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum Edit {
    #[default]
    Whole,
    /// One entry for each part, in order; see [`render_edited`](super::render_edited).
    Parts(Box<[PartEdit]>),
}

/// What becomes of a part.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PartEdit {
    Keep,
    Drop,
    /// Replaced by a text that names the tool called.
    Marker,
}

/// Consecutive seqs that are not in the window, or not whole, for the same reason.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LeftOut {
    pub from_seq: u64,
    pub to_seq: u64,
    pub reason: Reason,
}

/// Why something is not in the window.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reason {
    /// Older than the newest `limit` messages.
    OverLimit,
    /// Older than what fits into the policy's `max_tokens`.
    OverMaxTokens,
    /// Older than what fits into the budget.
    OverBudget,
    /// Alone, or with the tool calls and results it belongs to, larger than the budget.
    ExceedsBudget,
    /// All its parts are of skipped kinds.
    MessageSkipped,
    /// Some of its parts are of skipped kinds; the rest is in the window.
    PartsSkipped,
    /// A tool result whose call was compacted away.
    CallCompacted,
    /// A tool call whose result was compacted away.
    ResultCompacted,
}

impl Reason {
    pub fn as_str(self) -> &'static str {
        match self {
            Reason::OverLimit => "over_limit",
            Reason::OverMaxTokens => "over_max_tokens",
            Reason::OverBudget => "over_budget",
            Reason::ExceedsBudget => "exceeds_budget",
            Reason::MessageSkipped => "message_skipped",
            Reason::PartsSkipped => "parts_skipped",
            Reason::CallCompacted => "call_compacted",
            Reason::ResultCompacted => "result_compacted",
        }
    }
}

/// Plans the window of a conversation. One of more than `messages_max` live messages is refused as soon as that shows, not
/// read to its end.
pub fn plan_window(
    conversation: &Conversation,
    id: &ConversationId,
    history: &dyn History,
    query: &WindowQuery,
    messages_max: u64,
) -> Result<WindowPlan, PlanError> {
    let view = View::at(query.at_version, conversation, id, history)?;
    let mut planned = Planned::select(&view, conversation, id, history, query.budget_tokens, messages_max)?;
    let Planned { summaries, selection, needs_compaction, .. } = planned;
    Ok(assemble(&view, &mut planned.candidates, summaries, selection, needs_compaction, query.explain)?)
}

/// The tokens of the window as of a version, and whether it needs compaction, however many messages it has: as
/// [`plan_window`] says, but nothing is put together.
pub fn plan_usage(
    conversation: &Conversation,
    id: &ConversationId,
    history: &dyn History,
    at_version: u64,
) -> Result<(u64, bool), PlanError> {
    let view = View::at(Some(at_version), conversation, id, history)?;
    let planned = Planned::select(&view, conversation, id, history, None, u64::MAX)?;
    Ok((planned.selection.tokens, planned.needs_compaction))
}

/// What is in a window, before it is put together.
struct Planned<'a> {
    candidates: Candidates<'a>,
    summaries: Vec<PlannedSummary>,
    selection: Selection,
    needs_compaction: bool,
}

impl<'a> Planned<'a> {
    fn select(
        view: &'a View<'a>,
        conversation: &'a Conversation,
        id: &'a ConversationId,
        history: &'a dyn History,
        budget_tokens: Option<u64>,
        messages_max: u64,
    ) -> Result<Planned<'a>, PlanError> {
        let budget = budget_tokens.unwrap_or(view.settings.token_budget);
        let bounds = view.settings.policy.strategy().bounds();
        let max_tokens = bounds.max_tokens.unwrap_or(u64::MAX);

        let summaries = plan_summaries(view)?;
        let events = Events::new(conversation, id, history);
        let mut candidates = Candidates::new(view, events, conversation.leading_system.as_deref())?;
        let unbudgeted = Caps { limit: bounds.limit, max_tokens, budget: u64::MAX, messages_max };
        // Above the budget, the window is another one, and whatever else there would be, it needs compaction.
        let wanted = Selection::make(&mut candidates, &summaries, unbudgeted, budget)?;
        let needs_compaction = wanted.tokens > budget.min(view.settings.trigger_tokens());
        let selection = if wanted.tokens <= budget {
            wanted
        } else {
            Selection::make(&mut candidates, &summaries, Caps { budget, ..unbudgeted }, u64::MAX)?
        };
        debug_assert!(selection.tokens <= budget, "a window never exceeds its budget");
        Ok(Planned { candidates, summaries, selection, needs_compaction })
    }
}
