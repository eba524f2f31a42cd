//! One group's Raft log over the node's shared journal.
//!
//! The journal has the bytes; this keeps, per retained entry, its log id and where it lies, plus the payload until
//! the state machine has applied it. A completion fires only when the write and all before it in the journal are
//! on disk, which is stronger than openraft asks for.

use std::collections::VecDeque;
use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::sync::Arc;

use bytes::Bytes;
use openraft::entry::RaftEntry;
use openraft::storage::{IOFlushed, LogState, RaftLogStorage};
use openraft::{EntryPayload, OptionalSend, RaftLogReader};
use parking_lot::Mutex;

use super::codec::{self, ENTRY_HEADER_BYTES, EntryKind, ImportBegin};
use super::image::ImageState;
use super::log_reader::LogReader;
use super::rpc::ENTRY_OVERHEAD_BYTES;
use super::types::{Entry, Host, LogId, Membership, Proposal, ReplicaId, TypeConfig, Vote};
use crate::journal::{Completion, Draft, FRAME_HEADER_BYTES, FrameKind, Journal, Position};

/// Entries that openraft hands over together are cut into appends of about this many bytes, since one append must
/// fit into a segment.
const APPEND_BYTES_MAX: u64 = 4 << 20;

/// The log of one group. Clones share it: openraft's writer, its readers and the state machine.
#[derive(Clone)]
pub(crate) struct LogStore {
    pub(super) group: u16,
    journal: Journal,
    pub(super) state: Arc<Mutex<GroupLog>>,
}

/// What the journal holds of one group's log, as far as it is retained.
#[derive(Debug, Clone, Default)]
pub(crate) struct GroupLog {
    /// The replica this log belongs to; 0 while the node hosts none of the group.
    pub(crate) replica: ReplicaId,
    pub(crate) vote: Option<Vote>,
    pub(crate) committed: Option<LogId>,
    pub(crate) purged: Option<LogId>,
    /// Entries after `purged`, contiguous.
    entries: VecDeque<Slot>,
    /// Where frames begin at the earliest that are being written: what they say is not in this state yet.
    writing_from: Option<Position>,
    /// Where the frames of a snapshot begin that is on its way.
    import_from: Option<Position>,
    /// Where those of an installed snapshot begin that the index does not durably hold yet.
    installed_from: Option<Position>,
    pub(super) image: ImageState,
}

/// An entry on its way to be applied.
pub(crate) type Logged = (LogId, EntryPayload<Proposal, ReplicaId, Host>);

#[derive(Debug, Clone)]
struct Slot {
    log_id: LogId,
    /// First byte of the frame's payload.
    frame: Position,
    body: SlotBody,
}

