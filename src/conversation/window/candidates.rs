//! The live messages of a window to be, read from the newest back and only as far as somebody asks.
//!
//! Messages that calls and results tie together form groups, which are in the window or out of it as one.

use std::collections::BTreeSet;

use super::edits::{CallFate, Edited, Editor, Rules, Surroundings};
use super::view::View;
use super::{Edit, PlannedMessage, Reason};
use crate::conversation::history::Events;
use crate::conversation::message::{MessageMeta, ToolLink};
use crate::conversation::pairing::PAIR_REACH;
use crate::conversation::runs::HistoryError;

/// Single texts are read up to this many at once.
const BATCH: usize = 64;
/// Room reserved for candidates at the most; more make room for themselves.
const MAX_EXPECTED: u64 = 512;

/// A live message after its edit. Small: most are only looked at for their tokens.
#[derive(Clone, Copy)]
pub(super) struct Candidate {
    pub(super) seq: u64,
    /// What is left after the edit.
    pub(super) tokens: u32,
    /// Position of its [`Fate`]; [`PLAIN`] for a whole message that nothing is tied to.
    fate: u32,
}

const PLAIN: u32 = u32::MAX;

/// What there is to know of an edited message, or of one that others are tied to.
#[derive(Default)]
struct Fate {
    edit: Edit,
    emptied: bool,
    reason: Option<Reason>,
    group: Option<u32>,
}

/// Messages tied together. Members are positions among the candidates.
#[derive(Default)]
struct Group {
    members: Vec<u32>,
    /// The oldest message a member refers to; the group is known in full once that is reached.
    reaches_seq: u64,
}

/// What must be taken or left as one: a message, or a group of them.
pub(super) struct Unit {
    pub(super) tokens: u64,
    pub(super) messages: u64,
}

pub(super) struct Candidates<'a> {
    view: &'a View<'a>,
    events: Events<'a>,
    editor: Editor<'a>,
    around: Around<'a>,
    /// Where the log begins behind the leading system message.
    first_seq: u64,
    /// The first message of the log, when it is a system message that stays.
    pub(super) leading: Option<Candidate>,
    /// Newest first.
    scanned: Vec<Candidate>,
    fates: Vec<Fate>,
    /// The next seq to look at; 0 when there is none.
    next_seq: u64,
    groups: Vec<Group>,
    /// Messages not reached yet, with the candidates that answer their calls.
    awaited: BTreeSet<(u64, u32)>,
}

