//! The handle the rest of the node holds.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::runtime::Handle;
use tokio::sync::{Notify, watch};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::Role;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::connection::{run, websocket_config};
use super::dial::{Network, Tcp};
use super::greet::{GreetError, accepted};
use super::hello::Reason;
use super::links::{LinkInfo, Links};
use super::outbox::Outbox;
use super::roster::Roster;
use super::serve::{Requests, Services};
use super::{CallError, Lane, Mark, PeerSettings, Remote, Service, dial};
use crate::metrics::Metrics;

/// Most addresses that are dialled; further ones are left out.
const TARGETS_MAX: usize = 256;
/// Most nodes whose inbound address is remembered.
const INBOUND_MAX: usize = 1_024;
/// One refused address is logged once in this time for each reason.
const REFUSALS_LOGGED_EVERY: Duration = Duration::from_secs(30);
/// Most addresses and reasons that are remembered for that.
const REFUSALS_REMEMBERED_MAX: usize = 256;

/// The links of this node. Clones share them; [`Peers::close`] ends them.
#[derive(Clone)]
pub struct Peers(pub(super) Arc<Shared>);

pub(crate) struct Shared {
    pub(crate) settings: PeerSettings,
    pub(crate) instance: u64,
    pub(crate) network: Arc<dyn Network>,
    /// Runs the control connections, and all that keeps links.
    pub(crate) runtime: Handle,
    /// Runs the connections of the log lane, beside the work that waits for them.
    pub(crate) work: Handle,
    pub(crate) metrics: Metrics,
    pub(crate) roster: Mutex<Roster>,
    pub(crate) marks: Mutex<Vec<u64>>,
    pub(crate) links: Links,
    /// Woken when a link goes down.
    pub(crate) link_freed: Notify,
    services: Arc<Services>,
    inbound: watch::Sender<Arc<BTreeMap<u128, Remote>>>,
    refusals_logged: Mutex<BTreeMap<(IpAddr, &'static str), Instant>>,
    stop: CancellationToken,
}

impl Peers {
    /// Dials nobody before [`Peers::set_targets`]. Connections of the log lane run on `work`, where what they carry is
    /// made and taken: a call then passes from task to task of one thread. All else runs on `runtime`, which a busy
    /// node does not keep from saying that it lives.
    pub fn start(settings: PeerSettings, runtime: Handle, work: Handle, metrics: Metrics) -> Peers {
        Peers::start_over(Arc::new(Tcp), settings, runtime, work, metrics)
    }

    /// As [`Peers::start`], dialling over a network of the caller's.
    pub(crate) fn start_over(
        network: Arc<dyn Network>,
        settings: PeerSettings,
        runtime: Handle,
        work: Handle,
        metrics: Metrics,
    ) -> Peers {
        let instance = getrandom::u64().expect("the system has random numbers");
        let roster = Roster::new(settings.node_id, settings.name.clone(), instance, settings.cluster);
        Peers(Arc::new(Shared {
            marks: Mutex::new(settings.marks.clone()),
            settings,
            instance,
            network,
            runtime,
            work,
            metrics,
            roster: Mutex::new(roster),
            links: Links::new(),
            link_freed: Notify::new(),
            services: Arc::default(),
            inbound: watch::Sender::new(Arc::default()),
            refusals_logged: Mutex::default(),
            stop: CancellationToken::new(),
        }))
    }

    /// Has `service` serve these methods, also those of connections that stand; calls of others are refused.
    pub fn serve(&self, methods: RangeInclusive<u16>, service: Arc<dyn Service>) {
        self.0.services.add(methods, service);
    }