#[derive(Debug, Clone)]
enum SlotBody {
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
        self.entries.back().map(|slot| slot.log_id).or(self.purged)
    }

    /// Where recovery must begin to see every retained entry, an unfinished snapshot, and what this state does not say yet.
    pub(crate) fn first_retained(&self) -> Option<Position> {
        let entry = self.entries.front().map(|slot| slot.frame);
        let others = [self.writing_from, self.import_from, self.installed_from];
        entry.into_iter().chain(others.into_iter().flatten()).min()
    }

    /// The last entry up to index `upto` whose frame lies before `cutoff`.
    pub(crate) fn last_before(&self, cutoff: Position, upto: u64) -> Option<u64> {
        let old = |slot: &&Slot| slot.frame < cutoff && slot.log_id.index <= upto;
        self.entries.iter().take_while(old).last().map(|slot| slot.log_id.index)
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
            EntryKind::Blank => SlotBody::Blank,
            EntryKind::Membership => SlotBody::Membership(codec::decode_membership(&body)?),
            EntryKind::Command => {
                let len = body.len() as u32;
                SlotBody::Command { len, bytes: (Some(log_id.index) > applied).then_some(body) }
            }
        };
        if self.purged.is_some_and(|purged| log_id.index <= purged.index) {
            return Ok(());
        }
        self.truncate_from(log_id.index);
        self.entries.push_back(Slot { log_id, frame, body });
        Ok(())
    }

    pub(crate) fn truncate_after(&mut self, last: Option<LogId>) {
        self.truncate_from(last.map_or(0, |id| id.index + 1));
    }

    pub(crate) fn purge(&mut self, upto: LogId) {
        while self.entries.front().is_some_and(|slot| slot.log_id.index <= upto.index) {
            self.entries.pop_front();
        }
        if self.purged.is_none_or(|purged| purged.index < upto.index) {
            self.purged = Some(upto);
        }
    }

    /// The first retained entry from index `from` on, if it is known to be committed.
    pub(crate) fn first_committed_from(&self, from: u64) -> Option<u64> {
        let end = self.committed.map_or(0, |id| id.index + 1);
        self.range(from, end).next().map(|slot| slot.log_id.index)
    }

    /// Whether it has every entry from the first that is retained to the last.
    pub(crate) fn is_whole(&self) -> bool {
        let after = self.purged.map_or(0, |purged| purged.index + 1);
        (after..).zip(&self.entries).all(|(index, slot)| slot.log_id.index == index)
    }

    /// Committed entries from index `from` on, as far as they are here, until they come to `bytes`. `read` gets the payloads
    /// that are not in memory.
    pub(crate) fn committed_from(
        &self,
        from: u64,
        bytes: usize,
        read: &dyn Fn(Position, u32) -> io::Result<Bytes>,
    ) -> io::Result<Vec<Logged>> {
        let end = self.committed.map_or(0, |id| id.index + 1);
        let mut taken = 0;
        let until_enough = self.range(from, end).take_while(|slot| {
            let is_taken = taken < bytes;
            taken += slot.command_bytes();
            is_taken
        });
        let entries = until_enough.map(|slot| {
            let entry = match &slot.body {
                SlotBody::Command { bytes: None, len } => slot.entry(read(slot.command_at(), *len)?),
                _ => slot.entry(slot.payload().unwrap_or_default()),
            };
            Ok((slot.log_id, entry.payload))
        });
        entries.collect()
    }

    /// Drops the payloads of entries up to `index`: the journal still has them.
    pub(crate) fn forget_payloads(&mut self, from: u64, upto: u64) {
        let Some(first) = self.entries.front().map(|slot| slot.log_id.index) else { return };
        let range = from.saturating_sub(first) as usize
            ..((upto + 1).saturating_sub(first) as usize).min(self.entries.len());
        for index in range {
            if let SlotBody::Command { bytes, .. } = &mut self.entries[index].body {
                *bytes = None;
            }
        }
    }

    fn truncate_from(&mut self, index: u64) {
        while self.entries.back().is_some_and(|slot| slot.log_id.index >= index) {
            self.entries.pop_back();
        }
    }

    /// Slots of `[from, end)` that are retained.
    fn range(&self, from: u64, end: u64) -> impl Iterator<Item = &Slot> {
        let first = self.entries.front().map_or(0, |slot| slot.log_id.index);
        let stop = (end.saturating_sub(first) as usize).min(self.entries.len());
        let start = (from.saturating_sub(first) as usize).min(stop);
        self.entries.range(start..stop)
    }
}

impl Slot {
    fn payload(&self) -> Option<Bytes> {
        match &self.body {
            SlotBody::Command { bytes, .. } => bytes.clone(),
            _ => None,
        }
    }

    fn command_bytes(&self) -> usize {
        match &self.body {
            SlotBody::Command { len, .. } => *len as usize,
            _ => 0,
        }
    }

    fn command_at(&self) -> Position {
        Position { segment: self.frame.segment, offset: self.frame.offset + ENTRY_HEADER_BYTES as u32 }
    }

    fn entry(&self, command: Bytes) -> Entry {
        let payload = match &self.body {
            SlotBody::Blank => EntryPayload::Blank,
            SlotBody::Membership(membership) => EntryPayload::Membership(membership.clone()),
            SlotBody::Command { .. } => {
                EntryPayload::Normal(Proposal { command, at: Some(self.command_at()) })
            }
        };
        Entry::new(self.log_id, payload)
    }
}

impl LogStore {
    pub(crate) fn new(group: u16, journal: Journal, recovered: GroupLog) -> Self {
        Self { group, journal, state: Arc::new(Mutex::new(recovered)) }
    }

    /// Whether the disk has not taken what it was given for so long that nobody should wait for it.
    pub(crate) fn disk_hangs(&self) -> bool {
        self.journal.hangs()
    }

    /// A look at the log's state under its lock.
    pub(crate) fn with<T>(&self, f: impl FnOnce(&GroupLog) -> T) -> T {
        f(&self.state.lock())
    }

    /// The state machine has applied `[from, upto]`: their payloads need not stay in memory.
    pub(crate) fn applied(&self, from: u64, upto: u64) {
        self.state.lock().forget_payloads(from, upto);
    }

    pub(crate) fn journal(&self) -> &Journal {
        &self.journal
    }

    /// From here on the log is that of another replica, or of none: durable on return, and empty.
    pub(crate) async fn adopt(&self, replica: ReplicaId) -> io::Result<()> {
        let _writing = self.writing();
        self.write_synced(FrameKind::Replica, &codec::encode_replica(replica)).await?;
        *self.state.lock() = GroupLog::of(replica);
        Ok(())
    }

