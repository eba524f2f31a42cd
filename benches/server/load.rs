//! The load generator: a process of its own that drives one server, or the nodes of a cluster in equal parts, over a
//! number of closed-loop connections.
//!
//! It reads a [`Load`] as JSON on standard input, prints [`MEASURING`] when the warm-up is over, and an [`Outcome`] as
//! JSON when done. One thread serves all connections, so that it cannot take more than one core from the server.

use crate::Error;
use crate::http::Connection;
use crate::text::{Random, append_body};
use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};
use std::cell::Cell;
use std::io::Write;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

/// The line between warm-up and measurement.
pub(crate) const MEASURING: &str = "measuring";

/// Different bodies sent, in turn. More would only cost the generator's cache.
const BODIES: u64 = 64;

#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Load {
    /// The connections are spread over these.
    pub(crate) addresses: Vec<SocketAddr>,
    pub(crate) connections: usize,
    pub(crate) extent: Extent,
    pub(crate) request: Request,
    pub(crate) conversations: Conversations,
    pub(crate) order: Order,
}

/// Which conversations are addressed, by number.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) enum Conversations {
    Range { first: u64, count: u64 },
    These(Vec<u64>),
}

impl Conversations {
    /// Numbers `0 .. count`.
    pub(crate) fn first(count: u64) -> Conversations {
        Conversations::Range { first: 0, count }
    }

    fn len(&self) -> u64 {
        match self {
            Conversations::Range { count, .. } => *count,
            Conversations::These(numbers) => numbers.len() as u64,
        }
    }

    fn at(&self, index: u64) -> u64 {
        match self {
            Conversations::Range { first, .. } => first + index,
            Conversations::These(numbers) => numbers[index as usize],
        }
    }
}

/// The id of the conversation of that number.
pub(crate) struct Id(pub(crate) u64);

impl std::fmt::Display for Id {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "c{:07}", self.0)
    }
}

/// How long the load lasts.
#[derive(Clone, Copy, Serialize, Deserialize)]
pub(crate) enum Extent {
    Time { warmup: Duration, measure: Duration },
    Requests(u64),
}

/// Which conversation the n-th request addresses.
#[derive(Clone, Copy, Serialize, Deserialize)]
pub(crate) enum Order {
    /// One after the other, from the start again after the last.
    InTurn,
    /// Scattered over all of them.
    Scattered,
}

#[derive(Clone, Copy, Serialize, Deserialize)]
pub(crate) enum Request {
    /// Creates a conversation whose window is its newest `window` messages.
    Create {
        window: usize,
    },
    Append {
        events: usize,
        message_bytes: usize,
        own_token_count: bool,
    },
    Window,
    /// Reads a conversation's settings and state: the least a linearizable read can be.
    Describe,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Outcome {
    pub(crate) requests: u64,
    /// Answers with another status than the request asks for.
    pub(crate) failures: u64,
    pub(crate) first_failure: Option<String>,
    pub(crate) seconds: f64,
    pub(crate) p50_us: u64,
    pub(crate) p99_us: u64,
    pub(crate) max_us: u64,
    /// Bytes of the last answer's body.
    pub(crate) answer_bytes: usize,
}

pub(crate) fn run_from_stdin() -> Result<(), Error> {
    let load: Load = serde_json::from_reader(std::io::stdin().lock())?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let outcome = tokio::task::LocalSet::new().block_on(&runtime, run(load))?;
    println!("{}", serde_json::to_string(&outcome)?);
    Ok(())
}

/// What all connections share; one thread, so cells suffice.
struct Shared {
    load: Load,
    bodies: Vec<Vec<u8>>,
    /// Number of the next request.
    next: Cell<u64>,
    stop: Cell<bool>,
}

/// What one connection saw while measuring.
struct Seen {
    latency_us: Histogram<u64>,
    outcome: Outcome,
}

async fn run(load: Load) -> Result<Outcome, Error> {
    let shared =
        Rc::new(Shared { bodies: load.request.bodies(), load, next: Cell::new(0), stop: Cell::new(false) });
    let measuring = Rc::new(Cell::new(matches!(shared.load.extent, Extent::Requests(_))));
    let mut clients = Vec::new();
    for address in shared.load.addresses.iter().cycle().take(shared.load.connections) {
        let connection = Connection::open(*address).await?;
        clients.push(tokio::task::spawn_local(drive(connection, Rc::clone(&shared), Rc::clone(&measuring))));
    }
    if let Extent::Time { warmup, .. } = shared.load.extent {
        tokio::time::sleep(warmup).await;
    }
    println!("{MEASURING}");
    std::io::stdout().flush()?;
    let begin = Instant::now();
    measuring.set(true);
    if let Extent::Time { measure, .. } = shared.load.extent {
        tokio::time::sleep(measure).await;
        shared.stop.set(true);
    }
    let seconds_timed = begin.elapsed().as_secs_f64();
    let mut total = Seen::new()?;
    for client in clients {
        total.add(client.await??)?;
    }
    let timed = matches!(shared.load.extent, Extent::Time { .. });
    Ok(total.finish(if timed { seconds_timed } else { begin.elapsed().as_secs_f64() }))
}

/// One closed-loop client: a request, its answer, the next request.
async fn drive(
    mut connection: Connection,
    shared: Rc<Shared>,
    measuring: Rc<Cell<bool>>,
) -> Result<Seen, Error> {
    let mut seen = Seen::new()?;
    let mut request = Vec::new();
    while let Some(number) = shared.take() {
        shared.render(number, &mut request);
        let counted = measuring.get();
        let begin = Instant::now();
        let (status, body) = connection.exchange(&request).await?;
        // Answers after the end do not count, or the rate would profit from the last of them.
        if !counted || shared.stop.get() {
            continue;
        }
        seen.latency_us.record(begin.elapsed().as_micros() as u64)?;
        seen.outcome.requests += 1;
        seen.outcome.answer_bytes = body.len();
        if !shared.load.request.expects(status) {
            seen.outcome.failures += 1;
            let text = String::from_utf8_lossy(&body[..body.len().min(200)]).into_owned();
            seen.outcome.first_failure.get_or_insert(format!("{status} {text}"));
        }
    }
    Ok(seen)
}

impl Shared {
    fn take(&self) -> Option<u64> {
        let number = self.next.get();
        let over = match self.load.extent {
            Extent::Time { .. } => self.stop.get(),
            Extent::Requests(limit) => number >= limit,
        };
        self.next.set(number + 1);
        (!over).then_some(number)
    }

