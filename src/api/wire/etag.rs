//! Entity tags: `W/"VERSION-HASH"`, from the conversation's version and from what was asked.
//!
//! The hash covers path and query as sent, and so the dialect too. Tags are weak because a compressed answer has other
//! bytes; RFC 9110 (13.1.2) compares `If-None-Match` weakly anyway.

use axum::response::Response;
use http::{HeaderMap, HeaderValue, StatusCode, Uri, header};
use xxhash_rust::xxh3::xxh3_64;

/// What was asked, as far as tags are concerned.
#[derive(Clone, Copy)]
pub(crate) struct Asked(u64);

impl Asked {
    pub(crate) fn of(uri: &Uri) -> Asked {
        Asked(xxh3_64(uri.path_and_query().map_or(uri.path(), |asked| asked.as_str()).as_bytes()))
    }

    fn tag(self, version: u64) -> String {
        format!("W/\"{version:x}-{:016x}\"", self.0)
    }

    /// Whether the client said that it has the answer of `version` already.
    pub(crate) fn is_known(self, headers: &HeaderMap, version: u64) -> bool {
        let tag = self.tag(version);
        let opaque = |tag: &str| tag.trim().trim_start_matches("W/").to_owned();
        let values = headers.get_all(header::IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok());
        values
            .flat_map(|value| value.split(','))
            .any(|given| given.trim() == "*" || opaque(given) == opaque(&tag))
    }

    /// Marks an answer as that of `version`.
    pub(crate) fn mark(self, mut response: Response, version: u64) -> Response {
        if let Ok(tag) = HeaderValue::try_from(self.tag(version)) {
            response.headers_mut().insert(header::ETAG, tag);
        }
        response
    }

    /// `304` for a client that has the answer of `version`.
    pub(crate) fn not_modified(self, version: u64) -> Response {
        let mut response = Response::default();
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        self.mark(response, version)
    }
}

/// Whether the client has an answer it wants to keep, so that looking up the version first may save the work.
pub(crate) fn is_conditional(headers: &HeaderMap) -> bool {
    headers.contains_key(header::IF_NONE_MATCH)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(given: &'static str, uri: &'static str, version: u64) -> bool {
        let headers = HeaderMap::from_iter([(header::IF_NONE_MATCH, HeaderValue::from_static(given))]);
        Asked::of(&Uri::from_static(uri)).is_known(&headers, version)
    }

    #[test]
    fn a_tag_is_known_again_for_the_same_version_and_question_only() {
        let asked = Asked::of(&Uri::from_static("/v1/conversations/a/window?budget_tokens=5"));
        let tag: &'static str = asked.tag(0x2a).leak();
        assert!(tag.starts_with("W/\"2a-"));
        let uri = "/v1/conversations/a/window?budget_tokens=5";
        assert!(known(tag, uri, 42));
        assert!(known(format!("\"other\", {tag}").leak(), uri, 42), "in a list");
        assert!(known(tag.trim_start_matches("W/"), uri, 42), "compared weakly");
        assert!(known("*", uri, 42));
        assert!(!known(tag, uri, 43));
        assert!(!known(tag, "/v1/conversations/a/window?budget_tokens=6", 42));
        assert!(!known(tag, "/v1/contexts/a/context?budget_tokens=5", 42));
    }
}
