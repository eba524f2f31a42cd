//! Spans on their way to a collector: queued, and posted in batches as OTLP's JSON by a thread of its own, so that no request
//! waits for it. What does not fit into the queue, or what the collector does not take, is dropped and counted in the log.

use std::io::{self, BufRead, BufReader, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use serde_json::{Value, json};
use tracing::{info, warn};

use super::{Span, nanos};

/// Spans that wait for the exporter.
const QUEUE_MAX: usize = 8_192;
/// Spans in one post, and how long the first of them waits for the others.
const BATCH_MAX: usize = 512;
const BATCH_WAIT: Duration = Duration::from_millis(500);
/// Longest wait for the collector, at each step of a post.
const POST_MAX: Duration = Duration::from_secs(5);
/// Where collectors take traces.
const PATH: &str = "/v1/traces";

static DROPPED: AtomicU64 = AtomicU64::new(0);

pub(super) struct Exporter {
    queue: SyncSender<Value>,
}

impl Exporter {
    pub(super) fn start(endpoint: &str, node: &str) -> Exporter {
        let (queue, spans) = sync_channel(QUEUE_MAX);
        let authority = endpoint.trim_start_matches("http://").trim_end_matches('/').to_owned();
        let resource = json!({"attributes": [
            attribute("service.name", "fastpaca"),
            attribute("service.instance.id", node),
            attribute("service.version", env!("CARGO_PKG_VERSION")),
        ]});
        let started =
            thread::Builder::new().name("traces".into()).spawn(move || run(&spans, &authority, &resource));
        if let Err(error) = started {
            warn!(event = "traces_not_exported", %error);
        }
        Exporter { queue }
    }

    /// Never waits.
    pub(super) fn send(&self, span: &Span) {
        if self.queue.try_send(form(span)).is_err() {
            DROPPED.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Until the process ends.
fn run(spans: &Receiver<Value>, authority: &str, resource: &Value) {
    let mut failing = false;
    while let Some(batch) = next_batch(spans) {
        let count = batch.len() as u64;
        let scope = json!({"name": "fastpaca", "version": env!("CARGO_PKG_VERSION")});
        let body = json!({"resourceSpans": [{"resource": resource, "scopeSpans": [{"scope": scope, "spans": batch}]}]});
        match post(authority, body.to_string().as_bytes()) {
            Ok(()) if failing => {
                failing = false;
                let dropped = DROPPED.swap(0, Ordering::Relaxed);
                info!(event = "trace_export_recovered", dropped);
            }
            Ok(()) => {}
            Err(error) => {
                DROPPED.fetch_add(count, Ordering::Relaxed);
                if !failing {
                    warn!(event = "trace_export_failed", collector = authority, %error);
                }
                failing = true;
            }
        }
        if !failing && let dropped @ 1.. = DROPPED.swap(0, Ordering::Relaxed) {
            warn!(event = "trace_spans_dropped", dropped);
        }
    }
}

/// `None` when nothing will come any more.
fn next_batch(spans: &Receiver<Value>) -> Option<Vec<Value>> {
    let mut batch = vec![spans.recv().ok()?];
    let until = Instant::now() + BATCH_WAIT;
    while batch.len() < BATCH_MAX {
        match spans.recv_timeout(until.saturating_duration_since(Instant::now())) {
            Ok(span) => batch.push(span),
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => break,
        }
    }
    Some(batch)
}

fn post(authority: &str, body: &[u8]) -> io::Result<()> {
    let mut stream = connect(authority)?;
    stream.set_read_timeout(Some(POST_MAX))?;
    stream.set_write_timeout(Some(POST_MAX))?;
    write!(
        stream,
        "POST {PATH} HTTP/1.1\r\nhost: {authority}\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        body.len()
    )?;
    stream.write_all(body)?;
    let mut status = String::new();
    BufReader::new(stream).read_line(&mut status)?;
    match status.split(' ').nth(1) {
        Some(code) if code.starts_with('2') => Ok(()),
        _ => Err(io::Error::other(format!("the collector answered {:?}", status.trim_end()))),
    }
}

fn connect(authority: &str) -> io::Result<TcpStream> {
    let mut failure = io::Error::other("the name has no address");
    for address in authority.to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, POST_MAX) {
            Ok(stream) => return Ok(stream),
            Err(error) => failure = error,
        }
    }
    Err(failure)
}

/// A span as OTLP's JSON has it.
fn form(span: &Span) -> Value {
    let ended = span.ended.unwrap_or_else(SystemTime::now);
    let attributes: Vec<Value> = span.attributes.iter().map(|(key, value)| attribute(key, value)).collect();
    let mut form = json!({
        "traceId": format!("{:032x}", span.context.trace),
        "spanId": format!("{:016x}", span.context.span),
        "name": span.name,
        "kind": span.kind as u8,
        "startTimeUnixNano": nanos(span.begun).to_string(),
        "endTimeUnixNano": nanos(ended).max(nanos(span.begun)).to_string(),
        "attributes": attributes,
        "status": {"code": if span.failed { 2 } else { 0 }},
    });
    if let Some(parent) = span.parent {
        form["parentSpanId"] = format!("{parent:016x}").into();
    }
    form
}

fn attribute(key: &str, value: &str) -> Value {
    json!({"key": key, "value": {"stringValue": value}})
}
