//! Summaries as a window takes them: whole or not at all.

use super::PlannedMessage;
use super::edits::{CallFate, Editor, Rules, Surroundings};
use super::view::View;
use crate::conversation::message::{MessageMeta, RoleKind};
use crate::conversation::runs::{HistoryError, Summary};

pub(super) struct PlannedSummary {
    pub(super) from_seq: u64,
    pub(super) to_seq: u64,
    pub(super) messages: Vec<PlannedMessage>,
    pub(super) tokens: u64,
    /// It begins the log and the conversation's system message is in it.
    pub(super) leads: bool,
}

/// The summaries in force, by position, their messages edited by the policy.
pub(super) fn plan_summaries(view: &View<'_>) -> Result<Vec<PlannedSummary>, HistoryError> {
    view.summaries.iter().map(|summary| plan_summary(view, summary)).collect()
}

fn plan_summary(view: &View<'_>, summary: &Summary) -> Result<PlannedSummary, HistoryError> {
    let mut editor = Editor::new(Rules::of(&view.settings.policy));
    let mut around = Within { messages: &summary.replacement, rules: Rules::of(&view.settings.policy) };
    let mut messages = Vec::with_capacity(summary.replacement.len());
    for (index, meta) in summary.replacement.iter().enumerate().rev() {
        let edited = editor.edit(index as u64 + 1, meta, &mut around)?;
        if !edited.emptied {
            messages.push(PlannedMessage {
                seq: summary.from_seq,
                to_seq: Some(summary.to_seq),
                location: meta.location,
                token_count: edited.token_count,
                inserted_at_ms: meta.inserted_at_ms,
                edit: edited.edit,
            });
        }
    }
    messages.reverse();
    let begins_with_system = summary.replacement.first().is_some_and(|meta| meta.role == RoleKind::System);
    Ok(PlannedSummary {
        from_seq: summary.from_seq,
        to_seq: summary.to_seq,
        tokens: messages.iter().map(|message| u64::from(message.token_count)).sum(),
        messages,
        leads: summary.from_seq == 1 && begins_with_system,
    })
}

/// The other messages of a replacement; its links count positions from 1.
struct Within<'a> {
    messages: &'a [MessageMeta],
    rules: Rules<'a>,
}

impl Surroundings for Within<'_> {
    fn call(&mut self, seq: u64, part: u32) -> Result<CallFate, HistoryError> {
        let message = self.messages.get((seq - 1) as usize);
        Ok(message.map_or(CallFate::Unknown, |message| self.rules.fate(message, part)))
    }

    fn answered_in_summary(&mut self, _: u64, _: u32) -> Result<bool, HistoryError> {
        Ok(false)
    }
}
