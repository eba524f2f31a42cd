//! A client as a good application is one: it asks any node, tries again elsewhere what was not applied or is unknown, under
//! the same idempotency key, and remembers the newest version it was told.

use crate::history::{History, Operation, Outcome, Request};
use crate::rng::Rng;
use crate::support::client::{Answer, Client, message, text_of};
use crate::support::cluster::Addresses;
use reqwest::Method;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Longest wait for the answer to a write. Below the server's own limit: a client may know less than the server, never more.
const WRITTEN_MAX: Duration = Duration::from_secs(5);

/// Longest wait for the answer to a read: short, so that a node which hangs always has some that were asked a moment ago.
const READ_MAX: Duration = Duration::from_millis(500);

/// How long one operation is tried again.
const GIVE_UP: Duration = Duration::from_secs(90);

/// Pause before another attempt, times one to four.
const RETRY: Duration = Duration::from_millis(10);

const BATCH_MAX: usize = 5;
/// How many events a tail has at most.
pub(crate) const TAIL: usize = 5;

/// Requests by what became of them, over all clients.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) answered: AtomicUsize,
    /// Nobody listened.
    pub(crate) unreachable: AtomicUsize,
    /// Refused as not applied.
    pub(crate) refused: AtomicUsize,
    /// Not answered: the connection broke or closed.
    pub(crate) cut_off: AtomicUsize,
    /// Answered as unknown.
    pub(crate) unknown: AtomicUsize,
}

/// What all clients of a run share.
pub(crate) struct Run {
    pub(crate) ids: Vec<String>,
    pub(crate) addresses: Addresses,
    pub(crate) history: History,
    pub(crate) counts: Counts,
    /// Answers that the interface does not allow.
    pub(crate) findings: Mutex<Vec<String>>,
    pub(crate) stop: AtomicBool,
}

pub(crate) struct Worker {
    run: Arc<Run>,
    number: usize,
    rng: Rng,
    /// How many appends it has made, for names.
    appends: usize,
    /// The newest version it was told, by conversation.
    versions: HashMap<usize, u64>,
    acknowledged: Vec<Acknowledged>,
    clients: HashMap<(SocketAddr, Duration), Client>,
}

/// An append, and where its answer said that it is.
#[derive(Clone)]
struct Acknowledged {
    conversation: usize,
    request: Request,
    body: Value,
    first_seq: u64,
}

/// What one attempt led to.
enum Attempt {
    Answered(Answer),
    NotApplied,
    Unknown,
}

impl Worker {
    pub(crate) fn new(run: Arc<Run>, number: usize, rng: Rng) -> Worker {
        Worker {
            run,
            number,
            rng,
            appends: 0,
            versions: HashMap::new(),
            acknowledged: Vec::new(),
            clients: HashMap::new(),
        }
    }

    /// Works until the run stops.
    pub(crate) async fn work(mut self) {
        while !self.run.stop.load(Ordering::Relaxed) {
            let conversation = self.rng.below(self.run.ids.len());
            match self.rng.below(100) {
                0..45 => self.append(conversation, 1).await,
                45..55 => {
                    let count = 2 + self.rng.below(BATCH_MAX - 1);
                    self.append(conversation, count).await;
                }
                55..60 => self.compact(conversation).await,
                60..75 => drop(self.read(conversation, Request::Read).await),
                75..85 => drop(self.read(conversation, Request::ReadTail).await),
                85..95 => {
                    let min_version = self.versions.get(&conversation).copied();
                    drop(self.read(conversation, Request::ReadLocal { min_version }).await);
                }
                95..97 => drop(self.read(conversation, Request::ReadLocal { min_version: None }).await),
                _ => self.append_again().await,
            }
        }
    }