    /// Calls a method of a node and waits up to `limit` for its answer. The parts of the body are sent as one.
    ///
    /// Dropping the future gives the call up: it is not sent if it was not yet.
    pub async fn call(
        &self,
        to: u128,
        lane: Lane,
        method: u16,
        body: &[Bytes],
        limit: Duration,
    ) -> Result<Bytes, CallError> {
        let link = self.0.links.to(to).ok_or_else(|| CallError::NotSent("no link to the node".to_owned()))?;
        let began = Instant::now();
        // Without tokio's budget: a task that makes many calls would be made to yield inside one, and calls resumed
        // after that come in any order.
        let answer = tokio::task::unconstrained(link.call(lane, method, body, limit)).await;
        if answer.is_ok() {
            let seconds = began.elapsed().as_secs_f64();
            self.0.metrics.peer_call_seconds.of(lane as usize).observe(seconds);
        }
        answer
    }

    /// Runs a connection whose upgrade was answered, to its end. Dropping the future ends it too. Drops `unproven` once the
    /// other side has proven who it is, or the connection ends.
    pub async fn accept<IO>(&self, io: IO, from: SocketAddr, unproven: impl Send + 'static)
    where
        IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let shared = self.0.clone();
        let running = self.0.runtime.spawn(async move {
            tokio::select! {
                biased;
                () = shared.stop.cancelled() => {}
                () = shared.run_accepted(io, from, unproven) => {}
            }
        });
        let _ = AbortOnDropHandle::new(running).await;
    }

    /// Keeps links to the nodes at these addresses, and drops links over others. An address of this node itself, and
    /// a second one of a node, are found out by the handshake.
    pub fn set_targets(&self, addresses: Vec<SocketAddr>) {
        let mut addresses = addresses;
        addresses.truncate(TARGETS_MAX);
        if self.0.stop.is_cancelled() {
            return;
        }
        for (address, stop) in self.0.links.set_targets(&addresses, &self.0.stop) {
            self.0.runtime.spawn(dial::keep(self.0.clone(), address, stop));
        }
    }

    /// From now on only nodes of this cluster or of none are let in; connections with others end.
    pub fn set_cluster(&self, cluster: u128) {
        self.0.roster.lock().set_cluster(cluster);
    }

    /// The lowest and the highest protocol version this node speaks.
    pub fn protocols(&self) -> (u16, u16) {
        self.0.settings.protocols
    }

    /// Random per process.
    pub fn instance(&self) -> u64 {
        self.0.instance
    }

    /// What this node tells from now on to prove that its data is not from the past; on disk by now.
    pub fn set_own_marks(&self, marks: Vec<u64>) {
        *self.0.marks.lock() = marks;
    }

    /// From now on a node that does not know its mark is not let in; connections with such nodes end.
    pub fn set_marks(&self, marks: BTreeMap<u128, Mark>) {
        self.0.roster.lock().set_marks(marks);
    }

    /// What is dialled and what became of it. Changes whenever a state does.
    pub fn links(&self) -> watch::Receiver<Arc<Vec<LinkInfo>>> {
        self.0.links.watch()
    }

    /// The nodes to which links stand.
    pub fn reached(&self) -> Vec<Remote> {
        let links = self.0.links.watch().borrow().clone();
        links.iter().filter(|link| link.is_up()).filter_map(|link| link.remote.clone()).collect()
    }

    /// Whether the link to a node stands.
    pub fn is_up(&self, node: u128) -> bool {
        self.0.links.to(node).is_some()
    }

    /// Largest body of a call that every node takes to which a link stands; none is larger where there are no links.
    pub fn body_bytes_max(&self) -> usize {
        self.0.links.body_bytes_max().map_or(usize::MAX, |bytes| bytes as usize)
    }

    /// The nodes that dialled this one and were let in, as they last were, with the address to dial them back.
    pub fn seen_inbound(&self) -> watch::Receiver<Arc<BTreeMap<u128, Remote>>> {
        self.0.inbound.subscribe()
    }

