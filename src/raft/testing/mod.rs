//! What the tests of this layer share: what is written and read, one node, and replicas that talk to each other.

mod cluster;
mod content;
mod single;

use std::path::Path;
use std::sync::Arc;

pub(crate) use self::cluster::{Call, Cluster, Fate};
pub(crate) use self::content::{append, compact, dump, id, mark, narrow, numbered, places, put, trim};
pub(crate) use self::single::*;
use super::recovery::RecoverySettings;
use crate::journal::{OpenError, Options, RealDisk};
use crate::store::CacheSizes;

/// Longest wait for what should come at once.
pub(crate) const PATIENCE: std::time::Duration = std::time::Duration::from_secs(60);

pub(crate) fn journal_options() -> Options {
    let mut options = Options::new(7);
    options.segment_bytes = 1 << 20;
    options.reserve_bytes = 0;
    options
}

pub(crate) fn recovery_settings(dir: &Path, groups: u16) -> RecoverySettings {
    RecoverySettings {
        index_dir: dir.join("index"),
        index_cache_bytes: 1 << 20,
        caches: CacheSizes { records: 1 << 20, messages: 1 << 20 },
        groups,
        boot_id: "this boot".into(),
    }
}

/// Opens a journal's directory once its former holder, which may just be letting go, has.
pub(crate) fn open_disk(dir: &Path) -> Arc<RealDisk> {
    loop {
        match RealDisk::open(&dir.join("journal")) {
            Err(OpenError::Locked(_)) => std::thread::yield_now(),
            opened => return Arc::new(opened.unwrap()),
        }
    }
}

/// The index of a node that does not run is lost.
pub(crate) fn lose_index(dir: &Path) {
    std::fs::remove_dir_all(dir.join("index")).unwrap();
}
