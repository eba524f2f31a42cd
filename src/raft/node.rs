//! All Raft groups of this node: started from recovered files, driven by node-level services, shut down in order.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use openraft::async_runtime::WatchReceiver;
use openraft::errors::{ClientWriteError, RaftError};
use openraft::{Config, Raft, RaftMetrics, ReadPolicy, SnapshotPolicy};
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

use super::checkpoint::{CheckpointError, Checkpointer};
use super::log_store::LogStore;
use super::network::NoPeers;
use super::recovery::{self, RecoveryError, RecoverySettings};
use super::state_machine::StateMachine;
use super::types::{Host, Proposal, ReplicaId, TypeConfig};
use crate::conversation::Reply;
use crate::journal::{AppendError, Class, Disk, Journal, Options};
use crate::metrics::Metrics;
use crate::store::{Failure, GroupStore, Shared};

/// The replica that founds a group on a node without peers.
const FOUNDER: ReplicaId = 1;
/// How often the checkpoint service looks whether one is due.
const CHECKPOINT_POLL: Duration = Duration::from_millis(250);

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
    #[error("starting Raft group {group}: {reason}")]
    Raft { group: u16, reason: String },
}

/// Why a write through Raft has no reply.
#[derive(Debug, thiserror::Error)]
pub enum WriteFailure {
    /// The command was refused before it was appended.
    #[error("this node does not lead the conversation's group")]
    NotLeader,
    /// The command may have been or may yet be applied.
    #[error("{0}")]
    Unknown(String),
}

/// One Raft group on this node.
pub struct Group {
    pub(crate) raft: Raft<TypeConfig, StateMachine>,
    pub(crate) store: Arc<GroupStore>,
    pub(crate) log: LogStore,
    pub(crate) replica: ReplicaId,
}

impl Group {
    /// Appends a command; the reply comes once it is committed and applied here.
    pub(crate) async fn write(&self, command: Bytes) -> Result<Reply, WriteFailure> {
        match self.raft.client_write(Proposal { command, at: None }).await {
            Ok(response) => response.data.ok_or_else(|| WriteFailure::Unknown("no reply".into())),
            Err(RaftError::APIError(ClientWriteError::ForwardToLeader(_))) => Err(WriteFailure::NotLeader),
            Err(error) => Err(WriteFailure::Unknown(error.to_string())),
        }
    }

    /// Returns once a read here reflects every write acknowledged before the call.
    pub(crate) async fn linearize(&self) -> Result<(), String> {
        if self.is_sole_voter_leading() {
            // A quorum of one: whatever was acknowledged was applied here first, and nobody else can lead.
            return Ok(());
        }
        self.raft.ensure_linearizable(ReadPolicy::ReadIndex).await.map(drop).map_err(|e| e.to_string())
    }

    pub(crate) fn is_leader(&self) -> bool {
        self.raft.is_leader()
    }

    fn is_sole_voter_leading(&self) -> bool {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        metrics.state.is_leader() && metrics.membership_config.voter_ids().eq([self.replica])
    }
}

