//! For the commands that compare a cluster with its archive, back it up, and rebuild one. Not in the API document: these
//! are between a node and its own command line.

use axum::body::Body;
use axum::extract::{RawQuery, State};
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, HeaderValue, header};
use serde_json::json;

use super::Scope;
use super::error::ApiError;
use super::wire::query::Query;
use crate::conversation::{Action, Command, ConversationId, FrameLocation, Reply};
use crate::shards::Cursor;

/// `?id=&first=&limit=`: digests of a conversation's versions.
pub(super) async fn digests(
    State(scope): State<Scope>,
    RawQuery(query): RawQuery,
) -> Result<Response, ApiError> {
    let params = Query::new(query.as_deref());
    let first = params.number("first", 0..=u64::MAX)?.unwrap_or(0);
    let limit = params.number("limit", 0..=u64::MAX)?.unwrap_or(u64::MAX);
    let id = id(&params)?;
    let page = scope.app.shards.version_digests(&id, first, limit).await?.ok_or(ApiError::NotFound)?;
    let digests: Vec<String> = page.digests.iter().map(|digest| format!("{digest:032x}")).collect();
    Ok(json_answer(&json!({
        "version": page.version, "archived_version": page.archived_version, "digests": digests
    })))
}

/// `?id=&version=&key=&keys=`: an excerpt of a conversation's history from a [`Cursor`] on, as MessagePack.
pub(super) async fn history(
    State(scope): State<Scope>,
    RawQuery(query): RawQuery,
) -> Result<Response, ApiError> {
    let params = Query::new(query.as_deref());
    let number = |name| Ok::<_, ApiError>(params.number(name, 0..=u64::MAX)?.unwrap_or(0));
    let from = Cursor { version: number("version")?, key: number("key")?, keys: number("keys")? };
    let excerpt = scope.app.shards.excerpt(&id(&params)?, from).await?.ok_or(ApiError::NotFound)?;
    let media = HeaderValue::from_static("application/vnd.msgpack");
    Ok(([(header::CONTENT_TYPE, media)], excerpt.encode()).into_response())
}

fn id(params: &Query) -> Result<ConversationId, ApiError> {
    let id = params.text("id")?.ok_or_else(|| ApiError::InvalidRequest("id is missing".into()))?;
    ConversationId::parse(id).map_err(|error| ApiError::InvalidRequest(error.to_string()))
}

/// Takes an encoded command that restores a piece of a conversation, and nothing else.
pub(super) async fn restore(
    State(scope): State<Scope>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let received = scope.receive_piece(&headers, body).await?;
    let (command, _) = Command::decode(received.bytes.clone(), FrameLocation::default())
        .map_err(|error| ApiError::InvalidRequest(error.to_string()))?;
    let Action::Restore(_) = &command.action else {
        return Err(ApiError::InvalidRequest("the command restores nothing".into()));
    };
    match scope.app.shards.restore(command).await? {
        Reply::Restored { version } => Ok(json_answer(&json!({"version": version}))),
        other => Err(ApiError::unexpected(other)),
    }
}

fn json_answer(value: &serde_json::Value) -> Response {
    let media = HeaderValue::from_static("application/json");
    ([(header::CONTENT_TYPE, media)], value.to_string()).into_response()
}
