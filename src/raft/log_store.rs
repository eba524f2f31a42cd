//! One group's Raft log over the node's shared journal.
//!
//! The journal has the bytes; [`GroupLog`] says where. A completion fires only when the write and all before it in the
//! journal are on disk, which is stronger than openraft asks for.

use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::sync::Arc;

use bytes::Bytes;
use openraft::storage::{IOFlushed, LogState, RaftLogStorage};
use openraft::{EntryPayload, OptionalSend, RaftLogReader};
use parking_lot::Mutex;

use super::codec::{self, ENTRY_HEADER_BYTES, EntryKind, ImportBegin};
use super::group_log::{GroupLog, Retained};
use super::image::ImageState;
use super::log_reader::LogReader;
use super::rpc::ENTRY_OVERHEAD_BYTES;
use super::types::{Entry, LogId, ReplicaId, TypeConfig, Vote};
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
            state.append(entry, frame, body);
        }
        Ok(())
    }

    /// Entries from `start` to before `end`, so many as take `bytes_max` bytes in a request; at least one.
    pub(super) fn read_some(&self, start: u64, end: u64, bytes_max: usize) -> io::Result<Vec<Entry>> {
        let mut bytes = 0;
        let fits = |entry: &&Retained| {
            let is_first = bytes == 0;
            bytes += ENTRY_OVERHEAD_BYTES + entry.command_bytes();
            is_first || bytes <= bytes_max
        };
        let entries: Vec<Retained> = self.state.lock().range(start, end).take_while(fits).cloned().collect();
        self.load(entries)
    }

    /// Payloads that were dropped from memory come from the journal again.
    fn load(&self, entries: Vec<Retained>) -> io::Result<Vec<Entry>> {
        let read = |at: Position, len| self.journal.read(at.segment, at.offset, len);
        entries.into_iter().map(|entry| entry.load(read)).collect()
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
        let entries: Vec<Retained> = self.state.lock().range(from, end).cloned().collect();
        self.load(entries)
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

#[cfg(test)]
mod tests;
