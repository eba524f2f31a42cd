//! The thread that keeps disk space ready: one zero-filled, synced segment ahead of the one being
//! filled, and an eye on what is free.
//!
//! A segment gets its final name only after its zeros are on disk, so that a file of that name
//! always has its full length. Lack of space is a state, not a failure: it is looked at again every
//! `space_interval`, always with a fresh file. Any other error poisons the journal.

use std::io;
use std::sync::Arc;
use std::time::Instant;

use super::disk::{Disk, DiskFile, is_no_space};
use super::format::{segment_file, unfinished_file};
use super::options::ZERO_CHUNK_BYTES;
use super::queue::Space;
use super::shared::Shared;

pub(super) struct Preparer {
    pub(super) shared: Arc<Shared>,
    pub(super) disk: Arc<dyn Disk>,
    /// The last attempt to create a segment found no space.
    pub(super) exhausted: bool,
}

impl Preparer {
    /// Prepares segments until the journal is closed or poisoned.
    pub(super) fn run(mut self) {
        let interval = self.shared.options.space_interval;
        let mut look_at = Instant::now();
        // After a failure for lack of space nothing is tried before the next look.
        let mut hold = false;
        loop {
            match self.shared.next_preparation(hold, look_at) {
                Err(_ended) => return,
                Ok(Some(segment)) => {
                    self.prepare(segment);
                    hold = self.exhausted;
                }
                Ok(None) => {
                    self.look_at_space();
                    look_at = Instant::now() + interval;
                    hold = false;
                }
            }
        }
    }

    pub(super) fn look_at_space(&mut self) {
        // Without an answer, what was known last still holds.
        let Ok(free) = self.disk.free_bytes() else {
            return;
        };
        let space = if self.exhausted {
            Space::Exhausted
        } else if free < self.shared.options.reserve_bytes {
            Space::Low
        } else {
            Space::Ample
        };
        self.shared.set_space(space, free);
    }

    pub(super) fn prepare(&mut self, segment: u32) {
        match create_segment(&*self.disk, segment, self.shared.options.segment_bytes) {
            Ok(()) => {
                self.exhausted = false;
                self.shared.set_prepared(segment);
            }
            Err(error) if is_no_space(&error) => {
                self.exhausted = true;
                // Failing to remove it is no worse than having it: the next attempt empties it.
                let _ = self.disk.remove(&unfinished_file(segment));
            }
            Err(error) => {
                let reason = format!("preparing {}: {error}", segment_file(segment));
                self.shared.poison(reason, Vec::new());
                return;
            }
        }
        self.look_at_space();
    }
}

/// Creates a segment file full of zeros. When this returns, file and name survive a power loss.
pub(super) fn create_segment(disk: &dyn Disk, segment: u32, bytes: u32) -> io::Result<()> {
    let unfinished = unfinished_file(segment);
    let file = disk.create(&unfinished)?;
    file.allocate(u64::from(bytes))?;
    write_zeros(&*file, 0, u64::from(bytes))?;
    disk.rename(&unfinished, &segment_file(segment))?;
    disk.sync_dir()
}

/// Overwrites a range with zeros, so that later writes there change no metadata, and syncs them. In
/// steps: a batch's fsync must not queue behind a whole segment of zeros.
pub(super) fn write_zeros(file: &dyn DiskFile, from: u64, to: u64) -> io::Result<()> {
    let zeros = vec![0; ZERO_CHUNK_BYTES.min((to - from) as usize)];
    let mut at = from;
    while at < to {
        let len = zeros.len().min((to - at) as usize);
        file.write_at(&zeros[..len], at)?;
        file.sync_data()?;
        at += len as u64;
    }
    Ok(())
}
