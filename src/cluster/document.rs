//! The cluster state as it lies in the meta group: the newest event of its only conversation.

use std::sync::Arc;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::state::{BadDocument, ClusterState, META_GROUP};
use crate::conversation::{
    Action, ConversationId, EventRange, NewMessage, Put, Reply, RoleKind, plan_events,
};
use crate::raft::{Group, Node};
use crate::shards::{Shards, WriteError};
use crate::store::StoreError;

/// The conversation that holds the state; no client can name the group it lies in.
const CONVERSATION: &str = "cluster";

/// A state with its place in history.
#[derive(Debug)]
pub(super) struct Document {
    /// Rises with every change; compare and set goes by it.
    pub version: u64,
    pub state: ClusterState,
}

/// Why the state cannot be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum DocumentError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Bad(#[from] BadDocument),
    #[error("the stored cluster state is no event of its kind: {0}")]
    Shape(String),
}

/// How writing a state ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum SaveError {
    /// Somebody else was faster: read, decide and write again.
    #[error("the cluster state has changed meanwhile")]
    Conflict,
    #[error("writing the cluster state: {0}")]
    Write(#[from] WriteError),
}

pub(super) fn id() -> ConversationId {
    ConversationId::parse(CONVERSATION).expect("the name is a valid id")
}

/// The newest state applied on this node, if it is newer than version `known`.
pub(super) async fn load_newer(node: &Node, known: u64) -> Result<Option<Arc<Document>>, DocumentError> {
    match load(node, known).await {
        // It will be there when the snapshot is, or is another node's business.
        Err(DocumentError::Store(error)) if error.is_unreadable() => Ok(None),
        loaded => loaded,
    }
}

async fn load(node: &Node, known: u64) -> Result<Option<Arc<Document>>, DocumentError> {
    let Some(group) = node.group(META_GROUP) else { return Ok(None) };
    if group.store.read(&id(), |c, _| c.version())?.is_none_or(|version| version <= known) {
        return Ok(None);
    }
    let read = tokio::task::spawn_blocking(move || load_blocking(&group)).await;
    read.map_err(|e| DocumentError::Shape(format!("read task: {e}")))?
}

/// Resolves once a state newer than version `known` is applied here; never where the meta group is not hosted.
pub(super) async fn changed(node: &Node, known: u64) {
    let watched = node.group(META_GROUP).and_then(|group| group.store.watch(&id()).ok());
    if let Some(mut version) = watched
        && version.wait_for(|version| *version > known).await.is_ok()
    {
        return;
    }
    std::future::pending().await
}

fn load_blocking(group: &Group) -> Result<Option<Arc<Document>>, DocumentError> {
    let newest =
        EventRange { from_seq: 1, to_seq: u64::MAX, newest_first: true, limit: 1, limit_bytes: u64::MAX };
    let reading = group.store.reading();
    let found = group.store.read(&id(), |c, history| {
        plan_events(c, &id(), history, &newest).map(|events| (c.version(), events))
    })?;
    let Some((version, events)) = found.transpose().map_err(StoreError::from)? else { return Ok(None) };
    let Some(event) = events.first() else { return Ok(None) };
    let bodies = group.store.bodies(&reading, &[event.location])?;
    let body = std::str::from_utf8(&bodies[0]).map_err(|e| DocumentError::Shape(e.to_string()))?;
    Ok(Some(Arc::new(Document { version, state: decode_body(body)? })))
}

/// Writes a state over the one of version `expected`; `None` for the first.
pub(super) async fn save(
    shards: &Shards,
    expected: Option<u64>,
    state: &ClusterState,
) -> Result<u64, SaveError> {
    if expected.is_none() {
        let put = Action::Put(Put::default());
        shards.propose_to(META_GROUP, &id(), put).await?;
    }
    let message = NewMessage {
        body: encode_body(state).into(),
        token_count: 0,
        role: RoleKind::Other,
        parts: Vec::new(),
    };
    let append = Action::Append {
        messages: vec![message],
        idempotency: None,
        if_version: Some(expected.unwrap_or(0)),
    };
    match shards.propose_to(META_GROUP, &id(), append).await? {
        Reply::Appended { version, .. } => Ok(version),
        _ => Err(SaveError::Conflict),
    }
}

fn encode_body(state: &ClusterState) -> String {
    format!(r#""role":"cluster","parts":[],"metadata":{}"#, state.encode())
}

fn decode_body(body: &str) -> Result<ClusterState, DocumentError> {
    #[derive(Deserialize)]
    struct Event<'a> {
        #[serde(borrow)]
        metadata: &'a RawValue,
    }
    let event = format!("{{{body}}}");
    let Event { metadata } = serde_json::from_str(&event).map_err(|e| DocumentError::Shape(e.to_string()))?;
    Ok(ClusterState::decode(metadata.get())?)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::cluster::state::{ClusterId, NodeId, NodeRecord, NodeState};

    #[test]
    fn a_state_survives_as_an_event() {
        let record = NodeRecord {
            name: "node-1".into(),
            address: "10.0.0.1:4000".into(),
            state: NodeState::Active,
            incarnation: Some(1),
            mark: None,
            protocol: (1, 1),
            joined_ms: 5,
        };
        let state = ClusterState::found(ClusterId(9), BTreeMap::from([(NodeId(1), record)]));
        assert_eq!(decode_body(&encode_body(&state)).unwrap(), state);
    }
}
