//! Opening a journal: find its end, repair a torn tail, find the newest checkpoint, deliver frames.
//!
//! Torn or corrupt? The header of a segment is synced before the first batch in it is written, and
//! only once everything in the segments before it is synced. So every segment but the last with a
//! valid header must be valid up to the end that the next header names. In the last one a bad batch
//! is corruption if any batch header behind it says that it had been synced; otherwise it is the
//! torn tail of a crash: it is overwritten with zeros, synced, and appending goes on in its place
//! under a new recovery epoch.
//!
//! Damage to the very last batch before a crash cannot be told from a torn write of it, and is cut
//! off like one. That is why a journal that falls silent writes one more batch, which proves the
//! one before it.

mod checkpoint;
mod layout;
mod replay;
mod tail;

use std::sync::Arc;

use crate::journal::disk::{Disk, DiskFile};
use crate::journal::error::{OpenError, VisitError};
use crate::journal::format::{Damage, Position, segment_file};
use crate::journal::options::Options;
use crate::journal::queue::Start;
use crate::journal::scan::{Frame, ScanError};
use crate::journal::segments::SegmentStats;

use checkpoint::find_checkpoint;
use layout::Layout;
use replay::Replay;
use tail::Tail;

/// From where frames are delivered when a journal is opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ScanFrom {
    /// The newest checkpoint: first its own frame, then everything from its `scan_from` on that is
    /// not a checkpoint. Without a checkpoint: as `Beginning`.
    Checkpoint,
    /// The oldest segment: everything there is, checkpoints in their places.
    Beginning,
}

/// A tail that was cut off.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TornTail {
    /// The segment file.
    pub file: String,
    /// Where the cut was made, in bytes.
    pub offset: u32,
    /// How many bytes were overwritten with zeros.
    pub bytes: u32,
    /// What was wrong with them.
    pub reason: String,
}

/// What opening found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Recovery {
    /// The recovery epoch that begins now.
    pub epoch: u32,
    /// Where the last recovered frame ends.
    pub end: Position,
    /// The newest checkpoint's `scan_from`.
    pub checkpoint: Option<Position>,
    /// What had to be cut off.
    pub torn_tail: Option<TornTail>,
    /// Frames delivered.
    pub frames: u64,
    /// Bytes of payload delivered.
    pub payload_bytes: u64,
}

/// A journal ready to be written to.
pub(super) struct Recovered {
    pub(super) recovery: Recovery,
    pub(super) start: Start,
    pub(super) segments: Vec<SegmentStats>,
    /// The active segment's file.
    pub(super) file: Arc<dyn DiskFile>,
    /// CRC of the last batch header.
    pub(super) chain: u32,
}

type Visit<'a> = &'a mut dyn FnMut(Frame) -> Result<(), VisitError>;

pub(super) fn recover(
    options: &Options,
    disk: &dyn Disk,
    from: ScanFrom,
    visit: Visit<'_>,
) -> Result<Recovered, OpenError> {
    let mut layout = Layout::read(options, disk)?;
    if layout.headers.is_empty() {
        layout.found(options, disk)?;
    }
    let tail = Tail::find(disk, layout.last())?;
    let checkpoint = find_checkpoint(disk, &layout, &tail)?;
    let mut replay = Replay { disk, layout: &layout, tail: &tail, visit, frames: 0, payload_bytes: 0 };
    replay.run(from, checkpoint.as_ref())?;

    let recovery = Recovery {
        epoch: tail.link.epoch + 1,
        end: tail.end,
        checkpoint: checkpoint.as_ref().map(|c| c.at.scan_from),
        frames: replay.frames,
        payload_bytes: replay.payload_bytes,
        torn_tail: tail.torn.clone(),
    };
    Ok(Recovered {
        start: Start {
            base: tail.next_base,
            limit: layout.last().segment_bytes,
            end: tail.end,
            epoch: recovery.epoch,
            prepared: layout.prepared,
            checkpoint: checkpoint.map(|c| c.at),
        },
        segments: layout.stats(tail.next_base),
        file: tail.file,
        chain: tail.link.chain,
        recovery,
    })
}

pub(super) fn corrupt(segment: u32, offset: u32, damage: &Damage) -> OpenError {
    OpenError::Corrupt { file: segment_file(segment), offset: u64::from(offset), reason: damage.to_string() }
}

/// Damage where everything must be whole.
pub(super) fn refuse(error: ScanError, segment: u32) -> OpenError {
    match error {
        ScanError::Damaged { offset, damage } => corrupt(segment, offset, &damage),
        ScanError::Io(source) => {
            OpenError::Io { action: format!("reading {}", segment_file(segment)), source }
        }
    }
}
