//! A journal without threads on a simulated disk, driven step by step: nothing in it depends on
//! timing, so that a seed is a whole story.

use std::time::{Duration, Instant};

use futures_util::FutureExt;

use super::*;
use crate::journal::sim::SimDisk;

/// What the completions were told: which append, and whether it is on disk.
pub(super) type Acks = Arc<Mutex<Vec<(u64, bool)>>>;

pub(super) struct Rig {
    pub(super) journal: Journal,
    writer: Writer,
    preparer: Preparer,
    pub(super) recovery: Recovery,
    /// What was recovered.
    pub(super) frames: Vec<Frame>,
    pub(super) acks: Acks,
}

/// Lazy frames and watermarks are due at once, whenever the writer gets to run.
pub(super) fn rig_options() -> Options {
    Options { segment_bytes: 32 << 10, idle_delay: Duration::ZERO, ..options() }
}

impl Rig {
    pub(super) fn open(disk: &SimDisk, from: ScanFrom) -> Result<Rig, OpenError> {
        Rig::open_with(rig_options(), disk, from)
    }

    pub(super) fn open_with(options: Options, disk: &SimDisk, from: ScanFrom) -> Result<Rig, OpenError> {
        let mut frames = Vec::new();
        let parts = assemble(options, Arc::new(disk.clone()), from, &mut |frame| {
            frames.push(frame);
            Ok(())
        })?;
        let journal = Journal { inner: Arc::new(parts.inner) };
        Ok(Rig {
            journal,
            writer: parts.writer,
            preparer: parts.preparer,
            recovery: parts.recovery,
            frames,
            acks: Acks::default(),
        })
    }

    /// Appends frames; `number` is what [`Rig::acks`] will call them.
    pub(super) fn append(&mut self, number: u64, payloads: &[Vec<u8>]) -> Result<Vec<Position>, AppendError> {
        let acks = Arc::clone(&self.acks);
        let done: Completion = Box::new(move |result| acks.lock().push((number, result.is_ok())));
        self.try_append(payloads, Some(done))
    }

    pub(super) fn append_lazily(&mut self, payloads: &[Vec<u8>]) -> Result<Vec<Position>, AppendError> {
        self.try_append(payloads, None)
    }

    fn try_append(
        &mut self,
        payloads: &[Vec<u8>],
        done: Option<Completion>,
    ) -> Result<Vec<Position>, AppendError> {
        let pieces: Vec<[&[u8]; 1]> = payloads.iter().map(|payload| [payload.as_slice()]).collect();
        let draft = |payload| Draft { kind: FrameKind::Entry, group: 1, payload };
        let drafts: Vec<Draft<'_>> = pieces.iter().map(|pieces| draft(pieces.as_slice())).collect();
        self.journal.try_append(&drafts, done)
    }

    /// Appends one entry and writes it; panics if that fails.
    pub(super) fn append_synced(&mut self, payload: &[u8]) -> Position {
        self.prepare();
        let positions = self.append(0, &[payload.to_vec()]).unwrap();
        self.write_all();
        assert_eq!(self.acks.lock().pop(), Some((0, true)));
        positions[0]
    }

    /// Lets the writer write one batch, if there is one. False if there was none, or it failed.
    pub(super) fn write(&mut self) -> bool {
        self.journal.inner.shared.has_work(self.writer.unproven) && self.writer.step()
    }

    /// Writes everything there is, up to the watermark that proves the last batch.
    pub(super) fn write_all(&mut self) {
        while self.write() {}
    }

    /// Lets the preparer do what it is asked to, if it is.
    pub(super) fn prepare(&mut self) {
        let wanted = self.journal.inner.shared.next_preparation(false, Instant::now());
        if let Ok(Some(segment)) = wanted {
            self.preparer.prepare(segment);
        }
    }

    /// Lets the preparer look at the free space.
    pub(super) fn look_at_space(&mut self) {
        self.preparer.look_at_space();
    }

    /// Queues a checkpoint, and writes it.
    pub(super) fn checkpoint(&mut self, scan_from: Position, payload: &[u8]) -> bool {
        let journal = self.journal.clone();
        let mut checkpoint = Box::pin(journal.checkpoint(scan_from, payload));
        loop {
            if let Some(result) = (&mut checkpoint).now_or_never() {
                return result.is_ok();
            }
            self.prepare();
            if !self.write() && self.journal.poisoned().is_none() {
                return false;
            }
        }
    }
}
