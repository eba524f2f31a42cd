//! The accept loop: HTTP/1.1 and HTTP/2 (by ALPN over TLS, by prior knowledge without) on one port, with upgrades.
//!
//! `axum::serve` sets no timer and no limit, so hyper is driven here directly. Every wait for a peer is bounded
//! ([`super::watchdog`]), connections are capped, and shutting down finishes the requests at work within a bound.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use http::header::CONNECTION;
use http::{HeaderValue, Request, StatusCode, Version};
use http_body::Body as _;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use rustix::net::sockopt::set_tcp_user_timeout;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::App;
use super::door::PEER_PATH;
use super::limits::ConnectionPermit;
use super::pieces::{Answering, in_pieces};
use super::watchdog::{Activity, Watched};

/// Read and write buffer of one HTTP/1 connection, and with it the largest request head.
const HTTP1_BUFFER_BYTES: usize = 32 << 10;
/// Largest list of headers on HTTP/2.
const HTTP2_HEADERS_BYTES: u32 = 32 << 10;
/// Requests at once on one HTTP/2 connection.
const HTTP2_STREAMS_MAX: u32 = 128;
/// Unread request bytes one HTTP/2 connection may send ahead, per stream and in all.
const HTTP2_STREAM_WINDOW_BYTES: u32 = 256 << 10;
const HTTP2_CONNECTION_WINDOW_BYTES: u32 = 1 << 20;
/// Answer bytes queued per HTTP/2 stream.
const HTTP2_SEND_BUFFER_BYTES: usize = 64 << 10;
/// A silent HTTP/2 peer is asked for a sign of life this often, and given up after the timeout.
const HTTP2_PING_EVERY: Duration = Duration::from_secs(30);
const HTTP2_PING_TIMEOUT: Duration = Duration::from_secs(20);
/// A peer that acknowledges nothing of what was sent to it for this long is gone. Without that a stream's writes go on into
/// the system's buffer until that has sent them again for a quarter of an hour.
const UNACKNOWLEDGED_MAX_MS: u32 = 60_000;
/// Pause after a failed accept: out of descriptors, most likely, which does not pass at once.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);
/// How long a connection that has one of the places kept for other nodes may take to show that it is one's.
const NODE_SHOWS_MAX: Duration = Duration::from_secs(5);
/// How long one more request is waited for at a shutdown, which may be under way, and whose answer says that the connection
/// ends.
const LAST_REQUEST_MAX: Duration = Duration::from_secs(1);

/// Serves connections until `shutdown`; then closes the listener and streams, finishes what is at work or comes on an open
/// connection yet within a bound, and returns. Connections that do not end in time are dropped.
pub async fn serve(listener: TcpListener, app: App, shutdown: CancellationToken) {
    let builder = Arc::new(builder());
    let tasks = TaskTracker::new();
    let abort = CancellationToken::new();
    let take = |stream: TcpStream, peer: SocketAddr| {
        let Some(permit) = app.admit_connection(peer.ip()) else { return };
        let is_kept = app.is_kept_for_nodes(&permit);
        let connection = Connection { app: app.clone(), permit, peer, activity: Arc::default() };
        let (builder, shutdown, abort) = (builder.clone(), shutdown.clone(), abort.clone());
        if is_kept {
            tasks.spawn(connection.run_if_nodes(stream, builder, shutdown, abort));
        } else {
            tasks.spawn(connection.run(stream, builder, shutdown, abort));
        }
    };
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = shutdown.cancelled() => break,
        };
        match accepted {
            Ok((stream, peer)) => take(stream, peer),
            Err(error) if is_peers_fault(&error) => {}
            Err(error) => {
                tracing::warn!(event = "accept_failed", %error);
                tokio::time::sleep(ACCEPT_RETRY).await;
            }
        }
    }
    for (stream, peer) in close(listener) {
        take(stream, peer);
    }
    app.close();
    tasks.close();
    let finished = async { tokio::join!(tasks.wait(), app.streams_ended()) };
    if timeout(app.limits().finish, finished).await.is_err() {
        tracing::warn!(event = "connections_dropped", connections = tasks.len());
        abort.cancel();
        tasks.wait().await;
    }
    // Last, since the requests at work may still need them.
    app.close_door().await;
}

/// Closes a listener; those who had connected, and were not accepted yet, would be cut off by that.
fn close(listener: TcpListener) -> Vec<(TcpStream, SocketAddr)> {
    // Accepting through the runtime would miss whoever it has not heard of yet.
    let Ok(listener) = listener.into_std() else { return Vec::new() };
    let accepted = std::iter::from_fn(|| listener.accept().ok());
    let made_ready = accepted.filter_map(|(stream, peer)| {
        stream.set_nonblocking(true).ok()?;
        Some((TcpStream::from_std(stream).ok()?, peer))
    });
    made_ready.collect()
}

fn builder() -> auto::Builder<Answering> {
    let mut builder = auto::Builder::new(Answering);
    builder.http1().max_buf_size(HTTP1_BUFFER_BYTES).half_close(false);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(HTTP2_PING_EVERY)
        .keep_alive_timeout(HTTP2_PING_TIMEOUT)
        .max_header_list_size(HTTP2_HEADERS_BYTES)
        .max_concurrent_streams(HTTP2_STREAMS_MAX)
        .initial_stream_window_size(HTTP2_STREAM_WINDOW_BYTES)
        .initial_connection_window_size(HTTP2_CONNECTION_WINDOW_BYTES)
        .max_send_buf_size(HTTP2_SEND_BUFFER_BYTES);
    builder
}

/// Errors of accept that concern only the connection that was about to be accepted.
fn is_peers_fault(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted)
}

