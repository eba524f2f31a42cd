//! From files to groups: opens index and journal, replays what the index lacks, and rebuilds the index from the
//! whole journal when it cannot be trusted.
//!
//! A replayed frame may repeat what a checkpoint already said, so everything folds monotonically: votes,
//! committed and purged positions only rise, and an entry at an existing index overrides it and all after it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use tracing::{info, warn};

use super::codec::{self, Checkpoint, GroupCheckpoint, ImportBegin, RecordError};
use super::log_store::GroupLog;
use super::snapshot::{self, Installed};
use super::state_machine::{applied, apply_entry, log_id};
use super::types::{LogId, ReplicaId};
use crate::journal::{self, Disk, Frame, FrameKind, Journal, OpenError, Options, Position, ScanFrom};
use crate::metrics::Metrics;
use crate::store::{Applied, CacheSizes, GroupStore, IndexError, Shared, SledIndex, StoreError};

/// Journal bytes between two flushes of the index while it is rebuilt; bounds the memory of a rebuild.
const REBUILD_FLUSH_BYTES: u64 = 64 << 20;

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
    pub(crate) stores: Vec<Arc<GroupStore>>,
    pub(crate) logs: Vec<GroupLog>,
    /// Why the index was rebuilt, if it was.
    pub(crate) rebuilt: Option<String>,
}

