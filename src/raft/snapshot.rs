//! Snapshots: a handle that names the durable checkpoint, and the transfer of the state behind it.
//!
//! Building one copies nothing. Installing writes the sender's blocks into this node's journal between an
//! install-begin and an install-commit frame, and only then replaces the group's state: a crash before the commit
//! leaves the old state, one after it makes recovery install from the journal.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use openraft::type_config::alias;
use tokio::sync::mpsc;

use super::codec;
use super::log_store::LogStore;
use super::state_machine::{StateMachine, applied, log_id, stored_membership};
use super::types::{StoredMembership, TypeConfig};
use crate::conversation::FrameLocation;
use crate::journal::{FrameKind, Journal, Position};
use crate::store::{Applied, Block, GroupStore, StoreError};

pub(crate) type SnapshotMeta = alias::SnapshotMetaOf<TypeConfig>;
pub(crate) type Snapshot = alias::SnapshotOf<TypeConfig, GroupSnapshot>;

/// Blocks on their way from the exporting to the installing side.
const BLOCKS_IN_FLIGHT: usize = 4;

/// A snapshot's contents: a handle to the group that has them.
pub(crate) struct GroupSnapshot(pub(super) Arc<GroupStore>);

/// The group's newest durable checkpoint as a snapshot; `None` before the first.
pub(crate) fn current(store: &Arc<GroupStore>) -> io::Result<Option<Snapshot>> {
    let (persisted, membership) = store.persisted_state();
    let Some(at) = persisted else { return Ok(None) };
    let meta =
        SnapshotMeta { last_log_id: Some(log_id(at)), last_membership: stored_membership(&membership)? };
    Ok(Some(Snapshot { meta, snapshot: GroupSnapshot(store.clone()) }))
}

/// The snapshot of a group that has applied nothing.
pub(crate) fn empty(store: &Arc<GroupStore>) -> Snapshot {
    Snapshot { meta: SnapshotMeta::default(), snapshot: GroupSnapshot(store.clone()) }
}

/// Where an installed snapshot's frames lie.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Installed {
    pub(crate) applied: Applied,
    pub(crate) membership: Bytes,
    pub(crate) frames: Vec<(Position, u32)>,
}

impl Installed {
    /// Replaces the group's state by what the frames hold.
    pub(crate) fn load(self, store: &GroupStore, journal: &Journal) -> Result<(), StoreError> {
        let mut blocks = self.frames.into_iter().map(|(at, len)| {
            let bytes = journal.read(at.segment, at.offset, len)?;
            Ok((FrameLocation { segment: at.segment, offset: at.offset }, bytes))
        });
        store.install(self.applied, self.membership, &mut blocks)
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
    /// Copies a snapshot into this node's journal and takes it over.
    pub(crate) async fn install(&self, meta: &SnapshotMeta, source: GroupSnapshot) -> Result<(), StoreError> {
        let Some(last) = &meta.last_log_id else { return Ok(()) };
        let at = applied(last);
        if self.store.applied().0.is_some_and(|here| here.index >= at.index) {
            return Ok(());
        }
        let frames = copy_blocks(&self.log, source).await?;
        let commit = encode_commit(at, &meta.last_membership);
        self.log.write_synced(FrameKind::ImportCommit, &commit).await?;
        let installed =
            Installed { applied: at, membership: commit[codec::SOME_LOG_ID_BYTES..].to_vec().into(), frames };
        let (store, journal) = (self.store.clone(), self.log.journal().clone());
        let task = tokio::task::spawn_blocking(move || installed.load(&store, &journal)).await;
        task.map_err(|e| io::Error::other(format!("install task: {e}")))??;
        self.log.end_import();
        Ok(())
    }
}

/// Writes the exporter's blocks as frames; memory holds a few blocks at a time.
async fn copy_blocks(log: &LogStore, source: GroupSnapshot) -> Result<Vec<(Position, u32)>, StoreError> {
    log.begin_import().await?;
    let (tx, mut rx) = mpsc::channel::<Block>(BLOCKS_IN_FLIGHT);
    let export = tokio::task::spawn_blocking(move || {
        source.0.export(&mut |block| {
            let gone = |_| StoreError::Journal(io::Error::other("the installing side stopped"));
            tx.blocking_send(block).map_err(gone)
        })
    });
    let mut frames = Vec::new();
    while let Some(block) = rx.recv().await {
        let bytes = block.encode();
        let at = log.write_import(&bytes).await?;
        frames.push((at, bytes.len() as u32));
    }
    export.await.map_err(|e| io::Error::other(format!("export task: {e}")))??;
    Ok(frames)
}
