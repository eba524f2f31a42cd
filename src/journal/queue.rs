//! The state that appenders, readers, the writer and the preparer share.
//!
//! One mutex, held only to move memory: encode a frame, take a batch, copy a queued range out. No
//! IO ever happens under it. What readers and pollers ask for most (how far is written, how far is
//! synced, is it poisoned) is also kept where no lock is needed.

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use bytes::Bytes;
use parking_lot::{Condvar, Mutex};
use tokio::sync::Notify;

use super::batch::{Batch, Completion, Draft, Measured, Sealed};
use super::error::AppendError;
use super::format::{BLOCK_BYTES, FRAME_HEADER_BYTES, FrameKind, Position};
use super::options::Options;

/// Who may still append when disk space runs out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Class {
    /// Clients' data: refused with [`AppendError::Full`] once only the reserve is left.
    Data,
    /// Votes, Raft's own entries, what is needed to free space: goes on into the reserve, and
    /// waits when even that is used up.
    Essential,
}

/// How much disk space there is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Space {
    /// More than the reserve.
    Ample,
    /// Only the reserve: `Class::Data` is refused.
    Low,
    /// The next segment could not be created.
    Exhausted,
}

/// A batch on its way to disk.
pub(super) struct Taken {
    pub(super) batch: Arc<Sealed>,
    pub(super) completions: Vec<Completion>,
}

pub(super) struct Queue {
    /// Frames are appended here.
    open: Batch,
    /// Length of the file of `open`'s segment.
    open_limit: u32,
    /// Batches that filled up their segment and have not been taken yet.
    full: VecDeque<Batch>,
    /// The batch being written; readers find its bytes here until they are in the file.
    writing: Option<Arc<Sealed>>,
    /// Where the last queued frame ends.
    end: Position,
    /// Bytes of all frames in `open`, `full` and `writing`.
    queued_bytes: usize,
    /// The highest segment whose file is there to be used.
    prepared: u32,
    space: Space,
    free_bytes: u64,
    closing: bool,
}

/// Where the queue starts after recovery.
pub(super) struct Start {
    /// Where the next batch goes.
    pub(super) base: Position,
    /// Length of that segment's file.
    pub(super) limit: u32,
    /// Where the last recovered frame ends.
    pub(super) end: Position,
    pub(super) epoch: u32,
    /// The highest segment whose file exists.
    pub(super) prepared: u32,
    pub(super) checkpoint: Option<Checkpoint>,
}

/// The newest synced checkpoint.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Checkpoint {
    /// The batch that holds it.
    pub(super) batch: Position,
    pub(super) scan_from: Position,
}

pub(super) struct Shared {
    pub(super) options: Options,
    pub(super) epoch: u32,
    queue: Mutex<Queue>,
    /// Wakes the writer.
    work: Condvar,
    /// Wakes the preparer.
    prepare: Condvar,
    /// Wakes appends that wait for room.
    room: Notify,
    /// Wakes `wait_synced`.
    progress: Notify,
    /// Packed position: everything before it can be read from the files.
    written: AtomicU64,
    /// Packed position: everything before it survives a power loss.
    synced: AtomicU64,
    pub(super) checkpoint: Mutex<Option<Checkpoint>>,
    poison: OnceLock<String>,
    /// The writer thread has ended: nothing will be synced any more.
    stopped: AtomicBool,
}

impl Queue {
    fn open_next(&mut self, base: Position, epoch: u32, buffer: Vec<u8>) -> Batch {
        std::mem::replace(&mut self.open, Batch::new(base, epoch, buffer))
    }

    /// Makes sure that `bytes` of frames fit behind the open batch, in the next segment if need
    /// be. False if that one's file is not there yet.
    fn make_room(&mut self, bytes: u64, shared: &Shared) -> bool {
        if u64::from(self.open.end().offset) + bytes <= u64::from(self.open_limit) {
            return true;
        }
        let next = self.open.base.segment + 1;
        if self.prepared < next {
            shared.prepare.notify_one();
            return false;
        }
        let full = self.open_next(Position::new(next, BLOCK_BYTES), shared.epoch, Vec::new());
        if !full.is_empty() {
            self.full.push_back(full);
        }
        self.open_limit = shared.options.segment_bytes;
        shared.prepare.notify_one();
        true
    }

