//! The cluster as this node takes part in it: meets others, founds or joins, follows the cluster state, and keeps to it.
//!
//! Every decision is made by pure code (`founding`, `plan`, `change`); here its inputs are gathered and its answers
//! carried out. Five loops: meeting others, noting who is up, following the state, keeping to it, and, where the meta group is
//! led, planning.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::debug;

use super::answers::Answers;
use super::calls::{self, StateAnswer};
use super::control;
use super::discovery::Discovery;
use super::document::{self, Document, DocumentError};
use super::durable::DurableFile;
use super::founding::{Durable, Event, Founding};
use super::keeper::Keeper;
use super::marks;
use super::plan::Liveness;
use super::state::{ClusterId, ClusterState, META_GROUP, NodeId, NodeRecord, NodeState};
use crate::peer::Peers;
use crate::raft::Node;
use crate::shards::{Placement, Shards, now_ms};
use crate::store::Failure;

/// Between two looks at what others are and say.
const MEET: Duration = Duration::from_millis(500);
/// How often a node says what keeps it from having a cluster.
const WAIT_TOLD_EVERY: Duration = Duration::from_secs(20);
/// Between two rounds of a node that has nothing to do.
const REST: Duration = Duration::from_secs(1);
/// Between two rounds while something moves.
const HURRY: Duration = Duration::from_millis(100);
/// A node out of reach for longer counts as dead: its name may be taken over by a replacement, and nobody waits for it.
pub(super) const DEAD_AFTER: Duration = Duration::from_secs(10);
/// A node that has just started leaves leaderships where they are for so long.
const SETTLE: Duration = Duration::from_secs(3);
/// How often it is looked, at a shutdown, whether the next leaderships can be handed on.
const HAND_OVER_LOOK: Duration = Duration::from_millis(10);
/// Longest wait, at a shutdown, for others to take over the lead.
const HAND_OVER_MAX: Duration = Duration::from_secs(10);

/// What a node brings into a cluster.
pub struct ClusterSettings {
    pub node_id: u128,
    pub name: String,
    pub seeds: Vec<String>,
    /// Nodes that must have met before a cluster is founded.
    pub cluster_size: usize,
    /// Take over the name of a node whose data is lost.
    pub replace: bool,
    /// Where others reach this node, if they do not find out themselves.
    pub advertise: Option<String>,
    /// What it listens on, for a cluster of one, of whom nobody else can say.
    pub listen: String,
}

/// The parts of the node that the cluster works on.
#[derive(Clone)]
pub struct Parts {
    pub node: Arc<Node>,
    pub peers: Peers,
    pub shards: Shards,
    pub failure: Failure,
}

/// This node's part in its cluster. Clones share it.
#[derive(Clone)]
pub struct Cluster(pub(super) Arc<Inner>);