/// Why a node cannot start on its files.
#[derive(Debug, thiserror::Error)]
pub enum RecoveryError {
    #[error(transparent)]
    Journal(#[from] OpenError),
    #[error("rebuilding the index: {0}")]
    Store(#[from] StoreError),
    #[error("index directory {dir}: {source}")]
    IndexDir { dir: String, source: std::io::Error },
}

/// Why the scan stopped.
#[derive(Debug, thiserror::Error)]
enum ReplayError {
    /// Start again with an empty index from the beginning of the journal.
    #[error("{0}")]
    Rebuild(String),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("journal frame of group {group}: {source}")]
    Record { group: u16, source: RecordError },
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
    if let Err(error) = std::fs::write(rebuild_marker(index_dir), reason) {
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
        std::fs::rename(index_dir, &aside).map_err(failed)?;
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

fn attempt(
    settings: &RecoverySettings,
    options: &Options,
    disk: &Arc<dyn Disk>,
    metrics: &Metrics,
    from: ScanFrom,
) -> Result<Recovered, AttemptError> {
    let index = SledIndex::open(&settings.index_dir, settings.index_cache_bytes)
        .map_err(|e| AttemptError::Rebuild(e.to_string()))?;
    let shared = Arc::new(Shared::new(Arc::new(index), metrics.clone(), settings.caches));
    let stores = (0..settings.groups)
        .map(|group| GroupStore::open(group, shared.clone()).map(Arc::new))
        .collect::<Result<Vec<_>, StoreError>>()?;
    let mut replay = Replay::new(settings, disk.clone(), stores, matches!(from, ScanFrom::Beginning));
    let opened = Journal::open(options.clone(), disk.clone(), from, &mut |frame| Ok(replay.frame(frame)?));
    let (journal, _) = opened.map_err(|error| match rebuild_reason(&error) {
        Some(why) => AttemptError::Rebuild(why),
        None => AttemptError::Fatal(error.into()),
    })?;
    shared.attach(journal.clone());
    let (stores, logs) = replay.finish()?;
    Ok(Recovered { journal, shared, stores, logs, rebuilt: None })
}

fn rebuild_reason(error: &OpenError) -> Option<String> {
    let OpenError::Visit { source, .. } = error else { return None };
    match source.downcast_ref::<ReplayError>()? {
        ReplayError::Rebuild(why) => Some(why.clone()),
        ReplayError::Store(error) if error.wants_rebuild() => Some(error.to_string()),
        _ => None,
    }
}

/// A snapshot in the journal that is not committed yet.
#[derive(Debug, Clone, Default)]
struct Import {
    base: Option<u64>,
    frames: Vec<(Position, u32)>,
}

/// The fold over journal frames.
struct Replay {
    disk: Arc<dyn Disk>,
    boot_id: String,
    rebuilding: bool,
    stores: Vec<Arc<GroupStore>>,
    logs: Vec<GroupLog>,
    /// Snapshots whose install-begin was seen, by group.
    imports: Vec<Option<Import>>,
    /// What the checkpoint says is committed. It comes before the frames it covers, among which may be entries that
    /// others overrode later, so it counts only at the end.
    claims: Vec<Option<LogId>>,
    /// The index lacks what the checkpoint says it holds. That is as it should be if the replica was removed later.
    older: Vec<bool>,
    /// The boot id of the newest checkpoint seen.
    checkpoint_boot: Option<String>,
    bytes_since_flush: u64,
}

/// The group's import as of an install-begin frame.
fn begin_import(import: &mut Option<Import>, begin: &ImportBegin) {
    let kept = begin.kept as usize;
    let mut frames = match import.take() {
        // The beginning of what goes on here lies before the scan, so that the index has what came of it.
        before if kept > 0 && before.as_ref().is_none_or(|before| before.frames.len() < kept) => return,
        before => before.map_or(Vec::new(), |before| before.frames),
    };
    frames.truncate(kept);
    *import = Some(Import { base: begin.base, frames });
}

fn lacks(group: u16, index: u64) -> ReplayError {
    ReplayError::Rebuild(format!(
        "group {group}: the index ends before log index {index}, which the scanned journal lacks"
    ))
}

impl Replay {
    fn new(
        settings: &RecoverySettings,
        disk: Arc<dyn Disk>,
        stores: Vec<Arc<GroupStore>>,
        rebuilding: bool,
    ) -> Self {
        Self {
            disk,
            boot_id: settings.boot_id.clone(),
            rebuilding,
            logs: vec![GroupLog::default(); stores.len()],
            imports: vec![None; stores.len()],
            claims: vec![None; stores.len()],
            older: vec![false; stores.len()],
            stores,
            checkpoint_boot: None,
            bytes_since_flush: 0,
        }
    }

    fn frame(&mut self, frame: Frame) -> Result<(), ReplayError> {
        let group = frame.group;
        let bad = |source| ReplayError::Record { group, source };
        if frame.kind == FrameKind::Checkpoint {
            return self.checkpoint(Checkpoint::decode(&frame.payload).map_err(bad)?);
        }
        let Some(log) = self.logs.get_mut(usize::from(group)) else { return Ok(()) };
        match frame.kind {
            FrameKind::Entry => {
                let applied = self.stores[usize::from(group)].applied().0.map(|at| at.index);
                log.replay_entry(frame.position, &frame.payload, applied).map_err(bad)?;
            }
            FrameKind::Vote => log.raise_vote(codec::decode_vote(&frame.payload).map_err(bad)?),
            FrameKind::TruncateAfter => {
                log.truncate_after(codec::decode_log_id(&frame.payload).map_err(bad)?)
            }
            FrameKind::PurgeTo => {
                if let Some(upto) = codec::decode_log_id(&frame.payload).map_err(bad)? {
                    self.commit(group, Some(upto))?;
                    self.logs[usize::from(group)].purge(upto);
                }
            }
            FrameKind::Committed => {
                let committed = codec::decode_log_id(&frame.payload).map_err(bad)?;
                self.commit(group, committed)?;
            }
            FrameKind::Replica => self.adopt(group, codec::decode_replica(&frame.payload).map_err(bad)?)?,
            FrameKind::ImportBegin => {
                let begin = ImportBegin::decode(&frame.payload).map_err(bad)?;
                begin_import(&mut self.imports[usize::from(group)], &begin);
            }
            FrameKind::Import => {
                if let Some(import) = &mut self.imports[usize::from(group)] {
                    import.frames.push((frame.position, frame.payload.len() as u32));
                }
            }
            FrameKind::ImportCommit => {
                let (at, membership) = snapshot::decode_commit(&frame.payload).map_err(bad)?;
                self.install(group, at, membership)?;
            }
            _ => {}
        }
        self.flush_if_due(frame.payload.len())
    }

    /// The group's log begins anew. The index was emptied before the frame was written: what it holds came after.
    fn adopt(&mut self, group: u16, replica: ReplicaId) -> Result<(), ReplayError> {
        let store = &self.stores[usize::from(group)];
        if self.rebuilding || store.persisted().is_none() {
            store.reset()?;
        }
        let group = usize::from(group);
        self.logs[group] = GroupLog::of(replica);
        self.imports[group] = None;
        self.claims[group] = None;
        self.older[group] = false;
        Ok(())
    }

    /// Loads a committed snapshot unless the index has it.
    fn install(&mut self, group: u16, at: Applied, membership: Bytes) -> Result<(), ReplayError> {
        let store = &self.stores[usize::from(group)];
        let here = store.applied().0.map(|here| here.index);
        let import = self.imports[usize::from(group)].take();
        let Some(Import { base, frames }) = import.filter(|_| here < Some(at.index)) else { return Ok(()) };
        if self.older[usize::from(group)] {
            // Another replica is to come, or a rebuild.
            return Ok(());
        }
        if base > here {
            return Err(lacks(group, here.map_or(0, |here| here + 1)));
        }
        let disk = self.disk.clone();
        let installed = Installed { base, applied: at, membership, frames };
        installed.load(store, &|at, len| journal::read_payload(&*disk, at, len))?;
        // openraft would have purged up to the snapshot next.
        self.logs[usize::from(group)].purge(log_id(at));
        Ok(())
    }

    /// Everything up to `committed` is final: applies what the index lacks.
    fn commit(&mut self, group: u16, committed: Option<LogId>) -> Result<(), ReplayError> {
        let log = &mut self.logs[usize::from(group)];
        log.committed = log.committed.max(committed);
        if self.older[usize::from(group)] {
            return Ok(());
        }
        let store = &self.stores[usize::from(group)];
        let (at, _) = store.applied();
        let next = at.map_or(0, |at| at.index + 1);
        let entries = log.committed_from(next);
        let Some((first, _)) = entries.first() else { return Ok(()) };
        if first.index != next {
            return Err(lacks(group, next));
        }
        let last = entries.last().map_or(next, |(id, _)| id.index);
        for (log_id, payload) in entries {
            apply_entry(store, &log_id, payload)?;
        }
        log.forget_payloads(next, last);
        Ok(())
    }

    fn checkpoint(&mut self, checkpoint: Checkpoint) -> Result<(), ReplayError> {
        self.checkpoint_boot = Some(checkpoint.boot_id);
        for said in checkpoint.groups {
            if usize::from(said.group) < self.logs.len() {
                self.group_checkpoint(&said)?;
            }
        }
        Ok(())
    }

    fn group_checkpoint(&mut self, said: &GroupCheckpoint) -> Result<(), ReplayError> {
        let group = usize::from(said.group);
        self.logs[group].replica = said.replica;
        if let Some(vote) = said.vote {
            self.logs[group].raise_vote(vote);
        }
        if self.rebuilding {
            self.commit(said.group, said.committed)?;
        } else if self.stores[group].persisted() < said.applied.as_ref().map(applied) {
            self.older[group] = true;
        }
        self.claims[group] = said.committed;
        if let Some(purged) = said.purged {
            self.logs[group].purge(purged);
        }
        Ok(())
    }

    fn flush_if_due(&mut self, bytes: usize) -> Result<(), ReplayError> {
        self.bytes_since_flush += bytes as u64;
        if self.bytes_since_flush < REBUILD_FLUSH_BYTES {
            return Ok(());
        }
        self.bytes_since_flush = 0;
        info!(event = "replay_progress", rebuilding = self.rebuilding);
        for store in &self.stores {
            store.checkpoint()?;
        }
        Ok(())
    }

    /// Applies what is left and holds index and journal against each other.
    fn finish(mut self) -> Result<(Vec<Arc<GroupStore>>, Vec<GroupLog>), AttemptError> {
        if let Some(group) = self.older.iter().position(|older| *older) {
            let why = format!("group {group}: the index is older than its checkpoint");
            return Err(AttemptError::Rebuild(why));
        }
        for group in 0..self.stores.len() as u16 {
            let committed = self.logs[usize::from(group)].committed.max(self.claims[usize::from(group)]);
            self.commit(group, committed).map_err(|error| match error {
                ReplayError::Rebuild(why) => AttemptError::Rebuild(why),
                ReplayError::Store(error) => error.into(),
                ReplayError::Record { .. } => AttemptError::Rebuild(error.to_string()),
            })?;
            let (at, _) = self.stores[usize::from(group)].applied();
            if committed.map(|id| id.index) > at.map(|at| at.index) {
                return Err(AttemptError::Rebuild(lacks(group, at.map_or(0, |at| at.index + 1)).to_string()));
            }
            let last = self.logs[usize::from(group)].last().map(|id| applied(&id));
            if at.map(|at| at.index) > last.map(|at| at.index) {
                return Err(AttemptError::Rebuild(format!(
                    "group {group}: the index is ahead of the journal ({} after {})",
                    at.map_or(0, |at| at.index),
                    last.map_or(0, |at| at.index)
                )));
            }
        }
        let rebooted = self.checkpoint_boot.as_ref().is_some_and(|boot| *boot != self.boot_id);
        if rebooted && !self.rebuilding {
            info!(event = "index_verify_started", reason = "the machine was restarted");
            for store in &self.stores {
                store.ensure_verified()?;
            }
        }
        Ok((self.stores, self.logs))
    }
}
