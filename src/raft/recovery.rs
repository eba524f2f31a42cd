//! From files to groups: opens index and journal, replays what the index lacks, and rebuilds the index from the
//! whole journal when it cannot be trusted.
//!
//! What the frames come to is in [`super::replay`].

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tracing::{info, warn};

use super::group_log::GroupLog;
use super::replay::{Replay, ReplayError};
use crate::files;
use crate::journal::{Disk, FIRST_SEGMENT, Journal, OpenError, Options, Payloads, ScanFrom, oldest_segment};
use crate::metrics::Metrics;
use crate::store::{CacheSizes, GroupStore, IndexError, Shared, SledIndex, StoreError};

/// Where a node's files are and how much memory the store may use.
pub struct RecoverySettings {
    pub index_dir: PathBuf,
    pub index_cache_bytes: u64,
    pub caches: CacheSizes,
    pub groups: u16,
    /// The kernel's boot id now.
    pub boot_id: String,
}

/// What recovery hands to the Raft layer.
pub(crate) struct Recovered {
    pub(crate) journal: Journal,
    pub(crate) shared: Arc<Shared>,
    /// By number.
    pub(crate) groups: Vec<(Arc<GroupStore>, GroupLog)>,
    /// Why the index was rebuilt, if it was.
    pub(crate) rebuilt: Option<String>,
}

/// Why a node cannot start on its files.
#[derive(Debug, thiserror::Error)]
pub enum RecoveryError {
    #[error(transparent)]
    Journal(#[from] OpenError),
    #[error("index: {0}")]
    Store(#[from] StoreError),
    #[error("index directory {dir}: {source}")]
    IndexDir { dir: String, source: std::io::Error },
}

/// Opens journal and index and brings the index up to what is known to be committed.
pub(crate) fn recover(
    settings: &RecoverySettings,
    options: &Options,
    disk: &Arc<dyn Disk>,
    metrics: &Metrics,
) -> Result<Recovered, RecoveryError> {
    let marker = rebuild_marker(&settings.index_dir);
    let why = if marker.exists() {
        std::fs::read_to_string(&marker).unwrap_or_else(|_| "asked for".into())
    } else {
        match attempt(settings, options, disk, metrics, ScanFrom::Checkpoint) {
            Ok(recovered) => return Ok(recovered),
            Err(AttemptError::Rebuild(why)) => why,
            Err(AttemptError::Fatal(error)) => return Err(error),
        }
    };
    warn!(event = "index_rebuild_started", reason = %why);
    set_aside(&settings.index_dir)?;
    match attempt(settings, options, disk, metrics, ScanFrom::Beginning) {
        Ok(mut recovered) => {
            let _ = std::fs::remove_file(&marker);
            info!(event = "index_rebuild_finished");
            recovered.rebuilt = Some(why);
            Ok(recovered)
        }
        Err(AttemptError::Fatal(error)) => Err(error),
        Err(AttemptError::Rebuild(why)) => {
            Err(RecoveryError::Store(StoreError::Index(IndexError::Engine(why))))
        }
    }
}

/// Leaves a note that the next start must rebuild the index.
pub(crate) fn request_rebuild(index_dir: &Path, reason: &str) {
    if let Err(error) = files::note(&rebuild_marker(index_dir), reason.as_bytes()) {
        warn!(event = "index_rebuild_marker_failed", %error);
    }
}

fn rebuild_marker(index_dir: &Path) -> PathBuf {
    index_dir.with_extension("rebuild")
}

/// Keeps the last distrusted index for a post-mortem.
fn set_aside(index_dir: &Path) -> Result<(), RecoveryError> {
    let aside = index_dir.with_extension("distrusted");
    let failed = |source| RecoveryError::IndexDir { dir: index_dir.display().to_string(), source };
    if index_dir.exists() {
        if aside.exists() {
            std::fs::remove_dir_all(&aside).map_err(failed)?;
        }
        // For good: the note that asked for this goes once there is a new index.
        files::rename(index_dir, &aside).map_err(failed)?;
    }
    Ok(())
}

enum AttemptError {
    Rebuild(String),
    Fatal(RecoveryError),
}

impl From<StoreError> for AttemptError {
    fn from(error: StoreError) -> Self {
        if error.wants_rebuild() { Self::Rebuild(error.to_string()) } else { Self::Fatal(error.into()) }
    }
}

impl From<ReplayError> for AttemptError {
    fn from(error: ReplayError) -> Self {
        match error {
            ReplayError::Rebuild(why) => Self::Rebuild(why),
            ReplayError::Store(error) => error.into(),
            ReplayError::Record { .. } => Self::Rebuild(error.to_string()),
        }
    }
}

fn attempt(
    settings: &RecoverySettings,
    options: &Options,
    disk: &Arc<dyn Disk>,
    metrics: &Metrics,
    from: ScanFrom,
) -> Result<Recovered, AttemptError> {
    let index = SledIndex::open(&settings.index_dir, settings.index_cache_bytes)
        .map_err(|error| AttemptError::from(StoreError::from(error)))?;
    let shared = Arc::new(Shared::new(Arc::new(index), metrics.clone(), settings.caches));
    let stores = (0..settings.groups)
        .map(|group| GroupStore::open(group, shared.clone()).map(Arc::new))
        .collect::<Result<Vec<_>, StoreError>>()?;
    let oldest = oldest_segment(&**disk).map_err(|e| AttemptError::Fatal(StoreError::from(e).into()))?;
    let oldest = oldest.unwrap_or(FIRST_SEGMENT);
    let rebuilding = matches!(from, ScanFrom::Beginning);
    let mut replay = Replay::new(settings, Payloads::of(disk.clone()), oldest, stores, rebuilding);
    let opened = Journal::open(options.clone(), disk.clone(), from, &mut |frame| Ok(replay.frame(frame)?));
    let (journal, _) = opened.map_err(|error| match rebuild_reason(&error) {
        Some(why) => AttemptError::Rebuild(why),
        None => AttemptError::Fatal(error.into()),
    })?;
    shared.attach(journal.clone());
    let groups = replay.finish()?;
    Ok(Recovered { journal, shared, groups, rebuilt: None })
}

fn rebuild_reason(error: &OpenError) -> Option<String> {
    let OpenError::Visit { source, .. } = error else { return None };
    match source.downcast_ref::<ReplayError>()? {
        ReplayError::Rebuild(why) => Some(why.clone()),
        ReplayError::Store(error) if error.wants_rebuild() => Some(error.to_string()),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