    async fn append(&mut self, conversation: usize, count: usize) {
        self.appends += 1;
        let key = format!("{}-{}", self.number, self.appends);
        let texts: Vec<String> = (0..count).map(|part| format!("{key}.{part}")).collect();
        let mut body = match &texts[..] {
            [text] => json!({"event": message(text)}),
            texts => json!({"events": texts.iter().map(|text| message(text)).collect::<Vec<_>>()}),
        };
        body["idempotency_key"] = json!(key);
        let path = self.events_path(conversation);
        let request = Request::Append { key, texts };
        let mut operation = self.begin(conversation, request.clone());
        operation.outcome = Outcome::NotApplied;
        let deadline = Instant::now() + GIVE_UP;
        while Instant::now() < deadline {
            match self.attempt(&mut operation, Method::POST, &path, Some(&body)).await {
                Attempt::Answered(answer) => {
                    operation.outcome = self.appended(&operation, &answer);
                    if let Outcome::Appended { first_seq, .. } = operation.outcome {
                        self.acknowledged.push(Acknowledged { conversation, request, body, first_seq });
                    }
                    break;
                }
                Attempt::Unknown => operation.outcome = Outcome::Unknown,
                Attempt::NotApplied => {}
            }
            self.pause().await;
        }
        self.end(operation);
    }

    /// Sends an append again that was acknowledged some time ago: it must be known, wherever it is asked.
    async fn append_again(&mut self) {
        if self.acknowledged.is_empty() {
            return;
        }
        let Acknowledged { conversation, request, body, first_seq } =
            self.rng.pick(&self.acknowledged).clone();
        let path = self.events_path(conversation);
        let mut operation = self.begin(conversation, request);
        let deadline = Instant::now() + GIVE_UP;
        while Instant::now() < deadline {
            if let Attempt::Answered(answer) =
                self.attempt(&mut operation, Method::POST, &path, Some(&body)).await
            {
                let known = matches!(
                    self.appended(&operation, &answer),
                    Outcome::Appended { first_seq: again, .. } if again == first_seq
                );
                if answer.body["deduped"] != true || !known {
                    self.find(format!("{operation:?} was at {first_seq} and is answered {answer:?}"));
                }
                return;
            }
            self.pause().await;
        }
    }

    fn events_path(&self, conversation: usize) -> String {
        format!("/v1/conversations/{}/events", self.run.ids[conversation])
    }

    fn appended(&self, operation: &Operation, answer: &Answer) -> Outcome {
        let first_seq = answer.body["seq"].as_u64().or(answer.body["first_seq"].as_u64());
        match (answer.status, first_seq) {
            (200 | 201, Some(first_seq)) => {
                Outcome::Appended { first_seq, version: answer.body["version"].as_u64() }
            }
            _ => self.disallowed(operation, answer),
        }
    }

    /// Compacts everything up to what a read before saw; not sent again once its outcome is unknown, for the version
    /// it would be refused with could be its own.
    async fn compact(&mut self, conversation: usize) {
        let Some(Outcome::Saw { version, last_seq }) = self.read(conversation, Request::Read).await else {
            return;
        };
        if last_seq == 0 {
            return;
        }
        let mut operation = self.begin(conversation, Request::Compact { if_version: version });
        let summary = message(&format!("so far, by {} at {version}", self.number));
        let body =
            json!({"from_seq": 1, "to_seq": last_seq, "replacement": [summary], "if_version": version});
        let path = format!("/v1/conversations/{}/compact", self.run.ids[conversation]);
        operation.outcome = Outcome::NotApplied;
        let deadline = Instant::now() + GIVE_UP;
        while Instant::now() < deadline {
            match self.attempt(&mut operation, Method::POST, &path, Some(&body)).await {
                Attempt::Answered(answer) => {
                    operation.outcome = self.compacted(&operation, &answer);
                    break;
                }
                Attempt::Unknown => {
                    operation.outcome = Outcome::Unknown;
                    break;
                }
                Attempt::NotApplied => self.pause().await,
            }
        }
        self.end(operation);
    }

    fn compacted(&self, operation: &Operation, answer: &Answer) -> Outcome {
        let version = answer.body["version"].as_u64();
        let current = answer.body["current_version"].as_u64();
        match (answer.status, answer.error(), version, current) {
            (200, _, Some(version), _) => Outcome::Compacted { version },
            (409, "conflict", _, Some(version)) => Outcome::Conflict { version },
            _ => self.disallowed(operation, answer),
        }
    }

