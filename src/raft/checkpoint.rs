//! Checkpoints: what apply changed goes to the index, then one journal frame says from where recovery may begin.
//!
//! Order matters. The journal is synced past everything the records refer to, the records are written and synced,
//! and only then the checkpoint frame. A crash in between leaves an index ahead of the newest frame, which is fine.

use std::io;
use std::sync::Arc;

use super::codec::{Checkpoint, GroupCheckpoint};
use super::node::Group;
use super::state_machine::log_id;
use crate::journal::{AppendError, Journal};
use crate::store::{Shared, StoreError};

/// Why a checkpoint failed. The node cannot go on: the index or the journal is broken.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CheckpointError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("journal: {0}")]
    Sync(#[from] io::Error),
    #[error("journal: {0}")]
    Append(#[from] AppendError),
}

/// Writes checkpoints of all groups of the node.
pub(crate) struct Checkpointer {
    pub(crate) journal: Journal,
    pub(crate) shared: Arc<Shared>,
    pub(crate) groups: Arc<Vec<Group>>,
    pub(crate) boot_id: String,
    pub(crate) segment_bytes: u64,
}

impl Checkpointer {
    /// Bytes the journal has grown to since it was created.
    pub(crate) fn journal_bytes(&self) -> u64 {
        let end = self.journal.end();
        u64::from(end.segment) * self.segment_bytes + u64::from(end.offset)
    }

    /// One checkpoint of everything that changed. Returns how many groups had changed.
    pub(crate) async fn run(self: &Arc<Self>) -> Result<usize, CheckpointError> {
        self.journal.wait_synced(self.journal.end()).await?;
        let imported: Vec<&Group> = self.groups.iter().filter(|group| group.log.is_imported()).collect();
        let this = self.clone();
        let changed = tokio::task::spawn_blocking(move || this.write_index())
            .await
            .map_err(|e| io::Error::other(format!("checkpoint task: {e}")))??;
        if changed.is_empty() {
            return Ok(0);
        }
        imported.iter().for_each(|group| group.log.import_durable());
        // Read before the groups: what is appended from here on lies behind it.
        let end = self.journal.end();
        let mut scan_from = end;
        let groups = self.groups.iter().map(|group| {
            group.log.with(|log| {
                scan_from = scan_from.min(log.first_retained().unwrap_or(end));
                GroupCheckpoint {
                    group: group.store.group(),
                    replica: group.replica,
                    vote: log.vote,
                    committed: log.committed,
                    purged: log.purged,
                    last: log.last(),
                    applied: group.store.persisted().map(log_id),
                }
            })
        });
        let payload = Checkpoint { boot_id: self.boot_id.clone(), groups: groups.collect() }.encode();
        self.journal.checkpoint(scan_from, &payload).await?;
        for group in changed.iter().map(|i| &self.groups[*i]) {
            // The snapshot names the durable checkpoint, so that the log before it can be purged.
            let _ = group.raft.trigger().snapshot().await;
        }
        Ok(changed.len())
    }

    fn write_index(&self) -> Result<Vec<usize>, StoreError> {
        let mut changed = Vec::new();
        for (i, group) in self.groups.iter().enumerate() {
            if group.store.checkpoint()? {
                changed.push(i);
            }
        }
        if !changed.is_empty() {
            self.shared.index.sync()?;
        }
        Ok(changed)
    }
}
