//! Checkpoints: what apply changed goes to the index, then one journal frame says from where recovery may begin.
//!
//! Order matters. The journal is synced past everything that a group's records refer to before they are written, all are synced,
//! and only then comes the checkpoint frame. A crash in between leaves an index ahead of the newest frame, which is fine.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use openraft::RaftMetrics;
use tokio::sync::Mutex;
use tokio::task::JoinError;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::codec::{Checkpoint, GroupCheckpoint};
use super::slots::{Slot, Slots};
use super::state_machine::log_id;
use super::types::TypeConfig;
use crate::journal::{AppendError, Journal, Position};
use crate::store::{Failure, Shared, StoreError};

/// How often the service looks whether a checkpoint is due.
const POLL: Duration = Duration::from_millis(250);
/// Journal behind its end whose entries are kept for replicas that fell behind; older ones need a snapshot.
const RETAINED_BYTES: u64 = 128 << 20;
/// Naming the checkpoint as the snapshot does no IO; a group that takes longer is purged the next time.
const SNAPSHOT_MAX: Duration = Duration::from_secs(1);

/// Why a checkpoint failed. The node cannot go on: the index or the journal is broken.
#[derive(Debug, thiserror::Error)]
enum CheckpointError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("checkpoint: {0}")]
    Append(#[from] AppendError),
    /// What was being written is in memory no more.
    #[error("checkpoint: {0}")]
    Panicked(#[from] JoinError),
}

/// Writes checkpoints of all groups of the node, one at a time.
pub(crate) struct Checkpointer {
    journal: Journal,
    shared: Arc<Shared>,
    slots: Arc<Slots>,
    boot_id: String,
    segment_bytes: u32,
    turn: Mutex<()>,
    /// [`Checkpointer::journal_bytes`] at the last checkpoint.
    covered_bytes: AtomicU64,
}

impl Checkpointer {
    pub(crate) fn new(
        journal: Journal,
        shared: Arc<Shared>,
        slots: Arc<Slots>,
        boot_id: String,
        segment_bytes: u32,
    ) -> Self {
        let turn = Mutex::default();
        Self { journal, shared, slots, boot_id, segment_bytes, turn, covered_bytes: AtomicU64::new(0) }
    }

    /// Writes checkpoints by journal growth, and by time if anything was written.
    pub(crate) async fn serve(
        self: Arc<Self>,
        bytes_due: u64,
        interval: Duration,
        failure: Failure,
        stop: CancellationToken,
    ) {
        let mut last = Instant::now();
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = failure.raised() => return,
                () = tokio::time::sleep(POLL) => {}
            }
            let grown = self.journal_bytes() - self.covered_bytes.load(Ordering::Relaxed);
            if grown >= bytes_due || (grown > 0 && last.elapsed() >= interval) {
                self.checkpoint(&failure).await;
                last = Instant::now();
            }
        }
    }

    /// Writes a checkpoint of everything that changed. A failure stops the node.
    pub(crate) async fn checkpoint(self: &Arc<Self>, failure: &Failure) {
        let _turn = self.turn.lock().await;
        if failure.is_raised() {
            // The last one may have failed half way, and left out what this one would take for written.
            return;
        }
        let started = Instant::now();
        match self.run().await {
            Ok(()) => {
                self.covered_bytes.store(self.journal_bytes(), Ordering::Relaxed);
                self.shared.metrics.checkpoint_seconds.observe(started.elapsed().as_secs_f64());
                let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
                self.shared.metrics.checkpoint_time_seconds.set(now.as_secs_f64());
            }
            Err(CheckpointError::Store(error)) => failure.store(&error),
            Err(error @ CheckpointError::Panicked(_)) => failure.raise(error.to_string(), true),
            Err(error) => failure.raise(error.to_string(), false),
        }
    }

    async fn run(self: &Arc<Self>) -> Result<(), CheckpointError> {
        let imported: Vec<&Slot> = self.slots.iter().filter(|slot| slot.log.is_imported()).collect();
        let this = self.clone();
        let changed = tokio::task::spawn_blocking(move || this.write_index()).await??;
        if !changed {
            return Ok(());
        }
        imported.iter().for_each(|slot| slot.log.import_durable());
        let (scan_from, checkpoint) = self.describe();
        self.journal.checkpoint(scan_from, &checkpoint.encode()).await?;
        self.purge().await;
        Ok(())
    }

    /// Lets go of log entries that the checkpoint covers. Peers may still ask for the newest of them, so some bytes
    /// of journal are kept.
    async fn purge(&self) {
        let end = self.journal.end();
        let kept_segments = (RETAINED_BYTES / u64::from(self.segment_bytes)) as u32;
        let cutoff = Position { segment: end.segment.saturating_sub(kept_segments), ..end };
        for slot in self.slots.iter() {
            let (Some(group), Some(persisted)) = (slot.group(), slot.store.persisted()) else { continue };
            let cutoff = if group.is_sole_voter() { end } else { cutoff };
            if slot.log.is_imaged() {
                continue;
            }
            let Some(upto) = slot.log.with(|log| log.last_before(cutoff, persisted.index)) else { continue };
            // The snapshot names the durable checkpoint; openraft purges nothing beyond it. An error here means that
            // the group has stopped, which its own failure reports.
            let _ = group.raft.trigger().snapshot().await;
            let wait = group.raft.wait(Some(SNAPSHOT_MAX));
            let named = |m: &RaftMetrics<TypeConfig>| m.snapshot.is_some_and(|id| id.index >= upto);
            if wait.metrics(named, "name the checkpoint").await.is_ok() {
                let _ = group.raft.trigger().purge_log(upto).await;
            }
        }
    }

    /// Writes every group's changes; durable on return.
    fn write_index(&self) -> Result<bool, StoreError> {
        let mut changed = false;
        for slot in self.slots.iter() {
            changed |= slot.store.checkpoint()?;
        }
        if changed {
            self.shared.index.sync()?;
        }
        Ok(changed)
    }

    /// The checkpoint frame's contents, and from where recovery has to read.
    fn describe(&self) -> (Position, Checkpoint) {
        // Read before the groups: what is appended from here on lies behind it.
        let end = self.journal.end();
        let mut scan_from = end;
        let groups = self.slots.iter().map(|slot| {
            slot.log.with(|log| {
                scan_from = scan_from.min(log.first_retained().unwrap_or(end));
                GroupCheckpoint {
                    group: slot.store.group(),
                    replica: log.replica,
                    vote: log.vote,
                    committed: log.committed,
                    purged: log.purged,
                    last: log.last(),
                    applied: slot.store.persisted().map(log_id),
                }
            })
        });
        let groups = groups.collect();
        (scan_from, Checkpoint { boot_id: self.boot_id.clone(), groups })
    }

    /// Bytes the journal has grown to since it was created.
    fn journal_bytes(&self) -> u64 {
        let end = self.journal.end();
        u64::from(end.segment) * u64::from(self.segment_bytes) + u64::from(end.offset)
    }
}
