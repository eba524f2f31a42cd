//! Readers over a conversation's whole history: what is still open in the record, and what was sealed.

use std::sync::Arc;

use super::message::MessageMeta;
use super::runs::{Change, ChangeRun, EventRun, History, HistoryError, run_of};
use super::{Conversation, ConversationId};

/// Messages by seq. Keeps the last two sealed runs it read, so that walking along costs one lookup per run even when
/// every message makes a second look elsewhere.
#[derive(Clone)]
pub(super) struct Events<'a> {
    conversation: &'a Conversation,
    id: &'a ConversationId,
    history: &'a dyn History,
    open_first_seq: u64,
    recent: [Option<Arc<EventRun>>; 2],
}

impl<'a> Events<'a> {
    pub(super) fn new(
        conversation: &'a Conversation,
        id: &'a ConversationId,
        history: &'a dyn History,
    ) -> Events<'a> {
        let open_first_seq = conversation.open_first_seq();
        Events { conversation, id, history, open_first_seq, recent: [None, None] }
    }

    /// The message at `seq`, which must lie in the log.
    pub(super) fn get(&mut self, seq: u64) -> Result<&MessageMeta, HistoryError> {
        self.run_up_to(seq).map(|metas| metas.last().expect("never empty"))
    }

    /// The messages from the beginning of the run that holds `seq` up to it. Never empty.
    pub(super) fn run_up_to(&mut self, seq: u64) -> Result<&[MessageMeta], HistoryError> {
        if let Some(position) = seq.checked_sub(self.open_first_seq) {
            let missing = || HistoryError::Missing { what: "event", key: seq, id: self.id.clone() };
            return self.conversation.open.get(..=position as usize).ok_or_else(missing);
        }
        let first = run_of(seq);
        let holds = |run: &Option<Arc<EventRun>>| run.as_ref().is_some_and(|run| run.first_seq() == first);
        if !holds(&self.recent[0]) {
            self.recent.swap(0, 1);
        }
        if !holds(&self.recent[0]) {
            let run = self.history.event_run(self.id, first)?;
            if run.first_seq() != first {
                return Err(HistoryError::Missing { what: "event run", key: first, id: self.id.clone() });
            }
            self.recent[0] = Some(run);
        }
        let run = self.recent[0].as_ref().expect("filled above");
        Ok(&run.metas()[..=(seq - first) as usize])
    }
}

/// Changes by version.
pub(super) struct Changes<'a> {
    conversation: &'a Conversation,
    id: &'a ConversationId,
    history: &'a dyn History,
}

/// One run of changes, sealed or open.
pub(super) enum Chunk<'a> {
    Sealed(Arc<ChangeRun>),
    Open { before: u64, changes: &'a [Change] },
}

impl Chunk<'_> {
    pub(super) fn changes(&self) -> &[Change] {
        match self {
            Chunk::Sealed(run) => run.changes(),
            Chunk::Open { changes, .. } => changes,
        }
    }

    /// How many changes (with creation) there are up to `version`, which must not lie before this chunk.
    pub(super) fn count_up_to(&self, version: u64) -> u64 {
        let before = match self {
            Chunk::Sealed(run) => run.before(),
            Chunk::Open { before, .. } => *before,
        };
        before + self.changes().partition_point(|change| change.version <= version) as u64
    }
}

impl<'a> Changes<'a> {
    pub(super) fn new(
        conversation: &'a Conversation,
        id: &'a ConversationId,
        history: &'a dyn History,
    ) -> Changes<'a> {
        Changes { conversation, id, history }
    }

    /// Chunks are numbered from 0; the open one comes last.
    pub(super) fn last_chunk(&self) -> u64 {
        self.conversation.sealed_change_runs
    }

    pub(super) fn chunk(&self, number: u64) -> Result<Chunk<'a>, HistoryError> {
        if number >= self.last_chunk() {
            let before = self.conversation.sealed_changes;
            return Ok(Chunk::Open { before, changes: &self.conversation.changes });
        }
        let run = self.history.change_run(self.id, number)?;
        if run.number() != number {
            return Err(HistoryError::Missing { what: "change run", key: number, id: self.id.clone() });
        }
        Ok(Chunk::Sealed(run))
    }

    /// The newest seq as of `version`, which the conversation must have reached.
    pub(super) fn last_seq_at(&self, version: u64) -> Result<u64, HistoryError> {
        // Creation is the one change that versions do not count.
        Ok((version + 1).saturating_sub(self.chunk(self.chunk_at(version)?)?.count_up_to(version)))
    }

    /// The number of the chunk that holds the newest change up to `version`.
    pub(super) fn chunk_at(&self, version: u64) -> Result<u64, HistoryError> {
        let begins_by = |chunk: &[Change]| chunk.first().is_some_and(|first| first.version <= version);
        if begins_by(&self.conversation.changes) {
            return Ok(self.last_chunk());
        }
        // The first sealed run begins with creation, at version 0.
        let (mut low, mut high) = (0, self.last_chunk());
        while high - low > 1 {
            let middle = low + (high - low) / 2;
            if begins_by(self.chunk(middle)?.changes()) {
                low = middle;
            } else {
                high = middle;
            }
        }
        Ok(low)
    }
}
