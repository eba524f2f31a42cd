//! One running replica of a Raft group: written to and read from here.
//!
//! Who leads is in [`leadership`], who the members are in [`members`], and how a read is confirmed in [`read_index`].

mod leadership;
mod members;
mod read_barrier;
mod read_index;

use std::error::Error;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use bytes::Bytes;
use openraft::async_runtime::WatchReceiver;
use openraft::errors::{ClientWriteError, Fatal, ForwardReason, RaftError};
use openraft::type_config::alias::WatchReceiverOf;
use openraft::{Config, Raft, RaftMetrics, SnapshotPolicy};
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;
use tracing::warn;

pub(super) use self::leadership::{leader_node, leader_replica};
pub use self::members::{Members, MembershipError};
use self::read_barrier::ReadBarrier;
pub use self::read_barrier::ReadFailure;
use super::liveness::Liveness;
use super::log_store::LogStore;
use super::network::Network;
use super::node::StartError;
use super::state_machine::StateMachine;
use super::types::{Answered, LogId, Proposal, ReplicaId, TypeConfig};
use crate::conversation::Reply;
use crate::store::{Failure, GroupStore};
use crate::trace::{self, Kind, Span};

/// The lease within which a voter that heard from a leader grants no other a vote.
pub(super) const LEASE_MS: u64 = 600;
/// How long a vote may take, which includes a sync at each voter. openraft wants it shorter than the lease.
const VOTE_MS: u64 = LEASE_MS - 10;
/// A leader that has just heard from a quorum may be late again on a machine that is starved.
const LEASE_RENEWALS_MAX: usize = 4;
/// Longest wait of a read for this node to apply what the leader confirmed.
const CATCH_UP_MAX: Duration = Duration::from_secs(5);

/// Why a write through Raft has no reply.
#[derive(Debug, thiserror::Error)]
pub enum WriteFailure {
    /// The command was refused before it was appended.
    #[error("this node does not lead its group")]
    NotLeader,
    /// The command may have been or may yet be applied.
    #[error("{0}")]
    Unknown(String),
}

/// What the groups of a node share.
pub(crate) struct NodeContext {
    pub(crate) node_id: u128,
    pub(crate) config: Arc<Config>,
    pub(crate) network: Network,
    pub(crate) liveness: Arc<Liveness>,
    pub(crate) failure: Failure,
}

/// One replica of a Raft group, running on this node.
pub struct Group {
    pub(crate) raft: Raft<TypeConfig, StateMachine>,
    pub(crate) store: Arc<GroupStore>,
    pub(crate) log: LogStore,
    /// For what outlives the call that began it.
    this: Weak<Self>,
    replica: ReplicaId,
    node: Arc<NodeContext>,
    machine_ended: CancellationToken,
    leases: Arc<ReadBarrier>,
    reads: Arc<ReadBarrier>,
    /// What the core last told. To borrow it twice at once deadlocks with the core, which writes it.
    metrics: WatchReceiverOf<TypeConfig, RaftMetrics<TypeConfig>>,
    /// The term in which this replica, as the leader, last asked another to take over, and when; it takes no writes
    /// since.
    handing_over: Mutex<Option<(u64, Instant)>>,
}

impl Group {
    /// Starts the replica that the log names. A sole voter elects itself.
    pub(crate) async fn start(
        store: Arc<GroupStore>,
        log: LogStore,
        node: &Arc<NodeContext>,
    ) -> Result<Arc<Self>, StartError> {
        let number = store.group();
        let started = Self::run(store, log, node).await;
        started.map_err(|error| StartError::Raft { group: number, reason: error.to_string() })
    }

    async fn run(
        store: Arc<GroupStore>,
        log: LogStore,
        node: &Arc<NodeContext>,
    ) -> Result<Arc<Self>, Box<dyn Error + Send + Sync>> {
        let replica = log.with(|log| log.replica);
        let machine = StateMachine::new(store.clone(), log.clone(), node.failure.clone());
        let machine_ended = machine.ended();
        let (config, network) = (node.config.clone(), node.network.of(store.group()));
        let raft = Raft::new(replica, config, network, log.clone(), machine).await?;
        let group = Arc::new_cyclic(|this| Self {
            metrics: raft.metrics(),
            raft,
            store,
            log,
            this: this.clone(),
            replica,
            node: node.clone(),
            machine_ended,
            leases: Arc::default(),
            reads: Arc::default(),
            handing_over: Mutex::default(),
        });
        // Before its first entry a replica knows no members, though it may have seen a vote.
        if group.log.with(|log| log.last().is_some()) {
            // The core tells its membership a little later than it has it.
            let known = |m: &RaftMetrics<TypeConfig>| m.membership_config.voter_ids().next().is_some();
            group.raft.wait(None).metrics(known, "membership").await?;
        }
        if group.is_sole_voter() {
            // No need to wait for anybody's silence.
            group.raft.trigger().elect(false).await?;
        }
        Ok(group)
    }

