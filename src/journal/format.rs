//! The journal's bytes on disk: segment header, batch header, frame header. Pure: no IO.
//!
//! All integers are little-endian. A segment file is a sequence of 4 KiB blocks:
//!
//! ```text
//! segment header   one block, see [`SegmentHeader`]
//! batch            starts on a block boundary: 32-byte [`BatchHeader`], frames, zeros to the block's end
//! batch            ...
//! zeros            to the end of the file
//! ```
//!
//! A frame is a 16-byte [`FrameHeader`] and its payload. Every header carries a CRC32C of itself,
//! and those of batches and frames are seeded with the place they are meant for (segment, offset,
//! recovery epoch), so that neither a misdirected write nor bytes of an earlier life of the file
//! pass for valid. The payload's own CRC32C lies inside its frame header: it needs no position and
//! is computed before the append takes its lock. Only the zeros that fill a batch's last block are
//! covered by nothing, and nothing reads them.
//!
//! Versioning: every format version keeps magic, version and CRC of the segment header where they
//! are, so that an older release can tell "newer" from "damaged".

use std::fmt;

/// The unit of alignment: segment headers fill one block, batches start on one.
pub(super) const BLOCK_BYTES: u32 = 4096;
pub(super) const BATCH_HEADER_BYTES: usize = 32;
pub(crate) const FRAME_HEADER_BYTES: usize = 16;
/// The newest format version, which is the one written.
pub(super) const FORMAT_VERSION: u16 = 1;
/// Segment numbers start here, so that 0 can mean "none".
pub const FIRST_SEGMENT: u32 = 1;

const SEGMENT_MAGIC: [u8; 8] = *b"FPJOURNL";
/// Contains bytes that no JSON text contains, so that a client's message cannot look like a batch.
const BATCH_MAGIC: [u8; 4] = [0xB7, 0x00, b'F', 0x01];
const SEGMENT_CRC_AT: usize = BLOCK_BYTES as usize - 4;

/// A place in the journal. Ordered as the journal is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Position {
    /// Segment number, from 1.
    pub segment: u32,
    /// Byte offset in the segment's file.
    pub offset: u32,
}

impl Position {
    /// Before everything; no frame is ever here.
    pub const ZERO: Position = Position { segment: 0, offset: 0 };

    pub(super) fn new(segment: u32, offset: u32) -> Self {
        Position { segment, offset }
    }

    pub(super) fn pack(self) -> u64 {
        u64::from(self.segment) << 32 | u64::from(self.offset)
    }

    pub(super) fn unpack(packed: u64) -> Self {
        Position::new((packed >> 32) as u32, packed as u32)
    }

    /// `bytes` further on in the same segment.
    pub(super) fn plus(self, bytes: usize) -> Self {
        Position::new(self.segment, self.offset + bytes as u32)
    }

    /// The first block boundary at or after this position.
    pub(super) fn align_up(self) -> Self {
        Position::new(self.segment, self.offset.next_multiple_of(BLOCK_BYTES))
    }

    pub(super) fn encode(self) -> [u8; 8] {
        let mut bytes = [0; 8];
        bytes[..4].copy_from_slice(&self.segment.to_le_bytes());
        bytes[4..].copy_from_slice(&self.offset.to_le_bytes());
        bytes
    }

    pub(super) fn decode(bytes: &[u8; 8]) -> Self {
        Position::new(u32_at(bytes, 0), u32_at(bytes, 4))
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.segment, self.offset)
    }
}

/// What a frame is. The journal itself gives meaning to `Checkpoint` and `Watermark` only.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub enum FrameKind {
    /// A Raft log entry.
    Entry = 1,
    /// A Raft vote.
    Vote = 2,
    /// Entries after an index are void.
    TruncateAfter = 3,
    /// Entries up to an index are no longer needed by Raft.
    PurgeTo = 4,
    /// The committed log id, written lazily.
    Committed = 5,
    /// Where recovery may start; written by [`Journal::checkpoint`](super::Journal::checkpoint).
    Checkpoint = 6,
    /// Begin of an import (snapshot install, segment rewrite).
    ImportBegin = 7,
    /// A block of imported data.
    Import = 8,
    /// End of an import; without it the import does not count.
    ImportCommit = 9,
    /// Carries nothing: its batch proves what lies before it. Never delivered to a visitor.
    Watermark = 10,
    /// Which replica of the group this node holds from here on; nothing before it counts for the group.
    Replica = 11,
}

impl FrameKind {
    /// Every kind, in the order of the ordinals.
    pub const ALL: [FrameKind; 11] = [
        FrameKind::Entry,
        FrameKind::Vote,
        FrameKind::TruncateAfter,
        FrameKind::PurgeTo,
        FrameKind::Committed,
        FrameKind::Checkpoint,
        FrameKind::ImportBegin,
        FrameKind::Import,
        FrameKind::ImportCommit,
        FrameKind::Watermark,
        FrameKind::Replica,
    ];

