//! Traces: what a request did, step by step and on which node, for a collector that speaks OTLP.
//!
//! Off unless [`start`] was called; then what it costs is one look at a global. A request begins a trace, or goes on with
//! that of its `traceparent` header; its parts are spans below it, found by the task they run in. A node that sends a
//! write on sends the trace along. Deliberately absent: other signals than traces, sampling by the outcome, and TLS to the
//! collector, which is expected beside the node.

mod export;

use std::cell::Cell;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use self::export::Exporter;

static TRACER: OnceLock<Tracer> = OnceLock::new();

tokio::task_local! {
    /// The span that the task works for.
    static CURRENT: Context;
}

struct Tracer {
    exporter: Exporter,
    /// Of requests without a trace of their own one in so many is traced.
    one_in: u64,
    requests: AtomicU64,
}

/// What names a span to its children, on this node or another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Context {
    pub trace: u128,
    pub span: u64,
}

/// What a span is to others, by OTLP's numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Internal = 1,
    Server = 2,
    Client = 3,
}

/// Something that takes time; it ends when it is dropped.
pub(crate) struct Span {
    pub context: Context,
    parent: Option<u64>,
    name: String,
    kind: Kind,
    begun: SystemTime,
    ended: Option<SystemTime>,
    attributes: Vec<(&'static str, String)>,
    failed: bool,
}

/// Sends spans to `endpoint` (`http://HOST:PORT`) from now on, as those of this node. A second call changes nothing.
pub(crate) fn start(endpoint: &str, node: &str, one_in: u64) {
    if TRACER.get().is_none() {
        let tracer =
            Tracer { exporter: Exporter::start(endpoint, node), one_in, requests: AtomicU64::new(0) };
        let _ = TRACER.set(tracer);
    }
}

/// The span of a request, if it is to be traced: its caller says so in `traceparent`, or its turn has come.
pub(crate) fn request(name: &str, traceparent: Option<&str>) -> Option<Span> {
    let tracer = TRACER.get()?;
    match traceparent.and_then(parse) {
        Some((caller, sampled)) => sampled.then(|| Span::new(name, Kind::Server, Some(caller))),
        None => {
            let turn = tracer.requests.fetch_add(1, Ordering::Relaxed) % tracer.one_in == 0;
            turn.then(|| Span::new(name, Kind::Server, None))
        }
    }
}

/// A span below that of the task, if it works for one.
pub(crate) fn begin(name: &str, kind: Kind) -> Option<Span> {
    TRACER.get()?;
    let parent = CURRENT.try_with(|context| *context).ok()?;
    Some(Span::new(name, kind, Some(parent)))
}

/// A span below that of another node.
pub(crate) fn received(name: &str, caller: Option<Context>) -> Option<Span> {
    TRACER.get()?;
    caller.map(|caller| Span::new(name, Kind::Server, Some(caller)))
}

/// Whether any task may work for a span.
pub(crate) fn is_on() -> bool {
    TRACER.get().is_some()
}

/// Works for a span, if there is one.
pub(crate) async fn within<F: Future>(span: Option<&Span>, work: F) -> F::Output {
    match span {
        Some(span) => CURRENT.scope(span.context, work).await,
        None => work.await,
    }
}

impl Span {
    fn new(name: &str, kind: Kind, parent: Option<Context>) -> Span {
        let trace =
            parent.map_or_else(|| u128::from(random()) << 64 | u128::from(random()), |parent| parent.trace);
        Span {
            context: Context { trace, span: random() },
            parent: parent.map(|parent| parent.span),
            name: name.to_owned(),
            kind,
            begun: SystemTime::now(),
            ended: None,
            attributes: Vec::new(),
            failed: false,
        }
    }

    pub(crate) fn set(&mut self, key: &'static str, value: impl ToString) {
        self.attributes.push((key, value.to_string()));
    }

    pub(crate) fn fail(&mut self) {
        self.failed = true;
    }

    /// For what was measured elsewhere.
    pub(crate) fn at(&mut self, begun: SystemTime, ended: SystemTime) {
        (self.begun, self.ended) = (begun, Some(ended));
    }
}

impl Drop for Span {
    fn drop(&mut self) {
        if let Some(tracer) = TRACER.get() {
            tracer.exporter.send(self);
        }
    }
}

/// The context in a `traceparent` header (W3C Trace Context, version 00), and whether its caller keeps the trace.
fn parse(header: &str) -> Option<(Context, bool)> {
    let mut parts = header.trim().split('-');
    let mut hex = |digits: usize| {
        let part = parts.next()?;
        let valid = part.len() == digits && part.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        valid.then(|| u128::from_str_radix(part, 16).ok()).flatten()
    };
    let (version, trace, span, flags) = (hex(2)?, hex(32)?, hex(16)?, hex(2)?);
    let context = Context { trace, span: u64::try_from(span).ok()? };
    (version != 0xff && trace != 0 && span != 0).then_some((context, flags & 1 == 1))
}

/// Never 0, which names no span. Not for secrets: a sequence of each thread's own, from a seed of the system's.
fn random() -> u64 {
    thread_local! {
        // Without the system's randomness, time tells threads and processes apart.
        static STATE: Cell<u64> = Cell::new(getrandom::u64().unwrap_or_else(|_| nanos(SystemTime::now())));
    }
    // SplitMix64.
    let state = STATE.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
    STATE.set(state);
    let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (mixed ^ (mixed >> 31)).max(1)
}

/// Since 1970.
fn nanos(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_nanos() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_callers_trace_is_taken_only_from_a_whole_header() {
        let header = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let context =
            Context { trace: 0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736, span: 0x00f0_67aa_0ba9_02b7 };
        assert_eq!(parse(header), Some((context, true)));
        assert_eq!(parse(&header.replace("-01", "-00")), Some((context, false)));
        // A later version may say more.
        assert_eq!(parse(&format!("{}-more", header.replacen("00", "01", 1))), Some((context, true)));
        for bad in [
            "",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-+bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        ] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn nothing_is_traced_unless_started() {
        assert!(request("GET", None).is_none());
        assert!(begin("raft", Kind::Internal).is_none() && !is_on());
        assert_ne!(random(), random());
    }
}
