//! Keeps the link over one address: dials, finds out who is there, runs the three connections, dials again.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_tungstenite::{WebSocketStream, client_async_with_config};
use tokio_util::sync::CancellationToken;

use super::caller::{Answers, Caller};
use super::connection::{run, websocket_config};
use super::greet::{GreetError, Greeted, HANDSHAKE_TIMEOUT, dialled};
use super::hello::Reason;
use super::links::{Link, LinkState};
use super::peers::Shared;
use super::{Lane, PATH};

/// Pauses between attempts, doubled each time, less a random part of up to a half.
const BACKOFF_MIN: Duration = Duration::from_millis(50);
const BACKOFF_MAX: Duration = Duration::from_secs(1);
/// Pause before an address that leads to this node, or to one that is linked already, is tried again.
const RECHECK: Duration = Duration::from_secs(5);
/// A connection that stood this long was not a failed attempt.
const STABLE_AFTER: Duration = Duration::from_secs(1);

/// What dialling takes from outside; simulations bring their own.
pub(crate) trait Network: Send + Sync + 'static {
    fn connect(&self, to: SocketAddr) -> BoxFuture<'static, io::Result<Box<dyn Io>>>;

    /// A random number, so that no two nodes make the same pauses.
    fn random(&self) -> u32;
}

/// The network of the system.
pub(crate) struct Tcp;

impl Network for Tcp {
    fn connect(&self, to: SocketAddr) -> BoxFuture<'static, io::Result<Box<dyn Io>>> {
        Box::pin(async move {
            let stream = TcpStream::connect(to).await?;
            // Frames are written whole, and answers are waited for.
            stream.set_nodelay(true)?;
            Ok(Box::new(stream) as Box<dyn Io>)
        })
    }

    fn random(&self) -> u32 {
        getrandom::u32().unwrap_or(u32::MAX)
    }
}

/// A connection, behind TLS or not.
pub(crate) trait Io: AsyncRead + AsyncWrite + Unpin + Send {}

impl<IO: AsyncRead + AsyncWrite + Unpin + Send> Io for IO {}

type Socket = WebSocketStream<Box<dyn Io>>;

/// Dials until `stop`.
pub(crate) async fn keep(shared: Arc<Shared>, address: SocketAddr, stop: CancellationToken) {
    let mut backoff = Backoff::default();
    loop {
        let began = Instant::now();
        let state = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            state = attempt(&shared, address) => state,
        };
        if began.elapsed() > STABLE_AFTER {
            backoff = Backoff::default();
        }
        let pause = match state {
            LinkState::Myself | LinkState::Duplicate => RECHECK,
            _ => backoff.next(shared.network.random()),
        };
        let is_duplicate = state == LinkState::Duplicate;
        // Taken before the state is shown: a link that goes down in between is not missed.
        let freed = shared.link_freed.notified();
        note(&shared, address, state);
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
            () = freed, if is_duplicate => {}
        }
    }
}

fn note(shared: &Shared, address: SocketAddr, state: LinkState) {
    if !shared.links.set_state(address, state.clone()) {
        return;
    }
    match state {
        LinkState::Down(reason) => tracing::warn!(event = "peer_unreachable", peer = %address, reason),
        LinkState::Myself => tracing::info!(event = "peer_is_this_node", peer = %address),
        LinkState::Duplicate => tracing::info!(event = "peer_known_by_another_address", peer = %address),
        LinkState::Dialling | LinkState::Up => {}
    }
}

/// One link from dialling to its end.
async fn attempt(shared: &Arc<Shared>, address: SocketAddr) -> LinkState {
    let (socket, greeted) = match connect(shared, address, Lane::Control).await {
        Ok(connected) => connected,
        Err(error) => {
            if error.refusal().is_some_and(|refusal| refusal.reason == Reason::Yourself) {
                return LinkState::Myself;
            }
            shared.count_refusal(&error);
            return LinkState::Down(error.to_string());
        }
    };
    let remote = greeted.remote(address).await;
    let link = Arc::new(Link::new(remote, &greeted.proven.hello, greeted.stop.child_token()));
    if !shared.links.claim(address, &link) {
        return LinkState::Duplicate;
    }
    let held = Held::new(shared, link.clone());
    let remote = &link.remote;
    let (node, incarnation) = (&remote.name, remote.incarnation);
    tracing::info!(event = "peer_link_up", node, incarnation, peer = %address, protocol = remote.protocol);
    for lane in [Lane::Log, Lane::Bulk] {
        shared.runtime_of(lane).spawn(keep_lane(shared.clone(), link.clone(), address, lane));
    }
    let why = drive(shared, &link, Lane::Control, socket, greeted).await;
    shared.metrics.peer_reconnects_total.inc();
    tracing::warn!(event = "peer_link_down", node, incarnation, peer = %address, reason = why);
    drop(held);
    LinkState::Down(why)
}

