//! What appenders, readers, the writer and the preparer share: the queue under one mutex, and who
//! waits for what.
//!
//! The mutex is held only to move memory: encode a frame, take a batch, copy a queued range out. No
//! IO ever happens under it. What readers and pollers ask for most (how far is written, how far is
//! synced, is it poisoned) is also kept where no lock is needed.

use std::io;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::{Condvar, Mutex};
use tokio::sync::Notify;

use super::batch::{Completion, Sealed};
use super::error::AppendError;
use super::format::Position;
use super::gather::Gather;
use super::options::Options;
use super::queue::{Checkpoint, Queue, Request, Space, Start, Taken};

/// How often who blocks until a sync looks whether the journal has ended.
const BLOCKED_MAX: Duration = Duration::from_millis(100);

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
    /// Wakes `block_until_synced`.
    synced_further: Condvar,
    /// Packed position: everything before it can be read from the files.
    written: AtomicU64,
    /// Packed position: everything before it survives a power loss.
    synced: AtomicU64,
    opened: Instant,
    /// Milliseconds from `opened` to when the writer gave the disk the batch that it is at work on; 0 between batches.
    writing_since: AtomicU64,
    pub(super) checkpoint: Mutex<Option<Checkpoint>>,
    poison: OnceLock<String>,
    /// The writer thread has ended: nothing will be synced any more.
    stopped: AtomicBool,
}

impl Shared {
    pub(super) fn new(options: Options, start: &Start) -> Self {
        Shared {
            epoch: start.epoch,
            queue: Mutex::new(Queue::new(start, options.segment_bytes)),
            work: Condvar::new(),
            prepare: Condvar::new(),
            room: Notify::new(),
            synced_further: Condvar::new(),
            written: AtomicU64::new(start.end.pack()),
            synced: AtomicU64::new(start.end.pack()),
            opened: Instant::now(),
            writing_since: AtomicU64::new(0),
            checkpoint: Mutex::new(start.checkpoint),
            poison: OnceLock::new(),
            stopped: AtomicBool::new(false),
            options,
        }
    }

    // ---- appending

    /// Queues frames, or says why not; `done` is taken only if they were queued.
    pub(super) fn enqueue(
        &self,
        request: &Request<'_>,
        done: &mut Option<Completion>,
    ) -> Result<Vec<Position>, AppendError> {
        let bytes = request.disk_bytes();
        let mut queue = self.queue.lock();
        if let Some(reason) = self.poison.get() {
            return Err(AppendError::Poisoned(reason.clone()));
        }
        if queue.closing {
            return Err(AppendError::Closed);
        }
        let over = queue.queued_bytes as u64 + bytes > self.options.queue_bytes_max as u64;
        // What is larger than the bound goes in alone.
        if over && queue.queued_bytes > 0 {
            // Lazy frames must not hold up an append that waits for their room.
            let end = queue.end;
            if queue.hurry(end) {
                self.work.notify_one();
            }
            return Err(AppendError::Busy);
        }
        let was_urgent = queue.is_urgent();
        let fits = queue.make_room(bytes);
        if queue.wants_segment().is_some() {
            self.prepare.notify_one();
        }
        if !fits {
            return Err(AppendError::Busy);
        }
        // The writer must hear of a frame while it has no idle timer, and of what is urgent first, be it this frame or a
        // batch that left room for it; else it knows all it needs, and waking it costs more than queueing the frame did.
        let positions = queue.push(request, done.take());
        let tell = queue.writer_rests || (queue.is_urgent() && !was_urgent);
        drop(queue);
        if tell {
            self.work.notify_one();
        }
        Ok(positions)
    }