    fn from_ordinal(ordinal: u8) -> Option<Self> {
        let index = usize::from(ordinal).checked_sub(1)?;
        FrameKind::ALL.get(index).copied()
    }
}

/// Why bytes are not what the journal wrote; becomes the reason in `OpenError::Corrupt`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Damage {
    #[error("the segment header's magic is wrong")]
    SegmentMagic,
    #[error("the segment header's checksum does not match")]
    SegmentChecksum,
    #[error("the batch header's magic is wrong")]
    BatchMagic,
    #[error("the batch header's checksum does not match")]
    BatchChecksum,
    #[error("the batch runs past the end of the segment")]
    BatchLength,
    #[error("the batch's frames do not fill it exactly")]
    FrameCount,
    #[error("the frame header's checksum does not match")]
    FrameChecksum,
    #[error("the frame runs past the end of its batch")]
    FrameLength,
    #[error("the frame has the unknown kind {0}")]
    FrameKind(u8),
    #[error("the frame's payload does not match its checksum")]
    PayloadChecksum,
    #[error("a checkpoint frame is too short")]
    CheckpointLength,
    #[error("the batch does not continue the one before it")]
    Chain,
    #[error("the recovery epoch goes back from {before} to {found}")]
    Epoch { before: u32, found: u32 },
    #[error("the segment header is of segment {found}")]
    SegmentNumber { found: u32 },
    #[error("the file has {found} bytes and its header says {expected}")]
    FileLength { expected: u32, found: u64 },
    #[error("the header of the next segment says that this one ends at {expected}")]
    SegmentEnd { expected: Position },
    #[error("the segment is missing")]
    Missing,
    #[error("the segment names a checkpoint here, and there is none")]
    NoCheckpoint,
}

/// Where, and in which life of the journal, a header is valid: mixed into its CRC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) position: Position,
    pub(super) epoch: u32,
}

impl Place {
    fn crc_of(self, bytes: &[u8]) -> u32 {
        let mut seed = [0; 12];
        seed[..8].copy_from_slice(&self.position.encode());
        seed[8..].copy_from_slice(&self.epoch.to_le_bytes());
        crc32c::crc32c_append(crc32c::crc32c(&seed), bytes)
    }
}

/// The first block of a segment file.
///
/// ```text
/// 0 magic[8] | 8 version u16 | 10 zero u16 | 12 number u32 | 16 node u128 | 32 segment_bytes u32
/// 36 epoch u32 | 40 previous_end Position | 48 previous_chain u32 | 52 checkpoint Position
/// 60 zeros | 4092 CRC32C of everything before
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SegmentHeader {
    pub(super) number: u32,
    pub(super) node_id: u128,
    /// Length of the file.
    pub(super) segment_bytes: u32,
    pub(super) epoch: u32,
    /// Where the previous segment's last frame ends; `Position::ZERO` in the very first segment.
    /// Everything before it was synced when this header was written.
    pub(super) previous_end: Position,
    /// CRC of the previous segment's last batch header.
    pub(super) previous_chain: u32,
    /// The batch that held the newest synced checkpoint when this header was written, or zero.
    pub(super) checkpoint: Position,
}

/// A decoded segment header, or the version of one that only a later release understands.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum AnyHeader {
    Current(SegmentHeader),
    Newer(u16),
}

impl SegmentHeader {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut block = vec![0; BLOCK_BYTES as usize];
        block[0..8].copy_from_slice(&SEGMENT_MAGIC);
        block[8..10].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
        block[12..16].copy_from_slice(&self.number.to_le_bytes());
        block[16..32].copy_from_slice(&self.node_id.to_le_bytes());
        block[32..36].copy_from_slice(&self.segment_bytes.to_le_bytes());
        block[36..40].copy_from_slice(&self.epoch.to_le_bytes());
        block[40..48].copy_from_slice(&self.previous_end.encode());
        block[48..52].copy_from_slice(&self.previous_chain.to_le_bytes());
        block[52..60].copy_from_slice(&self.checkpoint.encode());
        let crc = crc32c::crc32c(&block[..SEGMENT_CRC_AT]);
        block[SEGMENT_CRC_AT..].copy_from_slice(&crc.to_le_bytes());
        block
    }

    pub(super) fn decode(block: &[u8]) -> Result<AnyHeader, Damage> {
        if block.len() < BLOCK_BYTES as usize || block[..8] != SEGMENT_MAGIC {
            return Err(Damage::SegmentMagic);
        }
        if crc32c::crc32c(&block[..SEGMENT_CRC_AT]) != u32_at(block, SEGMENT_CRC_AT) {
            return Err(Damage::SegmentChecksum);
        }
        let version = u16::from_le_bytes(array_at(block, 8));
        if version > FORMAT_VERSION {
            return Ok(AnyHeader::Newer(version));
        }
        Ok(AnyHeader::Current(SegmentHeader {
            number: u32_at(block, 12),
            node_id: u128::from_le_bytes(array_at(block, 16)),
            segment_bytes: u32_at(block, 32),
            epoch: u32_at(block, 36),
            previous_end: Position::decode(&array_at(block, 40)),
            previous_chain: u32_at(block, 48),
            checkpoint: Position::decode(&array_at(block, 52)),
        }))
    }
}

