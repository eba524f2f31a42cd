//! Writers that keep a record of every append they sent, and the check of a server's logs against that record.
//!
//! The check is the promise of the interface, whatever happened in between: what was acknowledged is in the log once, at
//! the place that was named; what failed as "not applied" is not; what has an unknown outcome is there at most once, whole
//! or not at all; nothing else is; sequence numbers have no holes; and every idempotency key answers as it did before.

use super::client::{Answer, Client, message, text_of};
use reqwest::Method;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};
use tokio::task::{AbortHandle, JoinSet};

/// Every so many appends one is a batch.
const BATCH_EVERY: u64 = 5;
const BATCH_LEN: u64 = 3;

/// Everything ever sent to one server's data.
#[derive(Clone, Default)]
pub(crate) struct Ledger(Arc<Shared>);

#[derive(Default)]
struct Shared {
    attempts: Mutex<Vec<Attempt>>,
    next: AtomicU64,
}

/// One append request.
#[derive(Clone, Debug)]
struct Attempt {
    conversation: String,
    key: String,
    texts: Vec<String>,
    outcome: Outcome,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Outcome {
    /// In the log from this sequence number on, as the answer said, which came at this time.
    Acknowledged(u64, SystemTime),
    /// Refused as not applied.
    NotApplied,
    /// An answer came that leaves it open.
    Unknown,
    /// No answer came.
    Lost,
}

/// Writers at work.
pub(crate) struct Writers {
    stop: Arc<AtomicBool>,
    tasks: JoinSet<()>,
    handles: Vec<AbortHandle>,
}

/// What the ledger holds, for a test that must not pass without having tried anything.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counts {
    pub(crate) acknowledged: usize,
    pub(crate) not_applied: usize,
    pub(crate) unknown: usize,
    pub(crate) lost: usize,
}

impl Writers {
    /// Whether every writer lost its server.
    pub(crate) fn all_ended(&self) -> bool {
        self.handles.iter().all(AbortHandle::is_finished)
    }

    /// Waits until every writer lost its server.
    pub(crate) async fn ended(mut self) {
        while let Some(ended) = self.tasks.join_next().await {
            ended.expect("a writer does not panic");
        }
    }

    /// Ends the writers after the request each is in.
    pub(crate) async fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.ended().await;
    }
}

impl Ledger {
    /// Starts closed-loop writers over these conversations, which exist. Each ends when the server cannot be reached.
    pub(crate) fn write(&self, client: &Client, conversations: &[String], writers: u64) -> Writers {
        let stop = Arc::new(AtomicBool::new(false));
        let (mut tasks, mut handles) = (JoinSet::new(), Vec::new());
        for _ in 0..writers {
            let (ledger, client, conversations) = (self.clone(), client.clone(), conversations.to_vec());
            let stop = Arc::clone(&stop);
            handles.push(tasks.spawn(async move {
                while !stop.load(Ordering::Relaxed) && ledger.append(&client, &conversations).await {}
            }));
        }
        Writers { stop, tasks, handles }
    }

    /// One append; false when the connection failed.
    async fn append(&self, client: &Client, conversations: &[String]) -> bool {
        let number = self.0.next.fetch_add(1, Ordering::Relaxed);
        let conversation = conversations[number as usize % conversations.len()].clone();
        let len = if number.is_multiple_of(BATCH_EVERY) { BATCH_LEN } else { 1 };
        let texts = (0..len).map(|part| format!("message {number}.{part}")).collect();
        let mut attempt =
            Attempt { conversation, key: format!("key-{number}"), texts, outcome: Outcome::Lost };
        let answer = attempt.send(client).await;
        let reached = answer.is_some();
        attempt.outcome = answer.map_or(Outcome::Lost, |answer| outcome_of(&answer));
        self.0.attempts.lock().expect("no writer panics with the lock").push(attempt);
        reached
    }

