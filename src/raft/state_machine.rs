//! openraft's state machine over a [`GroupStore`].

use std::io;
use std::sync::Arc;
use std::time::SystemTime;

use futures_util::{Stream, TryStreamExt};
use openraft::storage::{EntryResponder, RaftStateMachine};
use openraft::{EntryPayload, OptionalSend, RaftSnapshotBuilder};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::codec;
use super::log_store::LogStore;
use super::snapshot::{self, GroupSnapshot, Snapshot, SnapshotMeta};
use super::types::{Answered, Entry, LeaderId, LogId, StoredMembership, TypeConfig};
use crate::conversation::{FrameLocation, Reply};
use crate::store::{Applied, Failure, GroupStore, StoreError};
use crate::trace;

/// Applies one group's committed entries.
pub(crate) struct StateMachine {
    pub(super) store: Arc<GroupStore>,
    pub(super) log: LogStore,
    failure: Failure,
    ended: DropGuard,
}

impl StateMachine {
    pub(crate) fn new(store: Arc<GroupStore>, log: LogStore, failure: Failure) -> Self {
        Self { store, log, failure, ended: CancellationToken::new().drop_guard() }
    }

    /// Cancelled once nothing is applied any more: openraft, when it is shut down, does not wait for what it has queued here.
    pub(crate) fn ended(&self) -> CancellationToken {
        self.ended.token().clone()
    }

    /// An error here leaves the group unable to go on: the node stops rather than serve around it.
    fn fatal(&self, error: StoreError) -> io::Error {
        let text = error.to_string();
        self.failure.store(&error);
        io::Error::other(text)
    }
}

/// Applies one entry to the store; the reply is `None` for Raft's own entries.
pub(crate) fn apply_entry(store: &GroupStore, entry: Entry) -> Result<Option<Reply>, StoreError> {
    let at = applied(&entry.log_id);
    match entry.payload {
        EntryPayload::Blank => store.note(at, None),
        EntryPayload::Membership(membership) => {
            let stored = StoredMembership::new(Some(entry.log_id), membership);
            store.note(at, Some(codec::encode_stored_membership(&stored).into()));
        }
        EntryPayload::Normal(proposal) => {
            let position = proposal.at.expect("entries read from the log carry their position");
            let frame = FrameLocation { segment: position.segment, offset: position.offset };
            return store.apply(at, proposal.command, frame);
        }
    }
    Ok(None)
}

impl RaftStateMachine<TypeConfig> for StateMachine {
    type SnapshotData = GroupSnapshot;
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), io::Error> {
        let (at, membership) = self.store.applied();
        Ok((at.map(log_id), stored_membership(&membership)?))
    }

    async fn apply<S>(&mut self, mut entries: S) -> Result<(), io::Error>
    where
        S: Stream<Item = Result<EntryResponder<TypeConfig>, io::Error>> + Unpin + OptionalSend,
    {
        let mut applied: Option<(u64, u64)> = None;
        while let Some((entry, responder)) = entries.try_next().await? {
            let index = entry.log_id.index;
            let begun = trace::is_on().then(SystemTime::now);
            let reply = apply_entry(&self.store, entry).map_err(|e| self.fatal(e))?;
            applied = Some((applied.map_or(index, |range| range.0), index));
            if let Some(responder) = responder {
                let times = begun.map(|begun| (begun, SystemTime::now()));
                responder.send(Answered { reply, times });
            }
        }
        if let Some((from, upto)) = applied {
            self.log.applied(from, upto);
        }
        Ok(())
    }

    async fn try_create_snapshot_builder(&mut self, force: bool) -> Option<Builder> {
        Some(Builder { store: self.store.clone(), checkpoint_first: force })
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        Builder { store: self.store.clone(), checkpoint_first: true }
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, data: GroupSnapshot) -> Result<(), io::Error> {
        self.install(meta, data).await.map_err(|e| self.fatal(e))
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot>, io::Error> {
        snapshot::current(&self.store)
    }
}

/// Names the durable checkpoint as the snapshot: nothing is copied until a receiver asks for it.
pub(crate) struct Builder {
    store: Arc<GroupStore>,
    /// Somebody needs everything applied, not just what the last checkpoint covered.
    checkpoint_first: bool,
}

impl RaftSnapshotBuilder<TypeConfig> for Builder {
    type SnapshotData = GroupSnapshot;

    async fn build_snapshot(&mut self) -> Result<Snapshot, io::Error> {
        if self.checkpoint_first {
            let store = self.store.clone();
            let checkpoint = tokio::task::spawn_blocking(move || store.checkpoint_synced()).await;
            checkpoint.map_err(io::Error::other)?.map_err(|e| io::Error::other(e.to_string()))?;
        }
        Ok(snapshot::current(&self.store)?.unwrap_or_else(|| snapshot::empty(&self.store)))
    }
}

pub(crate) fn applied(log_id: &LogId) -> Applied {
    Applied { term: log_id.leader_id.term, leader: log_id.leader_id.node_id, index: log_id.index }
}

pub(crate) fn log_id(at: Applied) -> LogId {
    LogId { leader_id: LeaderId { term: at.term, node_id: at.leader }, index: at.index }
}

pub(crate) fn stored_membership(bytes: &[u8]) -> io::Result<StoredMembership> {
    if bytes.is_empty() {
        return Ok(StoredMembership::default());
    }
    codec::decode_stored_membership(bytes).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))
}
