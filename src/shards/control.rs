//! What the edge asks of the cluster and is answered, as plain types and a trait: who answers is not its business.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::future::BoxFuture;

/// Looks at the cluster and changes who is in it. Any node may be asked, about any node.
pub trait ClusterControl: Send + Sync + 'static {
    /// Within a bound of about a second, whoever is out of reach.
    fn status(&self) -> BoxFuture<'_, ClusterStatus>;
    /// Has a node's replicas move elsewhere. A node that is alone stops taking writes instead.
    fn drain<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<(), ControlError>>;
    /// Takes that back.
    fn undrain<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<(), ControlError>>;
    /// Ends a node's membership for good.
    fn remove<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<(), ControlError>>;
}

/// Why the cluster was not changed, or is not known to be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ControlError {
    /// No node has the name.
    #[error("{0}")]
    NoSuchNode(String),
    /// Not as long as the cluster is as it is.
    #[error("{0}")]
    Refused(String),
    /// Not done, safe to retry.
    #[error("{0}")]
    Unavailable(String),
    /// Perhaps done. Asking again does no harm.
    #[error("{0}")]
    UnknownOutcome(String),
}

/// The cluster as one node sees it.
#[derive(Debug, Clone, Default)]
pub struct ClusterStatus {
    /// `None` until the node belongs to one.
    pub cluster: Option<u128>,
    /// Of the cluster state; rises with every change.
    pub version: u64,
    /// Groups of conversations that no node within reach leads.
    pub groups_without_leader: usize,
    /// Groups whose members are not, or not all, what they shall be.
    pub moving: usize,
    /// The name of the node that leads each group, the meta group among them.
    pub leaders: BTreeMap<u16, String>,
    /// By name.
    pub nodes: Vec<NodeStatus>,
}

/// One node of the cluster.
#[derive(Debug, Clone)]
pub struct NodeStatus {
    pub name: String,
    pub id: u128,
    pub address: String,
    pub standing: Standing,
    pub link: LinkStatus,
    /// Groups of conversations it hosts; what it shall host while it does not answer.
    pub groups: usize,
    /// Groups of conversations it leads.
    pub leaders: usize,
    /// Entries that are committed and not applied there; `None` while it does not answer.
    pub lag: Option<u64>,
    /// Rises with every start of the node.
    pub incarnation: Option<u64>,
    /// The lowest and the highest version of the protocol between nodes that it speaks.
    pub protocol: (u16, u16),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// Belongs to no cluster yet.
    Joining,
    Active,
    Draining,
}

/// How the node that was asked reaches another one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LinkStatus {
    /// It is the node that was asked.
    Here,
    Up {
        lasting: Duration,
        round_trip: Option<Duration>,
    },
    Down {
        /// `None` where it was not tried yet.
        lasting: Option<Duration>,
        why: Option<String>,
    },
}
