//! A conversation as of a version: the settings, summaries and length that a window is planned from.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use super::PlanError;
use crate::conversation::history::Changes;
use crate::conversation::policy::Settings;
use crate::conversation::runs::{ChangeKind, History, HistoryError, Summary};
use crate::conversation::{Conversation, ConversationId};

pub(super) struct View<'a> {
    pub(super) version: u64,
    pub(super) last_seq: u64,
    pub(super) settings: Arc<Settings>,
    /// Sorted and disjoint.
    pub(super) summaries: Cow<'a, [Summary]>,
}

impl<'a> View<'a> {
    pub(super) fn at(
        version: Option<u64>,
        conversation: &'a Conversation,
        id: &ConversationId,
        history: &dyn History,
    ) -> Result<View<'a>, PlanError> {
        let current = conversation.version;
        match version {
            Some(requested) if requested > current => Err(PlanError::VersionInFuture { requested, current }),
            Some(requested) if requested < current => Ok(View::past(requested, conversation, id, history)?),
            _ => Ok(View {
                version: current,
                last_seq: conversation.last_seq,
                settings: conversation.settings.clone(),
                summaries: Cow::Borrowed(&conversation.summaries),
            }),
        }
    }

    /// Reads the changes backwards from `version`: the newest settings hold, and a compaction holds unless a later one
    /// contains it (it cannot have been cut). Takes a look at every change of the conversation up to `version`.
    fn past(
        version: u64,
        conversation: &Conversation,
        id: &ConversationId,
        history: &dyn History,
    ) -> Result<View<'a>, HistoryError> {
        let changes = Changes::new(conversation, id, history);
        let newest = changes.chunk_at(version)?;
        let count = changes.chunk(newest)?.count_up_to(version);
        let mut settings = None;
        let mut summaries = BTreeMap::new();
        for number in (0..=newest).rev() {
            let chunk = changes.chunk(number)?;
            for change in chunk.changes().iter().rev().filter(|change| change.version <= version) {
                match &change.kind {
                    ChangeKind::Created(then) | ChangeKind::Settings(then) => {
                        settings.get_or_insert_with(|| then.clone());
                    }
                    ChangeKind::Compaction(summary) => insert_unless_covered(&mut summaries, summary),
                    ChangeKind::Metadata | ChangeKind::Tombstoned => {}
                }
            }
        }
        Ok(View {
            version,
            // Creation is the one change that is not counted by versions.
            last_seq: (version + 1).saturating_sub(count).min(conversation.last_seq),
            settings: settings.unwrap_or_else(|| conversation.settings.clone()),
            summaries: Cow::Owned(summaries.into_values().collect()),
        })
    }

    /// The summary that covers `seq`.
    pub(super) fn covering(&self, seq: u64) -> Option<&Summary> {
        let after = self.summaries.partition_point(|summary| summary.from_seq <= seq);
        self.summaries[..after].last().filter(|summary| seq <= summary.to_seq)
    }

    /// The oldest seq that no summary separates from the live `seq`.
    pub(super) fn live_since(&self, seq: u64) -> u64 {
        let before = self.summaries.partition_point(|summary| summary.from_seq <= seq);
        self.summaries[..before].last().map_or(1, |summary| summary.to_seq + 1)
    }

    /// The newest seq up to `seq` that no summary covers; 0 when there is none.
    pub(super) fn live_at_or_below(&self, mut seq: u64) -> u64 {
        while let Some(summary) = self.covering(seq) {
            seq = summary.from_seq - 1;
        }
        seq
    }
}

fn insert_unless_covered(summaries: &mut BTreeMap<u64, Summary>, summary: &Summary) {
    let later = summaries.range(..=summary.to_seq).next_back();
    let covered = later.is_some_and(|(_, later)| summary.from_seq <= later.to_seq);
    if !covered {
        summaries.insert(summary.from_seq, summary.clone());
    }
}
