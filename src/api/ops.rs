//! For operators: health, metrics, the API document, the cluster.
//!
//! A node alone is a cluster of one: it can be drained, and it cannot be removed.

use std::collections::BTreeMap;

use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use serde_json::json;

use super::error::ApiError;
use super::{Scope, accept, openapi};
use crate::shards::Readiness;

pub(super) async fn live() -> Response {
    json_answer(StatusCode::OK, &json!({"status": "ok"}))
}

pub(super) async fn ready(State(scope): State<Scope>) -> Response {
    let (status, reason) = state(&scope);
    if status == "ok" {
        return json_answer(StatusCode::OK, &json!({"status": status}));
    }
    json_answer(StatusCode::SERVICE_UNAVAILABLE, &json!({"status": status, "reason": reason}))
}

/// The word for this node's state, and why it is not `ok`.
fn state(scope: &Scope) -> (&'static str, String) {
    if scope.app.closing.is_cancelled() {
        return ("draining", "the node is shutting down".into());
    }
    match scope.app.shards.readiness() {
        Readiness::Ready => ("ok", String::new()),
        Readiness::Starting(reason) => ("starting", reason),
        Readiness::Draining => ("draining", "an operator is draining the node".into()),
        Readiness::Degraded(reason) => ("degraded", reason),
    }
}

pub(super) async fn metrics(State(scope): State<Scope>) -> Response {
    let text = scope.app.metrics.render();
    let media = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    ([(header::CONTENT_TYPE, media)], text).into_response()
}

pub(super) async fn document(headers: HeaderMap) -> Result<Response, ApiError> {
    accept::json(&headers)?;
    let media = HeaderValue::from_static("application/json");
    Ok(([(header::CONTENT_TYPE, media)], openapi::document_json()).into_response())
}

pub(super) async fn cluster(State(scope): State<Scope>, headers: HeaderMap) -> Result<Response, ApiError> {
    accept::json(&headers)?;
    Ok(json_answer(StatusCode::OK, &describe(&scope)))
}

fn describe(scope: &Scope) -> serde_json::Value {
    let config = &scope.app.config;
    let (leaders, groups) = scope.app.shards.leadership();
    let (status, reason) = state(scope);
    let mut node = BTreeMap::from([
        ("name", json!(config.node_name)),
        ("address", json!(scope.app.address)),
        ("state", json!(status)),
        ("groups", json!(groups)),
        ("leaders", json!(leaders)),
        // Entries of the log that are committed and not applied here: a leader alone applies as it commits.
        ("lag", json!(0)),
    ]);
    if !reason.is_empty() {
        node.insert("reason", json!(reason));
    }
    json!({"groups": groups, "groups_without_leader": groups - leaders, "nodes": [node]})
}

/// Stops taking writes and turns unready, so that a load balancer sends clients elsewhere; reads and streams go on.
pub(super) async fn drain(State(scope): State<Scope>, headers: HeaderMap) -> Result<Response, ApiError> {
    set_draining(&scope, &headers, true)
}

pub(super) async fn undrain(State(scope): State<Scope>, headers: HeaderMap) -> Result<Response, ApiError> {
    set_draining(&scope, &headers, false)
}

fn set_draining(scope: &Scope, headers: &HeaderMap, draining: bool) -> Result<Response, ApiError> {
    accept::json(headers)?;
    scope.app.shards.drain(draining);
    tracing::info!(event = if draining { "drained" } else { "undrained" });
    Ok(json_answer(StatusCode::OK, &describe(scope)))
}

pub(super) async fn remove_node(
    State(scope): State<Scope>,
    Path(name): Path<String>,
) -> Result<Response, ApiError> {
    if name == scope.app.config.node_name {
        return Err(ApiError::InvalidRequest(
            "name is the only node of the cluster, which cannot be removed".into(),
        ));
    }
    Err(ApiError::InvalidRequest(format!("name {name:?} is not a node of this cluster")))
}

fn json_answer(status: StatusCode, value: &serde_json::Value) -> Response {
    let media = HeaderValue::from_static("application/json");
    (status, [(header::CONTENT_TYPE, media)], value.to_string()).into_response()
}
