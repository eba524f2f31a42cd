//! The newest checkpoint.

use bytes::Bytes;

use crate::journal::disk::Disk;
use crate::journal::error::{IoContext, OpenError};
use crate::journal::format::{Damage, FrameKind, Position, segment_file};
use crate::journal::queue::Checkpoint;
use crate::journal::scan::{Frame, Scanned, Scanner};

use super::layout::Layout;
use super::tail::Tail;
use super::{corrupt, refuse};

/// A checkpoint frame, taken apart.
pub(super) struct FoundCheckpoint {
    pub(super) at: Checkpoint,
    pub(super) frame: Frame,
}

impl FoundCheckpoint {
    pub(super) fn last_in(batch: Scanned) -> Result<Option<FoundCheckpoint>, OpenError> {
        let base = batch.base;
        let last = batch.frames.into_iter().rfind(|frame| frame.kind == FrameKind::Checkpoint);
        let Some(frame) = last else {
            return Ok(None);
        };
        let (scan_from, frame) = open_checkpoint(frame)?;
        Ok(Some(FoundCheckpoint {
            at: Checkpoint { batch: base, scan_from },
            // Kept until it is delivered: must not pin the scanner's window.
            frame: Frame { payload: Bytes::copy_from_slice(&frame.payload), ..frame },
        }))
    }
}

/// Splits the journal's own part off a checkpoint's payload.
pub(super) fn open_checkpoint(mut frame: Frame) -> Result<(Position, Frame), OpenError> {
    let Some(&scan_from) = frame.payload.first_chunk::<8>() else {
        let Position { segment, offset } = frame.position;
        return Err(corrupt(segment, offset, &Damage::CheckpointLength));
    };
    frame.payload = frame.payload.slice(scan_from.len()..);
    frame.position = frame.position.plus(scan_from.len());
    Ok((Position::decode(&scan_from), frame))
}

/// The newest checkpoint: in the last segment, or where that one's header says.
pub(super) fn find_checkpoint(
    disk: &dyn Disk,
    layout: &Layout,
    tail: &Tail,
) -> Result<Option<FoundCheckpoint>, OpenError> {
    if let Some(found) = &tail.checkpoint {
        return Ok(Some(FoundCheckpoint { at: found.at, frame: found.frame.clone() }));
    }
    let batch = layout.last().checkpoint;
    if batch == Position::ZERO {
        return Ok(None);
    }
    let Some(header) = layout.get(batch.segment) else {
        return Err(corrupt(batch.segment, batch.offset, &Damage::Missing));
    };
    if batch.offset >= header.segment_bytes || batch != batch.align_up() {
        return Err(corrupt(batch.segment, batch.offset, &Damage::NoCheckpoint));
    }
    let name = segment_file(batch.segment);
    let file = disk.open(&name).during(|| format!("opening {name}"))?;
    match Scanner::new(file, batch.segment, header.segment_bytes).batch(batch.offset) {
        Ok(scanned) => match FoundCheckpoint::last_in(scanned)? {
            Some(found) => Ok(Some(found)),
            None => Err(corrupt(batch.segment, batch.offset, &Damage::NoCheckpoint)),
        },
        Err(error) => Err(refuse(error, batch.segment)),
    }
}