pub(super) struct Inner {
    pub(super) me: NodeId,
    pub(super) settings: ClusterSettings,
    pub(super) parts: Parts,
    pub(super) file: DurableFile,
    pub(super) founding: tokio::sync::Mutex<Founding>,
    keeper: Keeper,
    pub(super) document: watch::Sender<Option<Arc<Document>>>,
    placement: watch::Sender<Arc<Placement>>,
    /// When the state last changed, as far as this process knows.
    pub(super) published: Mutex<Instant>,
    /// The cluster this node belongs to, if it does.
    pub(super) cluster: Mutex<Option<ClusterId>>,
    /// Where others see this node.
    pub(super) seen_at: Mutex<Option<String>>,
    last_up: Mutex<BTreeMap<NodeId, Instant>>,
    started: Instant,
    /// Why the last attempt to join was refused, so that each reason is logged once.
    pub(super) refused: Mutex<String>,
    /// When this process last wrote a mark of its own.
    pub(super) marked_at: Mutex<Option<Instant>>,
    /// When this node first hosted its part of a founding.
    pub(super) founding_since: Mutex<Option<Instant>>,
    leaving: AtomicBool,
    /// Held while a change is being made of the state here.
    pub(super) changing: tokio::sync::Mutex<()>,
    /// Where requests run, and Raft. Others' calls arrive on the threads of the links, which must stay free.
    pub(super) runtime: Handle,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Cluster {
    /// The cluster this node belongs to, once it does.
    pub fn id(&self) -> Option<u128> {
        self.0.cluster.lock().map(|ClusterId(id)| id)
    }

    /// Whether every node of the cluster speaks this version of the peer protocol or a newer one, as far as is known here.
    pub fn speaks(&self, protocol: u16) -> bool {
        self.0.document.borrow().as_ref().is_some_and(|document| document.state.all_speak(protocol))
    }

    /// Starts to meet others, within the runtime of requests. `placement` gets who hosts what, as soon as that is known.
    pub fn start(
        settings: ClusterSettings,
        parts: Parts,
        file: DurableFile,
        membership: Durable,
        placement: watch::Sender<Arc<Placement>>,
    ) -> Cluster {
        let me = NodeId(settings.node_id);
        let size = (!settings.seeds.is_empty()).then_some(settings.cluster_size);
        if let Some(ClusterId(cluster)) = membership.cluster() {
            parts.peers.set_cluster(cluster);
        }
        let inner = Arc::new(Inner {
            me,
            cluster: Mutex::new(membership.cluster()),
            keeper: Keeper::new(me, parts.node.clone(), parts.failure.clone()),
            founding: tokio::sync::Mutex::new(Founding::restore(me, size, membership)),
            settings,
            parts,
            file,
            document: watch::Sender::new(None),
            placement,
            published: Mutex::new(Instant::now()),
            seen_at: Mutex::default(),
            last_up: Mutex::default(),
            started: Instant::now(),
            refused: Mutex::default(),
            marked_at: Mutex::default(),
            founding_since: Mutex::default(),
            leaving: AtomicBool::new(false),
            changing: tokio::sync::Mutex::default(),
            runtime: Handle::current(),
            stop: CancellationToken::new(),
            tasks: TaskTracker::new(),
        });
        let lacking = Arc::downgrade(&inner);
        inner.parts.shards.on_share(move || lacking.upgrade()?.lacking());
        inner.parts.peers.serve(calls::METHODS, Arc::new(Answers(inner.clone())));
        inner.tasks.spawn(inner.clone().until_stopped(inner.clone().meet()));
        inner.tasks.spawn(inner.clone().until_stopped(inner.clone().note_links()));
        inner.tasks.spawn(inner.clone().until_stopped(inner.clone().follow()));
        inner.tasks.spawn(inner.clone().until_stopped(inner.clone().keep()));
        inner.tasks.spawn(inner.clone().until_stopped(inner.clone().lead()));
        Cluster(inner)
    }

    /// Hands every leadership to other nodes, as far as they can take it within a bound.
    pub async fn hand_over(&self) {
        self.0.leaving.store(true, Ordering::Relaxed);
        self.0.parts.node.leave();
        let deadline = Instant::now() + HAND_OVER_MAX;
        while !self.0.keeper.hand_over().await && Instant::now() < deadline {
            tokio::time::sleep(HAND_OVER_LOOK).await;
        }
    }

    /// Ends all of it; links stay as they are.
    pub async fn stop(&self) {
        self.0.stop.cancel();
        self.0.tasks.close();
        self.0.tasks.wait().await;
    }
}

impl Inner {
    async fn until_stopped(self: Arc<Self>, work: impl Future<Output = ()>) {
        tokio::select! {
            () = self.stop.cancelled() => {}
            () = work => {}
        }
    }

    /// Finds others and, until this node is a member, founds or joins.
    async fn meet(self: Arc<Self>) {
        let mut discovery = Discovery::new(self.me, self.parts.peers.clone(), self.settings.seeds.clone());
        let mut links = self.parts.peers.links();
        let mut told = Instant::now();
        loop {
            let document = self.document.borrow().clone();
            discovery.refresh(document.as_deref().map(|document| &document.state)).await;
            if self.is_member().await {
                self.keep_record_fresh().await;
            } else {
                let view = discovery.view().await;
                if told.elapsed() > WAIT_TOLD_EVERY {
                    told = Instant::now();
                    self.tell_wait(&view).await;
                }
                self.on(Event::Saw(view)).await;
                self.on(Event::Tick).await;
                if document.is_some() {
                    self.on(Event::Hosted).await;
                }
            }
            tokio::select! {
                () = tokio::time::sleep(MEET) => {}
                // Others that come into reach are met at once.
                changed = links.changed() => if changed.is_err() { return },
            }
        }
    }

    /// Remembers who was up when. Meeting others may wait for a resolver, and must not date this back.
    async fn note_links(self: Arc<Self>) {
        loop {
            let (now, reached) = (Instant::now(), self.parts.peers.reached());
            self.last_up.lock().extend(reached.into_iter().map(|remote| (NodeId(remote.node_id), now)));
            tokio::time::sleep(MEET).await;
        }
    }

