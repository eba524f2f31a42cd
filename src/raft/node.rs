//! All Raft groups of this node: started from recovered files, served by node-level services, shut down in order.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

use super::checkpoint::Checkpointer;
use super::group::{self, Group};
use super::log_store::LogStore;
use super::recovery::{self, RecoveryError, RecoverySettings};
use crate::journal::{AppendError, Class, Disk, Journal, Options};
use crate::metrics::Metrics;
use crate::store::{Failure, Shared};

/// How often gauges are brought up to date.
const SAMPLE_INTERVAL: Duration = Duration::from_secs(1);

/// What a node is started with.
pub struct NodeSettings {
    pub node_id: u128,
    pub recovery: RecoverySettings,
    pub journal: Options,
    /// Journal bytes after which a checkpoint is due.
    pub checkpoint_bytes: u64,
    /// Time after which a checkpoint is due if anything changed.
    pub checkpoint_interval: Duration,
}

/// Why a node did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Recovery(#[from] RecoveryError),
    #[error("recovery stopped: {0}")]
    RecoveryTask(#[from] tokio::task::JoinError),
    #[error("starting Raft group {group}: {reason}")]
    Raft { group: u16, reason: String },
}

/// The Raft groups of a node and the services that keep them.
pub struct Node {
    pub(crate) groups: Arc<Vec<Group>>,
    pub(crate) journal: Journal,
    pub(crate) shared: Arc<Shared>,
    checkpointer: Arc<Checkpointer>,
    failure: Failure,
    stop: CancellationToken,
    services: TaskTracker,
}

impl Node {
    /// Recovers the node's files and starts all groups. Returns once every group has a leader.
    pub async fn start(
        settings: NodeSettings,
        disk: Arc<dyn Disk>,
        metrics: Metrics,
        failure: Failure,
    ) -> Result<Self, StartError> {
        let (boot_id, segment_bytes) = (settings.recovery.boot_id.clone(), settings.journal.segment_bytes);
        let recovered = {
            let (options, metrics) = (settings.journal.clone(), metrics.clone());
            let recovery = settings.recovery;
            tokio::task::spawn_blocking(move || recovery::recover(&recovery, &options, &disk, &metrics))
                .await??
        };
        let config = group::config();
        let mut groups = Vec::with_capacity(recovered.stores.len());
        for (store, log) in recovered.stores.into_iter().zip(recovered.logs) {
            let log = LogStore::new(store.group(), recovered.journal.clone(), log);
            groups.push(Group::start(store, log, &config, settings.node_id, &failure).await?);
        }
        for group in &groups {
            group.led().await?;
        }
        let groups = Arc::new(groups);
        let checkpointer = Arc::new(Checkpointer::new(
            recovered.journal.clone(),
            recovered.shared.clone(),
            groups.clone(),
            boot_id,
            segment_bytes,
        ));
        if recovered.rebuilt.is_some() {
            metrics.index_rebuilds.inc();
            checkpointer.checkpoint(&failure).await;
        }
        let node = Self {
            groups,
            journal: recovered.journal,
            shared: recovered.shared,
            checkpointer,
            failure,
            stop: CancellationToken::new(),
            services: TaskTracker::new(),
        };
        node.start_services(&settings.checkpoint_interval, settings.checkpoint_bytes);
        Ok(node)
    }

    /// Whether there is disk space for appends.
    pub fn has_space(&self) -> bool {
        self.journal.admit(Class::Data) != Err(AppendError::Full)
    }

    /// Writes a checkpoint now; a failure stops the node.
    pub async fn checkpoint(&self) {
        self.checkpointer.checkpoint(&self.failure).await;
    }

    /// Ends like a crash as far as the index is concerned: the journal is flushed, nothing else.
    #[cfg(test)]
    pub(crate) async fn stop_without_checkpoint(&self) {
        self.failure.raise("test".into(), false);
        self.shutdown().await;
    }

    /// Stops services, writes a last checkpoint, stops the groups and the journal.
    pub async fn shutdown(&self) {
        self.stop.cancel();
        self.services.close();
        self.services.wait().await;
        if !self.failure.is_raised() {
            self.checkpoint().await;
        }
        for group in self.groups.iter() {
            if let Err(error) = group.raft.shutdown().await {
                warn!(event = "raft_shutdown_failed", group = group.store.group(), %error);
            }
        }
        let journal = self.journal.clone();
        let _ = tokio::task::spawn_blocking(move || journal.shutdown()).await;
    }

    fn start_services(&self, checkpoint_interval: &Duration, checkpoint_bytes: u64) {
        self.services.spawn(self.checkpointer.clone().serve(
            checkpoint_bytes,
            *checkpoint_interval,
            self.failure.clone(),
            self.stop.clone(),
        ));
        self.services.spawn(sample(
            self.groups.clone(),
            self.journal.clone(),
            self.shared.clone(),
            self.stop.clone(),
        ));
        let (groups, failure, stop) = (self.groups.clone(), self.failure.clone(), self.stop.clone());
        self.services.spawn_blocking(move || verify_all(&groups, &failure, &stop));
    }
}

/// Lookups that miss verify their group at once; this proves the rest in the background.
fn verify_all(groups: &[Group], failure: &Failure, stop: &CancellationToken) {
    for group in groups {
        if stop.is_cancelled() {
            return;
        }
        if let Err(error) = group.store.ensure_verified() {
            failure.store(&error);
            return;
        }
    }
    info!(event = "index_verified");
}

/// Keeps the gauges that nobody sets in passing.
async fn sample(groups: Arc<Vec<Group>>, journal: Journal, shared: Arc<Shared>, stop: CancellationToken) {
    let metrics = &shared.metrics;
    metrics.groups_hosted.set(groups.len() as i64);
    loop {
        let stats = journal.stats();
        metrics.group_leaders.set(groups.iter().filter(|group| group.is_leader()).count() as i64);
        metrics.journal_segments.set(i64::from(stats.active_segment - stats.oldest_segment) + 1);
        metrics.journal_queue_bytes.set(stats.queued_bytes as i64);
        metrics.disk_free_bytes.set(stats.free_bytes as i64);
        metrics.disk_full.set(i64::from(journal.admit(Class::Data) == Err(AppendError::Full)));
        metrics.index_disk_bytes.set(shared.index.disk_bytes() as i64);
        metrics.record_bytes.set(shared.record_bytes.load(std::sync::atomic::Ordering::Relaxed) as i64);
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(SAMPLE_INTERVAL) => {}
        }
    }
}
