//! Receiving a request body: within a size, within a time, within the memory all bodies of a node share.
//!
//! A body that fits one read is handed on without a copy. What is unread of a body when a request is refused is read to
//! its end and thrown away, within bounds, before the refusal is sent: a client that is still writing would otherwise see
//! a reset connection instead of the answer.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use bytes::{Bytes, BytesMut};
use http::{HeaderMap, StatusCode, header};
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::BodyExt;
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout_at};

use super::error::ApiError;

/// Bytes of request bodies a node holds at once; more, where a single one may be larger.
const BODIES_BYTES_MAX: usize = 256 << 20;
/// Pause after which a body is given up.
const PAUSE_MAX: Duration = Duration::from_secs(10);
/// What is read of a refused body, and for how long, so that its sender gets to see the refusal.
const DISCARD_BYTES_MAX: usize = 256 << 20;
/// As much of one whose sender has no key.
const DISCARD_UNAUTHORIZED_BYTES_MAX: usize = 1 << 20;
const DISCARD_MAX: Duration = Duration::from_secs(5);

/// A received body; the memory it takes is given back when this and its clones are dropped.
#[derive(Clone)]
pub(crate) struct Received {
    pub bytes: Bytes,
    _memory: Option<Arc<OwnedSemaphorePermit>>,
}

/// What all request bodies of a node share.
pub(crate) struct Bodies {
    allowance: Arc<Semaphore>,
    /// Time a whole body may take.
    time_max: Duration,
}

impl Bodies {
    /// `largest_bytes` is the largest limit that bodies are received with: one alone always finds room.
    pub(crate) fn new(time_max: Duration, largest_bytes: usize) -> Bodies {
        Bodies { allowance: Arc::new(Semaphore::new(BODIES_BYTES_MAX.max(largest_bytes))), time_max }
    }

    /// Receives a JSON body of at most `limit_bytes`.
    pub(crate) async fn receive(
        &self,
        headers: &HeaderMap,
        body: Body,
        limit_bytes: usize,
    ) -> Result<Received, ApiError> {
        require_json(headers)?;
        self.receive_any(headers, body, limit_bytes).await
    }

    /// As [`Bodies::receive`], of any media type.
    pub(crate) async fn receive_any(
        &self,
        headers: &HeaderMap,
        body: Body,
        limit_bytes: usize,
    ) -> Result<Received, ApiError> {
        let too_large = ApiError::TooLarge { what: "The request body".into(), limit_bytes };
        if content_length(headers).is_some_and(|length| length > limit_bytes as u64) {
            return Err(too_large);
        }
        let last = Instant::now() + self.time_max;
        let receiver = Receiver { body, limit_bytes, allowance: &self.allowance, memory: None, last };
        receiver.run(too_large).await
    }
}

struct Receiver<'a> {
    body: Body,
    limit_bytes: usize,
    allowance: &'a Arc<Semaphore>,
    memory: Option<OwnedSemaphorePermit>,
    last: Instant,
}

impl Receiver<'_> {
    async fn run(mut self, too_large: ApiError) -> Result<Received, ApiError> {
        let Some(first) = self.next().await? else {
            return Ok(Received { bytes: Bytes::new(), _memory: None });
        };
        let mut second = self.next().await?;
        if second.is_none() && first.len() <= self.limit_bytes {
            return Ok(Received { bytes: first, _memory: self.memory.map(Arc::new) });
        }
        let mut whole = BytesMut::from(first);
        while let Some(data) = second {
            if whole.len() + data.len() > self.limit_bytes {
                break;
            }
            whole.extend_from_slice(&data);
            second = self.next().await?;
            if second.is_none() {
                return Ok(Received { bytes: whole.freeze(), _memory: self.memory.map(Arc::new) });
            }
        }
        Err(too_large)
    }

    /// The next piece of data, accounted for.
    async fn next(&mut self) -> Result<Option<Bytes>, ApiError> {
        loop {
            let deadline = self.last.min(Instant::now() + PAUSE_MAX);
            let frame =
                timeout_at(deadline, self.body.frame()).await.map_err(|_| ApiError::RequestTimeout)?;
            let Some(frame) = frame else { return Ok(None) };
            let frame = frame.map_err(|_| ApiError::InvalidRequest("The request body ended early".into()))?;
            let Ok(data) = frame.into_data() else { continue };
            if !data.is_empty() {
                self.account(data.len())?;
                return Ok(Some(data));
            }
        }
    }

    fn account(&mut self, bytes: usize) -> Result<(), ApiError> {
        let more = u32::try_from(bytes)
            .ok()
            .and_then(|bytes| self.allowance.clone().try_acquire_many_owned(bytes).ok());
        let more = more.ok_or_else(|| ApiError::Unavailable("too many request bodies at once".into()))?;
        match &mut self.memory {
            Some(memory) => memory.merge(more),
            none => *none = Some(more),
        }
        Ok(())
    }
}

