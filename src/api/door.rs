//! Where connections of other nodes leave HTTP: checks the upgrade, answers it, and hands the connection on.
//!
//! Who is inside, and what is spoken there, the edge does not know; it only bounds how many get in. They prove who they
//! are by a handshake of their own, so no API key is asked for; until then anybody may be there, and a connection counts
//! among those of clients, too. Not part of the API document.

use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};

use axum::body::Body;
use axum::response::Response;
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, Version, header};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::sync::Semaphore;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::error::ApiError;
use super::limits::{ConnectionCaps, ConnectionPermit};

/// The path of the upgrade. It belongs to the protocol between nodes.
pub const PEER_PATH: &str = "/internal/peer/v1";

/// Connections of other nodes at once: three for each of them, and room for those that have yet to prove who they are.
const CONNECTIONS_MAX: usize = 512;
/// Connections that have yet to prove it: the rest is left to nodes.
const UNPROVEN_MAX: usize = 256;
/// Those from one address, so that others get in whatever one does.
const UNPROVEN_PER_ADDRESS_MAX: usize = UNPROVEN_MAX / 8;

/// An upgraded connection, behind TLS if there is any.
pub type PeerIo = TokioIo<Upgraded>;

/// Runs connections of other nodes.
pub trait PeerDoor: Send + Sync + 'static {
    /// Runs one to its end. Dropping the future ends it. `unproven` is to be dropped once the other side has proven to be
    /// a node.
    fn enter(
        &self,
        io: PeerIo,
        from: SocketAddr,
        unproven: Unproven,
    ) -> Pin<Box<dyn Future<Output = ()> + Send>>;
}

/// What a connection takes up until the other side has proven to be a node.
pub struct Unproven {
    _here: ConnectionPermit,
    /// Its place among all connections of the listener.
    _connection: Arc<ConnectionPermit>,
}

pub(crate) struct Door {
    inside: OnceLock<Arc<dyn PeerDoor>>,
    slots: Arc<Semaphore>,
    unproven: Arc<ConnectionCaps>,
    open: TaskTracker,
    closing: CancellationToken,
}

impl Door {
    pub(crate) fn new() -> Door {
        Door {
            inside: OnceLock::new(),
            slots: Arc::new(Semaphore::new(CONNECTIONS_MAX)),
            unproven: ConnectionCaps::new(UNPROVEN_MAX, UNPROVEN_PER_ADDRESS_MAX, None),
            open: TaskTracker::new(),
            closing: CancellationToken::new(),
        }
    }

    /// Only the first call counts.
    pub(crate) fn lead_to(&self, inside: Arc<dyn PeerDoor>) {
        let _ = self.inside.set(inside);
    }

    /// Answers a request for [`PEER_PATH`].
    pub(crate) fn answer<B: Send + 'static>(
        &self,
        request: Request<B>,
        from: SocketAddr,
        connection: Arc<ConnectionPermit>,
    ) -> Result<Response, ApiError> {
        let accept = accept_key(&request)
            .ok_or_else(|| ApiError::InvalidRequest("Not a websocket handshake over HTTP/1.1".into()))?;
        let closed = || ApiError::Unavailable("this node takes no connections of other nodes now".into());
        let inside = self.inside.get().filter(|_| !self.closing.is_cancelled()).ok_or_else(closed)?.clone();
        let here = self.unproven.admit(from.ip()).ok_or_else(closed)?;
        let slot = self.slots.clone().try_acquire_owned().map_err(|_| closed())?;
        let unproven = Unproven { _here: here, _connection: connection };
        let (upgrade, closing) = (hyper::upgrade::on(request), self.closing.clone());
        self.open.spawn(async move {
            let _slot = slot;
            let running = async {
                if let Ok(upgraded) = upgrade.await {
                    inside.enter(TokioIo::new(upgraded), from, unproven).await;
                }
            };
            tokio::select! {
                () = running => {}
                () = closing.cancelled() => {}
            }
        });
        Ok(switching(accept))
    }

    /// Ends all connections.
    pub(crate) async fn close(&self) {
        self.closing.cancel();
        self.open.close();
        self.open.wait().await;
    }
}

fn switching(accept: HeaderValue) -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
    response
}

/// The answer to a websocket handshake (RFC 6455, 4.2); `None` for any other request.
fn accept_key<B>(request: &Request<B>) -> Option<HeaderValue> {
    let headers = request.headers();
    let is_upgrade = request.method() == Method::GET
        && request.version() == Version::HTTP_11
        && lists(headers, header::CONNECTION, "upgrade")
        && lists(headers, header::UPGRADE, "websocket")
        && headers.get(header::SEC_WEBSOCKET_VERSION).is_some_and(|version| version == "13");
    let key = headers.get(header::SEC_WEBSOCKET_KEY).filter(|_| is_upgrade)?;
    HeaderValue::from_str(&derive_accept_key(key.as_bytes())).ok()
}

