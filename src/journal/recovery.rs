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

use std::io;
use std::sync::Arc;

use bytes::Bytes;

use super::disk::{Disk, DiskFile};
use super::error::{IoContext, OpenError, VisitError};
use super::format::{
    AnyHeader, BLOCK_BYTES, Damage, FIRST_SEGMENT, FORMAT_VERSION, FrameKind, Position, SegmentHeader,
    is_unfinished_file, parse_segment_file, segment_file,
};
use super::options::Options;
use super::preparer::{create_segment, write_zeros};
use super::queue::{Checkpoint, Start};
use super::scan::{Frame, Link, ScanError, Scanned, Scanner};
use super::segments::SegmentStats;

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

/// The segment files and what their headers say.
struct Layout {
    /// Valid headers of consecutive segments, oldest first.
    headers: Vec<SegmentHeader>,
    /// The highest segment whose file exists, used or not.
    prepared: u32,
}

impl Layout {
    fn read(options: &Options, disk: &dyn Disk) -> Result<Layout, OpenError> {
        let mut numbers = Vec::new();
        for name in disk.list().during(|| "listing the journal".to_owned())? {
            if is_unfinished_file(&name) {
                disk.remove(&name).during(|| format!("removing {name}"))?;
            } else if let Some(number) = parse_segment_file(&name) {
                numbers.push(number);
            }
        }
        // Names seen now may be of a rename that a killed process did not live to sync.
        disk.sync_dir().during(|| "syncing the journal's directory".to_owned())?;
        numbers.sort_unstable();

        let mut headers = Vec::new();
        let mut unused = Vec::new();
        for number in numbers {
            match read_header(options, disk, number)? {
                Ok(header) => {
                    // A bad header in front of a good one is not an unused segment.
                    if let Some((bad, damage)) = unused.first() {
                        return Err(corrupt(*bad, 0, damage));
                    }
                    check_successor(headers.last(), &header)?;
                    headers.push(header);
                }
                Err(damage) => unused.push((number, damage)),
            }
        }
        let mut layout =
            Layout { prepared: headers.last().map_or(FIRST_SEGMENT - 1, |last| last.number), headers };
        layout.keep_unused(options, disk, unused)?;
        Ok(layout)
    }

    /// Files behind the last valid header were prepared and never used; or the header is damaged,
    /// and then batches give it away. Those full of zeros are kept, others removed.
    fn keep_unused(
        &mut self,
        options: &Options,
        disk: &dyn Disk,
        unused: Vec<(u32, Damage)>,
    ) -> Result<(), OpenError> {
        let mut removed = false;
        for (number, damage) in unused {
            if self.headers.is_empty() && number != FIRST_SEGMENT && self.prepared == 0 {
                return Err(corrupt(number, 0, &damage));
            }
            let name = segment_file(number);
            let file = disk.open(&name).during(|| format!("opening {name}"))?;
            let len = file.len().during(|| format!("measuring {name}"))?;
            let whole = len == u64::from(options.segment_bytes);
            let blocks = len.min(u64::from(u32::MAX)) as u32 / BLOCK_BYTES * BLOCK_BYTES;
            let survey =
                Scanner::new(file, number, blocks).survey(0, 0).during(|| format!("reading {name}"))?;
            if survey.batches > 0 {
                return Err(corrupt(number, 0, &damage));
            }
            if whole && survey.used_to == 0 && number == self.prepared + 1 {
                self.prepared = number;
            } else {
                disk.remove(&name).during(|| format!("removing {name}"))?;
                removed = true;
            }
        }
        if removed {
            disk.sync_dir().during(|| "syncing the journal's directory".to_owned())?;
        }
        Ok(())
    }

    /// Begins an empty journal.
    fn found(&mut self, options: &Options, disk: &dyn Disk) -> Result<(), OpenError> {
        let name = segment_file(FIRST_SEGMENT);
        if self.prepared < FIRST_SEGMENT {
            create_segment(disk, FIRST_SEGMENT, options.segment_bytes)
                .during(|| format!("creating {name}"))?;
            self.prepared = FIRST_SEGMENT;
        }
        let header = SegmentHeader {
            number: FIRST_SEGMENT,
            node_id: options.node_id,
            segment_bytes: options.segment_bytes,
            epoch: 0,
            previous_end: Position::ZERO,
            previous_chain: 0,
            checkpoint: Position::ZERO,
        };
        disk.open(&name)
            .and_then(|file| {
                file.write_at(&header.encode(), 0)?;
                file.sync_data()
            })
            .during(|| format!("writing {name}"))?;
        self.headers.push(header);
        Ok(())
    }

