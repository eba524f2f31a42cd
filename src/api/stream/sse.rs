//! Server-sent events: every frame as `data`, its version as `id`, so that a client that reconnects resumes. The first
//! block has an `id` too: a client that is cut off before the first frame misses nothing either.
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
const RETRY: &[u8] = b"retry: 1000\n";

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
            return Some(self.greeting());
        }
        tokio::select! {
            // Frames first: a ping before a `reset` would have the position after it.
            biased;
            () = self.closing.cancelled() => None,
            frame = self.source.next() => match frame {
                Ok(Some(frame)) => Some(self.chunk(frame)),
                Ok(None) => None,
                Err(error) => {
                    self.source.broken_off(&error);
                    None
                }
            },
            _ = self.ping.tick() => {
                let ping = Frame::ping(self.source.position());
                Some(self.chunk(ping))
            }
        }
    }

    /// What comes before the first frame.
    fn greeting(&self) -> Bytes {
        let mut greeting = RETRY.to_vec();
        // With the new position, a client that is cut off before a `reset` would never hear of it.
        if !self.source.has_ready() {
            push_id(&mut greeting, self.source.position());
        }
        greeting.push(b'\n');
        greeting.into()
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
    push_id(chunk, frame.version);
    chunk.extend_from_slice(b"data: ");
    chunk.extend_from_slice(frame.text.as_bytes());
    chunk.extend_from_slice(b"\n\n");
}

fn push_id(chunk: &mut Vec<u8>, version: u64) {
    chunk.extend_from_slice(b"id: ");
    chunk.extend_from_slice(itoa::Buffer::new().format(version).as_bytes());
    chunk.push(b'\n');
}
