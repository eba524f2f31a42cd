//! What a path names: a conversation, or a node.

use axum::extract::{FromRequestParts, RawPathParams};
use http::request::Parts;

use super::Scope;
use super::error::ApiError;
use crate::conversation::{ConversationId, InvalidId, MAX_ID_BYTES};

/// The validated `{id}` of a path, percent-decoded.
pub(crate) struct Id(pub ConversationId);

/// The `{name}` of a node in a path, percent-decoded.
pub(crate) struct NodeName(pub String);

impl FromRequestParts<Scope> for Id {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, scope: &Scope) -> Result<Id, ApiError> {
        let noun = scope.dialect.resource();
        let invalid = |why: &str| ApiError::InvalidId(format!("A {noun} id {why}"));
        let id = param(parts, scope, "id").await;
        let id = id.ok_or_else(|| invalid("must be UTF-8 once percent-decoded"))?;
        ConversationId::parse(&id).map(Id).map_err(|error| match error {
            InvalidId::Empty => invalid("must not be empty"),
            InvalidId::TooLong(bytes) => invalid(&format!("has at most {MAX_ID_BYTES} bytes, not {bytes}")),
            InvalidId::Character(character) => invalid(&format!(
                "must not contain {character:?}: letters, digits, any of . _ : ~ @ - and percent-encoded UTF-8 are allowed"
            )),
        })
    }
}

impl FromRequestParts<Scope> for NodeName {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, scope: &Scope) -> Result<NodeName, ApiError> {
        let invalid = || ApiError::InvalidRequest("name must be UTF-8 once percent-decoded".into());
        param(parts, scope, "name").await.map(NodeName).ok_or_else(invalid)
    }
}

/// A parameter of a path, percent-decoded; `None` when it is not UTF-8.
async fn param(parts: &mut Parts, scope: &Scope, wanted: &str) -> Option<String> {
    let params = RawPathParams::from_request_parts(parts, scope).await.ok()?;
    let value = params.iter().find_map(|(name, value)| (name == wanted).then_some(value));
    Some(value.unwrap_or_default().to_owned())
}
