//! Nodes in one process: real stores and real routing, over groups and links that do what a test tells them.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::future::BoxFuture;
use parking_lot::{Mutex, RwLock};
use tokio::sync::watch;

use crate::conversation::{
    Action, ConversationId, FrameLocation, NewMessage, PartKind, PartMeta, Put, Reply, RoleKind, ToolRef,
};
use crate::metrics::Metrics;
use crate::peer::CallError;
use crate::raft::WriteFailure;
use crate::shards::links::{Links, Method};
use crate::shards::local::{Local, Replica};
use crate::shards::placement::{GROUPS, Placement, group_of};
use crate::shards::{Consistency, ReadOptions, Readiness, Shards, WriteError};
use crate::store::{Applied, Batch, CacheSizes, Failure, GroupStore, Index, IndexError, Records, Shared};

pub(super) const LOCAL: ReadOptions = ReadOptions { consistency: Consistency::Local, min_version: None };
pub(super) const FRESH: ReadOptions =
    ReadOptions { consistency: Consistency::Linearizable, min_version: None };

pub(super) fn id(text: &str) -> ConversationId {
    ConversationId::parse(text).unwrap()
}

pub(super) fn put() -> Action {
    Action::Put(Put::default())
}

pub(super) fn say(text: &str) -> Action {
    let part = PartMeta { kind: PartKind::TEXT, tokens: 3, marker_tokens: 0, tool: ToolRef::None };
    let body = format!(r#""role":"user","parts":[{{"type":"text","text":"{text}"}}],"metadata":{{}}"#);
    let message = NewMessage { body: body.into(), token_count: 7, role: RoleKind::User, parts: vec![part] };
    Action::Append { messages: vec![message], idempotency: None, if_version: None }
}

/// What happens to the next write that a leader takes.
#[derive(Debug, Clone, Copy)]
pub(super) enum WriteFault {
    NotLeader,
    /// Applied, and nobody knows.
    Unknown,
    /// Never answered.
    Hangs,
}

/// What happens to the next call of a method.
#[derive(Debug, Clone, Copy)]
pub(super) enum CallFault {
    NotSent,
    /// Served, and the answer lost.
    Lost,
    /// Not served, for want of a service.
    Refused,
}

/// A group that agrees by magic: the leader appends, the others apply when they must.
pub(super) struct FakeGroup {
    number: u16,
    log: Mutex<Vec<Bytes>>,
    pub leader: watch::Sender<Option<u128>>,
    pub faults: Mutex<VecDeque<WriteFault>>,
}

impl FakeGroup {
    pub(super) fn commands(&self) -> usize {
        self.log.lock().len()
    }

    pub(super) fn is_led_by(&self, node: impl Into<Option<u128>>) {
        self.leader.send_replace(node.into());
    }
}

/// One node's replica of it.
pub(super) struct FakeReplica {
    node: u128,
    group: Arc<FakeGroup>,
    store: Arc<GroupStore>,
    applied: Mutex<usize>,
    /// What this node believes of the leader, in place of the truth.
    pub belief: RwLock<Option<Option<u128>>>,
    /// Whether the others cannot be reached from here.
    pub cut_off: AtomicBool,
}

impl FakeReplica {
    pub(super) fn apply_all(&self) {
        self.apply_to(self.group.commands());
    }

    fn apply_to(&self, index: usize) {
        let mut applied = self.applied.lock();
        while *applied < index {
            let command = self.group.log.lock()[*applied].clone();
            *applied += 1;
            let at = Applied { term: 1, leader: 1, index: *applied as u64 };
            let frame =
                FrameLocation { segment: u32::from(self.group.number), offset: (*applied as u32) << 16 };
            self.store.apply(at, command, frame).unwrap();
        }
    }
}

impl Replica for FakeReplica {
    fn group(&self) -> u16 {
        self.group.number
    }

    fn id(&self) -> u64 {
        1
    }

    fn leader(&self) -> Option<u128> {
        self.belief.read().unwrap_or(*self.group.leader.borrow())
    }

    fn has_majority(&self) -> bool {
        !self.cut_off.load(Ordering::Relaxed)
    }

    fn leader_changed(&self) -> BoxFuture<'_, ()> {
        let mut leader = self.group.leader.subscribe();
        Box::pin(async move {
            let _ = leader.changed().await;
        })
    }

    fn write(&self, command: Bytes) -> BoxFuture<'_, Result<Reply, WriteFailure>> {
        Box::pin(async move {
            let fault = self.group.faults.lock().pop_front();
            match fault {
                Some(WriteFault::NotLeader) => return Err(WriteFailure::NotLeader),
                Some(WriteFault::Hangs) => std::future::pending().await,
                _ if *self.group.leader.borrow() != Some(self.node) => return Err(WriteFailure::NotLeader),
                _ => {}
            }
            self.apply_all();
            self.group.log.lock().push(command.clone());
            let mut applied = self.applied.lock();
            *applied += 1;
            let at = Applied { term: 1, leader: 1, index: *applied as u64 };
            let frame =
                FrameLocation { segment: u32::from(self.group.number), offset: (*applied as u32) << 16 };
            let reply = self.store.apply(at, command, frame).unwrap().unwrap();
            match fault {
                Some(WriteFault::Unknown) => Err(WriteFailure::Unknown("the leader went away".into())),
                _ => Ok(reply),
            }
        })
    }

    fn read_index(&self) -> BoxFuture<'_, Result<u64, String>> {
        Box::pin(async {
            match *self.group.leader.borrow() == Some(self.node) {
                true => Ok(self.group.commands() as u64),
                false => Err("a quorum did not answer".into()),
            }
        })
    }

    fn wait_applied(&self, index: u64) -> BoxFuture<'_, Result<(), String>> {
        Box::pin(async move {
            self.apply_to(index as usize);
            Ok(())
        })
    }

    fn store(&self) -> &Arc<GroupStore> {
        &self.store
    }
}

