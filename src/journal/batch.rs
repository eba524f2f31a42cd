//! The batch being filled, and the batch being written.
//!
//! Frames are encoded where they will be written from: an append copies its payload once, into
//! [`Batch::bytes`], and the writer hands that buffer to the disk as it is.

use std::io;

use super::format::{
    BATCH_HEADER_BYTES, BLOCK_BYTES, BatchHeader, FRAME_HEADER_BYTES, FrameHeader, FrameKind, Place, Position,
};

/// Called on the writer thread once everything up to and including an append is on disk, or with
/// the error that poisoned the journal. Must be cheap: the next batch waits for it.
pub type Completion = Box<dyn FnOnce(io::Result<()>) + Send>;

/// A frame to append. The payload is the concatenation of its slices.
#[derive(Clone, Copy, Debug)]
pub struct Draft<'a> {
    /// Any kind but `Checkpoint` and `Watermark`, which the journal writes itself.
    pub kind: FrameKind,
    /// The Raft group, opaque to the journal.
    pub group: u16,
    /// The payload's pieces.
    pub payload: &'a [&'a [u8]],
}

/// What of a frame is known before its position is: computed outside the append lock.
#[derive(Clone, Copy, Debug)]
pub(super) struct Measured {
    pub(super) len: u32,
    pub(super) crc: u32,
}

impl Draft<'_> {
    /// Bytes on disk, in a type that cannot overflow.
    pub(super) fn disk_bytes(&self) -> u64 {
        let payload: u64 = self.payload.iter().map(|piece| piece.len() as u64).sum();
        payload + FRAME_HEADER_BYTES as u64
    }

    /// The caller has checked that the frame fits into a segment.
    pub(super) fn measure(&self) -> Measured {
        let mut measured = Measured { len: 0, crc: 0 };
        for piece in self.payload {
            measured.len += piece.len() as u32;
            measured.crc = crc32c::crc32c_append(measured.crc, piece);
        }
        measured
    }
}

/// Frames of one segment that will be written together.
pub(super) struct Batch {
    pub(super) base: Position,
    epoch: u32,
    /// A placeholder for the header, then frames.
    bytes: Vec<u8>,
    pub(super) frames: u32,
    pub(super) completions: Vec<Completion>,
    /// Somebody waits for it, so that it must not wait for company.
    pub(super) urgent: bool,
    /// `scan_from` of the last checkpoint frame in it.
    pub(super) checkpoint: Option<Position>,
}

impl Batch {
    pub(super) fn new(base: Position, epoch: u32, mut buffer: Vec<u8>) -> Self {
        debug_assert_eq!(base, base.align_up());
        buffer.clear();
        buffer.resize(BATCH_HEADER_BYTES, 0);
        Batch {
            base,
            epoch,
            bytes: buffer,
            frames: 0,
            completions: Vec::new(),
            urgent: false,
            checkpoint: None,
        }
    }

    /// An append without frames still has a completion to call.
    pub(super) fn is_empty(&self) -> bool {
        self.frames == 0 && self.completions.is_empty()
    }

    /// Where the last frame ends.
    pub(super) fn end(&self) -> Position {
        self.base.plus(self.bytes.len())
    }

    /// Bytes of frames, with their headers.
    pub(super) fn frames_bytes(&self) -> usize {
        self.bytes.len() - BATCH_HEADER_BYTES
    }

    /// Adds a frame and returns where its payload begins.
    pub(super) fn push(&mut self, draft: &Draft<'_>, measured: Measured) -> Position {
        let header = FrameHeader {
            len: measured.len,
            payload_crc: measured.crc,
            kind: draft.kind,
            group: draft.group,
        };
        let place = Place { position: self.end(), epoch: self.epoch };
        self.bytes.extend_from_slice(&header.encode(place));
        let payload_at = self.end();
        for piece in draft.payload {
            self.bytes.extend_from_slice(piece);
        }
        self.frames += 1;
        payload_at
    }

    /// Fills in the header and pads to the block. Only now is it known what precedes the batch.
    pub(super) fn seal(mut self, chain: u32, watermark: Position) -> (Sealed, Vec<Completion>) {
        let header = BatchHeader {
            epoch: self.epoch,
            frames_bytes: self.frames_bytes() as u32,
            frame_count: self.frames,
            chain,
            watermark,
        };
        let (header, crc) = header.encode(self.base);
        self.bytes[..BATCH_HEADER_BYTES].copy_from_slice(&header);
        let sealed = Sealed {
            base: self.base,
            end: self.end(),
            frames: self.frames,
            crc,
            urgent: self.urgent,
            checkpoint: self.checkpoint,
            bytes: {
                let padded = self.bytes.len().next_multiple_of(BLOCK_BYTES as usize);
                self.bytes.resize(padded, 0);
                self.bytes
            },
        };
        (sealed, self.completions)
    }

    /// Copies a range out, if it lies in this batch.
    pub(super) fn read(&self, at: Position, len: u32) -> Option<&[u8]> {
        range_of(self.base, &self.bytes, at, len)
    }
}

/// A batch as it goes to disk. Readers may hold it while it is written.
pub(super) struct Sealed {
    pub(super) base: Position,
    /// Where the last frame ends, before the padding.
    pub(super) end: Position,
    pub(super) frames: u32,
    /// The header's CRC, which the next batch repeats.
    pub(super) crc: u32,
    pub(super) urgent: bool,
    pub(super) checkpoint: Option<Position>,
    /// Header, frames, padding.
    pub(super) bytes: Vec<u8>,
}

impl Sealed {
    /// What this batch took of the queue's bound.
    pub(super) fn frames_bytes(&self) -> usize {
        (self.end.offset - self.base.offset) as usize - BATCH_HEADER_BYTES
    }

    pub(super) fn contains(&self, at: Position, len: u32) -> bool {
        self.read(at, len).is_some()
    }

    pub(super) fn read(&self, at: Position, len: u32) -> Option<&[u8]> {
        range_of(self.base, &self.bytes, at, len)
    }
}

fn range_of(base: Position, bytes: &[u8], at: Position, len: u32) -> Option<&[u8]> {
    if at.segment != base.segment {
        return None;
    }
    let from = at.offset.checked_sub(base.offset)? as usize;
    bytes.get(from..from.checked_add(len as usize)?)
}
