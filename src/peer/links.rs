//! The links this node keeps: one per node, over the addresses it was told to dial.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::timeout_at;
use tokio_util::sync::CancellationToken;

use super::caller::Caller;
use super::hello::Hello;
use super::{CallError, Lane, Remote};

/// One address that is being dialled.
#[derive(Clone, Debug)]
pub struct LinkInfo {
    pub address: SocketAddr,
    pub state: LinkState,
    /// Who was last found there.
    pub remote: Option<Remote>,
    /// Since when it is in this state.
    pub since: Instant,
    rtt_us: Arc<AtomicU64>,
}

/// What became of dialling an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkState {
    /// Not tried to the end yet.
    Dialling,
    /// The control connection stands; the others stand or are being made.
    Up,
    /// It is this node's own address.
    Myself,
    /// Another address leads to the same node, and is used.
    Duplicate,
    /// Why the last attempt failed; dialling goes on.
    Down(String),
}

impl LinkInfo {
    pub(crate) fn new(address: SocketAddr) -> LinkInfo {
        LinkInfo {
            address,
            state: LinkState::Dialling,
            remote: None,
            since: Instant::now(),
            rtt_us: Arc::default(),
        }
    }

    pub fn is_up(&self) -> bool {
        self.state == LinkState::Up
    }

    /// How long the last ping took there and back.
    pub fn rtt(&self) -> Option<Duration> {
        let us = self.rtt_us.load(Ordering::Relaxed);
        (us > 0 && self.is_up()).then(|| Duration::from_micros(us))
    }
}

/// A link that is up: a connection per lane, or none while one is being made anew.
pub(crate) struct Link {
    pub(crate) remote: Remote,
    pub(crate) instance: u64,
    /// Largest body that the node takes.
    body_bytes_max: u32,
    pub(crate) rtt_us: Arc<AtomicU64>,
    /// Cancelled when the link goes down.
    pub(crate) down: CancellationToken,
    lanes: [watch::Sender<Option<Arc<Caller>>>; 3],
    /// Held while a call waits for its connection and for room, so that none overtakes another. First come, first
    /// served.
    turns: [Turn; 3],
}

type Turn = tokio::sync::Mutex<()>;

impl Link {
    pub(crate) fn new(remote: Remote, hello: &Hello, down: CancellationToken) -> Link {
        let lanes = [(); 3].map(|()| watch::Sender::new(None));
        let Hello { instance, body_bytes_max, .. } = *hello;
        Link {
            remote,
            instance,
            body_bytes_max,
            rtt_us: Arc::default(),
            down,
            lanes,
            turns: Default::default(),
        }
    }

    pub(crate) fn set_lane(&self, lane: Lane, caller: Option<Arc<Caller>>) {
        self.lanes[lane as usize].send_replace(caller);
    }

    #[cfg(test)]
    pub(crate) fn callers(&self) -> impl Iterator<Item = Arc<Caller>> + '_ {
        self.lanes.iter().filter_map(|lane| lane.borrow().clone())
    }

    pub(crate) async fn call(
        &self,
        lane: Lane,
        method: u16,
        body: &[Bytes],
        limit: Duration,
    ) -> Result<Bytes, CallError> {
        let deadline = tokio::time::Instant::now() + limit;
        let turn = timeout_at(deadline, self.turns[lane as usize].lock()).await;
        let turn =
            turn.map_err(|_| CallError::NotSent("earlier calls fill the queue to the node".to_owned()))?;
        let caller = self.lanes[lane as usize].borrow().clone();
        let caller = match caller {
            Some(caller) => caller,
            None => self.lane(lane, deadline).await?,
        };
        let call = caller.send(method, body, deadline).await?;
        drop(turn);
        call.outcome(deadline).await
    }

    /// Waits for a connection that is being made.
    async fn lane(&self, lane: Lane, deadline: tokio::time::Instant) -> Result<Arc<Caller>, CallError> {
        let mut lanes = self.lanes[lane as usize].subscribe();
        let standing = lanes.wait_for(Option::is_some);
        tokio::select! {
            biased;
            () = self.down.cancelled() => Err(CallError::NotSent("the link is down".to_owned())),
            found = timeout_at(deadline, standing) => match found {
                Ok(Ok(caller)) => Ok(caller.clone().expect("waited for one")),
                _ => Err(CallError::NotSent(format!("no {} connection to the node", lane.label()))),
            },
        }
    }
}

