//! The live messages of a window to be, read from the newest back and only as far as somebody asks.
//!
//! Messages that calls and results tie together form groups, which are in the window or out of it as one.

use std::collections::{BTreeMap, BTreeSet};

use super::edits::{CallFate, Edited, Editor, Rules, Surroundings};
use super::view::View;
use super::{Edit, PlannedMessage, Reason};
use crate::conversation::history::Events;
use crate::conversation::message::{EventRef, MessageMeta, ToolLink};
use crate::conversation::pairing::PAIR_REACH;
use crate::conversation::runs::HistoryError;

/// A live message after its edit.
pub(super) struct Candidate {
    /// With the tokens left after the edit.
    pub(super) event: EventRef,
    pub(super) edit: Edit,
    /// Nothing is left of it.
    pub(super) emptied: bool,
    /// Why parts of it, or all, were dropped.
    pub(super) reason: Option<Reason>,
    group: Option<u32>,
}

impl Candidate {
    fn new(seq: u64, meta: &MessageMeta, edited: Edited) -> Candidate {
        let event = EventRef { token_count: edited.token_count, ..meta.event(seq) };
        Candidate { event, edit: edited.edit, emptied: edited.emptied, reason: edited.reason, group: None }
    }

    pub(super) fn tokens(&self) -> u64 {
        self.event.token_count.into()
    }

    pub(super) fn seq(&self) -> u64 {
        self.event.seq
    }

    pub(super) fn into_planned(self) -> PlannedMessage {
        PlannedMessage {
            seq: self.event.seq,
            to_seq: None,
            location: self.event.location,
            token_count: self.event.token_count,
            inserted_at_ms: self.event.inserted_at_ms,
            edit: self.edit,
        }
    }
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
    editor: Editor<'a>,
    around: Around<'a>,
    /// The first message of the log, when it is a system message that stays.
    pub(super) leading: Option<Candidate>,
    /// Newest first.
    scanned: Vec<Candidate>,
    /// The next seq to look at; 0 when there is none.
    next_seq: u64,
    groups: Vec<Group>,
    /// Messages not reached yet, with the candidates that answer their calls.
    awaited: BTreeMap<u64, Vec<u32>>,
}

impl<'a> Candidates<'a> {
    pub(super) fn new(
        view: &'a View<'a>,
        events: Events<'a>,
        leading_system: Option<&MessageMeta>,
    ) -> Result<Candidates<'a>, HistoryError> {
        let rules = Rules::of(&view.settings.policy);
        let mut candidates = Candidates {
            view,
            editor: Editor::new(Rules::of(&view.settings.policy)),
            around: Around { view, events, rules, answered: BTreeSet::new(), looked_down_to: u64::MAX },
            leading: None,
            scanned: Vec::new(),
            next_seq: view.live_at_or_below(view.last_seq),
            groups: Vec::new(),
            awaited: BTreeMap::new(),
        };
        if let Some(meta) = leading_system.filter(|meta| view.last_seq > 0 && stands_alone(meta))
            && view.covering(1).is_none()
        {
            let edited = candidates.editor.edit(1, meta, &mut candidates.around)?;
            candidates.leading = (!edited.emptied).then(|| Candidate::new(1, meta, edited));
        }
        Ok(candidates)
    }

    pub(super) fn scanned(&self) -> &[Candidate] {
        &self.scanned
    }

    /// The live seqs from here down were not looked at.
    pub(super) fn next_seq(&self) -> u64 {
        self.next_seq
    }

    pub(super) fn into_scanned(self) -> Vec<Candidate> {
        self.scanned
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
        while let Some(group) = self.scanned[position].group {
            if self.groups[group as usize].reaches_seq <= self.next_seq && self.next_seq > 0 {
                self.scan_next()?;
                continue;
            }
            let members = &self.groups[group as usize].members;
            let tokens = members.iter().map(|&member| self.scanned[member as usize].tokens()).sum();
            return Ok(Unit { tokens, messages: members.len() as u64 });
        }
        Ok(Unit { tokens: self.scanned[position].tokens(), messages: 1 })
    }

    /// The positions of the group that `position` belongs to, itself included.
    pub(super) fn tied_to(&self, position: usize) -> Option<&[u32]> {
        self.scanned[position].group.map(|group| self.groups[group as usize].members.as_slice())
    }

    fn scan_next(&mut self) -> Result<(), HistoryError> {
        let seq = self.next_seq;
        self.next_seq = self.view.live_at_or_below(seq - 1);
        if self.leading.is_some() && seq == 1 {
            return Ok(());
        }
        let meta = self.around.events.get(seq)?;
        if meta.parts.listed().is_none() {
            let edited = self.editor.edit_text(meta.token_count);
            self.scanned.push(Candidate::new(seq, meta, edited));
            return Ok(());
        }
        let meta = meta.clone();
        let mut edited = self.editor.edit(seq, &meta, &mut self.around)?;
        let answers = std::mem::take(&mut edited.answers);
        self.scanned.push(Candidate::new(seq, &meta, edited));
        self.tie(seq, answers);
        Ok(())
    }

    /// Joins the newest scanned candidate to those that answer it, and notes whom it answers.
    fn tie(&mut self, seq: u64, answers: Vec<u64>) {
        let position = self.scanned.len() as u32 - 1;
        for answering in self.awaited.remove(&seq).unwrap_or_default() {
            self.join(position, answering);
        }
        for call_seq in answers {
            let group = self.group_of(position);
            let reaches_seq = &mut self.groups[group as usize].reaches_seq;
            *reaches_seq = call_seq.min(*reaches_seq);
            self.awaited.entry(call_seq).or_default().push(position);
        }
    }

    fn group_of(&mut self, position: u32) -> u32 {
        let next = self.groups.len() as u32;
        let candidate = &mut self.scanned[position as usize];
        let group = *candidate.group.get_or_insert(next);
        if group == next {
            self.groups.push(Group { members: vec![position], reaches_seq: candidate.event.seq });
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
            self.scanned[member as usize].group = Some(into);
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
