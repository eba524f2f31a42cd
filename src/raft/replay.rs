//! The fold over the journal's frames that brings logs and index to where they were.
//!
//! A replayed frame may repeat what a checkpoint already said, so everything folds monotonically: votes,
//! committed and purged positions only rise, and an entry at an existing index overrides it and all after it.
//!
//! A rebuild of a journal whose oldest segments are gone cannot begin with a group's first entry. The group then waits
//! for an image (see [`super::image`]) that needs none of the missing segments, and goes on from there.

use std::sync::Arc;

use bytes::Bytes;
use tracing::info;

use super::codec::{self, Checkpoint, GroupCheckpoint, ImportBegin, RecordError};
use super::group_log::GroupLog;
use super::image::{self, IMAGE};
use super::recovery::{AttemptError, RecoverySettings};
use super::snapshot::{self, Installed};
use super::state_machine::{applied, apply_entry, log_id};
use super::types::{LogId, ReplicaId};
use crate::conversation::FrameLocation;
use crate::journal::{FIRST_SEGMENT, Frame, FrameKind, Payloads, Position};
use crate::store::{Applied, GroupStore, StoreError};

/// Journal bytes between two flushes of the index while it is rebuilt; bounds the memory of a rebuild.
const REBUILD_FLUSH_BYTES: u64 = 64 << 20;

/// Bytes of commands applied at a time where many were kept waiting.
const COMMIT_BYTES: usize = 4 << 20;

/// Why the scan stopped.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReplayError {
    /// Start again with an empty index from the beginning of the journal.
    #[error("{0}")]
    Rebuild(String),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("journal frame of group {group}: {source}")]
    Record { group: u16, source: RecordError },
}

/// A snapshot in the journal that is not committed yet.
#[derive(Debug, Clone, Default)]
struct Import {
    base: Option<u64>,
    frames: Vec<(Position, u32)>,
}

/// An image that is not committed yet.
#[derive(Debug, Clone)]
struct Image {
    floor: u32,
    frames: Vec<(Position, u32)>,
}

/// The fold over journal frames.
pub(super) struct Replay {
    payloads: Payloads,
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
    /// The journal's oldest segment.
    oldest: u32,
    /// Images whose begin was seen, by group.
    images: Vec<Option<Image>>,
    /// Nothing tells yet what the groups were as of the oldest segment.
    waiting: Vec<bool>,
    /// Which groups' logs were begun anew by what was scanned.
    begun: Vec<bool>,
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
    /// `oldest` is the journal's oldest segment.
    pub(super) fn new(
        settings: &RecoverySettings,
        payloads: Payloads,
        oldest: u32,
        stores: Vec<Arc<GroupStore>>,
        rebuilding: bool,
    ) -> Self {
        Self {
            payloads,
            oldest,
            images: vec![None; stores.len()],
            waiting: vec![rebuilding && oldest > FIRST_SEGMENT; stores.len()],
            boot_id: settings.boot_id.clone(),
            rebuilding,
            logs: vec![GroupLog::default(); stores.len()],
            imports: vec![None; stores.len()],
            claims: vec![None; stores.len()],
            older: vec![false; stores.len()],
            begun: vec![false; stores.len()],
            stores,
            checkpoint_boot: None,
            bytes_since_flush: 0,
        }
    }