/// All of them, and what the rest of the node sees of them.
pub(crate) struct Links {
    inner: Mutex<Inner>,
    shown: watch::Sender<Arc<Vec<LinkInfo>>>,
}

#[derive(Default)]
struct Inner {
    targets: BTreeMap<SocketAddr, (CancellationToken, LinkInfo)>,
    by_node: BTreeMap<u128, Arc<Link>>,
}

impl Links {
    pub(crate) fn new() -> Links {
        Links { inner: Mutex::default(), shown: watch::Sender::new(Arc::default()) }
    }

    pub(crate) fn watch(&self) -> watch::Receiver<Arc<Vec<LinkInfo>>> {
        self.shown.subscribe()
    }

    pub(crate) fn to(&self, node: u128) -> Option<Arc<Link>> {
        self.inner.lock().by_node.get(&node).cloned()
    }

    /// Largest body that every node takes to which a link stands.
    pub(crate) fn body_bytes_max(&self) -> Option<u32> {
        self.inner.lock().by_node.values().map(|link| link.body_bytes_max).min()
    }

    /// Stops dialling what is not among `addresses`. What is new is to be dialled until its token is cancelled.
    pub(crate) fn set_targets(
        &self,
        addresses: &[SocketAddr],
        stop: &CancellationToken,
    ) -> Vec<(SocketAddr, CancellationToken)> {
        let mut inner = self.inner.lock();
        inner.targets.retain(|address, (stop, _)| {
            let kept = addresses.contains(address);
            if !kept {
                stop.cancel();
            }
            kept
        });
        let mut added = Vec::new();
        for address in addresses {
            if !inner.targets.contains_key(address) {
                let stop = stop.child_token();
                inner.targets.insert(*address, (stop.clone(), LinkInfo::new(*address)));
                added.push((*address, stop));
            }
        }
        self.show(&inner);
        added
    }

    /// Notes what became of dialling; whether that is news.
    pub(crate) fn set_state(&self, address: SocketAddr, state: LinkState) -> bool {
        let mut inner = self.inner.lock();
        let Some((_, info)) = inner.targets.get_mut(&address) else { return false };
        if info.state == state {
            return false;
        }
        info.state = state;
        info.since = Instant::now();
        self.show(&inner);
        true
    }

    /// Makes `link` the one to its node, unless there is one already.
    pub(crate) fn claim(&self, address: SocketAddr, link: &Arc<Link>) -> bool {
        let mut inner = self.inner.lock();
        let node = link.remote.node_id;
        if let Some(standing) = inner.by_node.get(&node) {
            if standing.instance == link.instance {
                // It is known whom this address leads to, all the same.
                if let Some((_, info)) = inner.targets.get_mut(&address) {
                    info.remote = Some(link.remote.clone());
                }
                self.show(&inner);
                return false;
            }
            standing.down.cancel();
        }
        inner.by_node.insert(node, link.clone());
        if let Some((_, info)) = inner.targets.get_mut(&address) {
            info.state = LinkState::Up;
            info.since = Instant::now();
            info.remote = Some(link.remote.clone());
            info.rtt_us = link.rtt_us.clone();
        }
        self.show(&inner);
        true
    }

    pub(crate) fn release(&self, link: &Arc<Link>) {
        let mut inner = self.inner.lock();
        let node = link.remote.node_id;
        if inner.by_node.get(&node).is_some_and(|standing| Arc::ptr_eq(standing, link)) {
            inner.by_node.remove(&node);
        }
    }

    fn show(&self, inner: &Inner) {
        self.shown.send_replace(Arc::new(inner.targets.values().map(|(_, info)| info.clone()).collect()));
    }
}
