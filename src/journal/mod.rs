//! The node's shared append-only journal: every Raft group's log, votes and checkpoints in one
//! sequence of segment files, made durable by one fsync for all.
//!
//! Guarantees:
//! - A completion that fires with `Ok` means that its frames *and everything queued before them*
//!   survive a power loss. Completions fire in the order of the appends.
//! - The frames of one append are recovered all or none, at the positions it was given.
//! - After an error of a write or fsync nothing more is written: every pending and later append
//!   fails, and [`Options::on_poison`] is called. An fsync is never repeated.
//! - Opening delivers exactly what was written, in order, up to a point at or after the last
//!   completed append; otherwise it fails and names file and offset. One exception cannot be told
//!   apart from a torn write: damage to the very last batch before a crash. It is cut off. A journal
//!   that is idle for [`Options::idle_delay`] closes that gap by a watermark.
//!
//! Deliberately lacking: any idea of what a payload means, compression, removal of segments on its
//! own ([`Journal::remove_segments_before`] is for an owner who knows what is still referred to).
//!
//! Reading order: [`format`] (bytes), [`batch`], [`queue`] and [`shared`] (memory), [`writer`] and
//! [`preparer`] (the two threads), [`gather`] (when a batch waits for more), [`recovery`] (opening),
//! [`disk`] and [`sim`] (what it all runs on).

mod batch;
pub mod disk;
mod error;
mod format;
mod gather;
mod options;
mod preparer;
mod queue;
mod recovery;
mod scan;
mod segments;
mod shared;
#[cfg(test)]
pub(crate) mod sim;
mod writer;

#[cfg(test)]
mod tests;

use std::io;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::oneshot;

pub use batch::{Completion, Draft};
pub use disk::{Disk, DiskFile, RealDisk};
pub use error::{AppendError, OpenError, VisitError};
pub(crate) use format::FRAME_HEADER_BYTES;
pub(crate) use format::segment_file;
pub use format::{FIRST_SEGMENT, FrameKind, Position};
pub use options::{BatchReport, OnBatch, OnPoison, Options};
pub use queue::Space;
pub use recovery::{Recovery, ScanFrom, TornTail};
pub use scan::Frame;
pub use segments::SegmentStats;

use error::IoContext;
use gather::Gather;
use preparer::Preparer;
use queue::Request;
use segments::Segments;
use shared::{Shared, poison_error};
use writer::Writer;

/// A handle to the journal; clones share it. The last one to go shuts the journal down.
#[derive(Clone)]
pub struct Journal {
    inner: Arc<Inner>,
}

struct Inner {
    shared: Arc<Shared>,
    segments: Arc<Segments>,
    disk: Arc<dyn Disk>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    /// One removal of segments at a time.
    removing: Mutex<()>,
}

/// Payloads straight from their files, for visitors: during recovery there is no handle yet.
pub struct Payloads {
    disk: Arc<dyn Disk>,
    /// The file read last.
    open: Mutex<Option<(u32, Arc<dyn DiskFile>)>>,
}

impl Payloads {
    /// Of the journal on `disk`.
    pub fn of(disk: Arc<dyn Disk>) -> Self {
        Payloads { disk, open: Mutex::default() }
    }

    /// The bytes of (a part of) a payload. Does not verify.
    pub fn read(&self, at: Position, len: u32) -> io::Result<Bytes> {
        let mut open = self.open.lock();
        let file = match &*open {
            Some((segment, file)) if *segment == at.segment => Arc::clone(file),
            _ => self.disk.open(&format::segment_file(at.segment))?,
        };
        let mut buffer = vec![0; len as usize];
        file.read_at(&mut buffer, u64::from(at.offset))?;
        *open = Some((at.segment, file));
        Ok(buffer.into())
    }
}

/// The oldest segment there is on a disk.
pub fn oldest_segment(disk: &dyn Disk) -> io::Result<Option<u32>> {
    Ok(disk.list()?.iter().filter_map(|name| format::parse_segment_file(name)).min())
}

/// What the journal holds at a moment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stats {
    /// Everything before it survives a power loss.
    pub synced: Position,
    /// Where the last queued frame ends.
    pub end: Position,
    /// Bytes queued and not yet synced.
    pub queued_bytes: usize,
    /// Whether there is disk space left.
    pub space: Space,
    /// Free bytes on the disk, as last looked at.
    pub free_bytes: u64,
    /// The oldest segment.
    pub oldest_segment: u32,
    /// The segment being written.
    pub active_segment: u32,
    /// The newest synced checkpoint's `scan_from`.
    pub checkpoint: Option<Position>,
}

/// The parts of an open journal, before the threads take theirs.
struct Parts {
    inner: Inner,
    writer: Writer,
    preparer: Preparer,
    recovery: Recovery,
}

