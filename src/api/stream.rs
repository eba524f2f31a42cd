//! Live streams: one source of frames, delivered by websocket or as server-sent events.
//!
//! Authentication, the stream cap and the look-up of the conversation come before the upgrade, so that they are
//! answered with plain HTTP errors.

mod frame;
mod source;
mod sse;
mod websocket;

use std::sync::Arc;
use std::time::Duration;

use axum::extract::ws::WebSocketUpgrade;
use axum::extract::{FromRequestParts, Request, State};
use axum::response::{IntoResponse, Response};
use http::request::Parts as Head;
use http::{HeaderMap, StatusCode, header};
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at};

use self::source::Source;
use super::error::ApiError;
use super::limits::ConnectionPermit;
use super::path::Id;
use super::wire::query::{Query, whole_number};
use super::{Scope, StreamPermit, accept};

const PING_EVERY: Duration = Duration::from_secs(30);

pub(super) async fn open(
    State(scope): State<Scope>,
    Id(id): Id,
    request: Request,
) -> Result<Response, ApiError> {
    let mut head = request.into_parts().0;
    let transport = Transport::of(&head)?;
    let params = Query::new(head.uri.query());
    let include_events = params.flag(scope.dialect.include_flag(), true)?;
    let from_query = params.number("cursor", 0..=u64::MAX)?;
    // A client that reconnects by itself repeats the URL: where it got to is in the header.
    let cursor = match transport {
        Transport::Sse => last_event_id(&head.headers)?.or(from_query),
        Transport::WebSocket => from_query,
    };
    let permit = StreamPermit::take(&scope.app)?;
    let source = Source::open(&scope, id, cursor, include_events).await?;
    match transport {
        // The answer that makes an EventSource stop reconnecting.
        Transport::Sse if source.is_spent() => Ok(StatusCode::NO_CONTENT.into_response()),
        Transport::Sse => Ok(sse::respond(source, permit, &scope)),
        Transport::WebSocket => {
            let connection = head.extensions.remove::<Arc<ConnectionPermit>>();
            let upgrade = WebSocketUpgrade::from_request_parts(&mut head, &scope).await;
            let upgrade =
                upgrade.map_err(|_| ApiError::InvalidRequest("Not a websocket handshake".into()))?;
            Ok(websocket::respond(upgrade, source, (permit, connection), &scope))
        }
    }
}

/// When to send `ping`: first after one period, and never in bursts to make up for lost time.
fn ping_interval() -> Interval {
    let mut interval = interval_at(Instant::now() + PING_EVERY, PING_EVERY);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    interval
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Transport {
    WebSocket,
    Sse,
}

impl Transport {
    fn of(head: &Head) -> Result<Transport, ApiError> {
        let upgrade = head.headers.get(header::UPGRADE).and_then(|value| value.to_str().ok());
        if upgrade.is_some_and(|protocol| protocol.eq_ignore_ascii_case("websocket")) {
            Ok(Transport::WebSocket)
        } else if accept::asks_for(&head.headers, sse::MEDIA) {
            Ok(Transport::Sse)
        } else {
            Err(ApiError::NotAcceptable("Connect by websocket, or send Accept: text/event-stream"))
        }
    }
}

fn last_event_id(headers: &HeaderMap) -> Result<Option<u64>, ApiError> {
    let Some(value) = headers.get("last-event-id") else { return Ok(None) };
    match String::from_utf8_lossy(value.as_bytes()).trim() {
        // An EventSource's word for none.
        "" => Ok(None),
        text => whole_number("Last-Event-ID", text, 0..=u64::MAX).map(Some),
    }
}
