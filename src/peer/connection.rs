//! One established connection while it lasts: frames out of its outbox, frames in to its handler, pings.

use std::future::Future;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;

use super::Lane;
use super::frame::{FRAME_BYTES_MAX, Frame, Violation};
use super::outbox::Outbox;
use crate::metrics::Metrics;

/// How often the control connection shows that it lives, and the others.
const HEARTBEAT: Duration = Duration::from_millis(250);
const QUIET_HEARTBEAT: Duration = Duration::from_secs(2);
/// After how many of these without a frame from the other side a connection is given up.
const MISSED_HEARTBEATS_MAX: u32 = 12;
/// A connection whose other side takes nothing for this long is given up.
const WRITE_STALL_MAX: Duration = Duration::from_secs(10);
/// Buffers of the websocket, per connection. What is written is flushed once the outbox is empty.
const READ_BUFFER_BYTES: usize = 32 << 10;
const WRITE_BUFFER_BYTES: usize = 128 << 10;

/// Turns that the other tasks of a thread get, in all, before what was written is flushed. What a few of them save is in
/// `docs/benchmarks.md`; more saved no more. A node with nothing else to do passes them in microseconds.
const TURNS_BEFORE_FLUSH: usize = 6;

/// What a connection does with the frames that carry calls.
pub(crate) trait Handler {
    /// Takes a frame; not returning is the way to make the other side wait.
    fn on_frame(&mut self, frame: Frame) -> impl Future<Output = Result<(), Violation>> + Send;

    /// The time a ping took there and back.
    fn on_rtt(&mut self, _rtt: Duration) {}
}

/// How every websocket between peers is set.
pub(crate) fn websocket_config() -> WebSocketConfig {
    WebSocketConfig::default()
        .max_message_size(Some(FRAME_BYTES_MAX))
        .max_frame_size(Some(FRAME_BYTES_MAX))
        .read_buffer_size(READ_BUFFER_BYTES)
        .write_buffer_size(WRITE_BUFFER_BYTES)
        .max_write_buffer_size(WRITE_BUFFER_BYTES + 2 * FRAME_BYTES_MAX)
}

/// Runs a connection until it breaks; says why it did. The outbox is closed then.
pub(crate) async fn run<IO, H>(
    socket: WebSocketStream<IO>,
    outbox: &Outbox,
    lane: Lane,
    metrics: &Metrics,
    handler: &mut H,
) -> String
where
    IO: AsyncRead + AsyncWrite + Unpin,
    H: Handler,
{
    let (sink, stream) = socket.split();
    let pulse = Pulse::new();
    let _closing = Closing(outbox);
    tokio::select! {
        biased;
        why = write(sink, outbox, lane, metrics, &pulse) => why,
        why = read(stream, outbox, handler, &pulse) => why,
        why = beat(outbox, lane, &pulse) => why,
    }
}

/// Also when the connection's task is dropped, its callers learn of it.
struct Closing<'a>(&'a Outbox);

impl Drop for Closing<'_> {
    fn drop(&mut self) {
        self.0.close();
    }
}

async fn write<IO: AsyncRead + AsyncWrite + Unpin>(
    mut sink: SplitSink<WebSocketStream<IO>, Message>,
    outbox: &Outbox,
    lane: Lane,
    metrics: &Metrics,
    pulse: &Pulse,
) -> String {
    let (frames, bytes) =
        (metrics.peer_frames_sent.of(lane as usize), metrics.peer_bytes_sent.of(lane as usize));
    while let Ok(first) = outbox.next().await {
        pulse.writing();
        let (mut frame, mut turns) = (Some(first), TURNS_BEFORE_FLUSH);
        while let Some(next) = frame {
            let encoded = next.encode();
            frames.inc();
            bytes.inc_by(encoded.len() as u64);
            if let Err(error) = sink.feed(Message::Binary(encoded)).await {
                return error.to_string();
            }
            pulse.writing();
            frame = next_to_flush(outbox, &mut turns).await;
        }
        if let Err(error) = sink.flush().await {
            return error.to_string();
        }
        pulse.written();
    }
    "closed here".to_owned()
}

