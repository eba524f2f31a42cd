//! A reader of one conversation's stream from the beginning to the end, over as many connections as it takes, on any node.

use crate::rng::Rng;
use crate::support::client::text_of;
use crate::support::cluster::Addresses;
use crate::support::stream::{Next, Stream};
use serde_json::Value;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::timeout;

/// Longest wait for a connection, and for a frame before looking elsewhere: a stopped or cut off node says nothing.
const SILENCE_MAX: Duration = Duration::from_secs(3);

/// Pause before connecting again.
const RETRY: Duration = Duration::from_millis(20);

/// It leaves by itself after at most so many frames.
const FRAMES_MAX: usize = 300;

/// What a reader has processed.
#[derive(Debug, Default)]
pub(crate) struct Followed {
    cursor: u64,
    pub(crate) events: Vec<(u64, String)>,
    pub(crate) connections: usize,
}

impl Followed {
    /// Takes one frame, which must be the next one: versions rise one by one, whatever lies between.
    fn take(&mut self, frame: &Value) -> Result<(), String> {
        let version = frame["version"].as_u64().unwrap_or_default();
        if frame["type"] == "window" && version <= self.cursor {
            return Ok(()); // Says nothing new about the log.
        }
        if version != self.cursor + 1 || frame["type"] == "gap" || frame["type"] == "reset" {
            return Err(format!("after version {} came {frame}", self.cursor));
        }
        self.cursor = version;
        if frame["type"] == "event" {
            let seq = frame["seq"].as_u64().unwrap_or_default();
            self.events.push((seq, text_of(&frame["event"]).to_owned()));
        }
        Ok(())
    }
}

/// Reads until it has processed the version that `end` comes to hold.
pub(crate) async fn follow(
    addresses: Addresses,
    id: String,
    mut rng: Rng,
    mut end: watch::Receiver<Option<u64>>,
) -> Result<Followed, String> {
    let mut followed = Followed::default();
    loop {
        let address = *rng.pick(&addresses.all());
        let leave_after = 1 + rng.below(FRAMES_MAX);
        if let Ok(Ok(stream)) = timeout(SILENCE_MAX, Stream::open_at(address, &id, followed.cursor)).await {
            followed.connections += 1;
            read_on(stream, leave_after, &mut followed, &mut end)
                .await
                .map_err(|error| format!("the stream of {id} at {address}: {error}"))?;
        }
        if end.borrow().is_some_and(|version| followed.cursor >= version) {
            return Ok(followed);
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// Reads one connection to its end, to the end of everything, or until the reader would rather have another.
async fn read_on(
    mut stream: Stream,
    leave_after: usize,
    followed: &mut Followed,
    end: &mut watch::Receiver<Option<u64>>,
) -> Result<(), String> {
    for _ in 0..leave_after {
        if end.borrow().is_some_and(|version| followed.cursor >= version) {
            return Ok(());
        }
        let next = tokio::select! {
            next = timeout(SILENCE_MAX, stream.next_whenever()) => next,
            Ok(()) = end.changed() => continue,
        };
        match next {
            Ok(Next::Frame(frame)) => followed.take(&frame)?,
            Ok(Next::Closed(_) | Next::Lost) | Err(_) => return Ok(()),
        }
    }
    Ok(())
}
