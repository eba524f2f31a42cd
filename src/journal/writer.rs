//! The one thread that writes: take everything queued, one write, one fsync, then the completions
//! in order.
//!
//! While it syncs a batch, the next one fills up; that is all there is to group commit. An error
//! of the disk poisons the journal, and the thread ends: after a failed fsync nobody knows what is
//! on the disk, so nothing is ever tried again.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::batch::Sealed;
use super::disk::{Disk, DiskFile};
use super::format::{BLOCK_BYTES, Position, SegmentHeader, segment_file};
use super::gather::Gather;
use super::options::{BUFFER_KEEP_BYTES_MAX, BatchReport};
use super::queue::Taken;
use super::segments::{SegmentStats, Segments};
use super::shared::Shared;

pub(super) struct Writer {
    pub(super) shared: Arc<Shared>,
    pub(super) segments: Arc<Segments>,
    pub(super) disk: Arc<dyn Disk>,
    /// The active segment's file.
    pub(super) file: Arc<dyn DiskFile>,
    pub(super) segment: u32,
    /// Where the last written frame ends.
    pub(super) end: Position,
    /// CRC of the last written batch header.
    pub(super) chain: u32,
    /// Somebody was told that the last batch is on disk, and no later batch says so on disk.
    pub(super) unproven: bool,
    /// Swapped with the buffer of the batch that is taken, so that two buffers serve for ever.
    pub(super) spare: Vec<u8>,
    pub(super) gather: Gather,
}

impl Writer {
    /// Writes batches until the journal is closed or poisoned.
    pub(super) fn run(mut self) {
        let shared = Arc::clone(&self.shared);
        if catch_unwind(AssertUnwindSafe(|| while self.step() {})).is_err() {
            shared.poison("the thread that writes has panicked".into(), Vec::new());
        }
        shared.stop();
    }

    /// Waits for one batch and writes it; false at the end.
    pub(super) fn step(&mut self) -> bool {
        let (unproven, spare) = (&mut self.unproven, &mut self.spare);
        let Some(taken) = self.shared.next_batch(self.chain, unproven, spare, &mut self.gather) else {
            return false;
        };
        self.shared.begins_to_write();
        let written = self.write(&taken.batch);
        self.shared.ends_writing();
        match written {
            Ok((write, sync)) => {
                self.complete(taken, write, sync);
                true
            }
            Err(error) => {
                let file = segment_file(taken.batch.base.segment);
                let reason = format!("writing {file}: {error}");
                self.shared.poison(reason, taken.completions);
                false
            }
        }
    }

    /// Returns how long write and fsync took.
    fn write(&mut self, batch: &Sealed) -> io::Result<(Duration, Duration)> {
        if batch.base.segment != self.segment {
            self.begin_segment(batch.base.segment)?;
        }
        let begun = Instant::now();
        self.file.write_at(&batch.bytes, u64::from(batch.base.offset))?;
        self.shared.set_written(batch.end);
        let written = Instant::now();
        self.file.sync_data()?;
        Ok((written - begun, written.elapsed()))
    }

    /// Puts the header into a prepared file. It is synced before any batch follows, so that a bad
    /// header with data behind it can only be damage, never a torn write.
    fn begin_segment(&mut self, segment: u32) -> io::Result<()> {
        let file = self.disk.open(&segment_file(segment))?;
        let checkpoint = *self.shared.checkpoint.lock();
        let segment_bytes = self.shared.options.segment_bytes;
        let header = SegmentHeader {
            number: segment,
            node_id: self.shared.options.node_id,
            segment_bytes,
            epoch: self.shared.epoch,
            previous_end: self.end,
            previous_chain: self.chain,
            checkpoint: checkpoint.map_or(Position::ZERO, |c| c.batch),
        };
        file.write_at(&header.encode(), 0)?;
        file.sync_data()?;
        self.segments.add(SegmentStats { segment, used_bytes: BLOCK_BYTES, file_bytes: segment_bytes });
        self.file = file;
        self.segment = segment;
        Ok(())
    }

    fn complete(&mut self, taken: Taken, write: Duration, sync: Duration) {
        let Taken { batch, completions } = taken;
        self.shared.set_synced(&batch);
        self.gather.synced(write + sync);
        self.chain = batch.crc;
        self.end = batch.end;
        self.unproven = batch.urgent;
        self.segments.set_used(batch.end);
        // Before anybody is answered, so that what was answered is counted.
        (self.shared.options.on_batch)(&BatchReport { bytes: batch.bytes.len(), frames: batch.frames, sync });
        for done in completions {
            done(Ok(()));
        }
        self.shared.wake();
        // A reader may still hold the batch; then its buffer goes with the reader.
        if let Ok(batch) = Arc::try_unwrap(batch)
            && batch.bytes.capacity() <= BUFFER_KEEP_BYTES_MAX
        {
            self.spare = batch.bytes;
        }
    }
}