    /// A read until it is answered. The call recorded is the one that was: what an earlier attempt would have seen, nobody
    /// knows. `None` when it never was.
    async fn read(&mut self, conversation: usize, request: Request) -> Option<Outcome> {
        let id = &self.run.ids[conversation];
        let path = match &request {
            Request::ReadTail => format!("/v1/conversations/{id}/tail?limit={TAIL}"),
            Request::ReadLocal { min_version: Some(version) } => {
                format!("/v1/conversations/{id}?consistency=local&min_version={version}")
            }
            Request::ReadLocal { .. } => format!("/v1/conversations/{id}?consistency=local"),
            _ => format!("/v1/conversations/{id}"),
        };
        let deadline = Instant::now() + GIVE_UP;
        while Instant::now() < deadline {
            let mut operation = self.begin(conversation, request.clone());
            if let Attempt::Answered(answer) = self.attempt(&mut operation, Method::GET, &path, None).await {
                operation.outcome = self.saw(&operation, &answer);
                let outcome = operation.outcome.clone();
                self.end(operation);
                return Some(outcome);
            }
            self.pause().await;
        }
        None
    }

    fn saw(&self, operation: &Operation, answer: &Answer) -> Outcome {
        let (version, last_seq) = (answer.body["version"].as_u64(), answer.body["last_seq"].as_u64());
        match (answer.status, &operation.request, version, last_seq, answer.body["events"].as_array()) {
            (200, Request::ReadTail, _, _, Some(events)) => {
                Outcome::SawTail(events.iter().map(place_and_text).collect())
            }
            (200, _, Some(version), Some(last_seq), _) => Outcome::Saw { version, last_seq },
            _ => self.disallowed(operation, answer),
        }
    }

    fn disallowed(&self, operation: &Operation, answer: &Answer) -> Outcome {
        self.find(format!("{operation:?} was answered {answer:?}"));
        Outcome::Unknown
    }

    fn find(&self, finding: String) {
        self.run.findings.lock().expect("nobody panics with the lock").push(finding);
    }

    /// Sends a request to any node. A write goes to the same one first, so that those of other clients go on when that
    /// one hangs.
    async fn attempt(
        &mut self,
        operation: &mut Operation,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Attempt {
        let addresses = self.run.addresses.all();
        let (is_write, is_first) = (method == Method::POST, operation.attempts == 0);
        operation.node = match is_write && is_first {
            true => self.number % addresses.len(),
            false => self.rng.below(addresses.len()),
        };
        operation.attempts += 1;
        let address = addresses[operation.node];
        let limit = if is_write { WRITTEN_MAX } else { READ_MAX };
        let client = self.clients.entry((address, limit)).or_insert_with(|| Client::at(address, limit));
        let answer = client.request(method, path, body).await;
        let counts = &self.run.counts;
        let (count, attempt) = match answer {
            Err(error) if error.is_connect() => (&counts.unreachable, Attempt::NotApplied),
            Err(_) => (&counts.cut_off, Attempt::Unknown),
            Ok(answer) => match (answer.status, answer.error()) {
                (503, "unknown_outcome") => (&counts.unknown, Attempt::Unknown),
                (503 | 429, _) => (&counts.refused, Attempt::NotApplied),
                // Local reads may know nothing yet of what was just created elsewhere.
                (404, _) if matches!(operation.request, Request::ReadLocal { .. }) => {
                    (&counts.refused, Attempt::NotApplied)
                }
                _ => (&counts.answered, Attempt::Answered(answer)),
            },
        };
        count.fetch_add(1, Ordering::Relaxed);
        attempt
    }

    fn begin(&self, conversation: usize, request: Request) -> Operation {
        Operation {
            client: self.number,
            conversation,
            node: 0,
            called: self.run.history.now(),
            returned: 0,
            request,
            outcome: Outcome::Unknown,
            attempts: 0,
        }
    }

    fn end(&mut self, mut operation: Operation) {
        operation.returned = self.run.history.now();
        let told = match operation.outcome {
            Outcome::Appended { version, .. } => version,
            Outcome::Compacted { version } | Outcome::Conflict { version } | Outcome::Saw { version, .. } => {
                Some(version)
            }
            _ => None,
        };
        if let Some(version) = told {
            let newest = self.versions.entry(operation.conversation).or_default();
            *newest = version.max(*newest);
        }
        self.run.history.push(operation);
    }

    async fn pause(&mut self) {
        let factor = 1 + self.rng.below(4) as u32;
        tokio::time::sleep(RETRY * factor).await;
    }
}

fn place_and_text(event: &Value) -> (u64, String) {
    (event["seq"].as_u64().unwrap_or_default(), text_of(event).to_owned())
}
