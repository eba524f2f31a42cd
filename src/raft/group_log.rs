//! What the journal holds of one group's log: per retained entry its log id and where it lies, plus the payload until the
//! state machine has applied it.

use std::collections::VecDeque;
use std::io;

use bytes::Bytes;
use openraft::EntryPayload;
use openraft::entry::RaftEntry;

use super::codec::{self, ENTRY_HEADER_BYTES, EntryKind};
use super::image::ImageState;
use super::types::{Entry, LogId, Membership, Proposal, ReplicaId, Vote};
use crate::journal::Position;

/// What the journal holds of one group's log, as far as it is retained.
#[derive(Debug, Clone, Default)]
pub(crate) struct GroupLog {
    /// The replica this log belongs to; 0 while the node hosts none of the group.
    pub(crate) replica: ReplicaId,
    pub(crate) vote: Option<Vote>,
    pub(crate) committed: Option<LogId>,
    pub(crate) purged: Option<LogId>,
    /// Entries after `purged`, contiguous.
    entries: VecDeque<Retained>,
    /// Where frames begin at the earliest that are being written: what they say is not in this state yet.
    pub(super) writing_from: Option<Position>,
    /// Where the frames of a snapshot begin that is on its way.
    pub(super) import_from: Option<Position>,
    /// Where those of an installed snapshot begin that the index does not durably hold yet.
    pub(super) installed_from: Option<Position>,
    pub(super) image: ImageState,
}

/// An entry that is retained.
#[derive(Debug, Clone)]
pub(super) struct Retained {
    log_id: LogId,
    /// First byte of the frame's payload.
    frame: Position,
    body: Body,
}

#[derive(Debug, Clone)]
enum Body {
    Blank,
    Membership(Membership),
    Command {
        /// Present until applied.
        bytes: Option<Bytes>,
        len: u32,
    },
}

impl GroupLog {
    /// The empty log of a replica.
    pub(crate) fn of(replica: ReplicaId) -> Self {
        Self { replica, ..Self::default() }
    }

    /// Votes only rise.
    pub(crate) fn raise_vote(&mut self, vote: Vote) {
        if self.vote.is_none_or(|held| held < vote) {
            self.vote = Some(vote);
        }
    }

    pub(crate) fn last(&self) -> Option<LogId> {
        self.entries.back().map(|entry| entry.log_id).or(self.purged)
    }

    /// Where recovery must begin to see every retained entry, an unfinished snapshot, and what this state does not say yet.
    pub(crate) fn first_retained(&self) -> Option<Position> {
        let entry = self.entries.front().map(|entry| entry.frame);
        let others = [self.writing_from, self.import_from, self.installed_from];
        entry.into_iter().chain(others.into_iter().flatten()).min()
    }

    /// The last entry up to index `upto` whose frame lies before `cutoff`.
    pub(crate) fn last_before(&self, cutoff: Position, upto: u64) -> Option<u64> {
        let old = |entry: &&Retained| entry.frame < cutoff && entry.log_id.index <= upto;
        self.entries.iter().take_while(old).last().map(|entry| entry.log_id.index)
    }

    /// Takes in an entry frame; an entry at an existing index overrides it and all after it. Payloads up to
    /// `applied` are not kept in memory.
    pub(crate) fn replay_entry(
        &mut self,
        frame: Position,
        payload: &Bytes,
        applied: Option<u64>,
    ) -> Result<(), codec::RecordError> {
        let (log_id, kind, body) = codec::decode_entry(payload)?;
        let body = match kind {
            EntryKind::Blank => Body::Blank,
            EntryKind::Membership => Body::Membership(codec::decode_membership(&body)?),
            EntryKind::Command => {
                let len = body.len() as u32;
                Body::Command { len, bytes: (Some(log_id.index) > applied).then_some(body) }
            }
        };
        if self.purged.is_some_and(|purged| log_id.index <= purged.index) {
            return Ok(());
        }
        self.override_from(Retained { log_id, frame, body });
        Ok(())
    }

