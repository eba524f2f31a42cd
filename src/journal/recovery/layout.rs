//! Which segments there are: reads every header, checks that they follow each other, and keeps or
//! removes what was prepared and never used.

use crate::journal::disk::Disk;
use crate::journal::error::{IoContext, OpenError};
use crate::journal::format::{
    AnyHeader, BLOCK_BYTES, Damage, FIRST_SEGMENT, FORMAT_VERSION, Position, SegmentHeader,
    is_unfinished_file, parse_segment_file, segment_file,
};
use crate::journal::options::Options;
use crate::journal::preparer::create_segment;
use crate::journal::scan::Scanner;
use crate::journal::segments::SegmentStats;

use super::corrupt;

/// The segment files and what their headers say.
pub(super) struct Layout {
    /// Valid headers of consecutive segments, oldest first.
    pub(super) headers: Vec<SegmentHeader>,
    /// The highest segment whose file exists, used or not.
    pub(super) prepared: u32,
}

impl Layout {
    pub(super) fn read(options: &Options, disk: &dyn Disk) -> Result<Layout, OpenError> {
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
    pub(super) fn found(&mut self, options: &Options, disk: &dyn Disk) -> Result<(), OpenError> {
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

    pub(super) fn first(&self) -> &SegmentHeader {
        self.headers.first().expect("there is always one segment")
    }

    pub(super) fn last(&self) -> &SegmentHeader {
        self.headers.last().expect("there is always one segment")
    }

    pub(super) fn get(&self, number: u32) -> Option<&SegmentHeader> {
        let index = number.checked_sub(self.first().number)?;
        self.headers.get(index as usize)
    }

    pub(super) fn stats(&self, end: Position) -> Vec<SegmentStats> {
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
