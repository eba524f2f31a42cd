//! Room for the bytes that are read from disk for answers which are still being made.
//!
//! A request says little about the size of its answer: what the plan says is taken before the disk is asked, and given back
//! with the last of these bytes. Who finds no room waits for it, as long as a request may take. Nobody holds any while
//! waiting for a leader, a client or the archive.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use super::ReadError;
use crate::hold::hold;

/// Bytes of bodies read and not yet part of an answer.
const BYTES_MAX: u32 = 512 << 20;
/// Answers of so few bytes take none: there can be one for each request at work.
const SMALL_BYTES_MAX: u32 = 64 << 10;

pub(super) struct AnswerRoom {
    bytes_max: u32,
    wait_max: Duration,
    free: Arc<Semaphore>,
}

/// What an answer takes of it, if anything.
#[derive(Default)]
pub(super) struct Taken(Option<Arc<OwnedSemaphorePermit>>);

impl AnswerRoom {
    pub(super) fn new(wait_max: Duration) -> AnswerRoom {
        AnswerRoom::of(BYTES_MAX, wait_max)
    }

    fn of(bytes_max: u32, wait_max: Duration) -> AnswerRoom {
        AnswerRoom { bytes_max, wait_max, free: Arc::new(Semaphore::new(bytes_max as usize)) }
    }

    /// Waits until there is room for so many bytes; the largest answer finds it where it is alone.
    pub(super) async fn take(&self, bytes: u64) -> Result<Taken, ReadError> {
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX).min(self.bytes_max);
        if bytes <= SMALL_BYTES_MAX {
            return Ok(Taken(None));
        }
        let permit = timeout(self.wait_max, self.free.clone().acquire_many_owned(bytes)).await;
        let late = |_| ReadError::Unavailable("too many large answers are being made".into());
        Ok(Taken(Some(Arc::new(permit.map_err(late)?.expect("nobody closes it")))))
    }
}

impl Taken {
    /// The same bodies, the last of which gives the room back.
    pub(super) fn hold_with(self, bodies: Vec<Bytes>) -> Vec<Bytes> {
        let Some(permit) = self.0 else { return bodies };
        bodies.into_iter().map(|body| hold(body, permit.clone())).collect()
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_last_body_of_an_answer_gives_its_room_to_who_waits() {
        let room = AnswerRoom::of(200 << 10, Duration::from_secs(30));
        let body = || Bytes::from(vec![7; 70 << 10]);
        let bodies = room.take(140 << 10).await.unwrap().hold_with(vec![body(), body()]);
        assert_eq!(bodies, [body(), body()]);
        assert!(room.take(64 << 10).now_or_never().is_some(), "small ones need none");
        assert!(room.take(100 << 10).await.is_err(), "nobody waits for ever");
        let [first, last] = bodies.try_into().expect("two");
        let mut next = Box::pin(room.take(1 << 20));
        assert!((&mut next).now_or_never().is_none());
        drop(first);
        assert!((&mut next).now_or_never().is_none());
        drop(last);
        assert!((&mut next).now_or_never().is_some(), "the largest finds room");
    }
}
