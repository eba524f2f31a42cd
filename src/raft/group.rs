//! One running replica of a Raft group: written through, read from, reconfigured.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use openraft::async_runtime::WatchReceiver;
use openraft::errors::{ClientWriteError, Fatal, ForwardReason, InitializeError, RaftError};
use openraft::type_config::alias::WatchReceiverOf;
use openraft::{ChangeMembers, Config, Raft, RaftMetrics, SnapshotPolicy};
use parking_lot::Mutex;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::leadership::Leadership;
use super::liveness::Liveness;
use super::log_store::LogStore;
use super::network::Network;
use super::node::StartError;
use super::read_barrier::{ReadBarrier, ReadFailure};
use super::state_machine::StateMachine;
use super::types::{Answered, Host, Proposal, ReplicaId, TypeConfig};
use crate::conversation::Reply;
use crate::store::{Failure, GroupStore};
use crate::trace::{self, Kind, Span};

/// The lease within which a voter that heard from a leader grants no other a vote.
const LEASE_MS: u64 = 600;
/// How long a vote may take, which includes a sync at each voter. openraft wants it shorter than the lease.
const VOTE_MS: u64 = LEASE_MS - 10;
/// A leader that has just heard from a quorum may be late again on a machine that is starved.
const LEASE_RENEWALS_MAX: usize = 4;
/// Longest wait of a read for this node to apply what the leader confirmed.
const CATCH_UP_MAX: Duration = Duration::from_secs(5);
/// A replica this many entries behind or fewer may become a voter or the leader.
const CAUGHT_UP_LAG_MAX: u64 = 256;
/// How long the replica that was asked to take over is given: it syncs the end of the log, and two votes.
const TRANSFER_MAX: Duration = Duration::from_millis(100);
/// How long a change of the members may take to be committed. One whose leader is deposed meanwhile, and left out by it, is
/// never answered.
const CHANGE_MAX: Duration = Duration::from_secs(10);

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

/// A change of a group's members failed; whether it took effect shows in the membership.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct MembershipError(String);

/// Who holds a group: replica id to node id.
pub type Members = BTreeMap<ReplicaId, u128>;

