//! The calling side of one dialled connection: matches answers to calls, and knows of each call without an answer
//! whether it may have been served.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};

use super::connection::{Handler, length};
use super::frame::{Frame, Reassembly, Violation};
use super::outbox::{Gate, Kind, Outbox};
use super::{CallError, Lane};

/// Most calls of one connection that wait for answers.
const CALLS_MAX: usize = 8_192;

type Outcome = Result<Bytes, CallError>;

pub(crate) struct Caller {
    pub(crate) outbox: Outbox,
    /// `None` once the connection is gone.
    waiting: Mutex<Option<BTreeMap<u64, oneshot::Sender<Outcome>>>>,
    next_id: AtomicU64,
    /// Largest body the other side takes.
    body_bytes_max: usize,
}

impl Caller {
    pub(crate) fn new(lane: Lane, body_bytes_max: usize) -> Caller {
        Caller {
            outbox: Outbox::new(lane.queue_bytes_max()),
            waiting: Mutex::new(Some(BTreeMap::new())),
            next_id: AtomicU64::new(1),
            body_bytes_max,
        }
    }

    /// Queues a call, once there is room.
    pub(crate) async fn send(
        &self,
        method: u16,
        body: &[Bytes],
        deadline: Instant,
    ) -> Result<Waiting<'_>, CallError> {
        let bytes = length(body);
        if bytes > self.body_bytes_max {
            let text = format!("a body of {bytes} bytes; the node takes {}", self.body_bytes_max);
            return Err(CallError::NotSent(text));
        }
        let room = timeout_at(deadline, self.outbox.room(bytes)).await;
        let room = room.map_err(|_| not_sent("the queue to the node is full"))?.map_err(|_| link_down())?;
        let (id, gate) = (self.next_id.fetch_add(1, Ordering::Relaxed), Arc::new(Gate::default()));
        let call = Waiting { caller: self, id, gate: gate.clone(), outcome: self.register(id)? };
        self.outbox.push(id, Kind::Request { method, gate }, body, room).map_err(|_| link_down())?;
        Ok(call)
    }

    fn register(&self, id: u64) -> Result<oneshot::Receiver<Outcome>, CallError> {
        let mut waiting = self.waiting.lock();
        let calls = waiting.as_mut().ok_or_else(link_down)?;
        if calls.len() >= CALLS_MAX {
            return Err(not_sent("too many calls wait for the node"));
        }
        let (answer, outcome) = oneshot::channel();
        calls.insert(id, answer);
        Ok(outcome)
    }

    fn settle(&self, id: u64, outcome: Outcome) {
        let waiting = self.waiting.lock().as_mut().and_then(|calls| calls.remove(&id));
        // Whoever gave up does not mind.
        let _ = waiting.map(|answer| answer.send(outcome));
    }

    /// Fails what waits and what comes.
    pub(crate) fn close(&self) {
        self.outbox.close();
        let calls = self.waiting.lock().take();
        drop(calls);
    }
}

/// A call under way; dropping it gives it up.
pub(crate) struct Waiting<'a> {
    caller: &'a Caller,
    id: u64,
    gate: Arc<Gate>,
    outcome: oneshot::Receiver<Outcome>,
}

impl Waiting<'_> {
    pub(crate) async fn outcome(mut self, deadline: Instant) -> Result<Bytes, CallError> {
        let why = match timeout_at(deadline, &mut self.outcome).await {
            Ok(Ok(outcome)) => return outcome,
            Ok(Err(_)) => "the link broke",
            Err(_) => "no answer in time",
        };
        let why = why.to_owned();
        Err(if self.gate.shut() { CallError::NotSent(why) } else { CallError::Lost(why) })
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.gate.shut();
        if let Some(calls) = self.caller.waiting.lock().as_mut() {
            calls.remove(&self.id);
        }
    }
}

fn not_sent(why: &str) -> CallError {
    CallError::NotSent(why.to_owned())
}

fn link_down() -> CallError {
    not_sent("the link is down")
}

/// Takes the answers.
pub(crate) struct Answers {
    caller: Arc<Caller>,
    bodies: Reassembly<()>,
    rtt_us: Arc<AtomicU64>,
}

impl Answers {
    /// `body_bytes_max` is what this node takes; `rtt_us` is kept up to date.
    pub(crate) fn new(
        caller: Arc<Caller>,
        lane: Lane,
        body_bytes_max: usize,
        rtt_us: Arc<AtomicU64>,
    ) -> Answers {
        // The other side's queue holds that much, or one body that is larger.
        let bytes_max = body_bytes_max + lane.queue_bytes_max() as usize;
        Answers { caller, bodies: Reassembly::new(body_bytes_max, bytes_max, CALLS_MAX), rtt_us }
    }
}

impl Handler for Answers {
    async fn on_frame(&mut self, frame: Frame) -> Result<(), Violation> {
        let (id, body) = match frame {
            Frame::Answer { id, total, chunk } => (id, self.bodies.begin(id, (), total, chunk)?),
            Frame::More { id, chunk } => (id, self.bodies.more(id, &chunk)?),
            Frame::Refusal { id, text } => {
                self.caller.settle(id, Err(CallError::Refused(text)));
                return Ok(());
            }
            Frame::Failure { id, text } => {
                self.caller.settle(id, Err(CallError::Lost(text)));
                return Ok(());
            }
            _ => return Err(Violation::UnknownKind),
        };
        if let Some(((), body)) = body {
            self.caller.settle(id, Ok(body));
        }
        Ok(())
    }

    fn on_rtt(&mut self, rtt: Duration) {
        self.rtt_us.store(rtt.as_micros() as u64, Ordering::Relaxed);
    }
}