    fn render(&self, number: u64, into: &mut Vec<u8>) {
        into.clear();
        let count = self.load.conversations.len();
        let conversation = self.load.conversations.at(match self.load.order {
            Order::InTurn => number % count,
            Order::Scattered => Random::new(number).below(count),
        });
        let conversation = Id(conversation);
        let path = format_args!("/v1/conversations/{conversation}");
        let written = match self.load.request {
            Request::Window => write!(into, "GET {path}/window HTTP/1.1\r\nhost: bench\r\n\r\n"),
            Request::Describe => write!(into, "GET {path} HTTP/1.1\r\nhost: bench\r\n\r\n"),
            Request::Create { .. } => self.render_body(into, format_args!("PUT {path}"), number),
            Request::Append { .. } => self.render_body(into, format_args!("POST {path}/events"), number),
        };
        written.expect("a Vec takes all that is written to it");
    }

    fn render_body(&self, into: &mut Vec<u8>, line: std::fmt::Arguments, number: u64) -> std::io::Result<()> {
        let body = &self.bodies[(number % self.bodies.len() as u64) as usize];
        let len = body.len();
        write!(into, "{line} HTTP/1.1\r\nhost: bench\r\n")?;
        write!(into, "content-type: application/json\r\ncontent-length: {len}\r\n\r\n")?;
        into.write_all(body)
    }
}

impl Request {
    fn bodies(self) -> Vec<Vec<u8>> {
        match self {
            Request::Window | Request::Describe => Vec::new(),
            Request::Create { window } => {
                vec![format!(r#"{{"policy":{{"strategy":"last_n","config":{{"limit":{window}}}}},"token_budget":1000000}}"#).into()]
            }
            Request::Append { events, message_bytes, own_token_count } => (0..BODIES)
                .map(|seed| append_body(&mut Random::new(seed), events, message_bytes, own_token_count))
                .collect(),
        }
    }

    fn expects(self, status: u16) -> bool {
        match self {
            Request::Create { .. } => status == 201 || status == 200,
            Request::Append { .. } => status == 201,
            Request::Window | Request::Describe => status == 200,
        }
    }
}

impl Seen {
    fn new() -> Result<Seen, Error> {
        Ok(Seen { latency_us: Histogram::new(3)?, outcome: Outcome::default() })
    }

    fn add(&mut self, other: Seen) -> Result<(), Error> {
        self.latency_us.add(other.latency_us)?;
        self.outcome.requests += other.outcome.requests;
        self.outcome.failures += other.outcome.failures;
        self.outcome.answer_bytes = self.outcome.answer_bytes.max(other.outcome.answer_bytes);
        if self.outcome.first_failure.is_none() {
            self.outcome.first_failure = other.outcome.first_failure;
        }
        Ok(())
    }

    fn finish(self, seconds: f64) -> Outcome {
        Outcome {
            seconds,
            p50_us: self.latency_us.value_at_quantile(0.50),
            p99_us: self.latency_us.value_at_quantile(0.99),
            max_us: self.latency_us.max(),
            ..self.outcome
        }
    }
}