    /// Takes in an entry whose frame is being written, with the body of that frame.
    pub(super) fn append(&mut self, entry: Entry, frame: Position, body: Bytes) {
        let log_id = entry.log_id;
        let body = match entry.payload {
            EntryPayload::Blank => Body::Blank,
            EntryPayload::Membership(membership) => Body::Membership(membership),
            EntryPayload::Normal(_) => Body::Command { len: body.len() as u32, bytes: Some(body) },
        };
        self.override_from(Retained { log_id, frame, body });
    }

    pub(crate) fn truncate_after(&mut self, last: Option<LogId>) {
        self.truncate_from(last.map_or(0, |id| id.index + 1));
    }

    pub(crate) fn purge(&mut self, upto: LogId) {
        while self.entries.front().is_some_and(|entry| entry.log_id.index <= upto.index) {
            self.entries.pop_front();
        }
        if self.purged.is_none_or(|purged| purged.index < upto.index) {
            self.purged = Some(upto);
        }
    }

    /// The first retained entry from index `from` on, if it is known to be committed.
    pub(crate) fn first_committed_from(&self, from: u64) -> Option<u64> {
        let end = self.committed.map_or(0, |id| id.index + 1);
        self.range(from, end).next().map(|entry| entry.log_id.index)
    }

    /// Whether it has every entry from the first that is retained to the last.
    pub(crate) fn is_whole(&self) -> bool {
        let after = self.purged.map_or(0, |purged| purged.index + 1);
        (after..).zip(&self.entries).all(|(index, entry)| entry.log_id.index == index)
    }

    /// Committed entries from index `from` on, as far as they are here, until they come to `bytes`. `read` gets the payloads
    /// that are not in memory.
    pub(crate) fn committed_from(
        &self,
        from: u64,
        bytes: usize,
        read: impl Fn(Position, u32) -> io::Result<Bytes>,
    ) -> io::Result<Vec<Entry>> {
        let end = self.committed.map_or(0, |id| id.index + 1);
        let mut taken = 0;
        let until_enough = self.range(from, end).take_while(|entry| {
            let is_taken = taken < bytes;
            taken += entry.command_bytes();
            is_taken
        });
        until_enough.cloned().map(|entry| entry.load(&read)).collect()
    }

    /// Drops the payloads of entries up to `index`: the journal still has them.
    pub(crate) fn forget_payloads(&mut self, from: u64, upto: u64) {
        let Some(first) = self.entries.front().map(|entry| entry.log_id.index) else { return };
        let range = from.saturating_sub(first) as usize
            ..((upto + 1).saturating_sub(first) as usize).min(self.entries.len());
        for index in range {
            if let Body::Command { bytes, .. } = &mut self.entries[index].body {
                *bytes = None;
            }
        }
    }

    fn override_from(&mut self, entry: Retained) {
        self.truncate_from(entry.log_id.index);
        self.entries.push_back(entry);
    }

    fn truncate_from(&mut self, index: u64) {
        while self.entries.back().is_some_and(|entry| entry.log_id.index >= index) {
            self.entries.pop_back();
        }
    }

    /// What is retained of `[from, end)`.
    pub(super) fn range(&self, from: u64, end: u64) -> impl Iterator<Item = &Retained> {
        let first = self.entries.front().map_or(0, |entry| entry.log_id.index);
        let stop = (end.saturating_sub(first) as usize).min(self.entries.len());
        let start = (from.saturating_sub(first) as usize).min(stop);
        self.entries.range(start..stop)
    }
}

impl Retained {
    /// The whole entry; `read` gets a payload that is not in memory.
    pub(super) fn load(self, read: impl Fn(Position, u32) -> io::Result<Bytes>) -> io::Result<Entry> {
        let payload = match self.body {
            Body::Blank => EntryPayload::Blank,
            Body::Membership(membership) => EntryPayload::Membership(membership),
            Body::Command { bytes, len } => {
                let at = Position { offset: self.frame.offset + ENTRY_HEADER_BYTES as u32, ..self.frame };
                let command = bytes.map_or_else(|| read(at, len), Ok)?;
                EntryPayload::Normal(Proposal { command, at: Some(at) })
            }
        };
        Ok(Entry::new(self.log_id, payload))
    }

    pub(super) fn command_bytes(&self) -> usize {
        match &self.body {
            Body::Command { len, .. } => *len as usize,
            _ => 0,
        }
    }
}
