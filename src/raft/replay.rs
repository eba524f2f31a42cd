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
use super::recovery::RecoverySettings;
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
struct Import {
    base: Option<u64>,
    frames: Vec<(Position, u32)>,
}

/// An image that is not committed yet.
struct Image {
    floor: u32,
    frames: Vec<(Position, u32)>,
}

/// The fold over journal frames.
pub(super) struct Replay {
    payloads: Payloads,
    boot_id: String,
    rebuilding: bool,
    /// The journal's oldest segment.
    oldest: u32,
    /// By number.
    groups: Vec<GroupReplay>,
    /// The boot id of the newest checkpoint seen.
    checkpoint_boot: Option<String>,
    bytes_since_flush: u64,
}

/// What the frames of one group come to.
struct GroupReplay {
    store: Arc<GroupStore>,
    log: GroupLog,
    /// A snapshot whose install-begin was seen.
    import: Option<Import>,
    /// An image whose begin was seen.
    image: Option<Image>,
    /// What the checkpoint says is committed. It comes before the frames it covers, among which may be entries that
    /// others overrode later, so it counts only at the end.
    claim: Option<LogId>,
    /// The index lacks what the checkpoint says it holds. That is as it should be if the replica was removed later.
    is_older: bool,
    /// Nothing tells yet what the group was as of the oldest segment.
    is_waiting: bool,
    /// The log was begun anew by what was scanned.
    is_begun: bool,
}

fn lacks(group: u16, index: u64) -> ReplayError {
    ReplayError::Rebuild(format!(
        "group {group}: the index ends before log index {index}, which the scanned journal lacks"
    ))
}

impl GroupReplay {
    fn new(store: Arc<GroupStore>, is_waiting: bool) -> Self {
        Self {
            store,
            log: GroupLog::default(),
            import: None,
            image: None,
            claim: None,
            is_older: false,
            is_waiting,
            is_begun: false,
        }
    }

    /// The last log index that the index has.
    fn applied(&self) -> Option<u64> {
        self.store.applied().0.map(|at| at.index)
    }

    /// What is to become of a snapshot's frames as of an install-begin.
    fn begin_import(&mut self, begin: &ImportBegin) {
        let kept = begin.kept as usize;
        let mut frames = match self.import.take() {
            // The beginning of what goes on here lies before the scan, so that the index has what came of it.
            before if kept > 0 && before.as_ref().is_none_or(|before| before.frames.len() < kept) => return,
            before => before.map_or(Vec::new(), |before| before.frames),
        };
        frames.truncate(kept);
        self.import = Some(Import { base: begin.base, frames });
    }

    fn entry(&mut self, frame: &Frame) -> Result<(), RecordError> {
        // Of a group that waits none is applied before an image came, and most not then.
        let applied = if self.is_waiting { Some(u64::MAX) } else { self.applied() };
        self.log.replay_entry(frame.position, &frame.payload, applied)
    }

    /// The group's log begins anew. The index was emptied before the frame was written: what it holds came after.
    fn adopt(&mut self, replica: ReplicaId, rebuilding: bool) -> Result<(), StoreError> {
        if rebuilding || self.store.persisted().is_none() {
            self.store.reset()?;
        }
        *self = Self { log: GroupLog::of(replica), is_begun: true, ..Self::new(self.store.clone(), false) };
        Ok(())
    }

    /// Loads a committed snapshot unless the index has it.
    fn install(&mut self, at: Applied, membership: Bytes, payloads: &Payloads) -> Result<(), ReplayError> {
        let import = self.import.take();
        let here = self.applied();
        if here < Some(at.index) {
            let Some(Import { base, frames }) = import else { return Ok(()) };
            // Of an older index another replica is to come, or a rebuild; for a group that waits, an image that has it all.
            if self.is_older || base.is_some() && self.is_waiting {
                return Ok(());
            }
            if base > here {
                return Err(lacks(self.store.group(), here.map_or(0, |here| here + 1)));
            }
            let installed = Installed { base, applied: at, membership, frames };
            installed.load(&self.store, &|at, len| payloads.read(at, len))?;
            self.is_waiting = false;
        }
        // openraft would have purged up to the snapshot next. What follows in the journal goes on from there.
        self.log.purge(log_id(at));
        Ok(())
    }

