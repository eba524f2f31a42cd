//! What happens around every handler: request id, authentication, admission, panics, errors, compression, the log line.

use std::net::{IpAddr, SocketAddr};
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use futures_util::FutureExt;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::{TaskTracker, task_tracker::TaskTrackerToken};
use tower::ServiceExt;

use super::admission::{Admission, Answers, hold_until_sent};
use super::auth::Keys;
use super::body::{Bodies, Received, Unread};
use super::compress::compress;
use super::console;
use super::dialect::Dialect;
use super::door::{Door, PeerDoor};
use super::error::{ApiError, render};
use super::limits::{
    ConnectionCaps, ConnectionPermit, KEPT_FOR_NODES, KEPT_PER_ADDRESS_MAX, Limits, RateLimit,
};
use super::weigh::Scales;
use super::window_cache::WindowCache;
use crate::config::{Config, Secret};
use crate::metrics::Metrics;
use crate::shards::{ClusterControl, Shards};
use crate::tokens::Estimator;
use crate::trace::{self, Span};

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Requests of operators at once: they have places of their own, so that a node can be looked at, and be drained, however
/// many requests of clients it has. What is answered without a key has as many apart from these.
const OPERATORS_MAX: usize = 32;
/// Longest request id taken from a client.
const REQUEST_ID_BYTES_MAX: usize = 64;

/// The edge of one node: answers requests. Cheap to clone.
#[derive(Clone)]
pub struct App(Arc<Inner>);

struct Inner {
    app: Arc<AppState>,
    router: Router,
    keys: Keys,
    rate: Option<RateLimit>,
    in_flight: Arc<Semaphore>,
    operators: Arc<Semaphore>,
    without_key: Arc<Semaphore>,
    answers: Answers,
    connections: Arc<ConnectionCaps>,
    kept_for_nodes: Arc<ConnectionCaps>,
    ids: RequestIds,
    door: Door,
    tls: OnceLock<TlsAcceptor>,
}

/// What handlers work with.
pub(crate) struct AppState {
    pub shards: Shards,
    /// Set once the node has recovered.
    pub control: OnceLock<Arc<dyn ClusterControl>>,
    pub scales: Scales,
    pub config: Arc<Config>,
    pub metrics: Metrics,
    pub windows: WindowCache,
    pub limits: Limits,
    /// Cancelled when the node shuts down: streams end, long polls answer.
    pub closing: CancellationToken,
    bodies: Bodies,
    streams: Arc<Semaphore>,
    streams_open: TaskTracker,
}

/// What a handler sees: the node, and the words to use.
#[derive(Clone)]
pub(crate) struct Scope {
    pub app: Arc<AppState>,
    pub dialect: Dialect,
}

impl Scope {
    /// Receives a JSON body of ordinary size.
    pub(crate) async fn receive(&self, headers: &HeaderMap, body: Body) -> Result<Received, ApiError> {
        self.app.bodies.receive(headers, body, self.app.limits.body_bytes).await
    }

    /// Receives a JSON body that may carry a batch.
    pub(crate) async fn receive_batch(&self, headers: &HeaderMap, body: Body) -> Result<Received, ApiError> {
        self.app.bodies.receive(headers, body, self.app.limits.batch_bytes).await
    }

    /// Receives a piece of a conversation that is restored, in whatever media type.
    pub(crate) async fn receive_piece(&self, headers: &HeaderMap, body: Body) -> Result<Received, ApiError> {
        self.app.bodies.receive_any(headers, body, self.app.limits.piece_bytes).await
    }
}

/// The right to one of the node's streams; exports and long polls take one too, since they last as long.
pub(crate) struct StreamPermit {
    _permit: OwnedSemaphorePermit,
    _open: TaskTrackerToken,
    metrics: Metrics,
}

impl StreamPermit {
    pub(crate) fn take(app: &AppState) -> Result<StreamPermit, ApiError> {
        let limit = app.limits.streams;
        let permit =
            app.streams.clone().try_acquire_owned().map_err(|_| ApiError::TooManyStreams { limit })?;
        app.metrics.streams.inc();
        Ok(StreamPermit { _permit: permit, _open: app.streams_open.token(), metrics: app.metrics.clone() })
    }
}

impl Drop for StreamPermit {
    fn drop(&mut self) {
        self.metrics.streams.dec();
    }
}

impl App {
    /// Whether the node is about to stop: clients should take their next requests elsewhere.
    pub(super) fn is_leaving(&self) -> bool {
        self.0.app.shards.is_leaving()
    }