/// Whether a comma-separated header has this member.
fn lists(headers: &HeaderMap, name: header::HeaderName, member: &str) -> bool {
    let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).any(|item| item.trim().eq_ignore_ascii_case(member))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(change: impl FnOnce(&mut Request<()>)) -> Request<()> {
        let mut request = Request::builder()
            .uri(PEER_PATH)
            .header("connection", "keep-alive, Upgrade")
            .header("upgrade", "WebSocket")
            .header("sec-websocket-version", "13")
            .header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==")
            .body(())
            .expect("a request");
        change(&mut request);
        request
    }

    #[test]
    fn only_a_websocket_handshake_gets_a_key() {
        let expected = HeaderValue::from_static("s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        assert_eq!(accept_key(&request(|_| {})), Some(expected), "the example of RFC 6455");
        let changes: [fn(&mut Request<()>); 4] = [
            |request| *request.method_mut() = Method::POST,
            |request| *request.version_mut() = Version::HTTP_2,
            |request| drop(request.headers_mut().remove("upgrade")),
            |request| drop(request.headers_mut().remove("sec-websocket-key")),
        ];
        for change in changes {
            assert_eq!(accept_key(&request(change)), None);
        }
    }

    /// Passes every connection on.
    struct Inside(tokio::sync::mpsc::UnboundedSender<(PeerIo, SocketAddr, Unproven)>);

    impl PeerDoor for Inside {
        fn enter(
            &self,
            io: PeerIo,
            from: SocketAddr,
            unproven: Unproven,
        ) -> Pin<Box<dyn Future<Output = ()> + Send>> {
            self.0.send((io, from, unproven)).expect("somebody waits for it");
            Box::pin(std::future::pending())
        }
    }

    /// The place of one connection among all.
    fn connection() -> (Arc<ConnectionCaps>, Arc<ConnectionPermit>) {
        let caps = ConnectionCaps::new(1, 1, None);
        let permit = caps.admit([127, 0, 0, 1].into()).expect("room");
        (caps, Arc::new(permit))
    }

    /// One connection that is served by the door alone; the client's end.
    async fn served(door: &Arc<Door>) -> (tokio::net::TcpStream, SocketAddr) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        let (client, accepted) = tokio::join!(tokio::net::TcpStream::connect(address), listener.accept());
        let ((stream, from), door) = (accepted.expect("accepted"), door.clone());
        let service = hyper::service::service_fn(move |request| {
            let answer = door.answer(request, from, connection().1);
            let response = answer.unwrap_or_else(axum::response::IntoResponse::into_response);
            std::future::ready(Ok::<_, std::convert::Infallible>(response))
        });
        tokio::spawn(async move {
            let http = hyper::server::conn::http1::Builder::new();
            let _ = http.serve_connection(TokioIo::new(stream), service).with_upgrades().await;
        });
        (client.expect("connected"), address)
    }

    #[tokio::test]
    async fn an_upgraded_connection_goes_inside_and_ends_with_the_door() {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let door = Arc::new(Door::new());
        let (stream, address) = served(&door).await;
        let url = format!("ws://{address}{PEER_PATH}");
        let early = tokio_tungstenite::client_async(&url, stream).await;
        assert!(early.expect_err("nobody inside yet").to_string().contains("503"));

        let (entered, mut inside) = tokio::sync::mpsc::unbounded_channel();
        door.lead_to(Arc::new(Inside(entered)));
        let (stream, address) = served(&door).await;
        let client_address = stream.local_addr().expect("connected");
        let url = format!("ws://{address}{PEER_PATH}");
        let (client, _) = tokio_tungstenite::client_async(&url, stream).await.expect("upgraded");
        let (mut io, from, _unproven) = inside.recv().await.expect("entered");
        assert_eq!(from, client_address);
        let mut stream = client.into_inner();
        stream.write_all(b"hi").await.expect("connected");
        let mut bytes = [0; 2];
        io.read_exact(&mut bytes).await.expect("connected");
        assert_eq!(&bytes, b"hi");

        door.close().await;
        let (stream, address) = served(&door).await;
        let url = format!("ws://{address}{PEER_PATH}");
        assert!(tokio_tungstenite::client_async(&url, stream).await.is_err(), "closed");
    }

    #[tokio::test]
    async fn one_address_cannot_keep_others_out() {
        let door = Door::new();
        door.lead_to(Arc::new(Inside(tokio::sync::mpsc::unbounded_channel().0)));
        let knock = |from: [u8; 4]| door.answer(request(|_| {}), (from, 1).into(), connection().1).is_ok();
        let entered = (0..CONNECTIONS_MAX).filter(|_| knock([10, 0, 0, 1])).count();
        assert_eq!(entered, UNPROVEN_PER_ADDRESS_MAX);
        assert!(knock([10, 0, 0, 2]), "another address");
    }

    #[tokio::test]
    async fn a_connection_counts_among_all_until_it_has_proven_itself() {
        let door = Arc::new(Door::new());
        let (entered, mut inside) = tokio::sync::mpsc::unbounded_channel();
        door.lead_to(Arc::new(Inside(entered)));
        let (caps, permit) = connection();
        let permit = std::sync::Mutex::new(Some(permit));
        let (client, server) = tokio::io::duplex(4 << 10);
        let serving = door.clone();
        let service = hyper::service::service_fn(move |request| {
            let permit = permit.lock().expect("one thread").take().expect("one request");
            let answer = serving.answer(request, ([127, 0, 0, 1], 1).into(), permit);
            let response = answer.unwrap_or_else(axum::response::IntoResponse::into_response);
            std::future::ready(Ok::<_, std::convert::Infallible>(response))
        });
        let http = hyper::server::conn::http1::Builder::new();
        let serving = http.serve_connection(TokioIo::new(server), service).with_upgrades();
        let url = format!("ws://x{PEER_PATH}");
        let (served, upgraded) = tokio::join!(serving, tokio_tungstenite::client_async(&url, client));
        served.expect("upgraded");
        let _client = upgraded.expect("upgraded");
        let (_io, _, unproven) = inside.recv().await.expect("entered");
        assert!(caps.admit([127, 0, 0, 1].into()).is_none(), "it has its place yet");
        drop(unproven);
        assert!(caps.admit([127, 0, 0, 1].into()).is_some());
        assert_eq!(door.slots.available_permits(), CONNECTIONS_MAX - 1);
    }
}
