//! Delivers frames in order, checking that every segment is whole.

use crate::journal::disk::Disk;
use crate::journal::error::{IoContext, OpenError};
use crate::journal::format::{BLOCK_BYTES, Damage, FIRST_SEGMENT, FrameKind, Position, segment_file};
use crate::journal::scan::{Frame, Link, Scanner};

use super::checkpoint::{FoundCheckpoint, open_checkpoint};
use super::layout::Layout;
use super::tail::Tail;
use super::{ScanFrom, Visit, corrupt, refuse};

/// Delivers frames.
pub(super) struct Replay<'a> {
    pub(super) disk: &'a dyn Disk,
    pub(super) layout: &'a Layout,
    pub(super) tail: &'a Tail,
    pub(super) visit: Visit<'a>,
    pub(super) frames: u64,
    pub(super) payload_bytes: u64,
}

impl Replay<'_> {
    pub(super) fn run(
        &mut self,
        from: ScanFrom,
        checkpoint: Option<&FoundCheckpoint>,
    ) -> Result<(), OpenError> {
        let checkpoint = checkpoint.filter(|_| from == ScanFrom::Checkpoint);
        let first = self.layout.first().number;
        let scan_from = match checkpoint {
            Some(checkpoint) => {
                self.deliver(checkpoint.frame.clone())?;
                // A checkpoint of the still empty journal covers it from the beginning.
                checkpoint.at.scan_from.max(Position::new(FIRST_SEGMENT, 0))
            }
            None => Position::new(first, 0),
        };
        if scan_from.segment < first {
            return Err(corrupt(scan_from.segment, 0, &Damage::Missing));
        }
        for segment in scan_from.segment..=self.layout.last().number {
            self.segment(segment, scan_from, checkpoint.is_some())?;
        }
        Ok(())
    }

    /// Delivers the frames of one segment, and checks that it is whole.
    fn segment(
        &mut self,
        number: u32,
        scan_from: Position,
        without_checkpoints: bool,
    ) -> Result<(), OpenError> {
        let header = self.layout.get(number);
        let header = header.ok_or_else(|| corrupt(number, 0, &Damage::Missing))?;
        let (end, last_crc) = match self.layout.get(number + 1) {
            Some(next) => (next.previous_end, next.previous_chain),
            None => (self.tail.end, self.tail.link.chain),
        };
        let name = segment_file(number);
        let file = self.disk.open(&name).during(|| format!("opening {name}"))?;
        let mut scanner = Scanner::new(file, number, header.segment_bytes);
        let mut link = Link { chain: header.previous_chain, epoch: header.epoch };
        let mut reached = header.previous_end;
        while reached < end {
            let base = match reached.segment == number {
                true => reached.align_up().offset,
                false => BLOCK_BYTES,
            };
            if base >= header.segment_bytes {
                return Err(corrupt(number, base, &Damage::SegmentEnd { expected: end }));
            }
            let batch = scanner.next(base, &mut link).map_err(|e| refuse(e, number))?;
            reached = batch.end;
            for frame in batch.frames {
                if frame.position >= scan_from {
                    self.frame(frame, without_checkpoints)?;
                }
            }
        }
        if reached != end || link.chain != last_crc {
            let damage = Damage::SegmentEnd { expected: end };
            return Err(corrupt(number, reached.offset, &damage));
        }
        Ok(())
    }

    fn frame(&mut self, frame: Frame, without_checkpoints: bool) -> Result<(), OpenError> {
        match frame.kind {
            FrameKind::Watermark => Ok(()),
            FrameKind::Checkpoint if without_checkpoints => Ok(()),
            FrameKind::Checkpoint => self.deliver(open_checkpoint(frame)?.1),
            _ => self.deliver(frame),
        }
    }

    fn deliver(&mut self, frame: Frame) -> Result<(), OpenError> {
        let position = frame.position;
        self.frames += 1;
        self.payload_bytes += frame.payload.len() as u64;
        (self.visit)(frame).map_err(|source| OpenError::Visit { position, source })
    }
}