    pub fn new(shards: Shards, estimator: Estimator, config: Arc<Config>, metrics: Metrics) -> App {
        let limits = Limits::of(&config);
        metrics.connection_limit.set(limits.connections as i64);
        metrics.stream_limit.set(limits.streams as i64);
        let app = Arc::new(AppState {
            shards,
            control: OnceLock::new(),
            windows: WindowCache::new(config.window_cache_bytes),
            scales: Scales::new(estimator, metrics.clone()),
            metrics,
            closing: CancellationToken::new(),
            bodies: Bodies::new(config.body_timeout, limits.piece_bytes),
            streams: Arc::new(Semaphore::new(limits.streams)),
            streams_open: TaskTracker::new(),
            limits,
            config: config.clone(),
        });
        App(Arc::new(Inner {
            router: super::router(&app),
            keys: Keys::new(config.api_keys.iter().map(Secret::expose)),
            rate: limits.rate.map(|(per_second, burst)| RateLimit::new(per_second, burst)),
            in_flight: Arc::new(Semaphore::new(limits.in_flight)),
            operators: Arc::new(Semaphore::new(OPERATORS_MAX)),
            without_key: Arc::new(Semaphore::new(OPERATORS_MAX)),
            answers: Answers::new(),
            connections: ConnectionCaps::new(
                limits.connections,
                limits.connections_per_address,
                Some(app.metrics.connections.clone()),
            ),
            kept_for_nodes: ConnectionCaps::new(KEPT_FOR_NODES, KEPT_PER_ADDRESS_MAX, None),
            ids: RequestIds::new(),
            door: Door::new(),
            tls: OnceLock::new(),
            app,
        }))
    }

    /// Answers one request. Never fails: whatever goes wrong becomes an answer.
    pub(crate) async fn call(&self, request: Request, peer: Option<SocketAddr>) -> Response {
        let inner = &*self.0;
        let started = Instant::now();
        let uri = request.uri().clone();
        let method = request.method().clone();
        let request_id = inner.ids.of(request.headers());
        let accepted_encoding = request.headers().get(header::ACCEPT_ENCODING).cloned();
        let metrics = &inner.app.metrics;
        let mut span = begin_span(&request);
        let (request, unread) = Unread::of(request);
        let (mut response, mut admission) = match inner.admit(&request) {
            Ok(admission) => (trace::within(span.as_ref(), inner.handle(request)).await, Some(admission)),
            Err(refusal) => {
                drop(request);
                (refusal.into_response(), None)
            }
        };
        // What a write did is told in any case, and in few words; so is how the node fares.
        let needs_room = method == Method::GET && !is_operators(uri.path());
        if let Some(admission) = admission.as_mut().filter(|_| needs_room) {
            match inner.answers.make_room(&response) {
                Ok(memory) => admission.memory = memory,
                Err(refusal) => {
                    metrics.overloaded_total.inc();
                    response = refusal.into_response();
                }
            }
        }
        if let Some(error) = render(&mut response, Dialect::of_path(uri.path()), &request_id) {
            log_error(&error, &uri, &request_id);
        }
        if is_refusal(response.status()) && unread.is_left() {
            // It is no request at work any more.
            drop(admission.take());
            unread.discard(response.status()).await;
        }
        if let Some(admission) = admission.filter(Admission::is_scarce) {
            response = hold_until_sent(response, admission);
        }
        if let Some(accepted) = &accepted_encoding {
            response = compress(response, accepted).await;
        }
        let status = response.status().as_u16();
        if !is_health(uri.path()) {
            metrics.requests(status);
        }
        if let Some(span) = &mut span {
            describe(span, &method, uri.path(), status, &request_id);
        }
        let peer = peer.map(tracing::field::display);
        let ms = started.elapsed().as_secs_f64() * 1_000.0;
        let conversation_id = conversation_in(uri.path());
        tracing::debug!(event = "request", %method, path = uri.path(), conversation_id, status, ms, request_id, peer);
        if let Ok(id) = HeaderValue::try_from(request_id) {
            response.headers_mut().insert(REQUEST_ID, id);
        }
        response
    }

    /// Has the listener speak TLS only. To be called before it serves, if at all.
    pub fn set_tls(&self, acceptor: TlsAcceptor) {
        let _ = self.0.tls.set(acceptor);
    }

    pub(crate) fn tls(&self) -> Option<&TlsAcceptor> {
        self.0.tls.get()
    }

    /// Whom operators' requests about the cluster go to from now on; before, they are refused.
    pub fn set_cluster(&self, control: Arc<dyn ClusterControl>) {
        let _ = self.0.app.control.set(control);
    }

    /// Where connections of other nodes go from now on; before, they are refused.
    pub fn set_peer_door(&self, inside: Arc<dyn PeerDoor>) {
        self.0.door.lead_to(inside);
    }

