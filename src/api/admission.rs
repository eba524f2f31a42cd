//! What a request holds while it is at work: until its answer is sent, since until then its memory is taken.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use http_body::{Body as _, Frame, SizeHint};
use prometheus::IntGauge;
use tokio::sync::OwnedSemaphorePermit;

/// A request at work, one more on a gauge.
pub(super) struct Admission {
    /// Of those that are capped as requests at work.
    pub permit: Option<OwnedSemaphorePermit>,
    gauge: IntGauge,
}

impl Admission {
    pub(super) fn counted_by(gauge: &IntGauge) -> Admission {
        gauge.inc();
        Admission { permit: None, gauge: gauge.clone() }
    }
}

impl Drop for Admission {
    fn drop(&mut self) {
        self.gauge.dec();
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
        let hold = |bytes| Bytes::from_owner(Unsent { bytes, _held: this.held.clone() });
        this.body.poll_frame(cx).map_ok(|frame| frame.map_data(hold))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

struct Unsent<H> {
    bytes: Bytes,
    _held: Arc<H>,
}

impl<H> AsRef<[u8]> for Unsent<H> {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
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
        let streamed = Body::from_stream(tokio_stream::pending::<Result<Bytes, std::io::Error>>());
        for body in [Body::empty(), streamed] {
            let (semaphore, permit) = held();
            let _response = hold_until_sent(Response::new(body), permit);
            assert_eq!(semaphore.available_permits(), 1);
        }
    }
}