impl<'a> Candidates<'a> {
    pub(super) fn new(
        view: &'a View<'a>,
        events: Events<'a>,
        leading_system: Option<&MessageMeta>,
    ) -> Result<Candidates<'a>, HistoryError> {
        let rules = Rules::of(&view.settings.policy);
        let expected = view.settings.policy.strategy().bounds().limit.min(view.last_seq).min(MAX_EXPECTED);
        let mut candidates = Candidates {
            view,
            events: events.clone(),
            editor: Editor::new(Rules::of(&view.settings.policy)),
            around: Around { view, events, rules, answered: BTreeSet::new(), looked_down_to: u64::MAX },
            first_seq: 1,
            leading: None,
            scanned: Vec::with_capacity(expected as usize),
            fates: Vec::new(),
            next_seq: view.live_at_or_below(view.last_seq),
            groups: Vec::new(),
            awaited: BTreeSet::new(),
        };
        if let Some(meta) = leading_system.filter(|meta| view.last_seq > 0 && stands_alone(meta))
            && view.covering(1).is_none()
        {
            let edited = candidates.editor.edit(1, meta, &mut candidates.around)?;
            if !edited.emptied {
                candidates.leading = Some(candidates.candidate(1, edited));
                candidates.first_seq = 2;
            }
        }
        Ok(candidates)
    }

    pub(super) fn scanned(&self) -> &[Candidate] {
        &self.scanned
    }

    /// The first seq of the log that may be a candidate, and the newest that was not looked at.
    pub(super) fn unread(&self) -> (u64, u64) {
        (self.first_seq, self.next_seq)
    }

    /// Whether nothing is left of a message.
    pub(super) fn emptied(&self, candidate: Candidate) -> bool {
        self.fate(candidate).is_some_and(|fate| fate.emptied)
    }

    /// Why parts of a message, or all, were dropped.
    pub(super) fn reason(&self, candidate: Candidate) -> Option<Reason> {
        self.fate(candidate).and_then(|fate| fate.reason)
    }

    /// A message for the window; to be asked for once.
    pub(super) fn planned(&mut self, candidate: Candidate) -> Result<PlannedMessage, HistoryError> {
        let meta = self.events.get(candidate.seq)?;
        let fate = self.fates.get_mut(candidate.fate as usize);
        Ok(PlannedMessage {
            seq: candidate.seq,
            to_seq: None,
            location: meta.location,
            token_count: candidate.tokens,
            inserted_at_ms: meta.inserted_at_ms,
            edit: fate.map(|fate| std::mem::take(&mut fate.edit)).unwrap_or_default(),
        })
    }

    fn fate(&self, candidate: Candidate) -> Option<&Fate> {
        self.fates.get(candidate.fate as usize)
    }

    fn group(&self, position: usize) -> Option<&Group> {
        self.fate(self.scanned[position])?.group.map(|group| &self.groups[group as usize])
    }

    fn candidate(&mut self, seq: u64, edited: Edited) -> Candidate {
        let Edited { edit, token_count, emptied, reason } = edited;
        let mut fate = PLAIN;
        if edit != Edit::Whole || emptied {
            fate = self.fates.len() as u32;
            self.fates.push(Fate { edit, emptied, reason, group: None });
        }
        Candidate { seq, tokens: token_count, fate }
    }

    /// Whether there is a candidate at `position`; reads on if need be.
    pub(super) fn reach(&mut self, position: usize) -> Result<bool, HistoryError> {
        while self.scanned.len() <= position {
            if self.next_seq == 0 {
                return Ok(false);
            }
            self.scan_next()?;
        }
        Ok(true)
    }

    /// What the candidate at `position` is taken or left with; reads on until the whole group is known.
    pub(super) fn unit(&mut self, position: usize) -> Result<Unit, HistoryError> {
        while let Some(group) = self.group(position) {
            if group.reaches_seq <= self.next_seq && self.next_seq > 0 {
                self.scan_next()?;
                continue;
            }
            let tokens = group.members.iter().map(|&member| u64::from(self.scanned[member as usize].tokens));
            return Ok(Unit { tokens: tokens.sum(), messages: group.members.len() as u64 });
        }
        Ok(Unit { tokens: self.scanned[position].tokens.into(), messages: 1 })
    }

    /// The positions of the group that `position` belongs to, itself included.
    pub(super) fn tied_to(&self, position: usize) -> Option<&[u32]> {
        self.group(position).map(|group| group.members.as_slice())
    }

    /// Reads one message more, or as many single texts as come in one piece.
    fn scan_next(&mut self) -> Result<(), HistoryError> {
        let seq = self.next_seq;
        if self.leading.is_some() && seq == 1 {
            self.next_seq = 0;
            return Ok(());
        }
        let metas = self.events.run_up_to(seq)?;
        let unbroken = (seq + 1 - self.view.live_since(seq).max(self.first_seq)) as usize;
        let texts =
            metas.iter().rev().take(unbroken.min(BATCH)).take_while(|meta| meta.parts.listed().is_none());
        let mut next = seq;
        if self.editor.keeps_text() {
            for meta in texts {
                self.scanned.push(Candidate { seq: next, tokens: meta.token_count, fate: PLAIN });
                next -= 1;
            }
        }
        if next == seq {
            let edited = self.editor.edit(seq, &metas[metas.len() - 1], &mut self.around)?;
            let candidate = self.candidate(seq, edited);
            self.scanned.push(candidate);
            self.tie(seq);
            next -= 1;
        }
        self.next_seq = self.view.live_at_or_below(next);
        Ok(())
    }

    /// Joins the newest scanned candidate to those that answer it, and notes whom it answers.
    fn tie(&mut self, seq: u64) {
        let position = self.scanned.len() as u32 - 1;
        while let Some(&(_, answering)) = self.awaited.last().filter(|(call_seq, _)| *call_seq == seq) {
            self.awaited.remove(&(seq, answering));
            self.join(position, answering);
        }
        for n in 0..self.editor.answers().len() {
            let call_seq = self.editor.answers()[n];
            let group = self.group_of(position);
            let reaches_seq = &mut self.groups[group as usize].reaches_seq;
            *reaches_seq = call_seq.min(*reaches_seq);
            self.awaited.insert((call_seq, position));
        }
    }

    fn group_of(&mut self, position: u32) -> u32 {
        let candidate = &mut self.scanned[position as usize];
        if candidate.fate == PLAIN {
            candidate.fate = self.fates.len() as u32;
            self.fates.push(Fate::default());
        }
        let next = self.groups.len() as u32;
        let group = *self.fates[candidate.fate as usize].group.get_or_insert(next);
        if group == next {
            self.groups.push(Group { members: vec![position], reaches_seq: candidate.seq });
        }
        group
    }

    /// Moves the members of the smaller group into the larger.
    fn join(&mut self, a: u32, b: u32) {
        let (mut from, mut into) = (self.group_of(a), self.group_of(b));
        if from == into {
            return;
        }
        if self.groups[from as usize].members.len() > self.groups[into as usize].members.len() {
            std::mem::swap(&mut from, &mut into);
        }
        let moved = std::mem::take(&mut self.groups[from as usize]);
        for &member in &moved.members {
            let fate = self.scanned[member as usize].fate;
            self.fates[fate as usize].group = Some(into);
        }
        let group = &mut self.groups[into as usize];
        group.reaches_seq = group.reaches_seq.min(moved.reaches_seq);
        group.members.extend(moved.members);
    }
}