    /// Answers the upgrade of another node, which needs no API key and is no request at work. `connection` is kept until
    /// the other side has proven to be a node.
    pub(crate) fn enter<B: Send + 'static>(
        &self,
        request: http::Request<B>,
        peer: SocketAddr,
        connection: Arc<ConnectionPermit>,
    ) -> Response {
        let request_id = self.0.ids.of(request.headers());
        let answer = self.0.door.answer(request, peer, connection);
        let mut response = answer.unwrap_or_else(IntoResponse::into_response);
        render(&mut response, Dialect::Conversations, &request_id);
        self.metrics().requests(response.status().as_u16());
        response
    }

    /// Ends the connections of other nodes.
    pub(crate) async fn close_door(&self) {
        self.0.door.close().await;
    }

    pub(crate) fn limits(&self) -> &Limits {
        &self.0.app.limits
    }

    pub(crate) fn metrics(&self) -> &Metrics {
        &self.0.app.metrics
    }

    /// A place among all connections, or one of those that are kept for other nodes.
    pub(crate) fn admit_connection(&self, address: IpAddr) -> Option<ConnectionPermit> {
        let permit = self.0.connections.admit(address).or_else(|| self.0.kept_for_nodes.admit(address));
        if permit.is_none() {
            self.metrics().connections_refused_total.inc();
        }
        permit
    }

    /// Whether a connection has its place only as that of another node.
    pub(crate) fn is_kept_for_nodes(&self, permit: &ConnectionPermit) -> bool {
        permit.is_of(&self.0.kept_for_nodes)
    }

    /// Ends streams and long polls, and turns unready.
    pub(crate) fn close(&self) {
        self.0.app.closing.cancel();
        self.0.app.streams_open.close();
    }

    /// Resolves once every stream has ended, after [`App::close`].
    pub(crate) async fn streams_ended(&self) {
        self.0.app.streams_open.wait().await;
    }
}

fn is_refusal(status: StatusCode) -> bool {
    status.is_client_error() || status.is_server_error()
}

/// Asked all the time by whoever looks after nodes: neither limited nor counted. A node that is not ready is no error.
fn is_health(path: &str) -> bool {
    path.starts_with("/health/")
}

/// What tells operators of the node and its cluster, or is told by them.
fn is_operators(path: &str) -> bool {
    path == "/metrics" || path == "/v1/cluster" || path.starts_with("/v1/cluster/") || console::is_asset(path)
}

impl Inner {
    /// Decides whether to serve a request, before anything of its body is read.
    fn admit(&self, request: &Request) -> Result<Admission, ApiError> {
        let uri = request.uri();
        let mut admission = Admission::counted_by(&self.app.metrics.http_inflight);
        if is_health(uri.path()) {
            return Ok(admission);
        }
        let is_public = self.is_public(uri.path());
        if !is_public {
            self.keys.authorize(request.headers())?;
        }
        let is_operators = is_operators(uri.path());
        if let Some(rate) = self.rate.as_ref().filter(|_| !is_operators)
            && let Err(wait) = rate.admit()
        {
            let retry_after_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
            self.app.metrics.rate_limited_total.inc();
            return Err(ApiError::RateLimited {
                message: "This node takes no more requests per second",
                retry_after_ms,
            });
        }
        if is_waiting(request.method(), uri) {
            return Ok(admission);
        }
        let places = if is_public {
            &self.without_key
        } else if is_operators {
            &self.operators
        } else {
            &self.in_flight
        };
        match places.clone().try_acquire_owned() {
            Ok(permit) => {
                admission.permit = Some(permit);
                Ok(admission)
            }
            Err(_) => {
                self.app.metrics.overloaded_total.inc();
                Err(ApiError::Unavailable("too many requests at once".into()))
            }
        }
    }

    /// Whether a path is answered without a key, health apart.
    fn is_public(&self, path: &str) -> bool {
        let config = &self.app.config;
        path == "/metrics" && config.metrics_public || config.console && console::is_asset(path)
    }

    async fn handle(&self, request: Request) -> Response {
        let answer = AssertUnwindSafe(self.router.clone().oneshot(request)).catch_unwind().await;
        match answer {
            Ok(Ok(response)) => response,
            Ok(Err(never)) => match never {},
            Err(panic) => ApiError::Internal(format!("panic: {}", panic_text(&panic))).into_response(),
        }
    }
}

/// What asks after the node itself is not traced.
fn begin_span(request: &Request) -> Option<Span> {
    if !request.uri().path().starts_with("/v1/") {
        return None;
    }
    let traceparent = request.headers().get("traceparent").and_then(|header| header.to_str().ok());
    trace::request(request.method().as_str(), traceparent)
}

/// In OpenTelemetry's words.
fn describe(span: &mut Span, method: &Method, path: &str, status: u16, request_id: &str) {
    span.set("http.request.method", method);
    span.set("url.path", path);
    span.set("http.response.status_code", status);
    span.set("fastpaca.request_id", request_id);
    if status >= 500 {
        span.fail();
    }
}