/// The next frame, if there is one before the buffer should be flushed. Tasks that are about to make one get a turn: a
/// flush is a system call here and a wake-up there, and costs more than many frames.
async fn next_to_flush(outbox: &Outbox, turns: &mut usize) -> Option<Frame> {
    loop {
        match outbox.try_next().unwrap_or(None) {
            None if *turns > 0 => *turns -= 1,
            frame => return frame,
        }
        tokio::task::yield_now().await;
    }
}

async fn read<IO: AsyncRead + AsyncWrite + Unpin, H: Handler>(
    mut stream: SplitStream<WebSocketStream<IO>>,
    outbox: &Outbox,
    handler: &mut H,
    pulse: &Pulse,
) -> String {
    loop {
        let frame = match stream.next().await {
            Some(Ok(Message::Binary(bytes))) => Frame::decode(bytes),
            Some(Ok(Message::Ping(_) | Message::Pong(_))) => continue,
            Some(Ok(Message::Close(_))) | None => return "closed by the other side".to_owned(),
            Some(Ok(Message::Text(_) | Message::Frame(_))) => Err(Violation::UnknownKind),
            Some(Err(error)) => return error.to_string(),
        };
        pulse.busy(true);
        let taken = match frame {
            Ok(Frame::Ping { stamp }) => {
                outbox.pong(stamp);
                Ok(())
            }
            Ok(Frame::Pong { stamp }) => {
                handler.on_rtt(Duration::from_micros(pulse.now_us().saturating_sub(stamp)));
                Ok(())
            }
            Ok(frame) => handler.on_frame(frame).await,
            Err(violation) => Err(violation),
        };
        pulse.busy(false);
        if let Err(violation) = taken {
            return format!("the other side sent {violation}");
        }
    }
}

/// Sends pings, and ends when the other side is silent or takes nothing for too long.
async fn beat(outbox: &Outbox, lane: Lane, pulse: &Pulse) -> String {
    let every = if lane == Lane::Control { HEARTBEAT } else { QUIET_HEARTBEAT };
    let mut ticks = tokio::time::interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        if pulse.silence() > every * MISSED_HEARTBEATS_MAX {
            return "the other side is silent".to_owned();
        }
        if pulse.stall() > WRITE_STALL_MAX {
            return "the other side takes nothing".to_owned();
        }
        outbox.ping(pulse.now_us());
    }
}

/// Signs of life, in microseconds since the connection began; zero is "not now".
struct Pulse {
    start: Instant,
    heard_us: AtomicU64,
    writing_us: AtomicU64,
    is_busy: AtomicBool,
}

impl Pulse {
    fn new() -> Pulse {
        Pulse {
            start: Instant::now(),
            heard_us: AtomicU64::new(0),
            writing_us: AtomicU64::new(0),
            is_busy: AtomicBool::new(false),
        }
    }

    fn now_us(&self) -> u64 {
        self.start.elapsed().as_micros() as u64
    }

    fn writing(&self) {
        self.writing_us.store(self.now_us().max(1), Ordering::Relaxed);
    }

    fn written(&self) {
        self.writing_us.store(0, Ordering::Relaxed);
    }

    /// A frame was heard; while this side is busy with it, silence is its own doing.
    fn busy(&self, is_busy: bool) {
        self.is_busy.store(is_busy, Ordering::Relaxed);
        self.heard_us.store(self.now_us(), Ordering::Relaxed);
    }

    fn silence(&self) -> Duration {
        if self.is_busy.load(Ordering::Relaxed) {
            return Duration::ZERO;
        }
        Duration::from_micros(self.now_us().saturating_sub(self.heard_us.load(Ordering::Relaxed)))
    }

    fn stall(&self) -> Duration {
        match self.writing_us.load(Ordering::Relaxed) {
            0 => Duration::ZERO,
            since => Duration::from_micros(self.now_us().saturating_sub(since)),
        }
    }
}

/// Bodies in few pieces: an empty one has none.
pub(crate) fn length(body: &[Bytes]) -> usize {
    body.iter().map(Bytes::len).sum()
}
