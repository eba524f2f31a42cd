//! Where connections of other nodes leave HTTP: checks the upgrade, answers it, and hands the connection on.
//!
//! Who is inside, and what is spoken there, the edge does not know; it only bounds how many get in. They prove who they
//! are by a handshake of their own, so no API key is asked for. Not part of the API document.

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

/// The path of the upgrade. It belongs to the protocol between nodes.
pub const PEER_PATH: &str = "/internal/peer/v1";

/// Connections of other nodes at once: three for each of them, and room for as many that still prove who they are.
const CONNECTIONS_MAX: usize = 512;

/// An upgraded connection, behind TLS if there is any.
pub type PeerIo = TokioIo<Upgraded>;

/// Runs connections of other nodes.
pub trait PeerDoor: Send + Sync + 'static {
    /// Runs one to its end. Dropping the future ends it.
    fn enter(&self, io: PeerIo, from: SocketAddr) -> Pin<Box<dyn Future<Output = ()> + Send>>;
}

pub(crate) struct Door {
    inside: OnceLock<Arc<dyn PeerDoor>>,
    slots: Arc<Semaphore>,
    open: TaskTracker,
    closing: CancellationToken,
}

impl Door {
    pub(crate) fn new() -> Door {
        Door {
            inside: OnceLock::new(),
            slots: Arc::new(Semaphore::new(CONNECTIONS_MAX)),
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
    ) -> Result<Response, ApiError> {
        let accept = accept_key(&request)
            .ok_or_else(|| ApiError::InvalidRequest("Not a websocket handshake over HTTP/1.1".into()))?;
        let closed = || ApiError::Unavailable("this node takes no connections of other nodes now".into());
        let inside = self.inside.get().filter(|_| !self.closing.is_cancelled()).ok_or_else(closed)?.clone();
        let slot = self.slots.clone().try_acquire_owned().map_err(|_| closed())?;
        let (upgrade, closing) = (hyper::upgrade::on(request), self.closing.clone());
        self.open.spawn(async move {
            let _slot = slot;
            let running = async {
                if let Ok(upgraded) = upgrade.await {
                    inside.enter(TokioIo::new(upgraded), from).await;
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
}
