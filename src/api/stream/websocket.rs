//! Frames over a websocket: one task per connection that writes what the source has and listens for signs of life.
//!
//! tungstenite's defaults would take 64 MiB from a client and buffer without end towards it. Here a client may say
//! little, what is buffered towards it is one page and one event, and a client that takes nothing at all is dropped by
//! the connection's write deadline. Closing codes: 1000 after `tombstoned`, 1001 when the node shuts down, 1013 when what
//! comes next is only in the archive, which cannot be read, 1011 when the log cannot be read or a frame is too large to be
//! written; the reason names the cursor to resume from.

use std::error::Error as _;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::ws::{CloseFrame, Message, Utf8Bytes, WebSocket, WebSocketUpgrade, close_code};
use axum::response::Response;
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use tokio::time::timeout;
use tokio_tungstenite::tungstenite;
use tokio_util::sync::CancellationToken;

use super::frame::Frame;
use super::ping_interval;
use super::source::Source;
use crate::api::limits::ConnectionPermit;
use crate::api::{Scope, StreamPermit};
use crate::config::BODY_BYTES_MAX;
use crate::shards::ReadError;

/// Largest message a client may send: pongs are all that is expected.
const INBOUND_BYTES_MAX: usize = 64 << 10;
/// Frames are written to the socket once this much has gathered, or when none is ready.
const WRITE_BUFFER_BYTES: usize = 64 << 10;
/// A frame's JSON beside the event's body.
const FRAME_BYTES: usize = 1 << 10;
/// Most that is buffered towards a client: what has gathered, and the largest event there can be. It may be older than the
/// limit of today.
const WRITE_BUFFER_BYTES_MAX: usize = WRITE_BUFFER_BYTES + BODY_BYTES_MAX as usize + FRAME_BYTES;
/// A client from which nothing came for this long is gone.
const SILENCE_MAX: Duration = Duration::from_secs(90);
/// How long closing politely may take.
const CLOSE_MAX: Duration = Duration::from_secs(5);

/// Upgrades the connection and serves the source on it. `held` is kept until the end.
pub(super) fn respond(
    upgrade: WebSocketUpgrade,
    source: Source,
    held: (StreamPermit, Option<Arc<ConnectionPermit>>),
    scope: &Scope,
) -> Response {
    let closing = scope.app.closing.clone();
    upgrade
        .max_message_size(INBOUND_BYTES_MAX)
        .max_frame_size(INBOUND_BYTES_MAX)
        .write_buffer_size(WRITE_BUFFER_BYTES)
        .max_write_buffer_size(WRITE_BUFFER_BYTES_MAX)
        .on_upgrade(async move |socket| {
            let _held = held;
            let too_late = async {
                closing.cancelled().await;
                tokio::time::sleep(CLOSE_MAX).await;
            };
            tokio::select! {
                () = session(socket, source, &closing) => {}
                () = too_late => {}
            }
        })
}

async fn session(socket: WebSocket, mut source: Source, closing: &CancellationToken) {
    let (mut sink, mut stream) = socket.split();
    let goodbye = tokio::select! {
        goodbye = write(&mut sink, &mut source, closing) => goodbye,
        () = listen(&mut stream) => None,
    };
    if let Some(frame) = goodbye {
        let farewell = async {
            if sink.send(Message::Close(Some(frame))).await.is_ok() {
                listen(&mut stream).await;
            }
        };
        // A peer that does not answer is dropped.
        let _ = timeout(CLOSE_MAX, farewell).await;
    }
}

/// Writes frames until there are no more; then says why. `None` when the connection is gone.
async fn write(
    sink: &mut SplitSink<WebSocket, Message>,
    source: &mut Source,
    closing: &CancellationToken,
) -> Option<CloseFrame> {
    let mut ping = ping_interval();
    loop {
        let cursor = source.position();
        tokio::select! {
            () = closing.cancelled() => return Some(goodbye(close_code::AWAY, source.position())),
            _ = ping.tick() => {
                // The frame for clients that read frames, the control message for libraries that answer by themselves.
                let frame = Frame::ping(source.position());
                sink.feed(Message::Text(frame.text)).await.ok()?;
                sink.send(Message::Ping(bytes::Bytes::new())).await.ok()?;
            }
            frame = source.next() => match frame {
                Ok(Some(frame)) => {
                    match sink.feed(Message::Text(frame.text)).await {
                        Ok(()) => {}
                        Err(error) if is_too_large(&error) => {
                            source.broken_off(&error);
                            return Some(goodbye(close_code::ERROR, cursor));
                        }
                        Err(_) => return None,
                    }
                    if !source.has_ready() {
                        sink.flush().await.ok()?;
                    }
                }
                Ok(None) => return Some(goodbye(close_code::NORMAL, source.position())),
                Err(error) => {
                    source.broken_off(&error);
                    let code = match error {
                        ReadError::ArchiveUnavailable(_) => close_code::AGAIN,
                        _ => close_code::ERROR,
                    };
                    return Some(goodbye(code, source.position()));
                }
            }
        }
    }
}

/// Reads until the client is gone, has closed, or has been silent for too long. What it says does not matter.
async fn listen(stream: &mut SplitStream<WebSocket>) {
    while let Ok(Some(Ok(_))) = timeout(SILENCE_MAX, stream.next()).await {}
}

/// Whether a frame was not taken by a connection that is there: no client gets beyond it.
fn is_too_large(error: &axum::Error) -> bool {
    let error = error.source().and_then(|error| error.downcast_ref::<tungstenite::Error>());
    matches!(error, Some(tungstenite::Error::WriteBufferFull(_) | tungstenite::Error::Capacity(_)))
}

fn goodbye(code: u16, cursor: u64) -> CloseFrame {
    CloseFrame { code, reason: Utf8Bytes::from(format!("cursor={cursor}")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_too_large_is_told_from_a_connection_that_is_gone() {
        let frame = Box::new(tungstenite::Message::Ping(bytes::Bytes::new()));
        assert!(is_too_large(&axum::Error::new(tungstenite::Error::WriteBufferFull(frame))));
        let reset = std::io::Error::from(std::io::ErrorKind::ConnectionReset);
        for gone in [tungstenite::Error::Io(reset), tungstenite::Error::ConnectionClosed] {
            assert!(!is_too_large(&axum::Error::new(gone)));
        }
    }
}