/// A claimed link, until it is dropped.
struct Held<'a> {
    shared: &'a Arc<Shared>,
    link: Arc<Link>,
}

impl<'a> Held<'a> {
    fn new(shared: &'a Arc<Shared>, link: Arc<Link>) -> Held<'a> {
        shared.metrics.peer_links_up.inc();
        Held { shared, link }
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.shared.metrics.peer_links_up.dec();
        self.link.down.cancel();
        self.shared.links.release(&self.link);
        self.shared.link_freed.notify_waiters();
    }
}

/// Keeps a further connection of a link for as long as the link is up.
async fn keep_lane(shared: Arc<Shared>, link: Arc<Link>, address: SocketAddr, lane: Lane) {
    let mut backoff = Backoff::default();
    let keeping = async {
        loop {
            let began = Instant::now();
            let why = match connect(&shared, address, lane).await {
                Ok((_, greeted)) if greeted.proven.hello.instance != link.instance => {
                    "another node answers there".to_owned()
                }
                Ok((socket, greeted)) => drive(&shared, &link, lane, socket, greeted).await,
                Err(error) => error.to_string(),
            };
            shared.metrics.peer_reconnects_total.inc();
            let (node, lane) = (&link.remote.name, lane.label());
            tracing::info!(event = "peer_connection_lost", node, lane, peer = %address, reason = why);
            if began.elapsed() > STABLE_AFTER {
                backoff = Backoff::default();
            }
            tokio::time::sleep(backoff.next(shared.network.random())).await;
        }
    };
    tokio::select! {
            biased;
        () = link.down.cancelled() => {}
        () = keeping => {}
    }
}

/// Runs one connection of a link to its end; says why it ended.
async fn drive(shared: &Arc<Shared>, link: &Link, lane: Lane, socket: Socket, greeted: Greeted) -> String {
    let settings = &shared.settings;
    let caller = Arc::new(Caller::new(lane, greeted.proven.hello.body_bytes_max as usize));
    let _lane = OpenLane { link, lane, caller: caller.clone() };
    link.set_lane(lane, Some(caller.clone()));
    let rtt_us = if lane == Lane::Control { link.rtt_us.clone() } else { Arc::default() };
    let mut answers = Answers::new(caller.clone(), lane, settings.body_bytes_max as usize, rtt_us);
    tokio::select! {
            biased;
        why = run(socket, &caller.outbox, lane, &shared.metrics, &mut answers) => why,
        () = link.down.cancelled() => "another process of the node took over, or the cluster is another".to_owned(),
    }
}

/// A connection that takes calls, until it is dropped.
struct OpenLane<'a> {
    link: &'a Link,
    lane: Lane,
    caller: Arc<Caller>,
}

impl Drop for OpenLane<'_> {
    fn drop(&mut self) {
        self.link.set_lane(self.lane, None);
        self.caller.close();
    }
}

async fn connect(
    shared: &Arc<Shared>,
    address: SocketAddr,
    lane: Lane,
) -> Result<(Socket, Greeted), GreetError> {
    let connecting = async {
        let stream = shared.network.connect(address).await.map_err(|error| error.to_string())?;
        let stream = match &shared.settings.tls {
            None => stream,
            Some(tls) => match tls.connect(address.ip(), stream).await {
                Ok(stream) => Box::new(stream) as Box<dyn Io>,
                Err(error) => return Err(format!("no TLS with the node: {error}")),
            },
        };
        let url = format!("ws://{address}{PATH}?lane={}", lane.label());
        let upgraded = client_async_with_config(url, stream, Some(websocket_config())).await;
        upgraded.map(|(socket, _)| socket).map_err(|error| format!("no link: {error}"))
    };
    let connected = tokio::time::timeout(HANDSHAKE_TIMEOUT, connecting).await;
    let mut socket =
        connected.unwrap_or_else(|_| Err("no connection in time".to_owned())).map_err(GreetError::Io)?;
    let greeted = dialled(shared, &mut socket, lane).await?;
    Ok((socket, greeted))
}

/// Pauses that grow, and that no two nodes make alike.
#[derive(Default)]
struct Backoff {
    attempts: u32,
}

impl Backoff {
    fn next(&mut self, random: u32) -> Duration {
        let whole = (BACKOFF_MIN * 2u32.saturating_pow(self.attempts.min(16))).min(BACKOFF_MAX);
        self.attempts += 1;
        whole.mul_f64(0.5 + 0.5 * f64::from(random) / f64::from(u32::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_their_bound() {
        let mut backoff = Backoff::default();
        let pauses: Vec<Duration> = (0..40u32).map(|n| backoff.next(n << 26)).collect();
        assert!(pauses[0] <= BACKOFF_MIN && pauses[0] >= BACKOFF_MIN / 2);
        assert!(pauses[39] <= BACKOFF_MAX && pauses[39] >= BACKOFF_MAX / 2);
    }
}