/// One replica of a Raft group, running on this node.
pub struct Group {
    pub(crate) raft: Raft<TypeConfig, StateMachine>,
    pub(crate) store: Arc<GroupStore>,
    pub(crate) log: LogStore,
    machine_ended: CancellationToken,
    replica: ReplicaId,
    node_id: u128,
    liveness: Arc<Liveness>,
    leases: Arc<ReadBarrier>,
    reads: Arc<ReadBarrier>,
    leadership: Arc<Leadership>,
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
        config: &Arc<Config>,
        network: Network,
        node_id: u128,
        liveness: Arc<Liveness>,
        failure: &Failure,
    ) -> Result<Self, StartError> {
        let group = store.group();
        let failed = |reason: String| StartError::Raft { group, reason };
        let replica = log.with(|log| log.replica);
        let machine = StateMachine::new(store.clone(), log.clone(), failure.clone());
        let machine_ended = machine.ended();
        let raft = Raft::new(replica, config.clone(), network.of(group), log.clone(), machine)
            .await
            .map_err(|e| failed(e.to_string()))?;
        let metrics = raft.metrics();
        let leadership = Leadership {
            raft: raft.clone(),
            metrics: metrics.clone(),
            store: store.clone(),
            log: log.clone(),
            network,
            replica,
        };
        let group = Self {
            metrics,
            raft,
            machine_ended,
            store,
            log,
            replica,
            node_id,
            liveness,
            leases: Arc::default(),
            reads: Arc::default(),
            leadership: Arc::new(leadership),
            handing_over: Mutex::default(),
        };
        // Before its first entry a replica knows no members, though it may have seen a vote.
        if group.log.with(|log| log.last().is_some()) {
            // The core tells its membership a little later than it has it.
            let known = |m: &RaftMetrics<TypeConfig>| m.membership_config.voter_ids().next().is_some();
            let told = group.raft.wait(None).metrics(known, "membership").await;
            told.map_err(|e| failed(e.to_string()))?;
        }
        if group.is_sole_voter() {
            // No need to wait for anybody's silence.
            group.raft.trigger().elect(false).await.map_err(|e| failed(e.to_string()))?;
        }
        Ok(group)
    }

    pub fn number(&self) -> u16 {
        self.store.group()
    }

    pub fn replica(&self) -> ReplicaId {
        self.replica
    }

    /// Whether this replica leads, as far as it knows.
    pub fn is_leader(&self) -> bool {
        self.raft.is_leader()
    }

    /// The node that leads, if this one knows and can reach it.
    pub fn leader(&self) -> Option<u128> {
        let node = leader_node(&self.metrics.borrow_watched())?;
        let is_known = if node == self.node_id { !self.gives_way() } else { self.liveness.is_linked(node) };
        is_known.then_some(node)
    }

    /// Whether this replica leads, and can have something committed.
    pub fn leads_majority(&self) -> bool {
        self.is_leader() && self.has_quorum_in_reach()
    }

    /// Resolves when somebody else may lead.
    pub async fn leader_changed(&self) {
        let mut metrics = self.metrics.clone();
        let seen = leader_and_term(&metrics.borrow_watched());
        while leader_and_term(&metrics.borrow_watched()) == seen {
            if metrics.changed().await.is_err() {
                return;
            }
        }
    }

    /// Returns once the group is led from here and has applied its log.
    pub(crate) async fn led(&self) -> Result<(), StartError> {
        let caught_up = |m: &RaftMetrics<TypeConfig>| {
            m.state.is_leader() && m.last_applied.map(|id| id.index) >= m.last_log_index
        };
        let led = self.raft.wait(None).metrics(caught_up, "lead and apply").await;
        led.map(drop).map_err(|e| StartError::Raft { group: self.number(), reason: e.to_string() })
    }

    /// Founds the group with these members, of which this replica is one; nothing happens where it was founded.
    pub async fn found(&self, members: &Members) -> Result<(), MembershipError> {
        let hosts: BTreeMap<ReplicaId, Host> =
            members.iter().map(|(replica, node_id)| (*replica, Host { node_id: *node_id })).collect();
        match self.raft.initialize(hosts).await {
            Ok(()) | Err(RaftError::APIError(InitializeError::NotAllowed(_))) => Ok(()),
            Err(error) => Err(MembershipError(error.to_string())),
        }
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

    async fn renew_lease(&self) -> bool {
        let leadership = self.leadership.clone();
        let round = move || {
            let leadership = leadership.clone();
            async move { leadership.renew_lease().await }
        };
        self.leases.confirm(round).await.is_ok()
    }

    /// On the leader: a log index such that a state that has applied it reflects every write acknowledged before.
    pub async fn read_index(&self) -> Result<u64, ReadFailure> {
        if !self.is_leader() {
            return Err(ReadFailure::NotLeader);
        }
        // A quorum of one: whatever was acknowledged was applied here first, and nobody else can lead. What an earlier
        // process acknowledged is applied by the time that something of this term is.
        if let Some(applied) = self.store.applied().0.filter(|at| at.term == self.term())
            && self.is_sole_voter()
        {
            return Ok(applied.index);
        }
        let leadership = self.leadership.clone();
        let round = move || {
            let leadership = leadership.clone();
            async move { leadership.read_index().await }
        };
        self.reads.confirm(round).await
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

    /// The voters of the newest configuration; of both halves while it changes.
    pub fn voters(&self) -> Members {
        self.members(|membership, replica| membership.voter_ids().any(|voter| voter == *replica))
    }

    /// The learners of the newest configuration.
    pub fn learners(&self) -> Members {
        self.members(|membership, replica| membership.learner_ids().any(|learner| learner == *replica))
    }

    /// Whether the newest configuration is committed and not a joint one.
    pub fn is_settled(&self) -> bool {
        let metrics = self.metrics.borrow_watched();
        metrics.membership_config == metrics.committed_membership_config
            && metrics.membership_config.membership().get_joint_config().len() == 1
    }

    /// Entries known to be committed that are not applied here yet.
    pub fn unapplied(&self) -> u64 {
        let metrics = self.metrics.borrow_watched();
        let index = |id: Option<super::types::LogId>| id.map_or(0, |id| id.index);
        index(metrics.cluster_committed).saturating_sub(index(metrics.last_applied))
    }

    /// On the leader: how many entries a replica has yet to receive; `None` where that is not known.
    pub fn lag_of(&self, replica: ReplicaId) -> Option<u64> {
        let metrics = self.metrics.borrow_watched();
        let matched = metrics.replication.as_ref()?.get(&replica)?.as_ref()?.index;
        Some(metrics.last_log_index?.saturating_sub(matched))
    }

    /// On the leader: how many entries the replica that is furthest behind has yet to receive.
    pub(crate) fn largest_lag(&self) -> Option<u64> {
        let metrics = self.metrics.borrow_watched();
        let last = metrics.last_log_index?;
        let matched = metrics.replication.as_ref()?.values().map(|id| id.as_ref().map_or(0, |id| id.index));
        Some(last.saturating_sub(matched.min()?))
    }

    /// On the leader: has these replicas receive the log, without a vote.
    pub async fn add_learners(&self, learners: &Members) -> Result<(), MembershipError> {
        for (replica, node_id) in learners {
            self.renew_lease().await;
            let added = self.raft.add_learner(*replica, Host { node_id: *node_id }, false);
            committed(added).await?;
        }
        Ok(())
    }

    /// On the leader: gives the group these members by a joint change. Future voters must be members already.
    pub async fn replace_members(&self, voters: &Members, learners: &Members) -> Result<(), MembershipError> {
        if self.voters() != *voters {
            // A voter that shall learn stays a member.
            let demoted = self.voters().keys().any(|replica| learners.contains_key(replica));
            let change = ChangeMembers::ReplaceAllVoters(voters.keys().copied().collect());
            self.change(change, demoted).await?;
        }
        let surplus: BTreeSet<_> =
            self.learners().into_keys().filter(|replica| !learners.contains_key(replica)).collect();
        if surplus.is_empty() {
            return Ok(());
        }
        self.change(ChangeMembers::RemoveNodes(surplus), false).await
    }

    /// On the leader: completes a joint change whose leader went away between its two steps. Voters that leave by it stay
    /// as learners until the next change.
    pub async fn finish_change(&self) -> Result<(), MembershipError> {
        let is_joint = {
            let metrics = self.metrics.borrow_watched();
            metrics.membership_config.membership().get_joint_config().len() > 1
        };
        if is_joint { self.change(ChangeMembers::AddVoterIds(BTreeSet::new()), true).await } else { Ok(()) }
    }

    /// On the leader: whether a replica answers and lacks next to nothing of the log.
    pub fn has_caught_up(&self, replica: ReplicaId) -> bool {
        let host = self.members(|_, member| *member == replica).remove(&replica);
        replica == self.replica
            || host.is_some_and(|node| self.liveness.answers(node)) && self.is_near(replica)
    }

    /// Whether another voter could take over the lead right now.
    pub fn could_lead(&self, replica: ReplicaId) -> bool {
        let host = self.voters().get(&replica).copied();
        replica != self.replica
            && host.is_some_and(|node| self.liveness.may_lead(node))
            && self.is_near(replica)
    }

    fn is_near(&self, replica: ReplicaId) -> bool {
        self.lag_of(replica).is_some_and(|lag| lag <= CAUGHT_UP_LAG_MAX)
    }

    /// Whether this replica leads and means to go on. One that asked another to take over no longer claims to lead, so
    /// that if the other does not, the replicas elect.
    pub(crate) fn claims_lead(&self) -> bool {
        self.is_leader() && self.handed_over_at().is_none() && !self.gives_way()
    }

    /// Whether another voter should lead, as this node's disk takes nothing.
    fn gives_way(&self) -> bool {
        self.log.disk_hangs() && !self.is_sole_voter()
    }

    /// Whether this replica leads, and another that it asked to take over may be about to.
    pub fn is_handing_over(&self) -> bool {
        self.is_leader() && self.handed_over_at().is_some_and(|at| at.elapsed() < TRANSFER_MAX)
    }

    fn handed_over_at(&self) -> Option<Instant> {
        let term = self.term();
        self.handing_over.lock().filter(|asked| asked.0 == term).map(|asked| asked.1)
    }

    /// On the leader: has the replicas on a node hear from it, and those that could not be reached tried again at once.
    pub(crate) async fn greet(&self, node: u128) {
        // An error means that the group has stopped, which its own failure reports.
        let _ = self.raft.trigger().reset_backoff([]).await;
        self.leadership.greet(node);
    }

    /// Stops the replica; returns once it applies nothing any more.
    pub(crate) async fn shutdown(&self) {
        if let Err(error) = self.raft.shutdown().await {
            warn!(event = "raft_shutdown_failed", group = self.number(), %error);
        }
        self.machine_ended.cancelled().await;
    }

    /// The voter that could best take over the lead right now.
    pub fn heir(&self) -> Option<ReplicaId> {
        let heirs = self.voters().into_keys().filter(|replica| self.could_lead(*replica));
        heirs.min_by_key(|replica| self.lag_of(*replica))
    }

    /// Asks another voter to take over the lead. It may be asked again: whoever leads by then does not mind.
    pub async fn transfer(&self, to: ReplicaId) {
        *self.handing_over.lock() = Some((self.term(), Instant::now()));
        // An error means that the group has stopped, which its own failure reports.
        let _ = self.raft.trigger().transfer_leader(to).await;
    }

    pub(crate) fn is_sole_voter(&self) -> bool {
        let metrics = self.metrics.borrow_watched();
        metrics.membership_config.voter_ids().eq([self.replica])
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

    /// Whether enough voters answer this node for a proposal to be committed.
    pub(crate) fn has_quorum_in_reach(&self) -> bool {
        let metrics = self.metrics.borrow_watched();
        let membership = metrics.membership_config.membership();
        membership.get_joint_config().iter().all(|voters| {
            let here = |voter: &&ReplicaId| {
                **voter == self.replica
                    || membership.get_node(voter).is_some_and(|host| self.liveness.answers(host.node_id))
            };
            voters.iter().filter(here).count() * 2 > voters.len()
        })
    }

    fn members(&self, wanted: impl Fn(&super::types::Membership, &ReplicaId) -> bool) -> Members {
        let metrics = self.metrics.borrow_watched();
        let membership = metrics.membership_config.membership();
        let nodes = membership.nodes().filter(|(replica, _)| wanted(membership, replica));
        nodes.map(|(replica, host)| (*replica, host.node_id)).collect()
    }

    async fn change(
        &self,
        change: ChangeMembers<ReplicaId, Host>,
        keep_removed_voters: bool,
    ) -> Result<(), MembershipError> {
        self.renew_lease().await;
        committed(self.raft.change_membership(change, keep_removed_voters)).await
    }
}

/// The end of a change of the members, unless that takes too long.
async fn committed<T, E: Display>(change: impl Future<Output = Result<T, E>>) -> Result<(), MembershipError> {
    match timeout(CHANGE_MAX, change).await {
        Ok(changed) => changed.map(drop).map_err(|error| MembershipError(error.to_string())),
        Err(_) => Err(MembershipError("the change was not committed in time".into())),
    }
}

/// The replica that leads according to a replica's metrics. A restarted leader still names itself, but does not lead.
pub(crate) fn leader_replica(metrics: &RaftMetrics<TypeConfig>) -> Option<ReplicaId> {
    metrics.current_leader.filter(|leader| *leader != metrics.id || metrics.state.is_leader())
}

/// The node of [`leader_replica`].
pub(crate) fn leader_node(metrics: &RaftMetrics<TypeConfig>) -> Option<u128> {
    let leader = leader_replica(metrics)?;
    metrics.membership_config.membership().get_node(&leader).map(|host| host.node_id)
}

fn leader_and_term(metrics: &RaftMetrics<TypeConfig>) -> (Option<ReplicaId>, u64) {
    (leader_replica(metrics), metrics.current_term)
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