    fn first(&self) -> &SegmentHeader {
        self.headers.first().expect("there is always one segment")
    }

    fn last(&self) -> &SegmentHeader {
        self.headers.last().expect("there is always one segment")
    }

    fn get(&self, number: u32) -> Option<&SegmentHeader> {
        let index = number.checked_sub(self.first().number)?;
        self.headers.get(index as usize)
    }

    fn stats(&self, end: Position) -> Vec<SegmentStats> {
        let ends = self.headers[1..].iter().map(|next| next.previous_end);
        self.headers
            .iter()
            .zip(ends.chain([end]))
            .map(|(header, end)| SegmentStats {
                segment: header.number,
                used_bytes: if end.segment == header.number { end.offset } else { BLOCK_BYTES },
                file_bytes: header.segment_bytes,
            })
            .collect()
    }
}

/// The header of a segment file; the inner error means that the block is not a valid one.
fn read_header(
    options: &Options,
    disk: &dyn Disk,
    number: u32,
) -> Result<Result<SegmentHeader, Damage>, OpenError> {
    let name = segment_file(number);
    let file = disk.open(&name).during(|| format!("opening {name}"))?;
    let len = file.len().during(|| format!("measuring {name}"))?;
    let mut block = vec![0; len.min(u64::from(BLOCK_BYTES)) as usize];
    file.read_at(&mut block, 0).during(|| format!("reading {name}"))?;
    let header = match SegmentHeader::decode(&block) {
        Ok(AnyHeader::Current(header)) => header,
        Ok(AnyHeader::Newer(found)) => {
            return Err(OpenError::NewerFormat { file: name, found, newest: FORMAT_VERSION });
        }
        Err(damage) => return Ok(Err(damage)),
    };
    if header.number != number {
        let found = header.number;
        return Err(corrupt(number, 0, &Damage::SegmentNumber { found }));
    }
    if header.node_id != options.node_id {
        return Err(OpenError::ForeignNode { file: name, expected: options.node_id, found: header.node_id });
    }
    let whole_blocks = header.segment_bytes.is_multiple_of(BLOCK_BYTES);
    if u64::from(header.segment_bytes) != len || !whole_blocks {
        let expected = header.segment_bytes;
        return Err(corrupt(number, 0, &Damage::FileLength { expected, found: len }));
    }
    Ok(Ok(header))
}

/// Segments follow each other without a gap, and each says where the one before it ended.
fn check_successor(previous: Option<&SegmentHeader>, header: &SegmentHeader) -> Result<(), OpenError> {
    let Some(previous) = previous else {
        return Ok(());
    };
    if header.number != previous.number + 1 {
        return Err(corrupt(previous.number + 1, 0, &Damage::Missing));
    }
    if header.epoch < previous.epoch {
        let damage = Damage::Epoch { before: previous.epoch, found: header.epoch };
        return Err(corrupt(header.number, 0, &damage));
    }
    // A segment in which nothing was written passes its own predecessor's end on.
    let within = header.previous_end.segment == previous.number
        && (BLOCK_BYTES..=previous.segment_bytes).contains(&header.previous_end.offset);
    if !within && header.previous_end != previous.previous_end {
        let damage = Damage::SegmentEnd { expected: header.previous_end };
        return Err(corrupt(previous.number, 0, &damage));
    }
    Ok(())
}

/// The last segment, read to its end and repaired.
struct Tail {
    file: Arc<dyn DiskFile>,
    end: Position,
    /// The block where the next batch goes.
    next_base: Position,
    link: Link,
    /// The newest checkpoint in this segment.
    checkpoint: Option<FoundCheckpoint>,
    torn: Option<TornTail>,
}