fn assemble(
    options: Options,
    disk: Arc<dyn Disk>,
    start: ScanFrom,
    visit: &mut dyn FnMut(Frame) -> Result<(), VisitError>,
) -> Result<Parts, OpenError> {
    options.validate()?;
    let recovered = recovery::recover(&options, &*disk, start, visit)?;
    let shared = Arc::new(Shared::new(options, &recovered.start));
    let segments = Arc::new(Segments::new(Arc::clone(&disk), recovered.segments));
    let writer = Writer {
        shared: Arc::clone(&shared),
        segments: Arc::clone(&segments),
        disk: Arc::clone(&disk),
        file: recovered.file,
        segment: recovered.start.base.segment,
        end: recovered.start.end,
        chain: recovered.chain,
        unproven: false,
        spare: Vec::new(),
        gather: Gather::default(),
    };
    let mut preparer = Preparer { shared: Arc::clone(&shared), disk: Arc::clone(&disk), exhausted: false };
    preparer.look_at_space();
    let inner = Inner { shared, segments, disk, threads: Mutex::new(Vec::new()), removing: Mutex::new(()) };
    Ok(Parts { inner, writer, preparer, recovery: recovered.recovery })
}

impl Journal {
    /// Opens the journal on `disk`, creating it if there is none, and calls `visit` for the frames
    /// that `start` asks for. Blocks until recovery is done.
    pub fn open(
        options: Options,
        disk: Arc<dyn Disk>,
        start: ScanFrom,
        visit: &mut dyn FnMut(Frame) -> Result<(), VisitError>,
    ) -> Result<(Journal, Recovery), OpenError> {
        let parts = assemble(options, disk, start, visit)?;
        let journal = Journal { inner: Arc::new(parts.inner) };
        let (writer, preparer) = (parts.writer, parts.preparer);
        // If the second thread cannot be started, dropping `journal` ends the first.
        journal.spawn("journal-writer", || writer.run())?;
        journal.spawn("journal-prepare", || preparer.run())?;
        Ok((journal, parts.recovery))
    }

    fn spawn(&self, name: &str, run: impl FnOnce() + Send + 'static) -> Result<(), OpenError> {
        let thread = thread::Builder::new()
            .name(name.to_owned())
            .spawn(run)
            .during(|| format!("starting the thread {name}"))?;
        self.inner.threads.lock().push(thread);
        Ok(())
    }

