//! What waits to be sent on one connection: bounded in bytes, chunked, pings first.
//!
//! Requests leave strictly in the order they came in, each whole before the next. Answers take turns chunk by chunk,
//! so that a large one does not hold up small ones.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use bytes::{Buf, Bytes, BytesMut};
use parking_lot::Mutex;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

use super::frame::{CHUNK_BYTES_MAX, Frame};

/// What one queued message costs beside its body.
const MESSAGE_BYTES: usize = 128;

/// What a message is.
pub(crate) enum Kind {
    Request { method: u16, gate: Arc<Gate> },
    Answer,
    Refusal { text: String },
    Failure { text: String },
}

/// The connection is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Closed;

pub(crate) struct Outbox {
    queue: Mutex<Queue>,
    wake: Notify,
    budget: Arc<Semaphore>,
    bytes_max: u32,
}

#[derive(Default)]
struct Queue {
    /// The newest stamp each: a peer that asks faster than it listens gets one answer.
    ping: Option<u64>,
    pong: Option<u64>,
    messages: VecDeque<Outgoing>,
    closed: bool,
}

struct Outgoing {
    id: u64,
    kind: Kind,
    parts: VecDeque<Bytes>,
    total: usize,
    left: usize,
    _room: Room,
}

/// Bytes of the outbox, taken until the message has left.
pub(crate) struct Room(#[expect(dead_code, reason = "held for its drop")] OwnedSemaphorePermit);

impl Outbox {
    /// Holds messages of up to `bytes_max` bytes in all; a single larger one takes all of it.
    pub(crate) fn new(bytes_max: u32) -> Outbox {
        let budget = Arc::new(Semaphore::new(bytes_max as usize));
        Outbox { queue: Mutex::default(), wake: Notify::new(), budget, bytes_max }
    }

    /// Waits for room, in the order of asking.
    pub(crate) async fn room(&self, body_bytes: usize) -> Result<Room, Closed> {
        let bytes = u32::try_from(body_bytes + MESSAGE_BYTES).unwrap_or(u32::MAX).min(self.bytes_max);
        self.budget.clone().acquire_many_owned(bytes).await.map(Room).map_err(|_| Closed)
    }

    pub(crate) fn push(&self, id: u64, kind: Kind, body: &[Bytes], room: Room) -> Result<(), Closed> {
        let parts: VecDeque<Bytes> = body.iter().filter(|part| !part.is_empty()).cloned().collect();
        let total = parts.iter().map(Bytes::len).sum();
        let mut queue = self.queue.lock();
        if queue.closed {
            return Err(Closed);
        }
        queue.messages.push_back(Outgoing { id, kind, parts, total, left: total, _room: room });
        drop(queue);
        self.wake.notify_one();
        Ok(())
    }

    pub(crate) fn ping(&self, stamp: u64) {
        self.queue.lock().ping = Some(stamp);
        self.wake.notify_one();
    }

    pub(crate) fn pong(&self, stamp: u64) {
        self.queue.lock().pong = Some(stamp);
        self.wake.notify_one();
    }

    /// Drops what is queued and takes nothing more.
    pub(crate) fn close(&self) {
        self.budget.close();
        let mut queue = self.queue.lock();
        queue.closed = true;
        let dropped = std::mem::take(&mut queue.messages);
        drop(queue);
        drop(dropped);
        self.wake.notify_one();
    }

    /// Bytes that wait, as the bound counts them, and the bound.
    #[cfg(test)]
    pub(crate) fn queued(&self) -> (usize, usize) {
        let cost = |message: &Outgoing| (message.total + MESSAGE_BYTES).min(self.bytes_max as usize);
        (self.queue.lock().messages.iter().map(cost).sum(), self.bytes_max as usize)
    }

    /// The next frame to send; waits for one.
    pub(crate) async fn next(&self) -> Result<Frame, Closed> {
        loop {
            if let Some(frame) = self.try_next()? {
                return Ok(frame);
            }
            self.wake.notified().await;
        }
    }

    pub(crate) fn try_next(&self) -> Result<Option<Frame>, Closed> {
        let mut queue = self.queue.lock();
        if queue.closed {
            return Err(Closed);
        }
        if let Some(stamp) = queue.pong.take() {
            return Ok(Some(Frame::Pong { stamp }));
        }
        if let Some(stamp) = queue.ping.take() {
            return Ok(Some(Frame::Ping { stamp }));
        }
        while let Some(mut message) = queue.messages.pop_front() {
            let Some(frame) = message.next_frame() else { continue };
            if message.left > 0 && !matches!(frame, Frame::Cancel { .. }) {
                match message.kind {
                    Kind::Request { .. } => queue.messages.push_front(message),
                    _ => queue.messages.push_back(message),
                }
            }
            return Ok(Some(frame));
        }
        Ok(None)
    }
}

impl Outgoing {
    /// `None` if nobody wants it any more and nothing of it was sent.
    fn next_frame(&mut self) -> Option<Frame> {
        let is_last = self.left <= CHUNK_BYTES_MAX;
        let is_first = self.left == self.total;
        if let Kind::Request { gate, .. } = &self.kind {
            let wanted = if is_last { gate.pass() } else { gate.is_open() };
            if !wanted {
                return (!is_first).then_some(Frame::Cancel { id: self.id });
            }
        }
        let id = self.id;
        match &mut self.kind {
            Kind::Refusal { text } => return Some(Frame::Refusal { id, text: std::mem::take(text) }),
            Kind::Failure { text } => return Some(Frame::Failure { id, text: std::mem::take(text) }),
            Kind::Request { .. } | Kind::Answer => {}
        }
        let chunk = self.take_chunk();
        let total = self.total as u32;
        Some(match &self.kind {
            _ if !is_first => Frame::More { id, chunk },
            Kind::Request { method, .. } => Frame::Request { id, method: *method, total, chunk },
            _ => Frame::Answer { id, total, chunk },
        })
    }

    fn take_chunk(&mut self) -> Bytes {
        let wanted = self.left.min(CHUNK_BYTES_MAX);
        self.left -= wanted;
        if let Some(first) = self.parts.front_mut()
            && first.len() >= wanted
        {
            let chunk = first.split_to(wanted);
            if first.is_empty() {
                self.parts.pop_front();
            }
            return chunk;
        }
        let mut chunk = BytesMut::with_capacity(wanted);
        while chunk.len() < wanted {
            let part = self.parts.front_mut().expect("the parts hold what is left");
            let taken = part.len().min(wanted - chunk.len());
            chunk.extend_from_slice(&part[..taken]);
            part.advance(taken);
            if part.is_empty() {
                self.parts.pop_front();
            }
        }
        chunk.freeze()
    }
}

/// Decides whether a request reached the other side's service: it does only with its last chunk, and whoever comes
/// first, the caller that gives up or the writer at that chunk, has the say.
#[derive(Default)]
pub(crate) struct Gate(AtomicU8);

const OPEN: u8 = 0;
const PASSED: u8 = 1;
const SHUT: u8 = 2;

impl Gate {
    fn is_open(&self) -> bool {
        self.0.load(Ordering::Acquire) == OPEN
    }

    fn pass(&self) -> bool {
        self.0.compare_exchange(OPEN, PASSED, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// Gives the call up. Whether it is certain that the service never sees it.
    pub(crate) fn shut(&self) -> bool {
        self.0.compare_exchange(OPEN, SHUT, Ordering::AcqRel, Ordering::Acquire) != Err(PASSED)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;

    const MANY: u32 = 64 << 20;

    async fn push(outbox: &Outbox, id: u64, kind: Kind, body: &[Bytes]) {
        let room = outbox.room(body.iter().map(Bytes::len).sum()).await.expect("open");
        outbox.push(id, kind, body, room).expect("open");
    }

    fn request(gate: &Arc<Gate>) -> Kind {
        Kind::Request { method: 1, gate: gate.clone() }
    }

    /// The ids and lengths of everything queued.
    fn drain(outbox: &Outbox) -> Vec<(char, u64, usize)> {
        std::iter::from_fn(|| outbox.try_next().expect("open"))
            .map(|frame| match frame {
                Frame::Request { id, chunk, .. } => ('r', id, chunk.len()),
                Frame::Answer { id, chunk, .. } => ('a', id, chunk.len()),
                Frame::More { id, chunk } => ('m', id, chunk.len()),
                Frame::Refusal { id, text } => ('n', id, text.len()),
                Frame::Failure { id, text } => ('f', id, text.len()),
                Frame::Cancel { id } => ('c', id, 0),
                Frame::Ping { stamp } => ('i', stamp, 0),
                Frame::Pong { stamp } => ('o', stamp, 0),
            })
            .collect()
    }

    #[tokio::test]
    async fn requests_keep_their_order_and_answers_take_turns() {
        let large = Bytes::from(vec![1; CHUNK_BYTES_MAX + 5]);
        let (outbox, gate) = (Outbox::new(MANY), Arc::new(Gate::default()));
        push(&outbox, 1, request(&gate), &[large.slice(..3), large.slice(3..)]).await;
        push(&outbox, 2, request(&Arc::default()), &[]).await;
        outbox.ping(9);
        let chunk = CHUNK_BYTES_MAX;
        assert_eq!(drain(&outbox), [('i', 9, 0), ('r', 1, chunk), ('m', 1, 5), ('r', 2, 0)]);
        assert!(!gate.shut(), "it was sent");

        push(&outbox, 3, Kind::Answer, std::slice::from_ref(&large)).await;
        push(&outbox, 4, Kind::Refusal { text: "no".into() }, &[]).await;
        push(&outbox, 5, Kind::Answer, &[large.slice(..1)]).await;
        assert_eq!(drain(&outbox), [('a', 3, chunk), ('n', 4, 2), ('a', 5, 1), ('m', 3, 5)]);
        assert_eq!(outbox.budget.available_permits(), MANY as usize);
    }

    #[tokio::test]
    async fn a_call_given_up_before_its_last_chunk_is_certainly_not_served() {
        let (outbox, gate) = (Outbox::new(MANY), Arc::new(Gate::default()));
        let large = Bytes::from(vec![1; 3 * CHUNK_BYTES_MAX]);
        push(&outbox, 1, request(&gate), &[large]).await;
        push(&outbox, 2, request(&Arc::default()), &[]).await;
        assert!(matches!(outbox.try_next(), Ok(Some(Frame::Request { id: 1, .. }))));
        assert!(gate.shut());
        assert_eq!(drain(&outbox), [('c', 1, 0), ('r', 2, 0)]);

        let unsent = Arc::new(Gate::default());
        push(&outbox, 3, request(&unsent), &[]).await;
        assert!(unsent.shut());
        assert_eq!(drain(&outbox), []);
        assert_eq!(outbox.budget.available_permits(), MANY as usize);
    }

    #[tokio::test]
    async fn what_does_not_fit_waits_and_a_closed_outbox_refuses() {
        let outbox = Outbox::new(1_000);
        let huge = Bytes::from(vec![0; 5_000]);
        push(&outbox, 1, Kind::Answer, &[huge]).await;
        assert!(outbox.room(1).now_or_never().is_none());
        drain(&outbox);
        assert!(outbox.room(1).now_or_never().is_some());
        outbox.close();
        assert!(outbox.room(1).await.is_err());
        assert_eq!(outbox.try_next(), Err(Closed));
    }
}
