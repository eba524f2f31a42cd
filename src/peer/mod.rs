//! Links between nodes: authenticated, versioned connections that carry calls. Knows nothing of what the calls mean.
//!
//! Every node dials every other one, three websocket connections ("lanes") each way: requests go out on the dialled
//! connection and their answers come back on it, so neither side has to settle which connection is the right one.
//! Reading order: [`Peers`], `dial` and `serve` for the two sides, `handshake` and `roster` for who is let in, `frame`
//! and `outbox` for what is on a connection.
//!
//! What holds:
//! - Calls of one task on one lane, each polled first before the next, arrive in that order; the receiving service is
//!   entered in the order of arrival and runs undisturbed until its first wait, so it may settle an order there.
//!   Answers come in any order. Lanes do not wait for each other.
//! - [`CallError`] tells what certainly never reached the service from what may have.
//! - Everything queued is bounded, in bytes and in number; who does not read or answer loses the connection.
//!
//! Lacks on purpose: retries of calls, relaying through third nodes, compression, names (addresses come resolved).

mod caller;
mod connection;
mod dial;
mod frame;
mod greet;
mod handshake;
mod hello;
mod links;
mod outbox;
mod peers;
mod roster;
mod secrets;
mod serve;

use std::future::Future;
use std::net::SocketAddr;
use std::panic::resume_unwind;
use std::pin::Pin;

use bytes::Bytes;
use tokio::task::JoinHandle;

use crate::config::Config;
use crate::metrics::LANES;
use crate::tls::{Dialler, TlsError};

pub use hello::{KNOWS_TRIMS, PROTOCOLS};
pub use hello::{Reason, Refusal};
pub use links::{LinkInfo, LinkState};
pub use peers::Peers;
pub use secrets::Secrets;

/// Where the public port takes connections of peers.
pub const PATH: &str = "/internal/peer/v1";

/// What a body may be beyond the largest batch of messages: the entry around it.
const BODY_SLACK_BYTES: u64 = 8 << 20;

/// One of the three connections to a node. The numbers go over the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Lane {
    /// Small and urgent: heartbeats, votes, read indexes, membership.
    Control = 0,
    /// Log entries, forwarded reads and writes.
    Log = 1,
    /// Snapshots.
    Bulk = 2,
}

impl Lane {
    pub const ALL: [Lane; 3] = [Lane::Control, Lane::Log, Lane::Bulk];

    /// As in logs and metrics.
    pub(crate) fn label(self) -> &'static str {
        LANES[self as usize]
    }

    /// Most bytes that wait to be sent on one connection, in each direction.
    pub(crate) fn queue_bytes_max(self) -> u32 {
        match self {
            Lane::Control => 4 << 20,
            Lane::Log => 64 << 20,
            Lane::Bulk => 16 << 20,
        }
    }

    /// Most calls of one connection that are served at once; then it is not read until one has ended.
    pub(crate) fn served_max(self) -> usize {
        match self {
            Lane::Control | Lane::Log => 1_024,
            Lane::Bulk => 16,
        }
    }
}

/// Who is at the other end; from the handshake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remote {
    pub node_id: u128,
    pub name: String,
    /// Rises with every start of the node.
    pub incarnation: u64,
    /// As it was when the connection was made.
    pub cluster: Option<u128>,
    /// Where to dial it: advertised, or the observed IP with its listening port.
    pub address: SocketAddr,
    /// The lowest and the highest protocol version it speaks.
    pub protocols: (u16, u16),
    /// The one in use.
    pub protocol: u16,
}

/// What a node last told its cluster of itself, after it had written it to its disk. Whoever comes under its id and has
/// neither this mark nor a later one runs on data from before that time, and what this data promised to others since, votes
/// and entries, it does not know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    /// The number of the mark above [`Mark::RANDOM_BITS`] random ones.
    pub value: u64,
    /// The process that told it; see [`Peers::instance`].
    pub instance: u64,
}

impl Mark {
    /// Of the lowest bits of a value.
    pub const RANDOM_BITS: u32 = 40;

    /// The value of the mark behind `last`.
    pub fn value_after(last: Option<u64>, random: u64) -> u64 {
        let number = last.map_or(0, |last| last >> Self::RANDOM_BITS) + 1;
        number << Self::RANDOM_BITS | random >> (u64::BITS - Self::RANDOM_BITS)
    }