    fn push(&mut self, draft: &Draft<'_>, measured: Measured) -> Position {
        let position = self.open.push(draft, measured);
        self.queued_bytes += measured.len as usize + FRAME_HEADER_BYTES;
        self.end = self.open.end();
        position
    }

    /// Whether a batch should be written now.
    fn is_urgent(&self) -> bool {
        self.open.urgent || !self.full.is_empty()
    }

    fn take(&mut self, chain: u32, watermark: Position, buffer: Vec<u8>, epoch: u32) -> Taken {
        let batch = match self.full.pop_front() {
            Some(full) => full,
            None => {
                // The next batch begins on the block after this one.
                let next = self.open.end().align_up();
                self.open_next(next, epoch, buffer)
            }
        };
        let (sealed, completions) = batch.seal(chain, watermark);
        let batch = Arc::new(sealed);
        self.writing = Some(Arc::clone(&batch));
        Taken { batch, completions }
    }
}

impl Shared {
    pub(super) fn new(options: Options, start: &Start) -> Self {
        let open = Batch::new(start.base, start.epoch, Vec::new());
        Shared {
            epoch: start.epoch,
            queue: Mutex::new(Queue {
                open,
                open_limit: start.limit,
                full: VecDeque::new(),
                writing: None,
                end: start.end,
                queued_bytes: 0,
                prepared: start.prepared,
                space: Space::Ample,
                free_bytes: 0,
                closing: false,
            }),
            work: Condvar::new(),
            prepare: Condvar::new(),
            room: Notify::new(),
            progress: Notify::new(),
            written: AtomicU64::new(start.end.pack()),
            synced: AtomicU64::new(start.end.pack()),
            checkpoint: Mutex::new(start.checkpoint),
            poison: OnceLock::new(),
            stopped: AtomicBool::new(false),
            options,
        }
    }

    // ---- appending

    /// Whether an append of this class would be refused outright.
    pub(super) fn admit(&self, class: Class) -> Result<(), AppendError> {
        self.admit_locked(&self.queue.lock(), class)
    }

    fn admit_locked(&self, queue: &Queue, class: Class) -> Result<(), AppendError> {
        if let Some(reason) = self.poison.get() {
            return Err(AppendError::Poisoned(reason.clone()));
        }
        if queue.closing {
            return Err(AppendError::Closed);
        }
        if class == Class::Data && queue.space != Space::Ample {
            return Err(AppendError::Full);
        }
        Ok(())
    }

