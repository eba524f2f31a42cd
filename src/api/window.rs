//! The window to send to a model, and compaction.

use std::time::Instant;

use axum::extract::{Request, State};
use axum::response::Response;
use http::StatusCode;

use super::error::ApiError;
use super::path::Id;
use super::weigh::Counter;
use super::wire::answer::{self, Json};
use super::wire::etag::{Asked, is_conditional};
use super::wire::query::{Query, read_options};
use super::wire::request::Compact;
use super::{Scope, accept};
use crate::conversation::{Action, Reply, WindowQuery};

/// `if_version` is a guard, as for writes: `409` unless it is the current version. A client that wants to skip an
/// unchanged window sends `If-None-Match`.
pub(super) async fn read(
    State(scope): State<Scope>,
    Id(id): Id,
    request: Request,
) -> Result<Response, ApiError> {
    let started = Instant::now();
    accept::json(request.headers())?;
    let params = Query::new(request.uri().query());
    let query = WindowQuery {
        budget_tokens: params.number("budget_tokens", 0..=u64::MAX)?,
        at_version: params.number("at_version", 0..=u64::MAX)?,
        explain: params.flag("explain", false)?,
    };
    let expected = params.number("if_version", 0..=u64::MAX)?;
    let options = read_options(&params)?;
    let shards = &scope.app.shards;
    let asked = Asked::of(request.uri());
    // A guard and a condition look at the current version; the window's own may be one of the past.
    if expected.is_some() || is_conditional(request.headers()) {
        let current = shards.describe(&id, options).await?.ok_or(ApiError::NotFound)?.version;
        if let Some(expected) = expected.filter(|expected| *expected != current) {
            return Err(ApiError::Conflict { expected, current });
        }
        if asked.is_known(request.headers(), query.at_version.unwrap_or(current)) {
            return Ok(asked.not_modified(query.at_version.unwrap_or(current)));
        }
    }
    let (explain, is_current) = (query.explain, query.at_version.is_none());
    let window = shards.window(&id, query, options).await?.ok_or(ApiError::NotFound)?;
    // The conversation may have moved on since the guard was checked.
    if let Some(expected) = expected.filter(|expected| is_current && *expected != window.version) {
        return Err(ApiError::Conflict { expected, current: window.version });
    }
    let response = answer::window(&window, explain).respond(StatusCode::OK);
    let metrics = &scope.app.metrics;
    metrics.window_latency_ms.observe(started.elapsed().as_secs_f64() * 1_000.0);
    metrics.snapshot_token_count.observe(window.used_tokens as f64);
    Ok(asked.mark(response, window.version))
}

pub(super) async fn compact(
    State(scope): State<Scope>,
    Id(id): Id,
    request: Request,
) -> Result<Response, ApiError> {
    let (head, body) = request.into_parts();
    accept::json(&head.headers)?;
    let received = scope.receive_batch(&head.headers, body).await?;
    let one_bytes_max = scope.app.limits.body_bytes;
    let read = move |bytes: &[u8], counter: &Counter<'_>| {
        let Compact { range, replacement, if_version } = Compact::parse(bytes, one_bytes_max)?;
        Ok(Action::Compact { range, replacement: counter.weigh(replacement)?, if_version })
    };
    let action = scope.app.scales.read(&received.bytes, read).await?;
    match scope.app.shards.propose(&id, action).await? {
        Reply::Compacted { version } => {
            scope.app.metrics.compaction_requests_total.inc();
            let mut json = Json::with_capacity(32);
            json.raw(r#"{"version":"#).number(version).raw("}");
            Ok(json.respond(StatusCode::OK))
        }
        other => Err(ApiError::unexpected(other)),
    }
}
