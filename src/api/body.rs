//! Receiving a request body: within a size, within a time, within the memory all bodies of a node share.
//!
//! A body that fits one read is handed on without a copy. A body over its limit is read to its end and thrown away,
//! within bounds, before the refusal is sent: a client that is still writing would otherwise see a reset connection
//! instead of the answer.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use bytes::{Bytes, BytesMut};
use http::{HeaderMap, header};
use http_body_util::BodyExt;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout_at};

use super::error::ApiError;

/// Bytes of request bodies a node holds at once; more, where a single one may be larger.
const BODIES_BYTES_MAX: usize = 256 << 20;
/// Pause after which a body is given up.
const PAUSE_MAX: Duration = Duration::from_secs(10);
/// What is read of a refused body, and for how long, so that its sender gets to see the refusal.
const DISCARD_BYTES_MAX: usize = 256 << 20;
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
            if !headers.contains_key(header::EXPECT) {
                discard(body, 0).await;
            }
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
        self.memory = None;
        let received = whole.len();
        drop(whole);
        discard(self.body, received).await;
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

/// Reads on without keeping anything, `received` bytes into the body.
async fn discard(mut body: Body, mut received: usize) {
    let deadline = Instant::now() + DISCARD_MAX;
    while received < DISCARD_BYTES_MAX {
        match timeout_at(deadline, body.frame()).await {
            Ok(Some(Ok(frame))) => received += frame.data_ref().map_or(0, Bytes::len),
            _ => return,
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
    use http::HeaderValue;
    use tokio_stream::StreamExt;

    fn chunks(chunks: &[&'static [u8]]) -> Body {
        let chunks: Vec<_> =
            chunks.iter().map(|chunk| Ok::<_, std::io::Error>(Bytes::from_static(chunk))).collect();
        Body::from_stream(tokio_stream::iter(chunks))
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
        let stalled = Body::from_stream(tokio_stream::pending::<Result<Bytes, std::io::Error>>());
        assert_eq!(received(stalled, 9).await, Err(ApiError::RequestTimeout));
        let dripping = tokio_stream::iter(0..).then(async |_| {
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
