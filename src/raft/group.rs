//! One Raft group on this node: started from its recovered log, written through, read from.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use openraft::async_runtime::WatchReceiver;
use openraft::errors::{ClientWriteError, RaftError};
use openraft::{Config, Raft, RaftMetrics, ReadPolicy, SnapshotPolicy};

use super::log_store::LogStore;
use super::network::NoPeers;
use super::node::StartError;
use super::state_machine::StateMachine;
use super::types::{Host, Proposal, ReplicaId, TypeConfig};
use crate::conversation::Reply;
use crate::store::{Failure, GroupStore};

/// The replica that founds a group on a node without peers.
const FOUNDER: ReplicaId = 1;

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
    /// Starts the group's Raft instance; a group without any log founds itself with this node as its only voter.
    pub(crate) async fn start(
        store: Arc<GroupStore>,
        log: LogStore,
        config: &Arc<Config>,
        node_id: u128,
        failure: &Failure,
    ) -> Result<Self, StartError> {
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
        Ok(Self { raft, store, log, replica: FOUNDER })
    }

    /// Returns once the group is led from here and has applied its log.
    pub(crate) async fn led(&self) -> Result<(), StartError> {
        let caught_up = |m: &RaftMetrics<TypeConfig>| {
            m.state.is_leader() && m.last_applied.map(|id| id.index) >= m.last_log_index
        };
        let led = self.raft.wait(None).metrics(caught_up, "lead and apply").await;
        led.map(drop).map_err(|e| StartError::Raft { group: self.store.group(), reason: e.to_string() })
    }

    /// Appends a command; the reply comes once it is committed and applied here.
    pub(crate) async fn write(&self, command: Bytes) -> Result<Reply, WriteFailure> {
        match self.raft.client_write(Proposal { command, at: None }).await {
            Ok(response) => response.data.ok_or_else(|| WriteFailure::Unknown("no reply".into())),
            // Only this error means that nothing was appended; LogEntryDiscarded, which also names a leader,
            // does not.
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

/// No per-group timers: heartbeats and elections are driven by the node.
pub(crate) fn config() -> Arc<Config> {
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
