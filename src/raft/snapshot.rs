//! Snapshots: a handle that names the durable checkpoint, and the installation of what a transfer brought.
//!
//! Building one copies nothing. A receiver has the sender's blocks in its own journal behind an install-begin frame;
//! installing adds an install-commit frame and only then changes the group's state: a crash before the commit leaves
//! the old state, one after it makes recovery install from the journal.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use openraft::type_config::alias;
use tokio::sync::mpsc;

use super::codec;
use super::import::Import;
use super::state_machine::{StateMachine, applied, log_id, stored_membership};
use super::types::{StoredMembership, TypeConfig};
use crate::conversation::FrameLocation;
use crate::journal::{FrameKind, Position};
use crate::store::{Applied, Block, GroupStore, Resume, StoreError};

pub(crate) type SnapshotMeta = alias::SnapshotMetaOf<TypeConfig>;
pub(crate) type Snapshot = alias::SnapshotOf<TypeConfig, GroupSnapshot>;

/// Blocks on their way from the exporting side.
const BLOCKS_IN_FLIGHT: usize = 4;

/// A snapshot's contents.
pub(crate) enum GroupSnapshot {
    /// A handle to the group that has them.
    Local(Arc<GroupStore>),
    /// What came from another node. Boxed: openraft moves commands as large as the largest of them, several times for each
    /// append.
    Received(Box<Import>),
}

/// The group's newest durable checkpoint as a snapshot; `None` before the first.
pub(crate) fn current(store: &Arc<GroupStore>) -> io::Result<Option<Snapshot>> {
    let (persisted, membership) = store.persisted_state();
    let Some(at) = persisted else { return Ok(None) };
    let meta =
        SnapshotMeta { last_log_id: Some(log_id(at)), last_membership: stored_membership(&membership)? };
    Ok(Some(Snapshot { meta, snapshot: GroupSnapshot::Local(store.clone()) }))
}

/// The snapshot of a group that has applied nothing.
pub(crate) fn empty(store: &Arc<GroupStore>) -> Snapshot {
    Snapshot { meta: SnapshotMeta::default(), snapshot: GroupSnapshot::Local(store.clone()) }
}

/// Where a committed snapshot's frames lie.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Installed {
    /// They hold what changed after this log index; the whole state, if `None`.
    pub(crate) base: Option<u64>,
    pub(crate) applied: Applied,
    pub(crate) membership: Bytes,
    pub(crate) frames: Vec<(Position, u32)>,
}

impl Installed {
    /// Brings the group to the snapshot's state.
    pub(crate) fn load(
        self,
        store: &GroupStore,
        read: &dyn Fn(Position, u32) -> io::Result<Bytes>,
    ) -> Result<(), StoreError> {
        let mut blocks = self.frames.into_iter().map(|(at, len)| {
            let bytes = read(at, len)?;
            Ok((FrameLocation { segment: at.segment, offset: at.offset }, bytes))
        });
        store.install(self.base, self.applied, self.membership, &mut blocks)
    }
}

/// The payload of an install-commit frame.
pub(crate) fn encode_commit(at: Applied, membership: &StoredMembership) -> Vec<u8> {
    let mut out = codec::encode_log_id(Some(&log_id(at)));
    out.extend_from_slice(&codec::encode_stored_membership(membership));
    out
}

/// The position and the encoded membership of an install-commit frame.
pub(crate) fn decode_commit(payload: &Bytes) -> Result<(Applied, Bytes), codec::RecordError> {
    let incomplete = codec::RecordError { what: "install commit", reason: "no log id" };
    let at = codec::decode_log_id(payload)?.ok_or(incomplete)?;
    let membership = payload.slice(codec::SOME_LOG_ID_BYTES..);
    codec::decode_stored_membership(&membership)?;
    Ok((applied(&at), membership))
}

impl StateMachine {
    /// Takes over a snapshot whose blocks are in this node's journal; copies them there first if need be.
    pub(crate) async fn install(&self, meta: &SnapshotMeta, source: GroupSnapshot) -> Result<(), StoreError> {
        let Some(last) = &meta.last_log_id else { return Ok(()) };
        let at = applied(last);
        if self.store.applied().0.is_some_and(|here| here.index >= at.index) {
            return Ok(());
        }
        let import = match source {
            GroupSnapshot::Received(import) => *import,
            GroupSnapshot::Local(source) => self.copy(source).await?,
        };
        let commit = encode_commit(at, &meta.last_membership);
        self.log.bar_image();
        self.log.write_synced(FrameKind::ImportCommit, &commit).await?;
        let (base, frames) = import.committed();
        let membership = commit[codec::SOME_LOG_ID_BYTES..].to_vec().into();
        let installed = Installed { base, applied: at, membership, frames };
        let (store, journal) = (self.store.clone(), self.log.journal().clone());
        let read = move |at: Position, len| journal.read(at.segment, at.offset, len);
        let task = tokio::task::spawn_blocking(move || installed.load(&store, &read)).await;
        task.map_err(|e| io::Error::other(format!("install task: {e}")))??;
        self.log.end_import();
        Ok(())
    }

    /// Writes the whole state of a group of this process as import frames.
    async fn copy(&self, source: Arc<GroupStore>) -> Result<Import, StoreError> {
        let mut import = Import::begin(self.log.clone(), &self.store, None, 0).await?;
        let mut export = Export::start(source, None, None);
        while let Some(block) = export.next().await? {
            import.write(vec![block]).await?;
        }
        Ok(import)
    }
}

/// The encoded blocks of a group, made in the background as fast as they are taken.
pub(crate) struct Export {
    blocks: mpsc::Receiver<Result<Bytes, StoreError>>,
}

impl Export {
    /// Everything that changed after log index `base`, less what an interrupted transfer brought.
    pub(crate) fn start(source: Arc<GroupStore>, base: Option<u64>, resume: Option<Resume>) -> Self {
        let (tx, blocks) = mpsc::channel(BLOCKS_IN_FLIGHT);
        tokio::task::spawn_blocking(move || {
            let exported = source.export(base, resume.as_ref(), &mut |block: Block| {
                let gone = |_| StoreError::Journal(io::Error::other("nobody takes the snapshot any more"));
                tx.blocking_send(Ok(block.encode())).map_err(gone)
            });
            if let Err(error) = exported {
                let _ = tx.blocking_send(Err(error));
            }
        });
        Self { blocks }
    }

    /// The next block; `None` after the last.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, StoreError> {
        self.blocks.recv().await.transpose()
    }
}

#[cfg(test)]
mod tests;
