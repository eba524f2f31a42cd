//! The Raft groups of this node: started from recovered files, served by node-level services, shut down in order.

use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::info;

use super::checkpoint::Checkpointer;
use super::elections::Elections;
use super::group::{self, Group, NodeContext};
use super::heartbeat::{self, Heartbeats};
use super::log_store::LogStore;
use super::network::{Network, Transport};
#[cfg(test)]
use super::reclaim::{ReclaimError, Reclaimed};
use super::reclaim::{ReclaimSettings, Reclaimer};
use super::recovery::{self, Recovered, RecoveryError, RecoverySettings};
use super::service::{RaftService, Running};
use super::slots::{Slot, Slots};
use super::types::ReplicaId;
use crate::journal::{Disk, Journal, Options};
use crate::metrics::Metrics;
use crate::peer::Peers;
use crate::store::{Failure, Shared, StoreError};

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
    /// What the node sends of snapshots, to all others together.
    pub snapshot_bytes_per_second: u64,
    pub reclaim: ReclaimSettings,
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

/// Why a replica was not started or removed.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    #[error("there is no group {0}")]
    NoSuchGroup(u16),
    #[error("group {group}: replica {held} is here, {wanted} was asked for")]
    Occupied { group: u16, held: ReplicaId, wanted: ReplicaId },
    #[error(transparent)]
    Start(#[from] StartError),
    #[error("group {group}: {source}")]
    Journal { group: u16, source: std::io::Error },
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The Raft groups of a node and the services that keep them.
pub struct Node {
    pub(crate) journal: Journal,
    pub(crate) shared: Arc<Shared>,
    slots: Arc<Slots>,
    context: Arc<NodeContext>,
    elections: Arc<Elections>,
    heartbeats: Arc<Heartbeats>,
    checkpointer: Arc<Checkpointer>,
    pub(super) reclaimer: Arc<Reclaimer>,
    stop: CancellationToken,
    services: TaskTracker,
}

impl Node {
    /// Recovers the node's files and starts the replicas that they hold. Returns once every group that has no other
    /// voter is led from here.
    pub async fn start(
        settings: NodeSettings,
        disk: Arc<dyn Disk>,
        transport: impl Transport,
        metrics: Metrics,
        failure: Failure,
    ) -> Result<Self, StartError> {
        let settings = Arc::new(settings);
        let recovering = {
            let settings = settings.clone();
            move || recovery::recover(&settings.recovery, &settings.journal, &disk, &metrics)
        };
        let recovered = tokio::task::spawn_blocking(recovering).await??;
        let is_rebuilt = recovered.rebuilt.is_some();
        let context = Arc::new(NodeContext {
            node_id: settings.node_id,
            config: group::config(),
            network: Network::new(Arc::new(transport), settings.snapshot_bytes_per_second),
            liveness: Arc::default(),
            failure,
        });
        let node = Self::new(&settings, recovered, context);
        node.run_held().await?;
        if is_rebuilt {
            node.shared.metrics.index_rebuilds.inc();
            node.checkpoint().await;
        }
        node.start_services(&settings);
        Ok(node)
    }

    /// The node over its recovered files; nothing runs yet.
    fn new(settings: &NodeSettings, recovered: Recovered, context: Arc<NodeContext>) -> Self {
        let Recovered { journal, shared, groups, .. } = recovered;
        let files = groups.into_iter().map(|(store, log)| {
            let log = LogStore::new(store.group(), journal.clone(), log);
            (store, log)
        });
        let slots = Arc::new(Slots::new(files));
        let stop = CancellationToken::new();
        let checkpointer = Arc::new(Checkpointer::new(
            journal.clone(),
            shared.clone(),
            slots.clone(),
            settings.recovery.boot_id.clone(),
            settings.journal.segment_bytes,
        ));
        let reclaimer = Reclaimer::new(
            shared.clone(),
            journal.clone(),
            slots.clone(),
            checkpointer.clone(),
            settings.reclaim,
            context.failure.clone(),
            stop.clone(),
        );
        let (liveness, metrics) = (&context.liveness, shared.metrics.clone());
        let heartbeats = Heartbeats::new(slots.clone(), liveness.clone(), journal.clone(), metrics);
        let elections = Elections::new(slots.clone(), liveness.clone(), context.failure.clone());
        Self {
            journal,
            shared,
            slots,
            context,
            elections: Arc::new(elections),
            heartbeats: Arc::new(heartbeats),
            checkpointer,
            reclaimer: Arc::new(reclaimer),
            stop,
            services: TaskTracker::new(),
        }
    }

    /// Runs every replica that is held here; returns once those that have no other voter lead.
    async fn run_held(&self) -> Result<(), StartError> {
        for slot in self.slots.iter().filter(|slot| slot.log.with(|log| log.replica) != 0) {
            self.run(slot).await?;
        }
        for group in self.slots.running().filter(|group| group.is_sole_voter()) {
            group.led().await?;
        }
        Ok(())
    }

    /// The node's permanent id.
    pub fn node_id(&self) -> u128 {
        self.context.node_id
    }

    /// Takes part in what nodes say to each other, on the links' own runtime.
    pub fn meet_peers(&self, peers: &Peers, runtime: &Handle) {
        let running = Running { slots: self.slots.clone(), elections: self.elections.clone() };
        let service = Arc::new(RaftService::new(Arc::new(running)));
        peers.serve(RaftService::METHODS, service.clone());
        self.services.spawn_on(service.prune(self.stop.clone()), runtime);
        peers.serve(heartbeat::METHOD..=heartbeat::METHOD, self.heartbeats.clone());
        let heartbeats = self.heartbeats.clone().serve(peers.clone(), self.stop.clone());
        self.services.spawn_on(heartbeats, runtime);
    }

    /// Others learn that this node is about to stop and should lead nothing.
    pub fn leave(&self) {
        self.heartbeats.leave();
    }

    /// The replica of a group that runs here.
    pub fn group(&self, group: u16) -> Option<Arc<Group>> {
        self.slots.get(group)?.group()
    }

    /// All replicas that run here, by group.
    pub fn hosted(&self) -> Vec<Arc<Group>> {
        self.slots.running().collect()
    }

    /// Group and replica id of everything that this node holds.
    pub fn held(&self) -> Vec<(u16, ReplicaId)> {
        let held = self.slots.iter().map(|slot| (slot.store.group(), slot.log.with(|log| log.replica)));
        held.filter(|(_, replica)| *replica != 0).collect()
    }

    /// Starts an empty replica of a group; nothing happens where it runs already.
    pub async fn host(&self, group: u16, replica: ReplicaId) -> Result<Arc<Group>, HostError> {
        let slot = self.slots.get(group).ok_or(HostError::NoSuchGroup(group))?;
        let _turn = slot.turn.lock().await;
        match slot.log.with(|log| log.replica) {
            0 => slot.log.adopt(replica).await.map_err(|source| HostError::Journal { group, source })?,
            held if held == replica => {}
            held => return Err(HostError::Occupied { group, held, wanted: replica }),
        }
        slot.store.begin();
        match slot.group() {
            Some(running) => Ok(running),
            None => Ok(self.run(slot).await?),
        }
    }

    /// Stops the replica of a group and forgets its data. Only for one that is no member any more.
    pub async fn unhost(&self, group: u16) -> Result<(), HostError> {
        let slot = self.slots.get(group).ok_or(HostError::NoSuchGroup(group))?;
        let _turn = slot.turn.lock().await;
        if let Some(running) = slot.group() {
            slot.set(None);
            running.shutdown().await;
        }
        // The index first: what is still in it when the frame is written would count for the next replica.
        let store = slot.store.clone();
        let forget = move || store.retire().and_then(|()| store.sync());
        tokio::task::spawn_blocking(forget)
            .await
            .map_err(|e| HostError::Journal { group, source: std::io::Error::other(e) })??;
        slot.log.adopt(0).await.map_err(|source| HostError::Journal { group, source })
    }

    /// Whether there is disk space for appends.
    pub fn has_space(&self) -> bool {
        self.journal.has_space()
    }

    /// Whether the disk has not taken what it was given for so long that others should lead.
    pub fn disk_hangs(&self) -> bool {
        self.journal.hangs()
    }

    /// Writes a checkpoint now, unless the node has failed; failing at it stops the node.
    pub async fn checkpoint(&self) {
        if !self.context.failure.is_raised() {
            self.checkpointer.checkpoint(&self.context.failure).await;
        }
    }

    /// Reclaims what is worth it of the journal now.
    #[cfg(test)]
    pub(crate) async fn reclaim(&self) -> Result<Option<Reclaimed>, ReclaimError> {
        self.reclaimer.pass().await
    }

    /// Ends like a crash as far as the index is concerned: the journal is flushed, nothing else.
    #[cfg(test)]
    pub(crate) async fn stop_without_checkpoint(&self) {
        self.context.failure.raise("test".into(), false);
        self.shutdown().await;
    }

    /// Stops services, writes a last checkpoint, stops the groups and the journal.
    pub async fn shutdown(&self) {
        self.stop.cancel();
        self.services.close();
        self.services.wait().await;
        self.checkpoint().await;
        for group in self.slots.running() {
            group.shutdown().await;
        }
        let journal = self.journal.clone();
        let _ = tokio::task::spawn_blocking(move || journal.shutdown()).await;
    }

    async fn run(&self, slot: &Slot) -> Result<Arc<Group>, StartError> {
        let group = Group::start(slot.store.clone(), slot.log.clone(), &self.context).await?;
        slot.set(Some(group.clone()));
        Ok(group)
    }

    fn start_services(&self, settings: &NodeSettings) {
        let (slots, failure, stop) = (&self.slots, &self.context.failure, &self.stop);
        let checkpointer = self.checkpointer.clone();
        self.services.spawn(checkpointer.serve(
            settings.checkpoint_bytes,
            settings.checkpoint_interval,
            failure.clone(),
            stop.clone(),
        ));
        self.services.spawn(self.reclaimer.clone().serve());
        self.services.spawn(self.elections.clone().serve(stop.clone()));
        self.services.spawn(self.heartbeats.clone().show_pulse(stop.clone()));
        let (journal, shared) = (self.journal.clone(), self.shared.clone());
        self.services.spawn(sample(slots.clone(), journal, shared, stop.clone()));
        let (slots, failure, stop) = (slots.clone(), failure.clone(), stop.clone());
        self.services.spawn_blocking(move || verify_all(&slots, &failure, &stop));
    }
}

/// Lookups that miss verify their group at once; this proves the rest in the background.
fn verify_all(slots: &Slots, failure: &Failure, stop: &CancellationToken) {
    for slot in slots.iter() {
        if stop.is_cancelled() {
            return;
        }
        if let Err(error) = slot.store.ensure_verified() {
            failure.store(&error);
            return;
        }
    }
    info!(event = "index_verified");
}

/// Keeps the gauges that nobody sets in passing.
async fn sample(slots: Arc<Slots>, journal: Journal, shared: Arc<Shared>, stop: CancellationToken) {
    let metrics = &shared.metrics;
    loop {
        let stats = journal.stats();
        metrics.groups_hosted.set(slots.running().count() as i64);
        metrics.group_leaders.set(slots.running().filter(|group| group.leads_majority()).count() as i64);
        let lags = slots.running().filter_map(|group| group.largest_lag());
        metrics.replica_lag_entries.set(lags.max().unwrap_or(0) as i64);
        metrics.journal_segments.set(i64::from(stats.active_segment - stats.oldest_segment) + 1);
        metrics.journal_queue_bytes.set(stats.queued_bytes as i64);
        metrics.disk_free_bytes.set(stats.free_bytes as i64);
        metrics.disk_full.set(i64::from(!journal.has_space()));
        metrics.index_disk_bytes.set(shared.index.disk_bytes() as i64);
        metrics.record_bytes.set(shared.record_bytes.load(std::sync::atomic::Ordering::Relaxed) as i64);
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(SAMPLE_INTERVAL) => {}
        }
    }
}

#[cfg(test)]
mod tests;
