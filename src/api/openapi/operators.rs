//! The shapes of what operators ask and are told, for the API document alone.
#![allow(dead_code, reason = "only their schemas are used")]

use serde::Deserialize;
use serde_json::{Map, Value};
use utoipa::ToSchema;

#[derive(ToSchema)]
pub(super) struct Health {
    #[schema(pattern = "^(ok|starting|draining|degraded)$")]
    status: String,
    reason: Option<String>,
}

/// The node that is meant; the one that is asked by default.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NodeName {
    name: Option<String>,
}

#[derive(ToSchema)]
pub(super) struct Cluster {
    /// Null until the node belongs to one.
    cluster_id: Option<String>,
    /// The name of the node that was asked; links and lag are as it sees them.
    answered_by: String,
    /// Of the cluster state; rises with every change.
    version: u64,
    /// Groups that conversations are spread over; that of the cluster state is not counted, here or below.
    groups: u64,
    /// Those that no node within reach leads.
    groups_without_leader: u64,
    /// Those whose members are not yet what they shall be.
    moving: u64,
    /// Group number to the name of the node that leads it; 256 is the group of the cluster state itself.
    leaders_by_group: Map<String, Value>,
    nodes: Vec<Node>,
}

#[derive(ToSchema)]
pub(super) struct Node {
    name: String,
    id: String,
    address: String,
    #[schema(pattern = "^(joining|active|draining)$")]
    state: String,
    /// From the node that answers.
    #[schema(pattern = "^(up|down)$")]
    link: String,
    /// How long the link has been so.
    link_seconds: Option<u64>,
    /// Why it is down.
    link_error: Option<String>,
    /// How long the last ping took there and back.
    rtt_us: Option<u64>,
    /// Groups of conversations hosted; of a node that does not answer, those it shall host.
    groups: u64,
    /// Groups of conversations led.
    leaders: u64,
    /// Entries of the log that are committed and not applied there; null while the node does not answer.
    lag: Option<u64>,
    /// Rises with every start of the node.
    incarnation: Option<u64>,
    /// The lowest and the highest version of the protocol between nodes that it speaks.
    #[schema(min_items = 2, max_items = 2)]
    protocol: Vec<u16>,
}