    pub fn number(&self) -> u16 {
        self.store.group()
    }

    pub fn replica(&self) -> ReplicaId {
        self.replica
    }

    /// Appends a command; the reply comes once it is committed and applied here.
    pub async fn write(&self, command: Bytes) -> Result<Reply, WriteFailure> {
        if !self.has_quorum_in_reach() {
            // It may still believe to lead: refusing now is safe to retry, a proposal that hangs is not.
            return Err(WriteFailure::NotLeader);
        }
        let mut span = trace::begin("raft", Kind::Internal);
        if let Some(span) = &mut span {
            span.set("fastpaca.group", self.number());
        }
        let replicating = self.replicate(command);
        trace::within(span.as_ref(), replicating).await.inspect_err(|_| span.iter_mut().for_each(Span::fail))
    }

    async fn replicate(&self, command: Bytes) -> Result<Reply, WriteFailure> {
        for _ in 0..LEASE_RENEWALS_MAX {
            match self.raft.client_write(Proposal { command: command.clone(), at: None }).await {
                Ok(response) => {
                    let Answered { reply, times } = response.data;
                    if let (Some((begun, ended)), Some(mut span)) =
                        (times, trace::begin("apply", Kind::Internal))
                    {
                        span.at(begun, ended);
                    }
                    return reply.ok_or_else(|| WriteFailure::Unknown("no reply".into()));
                }
                // Only this error means that nothing was appended; LogEntryDiscarded, which also names a leader,
                // does not.
                Err(RaftError::APIError(ClientWriteError::ForwardToLeader(to))) => {
                    // A leader that was idle has to hear from a quorum first.
                    if to.reason != ForwardReason::LeaseExpired || !self.renew_lease().await {
                        return Err(WriteFailure::NotLeader);
                    }
                }
                Err(error) => return Err(WriteFailure::Unknown(error.to_string())),
            }
        }
        Err(WriteFailure::NotLeader)
    }

    /// Returns once this replica has applied the entry at `index`.
    pub async fn wait_applied(&self, index: u64) -> Result<(), ReadFailure> {
        if self.applied_index() >= index {
            return Ok(());
        }
        let wait = self.raft.wait(Some(CATCH_UP_MAX));
        let applied = wait.applied_index_at_least(Some(index), "confirmed read").await;
        applied.map(drop).map_err(|_| ReadFailure::Unavailable("this node has not caught up in time".into()))
    }

    /// The highest term this replica has seen.
    pub fn term(&self) -> u64 {
        self.metrics.borrow_watched().current_term
    }

    /// Entries known to be committed that are not applied here yet.
    pub fn unapplied(&self) -> u64 {
        let metrics = self.metrics.borrow_watched();
        let index = |id: Option<LogId>| id.map_or(0, |id| id.index);
        index(metrics.cluster_committed).saturating_sub(index(metrics.last_applied))
    }

    /// What the core last told.
    pub(crate) fn metrics(&self) -> &WatchReceiverOf<TypeConfig, RaftMetrics<TypeConfig>> {
        &self.metrics
    }

    /// Why the core has stopped, unless it was asked to.
    pub(crate) fn broken(&self) -> Option<String> {
        match &self.metrics.borrow_watched().running_state {
            Ok(()) | Err(Fatal::Stopped) => None,
            Err(fatal) => Some(fatal.to_string()),
        }
    }

    pub(crate) fn applied_index(&self) -> u64 {
        self.store.applied().0.map_or(0, |at| at.index)
    }

    /// Stops the replica; returns once it applies nothing any more.
    pub(crate) async fn shutdown(&self) {
        if let Err(error) = self.raft.shutdown().await {
            warn!(event = "raft_shutdown_failed", group = self.number(), %error);
        }
        self.machine_ended.cancelled().await;
    }
}

/// No per-group timers: heartbeats and elections are driven by the node, whatever openraft calls the two durations.
pub(crate) fn config() -> Arc<Config> {
    let config = Config {
        cluster_name: "fastpaca".to_owned(),
        heartbeat_interval: VOTE_MS / 4,
        election_timeout_min: VOTE_MS,
        election_timeout_max: LEASE_MS,
        enable_tick: false,
        enable_heartbeat: false,
        enable_elect: false,
        enable_leader_restore: Some(false),
        enable_pre_vote: Some(true),
        allow_log_reversion: Some(false),
        snapshot_policy: SnapshotPolicy::Never,
        // The checkpointer decides what is purged, by bytes.
        max_in_snapshot_log_to_keep: u64::MAX,
        ..Config::default()
    };
    Arc::new(config.validate().expect("the configuration is constant"))
}
