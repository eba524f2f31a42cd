//! Conversations themselves: create or update, describe, delete, metadata, listing.

use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use http::StatusCode;

use super::Scope;
use super::accept;
use super::error::ApiError;
use super::path::Id;
use super::wire::answer::Json;
use super::wire::etag::Asked;
use super::wire::query::{Query, read_options};
use super::wire::request::{Settings, metadata_patch};
use crate::conversation::{Action, ConversationId, Put, Reply, Status};
use crate::shards::{ListPage, ListQuery};

/// Conversations per page of a listing: by default, and at most.
const PAGE_DEFAULT: usize = 100;
const PAGE_MAX: usize = 1_000;
/// A page of a listing ends early once its text is this long, since metadata may be large.
const PAGE_BYTES_MAX: usize = 4 << 20;

pub(super) async fn put(
    State(scope): State<Scope>,
    Id(id): Id,
    request: Request,
) -> Result<Response, ApiError> {
    let (head, body) = request.into_parts();
    accept::json(&head.headers)?;
    let body = scope.receive(&head.headers, body).await?;
    let Settings { token_budget, trigger_ratio, policy, metadata } = Settings::parse(&body.bytes)?;
    let action = Action::Put(Put { token_budget, trigger_ratio, policy, metadata });
    settled(&id, scope.app.shards.propose(&id, action).await?)
}

pub(super) async fn patch_metadata(
    State(scope): State<Scope>,
    Id(id): Id,
    request: Request,
) -> Result<Response, ApiError> {
    let (head, body) = request.into_parts();
    accept::json(&head.headers)?;
    let body = scope.receive(&head.headers, body).await?;
    let action = Action::PatchMetadata { patch: metadata_patch(&body.bytes)? };
    settled(&id, scope.app.shards.propose(&id, action).await?)
}

fn settled(id: &ConversationId, reply: Reply) -> Result<Response, ApiError> {
    match reply {
        Reply::Settled { created, description, .. } => {
            let status = if created { StatusCode::CREATED } else { StatusCode::OK };
            let mut json = Json::with_capacity(512);
            json.conversation(id, &description);
            Ok(json.respond(status))
        }
        other => Err(ApiError::unexpected(other)),
    }
}

pub(super) async fn get(
    State(scope): State<Scope>,
    Id(id): Id,
    request: Request<Body>,
) -> Result<Response, ApiError> {
    accept::json(request.headers())?;
    let options = read_options(&Query::new(request.uri().query()))?;
    let description = scope.app.shards.describe(&id, options).await?.ok_or(ApiError::NotFound)?;
    let asked = Asked::of(request.uri());
    if asked.is_known(request.headers(), description.version) {
        return Ok(asked.not_modified(description.version));
    }
    let mut json = Json::with_capacity(512);
    json.conversation(&id, &description);
    Ok(asked.mark(json.respond(StatusCode::OK), description.version))
}

pub(super) async fn delete(State(scope): State<Scope>, Id(id): Id) -> Result<Response, ApiError> {
    match scope.app.shards.propose(&id, Action::Tombstone).await? {
        Reply::Tombstoned { .. } => Ok(StatusCode::NO_CONTENT.into_response()),
        other => Err(ApiError::unexpected(other)),
    }
}

pub(super) async fn list(State(scope): State<Scope>, request: Request) -> Result<Response, ApiError> {
    accept::json(request.headers())?;
    let query = Query::new(request.uri().query());
    let consistency = read_options(&query)?.consistency;
    let statuses = [Status::Active, Status::Tombstoned].map(|status| (status.as_str(), status));
    let cursor = query.text("cursor")?;
    if cursor.is_some_and(|cursor| ConversationId::parse(cursor).is_err()) {
        return Err(ApiError::InvalidRequest("cursor must be a next_cursor of an earlier page".into()));
    }
    let query = ListQuery {
        prefix: query.text("prefix")?.map(String::from),
        status: query.choice("status", &statuses)?,
        metadata: query.prefixed("metadata.").map(|(key, value)| (key.into(), value.into())).collect(),
        limit: query.number("limit", 1..=PAGE_MAX)?.unwrap_or(PAGE_DEFAULT),
        cursor: cursor.map(String::from),
        consistency,
    };
    let page = scope.app.shards.list(query).await?;
    Ok(listing(scope, &page).respond(StatusCode::OK))
}

fn listing(scope: Scope, page: &ListPage) -> Json {
    let mut json = Json::with_capacity(page.conversations.len() * 512 + 64);
    json.raw(r#"{""#).raw(scope.dialect.resources()).raw(r#"":["#);
    let mut next_cursor = page.next_cursor.as_deref();
    for (index, (id, description)) in page.conversations.iter().enumerate() {
        if index > 0 {
            json.raw(",");
        }
        json.conversation(id, description);
        if json.len() > PAGE_BYTES_MAX && index + 1 < page.conversations.len() {
            next_cursor = Some(id.as_str());
            break;
        }
    }
    json.raw(r#"],"next_cursor":"#);
    match next_cursor {
        Some(cursor) => json.string(cursor),
        None => json.raw("null"),
    };
    json.raw("}");
    json
}