/// Whether a message takes no part in any exchange with a tool.
fn stands_alone(meta: &MessageMeta) -> bool {
    meta.parts.listed().is_none_or(|parts| parts.iter().all(|part| part.tool == ToolLink::None))
}

/// The log around a live message.
struct Around<'a> {
    view: &'a View<'a>,
    events: Events<'a>,
    rules: Rules<'a>,
    /// Live calls whose results were compacted away, by seq and part ...
    answered: BTreeSet<(u64, u32)>,
    /// ... as far as it was looked for them: down to this seq.
    looked_down_to: u64,
}

impl Surroundings for Around<'_> {
    fn call(&mut self, seq: u64, part: u32) -> Result<CallFate, HistoryError> {
        if self.view.covering(seq).is_some() {
            return Ok(CallFate::CompactedAway);
        }
        if !self.rules.skips() {
            return Ok(CallFate::Kept);
        }
        Ok(self.rules.fate(self.events.get(seq)?, part))
    }

    /// Asked for falling seqs. Looks through what was compacted after `seq`, within reach, and at nothing twice: for a
    /// call with a live result, or with no summary after it, nobody asks.
    fn answered_in_summary(&mut self, seq: u64, part: u32) -> Result<bool, HistoryError> {
        let end = self.looked_down_to.min(seq.saturating_add(PAIR_REACH + 1));
        let after = self.view.summaries.partition_point(|summary| summary.to_seq <= seq);
        for summary in &self.view.summaries[after..] {
            for covered in summary.from_seq.max(seq + 1)..end.min(summary.to_seq + 1) {
                let meta = self.events.get(covered)?;
                for part in meta.parts.listed().unwrap_or_default() {
                    let ToolLink::Result(Some(call)) = part.tool else { continue };
                    let call_seq = covered.saturating_sub(call.back.into());
                    if self.view.covering(call_seq).is_none() {
                        self.answered.insert((call_seq, call.part));
                    }
                }
            }
        }
        self.looked_down_to = self.looked_down_to.min(seq + 1);
        Ok(self.answered.contains(&(seq, part)))
    }
}