    /// Waits until this many more appends are acknowledged, or no writer is left.
    pub(crate) async fn acknowledged_more(&self, writers: &Writers, more: usize) {
        let goal = self.counts().acknowledged + more;
        while self.counts().acknowledged < goal && !writers.all_ended() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    pub(crate) fn counts(&self) -> Counts {
        let mut counts = Counts::default();
        for attempt in self.0.attempts.lock().expect("no writer panics with the lock").iter() {
            match attempt.outcome {
                Outcome::Acknowledged(..) => counts.acknowledged += 1,
                Outcome::NotApplied => counts.not_applied += 1,
                Outcome::Unknown => counts.unknown += 1,
                Outcome::Lost => counts.lost += 1,
            }
        }
        counts
    }

    /// Checks every log against the record, no writer being at work.
    pub(crate) async fn check_logs(&self, client: &Client) {
        self.check_logs_as_of(client, SystemTime::now()).await;
    }

    /// The same for a server that lost everything from some time on: what was acknowledged later may be missing.
    pub(crate) async fn check_logs_as_of(&self, client: &Client, lost_from: SystemTime) {
        let mut by_conversation: HashMap<String, Vec<Attempt>> = HashMap::new();
        for attempt in self.attempts() {
            by_conversation.entry(attempt.conversation.clone()).or_default().push(attempt);
        }
        for (conversation, attempts) in by_conversation {
            check_log(&conversation, &client.log(&conversation).await, &attempts, lost_from);
        }
    }

    /// Sends every append again, under its key, whose outcome is not known to be in the log, so that it becomes so.
    pub(crate) async fn settle(&self, client: &Client) {
        for (index, mut attempt) in self.attempts().into_iter().enumerate() {
            if !matches!(attempt.outcome, Outcome::Acknowledged(..)) {
                let answer = attempt.send(client).await.expect("the server answers");
                attempt.outcome = outcome_of(&answer);
                assert!(
                    matches!(attempt.outcome, Outcome::Acknowledged(..)),
                    "{attempt:?} was answered {answer:?}"
                );
                self.0.attempts.lock().expect("no writer panics with the lock")[index] = attempt;
            }
        }
    }

    /// Sends every `stride`-th append again, under its key: the first answer must come again.
    pub(crate) async fn replay_keys(&self, client: &Client, stride: usize) {
        self.settle(client).await;
        self.check_keys_as_of(client, stride, SystemTime::now()).await;
    }

    /// The same for a server that lost everything from some time on, and leaves this record as it is.
    pub(crate) async fn check_keys_as_of(&self, client: &Client, stride: usize, lost_from: SystemTime) {
        for attempt in self.attempts().into_iter().step_by(stride) {
            match attempt.outcome {
                Outcome::Acknowledged(seq, at) if at < lost_from => attempt.confirm(client, seq).await,
                _ => {}
            }
        }
    }

    fn attempts(&self) -> Vec<Attempt> {
        self.0.attempts.lock().expect("no writer panics with the lock").clone()
    }
}

impl Attempt {
    /// Sends it again; its first answer must come again, and it must say that it is the first.
    async fn confirm(&self, client: &Client, seq: u64) {
        let answer = self.send(client).await.expect("the server answers");
        let deduped = answer.status == 200 && answer.body["deduped"] == json!(true);
        let same = matches!(outcome_of(&answer), Outcome::Acknowledged(again, _) if again == seq);
        assert!(deduped && same, "{self:?} was sent again and answered {answer:?}");
    }

    /// `None` when no answer came.
    async fn send(&self, client: &Client) -> Option<Answer> {
        let mut body = match &self.texts[..] {
            [text] => json!({"event": message(text)}),
            texts => json!({"events": texts.iter().map(|text| message(text)).collect::<Vec<_>>()}),
        };
        body["idempotency_key"] = json!(self.key);
        let path = format!("/v1/conversations/{}/events", self.conversation);
        client.request(Method::POST, &path, Some(&body)).await.ok()
    }
}

fn outcome_of(answer: &Answer) -> Outcome {
    let first_seq = answer.body["seq"].as_u64().or(answer.body["first_seq"].as_u64());
    match (answer.status, first_seq, answer.error()) {
        (200 | 201, Some(seq), _) => Outcome::Acknowledged(seq, SystemTime::now()),
        (503, _, "unavailable" | "draining") => Outcome::NotApplied,
        (503, _, "unknown_outcome") => Outcome::Unknown,
        _ => panic!("an append was answered {answer:?}"),
    }
}

fn check_log(conversation: &str, log: &[Value], attempts: &[Attempt], lost_from: SystemTime) {
    let seqs: Vec<u64> = log.iter().filter_map(|event| event["seq"].as_u64()).collect();
    let contiguous: Vec<u64> = (1..=log.len() as u64).collect();
    assert_eq!(seqs, contiguous, "{conversation} has a hole, or an order of its own");

    let mut places: HashMap<&str, u64> = HashMap::new();
    for event in log {
        let twice = places.insert(text_of(event), event["seq"].as_u64().unwrap_or_default());
        assert_eq!(twice, None, "{conversation} has {:?} twice", text_of(event));
    }
    for attempt in attempts {
        let found: Vec<Option<u64>> = attempt.texts.iter().map(|text| places.remove(text.as_str())).collect();
        let from = |seq| (seq..).take(found.len()).map(Some).collect::<Vec<_>>();
        let absent = found.iter().all(Option::is_none);
        let whole = found[0].is_some_and(|seq| found == from(seq));
        let kept = match attempt.outcome {
            Outcome::Acknowledged(seq, at) => found == from(seq) || (absent && at >= lost_from),
            Outcome::NotApplied => absent,
            Outcome::Unknown | Outcome::Lost => absent || whole,
        };
        assert!(kept, "{attempt:?} is in {conversation} at {found:?}");
    }
    assert!(places.is_empty(), "{conversation} holds what nobody sent: {places:?}");
}
