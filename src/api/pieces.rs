//! Answers over HTTP/2 in pieces, so that one that its peer does not take is known, and is ended.
//!
//! A peer may give one stream no room while its connection is as busy as ever. No deadline of the socket sees that, and
//! hyper waits for ever, with all that the answer holds. So hyper is handed an answer piece by piece, and drops each once it
//! has sent it. An answer of which no piece goes has its task ended, which resets its stream and leaves the others of the
//! connection alone. With the last piece the task is over: who does not take what hyper has then loses the connection.

use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::{AbortHandle, Abortable};
use http_body::{Body as _, Frame, SizeHint};
use hyper::rt::Executor;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::watchdog::Activity;

/// What one frame carries, unless the peer has asked for larger ones.
const PIECE_BYTES: usize = 16 << 10;

tokio::task_local! {
    /// Ends the task, and with it the answer it makes and sends.
    static END: AbortHandle;
}

/// Runs the tasks of HTTP/2 connections: one for each answer.
#[derive(Clone, Copy)]
pub(super) struct Answering;

impl<F: Future<Output = ()> + Send + 'static> Executor<F> for Answering {
    fn execute(&self, answer: F) {
        let (end, ended) = AbortHandle::new_pair();
        tokio::spawn(END.scope(end, Abortable::new(answer, ended).map(drop)));
    }
}

/// The answers of one connection that hyper has pieces of which it has not sent.
#[derive(Default)]
pub(crate) struct Untaken(Mutex<HashMap<u64, Waiting>>);

struct Waiting {
    pieces: u32,
    /// When a piece was last sent; before, when the first one was handed out.
    since: Instant,
    /// None once hyper has all of the answer, or it was ended.
    end: Option<AbortHandle>,
}

/// What [`Untaken::end_stalled`] found.
pub(crate) struct Checked {
    /// Answers that were ended, or could not be.
    pub stalled: u64,
    /// There are answers that only the end of the connection ends.
    pub is_stuck: bool,
    /// Nothing is due before this and a patience.
    pub oldest: Instant,
}

impl Untaken {
    /// Ends the answers of which no piece was sent for `patience`.
    pub(crate) fn end_stalled(&self, patience: Duration) -> Checked {
        let now = Instant::now();
        let mut checked = Checked { stalled: 0, is_stuck: false, oldest: now };
        for waiting in self.0.lock().values_mut() {
            if waiting.since + patience <= now {
                match waiting.end.take() {
                    Some(end) => end.abort(),
                    None => checked.is_stuck = true,
                }
                checked.stalled += 1;
                waiting.since = now;
            }
            checked.oldest = checked.oldest.min(waiting.since);
        }
        checked
    }
}

/// The body of a connection's answer with this number, to be called by the task that sends it.
pub(super) fn in_pieces(body: Body, activity: Arc<Activity>, number: u64) -> Body {
    if body.is_end_stream() {
        return body;
    }
    let end = END.try_with(AbortHandle::clone).ok();
    Body::new(InPieces { body, rest: Bytes::new(), answer: Answer { activity, number, end } })
}

pin_project_lite::pin_project! {
    struct InPieces {
        #[pin]
        body: Body,
        rest: Bytes,
        answer: Answer,
    }
}

struct Answer {
    activity: Arc<Activity>,
    number: u64,
    end: Option<AbortHandle>,
}

impl Answer {
    fn hand_out(&self, bytes: Bytes) -> Bytes {
        let mut untaken = self.activity.untaken.0.lock();
        let new = || Waiting { pieces: 0, since: Instant::now(), end: self.end.clone() };
        untaken.entry(self.number).or_insert_with(new).pieces += 1;
        Bytes::from_owner(Piece { bytes, activity: self.activity.clone(), number: self.number })
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        if let Some(waiting) = self.activity.untaken.0.lock().get_mut(&self.number) {
            waiting.end = None;
        }
    }
}

/// Part of an answer that hyper has and has not sent.
struct Piece {
    bytes: Bytes,
    activity: Arc<Activity>,
    number: u64,
}

