//! The journal's end: found, told torn from corrupt, repaired and secured.

use std::io;
use std::sync::Arc;

use crate::journal::disk::{Disk, DiskFile};
use crate::journal::error::{IoContext, OpenError};
use crate::journal::format::{BLOCK_BYTES, Damage, Position, SegmentHeader, segment_file};
use crate::journal::preparer::write_zeros;
use crate::journal::scan::{Link, ScanError, Scanner};

use super::checkpoint::FoundCheckpoint;
use super::{TornTail, corrupt};

/// The last segment, read to its end and repaired.
pub(super) struct Tail {
    pub(super) file: Arc<dyn DiskFile>,
    pub(super) end: Position,
    /// The block where the next batch goes.
    pub(super) next_base: Position,
    pub(super) link: Link,
    /// The newest checkpoint in this segment.
    pub(super) checkpoint: Option<FoundCheckpoint>,
    pub(super) torn: Option<TornTail>,
}

impl Tail {
    pub(super) fn find(disk: &dyn Disk, header: &SegmentHeader) -> Result<Tail, OpenError> {
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
