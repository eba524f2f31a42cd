//! Replicas in one process over a transport that can be cut, broken at a chosen call and watched.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::future::poll_fn;
use std::path::Path;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use openraft::async_runtime::WatchReceiver;
use openraft::{Config, Raft};
use parking_lot::Mutex;
use tempfile::TempDir;

use super::group;
use super::leadership::Leadership;
use super::log_store::LogStore;
use super::network::{Network, Transport};
use super::recovery::{self, RecoverySettings};
use super::rpc::{Wanted, method};
use super::service::{Hosted, RaftService, Target};
use super::snapshot::Installed;
use super::state_machine::StateMachine;
use super::tests::{CACHES, append, compact, dump, id, journal_options, narrow, open_disk, put, trim};
use super::types::{Host, Proposal};
use crate::conversation::{Action, Command, ConversationId, Mark, Marks};
use crate::journal::{Disk, Journal};
use crate::metrics::Metrics;
use crate::peer::{CallError, Lane, Refused};
use crate::store::{Failure, GroupStore, Shared};

const GROUP: u16 = 0;

/// What becomes of a call.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Fate {
    Served,
    /// Served, but the answer does not arrive.
    Lost,
    Refused,
}

type Judge = Box<dyn FnMut(u128, u16) -> Fate + Send>;

/// The way between the nodes.
#[derive(Default)]
pub(super) struct Net {
    services: Mutex<HashMap<u128, Arc<RaftService>>>,
    cut: Mutex<HashSet<u128>>,
    judge: Mutex<Option<Judge>>,
    /// Calls that were answered, with body and answer.
    seen: Mutex<Vec<(u16, Bytes, Bytes)>>,
}

impl Net {
    pub(super) fn judge(&self, judge: impl FnMut(u128, u16) -> Fate + Send + 'static) {
        *self.judge.lock() = Some(Box::new(judge));
    }

    fn seen(&self, method: u16) -> Vec<(Bytes, Bytes)> {
        let seen = self.seen.lock();
        seen.iter().filter(|call| call.0 == method).map(|call| (call.1.clone(), call.2.clone())).collect()
    }

    async fn serve(&self, to: u128, method: u16, body: Bytes) -> Result<Bytes, CallError> {
        let service = self.services.lock().get(&to).cloned();
        let Some(service) = service else { return Err(CallError::NotSent("down".into())) };
        let fate = self.judge.lock().as_mut().map_or(Fate::Served, |judge| judge(to, method));
        if fate == Fate::Refused {
            return Err(CallError::Refused("as the test wants".into()));
        }
        let request = body.clone();
        let mut call = Box::pin(async move { service.handle(method, request).await });
        // As a peer does: entered in order, and run to the end whatever becomes of the caller.
        let served = match poll_fn(|cx| Poll::Ready(call.as_mut().poll(cx))).await {
            Poll::Ready(served) => served,
            Poll::Pending => tokio::spawn(call).await.unwrap_or_else(|_| Err(Refused("panicked".into()))),
        };
        match served {
            _ if fate == Fate::Lost => Err(CallError::Lost("as the test wants".into())),
            Err(Refused(text)) => Err(CallError::Refused(text)),
            Ok(answer) => {
                self.seen.lock().push((method, body, answer.clone()));
                Ok(answer)
            }
        }
    }
}

struct Loopback {
    from: u128,
    net: Arc<Net>,
}

impl Transport for Loopback {
    fn call(
        &self,
        to: u128,
        _lane: Lane,
        method: u16,
        body: Vec<Bytes>,
        limit: Duration,
    ) -> BoxFuture<'_, Result<Bytes, CallError>> {
        Box::pin(async move {
            let is_cut = {
                let cut = self.net.cut.lock();
                cut.contains(&self.from) || cut.contains(&to)
            };
            if is_cut {
                return Err(CallError::NotSent("cut off".into()));
            }
            let served = self.net.serve(to, method, body.concat().into());
            tokio::time::timeout(limit, served).await.unwrap_or_else(|_| Err(CallError::Lost("late".into())))
        })
    }
}

#[derive(Default)]
struct Replicas(Mutex<Option<Target>>);

