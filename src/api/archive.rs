//! For the commands that compare a cluster with its archive and rebuild one from it. Not in the API document: these are
//! between a node and its own command line.

use axum::body::Body;
use axum::extract::{RawQuery, State};
use axum::response::{IntoResponse, Response};
use http::{HeaderValue, header};
use serde_json::json;

use super::Scope;
use super::error::ApiError;
use crate::conversation::{Action, Command, ConversationId, FrameLocation, Reply};

/// Largest piece of a conversation that is restored at once.
const PIECE_BYTES_MAX: usize = 16 << 20;

/// `?id=&first=&limit=`: digests of a conversation's versions.
pub(super) async fn digests(
    State(scope): State<Scope>,
    RawQuery(query): RawQuery,
) -> Result<Response, ApiError> {
    let (mut id, mut first, mut limit) = (None, 0, u64::MAX);
    for (name, value) in form_urlencoded::parse(query.as_deref().unwrap_or_default().as_bytes()) {
        let number =
            || value.parse().map_err(|_| ApiError::InvalidRequest(format!("{name} must be a number")));
        match &*name {
            "id" => {
                id = Some(ConversationId::parse(&value).map_err(|e| ApiError::InvalidRequest(e.to_string()))?)
            }
            "first" => first = number()?,
            "limit" => limit = number()?,
            _ => {}
        }
    }
    let id = id.ok_or_else(|| ApiError::InvalidRequest("id is missing".into()))?;
    let page = scope.app.shards.version_digests(&id, first, limit).await?.ok_or(ApiError::NotFound)?;
    let digests: Vec<String> = page.digests.iter().map(|digest| format!("{digest:032x}")).collect();
    Ok(json_answer(&json!({
        "version": page.version, "archived_version": page.archived_version, "digests": digests
    })))
}

/// Takes an encoded command that restores a piece of a conversation, and nothing else.
pub(super) async fn restore(State(scope): State<Scope>, body: Body) -> Result<Response, ApiError> {
    let body = axum::body::to_bytes(body, PIECE_BYTES_MAX).await;
    let body = body.map_err(|error| ApiError::InvalidRequest(error.to_string()))?;
    let (command, _) = Command::decode(body, FrameLocation::default())
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
