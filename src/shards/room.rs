//! Room for the bytes that are read from disk for answers which are still being made.
//!
//! A request says little about the size of its answer: what the plan says is taken before the disk is asked, and given back
//! with the last of these bytes. Who finds no room waits for it. Nobody holds any while waiting for a leader, a client or
//! the archive.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Bytes of bodies read and not yet part of an answer.
const BYTES_MAX: u32 = 512 << 20;
/// Answers of so few bytes take none: there can be one for each request at work.
const SMALL_BYTES_MAX: u32 = 64 << 10;

pub(super) struct Room {
    bytes_max: u32,
    free: Arc<Semaphore>,
}

/// What an answer takes of it, if anything.
#[derive(Default)]
pub(super) struct Taken(Option<Arc<OwnedSemaphorePermit>>);

impl Room {
    pub(super) fn new() -> Room {
        Room::of(BYTES_MAX)
    }

    fn of(bytes_max: u32) -> Room {
        Room { bytes_max, free: Arc::new(Semaphore::new(bytes_max as usize)) }
    }

    /// Waits until there is room for so many bytes; the largest answer finds it where it is alone.
    pub(super) async fn take(&self, bytes: u64) -> Taken {
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX).min(self.bytes_max);
        if bytes <= SMALL_BYTES_MAX {
            return Taken(None);
        }
        let permit = self.free.clone().acquire_many_owned(bytes).await;
        Taken(Some(Arc::new(permit.expect("nobody closes it"))))
    }
}

impl Taken {
    /// The same bodies, the last of which gives the room back.
    pub(super) fn hold_with(self, bodies: Vec<Bytes>) -> Vec<Bytes> {
        let Some(permit) = self.0 else { return bodies };
        let hold = |body| Bytes::from_owner(Held { body, _permit: permit.clone() });
        bodies.into_iter().map(hold).collect()
    }
}

struct Held {
    body: Bytes,
    _permit: Arc<OwnedSemaphorePermit>,
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.body
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[tokio::test]
    async fn the_last_body_of_an_answer_gives_its_room_to_who_waits() {
        let room = Room::of(200 << 10);
        let body = || Bytes::from(vec![7; 70 << 10]);
        let bodies = room.take(140 << 10).await.hold_with(vec![body(), body()]);
        assert_eq!(bodies, [body(), body()]);
        assert!(room.take(64 << 10).now_or_never().is_some(), "small ones need none");
        let [first, last] = bodies.try_into().expect("two");
        let mut next = Box::pin(room.take(1 << 20));
        assert!((&mut next).now_or_never().is_none());
        drop(first);
        assert!((&mut next).now_or_never().is_none());
        drop(last);
        assert!((&mut next).now_or_never().is_some(), "the largest finds room");
    }
}