impl Hosted for Replicas {
    fn target(&self, _group: u16) -> Option<Target> {
        self.0.lock().clone()
    }

    fn may_grant_pre_vote(&self, _group: u16) -> bool {
        true
    }
}

/// One node with one replica.
pub(super) struct TestNode {
    id: u128,
    pub(super) target: Target,
    network: Network,
    replicas: Arc<Replicas>,
    journal: Journal,
    shared: Arc<Shared>,
    net: Arc<Net>,
}

fn recover(dir: &Path) -> recovery::Recovered {
    let settings = RecoverySettings {
        index_dir: dir.join("index"),
        index_cache_bytes: 1 << 20,
        caches: CACHES,
        groups: 1,
        boot_id: "this boot".into(),
    };
    let disk: Arc<dyn Disk> = open_disk(dir);
    recovery::recover(&settings, &journal_options(), &disk, &Metrics::new()).unwrap()
}

impl TestNode {
    async fn start(dir: &Path, id: u128, net: &Arc<Net>) -> Self {
        let mut recovered = recover(dir);
        let (store, log) = (recovered.stores.remove(0), recovered.logs.remove(0));
        let log = LogStore::new(GROUP, recovered.journal.clone(), log);
        if log.with(|log| log.replica) == 0 {
            log.adopt(id as u64).await.unwrap();
        }
        let transport = Arc::new(Loopback { from: id, net: net.clone() });
        let network = Network::new(transport, 64 << 20);
        let machine = StateMachine::new(store.clone(), log.clone(), Failure::default());
        // The lease must outlast a test's silence: nobody sends heartbeats here.
        let (election_timeout_min, election_timeout_max) = (60_000, 120_000);
        let config = Config { election_timeout_min, election_timeout_max, ..Config::clone(&group::config()) };
        let raft =
            Raft::new(id as u64, Arc::new(config), network.of(GROUP), log.clone(), machine).await.unwrap();
        let target = Target { replica: id as u64, raft, store, log };
        let replicas = Arc::new(Replicas(Mutex::new(Some(target.clone()))));
        net.services.lock().insert(id, Arc::new(RaftService::new(replicas.clone())));
        let (journal, shared) = (recovered.journal, recovered.shared);
        Self { id, target, network, replicas, journal, shared, net: net.clone() }
    }

    /// Ends like a crash as far as the index is concerned; returns once the files are closed.
    async fn kill(self) {
        let Self { id, target, network, replicas, journal, shared, net } = self;
        drop(network);
        net.services.lock().remove(&id);
        replicas.0.lock().take();
        target.raft.shutdown().await.unwrap();
        drop((target, replicas));
        tokio::task::spawn_blocking(move || journal.shutdown()).await.unwrap();
        let index = Arc::downgrade(&shared.index);
        drop(shared);
        while index.strong_count() > 0 {
            tokio::task::yield_now().await;
        }
    }

    pub(super) fn leadership(&self) -> Leadership {
        let Target { replica, raft, store, log } = self.target.clone();
        let (metrics, network) = (raft.metrics(), self.network.clone());
        Leadership { raft, metrics, store, log, network, replica }
    }

    pub(super) async fn write(&self, n: usize, action: Action) {
        let command = Command { id: id(n), now_ms: 1_000, action };
        self.propose(command.encode()).await;
    }

    async fn propose(&self, command: Bytes) {
        self.target.raft.client_write(Proposal { command, at: None }).await.unwrap();
    }

    /// A conversation with sealed runs, keys and a summary, or more of it.
    async fn fill(&self, n: usize) {
        self.write(n, put()).await;
        for key in 0..3 {
            let texts: Vec<String> = (0..50).map(|i| format!("message {n}.{key}.{i}")).collect();
            self.write(n, append(&texts, Some(key))).await;
        }
        self.write(n, compact("summary")).await;
        let marks = Marks::new(vec![Mark { id: id(n), archived_version: 140 }]);
        self.propose(marks.encode()).await;
        if n % 2 == 1 {
            self.write(n, narrow()).await;
            self.propose(trim(n)).await;
            assert_eq!(self.target.store.read(&id(n), |c, _| c.trimmed_seq()).unwrap(), Some(128));
        }
    }