    fn install_image(
        &mut self,
        image: Image,
        at: Applied,
        membership: Bytes,
        payloads: &Payloads,
    ) -> Result<(), StoreError> {
        let mut blocks = image.frames.into_iter().map(|(at, len)| {
            let bytes = payloads.read(at, len)?;
            Ok((FrameLocation { segment: at.segment, offset: at.offset }, bytes))
        });
        self.store.install_image(at, membership, &mut blocks)?;
        self.is_waiting = false;
        self.log.committed = self.log.committed.max(Some(log_id(at)));
        Ok(())
    }

    /// Applies some of what is committed from a log index on; where the rest begins, if there is more.
    fn apply_some(&mut self, from: u64, payloads: &Payloads) -> Result<Option<u64>, StoreError> {
        let entries = self.log.committed_from(from, COMMIT_BYTES, |at, len| payloads.read(at, len))?;
        let Some(last) = entries.last() else { return Ok(None) };
        let next = last.log_id.index + 1;
        for entry in entries {
            apply_entry(&self.store, entry)?;
        }
        self.log.forget_payloads(from, next - 1);
        Ok(self.log.first_committed_from(next).map(|_| next))
    }

    /// Holds index and log against each other once everything up to `committed` should be applied.
    fn check(&self, committed: Option<LogId>) -> Result<(), ReplayError> {
        let (group, applied) = (self.store.group(), self.applied());
        if committed.map(|id| id.index) > applied {
            return Err(lacks(group, applied.map_or(0, |index| index + 1)));
        }
        let last = self.log.last().map(|id| id.index);
        if applied > last {
            return Err(ReplayError::Rebuild(format!(
                "group {group}: the index is ahead of the journal ({} after {})",
                applied.unwrap_or(0),
                last.unwrap_or(0)
            )));
        }
        Ok(())
    }
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
        let is_waiting = rebuilding && oldest > FIRST_SEGMENT;
        Self {
            payloads,
            boot_id: settings.boot_id.clone(),
            rebuilding,
            oldest,
            groups: stores.into_iter().map(|store| GroupReplay::new(store, is_waiting)).collect(),
            checkpoint_boot: None,
            bytes_since_flush: 0,
        }
    }

    pub(super) fn frame(&mut self, frame: Frame) -> Result<(), ReplayError> {
        let group = frame.group & !IMAGE;
        let bad = |source| ReplayError::Record { group, source };
        let at = usize::from(group);
        if frame.group & IMAGE != 0 {
            self.image_frame(at, &frame, bad)
        } else if frame.kind == FrameKind::Checkpoint {
            self.checkpoint(Checkpoint::decode(&frame.payload).map_err(bad)?)
        } else if at < self.groups.len() {
            self.group_frame(at, &frame, bad)?;
            self.flush_if_due(frame.payload.len())
        } else {
            Ok(())
        }
    }

    fn group_frame(
        &mut self,
        at: usize,
        frame: &Frame,
        bad: impl Fn(RecordError) -> ReplayError + Copy,
    ) -> Result<(), ReplayError> {
        let group = &mut self.groups[at];
        match frame.kind {
            FrameKind::Entry => group.entry(frame).map_err(bad)?,
            FrameKind::Vote => group.log.raise_vote(codec::decode_vote(&frame.payload).map_err(bad)?),
            FrameKind::TruncateAfter => {
                group.log.truncate_after(codec::decode_log_id(&frame.payload).map_err(bad)?);
            }
            FrameKind::PurgeTo => {
                if let Some(upto) = codec::decode_log_id(&frame.payload).map_err(bad)? {
                    self.commit(at, Some(upto))?;
                    self.groups[at].log.purge(upto);
                }
            }
            FrameKind::Committed => {
                self.commit(at, codec::decode_log_id(&frame.payload).map_err(bad)?)?;
            }
            FrameKind::Replica => {
                group.adopt(codec::decode_replica(&frame.payload).map_err(bad)?, self.rebuilding)?;
            }
            FrameKind::ImportBegin => {
                group.begin_import(&ImportBegin::decode(&frame.payload).map_err(bad)?);
            }
            FrameKind::Import => {
                if let Some(import) = &mut group.import {
                    import.frames.push((frame.position, frame.payload.len() as u32));
                }
            }
            FrameKind::ImportCommit => {
                let (applied, membership) = snapshot::decode_commit(&frame.payload).map_err(bad)?;
                group.install(applied, membership, &self.payloads)?;
            }
            _ => {}
        }
        Ok(())
    }

    /// A frame of an image. Only a rebuild that lacks the beginning has a use for it, and only if it needs nothing of what
    /// is missing.
    fn image_frame(
        &mut self,
        at: usize,
        frame: &Frame,
        bad: impl Fn(RecordError) -> ReplayError + Copy,
    ) -> Result<(), ReplayError> {
        let Some(group) = self.groups.get_mut(at).filter(|group| group.is_waiting) else { return Ok(()) };
        match frame.kind {
            FrameKind::ImportBegin => {
                let floor = image::decode_begin(&frame.payload).map_err(bad)?;
                group.image = Some(Image { floor, frames: Vec::new() });
            }
            FrameKind::Import => {
                if let Some(image) = &mut group.image {
                    image.frames.push((frame.position, frame.payload.len() as u32));
                }
            }
            FrameKind::ImportCommit => {
                let (applied, membership) = snapshot::decode_commit(&frame.payload).map_err(bad)?;
                if let Some(image) = group.image.take().filter(|image| image.floor >= self.oldest) {
                    group.install_image(image, applied, membership, &self.payloads)?;
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// Everything up to `committed` is final: applies what the index lacks.
    fn commit(&mut self, at: usize, committed: Option<LogId>) -> Result<(), ReplayError> {
        let group = &mut self.groups[at];
        group.log.committed = group.log.committed.max(committed);
        if group.is_older {
            return Ok(());
        }
        let mut next = group.applied().map_or(0, |index| index + 1);
        match group.log.first_committed_from(next) {
            None => return Ok(()),
            Some(first) if first == next => {}
            Some(_) if group.is_waiting => return Ok(()),
            Some(_) => return Err(lacks(group.store.group(), next)),
        }
        group.is_waiting = false;
        while let Some(rest) = self.groups[at].apply_some(next, &self.payloads)? {
            // More follows only a portion of that size.
            self.flush_if_due(COMMIT_BYTES)?;
            next = rest;
        }
        Ok(())
    }

    fn checkpoint(&mut self, checkpoint: Checkpoint) -> Result<(), ReplayError> {
        self.checkpoint_boot = Some(checkpoint.boot_id);
        checkpoint.groups.iter().try_for_each(|said| self.group_checkpoint(said))
    }

    fn group_checkpoint(&mut self, said: &GroupCheckpoint) -> Result<(), ReplayError> {
        let at = usize::from(said.group);
        let Some(group) = self.groups.get_mut(at) else { return Ok(()) };
        if group.is_begun && group.log.replica != said.replica {
            // It was written just when the log began anew, and speaks of the replica before.
            return Ok(());
        }
        group.log.replica = said.replica;
        if let Some(vote) = said.vote {
            group.log.raise_vote(vote);
        }
        if self.rebuilding {
            self.commit(at, said.committed)?;
        } else if group.store.persisted() < said.applied.as_ref().map(applied) {
            group.is_older = true;
        }
        let group = &mut self.groups[at];
        group.claim = said.committed;
        if let Some(purged) = said.purged {
            group.log.purge(purged);
        }
        Ok(())
    }

    fn flush_if_due(&mut self, bytes: usize) -> Result<(), ReplayError> {
        self.bytes_since_flush += bytes as u64;
        if self.bytes_since_flush >= REBUILD_FLUSH_BYTES {
            self.bytes_since_flush = 0;
            info!(event = "replay_progress", rebuilding = self.rebuilding);
            self.flush()?;
        }
        Ok(())
    }

    fn flush(&self) -> Result<(), StoreError> {
        self.groups.iter().try_for_each(|group| group.store.checkpoint().map(drop))
    }

    /// Applies what is left and holds index and journal against each other.
    pub(super) fn finish(mut self) -> Result<Vec<(Arc<GroupStore>, GroupLog)>, ReplayError> {
        if let Some(group) = self.groups.iter().position(|group| group.is_older) {
            let why = format!("group {group}: the index is older than its checkpoint");
            return Err(ReplayError::Rebuild(why));
        }
        for at in 0..self.groups.len() {
            let group = &self.groups[at];
            if !group.log.is_whole() {
                return Err(ReplayError::Rebuild(format!("group {at}: its log has a hole")));
            }
            let committed = group.log.committed.max(group.claim);
            self.commit(at, committed)?;
            self.groups[at].check(committed)?;
        }
        if self.rebuilding {
            // Raft takes what the index holds for its snapshot, which must not end before what was purged.
            self.flush()?;
            if let Some(any) = self.groups.first() {
                any.store.sync()?;
            }
        } else if self.checkpoint_boot.as_ref().is_some_and(|boot| *boot != self.boot_id) {
            info!(event = "index_verify_started", reason = "the machine was restarted");
            for group in &self.groups {
                group.store.ensure_verified()?;
            }
        }
        Ok(self.groups.into_iter().map(|group| (group.store, group.log)).collect())
    }
}
