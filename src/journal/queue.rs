//! What is queued: the batch being filled, those that filled their segment, the one being written.
//!
//! Pure memory, without locks, threads or IO; [`super::shared`] puts it under the one mutex.

use std::collections::VecDeque;
use std::sync::Arc;

use super::batch::{Batch, Completion, Draft, Measured, Sealed};
use super::format::{BLOCK_BYTES, FRAME_HEADER_BYTES, FrameKind, Position};

/// How much disk space there is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Space {
    /// More than the reserve.
    Ample,
    /// Only the reserve, for what was accepted before, for votes, and for what is needed to free space.
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
    epoch: u32,
    /// Length of new segments' files.
    segment_bytes: u32,
    /// Frames are appended here.
    open: Batch,
    /// Length of the file of `open`'s segment.
    open_limit: u32,
    /// Batches that filled up their segment and have not been taken yet.
    full: VecDeque<Batch>,
    /// The batch being written; readers find its bytes here until they are in the file.
    writing: Option<Arc<Sealed>>,
    /// Where the last queued frame ends.
    pub(super) end: Position,
    /// Bytes of all frames in `open`, `full` and `writing`.
    pub(super) queued_bytes: usize,
    /// The highest segment whose file is there to be used.
    pub(super) prepared: u32,
    pub(super) space: Space,
    pub(super) free_bytes: u64,
    /// No more appends.
    pub(super) closing: bool,
    /// The writer waits for news, without an idle timer.
    pub(super) writer_rests: bool,
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

/// What an append brings.
#[derive(Clone, Copy)]
pub(super) struct Request<'a> {
    pub(super) drafts: &'a [Draft<'a>],
    /// One for each draft.
    pub(super) measured: &'a [Measured],
    /// `scan_from`, if the draft is a checkpoint.
    pub(super) checkpoint: Option<Position>,
}

impl Request<'_> {
    pub(super) fn disk_bytes(&self) -> u64 {
        self.drafts.iter().map(Draft::disk_bytes).sum()
    }
}

impl Queue {
    pub(super) fn new(start: &Start, segment_bytes: u32) -> Self {
        Queue {
            epoch: start.epoch,
            segment_bytes,
            open: Batch::new(start.base, start.epoch, Vec::new()),
            open_limit: start.limit,
            full: VecDeque::new(),
            writing: None,
            end: start.end,
            queued_bytes: 0,
            prepared: start.prepared,
            space: Space::Ample,
            free_bytes: 0,
            closing: false,
            writer_rests: false,
        }
    }

    // ---- appending

    /// Makes sure that `bytes` of frames fit behind the open batch, in the next segment if need be.
    /// False if that one's file is not there yet.
    pub(super) fn make_room(&mut self, bytes: u64) -> bool {
        if u64::from(self.open.end().offset) + bytes <= u64::from(self.open_limit) {
            return true;
        }
        let next = self.open.base.segment + 1;
        if self.prepared < next {
            return false;
        }
        let full = self.reopen(Position::new(next, BLOCK_BYTES), Vec::new());
        if !full.is_empty() {
            self.full.push_back(full);
        }
        self.open_limit = self.segment_bytes;
        true
    }

    /// Adds frames, for which there must be room, and returns where their payloads begin.
    pub(super) fn push(&mut self, request: &Request<'_>, done: Option<Completion>) -> Vec<Position> {
        let mut positions = Vec::with_capacity(request.drafts.len());
        for (draft, &measured) in request.drafts.iter().zip(request.measured) {
            positions.push(self.push_frame(draft, measured));
        }
        if request.checkpoint.is_some() {
            self.open.checkpoint = request.checkpoint;
        }
        if let Some(done) = done {
            self.open.completions.push(done);
            self.open.urgent = true;
        }
        positions
    }

    fn push_frame(&mut self, draft: &Draft<'_>, measured: Measured) -> Position {
        let position = self.open.push(draft, measured);
        self.queued_bytes += measured.len as usize + FRAME_HEADER_BYTES;
        self.end = self.open.end();
        position
    }

    /// Adds a frame that says nothing but that its batch was written. False if there is no room.
    pub(super) fn push_watermark(&mut self) -> bool {
        let watermark = Draft { kind: FrameKind::Watermark, group: 0, payload: &[] };
        let fits = self.make_room(watermark.disk_bytes());
        if fits {
            self.push_frame(&watermark, watermark.measure());
        }
        fits
    }

    /// The segment whose file should be made now: there is always to be one ahead.
    pub(super) fn wants_segment(&self) -> Option<u32> {
        (self.prepared <= self.open.base.segment).then_some(self.prepared + 1)
    }

    // ---- writing

    /// Whether nothing waits to be written.
    pub(super) fn is_empty(&self) -> bool {
        self.open.is_empty() && self.full.is_empty()
    }

    /// Whether a batch should be written without waiting for company.
    pub(super) fn is_urgent(&self) -> bool {
        self.open.urgent || !self.full.is_empty()
    }

    /// Appends that wait for the batch that is being filled.
    pub(super) fn waiting(&self) -> usize {
        self.open.completions.len()
    }

    /// Has what lies before `position` written now. False if nothing had to be told.
    pub(super) fn hurry(&mut self, position: Position) -> bool {
        let lazy = !self.open.is_empty() && !self.open.urgent && position > self.open.base;
        self.open.urgent |= lazy;
        lazy
    }

    /// Takes the oldest batch; there must be one. `buffer` is for the batch that is filled next.
    pub(super) fn take(&mut self, chain: u32, watermark: Position, buffer: Vec<u8>) -> Taken {
        let batch = match self.full.pop_front() {
            Some(full) => full,
            // The next batch begins on the block after this one.
            None => self.reopen(self.open.end().align_up(), buffer),
        };
        let (sealed, completions) = batch.seal(chain, watermark);
        let batch = Arc::new(sealed);
        self.writing = Some(Arc::clone(&batch));
        Taken { batch, completions }
    }

    /// The batch being written is on disk.
    pub(super) fn let_go(&mut self, batch: &Sealed) {
        debug_assert_eq!(
            self.writing.as_ref().map(|w| w.base),
            Some(batch.base),
            "one batch is written at a time"
        );
        self.writing = None;
        self.queued_bytes -= batch.frames_bytes();
    }

    /// All completions that wait in batches not taken yet, in order.
    pub(super) fn take_completions(&mut self) -> Vec<Completion> {
        let mut waiting = Vec::new();
        for batch in self.full.iter_mut().chain([&mut self.open]) {
            waiting.append(&mut batch.completions);
        }
        waiting
    }

    fn reopen(&mut self, base: Position, buffer: Vec<u8>) -> Batch {
        std::mem::replace(&mut self.open, Batch::new(base, self.epoch, buffer))
    }

    // ---- reading

    /// A range of a batch that has not been taken yet.
    pub(super) fn read(&self, at: Position, len: u32) -> Option<&[u8]> {
        self.full.iter().chain([&self.open]).find_map(|batch| batch.read(at, len))
    }

    /// The batch being written, if the range lies in it.
    pub(super) fn writing(&self, at: Position, len: u32) -> Option<Arc<Sealed>> {
        self.writing.clone().filter(|batch| batch.contains(at, len))
    }
}
