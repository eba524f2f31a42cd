//! The segments there are, how full they are, and a bounded table of their open files.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::sync::Arc;

use parking_lot::Mutex;

use super::disk::{Disk, DiskFile};
use super::format::{Position, segment_file};
use super::options::FILE_HANDLES_MAX;

/// One segment, for whoever decides what may be removed or rewritten.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SegmentStats {
    /// Its number.
    pub segment: u32,
    /// Bytes in use, with headers and padding; the rest of the file is zeros.
    pub used_bytes: u32,
    /// Length of the file.
    pub file_bytes: u32,
}

pub(super) struct Segments {
    disk: Arc<dyn Disk>,
    /// The last one is the active one.
    table: Mutex<BTreeMap<u32, SegmentStats>>,
    handles: Mutex<Handles>,
}

#[derive(Default)]
struct Handles {
    open: HashMap<u32, Handle>,
    /// Rises with every use; the smallest `used_at` is the least recently used handle.
    clock: u64,
}

struct Handle {
    file: Arc<dyn DiskFile>,
    used_at: u64,
}

impl Segments {
    pub(super) fn new(disk: Arc<dyn Disk>, segments: Vec<SegmentStats>) -> Self {
        let table = segments.into_iter().map(|s| (s.segment, s)).collect();
        Segments { disk, table: Mutex::new(table), handles: Mutex::new(Handles::default()) }
    }

    /// The segment's file, from the table or opened now.
    pub(super) fn file(&self, segment: u32) -> io::Result<Arc<dyn DiskFile>> {
        if let Some(file) = self.handles.lock().get(segment) {
            return Ok(file);
        }
        let file = self.disk.open(&segment_file(segment))?;
        self.handles.lock().insert(segment, Arc::clone(&file));
        Ok(file)
    }

    /// A new active segment.
    pub(super) fn add(&self, stats: SegmentStats) {
        self.table.lock().insert(stats.segment, stats);
    }

    /// The active segment is used up to here.
    pub(super) fn set_used(&self, end: Position) {
        if let Some(stats) = self.table.lock().get_mut(&end.segment) {
            stats.used_bytes = end.offset;
        }
    }

    /// All segments, oldest first.
    pub(super) fn stats(&self) -> Vec<SegmentStats> {
        self.table.lock().values().copied().collect()
    }

    /// The oldest and the active one.
    pub(super) fn range(&self) -> Option<(u32, u32)> {
        let table = self.table.lock();
        Some((*table.first_key_value()?.0, *table.last_key_value()?.0))
    }

    /// Removes a segment's file for good.
    pub(super) fn remove(&self, segment: u32) -> io::Result<()> {
        self.disk.remove(&segment_file(segment))?;
        self.table.lock().remove(&segment);
        self.handles.lock().open.remove(&segment);
        Ok(())
    }
}

impl Handles {
    fn get(&mut self, segment: u32) -> Option<Arc<dyn DiskFile>> {
        self.clock += 1;
        let handle = self.open.get_mut(&segment)?;
        handle.used_at = self.clock;
        Some(Arc::clone(&handle.file))
    }

    fn insert(&mut self, segment: u32, file: Arc<dyn DiskFile>) {
        if self.open.len() >= FILE_HANDLES_MAX {
            let coldest = self.open.iter().min_by_key(|(_, handle)| handle.used_at);
            if let Some((&coldest, _)) = coldest {
                self.open.remove(&coldest);
            }
        }
        self.clock += 1;
        let used_at = self.clock;
        self.open.insert(segment, Handle { file, used_at });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::sim::SimDisk;

    #[test]
    fn handles_are_bounded_and_the_coldest_goes() {
        let disk = SimDisk::new();
        let count = FILE_HANDLES_MAX as u32 + 10;
        for segment in 1..=count {
            disk.create(&segment_file(segment)).unwrap();
        }
        let segments = Segments::new(Arc::new(disk), Vec::new());
        for segment in 1..=count {
            segments.file(segment).unwrap();
            segments.file(1).unwrap();
        }
        let handles = segments.handles.lock();
        assert_eq!(handles.open.len(), FILE_HANDLES_MAX);
        assert!(handles.open.contains_key(&1));
        assert!(!handles.open.contains_key(&2));
        assert!(handles.open.contains_key(&count));
    }
}
