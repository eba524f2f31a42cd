//! The journal's narrow view of a disk: one flat directory of files, and the real one.
//!
//! Everything the journal does to a disk goes through [`Disk`] and [`DiskFile`], so that the
//! simulated disk in [`super::sim`] can lose power, fill up or fail at any of these calls.
//! Nothing here buffers, retries or interprets an error.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::error::{IoContext, OpenError};

const LOCK_FILE: &str = "LOCK";

/// A flat directory of files.
pub trait Disk: Send + Sync {
    /// Creates an empty file and opens it; a file of that name is emptied.
    fn create(&self, name: &str) -> io::Result<Arc<dyn DiskFile>>;
    /// Opens an existing file for reading and writing.
    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>>;
    /// Gives a file another name.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    /// Removes a file. Handles opened earlier stay readable.
    fn remove(&self, name: &str) -> io::Result<()>;
    /// The names of all files, in no particular order.
    fn list(&self) -> io::Result<Vec<String>>;
    /// Makes all creations, renames and removals so far durable.
    fn sync_dir(&self) -> io::Result<()>;
    /// Bytes that can still be allocated.
    fn free_bytes(&self) -> io::Result<u64>;
}

/// One open file.
pub trait DiskFile: Send + Sync {
    /// Reserves space for `len` bytes, or fails with [`io::ErrorKind::StorageFull`].
    fn allocate(&self, len: u64) -> io::Result<()>;
    /// Writes all of `bytes` at `offset`.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;
    /// Fills `buffer` from `offset`; the end of the file is an error.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;
    /// Makes the file's bytes, and the metadata needed to read them, durable.
    fn sync_data(&self) -> io::Result<()>;
    /// Length in bytes.
    fn len(&self) -> io::Result<u64>;
    /// Whether the file has no bytes.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }
}

/// Whether an error means "no space", rather than "broken".
pub(super) fn is_no_space(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// A directory of the file system, held under an exclusive lock for as long as this value lives.
pub struct RealDisk {
    path: PathBuf,
    /// For `fsync` of the directory itself.
    directory: File,
    /// Holds the `flock`; the system releases it when the process ends, however it ends.
    _lock: File,
}

impl RealDisk {
    /// Opens the directory, creating it if need be, and locks it against other processes.
    pub fn open(path: &Path) -> Result<RealDisk, OpenError> {
        fs::create_dir_all(path).during(|| format!("creating {}", path.display()))?;
        let lock_path = path.join(LOCK_FILE);
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&lock_path)
            .during(|| format!("opening {}", lock_path.display()))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => {
                return Err(OpenError::Locked(path.display().to_string()));
            }
            Err(fs::TryLockError::Error(source)) => {
                return Err(source).during(|| format!("locking {}", lock_path.display()));
            }
        }
        let directory = File::open(path).during(|| format!("opening {}", path.display()))?;
        if let Some(parent) = path.parent().filter(|p| !p.as_os_str().is_empty()) {
            // The directory itself may be new.
            File::open(parent)
                .and_then(|parent| parent.sync_all())
                .during(|| format!("syncing {}", parent.display()))?;
        }
        Ok(RealDisk { path: path.to_owned(), directory, _lock: lock })
    }
}

impl Disk for RealDisk {
    fn create(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let file = OpenOptions::new()
            .create(true)
            .truncate(true)
            .read(true)
            .write(true)
            .open(self.path.join(name))?;
        Ok(Arc::new(RealFile(file)))
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let file = OpenOptions::new().read(true).write(true).open(self.path.join(name))?;
        Ok(Arc::new(RealFile(file)))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.path.join(from), self.path.join(to))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        fs::remove_file(self.path.join(name))
    }

    fn list(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.path)? {
            // A name that is not UTF-8 is not the journal's.
            if let Ok(name) = entry?.file_name().into_string() {
                names.push(name);
            }
        }
        Ok(names)
    }

    fn sync_dir(&self) -> io::Result<()> {
        self.directory.sync_all()
    }

    fn free_bytes(&self) -> io::Result<u64> {
        let stat = rustix::fs::fstatvfs(&self.directory)?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }
}

struct RealFile(File);

impl DiskFile for RealFile {
    fn allocate(&self, len: u64) -> io::Result<()> {
        let mode = rustix::fs::FallocateFlags::empty();
        match rustix::fs::fallocate(&self.0, mode, 0, len) {
            // Not every file system can; writing the zeros reserves the space there.
            Ok(()) | Err(rustix::io::Errno::OPNOTSUPP) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.0.write_all_at(bytes, offset)
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.0.read_exact_at(buffer, offset)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_process_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        let held = RealDisk::open(&path).unwrap();
        let refused = RealDisk::open(&path).err().unwrap();
        assert!(matches!(refused, OpenError::Locked(_)), "{refused}");
        drop(held);
        RealDisk::open(&path).unwrap();
    }

    #[test]
    fn files_behave() {
        let dir = tempfile::tempdir().unwrap();
        let disk = RealDisk::open(dir.path()).unwrap();
        let file = disk.create("a").unwrap();
        file.allocate(8192).unwrap();
        file.write_at(b"hello", 100).unwrap();
        file.sync_data().unwrap();
        disk.rename("a", "b").unwrap();
        disk.sync_dir().unwrap();
        let mut buffer = [0; 5];
        disk.open("b").unwrap().read_at(&mut buffer, 100).unwrap();
        assert_eq!(&buffer, b"hello");
        assert!(disk.open("a").is_err());
        assert!(disk.free_bytes().unwrap() > 0);
        disk.remove("b").unwrap();
        assert_eq!(disk.list().unwrap(), [LOCK_FILE]);
        assert!(file.read_at(&mut buffer, 1 << 20).is_err());
    }
}