    /// Queues frames, or says why not; `done` is taken only if they were queued.
    pub(super) fn enqueue(
        &self,
        class: Class,
        drafts: &[Draft<'_>],
        measured: &[Measured],
        checkpoint: Option<Position>,
        done: &mut Option<Completion>,
    ) -> Result<Vec<Position>, AppendError> {
        let bytes: u64 = drafts.iter().map(Draft::disk_bytes).sum();
        let mut positions = Vec::with_capacity(drafts.len());
        let mut queue = self.queue.lock();
        self.admit_locked(&queue, class)?;
        let over = queue.queued_bytes as u64 + bytes > self.options.queue_bytes_max as u64;
        if over && queue.queued_bytes > 0 {
            // Lazy frames must not hold up the appends that wait for their room.
            queue.open.urgent = !queue.open.is_empty();
            self.work.notify_one();
            return Err(AppendError::Busy);
        }
        if !queue.make_room(bytes, self) {
            return Err(AppendError::Busy);
        }
        let was_empty = queue.open.is_empty();
        let was_urgent = queue.open.urgent;
        for (draft, &measured) in drafts.iter().zip(measured) {
            positions.push(queue.push(draft, measured));
        }
        if checkpoint.is_some() {
            queue.open.checkpoint = checkpoint;
        }
        if let Some(done) = done.take() {
            queue.open.completions.push(done);
            queue.open.urgent = true;
        }
        // The writer must hear of the first frame, to set its idle timer, and of the first urgent
        // one; in between it knows all it needs.
        let tell = was_empty || (queue.open.urgent && !was_urgent);
        drop(queue);
        if tell {
            self.work.notify_one();
        }
        Ok(positions)
    }

    /// As [`Shared::enqueue`], waiting for room.
    pub(super) async fn enqueue_when_room(
        &self,
        class: Class,
        drafts: &[Draft<'_>],
        measured: &[Measured],
        checkpoint: Option<Position>,
        mut done: Option<Completion>,
    ) -> Result<Vec<Position>, AppendError> {
        loop {
            // Created before the attempt, so that room made in between is not missed.
            let room = self.room.notified();
            match self.enqueue(class, drafts, measured, checkpoint, &mut done) {
                Err(AppendError::Busy) => room.await,
                settled => return settled,
            }
        }
    }

    // ---- reading

    pub(super) fn written(&self) -> Position {
        Position::unpack(self.written.load(Ordering::Acquire))
    }

    pub(super) fn synced(&self) -> Position {
        Position::unpack(self.synced.load(Ordering::Acquire))
    }

    pub(super) fn end(&self) -> Position {
        self.queue.lock().end
    }

    /// A range that is not in the files yet.
    pub(super) fn read_queued(&self, at: Position, len: u32) -> Option<Bytes> {
        let queue = self.queue.lock();
        let queued = std::iter::once(&queue.open).chain(&queue.full).find_map(|batch| batch.read(at, len));
        if let Some(bytes) = queued {
            return Some(Bytes::copy_from_slice(bytes));
        }
        let writing = queue.writing.clone().filter(|w| w.contains(at, len));
        drop(queue);
        writing?.read(at, len).map(Bytes::copy_from_slice)
    }

    // ---- waiting

    /// Waits until everything before `position` is synced.
    pub(super) async fn wait_synced(&self, position: Position) -> io::Result<()> {
        loop {
            let progress = self.progress.notified();
            if self.synced() >= position {
                return Ok(());
            }
            self.check_alive()?;
            self.hurry(position)?;
            progress.await;
        }
    }

    fn check_alive(&self) -> io::Result<()> {
        if let Some(reason) = self.poison.get() {
            return Err(poison_error(reason));
        }
        if self.stopped.load(Ordering::Acquire) {
            return Err(io::Error::other("the journal is shut down"));
        }
        Ok(())
    }

    /// Has lazy frames before `position` written now.
    fn hurry(&self, position: Position) -> io::Result<()> {
        let mut queue = self.queue.lock();
        if position > queue.end {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("{position} lies past the journal's end, {}", queue.end),
            ));
        }
        if !queue.open.is_empty() && position > queue.open.base {
            queue.open.urgent = true;
            self.work.notify_one();
        }
        Ok(())
    }

    // ---- the writer's side

    /// Blocks until there is a batch to write; `None` when the journal ends. `unproven` says that
    /// no watermark covers the last batch yet, and is cleared if none can be written.
    pub(super) fn next_batch(&self, chain: u32, unproven: &mut bool, buffer: &mut Vec<u8>) -> Option<Taken> {
        let mut idle_at = None;
        let mut queue = self.queue.lock();
        loop {
            if self.poison.get().is_some() {
                return None;
            }
            let mut due = queue.is_urgent() || queue.closing;
            if !due && !(queue.open.is_empty() && !*unproven) {
                let now = Instant::now();
                let at = *idle_at.get_or_insert(now + self.options.idle_delay);
                due = now >= at;
                if !due {
                    self.work.wait_until(&mut queue, at);
                    continue;
                }
            }
            if due {
                if let Some(taken) = self.take_due(&mut queue, chain, unproven, buffer) {
                    return Some(taken);
                }
                if queue.closing {
                    return None;
                }
            }
            idle_at = None;
            self.work.wait(&mut queue);
        }
    }

    /// Takes a batch, or makes one of a watermark if that is all there is to say.
    fn take_due(
        &self,
        queue: &mut Queue,
        chain: u32,
        unproven: &mut bool,
        buffer: &mut Vec<u8>,
    ) -> Option<Taken> {
        if queue.open.is_empty() && queue.full.is_empty() {
            if !std::mem::take(unproven) {
                return None;
            }
            let watermark = Draft { kind: FrameKind::Watermark, group: 0, payload: &[] };
            if !queue.make_room(watermark.disk_bytes(), self) {
                return None;
            }
            queue.push(&watermark, watermark.measure());
        }
        let buffer = std::mem::take(buffer);
        Some(queue.take(chain, self.synced(), buffer, self.epoch))
    }