    /// To be held from before a frame is written until the state says the same: a checkpoint in between must not have
    /// recovery begin behind the frame. One at a time for each group, as openraft calls its log.
    fn writing(&self) -> Writing<'_> {
        let mut state = self.state.lock();
        // Under the lock: whoever looks at the state later sees this, and the frame lies behind who looked before.
        state.writing_from = Some(self.journal.end());
        Writing(self)
    }

    /// Opens a snapshot's frames in the journal, or goes on with those that an interrupted transfer left. Recovery sees
    /// them all until [`LogStore::import_durable`].
    /// Returns from where recovery sees them.
    pub(crate) async fn begin_import(&self, begin: &ImportBegin) -> io::Result<Position> {
        let from = {
            // Before the frame is written: a checkpoint in between must not begin behind it.
            let mut state = self.state.lock();
            let kept = state.import_from.filter(|_| begin.kept > 0);
            *state.import_from.insert(kept.unwrap_or(self.journal.end()))
        };
        self.write(FrameKind::ImportBegin, &begin.encode(), None).await?;
        Ok(from)
    }

    /// Appends blocks of a snapshot; together they are no larger than what may be appended at once.
    pub(crate) async fn write_import(&self, blocks: &[Bytes]) -> io::Result<Vec<Position>> {
        let parts: Vec<[&[u8]; 1]> = blocks.iter().map(|block| [&block[..]]).collect();
        let drafts: Vec<Draft<'_>> = parts
            .iter()
            .map(|payload| Draft { kind: FrameKind::Import, group: self.group, payload })
            .collect();
        self.journal.append(&drafts, None).await.map_err(io::Error::other)
    }

    /// The snapshot whose frames begin there will not be installed.
    pub(crate) fn abandon_import(&self, from: Position) {
        let mut state = self.state.lock();
        state.import_from = state.import_from.filter(|at| *at != from);
    }

    /// The index holds the snapshot.
    pub(crate) fn end_import(&self) {
        let mut state = self.state.lock();
        state.image = ImageState::Allowed;
        let from = state.import_from.take();
        state.installed_from = state.installed_from.or(from);
    }

    /// Whether an installed snapshot waits for the index to become durable.
    pub(crate) fn is_imported(&self) -> bool {
        self.state.lock().installed_from.is_some()
    }

    /// The index durably holds the installed snapshot.
    pub(crate) fn import_durable(&self) {
        self.state.lock().installed_from = None;
    }

    /// Writes one frame; `done` as in [`Journal::append`].
    pub(crate) async fn write(
        &self,
        kind: FrameKind,
        payload: &[u8],
        done: Option<Completion>,
    ) -> io::Result<Position> {
        let draft = Draft { kind, group: self.group, payload: &[payload] };
        let positions = self.journal.append(&[draft], done).await.map_err(io::Error::other)?;
        Ok(positions[0])
    }

    pub(crate) async fn write_synced(&self, kind: FrameKind, payload: &[u8]) -> io::Result<()> {
        let (tx, rx) = tokio::sync::oneshot::channel();
        let done: Completion = Box::new(move |result| drop(tx.send(result)));
        self.write(kind, payload, Some(done)).await?;
        rx.await.map_err(|_| io::Error::other("the journal stopped"))?
    }

    /// Writes entries as one append, then makes them readable.
    async fn append_batch(&self, batch: Vec<Encoded>, done: Option<Completion>) -> io::Result<()> {
        let _writing = self.writing();
        let parts: Vec<[&[u8]; 2]> = batch.iter().map(|e| [&e.header[..], &e.body[..]]).collect();
        let drafts: Vec<Draft<'_>> = parts
            .iter()
            .map(|payload| Draft { kind: FrameKind::Entry, group: self.group, payload })
            .collect();
        let frames = self.journal.append(&drafts, done).await.map_err(io::Error::other)?;
        let mut state = self.state.lock();
        for (Encoded { entry, body, .. }, frame) in batch.into_iter().zip(frames) {
            let body = match entry.payload {
                EntryPayload::Blank => SlotBody::Blank,
                EntryPayload::Membership(membership) => SlotBody::Membership(membership),
                EntryPayload::Normal(_) => SlotBody::Command { len: body.len() as u32, bytes: Some(body) },
            };
            state.truncate_from(entry.log_id.index);
            state.entries.push_back(Slot { log_id: entry.log_id, frame, body });
        }
        Ok(())
    }

    /// Entries from `start` to before `end`, so many as take `bytes_max` bytes in a request; at least one.
    pub(super) fn read_some(&self, start: u64, end: u64, bytes_max: usize) -> io::Result<Vec<Entry>> {
        let mut bytes = 0;
        let fits = |slot: &&Slot| {
            let is_first = bytes == 0;
            bytes += ENTRY_OVERHEAD_BYTES + slot.command_bytes();
            is_first || bytes <= bytes_max
        };
        let slots = self.state.lock().range(start, end).take_while(fits).cloned().collect();
        self.load(slots)
    }

    /// Payloads that were dropped from memory come from the journal again.
    fn load(&self, slots: Vec<Slot>) -> io::Result<Vec<Entry>> {
        slots
            .into_iter()
            .map(|slot| match &slot.body {
                SlotBody::Command { bytes: None, len } => {
                    let at = slot.command_at();
                    let bytes = self.journal.read(at.segment, at.offset, *len)?;
                    Ok(slot.entry(bytes))
                }
                _ => Ok(slot.entry(slot.payload().unwrap_or_default())),
            })
            .collect()
    }
}