/// Requests that are meant to last are capped as streams, not as requests at work.
fn is_waiting(method: &Method, uri: &Uri) -> bool {
    let Some((dialect, _, route)) = conversation_route(uri.path()) else { return false };
    let waits = |query: &str| form_urlencoded::parse(query.as_bytes()).any(|(key, _)| key == "wait");
    let is_poll = || route == dialect.events() && uri.query().is_some_and(waits);
    method == Method::GET && (route == "stream" || is_poll())
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("of unknown kind")
}

/// The conversation a path is about, as it was sent: percent-encoded, and perhaps no valid id.
fn conversation_in(path: &str) -> Option<&str> {
    conversation_route(path).map(|(_, id, _)| id)
}

/// A path below a collection: its dialect, the conversation as it was sent, and what follows that.
fn conversation_route(path: &str) -> Option<(Dialect, &str, &str)> {
    let (resources, rest) = path.strip_prefix("/v1/")?.split_once('/')?;
    let dialect = Dialect::ALL.into_iter().find(|dialect| dialect.resources() == resources)?;
    let (id, route) = rest.split_once('/').unwrap_or((rest, ""));
    Some((dialect, id, route))
}

/// Logs what an operator should know; what is the client's doing is in the access log alone.
fn log_error(error: &ApiError, uri: &Uri, request_id: &str) {
    let conversation_id = conversation_in(uri.path());
    let error_code = error.code();
    match error {
        ApiError::Internal(detail) => {
            tracing::error!(event = "request_failed", conversation_id, request_id, error_code, detail);
        }
        ApiError::UnknownOutcome(detail) | ApiError::Unavailable(detail) => {
            tracing::warn!(event = "request_failed", conversation_id, request_id, error_code, detail);
        }
        _ => {}
    }
}

/// Ids for requests: the client's where it sends a decent one, else unique within the life of the process.
struct RequestIds {
    process: u32,
    next: AtomicU32,
}

impl RequestIds {
    fn new() -> RequestIds {
        RequestIds { process: uuid::Uuid::new_v4().as_u128() as u32, next: AtomicU32::new(0) }
    }

    fn of(&self, headers: &HeaderMap) -> String {
        let given = headers.get(REQUEST_ID).and_then(|value| value.to_str().ok());
        let is_decent = |id: &&str| {
            (1..=REQUEST_ID_BYTES_MAX).contains(&id.len())
                && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.:/+=@".contains(&byte))
        };
        match given.filter(is_decent) {
            Some(id) => id.to_owned(),
            None => format!("{:08x}-{:08x}", self.process, self.next.fetch_add(1, Ordering::Relaxed)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decent_request_ids_are_kept_and_others_replaced() {
        let ids = RequestIds::new();
        let of =
            |id: &'static str| ids.of(&HeaderMap::from_iter([(REQUEST_ID, HeaderValue::from_static(id))]));
        assert_eq!(of("abc-1.2:3"), "abc-1.2:3");
        for bad in ["", "a b", "a\"b", "{}", "x".repeat(65).leak()] {
            assert_eq!(of(bad).len(), 17, "{bad}");
        }
        assert_ne!(ids.of(&HeaderMap::new()), ids.of(&HeaderMap::new()));
    }

    #[test]
    fn the_conversation_of_a_path_is_found_for_the_log() {
        assert_eq!(conversation_in("/v1/conversations/a/events"), Some("a"));
        assert_eq!(conversation_in("/v1/contexts/a"), Some("a"));
        assert_eq!(conversation_in("/v1/conversations"), None);
        assert_eq!(conversation_in("/v1/cluster/drain"), None);
        assert_eq!(conversation_in("/health/live"), None);
    }

    #[test]
    fn lasting_requests_are_told_apart() {
        let waiting = |uri: &'static str| is_waiting(&Method::GET, &Uri::from_static(uri));
        for path in [
            "/v1/conversations/a/stream?cursor=1",
            "/v1/contexts/stream/stream",
            "/v1/conversations/a/events?cursor=1&wait=5",
            "/v1/contexts/a/messages?wait=5",
        ] {
            assert!(waiting(path), "{path}");
        }
        for path in [
            "/v1/conversations/a/events?cursor=1&await=5",
            "/v1/conversations/a/window?wait=1",
            "/v1/conversations/a/messages?wait=1",
            "/v1/conversations?wait=1",
            "/v1/conversations/stream",
            "/v1/conversations/stream/events",
            "/v1/conversations/a/events/stream",
            "/v1/cluster/stream",
        ] {
            assert!(!waiting(path), "{path}");
        }
        let append = Uri::from_static("/v1/conversations/a/events?wait=1");
        assert!(!is_waiting(&Method::POST, &append));
    }
}
