//! The narrow door to the ordered key-value engine behind the index, and sled behind it.
//!
//! The index is disposable: the journal can rebuild it. So the engine only has to be fast, atomic per batch and
//! honest after [`Index::sync`]; whatever it loses is found by checksums, counts and digests (see [`super::verify`]).

use std::fs::File;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::io::Errno;

/// How long to wait for a former user's files: sled's threads may hold them for a moment after the last handle is dropped.
const LET_GO_MAX: Duration = Duration::from_secs(10);
const LET_GO_POLL: Duration = Duration::from_millis(2);

/// What can go wrong with the index. Never a client's fault.
#[derive(Debug, Clone, thiserror::Error)]
pub enum IndexError {
    #[error("index record {key} is damaged: {reason}")]
    Corrupt { key: String, reason: &'static str },
    #[error("index engine failed: {0}")]
    Engine(String),
    /// Disk space, file descriptors or memory ran out. The files are as good as after a crash.
    #[error("the machine denies the index what it needs: {0}")]
    Denied(String),
}

/// Puts and removals of physical records that become visible together.
#[derive(Debug, Default)]
pub struct Batch {
    pub(crate) ops: Vec<(Vec<u8>, Option<Vec<u8>>)>,
}

impl Batch {
    pub(crate) fn put(&mut self, key: Vec<u8>, value: Vec<u8>) {
        self.ops.push((key, Some(value)));
    }

    pub(crate) fn remove(&mut self, key: Vec<u8>) {
        self.ops.push((key, None));
    }
}

/// An iterator over physical records in key order.
pub type Records<'a> = Box<dyn Iterator<Item = Result<(Vec<u8>, Vec<u8>), IndexError>> + 'a>;

/// A small ordered key-value engine.
pub trait Index: Send + Sync {
    /// One physical record.
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, IndexError>;
    /// Records in `[from, end of prefix)`; `from` must start with `prefix`.
    fn scan<'a>(&'a self, prefix: &[u8], from: &[u8]) -> Records<'a>;
    /// Applies a batch atomically; durable only after [`Index::sync`].
    fn write(&self, batch: Batch) -> Result<(), IndexError>;
    /// Returns once everything written before is on disk.
    fn sync(&self) -> Result<(), IndexError>;
    /// Bytes the engine occupies on disk.
    fn disk_bytes(&self) -> u64;
}

/// sled 0.34 behind [`Index`].
pub struct SledIndex {
    db: sled::Db,
    dir: PathBuf,
}

impl SledIndex {
    /// Opens or creates the engine's files in `dir`. Damaged files may make sled panic; that is an error here.
    pub fn open(dir: &Path, cache_bytes: u64) -> Result<Self, IndexError> {
        let config = sled::Config::new()
            .path(dir)
            .cache_capacity(cache_bytes)
            .mode(sled::Mode::HighThroughput)
            .flush_every_ms(None);
        let started = Instant::now();
        loop {
            let opened = catch_unwind(AssertUnwindSafe(|| config.open()))
                .map_err(|_| IndexError::Engine("sled panicked while opening".into()))?;
            match opened {
                Err(error) if is_held(&error) && started.elapsed() < LET_GO_MAX => sleep(LET_GO_POLL),
                opened => return Ok(Self { db: opened.map_err(engine)?, dir: dir.to_path_buf() }),
            }
        }
    }
}

/// Whether the files are locked. The only holder there can be is this process, whose journal holds the data directory.
fn is_held(error: &sled::Error) -> bool {
    // sled gives this no kind of its own.
    matches!(error, sled::Error::Io(error) if error.to_string().starts_with("could not acquire lock"))
}

impl Index for SledIndex {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, IndexError> {
        Ok(self.db.get(key).map_err(engine)?.map(|v| v.to_vec()))
    }