/// What is left of a request's body once nobody reads it any more.
#[derive(Clone)]
pub(super) struct Unread(Arc<Mutex<Option<Body>>>);

impl Unread {
    /// The same request, whose body is left here when it is dropped before its end.
    pub(super) fn of(request: Request) -> (Request, Unread) {
        let unread = Unread(Arc::default());
        // A client that waits to be asked for its body has sent nothing until then.
        let is_sent = !request.headers().contains_key(header::EXPECT);
        let request = request.map(|body| match body.is_end_stream() {
            true => body,
            false => Body::new(Left { body, is_sent, unread: unread.clone() }),
        });
        (request, unread)
    }

    /// Reads on without keeping anything, within bounds, if the answer is a refusal.
    pub(super) async fn discard(&self, refusal: StatusCode) {
        let bytes_max = match refusal {
            // It came too slowly already.
            StatusCode::REQUEST_TIMEOUT => return,
            StatusCode::UNAUTHORIZED => DISCARD_UNAUTHORIZED_BYTES_MAX,
            _ => DISCARD_BYTES_MAX,
        };
        let Some(mut body) = self.0.lock().take() else { return };
        let (deadline, mut read) = (Instant::now() + DISCARD_MAX, 0);
        while read < bytes_max {
            match timeout_at(deadline, body.frame()).await {
                Ok(Some(Ok(frame))) => read += frame.data_ref().map_or(0, Bytes::len),
                _ => return,
            }
        }
    }

    /// Whether there is something to discard.
    pub(super) fn is_left(&self) -> bool {
        self.0.lock().is_some()
    }
}

/// A body that is left to [`Unread`] when it is dropped before its end.
struct Left {
    body: Body,
    is_sent: bool,
    unread: Unread,
}