/// The head of a batch: the frames one write and one fsync made durable.
///
/// ```text
/// 0 magic[4] | 4 CRC32C u32 (seeded; of the rest) | 8 epoch u32 | 12 frames_bytes u32
/// 16 frame_count u32 | 20 chain u32 | 24 watermark Position
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BatchHeader {
    pub(super) epoch: u32,
    /// Length of the frames after the header, without the padding.
    pub(super) frames_bytes: u32,
    pub(super) frame_count: u32,
    /// CRC of the batch header before this one, across segments.
    pub(super) chain: u32,
    /// Everything before this position was synced when the batch was written.
    pub(super) watermark: Position,
}

impl BatchHeader {
    /// Returns the bytes and their CRC, which the next batch's `chain` repeats.
    pub(super) fn encode(&self, position: Position) -> ([u8; BATCH_HEADER_BYTES], u32) {
        let mut bytes = [0; BATCH_HEADER_BYTES];
        bytes[0..4].copy_from_slice(&BATCH_MAGIC);
        bytes[8..12].copy_from_slice(&self.epoch.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.frames_bytes.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.frame_count.to_le_bytes());
        bytes[20..24].copy_from_slice(&self.chain.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.watermark.encode());
        let place = Place { position, epoch: self.epoch };
        let crc = place.crc_of(&bytes[8..]);
        bytes[4..8].copy_from_slice(&crc.to_le_bytes());
        (bytes, crc)
    }

    /// Returns the header and its CRC.
    pub(super) fn decode(bytes: &[u8], position: Position) -> Result<(BatchHeader, u32), Damage> {
        if bytes.len() < BATCH_HEADER_BYTES || bytes[..4] != BATCH_MAGIC {
            return Err(Damage::BatchMagic);
        }
        let header = BatchHeader {
            epoch: u32_at(bytes, 8),
            frames_bytes: u32_at(bytes, 12),
            frame_count: u32_at(bytes, 16),
            chain: u32_at(bytes, 20),
            watermark: Position::decode(&array_at(bytes, 24)),
        };
        let crc = u32_at(bytes, 4);
        let place = Place { position, epoch: header.epoch };
        if place.crc_of(&bytes[8..BATCH_HEADER_BYTES]) != crc {
            return Err(Damage::BatchChecksum);
        }
        Ok((header, crc))
    }
}

/// The head of a frame.
///
/// ```text
/// 0 CRC32C u32 (seeded; of the rest) | 4 length u32 | 8 payload CRC32C u32 | 12 kind u8 | 13 zero u8
/// 14 group u16
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FrameHeader {
    /// Length of the payload.
    pub(super) len: u32,
    /// CRC32C of the payload, unseeded.
    pub(super) payload_crc: u32,
    pub(super) kind: FrameKind,
    pub(super) group: u16,
}

impl FrameHeader {
    pub(super) fn encode(&self, place: Place) -> [u8; FRAME_HEADER_BYTES] {
        let mut bytes = [0; FRAME_HEADER_BYTES];
        bytes[4..8].copy_from_slice(&self.len.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.payload_crc.to_le_bytes());
        bytes[12] = self.kind as u8;
        bytes[14..16].copy_from_slice(&self.group.to_le_bytes());
        let crc = place.crc_of(&bytes[4..]);
        bytes[0..4].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    pub(super) fn decode(bytes: &[u8], place: Place) -> Result<FrameHeader, Damage> {
        if bytes.len() < FRAME_HEADER_BYTES {
            return Err(Damage::FrameLength);
        }
        if place.crc_of(&bytes[4..FRAME_HEADER_BYTES]) != u32_at(bytes, 0) {
            return Err(Damage::FrameChecksum);
        }
        let kind = FrameKind::from_ordinal(bytes[12]).ok_or(Damage::FrameKind(bytes[12]))?;
        Ok(FrameHeader {
            len: u32_at(bytes, 4),
            payload_crc: u32_at(bytes, 8),
            kind,
            group: u16::from_le_bytes(array_at(bytes, 14)),
        })
    }
}

/// The file that holds a segment.
pub(crate) fn segment_file(number: u32) -> String {
    format!("{number:010}.segment")
}

/// The name a segment has until it is filled with zeros and synced.
pub(super) fn unfinished_file(number: u32) -> String {
    format!("{number:010}.unfinished")
}

/// The number in a name made by [`segment_file`].
pub(super) fn parse_segment_file(name: &str) -> Option<u32> {
    let number = name.strip_suffix(".segment")?.parse().ok()?;
    (segment_file(number) == name).then_some(number)
}

/// Whether [`unfinished_file`] made this name.
pub(super) fn is_unfinished_file(name: &str) -> bool {
    name.ends_with(".unfinished")
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(array_at(bytes, at))
}

fn array_at<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut array = [0; N];
    array.copy_from_slice(&bytes[at..at + N]);
    array
}
