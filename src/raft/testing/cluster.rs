//! Replicas of one group in one process, over a transport that can be cut, broken at a chosen call and watched.

use std::collections::{HashMap, HashSet};
use std::future::poll_fn;
use std::path::Path;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use openraft::Config;
use openraft::async_runtime::WatchReceiver;
use openraft::raft::TransferLeaderRequest;
use parking_lot::Mutex;
use tempfile::TempDir;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::{
    PATIENCE, append, compact, dump, id, journal_options, mark, narrow, numbered, open_disk, put,
    recovery_settings, trim,
};
use crate::conversation::{Action, Command};
use crate::journal::{Disk, Journal};
use crate::metrics::Metrics;
use crate::peer::{CallError, Lane, Refused};
use crate::raft::group::{self, Group, NodeContext};
use crate::raft::log_store::LogStore;
use crate::raft::network::{Network, Transport};
use crate::raft::recovery;
use crate::raft::rpc::{self, Address, method};
use crate::raft::service::{Hosted, RaftService};
use crate::raft::types::{Entry, Proposal};
use crate::store::{Failure, Shared};

const GROUP: u16 = 0;

/// What becomes of a call.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Fate {
    Served,
    /// Served, but the answer does not arrive.
    Lost,
    /// Served, but the answer does not arrive before [`Net::deliver`] is called.
    Late,
    Refused,
}

/// One call from node to node.
pub(crate) struct Call {
    pub(crate) from: u128,
    pub(crate) to: u128,
    pub(crate) method: u16,
    pub(crate) body: Bytes,
}

impl Call {
    /// The entries that an append request brings; none of other calls.
    pub(crate) fn entries(&self) -> Vec<Entry> {
        if self.method != method::APPEND {
            return Vec::new();
        }
        let (_, reader) = Address::split("append", &self.body).unwrap();
        rpc::decode_append(&self.body, reader).unwrap().entries
    }
}

type Judge = Box<dyn FnMut(&Net, &Call) -> Fate + Send>;

/// The way between the nodes.
#[derive(Default)]
pub(crate) struct Net {
    services: Mutex<HashMap<u128, Arc<RaftService>>>,
    cut: Mutex<HashSet<u128>>,
    judge: Mutex<Option<Judge>>,
    delivered: CancellationToken,
    /// Calls that were answered, with their answers.
    seen: Mutex<Vec<(Call, Bytes)>>,
}

impl Net {
    pub(crate) fn judge(&self, judge: impl FnMut(&Self, &Call) -> Fate + Send + 'static) {
        *self.judge.lock() = Some(Box::new(judge));
    }

    /// Nobody reaches a node, nor does it reach anybody.
    pub(crate) fn cut(&self, node: u128) {
        self.cut.lock().insert(node);
    }

    /// Has what was late arrive, and be late no more.
    pub(crate) fn deliver(&self) {
        self.delivered.cancel();
    }

    /// What `of` makes of the calls of a method that were answered, and of their answers.
    pub(crate) fn seen<T>(&self, method: u16, of: impl Fn(&Call, &Bytes) -> T) -> Vec<T> {
        let seen = self.seen.lock();
        seen.iter().filter(|(call, _)| call.method == method).map(|(call, answer)| of(call, answer)).collect()
    }

    fn route(&self, call: &Call) -> Result<(Arc<RaftService>, Fate), CallError> {
        let is_cut = {
            let cut = self.cut.lock();
            cut.contains(&call.from) || cut.contains(&call.to)
        };
        if is_cut {
            return Err(CallError::NotSent("cut off".into()));
        }
        let service = self.services.lock().get(&call.to).cloned();
        let service = service.ok_or_else(|| CallError::NotSent("down".into()))?;
        let fate = self.judge.lock().as_mut().map_or(Fate::Served, |judge| judge(self, call));
        Ok((service, fate))
    }

    async fn call(&self, call: Call, limit: Duration) -> Result<Bytes, CallError> {
        let (service, fate) = self.route(&call)?;
        if fate == Fate::Refused {
            return Err(CallError::Refused("as the test wants".into()));
        }
        let served = serve(service, call.method, call.body.clone());
        let served = timeout(limit, served).await.unwrap_or_else(|_| Err(CallError::Lost("late".into())));
        match fate {
            Fate::Lost => return Err(CallError::Lost("as the test wants".into())),
            Fate::Late => self.delivered.cancelled().await,
            Fate::Served | Fate::Refused => {}
        }
        let answer = served?;
        self.seen.lock().push((call, answer.clone()));
        Ok(answer)
    }
}