pub(super) struct FakeLocal {
    node: u128,
    metrics: Metrics,
    pub full: RwLock<bool>,
    pub replicas: RwLock<BTreeMap<u16, Arc<FakeReplica>>>,
}

impl Local for FakeLocal {
    fn node_id(&self) -> u128 {
        self.node
    }

    fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    fn has_space(&self) -> bool {
        !*self.full.read()
    }

    fn disk_hangs(&self) -> bool {
        false
    }

    fn replica(&self, group: u16) -> Option<Arc<dyn Replica>> {
        Some(self.replicas.read().get(&group)?.clone())
    }

    fn hosted(&self) -> Vec<Arc<dyn Replica>> {
        self.replicas.read().values().map(|replica| replica.clone() as Arc<dyn Replica>).collect()
    }
}

/// The wires between the nodes.
#[derive(Default)]
pub(super) struct Net {
    nodes: RwLock<HashMap<u128, Shards>>,
    pub down: RwLock<BTreeSet<u128>>,
    pub faults: Mutex<VecDeque<(Method, CallFault)>>,
    calls: Mutex<HashMap<Method, usize>>,
    /// While set, calls of this method do not get through.
    pub held: watch::Sender<Option<Method>>,
}

impl Net {
    pub(super) fn calls(&self, method: Method) -> usize {
        self.calls.lock().get(&method).copied().unwrap_or(0)
    }

    fn fault(&self, method: Method) -> Option<CallFault> {
        let mut faults = self.faults.lock();
        let at = faults.iter().position(|(faulty, _)| *faulty == method)?;
        faults.remove(at).map(|(_, fault)| fault)
    }
}

struct FakeLinks(Weak<Net>);

impl Links for FakeLinks {
    fn is_up(&self, node: u128) -> bool {
        self.0.upgrade().is_some_and(|net| !net.down.read().contains(&node))
    }

    fn body_bytes_max(&self) -> usize {
        usize::MAX
    }

    fn call(
        &self,
        to: u128,
        method: Method,
        body: Vec<Bytes>,
        limit: Duration,
    ) -> BoxFuture<'_, Result<Bytes, CallError>> {
        Box::pin(async move {
            let net = self.0.upgrade().ok_or_else(|| CallError::NotSent("gone".into()))?;
            *net.calls.lock().entry(method).or_default() += 1;
            let mut held = net.held.subscribe();
            held.wait_for(|held| *held != Some(method)).await.unwrap();
            let fault = net.fault(method);
            match fault {
                Some(CallFault::NotSent) => return Err(CallError::NotSent("no link".into())),
                Some(CallFault::Refused) => return Err(CallError::Refused("no service".into())),
                Some(CallFault::Lost) | None => {}
            }
            let node = net.nodes.read().get(&to).cloned();
            let node = node.ok_or_else(|| CallError::NotSent("no such node".into()))?;
            let mut whole = BytesMut::new();
            body.iter().for_each(|part| whole.extend_from_slice(part));
            let late = |_| CallError::Lost("no answer in time".into());
            let served = tokio::time::timeout(limit, node.serve(method as u16, whole.freeze()));
            let answer = served.await.map_err(late)?.map_err(CallError::Refused)?;
            if fault.is_some() {
                return Err(CallError::Lost("the link broke".into()));
            }
            Ok(answer)
        })
    }
}

