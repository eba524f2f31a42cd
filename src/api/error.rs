//! The one table from everything that can go wrong to what a client is told.
//!
//! A handler returns [`ApiError`]; the body is written once, by [`render`], where the dialect and the request id are
//! known. Every error answer is JSON: `{"error": CODE, "message": TEXT, ...}`. Details of internal failures stay in the
//! log, under the request id the client gets.

use std::borrow::Cow;

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use serde_json::{Map, Value, json};

use super::dialect::Dialect;
use crate::conversation::{MAX_METADATA_BYTES, Refusal, Reply};
use crate::shards::{ControlError, ReadError, WriteError};

/// Why a request was not served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ApiError {
    /// The body is not JSON, or JSON that cannot be kept; the text says what and where.
    InvalidJson(String),
    /// A field or parameter has a wrong type or value; the text names it.
    InvalidRequest(String),
    /// The id in the path breaks the rules for ids.
    InvalidId(String),
    /// A range lies outside the log or cuts through the summary that covers `covering`.
    InvalidRange {
        message: String,
        covering: Option<(u64, u64)>,
    },
    Unauthorized,
    /// The conversation does not exist.
    NotFound,
    /// The cluster has no such node; the text names it.
    NoSuchNode(String),
    /// No such path.
    NoRoute,
    MethodNotAllowed,
    NotAcceptable(&'static str),
    /// The client took too long to send the body.
    RequestTimeout,
    Conflict {
        expected: u64,
        current: u64,
    },
    /// The state of the cluster forbids it; the text says what would have to be otherwise.
    ClusterRefuses(String),
    Tombstoned,
    IdempotencyConflict,
    /// `what` is larger than `limit_bytes`.
    TooLarge {
        what: Cow<'static, str>,
        limit_bytes: usize,
    },
    /// The messages of a window take more than `limit_bytes`.
    WindowTooLarge {
        limit_bytes: u64,
    },
    UnsupportedMediaType(&'static str),
    /// Over a rate; nothing was done.
    RateLimited {
        message: &'static str,
        retry_after_ms: u64,
    },
    /// A fault of the server; the text is for the log alone.
    Internal(String),
    /// Not done, safe to retry.
    Unavailable(String),
    /// Part of what was asked for lies in the archive alone, which cannot be read.
    ArchiveUnavailable(String),
    /// Perhaps done.
    UnknownOutcome(String),
    TooManyStreams {
        limit: usize,
    },
    Draining,
}

impl ApiError {
    /// The table: status and code of every error.
    fn class(&self) -> (StatusCode, &'static str) {
        match self {
            ApiError::InvalidJson(_) => (StatusCode::BAD_REQUEST, "invalid_json"),
            ApiError::InvalidRequest(_) => (StatusCode::BAD_REQUEST, "invalid_request"),
            ApiError::InvalidId(_) => (StatusCode::BAD_REQUEST, "invalid_id"),
            ApiError::InvalidRange { .. } => (StatusCode::BAD_REQUEST, "invalid_range"),
            ApiError::Unauthorized => (StatusCode::UNAUTHORIZED, "unauthorized"),
            ApiError::NotFound | ApiError::NoSuchNode(_) | ApiError::NoRoute => {
                (StatusCode::NOT_FOUND, "not_found")
            }
            ApiError::MethodNotAllowed => (StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed"),
            ApiError::NotAcceptable(_) => (StatusCode::NOT_ACCEPTABLE, "not_acceptable"),
            ApiError::RequestTimeout => (StatusCode::REQUEST_TIMEOUT, "request_timeout"),
            ApiError::Conflict { .. } | ApiError::ClusterRefuses(_) => (StatusCode::CONFLICT, "conflict"),
            ApiError::Tombstoned => (StatusCode::CONFLICT, "tombstoned"),
            ApiError::IdempotencyConflict => (StatusCode::CONFLICT, "idempotency_conflict"),
            ApiError::TooLarge { .. } | ApiError::WindowTooLarge { .. } => {
                (StatusCode::PAYLOAD_TOO_LARGE, "too_large")
            }
            ApiError::UnsupportedMediaType(_) => {
                (StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type")
            }
            ApiError::RateLimited { .. } => (StatusCode::TOO_MANY_REQUESTS, "rate_limited"),
            ApiError::Internal(_) => (StatusCode::INTERNAL_SERVER_ERROR, "internal"),
            ApiError::Unavailable(_) => (StatusCode::SERVICE_UNAVAILABLE, "unavailable"),
            ApiError::ArchiveUnavailable(_) => (StatusCode::SERVICE_UNAVAILABLE, "archive_unavailable"),
            ApiError::UnknownOutcome(_) => (StatusCode::SERVICE_UNAVAILABLE, "unknown_outcome"),
            ApiError::TooManyStreams { .. } => (StatusCode::SERVICE_UNAVAILABLE, "too_many_streams"),
            ApiError::Draining => (StatusCode::SERVICE_UNAVAILABLE, "draining"),
        }
    }

    pub(crate) fn status(&self) -> StatusCode {
        self.class().0
    }

    pub(crate) fn code(&self) -> &'static str {
        self.class().1
    }

    fn message(&self, dialect: Dialect) -> String {
        let subject = dialect.resource_capitalised();
        match self {
            ApiError::InvalidJson(text) | ApiError::InvalidRequest(text) | ApiError::InvalidId(text) => {
                text.clone()
            }
            ApiError::InvalidRange { message, .. } => message.clone(),
            ApiError::NoSuchNode(text) | ApiError::ClusterRefuses(text) => text.clone(),
            ApiError::Unauthorized => "A known API key is required: Authorization: Bearer KEY".into(),
            ApiError::NotFound => format!("{subject} not found"),
            ApiError::NoRoute => "There is nothing at this path".into(),
            ApiError::MethodNotAllowed => "This path does not take this method; see the Allow header".into(),
            ApiError::NotAcceptable(text) | ApiError::UnsupportedMediaType(text) => (*text).into(),
            ApiError::RequestTimeout => "The request body did not arrive in time".into(),
            ApiError::Conflict { expected, current } => {
                format!("{subject} version changed (expected {expected}, found {current})")
            }
            ApiError::Tombstoned => format!("{subject} was deleted and takes no more writes"),
            ApiError::IdempotencyConflict => "idempotency_key was used before with another body".into(),
            ApiError::TooLarge { what, limit_bytes } => format!("{what} is larger than {limit_bytes} bytes"),
            ApiError::WindowTooLarge { limit_bytes } => format!(
                "The {} takes more than {limit_bytes} bytes: ask for less by budget_tokens, set a lower limit in the \
                 policy, or compact",
                dialect.window()
            ),
            ApiError::RateLimited { message, .. } => (*message).into(),
            ApiError::Internal(_) => "Internal error; the log has the details under this request_id".into(),
            ApiError::Unavailable(why) => format!("Not applied, safe to retry: {why}"),
            ApiError::ArchiveUnavailable(why) => {
                let events = dialect.events();
                format!("Some of these {events} are only in the archive, which cannot be read now: {why}")
            }
            ApiError::UnknownOutcome(why) => format!(
                "May or may not have been applied ({why}): retry with the same idempotency_key or if_version"
            ),
            ApiError::TooManyStreams { limit } => format!("This node already serves {limit} streams"),
            ApiError::Draining => {
                "This node is draining or shutting down; not applied, retry on another node".into()
            }
        }
    }

    /// What a program can use beside the code.
    fn details(&self, request_id: &str) -> Map<String, Value> {
        let details = match self {
            ApiError::Conflict { expected, current } => {
                json!({"expected_version": expected, "current_version": current})
            }
            ApiError::InvalidRange { covering: Some((from, to)), .. } => {
                json!({"covering": {"from_seq": from, "to_seq": to}})
            }
            ApiError::TooLarge { limit_bytes, .. } => json!({"limit_bytes": limit_bytes}),
            ApiError::WindowTooLarge { limit_bytes } => json!({"limit_bytes": limit_bytes}),
            ApiError::RateLimited { retry_after_ms, .. } => json!({"retry_after_ms": retry_after_ms}),
            ApiError::Internal(_) | ApiError::UnknownOutcome(_) => json!({"request_id": request_id}),
            _ => Value::Null,
        };
        match details {
            Value::Object(details) => details,
            _ => Map::new(),
        }
    }

    /// Headers that belong to an error: when to come back, how to authenticate.
    fn headers(&self, headers: &mut HeaderMap) {
        let mut set = |name: HeaderName, value: HeaderValue| headers.insert(name, value);
        match self {
            ApiError::Unauthorized => {
                set(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            }
            ApiError::RateLimited { retry_after_ms, .. } => {
                set(header::RETRY_AFTER, HeaderValue::from(retry_after_ms.div_ceil(1_000).max(1)));
            }
            ApiError::Unavailable(_)
            | ApiError::ArchiveUnavailable(_)
            | ApiError::Draining
            | ApiError::TooManyStreams { .. } => {
                set(header::RETRY_AFTER, HeaderValue::from(1));
            }
            // What is left of an unread body must not be taken for the next request.
            ApiError::TooLarge { .. } | ApiError::RequestTimeout => {
                set(header::CONNECTION, HeaderValue::from_static("close"));
            }
            _ => {}
        }
    }
}

impl ApiError {
    /// The refusal in a reply, or the fault of a reply that does not answer the command.
    pub(crate) fn unexpected(reply: Reply) -> ApiError {
        match reply {
            Reply::Refused(refusal) => refusal.into(),
            other => ApiError::Internal(format!("reply does not answer the command: {other:?}")),
        }
    }
}

impl From<Refusal> for ApiError {
    fn from(refusal: Refusal) -> ApiError {
        match refusal {
            Refusal::NotFound => ApiError::NotFound,
            Refusal::Conflict { expected, current } => ApiError::Conflict { expected, current },
            Refusal::Tombstoned => ApiError::Tombstoned,
            Refusal::IdempotencyConflict => ApiError::IdempotencyConflict,
            Refusal::InvalidRange { message, covering } => ApiError::InvalidRange { message, covering },
            Refusal::TooManySummaries => ApiError::InvalidRange {
                message: "There are too many summaries: compact a range that contains some of them".into(),
                covering: None,
            },
            Refusal::TooManyKeys { retry_after_ms } => ApiError::RateLimited {
                message: "Too many idempotency keys within ten minutes",
                retry_after_ms,
            },
            // That it is an object was checked before: it has become too long by merging.
            Refusal::InvalidMetadata { .. } => {
                ApiError::TooLarge { what: "metadata".into(), limit_bytes: MAX_METADATA_BYTES }
            }
        }
    }
}

impl From<WriteError> for ApiError {
    fn from(error: WriteError) -> ApiError {
        match error {
            WriteError::NotApplied(why) => ApiError::Unavailable(why),
            WriteError::UnknownOutcome(why) => ApiError::UnknownOutcome(why),
            WriteError::Draining => ApiError::Draining,
            WriteError::Full => ApiError::Unavailable(WriteError::Full.to_string()),
        }
    }
}

impl From<ControlError> for ApiError {
    fn from(error: ControlError) -> ApiError {
        match error {
            ControlError::NoSuchNode(why) => ApiError::NoSuchNode(why),
            ControlError::Refused(why) => ApiError::ClusterRefuses(why),
            ControlError::Unavailable(why) => ApiError::Unavailable(why),
            ControlError::UnknownOutcome(why) => ApiError::UnknownOutcome(why),
        }
    }
}

impl From<ReadError> for ApiError {
    fn from(error: ReadError) -> ApiError {
        match error {
            ReadError::Unavailable(why) => ApiError::Unavailable(why),
            ReadError::VersionInFuture { .. } => ApiError::InvalidRequest(error.to_string()),
            ReadError::InvalidQuery(why) => ApiError::InvalidRequest(why),
            ReadError::WindowTooLarge { bytes_max } => ApiError::WindowTooLarge { limit_bytes: bytes_max },
            ReadError::ArchiveUnavailable(why) => ApiError::ArchiveUnavailable(why),
            ReadError::Internal(detail) => ApiError::Internal(detail),
        }
    }
}

/// Carries the error to [`render`]; the body is written there.
impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = self.status().into_response();
        response.extensions_mut().insert(self);
        response
    }
}

/// Gives an error answer its body, whether a handler, the router or axum itself made it; others pass untouched.
/// Returns the error that was rendered, for the log.
pub(crate) fn render(response: &mut Response, dialect: Dialect, request_id: &str) -> Option<ApiError> {
    let error = match response.extensions_mut().remove::<ApiError>() {
        Some(error) => error,
        None => unnamed(response)?,
    };
    let mut body = Map::new();
    body.insert("error".into(), error.code().into());
    body.insert("message".into(), error.message(dialect).into());
    body.append(&mut error.details(request_id));
    *response.status_mut() = error.status();
    error.headers(response.headers_mut());
    response.headers_mut().remove(header::CONTENT_LENGTH);
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    *response.body_mut() = Body::from(Value::Object(body).to_string());
    Some(error)
}

/// The error behind an answer that the router made by itself.
fn unnamed(response: &Response) -> Option<ApiError> {
    match response.status() {
        StatusCode::NOT_FOUND => Some(ApiError::NoRoute),
        StatusCode::METHOD_NOT_ALLOWED => Some(ApiError::MethodNotAllowed),
        _ => None,
    }
}
