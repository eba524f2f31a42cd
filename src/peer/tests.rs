//! Nodes on the loopback interface, each with a listener that upgrades as the edge does.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio::task::JoinHandle;
use tokio_util::task::AbortOnDropHandle;

use super::*;
use crate::config::Secret;
use crate::metrics::Metrics;

mod calls;
mod identity;
mod secure;
mod sim;

/// No single step takes longer, unless something hangs.
const PATIENCE: Duration = Duration::from_secs(20);

/// A node: its peers and the listener they are reached by.
struct Node {
    peers: Peers,
    id: u128,
    address: SocketAddr,
    metrics: Metrics,
    _listening: AbortOnDropHandle<()>,
}

impl Drop for Node {
    fn drop(&mut self) {
        self.peers.close();
    }
}

fn settings(name: &str) -> PeerSettings {
    PeerSettings {
        node_id: name.bytes().fold(0, |id, byte| id << 8 | u128::from(byte)),
        name: name.to_owned(),
        incarnation: 1,
        protocols: PROTOCOLS,
        marks: Vec::new(),
        cluster: None,
        listen_port: 0,
        advertise: None,
        secrets: secrets("s"),
        body_bytes_max: 32 << 20,
        tls: None,
    }
}

fn secrets(list: &str) -> Secrets {
    Secrets::new(&list.split(',').map(Secret::new).collect::<Vec<_>>(), &[])
}

impl Node {
    async fn start(settings: PeerSettings) -> Node {
        Node::start_at(settings, SocketAddr::from(([127, 0, 0, 1], 0))).await
    }

    async fn start_at(mut settings: PeerSettings, address: SocketAddr) -> Node {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        settings.listen_port = address.port();
        let (id, metrics) = (settings.node_id, Metrics::new());
        let peers = Peers::start(settings, Handle::current(), Handle::current(), metrics.clone());
        let listening = AbortOnDropHandle::new(listen(listener, peers.clone()));
        Node { peers, id, address, metrics, _listening: listening }
    }

    /// Dials these, and waits until there is a link to each of them.
    async fn link(&self, others: &[&Node]) {
        self.peers.set_targets(others.iter().map(|other| other.address).collect());
        for other in others {
            self.until(other.address, LinkInfo::is_up).await;
        }
    }

    /// Waits until what is known of an address is as wanted.
    async fn until(&self, address: SocketAddr, wanted: impl Fn(&LinkInfo) -> bool) -> LinkInfo {
        let mut links = self.peers.links();
        let of = |links: &[LinkInfo]| links.iter().find(|link| link.address == address).cloned();
        let waiting = links.wait_for(|links| of(links).is_some_and(|link| wanted(&link)));
        let found = tokio::time::timeout(PATIENCE, waiting).await;
        let links = match found {
            Ok(links) => links.unwrap().clone(),
            Err(_) => panic!("never: {:?}", self.peers.links().borrow()),
        };
        of(&links).unwrap()
    }

    /// Why dialling an address fails.
    async fn failure(&self, address: SocketAddr) -> String {
        match self.until(address, |link| matches!(link.state, LinkState::Down(_))).await.state {
            LinkState::Down(why) => why,
            other => panic!("{other:?}"),
        }
    }

    async fn call(&self, to: &Node, lane: Lane, method: u16, body: &[u8]) -> Result<Bytes, CallError> {
        let body = [Bytes::copy_from_slice(body)];
        self.peers.call(to.id, lane, method, &body, PATIENCE).await
    }

    fn refusals(&self, reason: Reason) -> u64 {
        self.metrics.peer_refusals.of(reason as usize).get()
    }
}

/// Upgrades every connection, as the edge does.
fn listen(listener: TcpListener, peers: Peers) -> JoinHandle<()> {
    tokio::spawn(async move {
        let mut open = tokio::task::JoinSet::new();
        while let Ok((stream, from)) = listener.accept().await {
            let peers = peers.clone();
            open.spawn(async move {
                let socket = tokio_tungstenite::accept_async(stream).await.unwrap();
                peers.accept(socket.into_inner(), from, ()).await;
            });
        }
    })
}

/// Serves with a function; the sender's name goes in front of the body.
struct Serving<F>(F);

impl<F> Service for Serving<F>
where
    F: Fn(u16, Bytes) -> Result<Bytes, Refused> + Send + Sync + 'static,
{
    fn call<'a>(&'a self, _from: &'a Remote, method: u16, body: Bytes) -> Answer<'a> {
        let outcome = (self.0)(method, body);
        Box::pin(std::future::ready(outcome))
    }
}

fn echo() -> Arc<dyn Service> {
    Arc::new(Serving(|_, body| Ok(body)))
}