/// The Raft groups of a node and the services that keep them.
pub struct Node {
    pub(crate) groups: Arc<Vec<Group>>,
    pub(crate) journal: Journal,
    pub(crate) shared: Arc<Shared>,
    checkpointer: Arc<Checkpointer>,
    checkpoint_turn: Arc<Mutex<()>>,
    /// Journal bytes at the last checkpoint.
    checkpointed_bytes: Arc<AtomicU64>,
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
                .await
                .map_err(|e| StartError::Raft { group: 0, reason: format!("recovery: {e}") })??
        };
        if recovered.rebuilt.is_some() {
            metrics.index_rebuilds.inc();
        }
        let config = raft_config();
        let mut groups = Vec::with_capacity(recovered.stores.len());
        for (store, log) in recovered.stores.into_iter().zip(recovered.logs) {
            let log = LogStore::new(store.group(), recovered.journal.clone(), log);
            groups.push(start_group(store, log, &config, settings.node_id, &failure).await?);
        }
        let groups = Arc::new(groups);
        lead_all(&groups).await?;
        metrics.groups_hosted.set(groups.len() as i64);
        let node = Self {
            checkpointer: Arc::new(Checkpointer {
                journal: recovered.journal.clone(),
                shared: recovered.shared.clone(),
                groups: groups.clone(),
                boot_id,
                segment_bytes: u64::from(segment_bytes),
            }),
            checkpoint_turn: Arc::default(),
            checkpointed_bytes: Arc::default(),
            journal: recovered.journal,
            shared: recovered.shared,
            groups,
            failure,
            stop: CancellationToken::new(),
            services: TaskTracker::new(),
        };
        if recovered.rebuilt.is_some() {
            node.checkpoint().await;
        }
        node.start_services(settings.checkpoint_bytes, settings.checkpoint_interval);
        Ok(node)
    }

    /// Whether there is disk space for appends.
    pub fn has_space(&self) -> bool {
        self.journal.admit(Class::Data) != Err(AppendError::Full)
    }

    /// Writes a checkpoint now; a failure stops the node.
    pub async fn checkpoint(&self) {
        checkpoint(&self.checkpointer, &self.checkpoint_turn, &self.checkpointed_bytes, &self.failure).await;
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

    fn start_services(&self, bytes_due: u64, interval: Duration) {
        let (checkpointer, turn, done) =
            (self.checkpointer.clone(), self.checkpoint_turn.clone(), self.checkpointed_bytes.clone());
        let (failure, stop) = (self.failure.clone(), self.stop.clone());
        self.services.spawn(async move {
            let mut last = tokio::time::Instant::now();
            loop {
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = tokio::time::sleep(CHECKPOINT_POLL) => {}
                }
                let bytes = checkpointer.journal_bytes() - done.load(Ordering::Relaxed);
                if bytes >= bytes_due || (bytes > 0 && last.elapsed() >= interval) {
                    checkpoint(&checkpointer, &turn, &done, &failure).await;
                    last = tokio::time::Instant::now();
                }
            }
        });
        let (groups, failure, stop) = (self.groups.clone(), self.failure.clone(), self.stop.clone());
        self.services.spawn_blocking(move || {
            // Lookups that miss verify their group at once; this proves the rest in the background.
            for group in groups.iter().take_while(|_| !stop.is_cancelled()) {
                if let Err(error) = group.store.ensure_verified() {
                    failure.store(&error);
                    return;
                }
            }
            info!(event = "index_verified");
        });
    }
}

async fn checkpoint(checkpointer: &Arc<Checkpointer>, turn: &Mutex<()>, done: &AtomicU64, failure: &Failure) {
    let _turn = turn.lock().await;
    let bytes = checkpointer.journal_bytes();
    match checkpointer.run().await {
        Ok(_) => done.store(bytes, Ordering::Relaxed),
        Err(CheckpointError::Store(error)) => failure.store(&error),
        Err(error) => failure.raise(format!("checkpoint: {error}"), false),
    }
}

async fn start_group(
    store: Arc<GroupStore>,
    log: LogStore,
    config: &Arc<Config>,
    node_id: u128,
    failure: &Failure,
) -> Result<Group, StartError> {
    let group = store.group();
    let failed = |reason: String| StartError::Raft { group, reason };
    let machine = StateMachine::new(store.clone(), log.clone(), failure.clone());
    let raft = Raft::new(FOUNDER, config.clone(), NoPeers, log.clone(), machine)
        .await
        .map_err(|e| failed(e.to_string()))?;
    if raft.is_initialized().await.map_err(|e| failed(e.to_string()))? {
        // Its only voter is here: no need to wait for a timeout.
        raft.trigger().elect(false).await.map_err(|e| failed(e.to_string()))?;
    } else {
        let members = BTreeMap::from([(FOUNDER, Host { node_id })]);
        raft.initialize(members).await.map_err(|e| failed(e.to_string()))?;
    }
    Ok(Group { raft, store, log, replica: FOUNDER })
}

/// Waits until every group is led from here and has applied its log.
async fn lead_all(groups: &[Group]) -> Result<(), StartError> {
    for group in groups {
        let failed = |reason: String| StartError::Raft { group: group.store.group(), reason };
        let applied = |m: &RaftMetrics<TypeConfig>| {
            m.state.is_leader() && m.last_applied.map(|id| id.index) >= m.last_log_index
        };
        group.raft.wait(None).metrics(applied, "lead and apply").await.map_err(|e| failed(e.to_string()))?;
    }
    Ok(())
}

/// No per-group timers: heartbeats and elections are driven by the node.
fn raft_config() -> Arc<Config> {
    let config = Config {
        cluster_name: "fastpaca".to_owned(),
        enable_tick: false,
        enable_heartbeat: false,
        enable_elect: false,
        enable_leader_restore: Some(false),
        enable_pre_vote: Some(true),
        allow_log_reversion: Some(false),
        snapshot_policy: SnapshotPolicy::Never,
        max_in_snapshot_log_to_keep: 0,
        ..Config::default()
    };
    Arc::new(config.validate().expect("the configuration is constant"))
}