impl Drop for Piece {
    fn drop(&mut self) {
        let mut untaken = self.activity.untaken.0.lock();
        let Some(waiting) = untaken.get_mut(&self.number) else { return };
        waiting.pieces -= 1;
        waiting.since = Instant::now();
        if waiting.pieces == 0 {
            untaken.remove(&self.number);
        }
    }
}

impl AsRef<[u8]> for Piece {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl http_body::Body for InPieces {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let this = self.project();
        if this.rest.is_empty() {
            match ready!(this.body.poll_frame(cx)?).map(Frame::into_data) {
                Some(Ok(data)) => *this.rest = data,
                Some(Err(trailers)) => return Poll::Ready(Some(Ok(trailers))),
                None => return Poll::Ready(None),
            }
        }
        let piece = this.rest.split_to(PIECE_BYTES.min(this.rest.len()));
        Poll::Ready(Some(Ok(Frame::data(this.answer.hand_out(piece)))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    /// Asked before the first piece, if at all.
    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(30);
    const STEP: Duration = Duration::from_secs(20);

    /// An answer of so many pieces, as hyper gets it, and what ends its task.
    fn answer(activity: &Arc<Activity>, number: u64, pieces: usize) -> (Body, AbortHandle) {
        let (end, _) = AbortHandle::new_pair();
        let body = Body::from(vec![7; pieces * PIECE_BYTES]);
        let making = END.sync_scope(end.clone(), || in_pieces(body, activity.clone(), number));
        (making, end)
    }

    async fn next(body: &mut Body) -> Bytes {
        body.frame().await.expect("one more").expect("whole").into_data().expect("data")
    }

    #[tokio::test]
    async fn an_answer_is_the_same_in_pieces() {
        let activity = Arc::new(Activity::default());
        let whole: Vec<u8> = (0..3 * PIECE_BYTES + 5).map(|n| (n % 251) as u8).collect();
        let mut body = in_pieces(Body::from(whole.clone()), activity.clone(), 0);
        assert_eq!(body.size_hint().exact(), Some(whole.len() as u64));
        let mut lengths = Vec::new();
        let mut joined = Vec::new();
        while !body.is_end_stream() {
            let piece = next(&mut body).await;
            lengths.push(piece.len());
            joined.extend_from_slice(&piece);
        }
        assert_eq!((lengths, joined), (vec![PIECE_BYTES, PIECE_BYTES, PIECE_BYTES, 5], whole));
        assert!(activity.untaken.0.lock().is_empty(), "all were sent");
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_is_ended_that_nothing_is_taken_of_and_no_other() {
        let activity = Arc::new(Activity::default());
        let (mut slow, slow_end) = answer(&activity, 0, 9);
        let (mut stalled, stalled_end) = answer(&activity, 1, 9);
        let (_asked_for_nothing, quiet_end) = answer(&activity, 2, 9);
        let mut queued = std::collections::VecDeque::from([next(&mut slow).await, next(&mut slow).await]);
        let unsent = next(&mut stalled).await;
        tokio::time::advance(STEP).await;
        queued.pop_front();
        let begun = Instant::now() - STEP;
        let checked = activity.untaken.end_stalled(PATIENCE);
        assert_eq!((checked.stalled, checked.is_stuck, checked.oldest), (0, false, begun));
        queued.push_back(next(&mut slow).await);
        tokio::time::advance(STEP).await;
        let checked = activity.untaken.end_stalled(PATIENCE);
        assert_eq!((checked.stalled, checked.is_stuck, checked.oldest), (1, false, begun + STEP));
        let ended = [&slow_end, &stalled_end, &quiet_end].map(AbortHandle::is_aborted);
        assert_eq!(ended, [false, true, false]);
        drop((stalled, unsent, queued));
        assert!(activity.untaken.0.lock().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn what_outlives_its_task_takes_the_connection() {
        let activity = Arc::new(Activity::default());
        let (mut body, end) = answer(&activity, 0, 1);
        let _unsent = next(&mut body).await;
        drop(body);
        tokio::time::advance(STEP).await;
        assert!(!activity.untaken.end_stalled(PATIENCE).is_stuck);
        tokio::time::advance(STEP).await;
        assert!(activity.untaken.end_stalled(PATIENCE).is_stuck && !end.is_aborted());
    }
}
