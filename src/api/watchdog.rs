//! A stream, plain or TLS, that gives up on a peer that does not keep up.
//!
//! hyper and tungstenite wait for ever: for the rest of a request head, for the next request, for a peer to read what
//! was written. This wrapper fails the stream instead, so that such a connection costs bounded time, whatever protocol
//! runs on it. One timer per connection is armed lazily: a connection in use costs hardly any timer traffic.
//!
//! Request bodies are not its business ([`super::body`]), since only the handler knows whether it wants one.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep};

use super::pieces::Untaken;
use crate::metrics::Metrics;

/// How long a connection may keep the server waiting.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Patience {
    /// From the first byte of a request head to its last, and from connecting to the first head.
    pub head: Duration,
    /// Between requests.
    pub idle: Duration,
    /// Without the peer taking a single byte of what is to be written; over HTTP/2, a single piece of one of the answers.
    pub write: Duration,
}

impl Default for Patience {
    fn default() -> Patience {
        Patience {
            head: Duration::from_secs(10),
            idle: Duration::from_secs(75),
            write: Duration::from_secs(30),
        }
    }
}

/// What the service tells the stream below it.
#[derive(Default)]
pub(crate) struct Activity {
    /// Requests whose head was complete.
    started: AtomicU64,
    /// Requests whose answer is not complete.
    running: AtomicU32,
    /// The connection speaks another protocol now, which has rules of its own for silence.
    upgraded: AtomicBool,
    pub(super) untaken: Untaken,
}

impl Activity {
    /// Notes a complete request head; the answer is complete when the returned value is dropped.
    pub(crate) fn begin(self: &Arc<Self>) -> Running {
        let number = self.started.fetch_add(1, Ordering::Relaxed);
        self.running.fetch_add(1, Ordering::Relaxed);
        Running { activity: self.clone(), number }
    }

    pub(crate) fn set_upgraded(&self) {
        self.upgraded.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_upgraded(&self) -> bool {
        self.upgraded.load(Ordering::Relaxed)
    }
}

/// A request being answered.
pub(crate) struct Running {
    activity: Arc<Activity>,
    /// Of the connection's requests.
    pub(super) number: u64,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.activity.running.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The stream with its timers.
pub(crate) struct Watched<S = TcpStream> {
    stream: S,
    activity: Arc<Activity>,
    patience: Patience,
    metrics: Metrics,
    timer: Pin<Box<Sleep>>,
    /// Request heads seen by the service when bytes last arrived.
    started_seen: u64,
    /// When the first byte of a still incomplete head arrived; the connection itself counts as a first byte.
    head_since: Option<Instant>,
    idle_since: Option<Instant>,
    stalled_since: Option<Instant>,
    /// Before this, none of the answers over HTTP/2 has waited for too long.
    untaken_due: Instant,
    is_http2: bool,
    is_fresh: bool,
}

impl<S> Watched<S> {
    pub(crate) fn new(
        stream: S,
        activity: Arc<Activity>,
        patience: Patience,
        metrics: Metrics,
    ) -> Watched<S> {
        let now = Instant::now();
        Watched {
            stream,
            activity,
            patience,
            metrics,
            timer: Box::pin(tokio::time::sleep_until(now + patience.head)),
            started_seen: 0,
            head_since: Some(now),
            idle_since: None,
            stalled_since: None,
            untaken_due: now + patience.write,
            is_http2: false,
            is_fresh: true,
        }
    }

    /// Notes that bytes arrived.
    fn on_bytes(&mut self, bytes: &[u8]) {
        if self.is_fresh {
            self.is_fresh = false;
            self.is_http2 = bytes.starts_with(b"PRI");
        }
        self.idle_since = None;
        self.settle_head();
        if self.head_since.is_none() && !self.is_busy() {
            self.head_since = Some(Instant::now());
        }
    }

    /// Forgets the head that was being waited for once the service got it.
    fn settle_head(&mut self) {
        let started = self.activity.started.load(Ordering::Relaxed);
        if started != self.started_seen {
            self.started_seen = started;
            self.head_since = None;
        }
    }

    fn is_busy(&self) -> bool {
        self.activity.running.load(Ordering::Relaxed) > 0
    }

    /// When waiting for more bytes has lasted too long; `None` while it is not the peer's turn.
    fn read_due(&mut self) -> Option<Instant> {
        self.settle_head();
        if self.is_busy() || self.activity.is_upgraded() {
            self.idle_since = None;
            return None;
        }
        match self.head_since {
            // An HTTP/2 connection sends frames that belong to no request: only its first one has a deadline.
            Some(since) if !self.is_http2 || self.started_seen == 0 => Some(since + self.patience.head),
            _ => Some(*self.idle_since.get_or_insert_with(Instant::now) + self.patience.idle),
        }
    }

    /// Ready once `due` has passed. The timer is only ever moved to fire earlier, or after it fired.
    fn poll_due(&mut self, cx: &mut Context<'_>, due: Instant) -> Poll<()> {
        if self.timer.deadline() > due {
            self.timer.as_mut().reset(due);
        }
        while self.timer.as_mut().poll(cx).is_ready() {
            if Instant::now() >= due {
                return Poll::Ready(());
            }
            self.timer.as_mut().reset(due);
        }
        Poll::Pending
    }

    /// Ends answers that the peer does not take; ready when that takes the end of the connection.
    fn poll_untaken(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while self.poll_due(cx, self.untaken_due).is_ready() {
            let checked = self.activity.untaken.end_stalled(self.patience.write);
            self.metrics.slow_streams_closed_total.inc_by(checked.stalled);
            if checked.is_stuck {
                return Poll::Ready(());
            }
            self.untaken_due = checked.oldest + self.patience.write;
        }
        Poll::Pending
    }

