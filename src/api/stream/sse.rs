//! Server-sent events: every frame as `data`, its version as `id`, so that a client that reconnects resumes.
//!
//! Frames have no `event:` name, so that `onmessage` gets them all. Shutting down ends the response, upon which an
//! `EventSource` reconnects by itself.

use std::convert::Infallible;

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use futures_util::stream;
use http::{HeaderName, HeaderValue, header};
use tokio::time::Interval;
use tokio_util::sync::CancellationToken;

use super::source::Source;
use super::{frame::Frame, ping_interval};
use crate::api::{Scope, StreamPermit};

pub(super) const MEDIA: &str = "text/event-stream";
/// Frames are sent together up to this size.
const CHUNK_BYTES: usize = 64 << 10;
/// How long clients wait before they reconnect.
const RETRY: &[u8] = b"retry: 1000\n\n";

/// Answers with the frames of a source until it ends or the node shuts down.
pub(super) fn respond(source: Source, permit: StreamPermit, scope: &Scope) -> Response {
    let events = Events {
        source,
        ping: ping_interval(),
        closing: scope.app.closing.clone(),
        greeted: false,
        _permit: permit,
    };
    let chunks = stream::unfold(events, async |mut events| {
        let chunk = events.next().await?;
        Some((Ok::<_, Infallible>(chunk), events))
    });
    let mut response = Response::new(Body::from_stream(chunks));
    let mut set = |name, value| response.headers_mut().insert(name, HeaderValue::from_static(value));
    set(header::CONTENT_TYPE, MEDIA);
    set(header::CACHE_CONTROL, "no-cache");
    set(HeaderName::from_static("x-accel-buffering"), "no");
    response
}

struct Events {
    source: Source,
    ping: Interval,
    closing: CancellationToken,
    greeted: bool,
    _permit: StreamPermit,
}

impl Events {
    async fn next(&mut self) -> Option<Bytes> {
        if !std::mem::replace(&mut self.greeted, true) {
            return Some(Bytes::from_static(RETRY));
        }
        tokio::select! {
            () = self.closing.cancelled() => None,
            _ = self.ping.tick() => {
                let ping = Frame::ping(self.source.position());
                Some(format!("data: {}\n\n", ping.text.as_str()).into())
            }
            frame = self.source.next() => match frame {
                Ok(Some(frame)) => Some(self.chunk(frame)),
                Ok(None) => None,
                Err(error) => {
                    self.source.broken_off(&error);
                    None
                }
            }
        }
    }

    /// A frame and those that are ready behind it.
    fn chunk(&mut self, first: Frame) -> Bytes {
        let mut chunk = Vec::with_capacity(first.text.len() + 64);
        push(&mut chunk, &first);
        while chunk.len() < CHUNK_BYTES
            && let Some(frame) = self.source.take_ready()
        {
            push(&mut chunk, &frame);
        }
        chunk.into()
    }
}

fn push(chunk: &mut Vec<u8>, frame: &Frame) {
    chunk.extend_from_slice(b"id: ");
    chunk.extend_from_slice(itoa::Buffer::new().format(frame.version).as_bytes());
    chunk.extend_from_slice(b"\ndata: ");
    chunk.extend_from_slice(frame.text.as_bytes());
    chunk.extend_from_slice(b"\n\n");
}