/// As a peer does: entered in order, and run to the end whatever becomes of the caller.
async fn serve(service: Arc<RaftService>, method: u16, body: Bytes) -> Result<Bytes, CallError> {
    let mut call = Box::pin(async move { service.handle(method, body).await });
    let served = match poll_fn(|cx| Poll::Ready(call.as_mut().poll(cx))).await {
        Poll::Ready(served) => served,
        Poll::Pending => tokio::spawn(call).await.unwrap_or_else(|_| Err(Refused("panicked".into()))),
    };
    served.map_err(|Refused(text)| CallError::Refused(text))
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
        let call = Call { from: self.from, to, method, body: body.concat().into() };
        Box::pin(self.net.call(call, limit))
    }
}

fn command(n: usize, action: Action) -> Bytes {
    Command { id: id(n), now_ms: 1_000, action }.encode()
}

#[derive(Default)]
struct Replicas(Mutex<Option<Arc<Group>>>);

impl Hosted for Replicas {
    fn group(&self, _group: u16) -> Option<Arc<Group>> {
        self.0.lock().clone()
    }

    fn may_grant_pre_vote(&self, _group: u16) -> bool {
        true
    }
}

/// One node with one replica.
pub(crate) struct TestNode {
    id: u128,
    pub(crate) group: Arc<Group>,
    pub(crate) journal: Journal,
    replicas: Arc<Replicas>,
    shared: Arc<Shared>,
    net: Arc<Net>,
}

impl TestNode {
    async fn start(dir: &Path, id: u128, net: &Arc<Net>) -> Self {
        let disk: Arc<dyn Disk> = open_disk(dir);
        let settings = recovery_settings(dir, 1);
        let mut recovered = recovery::recover(&settings, &journal_options(), &disk, &Metrics::new()).unwrap();
        let (store, log) = recovered.groups.remove(0);
        let (journal, shared) = (recovered.journal, recovered.shared);
        let log = LogStore::new(GROUP, journal.clone(), log);
        if log.with(|log| log.replica) == 0 {
            log.adopt(id as u64).await.unwrap();
        }
        // The lease must outlast a test's silence: nobody sends heartbeats here.
        let (election_timeout_min, election_timeout_max) = (60_000, 120_000);
        let config = Config { election_timeout_min, election_timeout_max, ..Config::clone(&group::config()) };
        let context = NodeContext {
            node_id: id,
            config: Arc::new(config),
            network: Network::new(Arc::new(Loopback { from: id, net: net.clone() }), 64 << 20),
            liveness: Arc::default(),
            failure: Failure::default(),
        };
        let group = Group::start(store, log, &Arc::new(context)).await.unwrap();
        let replicas = Arc::new(Replicas(Mutex::new(Some(group.clone()))));
        net.services.lock().insert(id, Arc::new(RaftService::new(replicas.clone())));
        Self { id, group, journal, replicas, shared, net: net.clone() }
    }

    /// Ends like a crash as far as the index is concerned; returns once the files are closed.
    async fn kill(self) {
        let Self { id, group, journal, replicas, shared, net } = self;
        net.services.lock().remove(&id);
        replicas.0.lock().take();
        group.shutdown().await;
        drop((group, replicas));
        tokio::task::spawn_blocking(move || journal.shutdown()).await.unwrap();
        let index = Arc::downgrade(&shared.index);
        drop(shared);
        while index.strong_count() > 0 {
            tokio::task::yield_now().await;
        }
    }

    pub(crate) async fn write(&self, n: usize, action: Action) {
        self.propose(command(n, action)).await;
    }

    /// As [`TestNode::write`], without waiting for the outcome.
    pub(crate) async fn begin_write(&self, n: usize, action: Action) {
        let proposal = Proposal { command: command(n, action), at: None };
        self.group.raft.client_write_ff(proposal, None).await.unwrap();
    }

    async fn propose(&self, command: Bytes) {
        self.group.raft.client_write(Proposal { command, at: None }).await.unwrap();
    }

    /// A conversation with sealed runs, keys and a summary, or more of it.
    pub(crate) async fn fill(&self, n: usize) {
        self.write(n, put()).await;
        for key in 0..3 {
            let texts = numbered(&format!("message {n}.{key}"), 50);
            self.write(n, append(&texts, Some(key))).await;
        }
        self.write(n, compact("summary")).await;
        self.propose(mark([(n, 140)].into_iter())).await;
        if n % 2 == 1 {
            self.write(n, narrow()).await;
            self.propose(trim(n)).await;
            assert_eq!(self.group.store.read(&id(n), |c, _| c.trimmed_seq()).unwrap(), Some(128));
        }
    }

    pub(crate) fn last_index(&self) -> u64 {
        self.group.metrics().borrow_watched().last_log_index.unwrap()
    }

