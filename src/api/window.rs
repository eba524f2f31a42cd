//! The window to send to a model, and compaction.

use std::time::Instant;

use axum::extract::{Request, State};
use axum::response::Response;
use http::StatusCode;

use super::error::ApiError;
use super::path::Id;
use super::weigh::Counter;
use super::window_cache::Rendered;
use super::wire::answer::{self, Json};
use super::wire::etag::Asked;
use super::wire::query::{Query, read_options};
use super::wire::request::Compact;
use super::{Scope, accept};
use crate::conversation::{Action, ConversationId, Reply, WindowQuery};
use crate::shards::ReadOptions;

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
    let current = shards.version(&id, options).await?.ok_or(ApiError::NotFound)?;
    // A guard and a condition look at the current version; the window's own may be one of the past.
    if let Some(expected) = expected.filter(|expected| *expected != current) {
        return Err(ApiError::Conflict { expected, current });
    }
    if asked.is_known(request.headers(), query.at_version.unwrap_or(current)) {
        return Ok(asked.not_modified(query.at_version.unwrap_or(current)));
    }
    let rendered = if query.at_version.is_none() && !query.explain {
        current_window(&scope, &id, query, options, current).await?
    } else {
        render(&scope, &id, query, options).await?
    };
    // The conversation may have moved on since the guard was checked.
    if let Some(expected) =
        expected.filter(|expected| query.at_version.is_none() && *expected != rendered.version)
    {
        return Err(ApiError::Conflict { expected, current: rendered.version });
    }
    let metrics = &scope.app.metrics;
    metrics.window_latency_ms.observe(started.elapsed().as_secs_f64() * 1_000.0);
    metrics.snapshot_token_count.observe(rendered.used_tokens as f64);
    Ok(asked.mark(answer::json(StatusCode::OK, rendered.body), rendered.version))
}

/// The current window, from the cache if it was asked for at this version before.
async fn current_window(
    scope: &Scope,
    id: &ConversationId,
    query: WindowQuery,
    options: ReadOptions,
    current: u64,
) -> Result<Rendered, ApiError> {
    let key = (id.clone(), query.budget_tokens);
    if let Some(rendered) = scope.app.windows.get(&key, current) {
        return Ok(rendered);
    }
    let rendered = render(scope, id, query, options).await?;
    scope.app.windows.put(key, rendered.clone());
    Ok(rendered)
}

async fn render(
    scope: &Scope,
    id: &ConversationId,
    query: WindowQuery,
    options: ReadOptions,
) -> Result<Rendered, ApiError> {
    let window = scope.app.shards.window(id, query, options).await?.ok_or(ApiError::NotFound)?;
    let body = answer::window(&window, query.explain).finish().into();
    Ok(Rendered { version: window.version, used_tokens: window.used_tokens, body })
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
    let action = scope.app.scales.read(&received, read).await?;
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