    /// Follows the cluster state.
    async fn follow(self: Arc<Self>) {
        loop {
            match self.newest().await {
                Ok(Some(document)) => self.publish(document),
                Ok(None) => {}
                Err(error) => {
                    self.parts.failure.raise(error.to_string(), false);
                    return;
                }
            }
            let known = self.known_version();
            tokio::select! {
                () = tokio::time::sleep(if known == 0 { HURRY } else { REST }) => {}
                () = document::changed(&self.parts.node, known) => {}
            }
        }
    }

    /// Keeps to the cluster state.
    async fn keep(self: Arc<Self>) {
        let mut documents = self.document.subscribe();
        loop {
            let document = documents.borrow_and_update().clone();
            // A replica may be dropped only once this node durably goes by the state.
            let busy = match document {
                Some(document) if self.is_member().await => {
                    let has_space = self.parts.node.has_space();
                    let leads = has_space && !self.leaving.load(Ordering::Relaxed);
                    let busy = self.keeper.round(&document, leads && self.started.elapsed() > SETTLE).await;
                    // Others may have space for the appends that are refused here.
                    busy | (!has_space && !self.keeper.hand_over().await)
                }
                _ => true,
            };
            tokio::select! {
                () = tokio::time::sleep(if busy { HURRY } else { REST }) => {}
                changed = documents.changed() => if changed.is_err() { return },
            }
        }
    }

    async fn is_member(&self) -> bool {
        matches!(self.founding.lock().await.durable(), Durable::Member { .. })
    }

    /// The version of the state that this node goes by; 0 before the first.
    pub(super) fn known_version(&self) -> u64 {
        self.document.borrow().as_ref().map_or(0, |document| document.version)
    }

    /// The newest state there is: from this node's replica, or from others while it has none.
    async fn newest(&self) -> Result<Option<Arc<Document>>, DocumentError> {
        let known = self.known_version();
        let here = document::load_newer(&self.parts.node, known).await?;
        let hosts_meta = self.parts.node.group(META_GROUP).is_some_and(|group| !group.voters().is_empty());
        if here.is_some() || hosts_meta {
            return Ok(here);
        }
        Ok(self.newest_elsewhere().await)
    }

    /// A newer state than the one this node goes by, from others.
    pub(super) async fn newest_elsewhere(&self) -> Option<Arc<Document>> {
        let known = self.known_version();
        for remote in self.parts.peers.reached() {
            let answer = calls::call(&self.parts.peers, NodeId(remote.node_id), calls::STATE, &()).await;
            let Ok(Some(StateAnswer { version, state })) = answer else { continue };
            // A newer node may write what this one cannot read; then another may still serve an older one.
            if let Ok(state) = ClusterState::decode(&state)
                && version > known
                && *self.cluster.lock() == Some(state.cluster)
            {
                return Some(Arc::new(Document { version, state }));
            }
        }
        None
    }

    /// Goes by a state from now on.
    pub(super) fn publish(&self, document: Arc<Document>) {
        debug!(event = "cluster_state", version = document.version);
        self.parts.shards.set_moving_out(document.state.is(self.me, NodeState::Draining));
        if !control::is_alone(&document.state) {
            // A drain of the only node ends when it is that no more.
            self.parts.shards.refuse_writes(false);
        }
        self.parts.peers.set_marks(marks::of(&document.state));
        // Whoever is new was not missed yet.
        let mut last_up = self.last_up.lock();
        for (node, _) in control::members(&document.state) {
            last_up.entry(node).or_insert_with(Instant::now);
        }
        drop(last_up);
        let hosts = (0..).zip(&document.state.groups).map(|(group, placement)| {
            (group, placement.replicas.iter().map(|replica| replica.node.0).collect())
        });
        let placement = Arc::new(Placement::new(hosts));
        *self.published.lock() = Instant::now();
        self.document.send_replace(Some(document));
        // Last: with it the node may count as ready.
        self.placement.send_replace(placement);
    }

    pub(super) fn liveness(&self, node: NodeId) -> Liveness {
        if node == self.me || self.parts.peers.is_up(node.0) {
            return Liveness::Up;
        }
        let last = self.last_up.lock().get(&node).copied().unwrap_or(self.started);
        if last.elapsed() > DEAD_AFTER { Liveness::Dead } else { Liveness::Silent }
    }

    /// What this node is, for the cluster state.
    pub(super) fn record(&self) -> NodeRecord {
        let seen_at = self.seen_at.lock().clone();
        let address = self.settings.advertise.clone().or(seen_at).unwrap_or(self.settings.listen.clone());
        NodeRecord {
            name: self.settings.name.clone(),
            address,
            state: NodeState::Active,
            incarnation: Some(self.file.incarnation()),
            mark: self.mark(),
            protocol: self.parts.peers.protocols(),
            joined_ms: now_ms() as i64,
        }
    }
}
