//! A selection made into a window: messages and segments in order, and what was left out.

use super::candidates::{Candidate, Candidates};
use super::select::{Choice, Selection};
use super::summaries::PlannedSummary;
use super::view::View;
use super::{LeftOut, PlannedMessage, Reason, Segment, WindowPlan};
use crate::conversation::runs::HistoryError;

pub(super) fn assemble(
    view: &View<'_>,
    candidates: &mut Candidates<'_>,
    summaries: Vec<PlannedSummary>,
    selection: Selection,
    needs_compaction: bool,
    explain: bool,
) -> Result<WindowPlan, HistoryError> {
    let mut out = Assembly {
        messages: Vec::with_capacity(selection.messages as usize),
        segments: Vec::new(),
        left_out: Vec::new(),
        explain,
        interrupted: false,
        beyond_cut: selection.cut.unwrap_or(Reason::OverBudget),
    };
    let (unread_from, unread_to) = candidates.unread();
    if let Some(leading) = candidates.leading {
        out.live(candidates, leading, selection.leading)?;
    }
    out.unread(view, unread_from, unread_to);
    let mut summaries = summaries.into_iter().zip(selection.summaries).peekable();
    for position in (0..candidates.scanned().len()).rev() {
        let candidate = candidates.scanned()[position];
        while let Some((summary, choice)) = summaries.next_if(|(summary, _)| summary.from_seq < candidate.seq)
        {
            out.summary(summary, choice);
        }
        let choice = selection.live.get(position).copied().unwrap_or(Choice::Open);
        out.live(candidates, candidate, choice)?;
    }
    summaries.for_each(|(summary, choice)| out.summary(summary, choice));
    Ok(WindowPlan {
        version: view.version,
        used_tokens: selection.tokens,
        needs_compaction,
        segments: out.segments,
        messages: out.messages,
        left_out: merged(out.left_out),
    })
}

/// A window being put together in ascending order.
struct Assembly {
    messages: Vec<PlannedMessage>,
    segments: Vec<Segment>,
    left_out: Vec<LeftOut>,
    explain: bool,
    /// Something was left out since the last message, so that the next one begins a segment.
    interrupted: bool,
    beyond_cut: Reason,
}

impl Assembly {
    fn live(
        &mut self,
        candidates: &mut Candidates<'_>,
        candidate: Candidate,
        choice: Choice,
    ) -> Result<(), HistoryError> {
        let seq = candidate.seq;
        let reason = match choice {
            Choice::In => {
                if let Some(partly) = candidates.reason(candidate) {
                    self.leave_out(seq, seq, partly);
                }
                self.show_live(seq);
                self.messages.push(candidates.planned(candidate)?);
                return Ok(());
            }
            Choice::Out(reason) => reason,
            Choice::Open => self.beyond_cut,
        };
        self.interrupted |= !candidates.emptied(candidate);
        self.leave_out(seq, seq, reason);
        Ok(())
    }

    fn show_live(&mut self, seq: u64) {
        match self.segments.last_mut() {
            Some(Segment::Live { to_seq, .. }) if !self.interrupted => *to_seq = seq,
            _ => self.segments.push(Segment::Live { from_seq: seq, to_seq: seq }),
        }
        self.interrupted = false;
    }

    fn summary(&mut self, summary: PlannedSummary, choice: Choice) {
        let PlannedSummary { from_seq, to_seq, messages, .. } = summary;
        match choice {
            Choice::In => {
                self.segments.push(Segment::Summary { from_seq, to_seq });
                self.messages.extend(messages);
                self.interrupted = false;
            }
            Choice::Out(reason) => {
                self.interrupted = true;
                self.leave_out(from_seq, to_seq, reason);
            }
            Choice::Open => debug_assert!(false, "every summary is decided on"),
        }
    }

    /// The live messages of a range that was not even looked at.
    fn unread(&mut self, view: &View<'_>, from_seq: u64, to_seq: u64) {
        if to_seq < from_seq {
            return;
        }
        self.interrupted = true;
        let mut end = view.live_at_or_below(to_seq);
        while self.explain && end >= from_seq {
            let start = from_seq.max(view.live_since(end));
            self.leave_out(start, end, self.beyond_cut);
            end = view.live_at_or_below(start - 1);
        }
    }

    fn leave_out(&mut self, from_seq: u64, to_seq: u64, reason: Reason) {
        if self.explain {
            self.left_out.push(LeftOut { from_seq, to_seq, reason });
        }
    }
}

/// By position, neighbours of one reason as one.
fn merged(mut left_out: Vec<LeftOut>) -> Vec<LeftOut> {
    left_out.sort_by_key(|range| range.from_seq);
    left_out.dedup_by(|next, range| {
        let continues = range.reason == next.reason && range.to_seq + 1 == next.from_seq;
        if continues {
            range.to_seq = next.to_seq;
        }
        continues
    });
    left_out
}