impl http_body::Body for Left {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        self.is_sent = true;
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Left {
    fn drop(&mut self) {
        if self.is_sent && !self.body.is_end_stream() {
            *self.unread.0.lock() = Some(std::mem::take(&mut self.body));
        }
    }
}

fn content_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// A body is JSON, plainly encoded; a missing content type is taken for JSON.
fn require_json(headers: &HeaderMap) -> Result<(), ApiError> {
    if let Some(value) = headers.get(header::CONTENT_TYPE) {
        let media = value.to_str().unwrap_or_default().split(';').next().unwrap_or_default().trim();
        let is_json = media.eq_ignore_ascii_case("application/json")
            || (media.len() > 5
                && media.is_char_boundary(media.len() - 5)
                && media[media.len() - 5..].eq_ignore_ascii_case("+json"));
        if !is_json {
            return Err(ApiError::UnsupportedMediaType("Content-Type must be application/json"));
        }
    }
    match headers.get(header::CONTENT_ENCODING) {
        Some(value) if !value.as_bytes().eq_ignore_ascii_case(b"identity") => {
            Err(ApiError::UnsupportedMediaType("Content-Encoding of a request is not supported"))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
impl Received {
    pub(crate) fn for_test(bytes: Bytes, memory: OwnedSemaphorePermit) -> Received {
        Received { bytes, _memory: Some(Arc::new(memory)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::stream::{self, StreamExt};
    use http::HeaderValue;

    fn chunks(chunks: &[&'static [u8]]) -> Body {
        let chunks: Vec<_> =
            chunks.iter().map(|chunk| Ok::<_, std::io::Error>(Bytes::from_static(chunk))).collect();
        Body::from_stream(stream::iter(chunks))
    }

    fn bodies() -> Bodies {
        Bodies::new(Duration::from_secs(30), 0)
    }

    async fn received(body: Body, limit_bytes: usize) -> Result<Bytes, ApiError> {
        bodies().receive(&HeaderMap::new(), body, limit_bytes).await.map(|received| received.bytes)
    }

    #[tokio::test]
    async fn pieces_are_joined_up_to_the_limit() {
        assert_eq!(received(chunks(&[]), 6).await, Ok(Bytes::new()));
        assert_eq!(received(chunks(&[b"abc"]), 3).await, Ok(Bytes::from_static(b"abc")));
        assert_eq!(received(chunks(&[b"abc", b"def"]), 6).await, Ok(Bytes::from_static(b"abcdef")));
        let too_large = Err(ApiError::TooLarge { what: "The request body".into(), limit_bytes: 5 });
        assert_eq!(received(chunks(&[b"abc", b"def", b"ghi"]), 5).await, too_large);
        assert_eq!(received(chunks(&[b"abcdef"]), 5).await, too_large);
    }

    #[tokio::test]
    async fn what_is_unread_of_a_refused_body_is_discarded() {
        let request = |expects: bool| {
            let mut request = Request::new(chunks(&[b"abc", b"def"]));
            if expects {
                let value = HeaderValue::from_static("100-continue");
                request.headers_mut().insert(header::EXPECT, value);
            }
            Unread::of(request)
        };
        let (request_dropped, unread) = request(false);
        assert!(!unread.is_left(), "as long as somebody may read it");
        drop(request_dropped);
        assert!(unread.is_left());
        unread.discard(StatusCode::NOT_FOUND).await;
        assert!(!unread.is_left());
        let (unasked, unread) = request(true);
        drop(unasked);
        assert!(!unread.is_left(), "it was not sent");
        let (asked, unread) = request(true);
        assert_eq!(
            received(asked.into_body(), 2).await,
            Err(ApiError::TooLarge { what: "The request body".into(), limit_bytes: 2 })
        );
        assert!(unread.is_left());
    }

    #[tokio::test]
    async fn memory_is_given_back() {
        let bodies = Bodies { allowance: Arc::new(Semaphore::new(4)), ..bodies() };
        let body = bodies.receive(&HeaderMap::new(), chunks(&[b"abc"]), 9).await.expect("fits");
        let refused = bodies.receive(&HeaderMap::new(), chunks(&[b"abc"]), 9).await.err();
        assert!(matches!(refused, Some(ApiError::Unavailable(_))));
        drop(body);
        assert_eq!(bodies.allowance.available_permits(), 4);
    }

    #[tokio::test]
    async fn the_largest_body_finds_room() {
        let largest = BODIES_BYTES_MAX + 1;
        let bodies = Bodies::new(Duration::from_secs(30), largest);
        let mut receiver = Receiver {
            body: Body::empty(),
            limit_bytes: largest,
            allowance: &bodies.allowance,
            memory: None,
            last: Instant::now(),
        };
        assert_eq!(receiver.account(largest), Ok(()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_stalled_body_is_given_up() {
        let stalled = Body::from_stream(stream::pending::<Result<Bytes, std::io::Error>>());
        assert_eq!(received(stalled, 9).await, Err(ApiError::RequestTimeout));
        let dripping = stream::iter(0..).then(async |_| {
            tokio::time::sleep(Duration::from_secs(5)).await;
            Ok::<_, std::io::Error>(Bytes::from_static(b"a"))
        });
        assert_eq!(received(Body::from_stream(dripping), 999).await, Err(ApiError::RequestTimeout));
    }

    #[test]
    fn only_json_is_taken() {
        let check = |value: &'static str| {
            require_json(&HeaderMap::from_iter([(header::CONTENT_TYPE, HeaderValue::from_static(value))]))
                .is_ok()
        };
        assert!(
            check("application/json")
                && check("Application/JSON; charset=utf-8")
                && check("application/vnd.x+json")
        );
        assert!(!check("text/plain") && !check("application/x-www-form-urlencoded") && !check(""));
        assert!(require_json(&HeaderMap::new()).is_ok());
    }
}
