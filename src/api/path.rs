//! The conversation id in a path.

use axum::extract::{FromRequestParts, RawPathParams};
use http::request::Parts;

use super::Scope;
use super::error::ApiError;
use crate::conversation::{ConversationId, InvalidId, MAX_ID_BYTES};

/// The validated `{id}` of a path, percent-decoded.
pub(crate) struct Id(pub ConversationId);

impl FromRequestParts<Scope> for Id {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, scope: &Scope) -> Result<Id, ApiError> {
        let noun = scope.dialect.resource();
        let invalid = |why: &str| ApiError::InvalidId(format!("A {noun} id {why}"));
        let params = RawPathParams::from_request_parts(parts, scope).await;
        let params = params.map_err(|_| invalid("must be UTF-8 once percent-decoded"))?;
        let id = params.iter().find_map(|(name, value)| (name == "id").then_some(value)).unwrap_or_default();
        ConversationId::parse(id).map(Id).map_err(|error| match error {
            InvalidId::Empty => invalid("must not be empty"),
            InvalidId::TooLong(bytes) => invalid(&format!("has at most {MAX_ID_BYTES} bytes, not {bytes}")),
            InvalidId::Character(character) => invalid(&format!(
                "must not contain {character:?}: letters, digits, any of . _ : ~ @ - and percent-encoded UTF-8 are allowed"
            )),
        })
    }
}
