//! Compaction: a summary takes the place of a range and of the summaries within it. The log stays as it is.

use std::ops::Range;

use super::apply::{ChangeTo, Effects};
use super::command::CompactRange;
use super::message::{Location, MessageMeta, NewMessage};
use super::pairing::RecentCalls;
use super::reply::{Refusal, Reply};
use super::runs::{ChangeKind, ChangeRun, Summary};
use super::state::{MAX_SUMMARIES, MAX_SUMMARY_MESSAGES, MAX_SUMMARY_PARTS};

impl ChangeTo<'_> {
    pub(super) fn compact(
        &mut self,
        range: CompactRange,
        replacement: &[NewMessage],
        locations: &[Location],
        if_version: Option<u64>,
    ) -> Effects {
        let allowed = self.may_write(if_version).and_then(|()| self.compactable(range, replacement));
        let range = match allowed {
            Ok(range) => range,
            Err(refusal) => return Effects::refused(refusal),
        };
        let sealed_changes = self.summarise(range, replacement, locations);
        let version = self.conversation.version;
        Effects { changed: true, sealed_changes, ..Effects::reply(Reply::Compacted { version }) }
    }

    /// Puts a summary in the place of a range and of the summaries within it.
    pub(super) fn summarise(
        &mut self,
        (from_seq, to_seq): (u64, u64),
        replacement: &[NewMessage],
        locations: &[Location],
    ) -> Vec<ChangeRun> {
        assert_eq!(replacement.len(), locations.len(), "a location for every message");
        let mut calls = RecentCalls::default();
        let metas =
            replacement.iter().zip(locations).enumerate().map(|(index, (message, location))| MessageMeta {
                location: *location,
                inserted_at_ms: self.at_ms,
                parts: calls.link(index as u64 + 1, message),
                token_count: message.token_count,
                role: message.role,
            });
        let summary = Summary { from_seq, to_seq, replacement: metas.collect() };
        let summaries = &mut self.conversation.summaries;
        let contained = contained(summaries, from_seq, to_seq);
        summaries.splice(contained, [summary.clone()]);
        self.record(ChangeKind::Compaction(summary))
    }

    /// The range in full, if it may be compacted.
    pub(super) fn compactable(
        &self,
        range: CompactRange,
        replacement: &[NewMessage],
    ) -> Result<(u64, u64), Refusal> {
        let conversation = &self.conversation;
        let last_seq = conversation.last_seq;
        let (from_seq, to_seq) = (range.from.unwrap_or(1), range.to.unwrap_or(last_seq));
        let invalid = |message: String, covering| Err(Refusal::InvalidRange { message, covering });
        if last_seq == 0 {
            return invalid("there is nothing to compact yet".to_owned(), None);
        }
        if from_seq == 0 || from_seq > to_seq || to_seq > last_seq {
            let message =
                format!("from_seq {from_seq} to to_seq {to_seq} is not a range within 1 to {last_seq}");
            return invalid(message, None);
        }
        let cut = |summary: &&Summary| {
            let overlaps = summary.from_seq <= to_seq && from_seq <= summary.to_seq;
            overlaps && (summary.from_seq < from_seq || to_seq < summary.to_seq)
        };
        if let Some(Summary { from_seq: from, to_seq: to, .. }) = conversation.summaries.iter().find(cut) {
            let message =
                format!("from_seq {from_seq} to to_seq {to_seq} cuts through the summary of {from} to {to}");
            return invalid(message, Some((*from, *to)));
        }
        let replaced = contained(&conversation.summaries, from_seq, to_seq);
        if has_room(&conversation.summaries, replaced, replacement) {
            Ok((from_seq, to_seq))
        } else {
            Err(Refusal::TooManySummaries)
        }
    }
}

/// Whether there may be one more summary in the place of those at `replaced`.
fn has_room(summaries: &[Summary], replaced: Range<usize>, replacement: &[NewMessage]) -> bool {
    let (mut count, mut messages) = (1, replacement.len());
    let mut parts: usize = replacement.iter().map(|message| message.parts.len()).sum();
    for summary in summaries[..replaced.start].iter().chain(&summaries[replaced.end..]) {
        count += 1;
        messages += summary.replacement.len();
        parts += summary.replacement.iter().map(|meta| meta.parts.count()).sum::<usize>();
    }
    count <= MAX_SUMMARIES && messages <= MAX_SUMMARY_MESSAGES && parts <= MAX_SUMMARY_PARTS
}

