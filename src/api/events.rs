//! The log: appending, reading pages forwards and backwards, and long polls.

use std::time::{Duration, Instant};

use axum::extract::{Request, State};
use axum::response::Response;
use http::StatusCode;
use http::request::Parts as Head;
use tokio::time::timeout;

use super::admission::hold_until_sent;
use super::error::ApiError;
use super::path::Id;
use super::weigh::Counter;
use super::wire::answer::{self, Json};
use super::wire::etag::{Asked, is_conditional};
use super::wire::query::{Query, read_options};
use super::wire::request::Append;
use super::{Scope, StreamPermit, accept, export};
use crate::conversation::{Action, ConversationId, Reply, Status};
use crate::shards::{Consistency, EventPage, EventsQuery, Order, ReadOptions, Shards};

/// Events per page: by default, and at most.
const PAGE_DEFAULT: usize = 100;
pub(super) const PAGE_MAX: usize = 1_000;
/// Bytes of message bodies on a page, beyond which it ends early (with `has_more`).
const PAGE_BYTES_MAX: u64 = 8 << 20;
/// Longest long poll.
const WAIT_SECONDS_MAX: u64 = 60;

pub(super) async fn append(
    State(scope): State<Scope>,
    Id(id): Id,
    request: Request,
) -> Result<Response, ApiError> {
    let (head, body) = request.into_parts();
    accept::json(&head.headers)?;
    let received = scope.receive_batch(&head.headers, body).await?;
    let dialect = scope.dialect;
    let one_bytes_max = scope.app.limits.body_bytes;
    let read = move |bytes: &[u8], counter: &Counter<'_>| {
        let append = Append::parse(bytes, dialect, one_bytes_max)?;
        let Append { messages, is_batch, idempotency, if_version } = append;
        let messages = counter.weigh(messages)?;
        let body_bytes: usize = messages.iter().map(|message| message.body.len()).sum();
        Ok((Action::Append { messages, idempotency, if_version }, is_batch, body_bytes as u64))
    };
    let (action, is_batch, bytes) = scope.app.scales.read(&received, read).await?;
    let started = Instant::now();
    let reply = scope.app.shards.propose(&id, action).await?;
    let Reply::Appended { first_seq, last_seq, version, token_counts, deduped } = reply else {
        return Err(ApiError::unexpected(reply));
    };
    let metrics = &scope.app.metrics;
    metrics.append_latency_ms.observe(started.elapsed().as_secs_f64() * 1_000.0);
    if deduped {
        metrics.idempotent_replays_total.inc();
    } else {
        metrics.appended_events_total.inc_by(last_seq + 1 - first_seq);
        metrics.appended_bytes_total.inc_by(bytes);
    }
    tracing::debug!(event = "appended", conversation_id = id.as_str(), seq = last_seq, deduped);
    let mut json = Json::with_capacity(96 + 8 * token_counts.len());
    if is_batch {
        json.raw("{").raw(r#""first_seq":"#).number(first_seq).raw(r#","last_seq":"#).number(last_seq);
    } else {
        json.raw(r#"{"seq":"#).number(first_seq);
    }
    json.raw(r#","version":"#).number(version);
    if is_batch {
        json.raw(r#","token_estimates":"#).list(&token_counts, |json, count| {
            json.number((*count).into());
        });
    } else {
        let count = token_counts.first().copied().unwrap_or_default();
        json.raw(r#","token_estimate":"#).number(count.into());
    }
    if deduped {
        json.raw(r#","deduped":true"#);
    }
    json.raw("}");
    Ok(json.respond(if deduped { StatusCode::OK } else { StatusCode::CREATED }))
}

/// A question for the log.
struct Question {
    query: EventsQuery,
    options: ReadOptions,
    wait: Option<Duration>,
}

impl Question {
    fn read(raw: Option<&str>) -> Result<Question, ApiError> {
        let params = Query::new(raw);
        let query = EventsQuery {
            from_seq: params.number("from_seq", i64::MIN..=i64::MAX)?,
            to_seq: params.number("to_seq", 0..=u64::MAX)?,
            cursor: params.number("cursor", 0..=u64::MAX)?,
            order: params
                .choice("order", &[("asc", Order::Ascending), ("desc", Order::Descending)])?
                .unwrap_or_default(),
            tail_offset: None,
            limit: params.number("limit", 1..=PAGE_MAX)?.unwrap_or(PAGE_DEFAULT),
            limit_bytes: PAGE_BYTES_MAX,
        };
        let wait = params.number("wait", 0..=WAIT_SECONDS_MAX)?.map(Duration::from_secs);
        let ascending = query.order == Order::Ascending;
        if ascending && query.cursor.is_some() && query.from_seq.is_some() {
            let message = "cursor and from_seq exclude each other with order=asc";
            return Err(ApiError::InvalidRequest(message.into()));
        }
        if wait.is_some() && (query.cursor.is_none() || !ascending) {
            return Err(ApiError::InvalidRequest("wait needs a cursor and order=asc".into()));
        }
        Ok(Question { query, options: read_options(&params)?, wait })
    }
}

pub(super) async fn read(
    State(scope): State<Scope>,
    Id(id): Id,
    request: Request,
) -> Result<Response, ApiError> {
    let head = request.into_parts().0;
    let question = Question::read(head.uri.query())?;
    if accept::prefers(&head.headers, export::NDJSON) {
        return export::lines(&scope, id, question.query, question.options).await;
    }
    accept::json(&head.headers)?;
    match question.wait {
        Some(wait) => poll(&scope, &id, &head, question, wait).await,
        None => page(&scope, &id, &head, question).await,
    }
}

async fn page(
    scope: &Scope,
    id: &ConversationId,
    head: &Head,
    question: Question,
) -> Result<Response, ApiError> {
    let Question { query, options, .. } = question;
    if let Some(unchanged) = unchanged(scope, id, head, options).await? {
        return Ok(unchanged);
    }
    let page = scope.app.shards.events(id, query.clone(), options).await?.ok_or(ApiError::NotFound)?;
    let response = answer_page(scope, &query, &page).respond(StatusCode::OK);
    Ok(Asked::of(&head.uri).mark(response, page.version))
}

/// `304`, found by looking at the version alone, for a client that has the answer already.
async fn unchanged(
    scope: &Scope,
    id: &ConversationId,
    head: &Head,
    options: ReadOptions,
) -> Result<Option<Response>, ApiError> {
    if !is_conditional(&head.headers) {
        return Ok(None);
    }
    let description = scope.app.shards.describe(id, options).await?.ok_or(ApiError::NotFound)?;
    let asked = Asked::of(&head.uri);
    let is_known = asked.is_known(&head.headers, description.version);
    Ok(is_known.then(|| asked.not_modified(description.version)))
}

/// A page after a cursor; an empty one is held back until an event comes, none can come any more, or the time is up.
async fn poll(
    scope: &Scope,
    id: &ConversationId,
    head: &Head,
    question: Question,
    wait: Duration,
) -> Result<Response, ApiError> {
    let Question { query, options, .. } = question;
    let permit = StreamPermit::take(&scope.app)?;
    let shards = &scope.app.shards;
    let first = shards.events(id, query.clone(), options).await?.ok_or(ApiError::NotFound)?;
    let page = if is_awaited(&first) {
        let later = tokio::select! {
            later = timeout(wait, arrival(shards, id, &query, first.version)) => later,
            () = scope.app.closing.cancelled() => Ok(Ok(None)),
        };
        later.unwrap_or(Ok(None))?.unwrap_or(first)
    } else {
        first
    };
    let asked = Asked::of(&head.uri);
    if asked.is_known(&head.headers, page.version) {
        return Ok(asked.not_modified(page.version));
    }
    let response = answer_page(scope, &query, &page).respond(StatusCode::OK);
    Ok(hold_until_sent(asked.mark(response, page.version), permit))
}

/// Whether a poll that found this page has something to wait for.
fn is_awaited(page: &EventPage) -> bool {
    page.events.is_empty() && page.status == Status::Active
}

/// The first page that ends the wait, once this node has it.
async fn arrival(
    shards: &Shards,
    id: &ConversationId,
    query: &EventsQuery,
    mut seen: u64,
) -> Result<Option<EventPage>, ApiError> {
    let mut watcher = shards.watch(id)?;
    loop {
        watcher.beyond(seen).await;
        // What answers may be another node than before, which must not take the poll back to where it lags.
        let local = ReadOptions { consistency: Consistency::Local, min_version: Some(seen) };
        let Some(page) = shards.events(id, query.clone(), local).await? else { return Ok(None) };
        if !is_awaited(&page) {
            return Ok(Some(page));
        }
        seen = page.version;
    }
}

fn answer_page(scope: &Scope, query: &EventsQuery, page: &EventPage) -> Json {
    let mut json = answer::events(scope.dialect, &page.events);
    json.raw(r#","next_cursor":"#).optional(next_cursor(query, page));
    json.raw(r#","has_more":"#).bool(page.has_more).raw("}");
    json
}

/// Where to read on: behind the last event of the page, or where the page would have begun.
fn next_cursor(query: &EventsQuery, page: &EventPage) -> Option<u64> {
    let behind = page.events.last().map(|event| event.seq).or(query.cursor);
    behind.or(match (query.order, query.from_seq) {
        (Order::Descending, _) => None,
        (Order::Ascending, Some(back)) if back < 0 => Some(page.last_seq.saturating_sub(back.unsigned_abs())),
        (Order::Ascending, from) => Some(from.map_or(0, |from| from.unsigned_abs().saturating_sub(1))),
    })
}

pub(super) async fn tail(
    State(scope): State<Scope>,
    Id(id): Id,
    request: Request,
) -> Result<Response, ApiError> {
    let head = request.into_parts().0;
    accept::json(&head.headers)?;
    let params = Query::new(head.uri.query());
    let offset = params.number("offset", 0..=u64::MAX)?.unwrap_or(0);
    let query = EventsQuery {
        tail_offset: Some(offset),
        limit: params.number("limit", 1..=PAGE_MAX)?.unwrap_or(PAGE_DEFAULT),
        limit_bytes: PAGE_BYTES_MAX,
        ..EventsQuery::default()
    };
    let options = read_options(&params)?;
    if let Some(unchanged) = unchanged(&scope, &id, &head, options).await? {
        return Ok(unchanged);
    }
    let page = scope.app.shards.events(&id, query, options).await?.ok_or(ApiError::NotFound)?;
    let is_older_left = page.events.first().is_some_and(|event| event.seq > 1);
    let next_offset = offset.saturating_add(page.events.len() as u64);
    let mut json = answer::events(scope.dialect, &page.events);
    json.raw(r#","next_offset":"#).optional(is_older_left.then_some(next_offset));
    json.raw(r#","has_more":"#).bool(is_older_left).raw("}");
    Ok(Asked::of(&head.uri).mark(json.respond(StatusCode::OK), page.version))
}
