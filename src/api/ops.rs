//! For operators: health, metrics, the API document.

use axum::extract::State;
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

fn json_answer(status: StatusCode, value: &serde_json::Value) -> Response {
    let media = HeaderValue::from_static("application/json");
    (status, [(header::CONTENT_TYPE, media)], value.to_string()).into_response()
}
