//! The handshake over a websocket, for both sides: bounded in time, with every refusal told to the other side.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message as Socketed;
use tokio_util::sync::CancellationToken;

use super::handshake::{Accepting, Dialling, Failed, Proven, welcome};
use super::hello::{HANDSHAKE_BYTES_MAX, Hello, Message, Refusal};
use super::peers::Shared;
use super::{Lane, Remote};

/// Time to connect and to shake hands, each.
pub(crate) const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// Time to resolve an advertised name.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(1);

/// Why there is no connection.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum GreetError {
    #[error("refused here: {0}")]
    RefusedHere(Refusal),
    #[error("refused by the other side: {0}")]
    RefusedThere(Refusal),
    #[error("{0}")]
    Io(String),
}

impl From<Failed> for GreetError {
    fn from(failed: Failed) -> GreetError {
        match failed {
            Failed::Here(refusal) => GreetError::RefusedHere(refusal),
            Failed::There(refusal) => GreetError::RefusedThere(refusal),
        }
    }
}

impl GreetError {
    pub(crate) fn refusal(&self) -> Option<&Refusal> {
        match self {
            GreetError::RefusedHere(refusal) | GreetError::RefusedThere(refusal) => Some(refusal),
            GreetError::Io(_) => None,
        }
    }
}

/// A peer that is let in; it counts as connected until this is dropped.
pub(crate) struct Greeted {
    pub(crate) proven: Proven,
    /// Ends the connection once another process of the node took its place.
    pub(crate) stop: CancellationToken,
    shared: Arc<Shared>,
}

impl Drop for Greeted {
    fn drop(&mut self) {
        let hello = &self.proven.hello;
        self.shared.roster.lock().release(hello.node_id, hello.instance);
    }
}

impl Greeted {
    fn admit(shared: &Arc<Shared>, proven: Proven) -> Result<Greeted, Failed> {
        let stop = shared.roster.lock().admit(&proven.hello).map_err(Failed::Here)?;
        Ok(Greeted { proven, stop, shared: shared.clone() })
    }

    /// Who this is, seen at `seen`: what it advertises, if that resolves, else where it is seen.
    pub(crate) async fn remote(&self, seen: SocketAddr) -> Remote {
        let Proven { hello, protocol } = &self.proven;
        let advertised = match &hello.advertised {
            Some(name) => resolve(name).await,
            None => None,
        };
        Remote {
            node_id: hello.node_id,
            name: hello.name.clone(),
            incarnation: hello.incarnation,
            cluster: hello.cluster,
            address: advertised.unwrap_or(seen),
            protocols: (hello.protocol_min, hello.protocol_max),
            protocol: *protocol,
        }
    }
}

async fn resolve(name: &str) -> Option<SocketAddr> {
    if let Ok(address) = name.parse() {
        return Some(address);
    }
    let found = tokio::time::timeout(RESOLVE_TIMEOUT, tokio::net::lookup_host(name)).await;
    match found {
        Ok(Ok(mut addresses)) => addresses.next(),
        _ => None,
    }
}

/// Shakes hands as the side that dialled.
pub(crate) async fn dialled<IO: AsyncRead + AsyncWrite + Unpin>(
    shared: &Arc<Shared>,
    socket: &mut WebSocketStream<IO>,
    lane: Lane,
) -> Result<Greeted, GreetError> {
    let (dialling, first) = Dialling::start(shared.settings.secrets.clone(), own_hello(shared, lane));
    let shaking = async {
        send(socket, first).await?;
        let challenge = receive(socket).await?;
        let (greeted, proof) = match dialling.on_challenge(&challenge) {
            Ok((proven, proof)) => (Greeted::admit(shared, proven), proof),
            Err(failed) => (Err(failed), Vec::new()),
        };
        let greeted = or_tell(socket, greeted).await?;
        send(socket, proof).await?;
        let verdict = receive(socket).await?;
        or_tell(socket, Dialling::on_verdict(&verdict)).await?;
        Ok(greeted)
    };
    bounded(shaking).await
}

/// Shakes hands as the side that was dialled.
pub(crate) async fn accepted<IO: AsyncRead + AsyncWrite + Unpin>(
    shared: &Arc<Shared>,
    socket: &mut WebSocketStream<IO>,
) -> Result<Greeted, GreetError> {
    let shaking = async {
        let hello = receive(socket).await?;
        let own = own_hello(shared, Lane::Control);
        let answered = Accepting::on_hello(shared.settings.secrets.clone(), own, &hello);
        let (accepting, challenge) = or_tell(socket, answered).await?;
        send(socket, challenge).await?;
        let proof = receive(socket).await?;
        let greeted = accepting.on_proof(&proof).and_then(|proven| Greeted::admit(shared, proven));
        let greeted = or_tell(socket, greeted).await?;
        send(socket, welcome()).await?;
        Ok(greeted)
    };
    bounded(shaking).await
}

async fn bounded<T>(shaking: impl Future<Output = Result<T, GreetError>>) -> Result<T, GreetError> {
    let late = |_| GreetError::Io("no handshake in time".to_owned());
    tokio::time::timeout(HANDSHAKE_TIMEOUT, shaking).await.map_err(late)?
}

fn own_hello(shared: &Shared, lane: Lane) -> Hello {
    let settings = &shared.settings;
    let mut nonce = [0; 32];
    getrandom::fill(&mut nonce).expect("the system has random numbers");
    Hello {
        protocol_min: settings.protocols.0,
        protocol_max: settings.protocols.1,
        lane,
        node_id: settings.node_id,
        instance: shared.instance,
        incarnation: settings.incarnation,
        cluster: shared.roster.lock().cluster(),
        port: settings.listen_port,
        body_bytes_max: settings.body_bytes_max,
        nonce,
        name: settings.name.clone(),
        advertised: settings.advertise.clone(),
        keys: settings.secrets.ids(),
        marks: shared.marks.lock().clone(),
    }
}

/// Passes a success on; tells the other side of a refusal that was made here.
async fn or_tell<IO: AsyncRead + AsyncWrite + Unpin, T>(
    socket: &mut WebSocketStream<IO>,
    result: Result<T, Failed>,
) -> Result<T, GreetError> {
    if let Err(Failed::Here(refusal)) = &result {
        // If it cannot be told it has gone, which comes to the same.
        let _ = send(socket, Message::Refusal(refusal.clone()).encode()).await;
        let _ = socket.close(None).await;
    }
    Ok(result?)
}

async fn send<IO: AsyncRead + AsyncWrite + Unpin>(
    socket: &mut WebSocketStream<IO>,
    message: Vec<u8>,
) -> Result<(), GreetError> {
    let sent = socket.send(Socketed::Binary(Bytes::from(message))).await;
    sent.map_err(|error| GreetError::Io(error.to_string()))
}

async fn receive<IO: AsyncRead + AsyncWrite + Unpin>(
    socket: &mut WebSocketStream<IO>,
) -> Result<Bytes, GreetError> {
    loop {
        match socket.next().await {
            Some(Ok(Socketed::Binary(bytes))) if bytes.len() <= HANDSHAKE_BYTES_MAX => return Ok(bytes),
            Some(Ok(Socketed::Ping(_) | Socketed::Pong(_))) => {}
            Some(Ok(Socketed::Close(_))) | None => {
                return Err(GreetError::Io("closed during the handshake".to_owned()));
            }
            Some(Ok(_)) => return Err(GreetError::Io("no message of a handshake".to_owned())),
            Some(Err(error)) => return Err(GreetError::Io(error.to_string())),
        }
    }
}