    /// Waits until it leads and takes writes.
    async fn leads(&self) {
        let wait = self.group.raft.wait(Some(PATIENCE));
        // Before its first entry is acknowledged it has no lease.
        wait.metrics(|m| m.state.is_leader() && m.last_quorum_acked.is_some(), "lead").await.unwrap();
    }

    /// Waits until the log has come to an index.
    pub(crate) async fn has(&self, index: u64) {
        let wait = self.group.raft.wait(Some(PATIENCE));
        wait.metrics(|m| m.last_log_index >= Some(index), "receive").await.unwrap();
    }

    /// Waits until everything up to an index is applied.
    pub(crate) async fn reaches(&self, index: u64) {
        let wait = self.group.raft.wait(Some(PATIENCE));
        wait.applied_index_at_least(Some(index), "catch up").await.unwrap();
    }

    pub(crate) async fn checkpoint(&self) {
        let store = self.group.store.clone();
        tokio::task::spawn_blocking(move || store.checkpoint_synced()).await.unwrap().unwrap();
    }

    /// Makes the log before now unavailable to whoever lags.
    pub(crate) async fn purge(&self) {
        self.checkpoint().await;
        let raft = &self.group.raft;
        raft.trigger().snapshot().await.unwrap();
        let upto = self.last_index();
        let wait = raft.wait(Some(PATIENCE));
        wait.metrics(|m| m.snapshot.is_some_and(|at| at.index >= upto), "snapshot").await.unwrap();
        raft.trigger().purge_log(upto).await.unwrap();
        let wait = raft.wait(Some(PATIENCE));
        wait.metrics(|m| m.purged.is_some_and(|at| at.index >= upto), "purge").await.unwrap();
    }

    pub(crate) fn dumps(&self, conversations: usize) -> Vec<String> {
        let store = &self.group.store;
        let digest = |n| store.read(&id(n), |c, _| c.logical_digest()).unwrap();
        (0..conversations).map(|n| format!("{:?} {}", digest(n), dump(store, n))).collect()
    }
}

pub(crate) struct Cluster {
    pub(crate) dirs: Vec<TempDir>,
    pub(crate) net: Arc<Net>,
    nodes: Vec<Option<TestNode>>,
}

impl Cluster {
    /// Three replicas, the first of which leads.
    pub(crate) async fn start() -> Self {
        let dirs = (0..3).map(|_| tempfile::tempdir().unwrap()).collect();
        let mut cluster = Self { dirs, net: Arc::default(), nodes: Vec::new() };
        for i in 0..3 {
            cluster.nodes.push(None);
            cluster.launch(i).await;
        }
        cluster.leader().group.found(&(1..=3).map(|id| (id, id.into())).collect()).await.unwrap();
        cluster.leader().leads().await;
        cluster.leader().reaches(cluster.leader().last_index()).await;
        cluster
    }

    pub(crate) fn node(&self, i: usize) -> &TestNode {
        self.nodes[i].as_ref().expect("it runs")
    }

    pub(crate) fn leader(&self) -> &TestNode {
        self.node(0)
    }

    pub(crate) async fn launch(&mut self, i: usize) {
        self.nodes[i] = Some(TestNode::start(self.dirs[i].path(), i as u128 + 1, &self.net).await);
    }

    pub(crate) async fn kill(&mut self, i: usize) {
        self.nodes[i].take().expect("it runs").kill().await;
    }

    pub(crate) async fn restart(&mut self, i: usize) {
        self.kill(i).await;
        self.launch(i).await;
    }

    pub(crate) fn cut(&self, i: usize) {
        self.net.cut(i as u128 + 1);
    }

    pub(crate) fn heal(&self, i: usize) {
        self.net.cut.lock().remove(&(i as u128 + 1));
    }

    /// The others agree on another leader, the second of them all, whatever the first hears of it.
    pub(crate) async fn depose(&self) {
        let (vote, last) = self.leader().group.log.with(|log| (log.vote.unwrap(), log.last()));
        for i in [2, 1] {
            let raft = &self.node(i).group.raft;
            raft.handle_transfer_leader(TransferLeaderRequest::new(vote, 2, last)).await.unwrap().unwrap();
        }
        self.node(1).leads().await;
    }

    /// Waits until all nodes have applied everything and compares what they hold.
    pub(crate) async fn agree(&self, conversations: usize) -> Vec<String> {
        let last = self.leader().last_index();
        self.leader().reaches(last).await;
        let expected = self.leader().dumps(conversations);
        for node in self.nodes.iter().flatten() {
            node.reaches(last).await;
            assert_eq!(node.dumps(conversations), expected, "node {}", node.id);
            node.group.store.ensure_verified().unwrap();
        }
        expected
    }

    pub(crate) async fn stop(self) {
        for node in self.nodes.into_iter().flatten() {
            node.kill().await;
        }
    }
}
