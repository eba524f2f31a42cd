//! What was asked and what was served, and what must never be: the judge of a simulation.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::{Arc, LazyLock};

use bytes::{BufMut, Bytes, BytesMut};
use parking_lot::Mutex;
use tokio::time::{Instant, sleep};

use super::*;

/// What a service does with a call.
pub(super) const ECHO: u16 = 1;
pub(super) const SLOW: u16 = 2;
pub(super) const REFUSE: u16 = 3;
pub(super) const PANIC: u16 = 4;

const REFUSAL: &str = "as asked";
const HEAD_BYTES: usize = 8 + 16;

/// Of which bodies are pieces.
static BYTES: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut rng = Rng::new(0);
    (0..BYTES_COUNT / 8).flat_map(|_| rng.next_u64().to_le_bytes()).collect()
});
const BYTES_COUNT: usize = 512 << 10;
const OFFSET_MAX: usize = 4 << 10;

/// One call that was made.
#[derive(Clone, Debug)]
pub(super) struct Call {
    pub(super) to: u128,
    pub(super) method: u16,
    /// Those of one burst were made by one task, in the order of their ids.
    pub(super) burst: u64,
    pub(super) outcome: Option<Result<Bytes, CallError>>,
}

#[derive(Clone)]
pub(super) struct Ledger(Arc<Mutex<Inner>>);

struct Inner {
    start: Instant,
    calls: BTreeMap<u64, Call>,
    /// In the order of being served: the call and the node.
    served: Vec<(u64, u128)>,
    findings: Vec<String>,
    trace: String,
}

impl Ledger {
    pub(super) fn new() -> Ledger {
        let (calls, served, findings) = (BTreeMap::new(), Vec::new(), Vec::new());
        let inner = Inner { start: Instant::now(), calls, served, findings, trace: String::new() };
        Ledger(Arc::new(Mutex::new(inner)))
    }

    /// Notes a call that is about to be made; its id.
    pub(super) fn asks(&self, from: u128, lane: Lane, call: Call) -> u64 {
        let mut inner = self.0.lock();
        let id = inner.calls.len() as u64;
        inner.say(&format!("{id} is for {} from {from}: method {}, {lane:?}", call.to, call.method));
        inner.calls.insert(id, call);
        id
    }

    /// A call that is given up has no outcome.
    pub(super) fn ends(&self, id: u64, outcome: Result<Bytes, CallError>) {
        let mut inner = self.0.lock();
        inner.say(&format!("{id} ended: {}", brief(&outcome)));
        inner.calls.get_mut(&id).unwrap().outcome = Some(outcome);
    }

    pub(super) fn note(&self, what: &str) {
        self.0.lock().say(what);
    }

    pub(super) fn finds(&self, finding: String) {
        self.0.lock().findings.push(finding);
    }

    /// The story, if nothing is wrong with it.
    pub(super) fn judge(&self) -> String {
        let inner = self.0.lock();
        let mut findings = inner.findings.clone();
        let mut times: BTreeMap<u64, Vec<usize>> = BTreeMap::new();
        for (at, (id, node)) in inner.served.iter().enumerate() {
            times.entry(*id).or_default().push(at);
            if inner.calls[id].to != *node {
                findings.push(format!("{id} was served by the wrong node"));
            }
        }
        let mut last_of_burst: BTreeMap<u64, usize> = BTreeMap::new();
        for (id, call) in &inner.calls {
            let served = times.get(id).map_or(&[][..], Vec::as_slice);
            let is_sound = match &call.outcome {
                Some(Ok(body)) => served.len() == 1 && *body == answer_of(*id, call.method),
                Some(Err(CallError::Refused(why))) => served.len() == 1 && why == REFUSAL,
                Some(Err(CallError::NotSent(_))) => served.is_empty(),
                Some(Err(CallError::Lost(_))) | None => served.len() <= 1,
            };
            if !is_sound {
                findings.push(format!("{id} was served {} times: {call:?}", served.len()));
            }
            if let (Some(Ok(_)), [at]) = (&call.outcome, served)
                && last_of_burst.insert(call.burst, *at).is_some_and(|last| last > *at)
            {
                findings.push(format!("{id} overtook a call before it"));
            }
        }
        assert!(findings.is_empty(), "{}\n{}", findings.join("\n"), inner.trace);
        inner.trace.clone()
    }
}

impl Inner {
    fn say(&mut self, what: &str) {
        let at = self.start.elapsed().as_millis();
        writeln!(self.trace, "{at:>6} {what}").unwrap();
    }
}

fn brief(outcome: &Result<Bytes, CallError>) -> String {
    match outcome {
        Ok(body) => format!("{} bytes", body.len()),
        Err(error) => error.to_string(),
    }
}

/// The body of a call: who asks for what, and bytes that nobody else sends.
pub(super) fn body_of(id: u64, from: u128, size: usize) -> Bytes {
    let mut body = BytesMut::with_capacity(HEAD_BYTES + size);
    body.put_u64(id);
    body.put_u128(from);
    let offset = id as usize * 13 % OFFSET_MAX;
    body.put_slice(&BYTES[offset..offset + size]);
    body.freeze()
}

/// Some are large, some empty.
fn answer_of(id: u64, method: u16) -> Bytes {
    let size = Rng::new(id).below(4) * Rng::new(id + 1).below(100_000);
    body_of(id, method.into(), if id.is_multiple_of(5) { size as usize } else { (id % 7) as usize })
}

/// The service of a node.
pub(super) struct Server {
    pub(super) node: u128,
    pub(super) ledger: Ledger,
}

impl Service for Server {
    fn call<'a>(&'a self, from: &'a Remote, method: u16, body: Bytes) -> Answer<'a> {
        let id = u64::from_be_bytes(body[..8].try_into().unwrap());
        {
            let mut inner = self.ledger.0.lock();
            inner.served.push((id, self.node));
            inner.say(&format!("{id} served at {}", self.node));
            if body != body_of(id, from.node_id, body.len() - HEAD_BYTES) {
                inner.findings.push(format!("{id} arrived with another body"));
            }
        }
        Box::pin(async move {
            match method {
                ECHO => {}
                SLOW => sleep(Duration::from_millis(Rng::new(id).below(3_000))).await,
                REFUSE => return Err(Refused(REFUSAL.to_owned())),
                // A panic that the hook says nothing about.
                _ => resume_unwind(Box::new("as asked")),
            }
            Ok(answer_of(id, method))
        })
    }
}
