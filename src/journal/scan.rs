//! Reads a segment's batches in order and verifies every byte that means something.

use std::io;
use std::sync::Arc;

use bytes::Bytes;

use super::disk::DiskFile;
use super::format::{
    BATCH_HEADER_BYTES, BLOCK_BYTES, BatchHeader, Damage, FRAME_HEADER_BYTES, FrameHeader, FrameKind, Place,
    Position,
};
use super::options::READ_AHEAD_BYTES;

/// A frame as recovery delivers it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// What it is.
    pub kind: FrameKind,
    /// The Raft group it belongs to.
    pub group: u16,
    /// Where byte 0 of the payload is.
    pub position: Position,
    /// The verified payload. It shares memory with its neighbours: copy what is kept.
    pub payload: Bytes,
}

/// A verified batch.
#[derive(Debug)]
pub(super) struct Scanned {
    pub(super) base: Position,
    pub(super) header: BatchHeader,
    /// The header's CRC, which the next batch must repeat.
    pub(super) crc: u32,
    /// Where its last frame ends.
    pub(super) end: Position,
    pub(super) frames: Vec<Frame>,
}

/// Why a batch could not be had.
#[derive(Debug)]
pub(super) enum ScanError {
    /// The bytes at this offset are not what the journal writes.
    Damaged { offset: u32, damage: Damage },
    /// The disk failed.
    Io(io::Error),
}

impl From<io::Error> for ScanError {
    fn from(error: io::Error) -> Self {
        ScanError::Io(error)
    }
}

fn damaged(at: Position, damage: Damage) -> ScanError {
    ScanError::Damaged { offset: at.offset, damage }
}

/// What the next batch must continue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Link {
    /// CRC of the batch header before.
    pub(super) chain: u32,
    /// Recovery epochs only rise.
    pub(super) epoch: u32,
}

pub(super) struct Scanner {
    file: Arc<dyn DiskFile>,
    segment: u32,
    /// Length of the file.
    len: u32,
    window: Bytes,
    window_at: u32,
}

impl Scanner {
    pub(super) fn new(file: Arc<dyn DiskFile>, segment: u32, len: u32) -> Self {
        Scanner { file, segment, len, window: Bytes::new(), window_at: 0 }
    }

    /// The batch at a block boundary, if it continues `link`.
    pub(super) fn next(&mut self, offset: u32, link: &mut Link) -> Result<Scanned, ScanError> {
        let batch = self.batch(offset)?;
        let before = link.epoch;
        if batch.header.epoch < before {
            let found = batch.header.epoch;
            return Err(damaged(batch.base, Damage::Epoch { before, found }));
        }
        if batch.header.chain != link.chain {
            return Err(damaged(batch.base, Damage::Chain));
        }
        *link = Link { chain: batch.crc, epoch: batch.header.epoch };
        Ok(batch)
    }

    /// The batch at a block boundary, whatever came before it.
    pub(super) fn batch(&mut self, offset: u32) -> Result<Scanned, ScanError> {
        let base = Position::new(self.segment, offset);
        let head = self.get(offset, BATCH_HEADER_BYTES as u32)?;
        let (header, crc) = BatchHeader::decode(&head, base).map_err(|damage| damaged(base, damage))?;
        let room = self.len - offset - BATCH_HEADER_BYTES as u32;
        if header.frames_bytes > room {
            return Err(damaged(base, Damage::BatchLength));
        }
        let first = base.plus(BATCH_HEADER_BYTES);
        let bytes = self.get(first.offset, header.frames_bytes)?;
        let frames = decode_frames(&bytes, first, &header)?;
        Ok(Scanned { base, header, crc, end: first.plus(bytes.len()), frames })
    }

    /// The newest watermark that a batch header at or after `offset` proves, of batches not older
    /// than `epoch`; and where the last byte lies there that is not zero.
    pub(super) fn survey(&mut self, offset: u32, epoch: u32) -> io::Result<Survey> {
        let mut survey = Survey::default();
        for at in (offset..self.len).step_by(BLOCK_BYTES as usize) {
            let block = self.get(at, BLOCK_BYTES)?;
            let Some(last) = block.iter().rposition(|&byte| byte != 0) else {
                continue;
            };
            survey.used_to = at + last as u32 + 1;
            if let Ok((header, _)) = BatchHeader::decode(&block, Position::new(self.segment, at))
                && header.epoch >= epoch
            {
                survey.batches += 1;
                survey.watermark = survey.watermark.max(header.watermark);
            }
        }
        Ok(survey)
    }

    /// Bytes of the file, from the window or from the disk. The caller stays within `len`.
    fn get(&mut self, offset: u32, len: u32) -> io::Result<Bytes> {
        let window_end = self.window_at + self.window.len() as u32;
        if offset < self.window_at || offset + len > window_end {
            let ahead = (READ_AHEAD_BYTES as u32).min(self.len - offset);
            let mut buffer = vec![0; ahead.max(len) as usize];
            self.file.read_at(&mut buffer, u64::from(offset))?;
            self.window = buffer.into();
            self.window_at = offset;
        }
        let from = (offset - self.window_at) as usize;
        Ok(self.window.slice(from..from + len as usize))
    }
}

/// What lies behind the last valid batch.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Survey {
    /// Valid batch headers.
    pub(super) batches: usize,
    /// The newest watermark in them.
    pub(super) watermark: Position,
    /// Offset after the last byte that is not zero; 0 if there is none.
    pub(super) used_to: u32,
}

/// Verifies the frames of a batch, which begin at `first` and must fill `bytes`.
fn decode_frames(bytes: &Bytes, first: Position, header: &BatchHeader) -> Result<Vec<Frame>, ScanError> {
    // The header's CRC is valid, but a wrong count must not become a huge allocation.
    let most = bytes.len() / FRAME_HEADER_BYTES;
    let mut frames = Vec::with_capacity(most.min(header.frame_count as usize));
    let mut at = 0;
    while at < bytes.len() {
        let place = Place { position: first.plus(at), epoch: header.epoch };
        let frame =
            FrameHeader::decode(&bytes[at..], place).map_err(|damage| damaged(place.position, damage))?;
        let begin = at + FRAME_HEADER_BYTES;
        let end = begin
            .checked_add(frame.len as usize)
            .filter(|&end| end <= bytes.len())
            .ok_or_else(|| damaged(place.position, Damage::FrameLength))?;
        let payload = bytes.slice(begin..end);
        let position = first.plus(begin);
        if crc32c::crc32c(&payload) != frame.payload_crc {
            return Err(damaged(position, Damage::PayloadChecksum));
        }
        frames.push(Frame { kind: frame.kind, group: frame.group, position, payload });
        at = end;
    }
    if frames.len() != header.frame_count as usize {
        return Err(damaged(first, Damage::FrameCount));
    }
    Ok(frames)
}