    pub(super) fn last_index(&self) -> u64 {
        self.target.raft.metrics().borrow_watched().last_log_index.unwrap()
    }

    pub(super) async fn reaches(&self, index: u64) {
        self.target
            .raft
            .wait(Some(Duration::from_secs(60)))
            .applied_index_at_least(Some(index), "catch up")
            .await
            .unwrap();
    }

    /// Makes the log before now unavailable to whoever lags.
    async fn purge(&self) {
        let store = self.target.store.clone();
        tokio::task::spawn_blocking(move || store.checkpoint_synced()).await.unwrap().unwrap();
        let raft = &self.target.raft;
        raft.trigger().snapshot().await.unwrap();
        let upto = self.last_index();
        let wait = raft.wait(Some(Duration::from_secs(60)));
        wait.metrics(|m| m.snapshot.is_some_and(|at| at.index >= upto), "snapshot").await.unwrap();
        raft.trigger().purge_log(upto).await.unwrap();
        let wait = raft.wait(Some(Duration::from_secs(60)));
        wait.metrics(|m| m.purged.is_some_and(|at| at.index >= upto), "purge").await.unwrap();
    }

    fn dumps(&self, conversations: usize) -> Vec<String> {
        dumps(&self.target.store, conversations)
    }
}

fn dumps(store: &GroupStore, conversations: usize) -> Vec<String> {
    let digest = |n| store.read(&id(n), |c, _| c.logical_digest()).unwrap();
    (0..conversations).map(|n| format!("{:?} {}", digest(n), dump(store, n))).collect()
}

pub(super) struct Cluster {
    dirs: Vec<TempDir>,
    pub(super) net: Arc<Net>,
    nodes: Vec<Option<TestNode>>,
}

impl Cluster {
    /// Three replicas, the first of which leads.
    pub(super) async fn start() -> Self {
        let net = Arc::new(Net::default());
        let dirs: Vec<TempDir> = (0..3).map(|_| tempfile::tempdir().unwrap()).collect();
        let mut nodes = Vec::new();
        for (i, dir) in dirs.iter().enumerate() {
            nodes.push(Some(TestNode::start(dir.path(), i as u128 + 1, &net).await));
        }
        let cluster = Self { dirs, net, nodes };
        let members: BTreeMap<u64, Host> = (1..=3).map(|i| (i, Host { node_id: i.into() })).collect();
        cluster.node(0).target.raft.initialize(members).await.unwrap();
        let wait = cluster.node(0).target.raft.wait(Some(Duration::from_secs(60)));
        // Before its first entry is acknowledged it has no lease and takes no writes.
        wait.metrics(|m| m.state.is_leader() && m.last_quorum_acked.is_some(), "lead").await.unwrap();
        cluster.leader().reaches(cluster.leader().last_index()).await;
        cluster
    }

    pub(super) fn node(&self, i: usize) -> &TestNode {
        self.nodes[i].as_ref().expect("it runs")
    }

    fn leader(&self) -> &TestNode {
        self.node(0)
    }

    async fn restart(&mut self, i: usize) {
        self.nodes[i].take().expect("it runs").kill().await;
        self.nodes[i] = Some(TestNode::start(self.dirs[i].path(), i as u128 + 1, &self.net).await);
    }

    pub(super) fn cut(&self, i: usize) {
        self.net.cut.lock().insert(i as u128 + 1);
    }

    pub(super) fn heal(&self, i: usize) {
        self.net.cut.lock().remove(&(i as u128 + 1));
    }

    /// Waits until all nodes have applied everything and compares what they hold.
    async fn agree(&self, conversations: usize) -> Vec<String> {
        let last = self.leader().last_index();
        let expected = {
            self.leader().reaches(last).await;
            self.leader().dumps(conversations)
        };
        for node in self.nodes.iter().flatten() {
            node.reaches(last).await;
            assert_eq!(node.dumps(conversations), expected, "node {}", node.id);
            node.target.store.ensure_verified().unwrap();
        }
        expected
    }

