//! What a journal is opened with, and every bound that is not an option.

use std::sync::Arc;
use std::time::Duration;

use super::error::OpenError;
use super::format::{BATCH_HEADER_BYTES, BLOCK_BYTES};

/// Bytes read ahead while scanning.
pub(super) const READ_AHEAD_BYTES: usize = 1 << 20;
/// Bytes of zeros written and synced at a time when a segment is prepared.
pub(super) const ZERO_CHUNK_BYTES: usize = 1 << 20;
/// Segment files kept open for reading.
pub(super) const FILE_HANDLES_MAX: usize = 128;
/// Buffers that grew beyond this are not kept for reuse.
pub(super) const BUFFER_KEEP_BYTES_MAX: usize = 8 << 20;

const SEGMENT_BYTES_MIN: u32 = 4 * BLOCK_BYTES;
const SEGMENT_BYTES_MAX: u32 = 1 << 30;

/// One written and synced batch, for metrics.
#[derive(Clone, Copy, Debug)]
pub struct BatchReport {
    /// Bytes written, with headers and padding.
    pub bytes: usize,
    /// Frames in the batch.
    pub frames: u32,
    /// Time the fsync took.
    pub sync: Duration,
}

/// Called for each batch that is on disk, on the journal's own thread; must be cheap.
pub type OnBatch = Arc<dyn Fn(&BatchReport) + Send + Sync>;

/// Called once, with the reason, after a write or fsync failed and every waiter was told.
pub type OnPoison = Arc<dyn Fn(&str) + Send + Sync>;

/// Settings of a journal.
#[derive(Clone)]
pub struct Options {
    /// The node this journal belongs to; opening another node's journal is refused.
    pub node_id: u128,
    /// Length of new segment files: a multiple of 4096, from 16 KiB to 1 GiB.
    pub segment_bytes: u32,
    /// Bytes of queued and not yet synced frames beyond which appends wait.
    pub queue_bytes_max: usize,
    /// Free disk space below which [`Journal::has_space`](super::Journal::has_space) says no.
    pub reserve_bytes: u64,
    /// How long the journal is quiet before lazy frames, or a watermark that proves the last
    /// batch, are written.
    pub idle_delay: Duration,
    /// How often free disk space is looked at.
    pub space_interval: Duration,
    /// How long the disk may take for a batch before it counts as hanging.
    pub hangs_after: Duration,
    /// Where batches are reported.
    pub on_batch: OnBatch,
    /// What to do when the journal has become unusable, usually: end the process.
    pub on_poison: OnPoison,
}

impl Options {
    /// The defaults for a node.
    pub fn new(node_id: u128) -> Self {
        Options {
            node_id,
            segment_bytes: 64 << 20,
            queue_bytes_max: 32 << 20,
            reserve_bytes: 256 << 20,
            idle_delay: Duration::from_millis(200),
            space_interval: Duration::from_secs(1),
            hangs_after: Duration::from_secs(3),
            on_batch: Arc::new(|_| {}),
            on_poison: Arc::new(|_| {}),
        }
    }

    /// The most bytes one append may take on disk.
    pub(super) fn append_bytes_max(&self) -> u64 {
        u64::from(self.segment_bytes - BLOCK_BYTES) - BATCH_HEADER_BYTES as u64
    }

    pub(super) fn validate(&self) -> Result<(), OpenError> {
        let range = SEGMENT_BYTES_MIN..=SEGMENT_BYTES_MAX;
        if !range.contains(&self.segment_bytes) || !self.segment_bytes.is_multiple_of(BLOCK_BYTES) {
            return Err(OpenError::InvalidOption(
                "segment_bytes must be a multiple of 4096 from 16384 to 1073741824",
            ));
        }
        if self.queue_bytes_max == 0 {
            return Err(OpenError::InvalidOption("queue_bytes_max must not be 0"));
        }
        Ok(())
    }
}
