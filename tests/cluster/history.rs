//! What clients asked for and what they were told, with the times of both.

use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Instant;

/// Nanoseconds since the history began.
pub(crate) type Time = u64;

/// One operation of one client, all its retries included.
#[derive(Clone, Debug)]
pub(crate) struct Operation {
    pub(crate) client: usize,
    pub(crate) conversation: usize,
    /// The node that gave the answer, or was asked last.
    pub(crate) node: usize,
    pub(crate) called: Time,
    pub(crate) returned: Time,
    pub(crate) request: Request,
    pub(crate) outcome: Outcome,
    /// How often it was sent.
    pub(crate) attempts: u32,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Request {
    Append {
        key: String,
        texts: Vec<String>,
    },
    Compact {
        if_version: u64,
    },
    /// Linearizable read of version and last sequence number.
    Read,
    /// Linearizable read of the newest events.
    ReadTail,
    /// Read of what a node has, at least this version, if one is given.
    ReadLocal {
        min_version: Option<u64>,
    },
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Outcome {
    /// From this sequence number on. The version is unknown when the log alone tells that it happened.
    Appended {
        first_seq: u64,
        version: Option<u64>,
    },
    Compacted {
        version: u64,
    },
    /// The version was another one: this.
    Conflict {
        version: u64,
    },
    Saw {
        version: u64,
        last_seq: u64,
    },
    /// Sequence number and text of the newest events, in order.
    SawTail(Vec<(u64, String)>),
    /// Certainly not applied.
    NotApplied,
    /// It may have happened, or may yet.
    Unknown,
}

/// Operations of all clients as they end.
#[derive(Clone)]
pub(crate) struct History(Arc<Shared>);

struct Shared {
    began: Instant,
    operations: Mutex<Vec<Operation>>,
}

impl Default for History {
    fn default() -> History {
        History(Arc::new(Shared { began: Instant::now(), operations: Mutex::default() }))
    }
}

impl History {
    pub(crate) fn now(&self) -> Time {
        self.0.began.elapsed().as_nanos() as Time
    }

    pub(crate) fn push(&self, operation: Operation) {
        self.0.operations.lock().expect("nobody panics with the lock").push(operation);
    }

    pub(crate) fn len(&self) -> usize {
        self.0.operations.lock().expect("nobody panics with the lock").len()
    }

    pub(crate) fn operations(&self) -> Vec<Operation> {
        self.0.operations.lock().expect("nobody panics with the lock").clone()
    }
}

/// Writes operations to a file, one a line in order of their calls; its path.
pub(crate) fn write_down(operations: &[Operation], dir: &Path, run: &str) -> PathBuf {
    let mut operations: Vec<&Operation> = operations.iter().collect();
    operations.sort_by_key(|operation| operation.called);
    let lines: String = operations.iter().map(|operation| format!("{}\n", line(operation))).collect();
    let path = dir.join(format!("history-{run}.jsonl"));
    std::fs::write(&path, lines).expect("a test writes to its own directory");
    path
}

fn line(operation: &Operation) -> Value {
    json!({
        "called": operation.called,
        "returned": operation.returned,
        "client": operation.client,
        "node": operation.node,
        "conversation": operation.conversation,
        "request": format!("{:?}", operation.request),
        "outcome": format!("{:?}", operation.outcome),
        "attempts": operation.attempts,
    })
}