    /// Everything before `position` can now be read from the files.
    pub(super) fn set_written(&self, position: Position) {
        self.written.store(position.pack(), Ordering::Release);
    }

    /// The batch being written is on disk. Returns the bytes still queued.
    pub(super) fn set_synced(&self, batch: &Sealed) -> usize {
        if let Some(scan_from) = batch.checkpoint {
            *self.checkpoint.lock() = Some(Checkpoint { batch: batch.base, scan_from });
        }
        self.synced.store(batch.end.pack(), Ordering::Release);
        let mut queue = self.queue.lock();
        debug_assert_eq!(
            queue.writing.as_ref().map(|w| w.base),
            Some(batch.base),
            "only the batch being written can become synced"
        );
        queue.writing = None;
        queue.queued_bytes -= batch.frames_bytes();
        queue.queued_bytes
    }

    /// Wakes whoever waits for room or for progress.
    pub(super) fn wake(&self) {
        self.progress.notify_waiters();
        self.room.notify_waiters();
    }

    /// The first failure of the disk: fails every waiting append in order, and every later one.
    pub(super) fn poison(&self, reason: String, in_flight: Vec<Completion>) {
        if self.poison.set(reason.clone()).is_err() {
            fail(in_flight, &reason);
            return;
        }
        tracing::error!(event = "journal_poisoned", reason, "the journal failed");
        let mut waiting = in_flight;
        {
            let mut queue = self.queue.lock();
            for batch in &mut queue.full {
                waiting.append(&mut batch.completions);
            }
            waiting.append(&mut queue.open.completions);
        }
        fail(waiting, &reason);
        self.work.notify_all();
        self.prepare.notify_all();
        self.wake();
        (self.options.on_poison)(&reason);
    }

    pub(super) fn poisoned(&self) -> Option<&str> {
        self.poison.get().map(String::as_str)
    }

    /// The writer thread is gone.
    pub(super) fn stop(&self) {
        self.stopped.store(true, Ordering::Release);
        self.wake();
    }

    /// No more appends; what is queued will be written.
    pub(super) fn close(&self) {
        self.queue.lock().closing = true;
        self.work.notify_all();
        self.prepare.notify_all();
        self.wake();
    }

    // ---- the preparer's side

    /// Blocks until a segment has to be prepared (its number) or `until` (none); `Err` at the end.
    /// `hold` keeps a failed preparation from being repeated before its time.
    pub(super) fn next_preparation(&self, hold: bool, until: Instant) -> Result<Option<u32>, Ended> {
        let mut queue = self.queue.lock();
        loop {
            if queue.closing || self.poison.get().is_some() {
                return Err(Ended);
            }
            if !hold && queue.prepared <= queue.open.base.segment {
                return Ok(Some(queue.prepared + 1));
            }
            if self.prepare.wait_until(&mut queue, until).timed_out() {
                return Ok(None);
            }
        }
    }

    /// The file of a segment is there.
    pub(super) fn set_prepared(&self, segment: u32) {
        self.queue.lock().prepared = segment;
        self.wake();
    }

    pub(super) fn set_space(&self, space: Space, free_bytes: u64) {
        let before = {
            let mut queue = self.queue.lock();
            queue.free_bytes = free_bytes;
            std::mem::replace(&mut queue.space, space)
        };
        match (before, space) {
            (before, space) if before == space => {}
            (_, Space::Ample) => {
                tracing::info!(event = "journal_space", free_bytes, "disk space is back");
            }
            (_, space) => {
                tracing::warn!(event = "journal_space", ?space, free_bytes, "disk space runs out");
            }
        }
    }

    /// Queued bytes, space and free bytes.
    pub(super) fn levels(&self) -> (usize, Space, u64) {
        let queue = self.queue.lock();
        (queue.queued_bytes, queue.space, queue.free_bytes)
    }
}

/// The journal is closing or poisoned.
pub(super) struct Ended;

pub(super) fn poison_error(reason: &str) -> io::Error {
    io::Error::other(format!("the journal is poisoned: {reason}"))
}

fn fail(completions: Vec<Completion>, reason: &str) {
    for done in completions {
        done(Err(poison_error(reason)));
    }
}