    /// As [`Shared::enqueue`], waiting for room.
    pub(super) async fn enqueue_when_room(
        &self,
        request: Request<'_>,
        mut done: Option<Completion>,
    ) -> Result<Vec<Position>, AppendError> {
        loop {
            // Created before the attempt, so that room made in between is not missed.
            let room = self.room.notified();
            match self.enqueue(&request, &mut done) {
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
        if let Some(bytes) = queue.read(at, len) {
            return Some(Bytes::copy_from_slice(bytes));
        }
        let writing = queue.writing(at, len);
        drop(queue);
        writing?.read(at, len).map(Bytes::copy_from_slice)
    }

    // ---- waiting

    /// Blocks until everything before `position` is synced.
    pub(super) fn block_until_synced(&self, position: Position) -> io::Result<()> {
        self.hurry(position)?;
        loop {
            let mut queue = self.queue.lock();
            // Under the lock, which whoever syncs takes between saying so and waking this.
            if self.synced() >= position {
                return Ok(());
            }
            self.check_alive()?;
            self.synced_further.wait_for(&mut queue, BLOCKED_MAX);
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
        if queue.hurry(position) {
            self.work.notify_one();
        }
        Ok(())
    }

    // ---- the writer's side

    /// Blocks until there is a batch to write; `None` when the journal ends. `unproven` says that no
    /// watermark covers the last batch yet; without room for one, it is tried again and again.
    pub(super) fn next_batch(
        &self,
        chain: u32,
        unproven: &mut bool,
        buffer: &mut Vec<u8>,
        gather: &mut Gather,
    ) -> Option<Taken> {
        let mut idle_at = None;
        let mut queue = self.queue.lock();
        loop {
            if self.poison.get().is_some() {
                return None;
            }
            if queue.is_urgent() && !queue.closing {
                gather.gather(&mut queue);
            }
            if queue.is_urgent() || queue.closing {
                let taken = self.take(&mut queue, chain, unproven, buffer);
                if taken.is_some() || queue.closing {
                    return taken;
                }
            }
            if queue.is_empty() && !*unproven {
                idle_at = None;
                queue.writer_rests = true;
                self.work.wait(&mut queue);
                queue.writer_rests = false;
                continue;
            }
            let at = *idle_at.get_or_insert_with(|| Instant::now() + self.options.idle_delay);
            if self.work.wait_until(&mut queue, at).timed_out() {
                if let Some(taken) = self.take(&mut queue, chain, unproven, buffer) {
                    return Some(taken);
                }
                idle_at = None;
            }
        }
    }

    /// Takes a batch, or makes one of a watermark if that is all there is to say.
    fn take(
        &self,
        queue: &mut Queue,
        chain: u32,
        unproven: &mut bool,
        buffer: &mut Vec<u8>,
    ) -> Option<Taken> {
        if queue.is_empty() {
            if !*unproven || !queue.push_watermark() {
                return None;
            }
            *unproven = false;
        }
        Some(queue.take(chain, self.synced(), std::mem::take(buffer)))
    }

    /// The disk is given a batch.
    pub(super) fn begins_to_write(&self) {
        let since = self.opened.elapsed().as_millis() as u64;
        self.writing_since.store(since.max(1), Ordering::Relaxed);
    }

    /// It has taken it, or failed.
    pub(super) fn ends_writing(&self) {
        self.writing_since.store(0, Ordering::Relaxed);
    }

    /// How long the disk has been at work on a batch.
    pub(super) fn writing_for(&self) -> Duration {
        match self.writing_since.load(Ordering::Relaxed) {
            0 => Duration::ZERO,
            since => self.opened.elapsed().saturating_sub(Duration::from_millis(since)),
        }
    }

    /// Everything before `position` can now be read from the files.
    pub(super) fn set_written(&self, position: Position) {
        self.written.store(position.pack(), Ordering::Release);
    }

    /// The batch being written is on disk.
    pub(super) fn set_synced(&self, batch: &Sealed) {
        if let Some(scan_from) = batch.checkpoint {
            *self.checkpoint.lock() = Some(Checkpoint { batch: batch.base, scan_from });
        }
        self.synced.store(batch.end.pack(), Ordering::Release);
        self.queue.lock().let_go(batch);
    }

    /// Wakes whoever waits for room or for progress.
    pub(super) fn wake(&self) {
        self.synced_further.notify_all();
        self.room.notify_waiters();
    }

    /// The first failure of the disk: fails every waiting append in order, and every later one.
    pub(super) fn poison(&self, reason: String, in_flight: Vec<Completion>) {
        if self.poison.set(reason.clone()).is_err() {
            fail(in_flight, &reason);
            return;
        }
        tracing::error!(event = "journal_poisoned", reason, "the journal failed");
        fail(in_flight, &reason);
        let waiting = self.queue.lock().take_completions();
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
            if let Some(segment) = queue.wants_segment().filter(|_| !hold) {
                return Ok(Some(segment));
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
        if before == space {
            return;
        }
        // Whoever waits for room may have to be refused now.
        self.wake();
        if space == Space::Ample {
            tracing::info!(event = "journal_space", free_bytes, "disk space is back");
        } else {
            tracing::warn!(event = "journal_space", ?space, free_bytes, "disk space runs out");
        }
    }

    /// Whether the writer would find something to do without waiting for long.
    #[cfg(test)]
    pub(super) fn has_work(&self, unproven: bool) -> bool {
        let mut queue = self.queue.lock();
        let for_watermark = super::format::FRAME_HEADER_BYTES as u64;
        !queue.is_empty() || (unproven && queue.make_room(for_watermark))
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
