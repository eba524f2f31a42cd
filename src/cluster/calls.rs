//! What nodes say to each other about the cluster: methods of the control lane, their bodies as JSON.
//!
//! Unknown fields are ignored, so that adjacent versions understand each other.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;
use std::time::Duration;

use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::plan::Membership;
use super::state::{ClusterId, NodeId, NodeRecord};
use crate::peer::{CallError, Lane, Peers, Refused};

/// The methods of this module.
pub(super) const METHODS: RangeInclusive<u16> = 32..=47;
/// A [`super::founding::Message`]; answered by nothing.
pub(super) const FOUNDING: u16 = 32;
/// Asks for [`Status`].
pub(super) const STATUS: u16 = 33;
/// A [`ChangeRequest`]; answered by [`ChangeAnswer`].
pub(super) const CHANGE: u16 = 34;
/// Asks for the newest [`StateAnswer`] known there.
pub(super) const STATE: u16 = 35;
/// Asks for [`Report`].
pub(super) const REPORT: u16 = 36;

/// A change reaches the leader of the meta group by way of one node that knows it.
pub(super) const HOPS_MAX: u8 = 2;
/// Longest wait for any of these.
pub(super) const LIMIT: Duration = Duration::from_secs(5);

/// Who a node is right now.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Status {
    pub(super) cluster: Option<ClusterId>,
    /// Where the asking node is seen from there.
    pub(super) you: String,
}

/// Something to be made of the cluster state, by the node that leads the meta group.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub(super) enum Change {
    Admit { node: NodeId, record: NodeRecord, replace: bool },
    Drain { name: String },
    Undrain { name: String },
    Remove { name: String },
}

/// A change on its way to the leader of the meta group.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct ChangeRequest {
    pub(super) change: Change,
    /// How often it may still be passed on.
    pub(super) hops_left: u8,
}

/// What became of a change.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct ChangeAnswer {
    /// Absent once it is made.
    pub(super) failure: Option<ChangeFailure>,
}

/// Why a change was not made, or is not known to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ChangeFailure {
    pub(super) kind: FailureKind,
    pub(super) why: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum FailureKind {
    NoSuchNode,
    Refused,
    /// Not made, for a reason that may pass.
    Unavailable,
    UnknownOutcome,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct StateAnswer {
    pub(super) version: u64,
    /// [`super::state::ClusterState::encode`].
    pub(super) state: String,
}

/// What a node knows of the groups it leads, and of itself.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Report {
    /// Of the state it goes by.
    pub(super) version: u64,
    /// By group; only those whose membership is committed and uniform.
    pub(super) led: BTreeMap<u16, Membership>,
    /// By group it leads, also while the membership changes: the term.
    #[serde(default)]
    pub(super) terms: BTreeMap<u16, u64>,
    /// Replicas of conversation groups running there.
    #[serde(default)]
    pub(super) hosted: u32,
    /// Entries its replicas have yet to apply, in all.
    #[serde(default)]
    pub(super) unapplied: u64,
    /// Itself, and the nodes its links reach.
    #[serde(default)]
    pub(super) reached: BTreeSet<NodeId>,
    /// The nodes that it has not reached for so long that nobody should wait for them.
    #[serde(default)]
    pub(super) lost: BTreeSet<NodeId>,
}

/// Calls a method and decodes its answer.
pub(super) async fn call<A: DeserializeOwned>(
    peers: &Peers,
    to: NodeId,
    method: u16,
    body: &impl Serialize,
) -> Result<A, CallError> {
    let body = encode(body).map_err(|refused| CallError::NotSent(refused.0))?;
    let answer = peers.call(to.0, Lane::Control, method, &[body], LIMIT).await?;
    // It was served, whatever it says.
    decode(&answer).map_err(|refused| CallError::Lost(refused.0))
}

pub(super) fn encode(value: &impl Serialize) -> Result<Bytes, Refused> {
    serde_json::to_vec(value).map(Bytes::from).map_err(|e| Refused(e.to_string()))
}

pub(super) fn decode<T: DeserializeOwned>(body: &[u8]) -> Result<T, Refused> {
    serde_json::from_slice(body).map_err(|e| Refused(format!("undecodable body: {e}")))
}
