//! For operators: who is in the cluster, draining and removing nodes, and digests of what this node holds.

use std::time::Duration;

use axum::body::Body;
use axum::extract::{RawQuery, State};
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};

use super::error::ApiError;
use super::path::NodeName;
use super::wire::json::check;
use super::wire::query::Query;
use super::wire::shape::{Object, must_be, string};
use super::{Scope, accept};
use crate::shards::placement::GROUPS;
use crate::shards::{ClusterControl, ClusterStatus, LinkStatus, NodeStatus, Standing};

pub(super) async fn status(State(scope): State<Scope>, headers: HeaderMap) -> Result<Response, ApiError> {
    accept::json(&headers)?;
    Ok(json_answer(&describe(&scope, &control(&scope)?.status().await)))
}

/// Has a node's replicas move elsewhere; a node that is alone stops taking writes. Either turns unready, so that a load
/// balancer sends clients elsewhere.
pub(super) async fn drain(
    State(scope): State<Scope>,
    query: RawQuery,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    set_draining(&scope, query, &headers, body, true).await
}

pub(super) async fn undrain(
    State(scope): State<Scope>,
    query: RawQuery,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    set_draining(&scope, query, &headers, body, false).await
}

async fn set_draining(
    scope: &Scope,
    query: RawQuery,
    headers: &HeaderMap,
    body: Body,
    draining: bool,
) -> Result<Response, ApiError> {
    accept::json(headers)?;
    let name = named(scope, query, headers, body).await?;
    let control = control(scope)?;
    match draining {
        true => control.drain(&name).await?,
        false => control.undrain(&name).await?,
    }
    tracing::info!(event = if draining { "drained" } else { "undrained" }, name);
    Ok(json_answer(&describe(scope, &control.status().await)))
}

pub(super) async fn remove_node(
    State(scope): State<Scope>,
    NodeName(name): NodeName,
) -> Result<StatusCode, ApiError> {
    control(&scope)?.remove(&name).await?;
    tracing::info!(event = "removed", name);
    Ok(StatusCode::NO_CONTENT)
}

/// Not in the API document: for comparing replicas, not for clients.
pub(super) async fn digests(State(scope): State<Scope>, headers: HeaderMap) -> Result<Response, ApiError> {
    accept::json(&headers)?;
    let digests = scope.app.shards.digests().await?;
    let groups: Map<String, Value> = digests
        .into_iter()
        .map(|replica| {
            let digest = format!("{:032x}", replica.digest);
            (replica.group.to_string(), json!({"applied": replica.applied, "digest": digest}))
        })
        .collect();
    Ok(json_answer(&json!({"groups": groups})))
}

fn control(scope: &Scope) -> Result<&dyn ClusterControl, ApiError> {
    let control = scope.app.control.get();
    control.map(AsRef::as_ref).ok_or_else(|| ApiError::Unavailable("the node is recovering its files".into()))
}

/// The node that a request is about: by parameter, by body, else the one that was asked.
async fn named(
    scope: &Scope,
    RawQuery(query): RawQuery,
    headers: &HeaderMap,
    body: Body,
) -> Result<String, ApiError> {
    let given = Query::new(query.as_deref()).text("name")?.map(str::to_owned);
    let body = scope.receive(headers, body).await?;
    let from_body = name_in(&body.bytes)?;
    Ok(given.or(from_body).unwrap_or_else(|| scope.app.config.node_name.clone()))
}

/// The name in a body, which may be empty.
fn name_in(bytes: &[u8]) -> Result<Option<String>, ApiError> {
    #[derive(Deserialize)]
    struct Named<'a> {
        #[serde(borrow)]
        name: Option<&'a RawValue>,
    }
    if bytes.trim_ascii().is_empty() {
        return Ok(None);
    }
    let (text, _) = check(bytes, 0).map_err(|fault| ApiError::InvalidJson(fault.to_string()))?;
    let body: Object<Named<'_>> = serde_json::from_str(text).map_err(|error| match error.is_data() {
        true => ApiError::InvalidRequest("name is given twice".into()),
        false => ApiError::InvalidJson(format!("The body is not valid JSON: {error}")),
    })?;
    let Some(name) = body.expect("The body")?.name else { return Ok(None) };
    string(name).map(|name| Some(name.into_owned())).ok_or_else(|| must_be("name", "a string"))
}

fn describe(scope: &Scope, status: &ClusterStatus) -> Value {
    let leaders: Map<String, Value> =
        status.leaders.iter().map(|(group, name)| (group.to_string(), json!(name))).collect();
    json!({
        "cluster_id": status.cluster.map(hex),
        "answered_by": scope.app.config.node_name,
        "version": status.version,
        "groups": GROUPS,
        "groups_without_leader": status.groups_without_leader,
        "moving": status.moving,
        "leaders_by_group": leaders,
        "nodes": status.nodes.iter().map(describe_node).collect::<Vec<_>>(),
    })
}

fn describe_node(node: &NodeStatus) -> Value {
    let state = match node.standing {
        Standing::Joining => "joining",
        Standing::Active => "active",
        Standing::Draining => "draining",
    };
    let (link, lasting, why, round_trip) = match &node.link {
        LinkStatus::Here => ("up", None, None, None),
        LinkStatus::Up { lasting, round_trip } => ("up", Some(*lasting), None, *round_trip),
        LinkStatus::Down { lasting, why } => ("down", *lasting, why.as_deref(), None),
    };
    json!({
        "name": node.name,
        "id": hex(node.id),
        "address": node.address,
        "state": state,
        "link": link,
        "link_seconds": lasting.map(|lasting| lasting.as_secs()),
        "link_error": why,
        "rtt_us": round_trip.as_ref().map(Duration::as_micros),
        "groups": node.groups,
        "leaders": node.leaders,
        "lag": node.lag,
        "incarnation": node.incarnation,
        "protocol": [node.protocol.0, node.protocol.1],
    })
}

fn hex(id: u128) -> String {
    format!("{id:032x}")
}

fn json_answer(value: &Value) -> Response {
    let media = HeaderValue::from_static("application/json");
    ([(header::CONTENT_TYPE, media)], value.to_string()).into_response()
}
