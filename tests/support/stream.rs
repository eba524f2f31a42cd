//! A websocket client of a conversation's stream, for tests.

use super::process::Process;
use futures_util::StreamExt;
use serde_json::Value;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async};

/// Longest wait for a frame that must come.
const FRAME_MAX: Duration = Duration::from_secs(30);

pub(crate) struct Stream(WebSocketStream<MaybeTlsStream<TcpStream>>);

/// What a stream says next.
#[derive(Debug, PartialEq)]
pub(crate) enum Next {
    /// A frame other than `ping`.
    Frame(Value),
    /// Closed by the server, with its code.
    Closed(u16),
    /// The connection broke without a goodbye.
    Lost,
}

impl Stream {
    /// Opens the stream after `cursor`, the last version processed.
    pub(crate) async fn open(process: &Process, id: &str, cursor: u64) -> Result<Stream, Error> {
        Stream::open_at(process.address(), id, cursor).await
    }

    /// The same at whatever listens there.
    pub(crate) async fn open_at(address: SocketAddr, id: &str, cursor: u64) -> Result<Stream, Error> {
        let url = format!("ws://{address}/v1/conversations/{id}/stream?cursor={cursor}");
        connect_async(url).await.map(|(stream, _)| Stream(stream))
    }

    /// Waits for the next frame or the end.
    pub(crate) async fn next(&mut self) -> Next {
        tokio::time::timeout(FRAME_MAX, self.next_whenever()).await.expect("a frame or an end comes in time")
    }

    /// The same, however long it takes.
    pub(crate) async fn next_whenever(&mut self) -> Next {
        loop {
            match self.0.next().await {
                Some(Ok(Message::Text(text))) => {
                    let frame: Value = serde_json::from_str(&text).expect("a frame is JSON");
                    if frame["type"] != "ping" {
                        return Next::Frame(frame);
                    }
                }
                Some(Ok(Message::Close(close))) => {
                    return Next::Closed(close.map_or(1005, |close| close.code.into()));
                }
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return Next::Lost,
            }
        }
    }
}