impl RaftLogReader<TypeConfig> for LogStore {
    async fn try_get_log_entries<RB>(&mut self, range: RB) -> Result<Vec<Entry>, io::Error>
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let from = match range.start_bound() {
            Bound::Included(index) => *index,
            Bound::Excluded(index) => index + 1,
            Bound::Unbounded => 0,
        };
        let end = match range.end_bound() {
            Bound::Included(index) => index + 1,
            Bound::Excluded(index) => *index,
            Bound::Unbounded => u64::MAX,
        };
        let slots = self.state.lock().range(from, end).cloned().collect();
        self.load(slots)
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, io::Error> {
        Ok(self.state.lock().vote)
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = LogReader;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, io::Error> {
        let state = self.state.lock();
        Ok(LogState { last_purged_log_id: state.purged, last_log_id: state.last() })
    }

    async fn get_log_reader(&mut self) -> LogReader {
        LogReader::new(self.clone())
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), io::Error> {
        let _writing = self.writing();
        self.write_synced(FrameKind::Vote, &codec::encode_vote(vote)).await?;
        self.state.lock().vote = Some(*vote);
        Ok(())
    }

    /// Rides along with the next batch: losing it only means that the tail is committed anew.
    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), io::Error> {
        self.state.lock().committed = committed;
        self.write(FrameKind::Committed, &codec::encode_log_id(committed.as_ref()), None).await.map(drop)
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, io::Error> {
        let state = self.state.lock();
        Ok(state.committed.min(state.last()))
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<TypeConfig>) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut entries = entries.into_iter().map(Encoded::new).peekable();
        let mut callback = Some(callback);
        while entries.peek().is_some() {
            let mut bytes = 0;
            let mut batch = Vec::new();
            let room = self.journal.append_bytes_max().min(APPEND_BYTES_MAX);
            while let Some(entry) = entries.next_if(|e| batch.is_empty() || bytes + e.disk_bytes() <= room) {
                bytes += entry.disk_bytes();
                batch.push(entry);
            }
            let done = match entries.peek() {
                Some(_) => None,
                None => callback
                    .take()
                    .map(|callback| -> Completion { Box::new(|result| callback.io_completed(result)) }),
            };
            self.append_batch(batch, done).await?;
        }
        Ok(())
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> Result<(), io::Error> {
        let _writing = self.writing();
        self.write_synced(FrameKind::TruncateAfter, &codec::encode_log_id(last.as_ref())).await?;
        self.state.lock().truncate_after(last);
        Ok(())
    }

    async fn purge(&mut self, upto: LogId) -> Result<(), io::Error> {
        self.write(FrameKind::PurgeTo, &codec::encode_log_id(Some(&upto)), None).await?;
        self.state.lock().purge(upto);
        Ok(())
    }
}

/// See [`LogStore::writing`].
struct Writing<'a>(&'a LogStore);

impl Drop for Writing<'_> {
    fn drop(&mut self) {
        self.0.state.lock().writing_from = None;
    }
}

/// An entry with its frame's payload.
struct Encoded {
    entry: Entry,
    header: [u8; ENTRY_HEADER_BYTES],
    body: Bytes,
}

impl Encoded {
    fn disk_bytes(&self) -> u64 {
        (FRAME_HEADER_BYTES + ENTRY_HEADER_BYTES + self.body.len()) as u64
    }

    fn new(entry: Entry) -> Self {
        let (kind, body) = match &entry.payload {
            EntryPayload::Blank => (EntryKind::Blank, Bytes::new()),
            EntryPayload::Normal(proposal) => (EntryKind::Command, proposal.command.clone()),
            EntryPayload::Membership(membership) => {
                (EntryKind::Membership, codec::encode_membership(membership).into())
            }
        };
        Self { header: codec::entry_header(&entry.log_id, kind), entry, body }
    }
}