    pub(super) fn frame(&mut self, frame: Frame) -> Result<(), ReplayError> {
        let group = frame.group;
        if group & IMAGE != 0 {
            return self.image_frame(group & !IMAGE, &frame);
        }
        let bad = |source| ReplayError::Record { group, source };
        if frame.kind == FrameKind::Checkpoint {
            return self.checkpoint(Checkpoint::decode(&frame.payload).map_err(bad)?);
        }
        let Some(log) = self.logs.get_mut(usize::from(group)) else { return Ok(()) };
        match frame.kind {
            FrameKind::Entry => {
                let applied = match self.waiting[usize::from(group)] {
                    // None of them is applied before an image came, and most not then.
                    true => Some(u64::MAX),
                    false => self.stores[usize::from(group)].applied().0.map(|at| at.index),
                };
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
        self.images[group] = None;
        self.waiting[group] = false;
        self.begun[group] = true;
        Ok(())
    }

    /// Loads a committed snapshot unless the index has it.
    fn install(&mut self, group: u16, at: Applied, membership: Bytes) -> Result<(), ReplayError> {
        let store = &self.stores[usize::from(group)];
        let here = store.applied().0.map(|here| here.index);
        let import = self.imports[usize::from(group)].take();
        // openraft would have purged up to the snapshot next. What follows in the journal goes on from there.
        let log = &mut self.logs[usize::from(group)];
        if here >= Some(at.index) {
            log.purge(log_id(at));
            return Ok(());
        }
        let Some(Import { base, frames }) = import else { return Ok(()) };
        if self.older[usize::from(group)] {
            // Another replica is to come, or a rebuild.
            return Ok(());
        }
        if base.is_some() && self.waiting[usize::from(group)] {
            // An image is to come that has it all.
            return Ok(());
        }
        if base > here {
            return Err(lacks(group, here.map_or(0, |here| here + 1)));
        }
        let installed = Installed { base, applied: at, membership, frames };
        installed.load(store, &|at, len| self.payloads.read(at, len))?;
        self.waiting[usize::from(group)] = false;
        log.purge(log_id(at));
        Ok(())
    }

    /// A frame of an image. Only a rebuild that lacks the beginning has a use for it, and only if it needs nothing of what
    /// is missing.
    fn image_frame(&mut self, group: u16, frame: &Frame) -> Result<(), ReplayError> {
        let at = usize::from(group);
        if !self.waiting.get(at).is_some_and(|waiting| *waiting) {
            return Ok(());
        }
        let bad = |source| ReplayError::Record { group, source };
        match frame.kind {
            FrameKind::ImportBegin => {
                let floor = image::decode_begin(&frame.payload).map_err(bad)?;
                self.images[at] = Some(Image { floor, frames: Vec::new() });
            }
            FrameKind::Import => {
                if let Some(image) = &mut self.images[at] {
                    image.frames.push((frame.position, frame.payload.len() as u32));
                }
            }
            FrameKind::ImportCommit => {
                let (applied, membership) = snapshot::decode_commit(&frame.payload).map_err(bad)?;
                let image = self.images[at].take().filter(|image| image.floor >= self.oldest);
                if let Some(image) = image {
                    self.load_image(at, image, applied, membership)?;
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn load_image(
        &mut self,
        group: usize,
        image: Image,
        applied: Applied,
        membership: Bytes,
    ) -> Result<(), ReplayError> {
        let mut blocks = image.frames.into_iter().map(|(at, len)| {
            let bytes = self.payloads.read(at, len)?;
            Ok((FrameLocation { segment: at.segment, offset: at.offset }, bytes))
        });
        self.stores[group].install_image(applied, membership, &mut blocks)?;
        self.waiting[group] = false;
        let log = &mut self.logs[group];
        log.committed = log.committed.max(Some(log_id(applied)));
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
        match log.first_committed_from(next) {
            None => return Ok(()),
            Some(first) if first == next => {}
            Some(_) if self.waiting[usize::from(group)] => return Ok(()),
            Some(_) => return Err(lacks(group, next)),
        }
        self.waiting[usize::from(group)] = false;
        let (store, mut next) = (store.clone(), next);
        loop {
            let log = &mut self.logs[usize::from(group)];
            let entries = log.committed_from(next, COMMIT_BYTES, |at, len| self.payloads.read(at, len));
            let entries = entries.map_err(StoreError::from)?;
            let Some(last) = entries.last() else { return Ok(()) };
            let first = std::mem::replace(&mut next, last.log_id.index + 1);
            for entry in entries {
                apply_entry(&store, entry)?;
            }
            log.forget_payloads(first, next - 1);
            if log.first_committed_from(next).is_some() {
                // More follows only a portion of that size.
                self.flush_if_due(COMMIT_BYTES)?;
            }
        }
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
        if self.begun[group] && self.logs[group].replica != said.replica {
            // It was written just when the log began anew, and speaks of the replica before.
            return Ok(());
        }
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
    pub(super) fn finish(mut self) -> Result<(Vec<Arc<GroupStore>>, Vec<GroupLog>), AttemptError> {
        if let Some(group) = self.older.iter().position(|older| *older) {
            let why = format!("group {group}: the index is older than its checkpoint");
            return Err(AttemptError::Rebuild(why));
        }
        for group in 0..self.stores.len() as u16 {
            if !self.logs[usize::from(group)].is_whole() {
                return Err(AttemptError::Rebuild(format!("group {group}: its log has a hole")));
            }
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
        if self.rebuilding {
            // Raft takes what the index holds for its snapshot, which must not end before what was purged.
            for store in &self.stores {
                store.checkpoint()?;
            }
            if let Some(any) = self.stores.first() {
                any.sync()?;
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
