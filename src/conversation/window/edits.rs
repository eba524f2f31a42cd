//! What a policy does to the parts of a message, so that a tool call and its result are kept or dropped together.
//!
//! Messages are edited from the newest back: when a call is reached, what became of its results is known.

use std::collections::BTreeSet;

use super::{Edit, PartEdit, Reason};
use crate::conversation::message::{MessageMeta, StoredPart, ToolLink};
use crate::conversation::part::PartKind;
use crate::conversation::policy::{Policy, Strategy};
use crate::conversation::runs::HistoryError;

/// What a policy does to a part regardless of others.
pub(super) struct Rules<'a> {
    skip_kinds: &'a [String],
    strip_tool_results: bool,
    drops_text: bool,
    /// Whether calls and results must stay together. Once results are stripped nothing is left to be together.
    pub(super) pairing: bool,
}

impl<'a> Rules<'a> {
    pub(super) fn of(policy: &'a Policy) -> Rules<'a> {
        let skip_kinds = match policy.strategy() {
            Strategy::SkipParts { kinds, .. } => kinds.as_slice(),
            _ => &[],
        };
        let strip_tool_results = matches!(policy.strategy(), Strategy::StripToolResults(_));
        let drops_text = skip_kinds.iter().any(|kind| PartKind::TEXT.as_str().starts_with(kind.as_str()));
        Rules { skip_kinds, strip_tool_results, drops_text, pairing: policy.pairing() && !strip_tool_results }
    }

    pub(super) fn edit(&self, part: &StoredPart) -> PartEdit {
        let kind = part.kind.as_str();
        match part.tool {
            ToolLink::Result(_) if self.strip_tool_results => PartEdit::Drop,
            ToolLink::Call if self.strip_tool_results => PartEdit::Marker,
            _ if self.skip_kinds.iter().any(|skipped| kind.starts_with(skipped.as_str())) => PartEdit::Drop,
            _ => PartEdit::Keep,
        }
    }
}

impl Rules<'_> {
    /// Whether any part may be dropped for its kind.
    pub(super) fn skips(&self) -> bool {
        !self.skip_kinds.is_empty()
    }

    /// What the rules do to the call at `part` of a message.
    pub(super) fn fate(&self, meta: &MessageMeta, part: u32) -> CallFate {
        let part = meta.parts.listed().and_then(|parts| parts.get(part as usize));
        match part.filter(|part| part.tool == ToolLink::Call) {
            None => CallFate::Unknown,
            Some(call) if self.edit(call) == PartEdit::Drop => CallFate::Skipped,
            Some(_) => CallFate::Kept,
        }
    }
}

/// What an editor needs to know of messages other than the one at hand.
pub(super) trait Surroundings {
    /// Where the call of a kept result is.
    fn call(&mut self, seq: u64, part: u32) -> Result<CallFate, HistoryError>;
    /// Whether a result of the live call was compacted away.
    fn answered_in_summary(&mut self, seq: u64, part: u32) -> Result<bool, HistoryError>;
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum CallFate {
    Kept,
    /// The policy drops it.
    Skipped,
    CompactedAway,
    /// There is no such call: the result stands for itself.
    Unknown,
}

/// A message after its edit.
pub(super) struct Edited {
    pub(super) edit: Edit,
    pub(super) token_count: u32,
    /// Nothing is left of it.
    pub(super) emptied: bool,
    /// Why something was dropped.
    pub(super) reason: Option<Reason>,
}

/// Edits messages in descending order.
pub(super) struct Editor<'a> {
    rules: Rules<'a>,
    /// Calls, by seq and part, that a kept result answers ...
    answered: BTreeSet<(u64, u32)>,
    /// ... and those that a dropped result did.
    unanswered: BTreeSet<(u64, u32)>,
    work: Work,
}