    fn on_write<T>(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.stalled_since = None;
            self.idle_since = None;
            return written;
        }
        let since = *self.stalled_since.get_or_insert_with(Instant::now);
        self.poll_due(cx, since + self.patience.write).map(|()| {
            self.metrics.slow_streams_closed_total.inc();
            Err(timed_out("the peer does not read"))
        })
    }
}

fn timed_out(why: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, why)
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        match Pin::new(&mut this.stream).poll_read(cx, buf) {
            Poll::Ready(Ok(())) => {
                this.on_bytes(&buf.filled()[before..]);
                Poll::Ready(Ok(()))
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            // Whatever its first bytes looked like: over HTTP/1 there are no such answers.
            Poll::Pending if this.poll_untaken(cx).is_ready() => {
                Poll::Ready(Err(timed_out("the peer does not take its answer")))
            }
            Poll::Pending => match this.read_due() {
                Some(due) => this.poll_due(cx, due).map(|()| Err(timed_out("no request in time"))),
                None => Poll::Pending,
            },
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.stream).poll_write(cx, buf);
        this.on_write(cx, written)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.stream).poll_write_vectored(cx, bufs);
        this.on_write(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        match Pin::new(&mut this.stream).poll_flush(cx) {
            // TLS keeps what the peer does not take; a plain stream is always flushed.
            Poll::Pending => this.on_write(cx, Poll::Pending),
            done => done,
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;
    use tokio::time::timeout;

    const SHORT: Duration = Duration::from_millis(100);
    const LONG: Duration = Duration::from_secs(20);

    /// Both ends of a connection, the server's one watched.
    async fn connected(patience: Patience) -> (Watched, TcpStream, Arc<Activity>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        let (client, server) = tokio::join!(TcpStream::connect(address), listener.accept());
        let activity = Arc::new(Activity::default());
        let stream = server.expect("accepted").0;
        let watched = Watched::new(stream, activity.clone(), patience, Metrics::new());
        (watched, client.expect("connected"), activity)
    }

    /// Reads once: the bytes, or whether the stream gave up.
    async fn read(watched: &mut Watched) -> Result<usize, io::ErrorKind> {
        let mut buffer = [0; 64];
        let read = timeout(LONG, watched.read(&mut buffer)).await.expect("ends in time");
        read.map_err(|error| error.kind())
    }

    fn patience(head: Duration, idle: Duration) -> Patience {
        Patience { head, idle, write: LONG }
    }

    #[tokio::test]
    async fn silence_before_and_within_a_head_is_cut_off() {
        let (mut watched, mut client, _) = connected(patience(SHORT, LONG)).await;
        assert_eq!(read(&mut watched).await, Err(io::ErrorKind::TimedOut));
        let (mut watched, mut dripping, _) = connected(patience(2 * SHORT, LONG)).await;
        let drip = async {
            while dripping.write_all(b"G").await.is_ok() {
                tokio::time::sleep(SHORT / 4).await;
            }
        };
        let reading = async { while read(&mut watched).await.is_ok() {} };
        tokio::select! {
            () = drip => panic!("the client is not cut off yet"),
            () = reading => {}
        }
        let _ = client.shutdown().await;
    }

    #[tokio::test]
    async fn a_connection_at_work_is_left_alone_and_an_idle_one_has_its_own_time() {
        let (mut watched, mut client, activity) = connected(patience(SHORT, 3 * SHORT)).await;
        client.write_all(b"GET / HTTP/1.1\r\n\r\n").await.expect("sent");
        read(&mut watched).await.expect("the head");
        let running = activity.begin();
        assert!(
            timeout(5 * SHORT, watched.read(&mut [0; 8])).await.is_err(),
            "waits while a request is at work"
        );
        drop(running);
        let idle = Instant::now();
        assert!(timeout(2 * SHORT, watched.read(&mut [0; 8])).await.is_err(), "longer than a head may take");
        assert_eq!(read(&mut watched).await, Err(io::ErrorKind::TimedOut));
        assert!(idle.elapsed() >= 3 * SHORT);
    }

    #[tokio::test]
    async fn an_upgraded_connection_may_be_silent() {
        let (mut watched, mut client, activity) = connected(patience(SHORT, SHORT)).await;
        client.write_all(b"GET / HTTP/1.1\r\n\r\n").await.expect("sent");
        read(&mut watched).await.expect("the head");
        drop(activity.begin());
        activity.set_upgraded();
        assert!(timeout(4 * SHORT, watched.read(&mut [0; 8])).await.is_err());
    }

    #[tokio::test]
    async fn a_peer_that_takes_nothing_is_cut_off_and_a_slow_one_is_not() {
        let stalling = Patience { write: 3 * SHORT, ..patience(LONG, LONG) };
        let (mut watched, _client, _) = connected(stalling).await;
        let written = timeout(LONG, watched.write_all(&vec![0; 64 << 20])).await.expect("ends in time");
        assert_eq!(written.map_err(|error| error.kind()), Err(io::ErrorKind::TimedOut));
        assert_eq!(watched.metrics.slow_streams_closed_total.get(), 1);

        let (mut watched, mut slow, _) = connected(stalling).await;
        let whole = 16 << 20;
        let slowly = async {
            let mut buffer = vec![0; 1 << 20];
            let mut taken = 0;
            while taken < whole {
                taken += slow.read(&mut buffer).await.expect("connected");
                tokio::time::sleep(SHORT / 5).await;
            }
        };
        let content = vec![0; whole];
        let (written, ()) = tokio::join!(watched.write_all(&content), slowly);
        assert!(written.is_ok(), "progress counts, not speed");
    }
}