struct Connection {
    app: App,
    permit: ConnectionPermit,
    peer: SocketAddr,
    activity: Arc<Activity>,
}

/// Why a connection ends without an answer.
#[derive(Debug, thiserror::Error)]
#[error("this place is kept for other nodes")]
struct KeptForNodes;

impl Connection {
    /// Refuses the connection unless it soon shows to be that of another node.
    async fn run_if_nodes(
        self,
        stream: TcpStream,
        builder: Arc<auto::Builder<Answering>>,
        shutdown: CancellationToken,
        abort: CancellationToken,
    ) {
        let (activity, refused) =
            (self.activity.clone(), self.app.metrics().connections_refused_total.clone());
        // Once it is upgraded it goes on elsewhere.
        let _ = timeout(NODE_SHOWS_MAX, self.run(stream, builder, shutdown, abort)).await;
        if !activity.is_upgraded() {
            refused.inc();
        }
    }

    async fn run(
        self,
        stream: TcpStream,
        builder: Arc<auto::Builder<Answering>>,
        shutdown: CancellationToken,
        abort: CancellationToken,
    ) {
        set_options(&stream);
        let Some(acceptor) = self.app.tls().cloned() else {
            return self.speak(stream, builder, shutdown, abort).await;
        };
        let shaking = timeout(self.app.limits().patience.head, acceptor.accept(stream));
        let shaken = tokio::select! {
            shaken = shaking => shaken,
            () = at_last(&shutdown) => return,
        };
        match shaken {
            Ok(Ok(stream)) => Box::pin(self.speak(stream, builder, shutdown, abort)).await,
            Ok(Err(error)) => tracing::debug!(event = "tls_handshake_failed", peer = %self.peer, %error),
            Err(_) => tracing::debug!(event = "tls_handshake_timed_out", peer = %self.peer),
        }
    }

    /// HTTP over a connection that is ready for it.
    async fn speak<IO>(
        self,
        stream: IO,
        builder: Arc<auto::Builder<Answering>>,
        shutdown: CancellationToken,
        abort: CancellationToken,
    ) where
        IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let Connection { app, permit, peer, activity } = self;
        let permit = Arc::new(permit);
        let (patience, metrics) = (app.limits().patience, app.metrics().clone());
        let service = service_fn({
            let activity = activity.clone();
            let permit = permit.clone();
            move |request: Request<Incoming>| {
                answer(app.clone(), request, peer, activity.clone(), permit.clone())
            }
        });
        let io = TokioIo::new(Watched::new(stream, activity, patience, metrics));
        let connection = builder.serve_connection_with_upgrades(io, service);
        tokio::pin!(connection);
        tokio::select! {
            // How a connection ended is its peer's business.
            _ = connection.as_mut() => return,
            () = shutdown.cancelled() => {}
        }
        let finish = async {
            if timeout(LAST_REQUEST_MAX, connection.as_mut()).await.is_err() {
                connection.as_mut().graceful_shutdown();
                let _ = connection.await;
            }
        };
        tokio::select! {
            () = finish => {}
            () = abort.cancelled() => {}
        }
    }
}

/// A connection that has ended meanwhile has no options to set, and shows that soon enough.
fn set_options(stream: &TcpStream) {
    // Answers are written whole: waiting for more to send would only delay them.
    let _ = stream.set_nodelay(true);
    let _ = set_tcp_user_timeout(stream, UNACKNOWLEDGED_MAX_MS);
}

/// Returns when a request is no longer waited for at a shutdown.
async fn at_last(shutdown: &CancellationToken) {
    shutdown.cancelled().await;
    tokio::time::sleep(LAST_REQUEST_MAX).await;
}

async fn answer(
    app: App,
    request: Request<Incoming>,
    peer: SocketAddr,
    activity: Arc<Activity>,
    permit: Arc<ConnectionPermit>,
) -> Result<Response, KeptForNodes> {
    let running = activity.begin();
    if request.uri().path() == PEER_PATH {
        // The upgraded connection outlives the connection's task, and counts as any other until it is a node's.
        let response = app.enter(request, peer, permit);
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            activity.set_upgraded();
        }
        return Ok(response);
    }
    if app.is_kept_for_nodes(&permit) {
        return Err(KeptForNodes);
    }
    let mut request = request.map(Body::new);
    let upgradable = request.headers().contains_key(http::header::UPGRADE);
    if upgradable {
        // An upgraded connection outlives the connection's task, and still counts.
        request.extensions_mut().insert(permit);
    }
    let is_http1 = request.version() <= Version::HTTP_11;
    let mut response = app.call(request, Some(peer)).await;
    if is_http1 && app.is_leaving() {
        // A client that is told closes the connection itself, and no request of it meets a closed one. HTTP/2 tells
        // it by GOAWAY.
        response.headers_mut().entry(CONNECTION).or_insert(HeaderValue::from_static("close"));
    }
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        activity.set_upgraded();
    }
    let number = running.number;
    if response.body().size_hint().exact().is_none() {
        // A streamed body: its request is at work until the body ends.
        let hold = move |frame| {
            let _running = &running;
            frame
        };
        response = response.map(|body| Body::new(body.map_frame(hold)));
    }
    if !is_http1 {
        response = response.map(|body| in_pieces(body, activity, number));
    }
    Ok(response)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_connection_does_not_wait_long_for_a_peer_that_is_gone() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let stream = TcpStream::connect(listener.local_addr().expect("bound")).await.expect("connected");
        set_options(&stream);
        let timeout_ms = rustix::net::sockopt::tcp_user_timeout(&stream).expect("an option");
        assert_eq!((timeout_ms, stream.nodelay().expect("an option")), (60_000, true));
    }
}