/// A few nodes, numbered from 1.
pub(super) struct Cluster {
    pub net: Arc<Net>,
    pub groups: Vec<Arc<FakeGroup>>,
    pub nodes: Vec<Shards>,
    pub locals: Vec<Arc<FakeLocal>>,
    pub placement: watch::Sender<Arc<Placement>>,
}

impl Cluster {
    /// `hosts` places each group; the first host leads.
    pub(super) fn new(nodes: u128, hosts: impl Fn(u16) -> Vec<u128>) -> Cluster {
        let placement = Placement::new((0..GROUPS).map(|group| (group, hosts(group))));
        let groups: Vec<Arc<FakeGroup>> = (0..GROUPS)
            .map(|number| {
                let leader = watch::Sender::new(placement.hosts(number).first().copied());
                Arc::new(FakeGroup { number, log: Mutex::default(), leader, faults: Mutex::default() })
            })
            .collect();
        let net = Arc::new(Net::default());
        let placement = watch::Sender::new(Arc::new(placement));
        let mut cluster = Cluster { net, groups, nodes: Vec::new(), locals: Vec::new(), placement };
        for node in 1..=nodes {
            cluster.add(node);
        }
        cluster
    }

    /// Three nodes that all host everything; node 1 leads.
    pub(super) fn of_three() -> Cluster {
        Cluster::new(3, |_| vec![1, 2, 3])
    }

    fn add(&mut self, node: u128) {
        let metrics = Metrics::new();
        let local =
            Arc::new(FakeLocal { node, metrics, full: RwLock::new(false), replicas: RwLock::default() });
        self.locals.push(local.clone());
        let placement = self.placement.borrow().clone();
        for group in self.groups.iter().filter(|group| placement.hosts(group.number).contains(&node)) {
            self.host(node, group.number);
        }
        let shards = Shards::new(Failure::default(), Duration::from_secs(10));
        let links = Arc::new(FakeLinks(Arc::downgrade(&self.net)));
        shards.attach_parts(local, links, self.placement.subscribe());
        self.net.nodes.write().insert(node, shards.clone());
        self.nodes.push(shards);
    }

    /// Starts an empty replica; one that is to be read from at once must have applied something.
    pub(super) fn host(&self, node: u128, group: u16) {
        let local = self.local(node);
        let caches = CacheSizes { records: 1 << 20, messages: 1 << 20 };
        let shared = Arc::new(Shared::new(Arc::new(MemoryIndex), local.metrics.clone(), caches));
        let store = Arc::new(GroupStore::open(group, shared).unwrap());
        let replica = FakeReplica {
            node,
            group: self.groups[usize::from(group)].clone(),
            store,
            applied: Mutex::new(0),
            belief: RwLock::new(None),
            cut_off: AtomicBool::new(false),
        };
        local.replicas.write().insert(group, Arc::new(replica));
    }

    pub(super) fn node(&self, node: u128) -> &Shards {
        &self.nodes[node as usize - 1]
    }

    pub(super) fn local(&self, node: u128) -> &Arc<FakeLocal> {
        &self.locals[node as usize - 1]
    }

    pub(super) fn metrics(&self, node: u128) -> &Metrics {
        &self.local(node).metrics
    }

    pub(super) fn group(&self, id: &ConversationId) -> &Arc<FakeGroup> {
        &self.groups[usize::from(group_of(id))]
    }

    pub(super) fn replica(&self, node: u128, id: &ConversationId) -> Arc<FakeReplica> {
        self.local(node).replicas.read()[&group_of(id)].clone()
    }

    /// Returns once a node's replicas have proved to be readable.
    pub(super) async fn ready(&self, node: u128) {
        while self.node(node).readiness() != Readiness::Ready {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Creates a conversation through its leader.
    pub(super) async fn create(&self, id: &ConversationId) {
        let leader = self.group(id).leader.borrow().unwrap();
        self.node(leader).propose(id, put()).await.unwrap();
    }

    pub(super) async fn say(&self, node: u128, id: &ConversationId, text: &str) -> Result<Reply, WriteError> {
        self.node(node).propose(id, say(text)).await
    }
}

/// Nothing is ever written to it: these tests make no checkpoints.
struct MemoryIndex;

impl Index for MemoryIndex {
    fn get(&self, _: &[u8]) -> Result<Option<Vec<u8>>, IndexError> {
        Ok(None)
    }

    fn scan<'a>(&'a self, _: &[u8], _: &[u8]) -> Records<'a> {
        Box::new(std::iter::empty())
    }

    fn write(&self, _: Batch) -> Result<(), IndexError> {
        Ok(())
    }

    fn sync(&self) -> Result<(), IndexError> {
        Ok(())
    }

    fn disk_bytes(&self) -> u64 {
        0
    }
}