    /// Queues frames, to be recovered all or none, and returns where their payloads begin. Waits
    /// while the queue is full; never for the disk itself.
    ///
    /// With `Ok`, `done` is called exactly once, on the writer thread, when these frames and all
    /// queued before them are on disk or can no longer be. With `Err`, nothing was queued and `done`
    /// was dropped. Without `done` the frames are lazy: they go with the next batch, or after
    /// [`Options::idle_delay`].
    ///
    /// # Panics
    /// If a draft's kind is one that the journal writes itself.
    pub async fn append(
        &self,
        frames: &[Draft<'_>],
        done: Option<Completion>,
    ) -> Result<Vec<Position>, AppendError> {
        let measured = self.measure(frames)?;
        let request = Request { drafts: frames, measured: &measured, checkpoint: None };
        self.inner.shared.enqueue_when_room(request, done).await
    }

    /// As [`Journal::append`], but answers [`AppendError::Busy`] where that would wait. May be
    /// called from any thread.
    ///
    /// # Panics
    /// If a draft's kind is one that the journal writes itself.
    pub fn try_append(
        &self,
        frames: &[Draft<'_>],
        mut done: Option<Completion>,
    ) -> Result<Vec<Position>, AppendError> {
        let measured = self.measure(frames)?;
        let request = Request { drafts: frames, measured: &measured, checkpoint: None };
        self.inner.shared.enqueue(&request, &mut done)
    }

    /// The most bytes one append may take on disk.
    pub(crate) fn append_bytes_max(&self) -> u64 {
        self.inner.shared.options.append_bytes_max()
    }

    /// Whether the disk has been at work on a batch for so long that nobody should wait for it.
    pub fn hangs(&self) -> bool {
        self.inner.shared.writing_for() > self.inner.shared.options.hangs_after
    }

    /// Whether there is disk space outside the reserve. Without, nothing should be proposed that could be refused: what is
    /// appended all the same goes into the reserve, and waits when even that is used up.
    pub fn has_space(&self) -> bool {
        let (_, space, _) = self.inner.shared.levels();
        space == Space::Ample
    }

    fn measure(&self, frames: &[Draft<'_>]) -> Result<Vec<batch::Measured>, AppendError> {
        for frame in frames {
            let internal = matches!(frame.kind, FrameKind::Checkpoint | FrameKind::Watermark);
            assert!(!internal, "{:?} frames are the journal's own", frame.kind);
        }
        self.check_size(frames)?;
        Ok(frames.iter().map(Draft::measure).collect())
    }

    fn check_size(&self, frames: &[Draft<'_>]) -> Result<(), AppendError> {
        let bytes = frames.iter().map(Draft::disk_bytes).sum();
        let max = self.inner.shared.options.append_bytes_max();
        if bytes > max {
            return Err(AppendError::TooLarge { bytes, max });
        }
        Ok(())
    }

    /// Writes a checkpoint and waits until it is on disk. The next recovery delivers `payload`
    /// first and then what lies at or after `scan_from`, which must not be past [`Journal::end`].
    /// Returns where the payload begins.
    pub async fn checkpoint(&self, scan_from: Position, payload: &[u8]) -> Result<Position, AppendError> {
        let shared = &self.inner.shared;
        assert!(scan_from <= shared.end(), "a checkpoint cannot start at {scan_from}, in the future");
        let encoded = scan_from.encode();
        let draft = Draft { kind: FrameKind::Checkpoint, group: 0, payload: &[&encoded, payload] };
        self.check_size(&[draft])?;
        let request = Request { drafts: &[draft], measured: &[draft.measure()], checkpoint: Some(scan_from) };
        let (tell, told) = oneshot::channel();
        // Who asked may have gone.
        let done: Completion = Box::new(move |result| drop(tell.send(result)));
        let positions = shared.enqueue_when_room(request, Some(done)).await?;
        match told.await {
            Ok(Ok(())) => Ok(positions[0].plus(encoded.len())),
            _ => Err(AppendError::Poisoned(shared.poisoned().unwrap_or_default().to_owned())),
        }
    }

    /// Everything before this position survives a power loss.
    pub fn synced(&self) -> Position {
        self.inner.shared.synced()
    }

    /// Where the last queued frame ends.
    pub fn end(&self) -> Position {
        self.inner.shared.end()
    }

    /// Waits until everything before `position` is on disk, lazy frames included. For a thread that may block.
    pub fn block_until_synced(&self, position: Position) -> io::Result<()> {
        self.inner.shared.block_until_synced(position)
    }

    /// The bytes of (a part of) a payload, whether it is on disk or still queued; or of any stretch of a
    /// segment that is synced. Blocks on the disk if the page cache has not got it. Does not verify: the
    /// caller has the checksum of what it asks for.
    pub fn read(&self, segment: u32, offset: u32, len: u32) -> io::Result<Bytes> {
        let at = Position { segment, offset };
        let shared = &self.inner.shared;
        let end = u64::from(offset) + u64::from(len);
        let is_written = |written: Position| at.pack() + u64::from(len) <= written.pack();
        if !is_written(shared.written()) {
            if let Some(bytes) = shared.read_queued(at, len) {
                return Ok(bytes);
            }
            // It may have been written since; then the queue has let go of it.
            if !is_written(shared.written()) {
                return Err(io::Error::new(
                    io::ErrorKind::UnexpectedEof,
                    format!("nothing is written at {at} for {len} bytes"),
                ));
            }
        }
        if end > u64::from(u32::MAX) {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof));
        }
        let mut buffer = vec![0; len as usize];
        self.inner.segments.file(segment)?.read_at(&mut buffer, u64::from(offset))?;
        Ok(buffer.into())
    }

    /// Removes the segments before `segment`, oldest first, and returns how many. Refused if the
    /// newest synced checkpoint needs one of them. Blocks on the disk.
    pub fn remove_segments_before(&self, segment: u32) -> io::Result<usize> {
        let Inner { shared, segments, disk, .. } = &*self.inner;
        let _one_at_a_time = self.inner.removing.lock();
        if let Some(reason) = shared.poisoned() {
            return Err(poison_error(reason));
        }
        let needed = match *shared.checkpoint.lock() {
            Some(checkpoint) => checkpoint.scan_from.segment.min(shared.synced().segment),
            None => 0,
        };
        if segment > needed {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("recovery needs segments from {needed} on, not from {segment} on"),
            ));
        }
        let mut removed = 0;
        while let Some((oldest, _)) = segments.range().filter(|&(oldest, _)| oldest < segment) {
            segments.remove(oldest)?;
            // One by one, so that a crash leaves no gap.
            if let Err(error) = disk.sync_dir() {
                let reason = format!("syncing the journal's directory: {error}");
                shared.poison(reason, Vec::new());
                return Err(error);
            }
            removed += 1;
        }
        Ok(removed)
    }

    /// Every segment, oldest first.
    pub fn segments(&self) -> Vec<SegmentStats> {
        self.inner.segments.stats()
    }

    /// What the journal holds now.
    pub fn stats(&self) -> Stats {
        let shared = &self.inner.shared;
        let (queued_bytes, space, free_bytes) = shared.levels();
        let (oldest_segment, active_segment) = self.inner.segments.range().unwrap_or_default();
        Stats {
            synced: shared.synced(),
            end: shared.end(),
            queued_bytes,
            space,
            free_bytes,
            oldest_segment,
            active_segment,
            checkpoint: shared.checkpoint.lock().map(|c| c.scan_from),
        }
    }

    /// Why the journal is unusable, if it is.
    pub fn poisoned(&self) -> Option<String> {
        self.inner.shared.poisoned().map(str::to_owned)
    }

    /// Refuses further appends, writes what is queued, and waits for the threads to end.
    pub fn shutdown(&self) {
        self.inner.shutdown();
    }
}

impl Inner {
    fn shutdown(&self) {
        self.shared.close();
        let threads = std::mem::take(&mut *self.threads.lock());
        for thread in threads {
            // A completion may own the last handle, and drop it on the writer thread.
            if thread.thread().id() != thread::current().id() && thread.join().is_err() {
                tracing::error!(event = "journal_thread_panicked", "a journal thread panicked");
            }
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.shutdown();
    }
}