impl<'a> Editor<'a> {
    pub(super) fn new(rules: Rules<'a>) -> Editor<'a> {
        Editor { rules, answered: BTreeSet::new(), unanswered: BTreeSet::new(), work: Work::default() }
    }

    /// Whether messages of one text part stay as they are.
    pub(super) fn keeps_text(&self) -> bool {
        !self.rules.drops_text
    }

    pub(super) fn edit(
        &mut self,
        seq: u64,
        meta: &MessageMeta,
        around: &mut dyn Surroundings,
    ) -> Result<Edited, HistoryError> {
        let mut work = std::mem::take(&mut self.work);
        let Some(parts) = meta.parts.listed() else {
            work.begin([].into_iter());
            self.work = work;
            let emptied = self.rules.drops_text;
            let reason = emptied.then_some(Reason::MessageSkipped);
            return Ok(Edited { edit: Edit::Whole, token_count: meta.token_count, emptied, reason });
        };
        work.begin(parts.iter().map(|part| self.rules.edit(part)));
        if self.rules.pairing {
            self.pair_results(seq, parts, &mut work, around)?;
            self.pair_calls(seq, parts, &mut work, around)?;
        }
        let edited = work.edited(meta.token_count, parts);
        self.work = work;
        Ok(edited)
    }

    /// The seqs of the other messages whose calls the message edited last answers.
    pub(super) fn answers(&self) -> &[u64] {
        &self.work.answers
    }

    fn pair_results(
        &mut self,
        seq: u64,
        parts: &[StoredPart],
        work: &mut Work,
        around: &mut dyn Surroundings,
    ) -> Result<(), HistoryError> {
        for (index, part) in parts.iter().enumerate() {
            let ToolLink::Result(Some(call)) = part.tool else { continue };
            let Some(call_seq) = seq.checked_sub(call.back.into()).filter(|seq| *seq > 0) else { continue };
            if work.edits[index] == PartEdit::Drop {
                self.unanswered.insert((call_seq, call.part));
                continue;
            }
            let fate = match work.edits.get(call.part as usize) {
                Some(PartEdit::Drop) if call_seq == seq => CallFate::Skipped,
                _ if call_seq == seq => CallFate::Kept,
                _ => around.call(call_seq, call.part)?,
            };
            match fate {
                CallFate::Kept => {
                    self.answered.insert((call_seq, call.part));
                    if call_seq != seq {
                        work.answers.push(call_seq);
                    }
                }
                CallFate::Skipped => work.drop(index, Reason::PartsSkipped),
                CallFate::CompactedAway => work.drop(index, Reason::CallCompacted),
                CallFate::Unknown => {}
            }
        }
        Ok(())
    }

    fn pair_calls(
        &mut self,
        seq: u64,
        parts: &[StoredPart],
        work: &mut Work,
        around: &mut dyn Surroundings,
    ) -> Result<(), HistoryError> {
        for (index, part) in parts.iter().enumerate() {
            if part.tool != ToolLink::Call || work.edits[index] == PartEdit::Drop {
                continue;
            }
            // Nobody asks again: all that could answer this call is newer.
            let key = (seq, index as u32);
            let (answered, unanswered) = (self.answered.remove(&key), self.unanswered.remove(&key));
            if answered {
                continue;
            }
            if unanswered {
                work.drop(index, Reason::PartsSkipped);
            } else if around.answered_in_summary(seq, index as u32)? {
                work.drop(index, Reason::ResultCompacted);
            }
        }
        Ok(())
    }
}

/// The edits of one message while they are made; used again for the next.
#[derive(Default)]
struct Work {
    edits: Vec<PartEdit>,
    answers: Vec<u64>,
    reason: Option<Reason>,
}

impl Work {
    fn begin(&mut self, edits: impl Iterator<Item = PartEdit>) {
        self.edits.clear();
        self.edits.extend(edits);
        self.answers.clear();
        self.reason = self.edits.contains(&PartEdit::Drop).then_some(Reason::PartsSkipped);
    }

    fn drop(&mut self, index: usize, reason: Reason) {
        self.edits[index] = PartEdit::Drop;
        self.reason = self.reason.or(Some(reason));
    }

    fn edited(&self, token_count: u32, parts: &[StoredPart]) -> Edited {
        if self.edits.iter().all(|edit| *edit == PartEdit::Keep) {
            return Edited { edit: Edit::Whole, token_count, emptied: false, reason: None };
        }
        let emptied = self.edits.iter().all(|edit| *edit == PartEdit::Drop);
        let reason = match self.reason {
            Some(Reason::PartsSkipped) if emptied => Some(Reason::MessageSkipped),
            reason => reason,
        };
        let token_count = tokens_after(token_count, parts, &self.edits);
        Edited { edit: Edit::Parts(self.edits.as_slice().into()), token_count, emptied, reason }
    }
}

/// Whatever a message costs beyond its parts remains.
fn tokens_after(token_count: u32, parts: &[StoredPart], edits: &[PartEdit]) -> u32 {
    let mut tokens = u64::from(token_count);
    for (part, edit) in parts.iter().zip(edits) {
        if *edit != PartEdit::Keep {
            tokens = tokens.saturating_sub(part.tokens.into());
        }
    }
    let marked = parts.iter().zip(edits).filter(|(_, edit)| **edit == PartEdit::Marker);
    tokens += marked.map(|(part, _)| u64::from(part.marker_tokens)).sum::<u64>();
    u32::try_from(tokens).unwrap_or(u32::MAX)
}
