//! The clients of the faults: each appends to conversations of its own for as long as asked, repeats what failed under the
//! same idempotency key, and goes from one node to the next when it must.
//!
//! A process of its own. It reads a [`Crowd`] as one line of JSON on standard input, prints when it began, and a [`Seen`]
//! as JSON when its input ends. Every acknowledgement is kept with its time, so that gaps and rates of any stretch can be
//! worked out afterwards.

use crate::Error;
use crate::http::Connection;
use crate::load::Id;
use crate::text::{Random, append_body};
use serde::{Deserialize, Serialize};
use std::cell::Cell;
use std::io::{BufRead, ErrorKind, Write};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Between a failed attempt and the next.
const RETRY: Duration = Duration::from_millis(20);
/// Longer than a server takes to give up on a request.
const ANSWER_MAX: Duration = Duration::from_secs(15);

#[derive(Serialize, Deserialize)]
pub(crate) struct Crowd {
    pub(crate) clients: Vec<Client>,
    /// Between an answer and the next request of a client.
    pub(crate) pause: Duration,
    pub(crate) message_bytes: usize,
}

#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Client {
    /// Appended to in turn.
    pub(crate) conversations: Vec<u64>,
    /// Where it sends: to the first, until that one fails.
    pub(crate) addresses: Vec<SocketAddr>,
}

#[derive(Serialize, Deserialize)]
pub(crate) struct Seen {
    /// By client, in the order of the crowd.
    pub(crate) clients: Vec<History>,
}

/// What one client saw; times are in tenths of a millisecond since the crowd began.
#[derive(Default, Serialize, Deserialize)]
pub(crate) struct History {
    pub(crate) acknowledged: Vec<u32>,
    pub(crate) failed: Vec<(u32, Failure)>,
    /// Connections that the server closed between two requests, as it may: not a failure.
    pub(crate) closed: Vec<u32>,
}

/// Why an attempt brought no acknowledgement.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) enum Failure {
    /// Nobody listens there: nothing was sent.
    Refused,
    /// The connection broke before the answer, or no answer came.
    Broken,
    /// Another answer than wanted.
    Answer(String),
}

pub(crate) fn run_from_stdin() -> Result<(), Error> {
    let mut line = String::new();
    std::io::stdin().lock().read_line(&mut line)?;
    let crowd: Crowd = serde_json::from_str(&line)?;
    let (ended, end) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        // The end of the input, or of the process at its other side, which comes to the same.
        std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink()).ok();
        ended.send(()).ok();
    });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let seen = tokio::task::LocalSet::new().block_on(&runtime, run(crowd, end))?;
    println!("{}", serde_json::to_string(&seen)?);
    Ok(())
}

async fn run(crowd: Crowd, end: tokio::sync::oneshot::Receiver<()>) -> Result<Seen, Error> {
    let bodies =
        (0..64).map(|seed| append_body(&mut Random::new(seed), 1, crowd.message_bytes, true)).collect();
    let began_us = SystemTime::now().duration_since(UNIX_EPOCH)?.as_micros();
    let shared = Rc::new(Shared {
        bodies,
        pause: crowd.pause,
        began: Instant::now(),
        stop: Cell::new(false),
        began_us,
    });
    let clients = crowd.clients.into_iter().enumerate().map(|(number, client)| {
        let driver = Driver { number, client, at: 0, connection: None, history: History::default() };
        tokio::task::spawn_local(driver.run(Rc::clone(&shared)))
    });
    let clients: Vec<_> = clients.collect();
    println!("{began_us}");
    std::io::stdout().flush()?;
    // A sender that is gone means the end as well.
    end.await.ok();
    shared.stop.set(true);
    let mut seen = Seen { clients: Vec::new() };
    for client in clients {
        seen.clients.push(client.await?);
    }
    Ok(seen)
}

struct Shared {
    bodies: Vec<Vec<u8>>,
    pause: Duration,
    began: Instant,
    /// Makes the keys of one crowd different from those of others.
    began_us: u128,
    stop: Cell<bool>,
}

impl Shared {
    fn now(&self) -> u32 {
        (self.began.elapsed().as_micros() / 100) as u32
    }

    fn render(&self, client: usize, number: usize, conversation: u64, into: &mut Vec<u8>) {
        let body = &self.bodies[number % self.bodies.len()];
        let open = &body[..body.len() - 1];
        let key = format!(r#","idempotency_key":"{}-{client}-{number}"}}"#, self.began_us);
        let length = open.len() + key.len();
        into.clear();
        write!(
            into,
            "POST /v1/conversations/{}/events HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n",
            Id(conversation)
        )
        .expect("a Vec takes all that is written to it");
        into.extend_from_slice(open);
        into.extend_from_slice(key.as_bytes());
    }
}

struct Driver {
    number: usize,
    client: Client,
    /// Which of its addresses it is at.
    at: usize,
    connection: Option<Connection>,
    history: History,
}

impl Driver {
    async fn run(mut self, shared: Rc<Shared>) -> History {
        let mut request = Vec::new();
        // Not all at once, which would be a burst in every round.
        tokio::time::sleep(shared.pause.mul_f64(self.number as f64 % 16.0 / 16.0)).await;
        for number in 0.. {
            let conversation = self.client.conversations[number % self.client.conversations.len()];
            shared.render(self.number, number, conversation, &mut request);
            while !shared.stop.get() {
                let Err(failure) = self.attempt(&request, &shared).await else { break };
                self.history.failed.push((shared.now(), failure));
                self.connection = None;
                self.at += 1;
                tokio::time::sleep(RETRY).await;
            }
            if shared.stop.get() {
                break;
            }
            self.history.acknowledged.push(shared.now());
            if !shared.pause.is_zero() {
                tokio::time::sleep(shared.pause).await;
            }
        }
        self.history
    }

    async fn attempt(&mut self, request: &[u8], shared: &Shared) -> Result<(), Failure> {
        let mut connection = match self.connection.take() {
            Some(connection) if connection.is_over() => {
                self.history.closed.push(shared.now());
                self.connect().await?
            }
            Some(connection) => connection,
            None => self.connect().await?,
        };
        match tokio::time::timeout(ANSWER_MAX, connection.exchange(request)).await {
            Ok(Ok((200 | 201, _))) => {}
            Ok(Ok((status, body))) => return Err(Failure::Answer(named(status, body))),
            Ok(Err(_)) | Err(_) => return Err(Failure::Broken),
        }
        self.connection = Some(connection);
        Ok(())
    }

    async fn connect(&self) -> Result<Connection, Failure> {
        let address = self.client.addresses[self.at % self.client.addresses.len()];
        Connection::open(address).await.map_err(|error| match error.kind() {
            ErrorKind::ConnectionRefused => Failure::Refused,
            _ => Failure::Broken,
        })
    }
}

/// The status and the code of an error answer.
fn named(status: u16, body: &[u8]) -> String {
    let answer: serde_json::Value = serde_json::from_slice(body).unwrap_or_default();
    format!("{status} {}", answer["error"].as_str().unwrap_or("without a code"))
}