/// The summaries that lie within a range, by their positions in the list.
fn contained(summaries: &[Summary], from_seq: u64, to_seq: u64) -> Range<usize> {
    let start = summaries.partition_point(|summary| summary.from_seq < from_seq);
    let end = summaries.partition_point(|summary| summary.to_seq <= to_seq);
    start..end.max(start)
}

#[cfg(test)]
mod tests {
    use super::super::runs::CHANGE_RUN_BYTES;
    use super::super::testing::{Harness, append, put, text};
    use super::super::{Action, EVENT_RUN, MAX_KIND_BYTES, MAX_PARTS, PartKind, PartMeta, RoleKind, ToolRef};
    use super::*;

    fn listed(parts: usize) -> NewMessage {
        let kind = PartKind::new(&"x".repeat(MAX_KIND_BYTES)).unwrap();
        let part = PartMeta { kind, tokens: 1, marker_tokens: 0, tool: ToolRef::None };
        NewMessage { parts: vec![part; parts], ..text(0) }
    }

    fn compact(from: u64, to: u64, replacement: Vec<NewMessage>) -> Action {
        let range = CompactRange { from: Some(from), to: Some(to) };
        Action::Compact { range, replacement, if_version: None }
    }

    #[test]
    fn parts_of_summaries_are_bounded() {
        let mut real = Harness::new();
        real.apply(put());
        real.apply(append((0..9).map(text).collect()));
        let half = MAX_SUMMARY_PARTS / 2;
        let too_many = Reply::Refused(Refusal::TooManySummaries);
        assert_eq!(real.apply(compact(1, 1, vec![listed(MAX_SUMMARY_PARTS), text(1)])), too_many);
        assert_eq!(real.apply(compact(1, 2, vec![listed(half)])), Reply::Compacted { version: 10 });
        assert_eq!(real.apply(compact(5, 5, vec![listed(half), text(1)])), too_many);
        let full = real.apply(compact(5, 5, vec![listed(half - 2), text(1), text(1)]));
        assert_eq!(full, Reply::Compacted { version: 11 });
        assert_eq!(real.apply(compact(8, 8, vec![text(1)])), too_many);
        assert_eq!(real.apply(compact(8, 8, Vec::new())), Reply::Compacted { version: 12 });
        // What is compacted over makes room.
        assert_eq!(real.apply(compact(1, 3, vec![listed(half)])), Reply::Compacted { version: 13 });
        assert_eq!(real.apply(compact(8, 9, vec![text(1)])), too_many);
        assert_eq!(real.apply(compact(4, 9, vec![text(1)])), Reply::Compacted { version: 14 });
    }

    #[test]
    fn summaries_of_many_parts_leave_the_record() {
        let mut real = Harness::new();
        real.apply(put());
        real.apply(append(vec![text(1)]));
        for runs in 1..4 {
            real.apply(compact(1, 1, vec![listed(CHANGE_RUN_BYTES / MAX_KIND_BYTES)]));
            assert_eq!(real.current().sealed_change_runs(), runs);
        }
    }

    /// Of one record a snapshot takes 24 MiB, unless less is set for batches.
    #[test]
    fn the_longest_record_is_bounded() {
        let mut real = Harness::new();
        real.apply(put());
        let open = EVENT_RUN as usize - 1;
        real.apply(append(vec![NewMessage { role: RoleKind::System, ..listed(MAX_PARTS) }]));
        real.apply(append(vec![listed(MAX_PARTS); 2 * open]));
        real.apply(compact(1, 1, vec![listed(MAX_PARTS); MAX_SUMMARY_PARTS / MAX_PARTS]));
        let record = real.current();
        assert_eq!((record.open.len(), record.leading_system.is_some()), (open, true));
        assert!(record.encode().len() < 16 << 20);
    }
}