    /// Whether a process, or the marks on its disk, are of this time or a later one.
    fn is_known_to(&self, instance: u64, marks: &[u64]) -> bool {
        let is_later = |mark: &u64| mark >> Self::RANDOM_BITS > self.value >> Self::RANDOM_BITS;
        self.instance == instance || marks.contains(&self.value) || marks.iter().any(is_later)
    }
}

/// The coming result of a call.
pub type Answer<'a> = Pin<Box<dyn Future<Output = Result<Bytes, Refused>> + Send + 'a>>;

/// Serves calls of a range of methods.
///
/// `call` is entered in the order of arrival, and its future is polled once before the next call of that connection is
/// looked at; what it does up to its first wait is therefore ordered, and must be short. It must not wait for a later
/// call of the same connection. It runs to its end even if the connection breaks. If it panics, the caller hears at
/// once that the call is lost: a refusal would say that nothing was done.
pub trait Service: Send + Sync + 'static {
    fn call<'a>(&'a self, from: &'a Remote, method: u16, body: Bytes) -> Answer<'a>;
}

/// A service's refusal; at most 1 KiB of it reaches the caller.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Refused(pub String);

/// The outcome of a call that a task of its own serves, for services that must not run where the links do. A panic of
/// the task is one of the service. A task that was cancelled ends with its runtime, and the links with it.
pub async fn served_by(task: JoinHandle<Result<Bytes, Refused>>) -> Result<Bytes, Refused> {
    match task.await {
        Ok(outcome) => outcome,
        Err(ended) => match ended.try_into_panic() {
            Ok(panic) => resume_unwind(panic),
            Err(_) => std::future::pending().await,
        },
    }
}

/// Why a call has no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// It certainly never reached the other side's service.
    #[error("not sent: {0}")]
    NotSent(String),
    /// The link broke, time ran out or the service failed after it was sent: it may have been served.
    #[error("lost: {0}")]
    Lost(String),
    /// The service, or the absence of one, said no; what that means is between caller and service.
    #[error("refused: {0}")]
    Refused(String),
}

/// Who this node is to its peers.
#[derive(Clone)]
pub struct PeerSettings {
    pub node_id: u128,
    pub name: String,
    pub incarnation: u64,
    /// The lowest and the highest protocol version to speak.
    pub protocols: (u16, u16),
    /// Those of which the cluster has one, or none yet; see [`Mark`] and [`Peers::set_own_marks`].
    pub marks: Vec<u64>,
    /// `None` until the node belongs to a cluster; see [`Peers::set_cluster`].
    pub cluster: Option<u128>,
    /// The port its listener is bound to.
    pub listen_port: u16,
    /// `host:port` for others to dial, where that is not what they see it under.
    pub advertise: Option<String>,
    pub secrets: Secrets,
    /// Largest body of a call or an answer, in bytes; calls that are larger are not sent.
    pub body_bytes_max: u32,
    /// Dials by TLS, if the nodes' listeners speak it.
    pub tls: Option<Dialler>,
}

/// Largest body of a call or an answer between nodes with these settings, in bytes.
pub fn body_bytes_max(config: &Config) -> u32 {
    let bytes = config.batch_body_max_bytes.saturating_mul(2).saturating_add(BODY_SLACK_BYTES);
    u32::try_from(bytes).unwrap_or(u32::MAX)
}

impl PeerSettings {
    /// What the configuration says of it, for a node that belongs to no cluster yet.
    pub fn of(
        config: &Config,
        node_id: u128,
        (incarnation, marks): (u64, Vec<u64>),
        listen_port: u16,
    ) -> Result<PeerSettings, TlsError> {
        Ok(PeerSettings {
            node_id,
            name: config.node_name.clone(),
            incarnation,
            protocols: config.peer_protocols.unwrap_or(PROTOCOLS),
            marks,
            cluster: None,
            listen_port,
            advertise: config.advertise_addr.clone(),
            secrets: Secrets::new(&config.cluster_secrets, &config.api_keys),
            body_bytes_max: body_bytes_max(config),
            tls: config.tls_dialler()?,
        })
    }
}

#[cfg(test)]
mod tests;