    pub(super) async fn stop(self) {
        for node in self.nodes.into_iter().flatten() {
            node.kill().await;
        }
    }
}

/// How transfers began: the base the receiver named, and whether it had something of an interrupted one.
fn announced(net: &Net) -> Vec<(Option<u64>, bool)> {
    let wanted =
        net.seen(method::SNAPSHOT_BEGIN).into_iter().map(|(_, answer)| Wanted::decode(&answer).unwrap());
    wanted
        .filter_map(|wanted| match wanted {
            Wanted::Changes { base, resume, .. } => Some((base, resume.is_some())),
            Wanted::Nothing(_) => None,
        })
        .collect()
}

fn was_sent(net: &Net, conversation: &ConversationId) -> bool {
    let needle = conversation.as_str().as_bytes();
    net.seen(method::SNAPSHOT_BLOCKS).iter().any(|(body, _)| {
        // Followed by the length of what comes behind it, so that no longer id counts.
        body.windows(needle.len() + 4).any(|w| w.starts_with(needle) && !w[needle.len()].is_ascii_digit())
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_follow_and_one_that_was_cut_off_catches_up_by_the_log() {
    let cluster = Cluster::start().await;
    for n in 0..3 {
        cluster.leader().fill(n).await;
    }
    cluster.agree(3).await;
    cluster.cut(2);
    for n in 2..5 {
        cluster.leader().fill(n).await;
    }
    cluster.heal(2);
    cluster.agree(5).await;
    assert!(announced(&cluster.net).is_empty());
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lagging_replica_gets_what_it_lacks_by_snapshot() {
    let mut cluster = Cluster::start().await;
    for n in 0..6 {
        cluster.leader().fill(n).await;
    }
    cluster.agree(6).await;
    cluster.cut(2);
    for n in 4..8 {
        cluster.leader().fill(n).await;
    }
    cluster.leader().purge().await;
    cluster.heal(2);
    let expected = cluster.agree(8).await;
    let announced = announced(&cluster.net);
    assert!(matches!(announced[..], [(Some(_), false)]), "{announced:?}");
    let sent: Vec<bool> = (0..8).map(|n| was_sent(&cluster.net, &id(n))).collect();
    assert_eq!(sent, [false, false, false, false, true, true, true, true]);

    // What was installed lies in the journal: first with, then without the index.
    cluster.restart(2).await;
    assert_eq!(cluster.agree(8).await, expected);
    cluster.nodes[2].take().unwrap().kill().await;
    std::fs::remove_dir_all(cluster.dirs[2].path().join("index")).unwrap();
    cluster.nodes[2] = Some(TestNode::start(cluster.dirs[2].path(), 3, &cluster.net).await);
    cluster.leader().fill(1).await;
    cluster.agree(8).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broken_transfer_goes_on_where_it_stopped() {
    let cluster = Cluster::start().await;
    cluster.cut(2);
    for n in 0..12 {
        cluster.leader().fill(n).await;
    }
    cluster.leader().purge().await;
    let mut blocks = 0;
    cluster.net.judge(move |_, called| {
        blocks += u32::from(called == method::SNAPSHOT_BLOCKS);
        if called == method::SNAPSHOT_BLOCKS && [3, 11].contains(&blocks) { Fate::Lost } else { Fate::Served }
    });
    cluster.heal(2);
    // Conversations that came before the break change while the transfer goes on.
    cluster.leader().fill(0).await;
    cluster.agree(12).await;
    let announced = announced(&cluster.net);
    assert!(announced.iter().filter(|(_, resumed)| *resumed).count() >= 1, "{announced:?}");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_receiver_that_dies_between_blocks_begins_again() {
    let mut cluster = Cluster::start().await;
    for n in 0..4 {
        cluster.leader().fill(n).await;
    }
    cluster.agree(4).await;
    cluster.cut(2);
    for n in 2..10 {
        cluster.leader().fill(n).await;
    }
    cluster.leader().purge().await;
    let (tx, mut died) = tokio::sync::mpsc::unbounded_channel();
    let (mut blocks, cut) = (0, cluster.net.clone());
    cluster.net.judge(move |to, called| {
        blocks += u32::from(called == method::SNAPSHOT_BLOCKS);
        if blocks == 5 && called == method::SNAPSHOT_BLOCKS {
            cut.cut.lock().insert(to);
            tx.send(to).unwrap();
        }
        Fate::Served
    });
    cluster.heal(2);
    assert_eq!(died.recv().await, Some(3));
    cluster.restart(2).await;
    cluster.heal(2);
    cluster.agree(10).await;
    cluster.restart(2).await;
    cluster.agree(10).await;
    *cluster.net.judge.lock() = None;
    cluster.stop().await;
}

/// What a crash in the middle of an install leaves in the index is installed over once more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_interrupted_install_is_finished_by_recovery() {
    let mut cluster = Cluster::start().await;
    for n in 0..6 {
        cluster.leader().fill(n).await;
    }
    cluster.agree(6).await;
    cluster.cut(2);
    for n in 3..9 {
        cluster.leader().fill(n).await;
    }
    let leader = &cluster.leader().target;
    leader.store.checkpoint_synced().unwrap();
    let node = cluster.node(2);
    let here = node.target.store.applied().0.unwrap().index;
    let (at, membership) = leader.store.persisted_state();
    let mut import = super::import::Import::begin(
        node.target.log.clone(),
        &node.target.store,
        Some(here),
        at.unwrap().index,
    )
    .await
    .unwrap();
    let mut export = super::snapshot::Export::start(leader.store.clone(), Some(here), None);
    while let Some(block) = export.next().await.unwrap() {
        import.write(vec![block]).await.unwrap();
    }
    let stored = super::state_machine::stored_membership(&membership).unwrap();
    let commit = super::snapshot::encode_commit(at.unwrap(), &stored);
    node.target.log.write_synced(crate::journal::FrameKind::ImportCommit, &commit).await.unwrap();
    let (base, frames) = import.committed();
    let (last, journal) = (frames[frames.len() - 2].0, node.journal.clone());
    let installed = Installed { base, applied: at.unwrap(), membership, frames };
    let interrupted = installed.load(&node.target.store, &|at, len| {
        if at == last {
            Err(std::io::Error::other("killed"))
        } else {
            journal.read(at.segment, at.offset, len)
        }
    });
    assert!(interrupted.is_err());
    drop(journal);

    let expected = dumps(&leader.store, 9);
    cluster.restart(2).await;
    assert_eq!(cluster.node(2).target.store.applied().0, at);
    cluster.node(2).target.store.ensure_verified().unwrap();
    assert_eq!(cluster.node(2).dumps(9), expected);
    cluster.heal(2);
    cluster.leader().fill(0).await;
    cluster.agree(9).await;

    // The index has the snapshot now, and the journal no word of what was purged for it.
    let store = cluster.node(2).target.store.clone();
    tokio::task::spawn_blocking(move || store.checkpoint_synced()).await.unwrap().unwrap();
    cluster.restart(2).await;
    assert_eq!(cluster.node(2).target.log.with(|log| log.purged.map(|id| id.index)), at.map(|at| at.index));
    cluster.leader().fill(1).await;
    cluster.agree(9).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commits_go_by_themselves_and_are_told_again_when_lost() {
    let cluster = Cluster::start().await;
    let mut lost = 0;
    cluster.net.judge(move |to, called| {
        let is_lost = called == method::COMMITS && to == 3 && lost < 3;
        lost += u32::from(is_lost);
        if is_lost { Fate::Lost } else { Fate::Served }
    });
    for n in 0..3 {
        cluster.leader().fill(n).await;
    }
    // Nobody sends heartbeats here: without these calls no follower would learn of the last commit.
    cluster.agree(3).await;
    let without_entries = |(body, _): &(Bytes, Bytes)| {
        let (_, reader) = super::rpc::Address::split("append", body).unwrap();
        super::rpc::decode_append(body, reader).unwrap().entries.is_empty()
    };
    let appends = cluster.net.seen(method::APPEND);
    // One at the begin of a stream may be.
    let requests = appends.iter().filter(|call| without_entries(call)).count();
    assert!(requests <= 4, "{requests} of {} append requests only told of commits", appends.len());
    cluster.stop().await;
}