impl Tail {
    fn find(disk: &dyn Disk, header: &SegmentHeader) -> Result<Tail, OpenError> {
        let name = segment_file(header.number);
        let file = disk.open(&name).during(|| format!("opening {name}"))?;
        let mut scanner = Scanner::new(Arc::clone(&file), header.number, header.segment_bytes);
        let mut tail = Tail {
            file,
            end: header.previous_end,
            next_base: Position::new(header.number, BLOCK_BYTES),
            link: Link { chain: header.previous_chain, epoch: header.epoch },
            checkpoint: None,
            torn: None,
        };
        let mut unproven = 0;
        while tail.next_base.offset < header.segment_bytes {
            match scanner.next(tail.next_base.offset, &mut tail.link) {
                Ok(batch) => {
                    unproven = batch.base.offset;
                    tail.end = batch.end;
                    tail.next_base = batch.end.align_up();
                    if let Some(found) = FoundCheckpoint::last_in(batch)? {
                        tail.checkpoint = Some(found);
                    }
                }
                Err(ScanError::Io(error)) => return Err(error).during(|| format!("reading {name}")),
                Err(ScanError::Damaged { offset, damage }) => {
                    tail.cut(&mut scanner, header, offset, &damage)?;
                    break;
                }
            }
        }
        tail.secure(unproven).during(|| format!("securing the end of {name}"))?;
        Ok(tail)
    }

    /// Makes sure of what no later batch proves: the last batch, or the header if there is none. A
    /// killed process may have left it in the page cache only; and if its fsync failed, the kernel
    /// holds it for clean and will not write it by itself. From here on it is relied on.
    fn secure(&self, from: u32) -> io::Result<()> {
        let len = match from {
            0 => BLOCK_BYTES,
            _ => self.next_base.offset - from,
        };
        let mut bytes = vec![0; len as usize];
        self.file.read_at(&mut bytes, u64::from(from))?;
        self.file.write_at(&bytes, u64::from(from))?;
        self.file.sync_data()
    }

    /// Clears everything from `next_base` on, unless it had been synced.
    fn cut(
        &mut self,
        scanner: &mut Scanner,
        header: &SegmentHeader,
        offset: u32,
        damage: &Damage,
    ) -> Result<(), OpenError> {
        let name = segment_file(header.number);
        let from = self.next_base.offset;
        let survey = scanner.survey(from, self.link.epoch).during(|| format!("reading {name}"))?;
        if survey.watermark > self.next_base {
            return Err(corrupt(header.number, offset, damage));
        }
        if survey.used_to == 0 {
            return Ok(());
        }
        let to = survey.used_to.next_multiple_of(BLOCK_BYTES);
        write_zeros(&*self.file, u64::from(from), u64::from(to))
            .during(|| format!("clearing the end of {name}"))?;
        tracing::warn!(
            event = "journal_torn_tail",
            file = name,
            offset = from,
            bytes = survey.used_to - from,
            reason = %damage,
            "cut off what a crash left unfinished"
        );
        self.torn = Some(TornTail {
            file: name,
            offset: from,
            bytes: survey.used_to - from,
            reason: damage.to_string(),
        });
        Ok(())
    }
}

/// A checkpoint frame, taken apart.
struct FoundCheckpoint {
    at: Checkpoint,
    frame: Frame,
}

impl FoundCheckpoint {
    fn last_in(batch: Scanned) -> Result<Option<FoundCheckpoint>, OpenError> {
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
fn open_checkpoint(mut frame: Frame) -> Result<(Position, Frame), OpenError> {
    let Some(&scan_from) = frame.payload.first_chunk::<8>() else {
        let Position { segment, offset } = frame.position;
        return Err(corrupt(segment, offset, &Damage::CheckpointLength));
    };
    frame.payload = frame.payload.slice(scan_from.len()..);
    frame.position = frame.position.plus(scan_from.len());
    Ok((Position::decode(&scan_from), frame))
}

/// The newest checkpoint: in the last segment, or where that one's header says.
fn find_checkpoint(
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

/// Delivers frames.
struct Replay<'a> {
    disk: &'a dyn Disk,
    layout: &'a Layout,
    tail: &'a Tail,
    visit: Visit<'a>,
    frames: u64,
    payload_bytes: u64,
}

impl Replay<'_> {
    fn run(&mut self, from: ScanFrom, checkpoint: Option<&FoundCheckpoint>) -> Result<(), OpenError> {
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

fn corrupt(segment: u32, offset: u32, damage: &Damage) -> OpenError {
    OpenError::Corrupt { file: segment_file(segment), offset: u64::from(offset), reason: damage.to_string() }
}

/// Damage where everything must be whole.
fn refuse(error: ScanError, segment: u32) -> OpenError {
    match error {
        ScanError::Damaged { offset, damage } => corrupt(segment, offset, &damage),
        ScanError::Io(source) => {
            OpenError::Io { action: format!("reading {}", segment_file(segment)), source }
        }
    }
}
