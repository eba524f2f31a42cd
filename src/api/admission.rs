//! What a request holds while it is at work: until its answer is sent, since until then its memory is taken.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use http_body::{Body as _, Frame, SizeHint};
use prometheus::IntGauge;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::error::ApiError;
use crate::hold::hold;

/// Bytes of whole answers that a node holds at once, those apart of which there can be ...
const ANSWERS_BYTES_MAX: u32 = 512 << 20;
/// ... one for each request at work.
const SMALL_BYTES_MAX: u32 = 64 << 10;

/// A request at work, one more on a gauge.
pub(super) struct Admission {
    /// Of those that are capped as requests at work.
    pub permit: Option<OwnedSemaphorePermit>,
    /// For its answer.
    pub memory: Option<OwnedSemaphorePermit>,
    gauge: IntGauge,
}

impl Admission {
    pub(super) fn counted_by(gauge: &IntGauge) -> Admission {
        gauge.inc();
        Admission { permit: None, memory: None, gauge: gauge.clone() }
    }

    /// Whether its end gives back anything that others may lack.
    pub(super) fn is_scarce(&self) -> bool {
        self.permit.is_some() || self.memory.is_some()
    }
}

impl Drop for Admission {
    fn drop(&mut self) {
        self.gauge.dec();
    }
}

/// What all whole answers of a node share.
pub(super) struct Answers {
    bytes_max: u32,
    allowance: Arc<Semaphore>,
}

impl Answers {
    pub(super) fn new() -> Answers {
        Answers::of(ANSWERS_BYTES_MAX)
    }

    fn of(bytes_max: u32) -> Answers {
        Answers { bytes_max, allowance: Arc::new(Semaphore::new(bytes_max as usize)) }
    }

    /// Finds room for an answer. The largest finds it too, where it is alone.
    pub(super) fn make_room(&self, response: &Response) -> Result<Option<OwnedSemaphorePermit>, ApiError> {
        let bytes = response.body().size_hint().exact().unwrap_or(0);
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX).min(self.bytes_max);
        if bytes <= SMALL_BYTES_MAX {
            return Ok(None);
        }
        let room = self.allowance.clone().try_acquire_many_owned(bytes);
        room.map(Some).map_err(|_| ApiError::Unavailable("too many answers wait to be read".into()))
    }
}

/// Keeps `held` until a whole answer was sent, or dropped. Streamed answers make their bytes as they are taken, and hold
/// what they need themselves.
pub(super) fn hold_until_sent(response: Response, held: impl Send + Sync + 'static) -> Response {
    match response.body().size_hint().exact() {
        None | Some(0) => response,
        Some(_) => response.map(|body| Body::new(Holding { body, held: Arc::new(held) })),
    }
}

pin_project_lite::pin_project! {
    struct Holding<H> {
        #[pin]
        body: Body,
        held: Arc<H>,
    }
}

impl<H: Send + Sync + 'static> http_body::Body for Holding<H> {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let this = self.project();
        // hyper drops a body once it has its last bytes, long before it has sent them.
        this.body.poll_frame(cx).map_ok(|frame| frame.map_data(|bytes| hold(bytes, this.held.clone())))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;
    use tokio::sync::Semaphore;

    use super::*;

    fn held() -> (Arc<Semaphore>, OwnedSemaphorePermit) {
        let semaphore = Arc::new(Semaphore::new(1));
        let permit = semaphore.clone().try_acquire_owned().expect("there is one");
        (semaphore, permit)
    }

    #[test]
    fn answers_share_an_allowance_that_small_ones_need_not() {
        let answer = |bytes: usize| Response::new(Body::from(vec![0; bytes]));
        let answers = Answers::of(300 << 10);
        let make_room = |bytes| answers.make_room(&answer(bytes));
        let mut unread = Vec::new();
        while let Ok(room) = make_room(100 << 10) {
            unread.push(room.expect("is no small one"));
        }
        assert_eq!(unread.len(), 3);
        assert!(matches!(make_room(65 << 10), Err(ApiError::Unavailable(_))));
        assert!(matches!(make_room(64 << 10), Ok(None)) && matches!(make_room(0), Ok(None)));
        unread.pop();
        assert!(matches!(make_room(65 << 10), Ok(Some(_))));
        assert!(make_room(1 << 20).is_err(), "there are others");
        drop(unread);
        assert!(matches!(make_room(1 << 20), Ok(Some(_))), "the largest finds room");
    }

    #[tokio::test]
    async fn the_last_bytes_of_an_answer_give_it_back() {
        let (semaphore, permit) = held();
        let mut response = hold_until_sent(Response::new(Body::from("answer")), permit);
        assert_eq!(response.body().size_hint().exact(), Some(6));
        let frame = response.body_mut().frame().await.expect("one").expect("whole");
        let bytes = frame.into_data().expect("data");
        assert!(response.body().is_end_stream());
        drop(response);
        assert_eq!((bytes.as_ref(), semaphore.available_permits()), (b"answer".as_slice(), 0));
        drop(bytes);
        assert_eq!(semaphore.available_permits(), 1);
    }

    #[tokio::test]
    async fn an_answer_that_is_dropped_empty_or_streamed_gives_it_back_at_once() {
        let (semaphore, permit) = held();
        drop(hold_until_sent(Response::new(Body::from("answer")), permit));
        assert_eq!(semaphore.available_permits(), 1);
        let streamed = Body::from_stream(futures_util::stream::pending::<Result<Bytes, std::io::Error>>());
        for body in [Body::empty(), streamed] {
            let (semaphore, permit) = held();
            let _response = hold_until_sent(Response::new(body), permit);
            assert_eq!(semaphore.available_permits(), 1);
        }
    }
}