    /// Ends all connections and serves nothing more. Calls under way end as if their links had broken.
    pub fn close(&self) {
        self.0.stop.cancel();
        self.0.links.set_targets(&[], &self.0.stop);
        self.0.services.clear();
    }
}

impl Shared {
    async fn run_accepted<IO>(self: &Arc<Self>, io: IO, from: SocketAddr, unproven: impl Send)
    where
        IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let mut socket = WebSocketStream::from_raw_socket(io, Role::Server, Some(websocket_config())).await;
        let greeted = match accepted(self, &mut socket).await {
            Ok(greeted) => greeted,
            Err(error) => return self.log_refusal(&error, from),
        };
        drop(unproven);
        let hello = &greeted.proven.hello;
        let (lane, answer_bytes_max) = (hello.lane, hello.body_bytes_max as usize);
        let remote = greeted.remote(SocketAddr::new(from.ip().to_canonical(), hello.port)).await;
        self.note_inbound(&remote);
        let outbox = Arc::new(Outbox::new(lane.queue_bytes_max()));
        let bounds = (self.settings.body_bytes_max as usize, answer_bytes_max);
        let node = remote.name.clone();
        let runtime = self.runtime_of(lane).clone();
        let mut requests =
            Requests::new(self.services.clone(), remote, outbox.clone(), lane, bounds, runtime.clone());
        let shared = self.clone();
        let serving = runtime.spawn(async move {
            shared.metrics.peer_connections.inc();
            let _open = scopeguard(|| shared.metrics.peer_connections.dec());
            tokio::select! {
                biased;
                why = run(socket, &outbox, lane, &shared.metrics, &mut requests) => why,
                () = greeted.stop.cancelled() => "the node was started anew".to_owned(),
            }
        });
        let why = AbortOnDropHandle::new(serving).await.unwrap_or_else(|error| error.to_string());
        tracing::debug!(event = "peer_connection_ended", node, lane = lane.label(), peer = %from, reason = why);
    }

    /// Where connections of a lane run.
    pub(crate) fn runtime_of(&self, lane: Lane) -> &Handle {
        if lane == Lane::Log { &self.work } else { &self.runtime }
    }

    fn note_inbound(&self, remote: &Remote) {
        self.inbound.send_if_modified(|seen| {
            if seen.get(&remote.node_id) == Some(remote) {
                return false;
            }
            let mut changed = BTreeMap::clone(seen);
            if changed.len() >= INBOUND_MAX && !changed.contains_key(&remote.node_id) {
                return false;
            }
            changed.insert(remote.node_id, remote.clone());
            *seen = Arc::new(changed);
            true
        });
    }

    pub(crate) fn count_refusal(&self, error: &GreetError) {
        if let Some(refusal) = error.refusal() {
            self.metrics.peer_refusals.of(refusal.reason as usize).inc();
        }
    }

    /// Logs why a connection was not let in, unless that was said lately.
    fn log_refusal(&self, error: &GreetError, from: SocketAddr) {
        self.count_refusal(error);
        let reason = match error.refusal() {
            // A node that is among its own seeds is no fault.
            Some(refusal) if refusal.reason == Reason::Yourself => return,
            Some(refusal) => refusal.reason.label(),
            None => "broken_off",
        };
        let mut logged = self.refusals_logged.lock();
        let now = Instant::now();
        let key = (from.ip(), reason);
        if logged.get(&key).is_some_and(|at| now.duration_since(*at) < REFUSALS_LOGGED_EVERY) {
            return;
        }
        if logged.len() >= REFUSALS_REMEMBERED_MAX {
            logged.clear();
        }
        logged.insert(key, now);
        drop(logged);
        tracing::warn!(event = "peer_refused", peer = %from, reason, detail = %error);
    }
}

/// Runs `end` when it is dropped.
fn scopeguard<F: FnMut()>(end: F) -> impl Drop {
    struct Guard<F: FnMut()>(F);
    impl<F: FnMut()> Drop for Guard<F> {
        fn drop(&mut self) {
            (self.0)();
        }
    }
    Guard(end)
}