    fn scan<'a>(&'a self, prefix: &[u8], from: &[u8]) -> Records<'a> {
        let prefix = prefix.to_vec();
        let records = self
            .db
            .range(from.to_vec()..)
            .take_while(move |r| r.as_ref().map_or(true, |(k, _)| k.starts_with(&prefix)))
            .map(|r| r.map(|(k, v)| (k.to_vec(), v.to_vec())).map_err(engine));
        Box::new(records)
    }

    fn write(&self, batch: Batch) -> Result<(), IndexError> {
        let mut sled_batch = sled::Batch::default();
        for (key, value) in batch.ops {
            match value {
                Some(value) => sled_batch.insert(key, value),
                None => sled_batch.remove(key),
            }
        }
        self.db.apply_batch(sled_batch).map_err(engine)
    }

    fn sync(&self) -> Result<(), IndexError> {
        self.db.flush().map_err(engine)?;
        // sled's flush stops at sync_file_range, which persists no metadata and reports no lost write.
        sync_tree(&self.dir).map_err(|e| failed(&e, format!("fsync of {}: {e}", self.dir.display())))
    }

    fn disk_bytes(&self) -> u64 {
        self.db.size_on_disk().unwrap_or(0)
    }
}

fn engine(error: sled::Error) -> IndexError {
    match &error {
        sled::Error::Io(source) => failed(source, error.to_string()),
        _ => IndexError::Engine(error.to_string()),
    }
}

fn failed(source: &io::Error, text: String) -> IndexError {
    const DENIALS: [Errno; 5] = [Errno::NOSPC, Errno::DQUOT, Errno::MFILE, Errno::NFILE, Errno::NOMEM];
    let is_denied = DENIALS.iter().any(|errno| source.raw_os_error() == Some(errno.raw_os_error()));
    if is_denied { IndexError::Denied(text) } else { IndexError::Engine(text) }
}

fn sync_tree(dir: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            sync_tree(&entry.path())?;
        } else {
            match File::open(entry.path()) {
                Ok(file) => file.sync_all()?,
                // sled replaces its snapshot files in the background.
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(e),
            }
        }
    }
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_scan_in_order_and_survive_reopening() {
        let dir = tempfile::tempdir().unwrap();
        let index = SledIndex::open(dir.path(), 1 << 20).unwrap();
        let mut batch = Batch::default();
        for key in ["b1", "a2", "a1", "c"] {
            batch.put(key.into(), key.to_uppercase().into());
        }
        index.write(batch).unwrap();
        let mut batch = Batch::default();
        batch.remove("a1".into());
        batch.put("a3".into(), "A3".into());
        index.write(batch).unwrap();
        index.sync().unwrap();
        drop(index);

        let index = SledIndex::open(dir.path(), 1 << 20).unwrap();
        let keys: Vec<_> = index.scan(b"a", b"a").map(|r| String::from_utf8(r.unwrap().0).unwrap()).collect();
        assert_eq!(keys, ["a2", "a3"]);
        assert_eq!(index.get(b"b1").unwrap().unwrap(), b"B1");
        assert_eq!(index.get(b"a1").unwrap(), None);
    }

    #[test]
    fn what_ran_out_says_nothing_about_the_files() {
        let error = |errno: Errno| engine(sled::Error::Io(errno.into()));
        assert!(matches!(error(Errno::NOSPC), IndexError::Denied(_)));
        assert!(matches!(error(Errno::MFILE), IndexError::Denied(_)));
        assert!(matches!(error(Errno::IO), IndexError::Engine(_)));
        assert!(matches!(engine(sled::Error::Unsupported("x".into())), IndexError::Engine(_)));
    }

    #[test]
    fn a_former_user_may_still_be_letting_go() {
        let dir = tempfile::tempdir().unwrap();
        drop(SledIndex::open(dir.path(), 1 << 20).unwrap());
        let held = File::open(dir.path().join("db")).unwrap();
        held.lock().unwrap();
        std::thread::scope(|threads| {
            let opened = threads.spawn(|| SledIndex::open(dir.path(), 1 << 20));
            sleep(20 * LET_GO_POLL);
            assert!(!opened.is_finished());
            held.unlock().unwrap();
            opened.join().unwrap().unwrap();
        });
    }

    #[test]
    fn garbage_never_panics_and_never_yields_records() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("db"), [0xA5; 10_000]).unwrap();
        std::fs::write(dir.path().join("conf"), b"nonsense").unwrap();
        if let Ok(index) = SledIndex::open(dir.path(), 1 << 20) {
            assert_eq!(index.scan(b"", b"").count(), 0);
        }
    }
}
