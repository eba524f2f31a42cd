//! Traffic at a given rate, as users make it: open loop, so that a slow answer does not thin out what comes after it.
//!
//! Appends arrive at random (exponential gaps, from a fixed seed) over the active conversations. Each is followed by reads
//! of that conversation's window, as an application reads it to call a model. Readers of streams take every frame. One
//! thread drives it all, by timers that tick in milliseconds: far above 1,000 arrivals a second they come in bunches.

use crate::Error;
use crate::http::Connection;
use crate::text::{Random, append_body};
use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::LocalSet;
use tokio::time::{Instant, sleep_until};

/// Different bodies sent, in turn.
const BODIES: u64 = 64;
/// Requests under way at once; an arrival that finds all of them busy waits.
pub(crate) const CONNECTIONS: usize = 64;

/// What is sent.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Traffic {
    pub(crate) appends_per_second: f64,
    pub(crate) windows_per_append: f64,
    pub(crate) message_bytes: usize,
    pub(crate) own_token_count: bool,
    /// Conversations that are written to.
    pub(crate) conversations: u64,
    /// Open streams, on as many conversations, the first ones.
    pub(crate) streams: u64,
}

/// What was seen since the counting began.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Seen {
    pub(crate) appends: u64,
    pub(crate) windows: u64,
    /// Bytes of requests, with their heads.
    pub(crate) sent_bytes: u64,
    /// Bytes of answers and frames, with their heads.
    pub(crate) received_bytes: u64,
}

pub(crate) fn id(number: u64) -> String {
    format!("c{number:07}")
}

struct Shared {
    traffic: Traffic,
    bodies: Vec<Vec<u8>>,
    due: Cell<Instant>,
    random: RefCell<Random>,
    seen: Cell<Seen>,
}

/// Runs traffic for `warmup` and `measure`; calls `at_edge` at both ends of the latter.
pub(crate) async fn run(
    address: SocketAddr,
    traffic: Traffic,
    (warmup, measure): (Duration, Duration),
    mut at_edge: impl FnMut() -> Result<(), Error>,
) -> Result<Seen, Error> {
    let bodies = (0..BODIES)
        .map(|seed| append_body(&mut Random::new(seed), 1, traffic.message_bytes, traffic.own_token_count));
    let shared = Rc::new(Shared {
        traffic,
        bodies: bodies.collect(),
        due: Cell::new(Instant::now()),
        random: RefCell::new(Random::new(7)),
        seen: Cell::default(),
    });
    let local = LocalSet::new();
    local
        .run_until(async {
            let mut readers = Vec::new();
            for number in 0..traffic.streams {
                let stream = open_stream(address, number).await?;
                readers.push(tokio::task::spawn_local(read_stream(stream, Rc::clone(&shared))));
            }
            let mut clients = Vec::new();
            shared.due.set(Instant::now());
            for _ in 0..CONNECTIONS {
                let connection = Connection::open(address).await?;
                clients.push(tokio::task::spawn_local(client(connection, Rc::clone(&shared))));
            }
            tokio::time::sleep(warmup).await;
            at_edge()?;
            shared.seen.set(Seen::default());
            tokio::time::sleep(measure).await;
            at_edge()?;
            let seen = shared.seen.get();
            // Most wait for what is due next; those that ended did so by an error.
            for client in clients {
                match client.is_finished() {
                    true => client.await??,
                    false => client.abort(),
                }
            }
            readers.iter().for_each(tokio::task::JoinHandle::abort);
            Ok(seen)
        })
        .await
}

async fn client(mut connection: Connection, shared: Rc<Shared>) -> Result<(), Error> {
    let mut request = Vec::new();
    let traffic = shared.traffic;
    loop {
        let (due, number) = shared.take();
        sleep_until(due).await;
        let conversation = id(number % traffic.conversations);
        let body = &shared.bodies[(number % BODIES) as usize];
        request.clear();
        request.extend_from_slice(
            format!(
                "POST /v1/conversations/{conversation}/events HTTP/1.1\r\nhost: proof\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
                body.len()
            )
            .as_bytes(),
        );
        request.extend_from_slice(body);
        exchange(&mut connection, &request, 201, &shared).await?;
        shared.see(|seen| seen.appends += 1);
        for _ in 0..shared.windows() {
            let read = format!("GET /v1/conversations/{conversation}/window HTTP/1.1\r\nhost: proof\r\n\r\n");
            exchange(&mut connection, read.as_bytes(), 200, &shared).await?;
            shared.see(|seen| seen.windows += 1);
        }
    }
}

async fn exchange(
    connection: &mut Connection,
    request: &[u8],
    wanted: u16,
    shared: &Shared,
) -> Result<(), Error> {
    let (status, body) = connection.exchange(request).await?;
    if status != wanted {
        return Err(format!("{status} {}", String::from_utf8_lossy(&body[..body.len().min(200)])).into());
    }
    let received = connection.answer_bytes() as u64;
    shared.see(|seen| {
        seen.sent_bytes += request.len() as u64;
        seen.received_bytes += received;
    });
    Ok(())
}

async fn open_stream(address: SocketAddr, number: u64) -> Result<TcpStream, Error> {
    let mut stream = TcpStream::connect(address).await?;
    let request = format!(
        "GET /v1/conversations/{}/stream HTTP/1.1\r\nhost: proof\r\naccept: text/event-stream\r\n\r\n",
        id(number)
    );
    stream.write_all(request.as_bytes()).await?;
    Ok(stream)
}

async fn read_stream(mut stream: TcpStream, shared: Rc<Shared>) {
    let mut buffer = vec![0; 16 << 10];
    while let Ok(count @ 1..) = stream.read(&mut buffer).await {
        shared.see(|seen| seen.received_bytes += count as u64);
    }
}

impl Shared {
    /// When the next append is due, and to whom: a number below 2^31.
    fn take(&self) -> (Instant, u64) {
        let mut random = self.random.borrow_mut();
        let uniform = (random.below(1 << 31) + 1) as f64 / (1u64 << 31) as f64;
        let gap = -uniform.ln() / self.traffic.appends_per_second;
        let due = self.due.get();
        self.due.set(due + Duration::from_secs_f64(gap));
        (due, random.below(1 << 31))
    }

    /// How often the window is read after this append: on average as often as asked.
    fn windows(&self) -> u64 {
        let whole = self.traffic.windows_per_append.floor();
        let rest = self.traffic.windows_per_append - whole;
        let chance = self.random.borrow_mut().below(1 << 20) as f64 / f64::from(1 << 20);
        whole as u64 + u64::from(chance < rest)
    }

    fn see(&self, change: impl FnOnce(&mut Seen)) {
        let mut seen = self.seen.get();
        change(&mut seen);
        self.seen.set(seen);
    }
}
