//! Routing: what the edge calls. Turns a conversation id into its group and serves the request there.
//!
//! Guarantees: a write that answers was committed and applied; [`WriteError`] tells "not applied" from "unknown".
//! Lacks, until nodes have peers: forwarding to a leader elsewhere.

mod list;
pub mod placement;
mod read;
mod types;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::sync::Semaphore;
use tokio::time::timeout;

pub use self::read::Watcher;
pub use self::types::*;
use crate::conversation::{Action, Command, ConversationId, Reply};
use crate::metrics::Metrics;
use crate::raft::{Group, Node, WriteFailure};
use crate::store::Failure;

/// Bytes of commands proposed and not yet answered; further proposals wait.
const PROPOSED_BYTES_MAX: usize = 64 << 20;

const STARTING: &str = "the node is recovering its files";

/// The shards of a node. Cheap to clone.
#[derive(Clone)]
pub struct Shards(Arc<Inner>);

struct Inner {
    /// Set once recovery is done; the edge serves health before that.
    node: OnceLock<Arc<Node>>,
    proposed_bytes: Semaphore,
    request_timeout: Duration,
    /// An operator asked for no more writes.
    draining: AtomicBool,
    /// The process is ending: what has arrived is still served.
    leaving: AtomicBool,
    failure: Failure,
}

impl Shards {
    /// Shards that are starting until [`Shards::attach`]. `request_timeout` bounds how long a read waits for a
    /// quorum, and how long a proposal may stay unanswered before its outcome counts as unknown.
    pub fn new(failure: Failure, request_timeout: Duration) -> Self {
        Self(Arc::new(Inner {
            node: OnceLock::new(),
            proposed_bytes: Semaphore::new(PROPOSED_BYTES_MAX),
            request_timeout,
            draining: AtomicBool::new(false),
            leaving: AtomicBool::new(false),
            failure,
        }))
    }

    /// The node has recovered: serve from it.
    pub fn attach(&self, node: Arc<Node>) {
        let _ = self.0.node.set(node);
    }

    /// Replicates a command and answers once it is applied here.
    ///
    /// # Errors
    /// [`WriteError::UnknownOutcome`] when the command may have been or may yet be applied; all other errors mean
    /// that it certainly was not.
    pub async fn propose(&self, id: &ConversationId, action: Action) -> Result<Reply, WriteError> {
        self.accepts_writes()?;
        let command = Command { id: id.clone(), now_ms: now_ms(), action }.encode();
        let weight = command.len().min(PROPOSED_BYTES_MAX) as u32;
        let _room = self.0.proposed_bytes.acquire_many(weight).await.map_err(|_| WriteError::Draining)?;
        let node = self.0.node.get().ok_or_else(|| WriteError::NotApplied(STARTING.into()))?;
        let _inflight = InFlight::new(&node.shared.metrics, weight);
        let Some(group) = node.group(placement::group_of(id)) else {
            return Err(WriteError::NotApplied(STARTING.into()));
        };
        let unknown = |why| {
            node.shared.metrics.unknown_outcomes_total.inc();
            WriteError::UnknownOutcome(why)
        };
        match timeout(self.0.request_timeout, group.write(command)).await {
            Ok(Ok(reply)) => Ok(reply),
            Ok(Err(WriteFailure::NotLeader)) => {
                Err(WriteError::NotApplied(WriteFailure::NotLeader.to_string()))
            }
            Ok(Err(WriteFailure::Unknown(why))) => Err(unknown(why)),
            Err(_) => Err(unknown(format!("no answer within {:?}", self.0.request_timeout))),
        }
    }

    /// Stops accepting writes; reads go on.
    pub fn drain(&self, draining: bool) {
        self.0.draining.store(draining, Ordering::Relaxed);
    }

    /// Announces that the node is about to stop.
    pub fn leave(&self) {
        self.0.leaving.store(true, Ordering::Relaxed);
    }

    /// Whether this node should get traffic.
    pub fn readiness(&self) -> Readiness {
        if self.0.failure.is_raised() {
            return Readiness::Degraded("the node has failed and is stopping".into());
        }
        if self.0.draining.load(Ordering::Relaxed) || self.0.leaving.load(Ordering::Relaxed) {
            return Readiness::Draining;
        }
        let Some(node) = self.0.node.get() else { return Readiness::Starting(STARTING.into()) };
        if !node.has_space() {
            return Readiness::Degraded("no disk space is left for appends".into());
        }
        match node.hosted().iter().find(|group| group.leader().is_none()) {
            Some(group) => Readiness::Starting(format!("group {} has no leader", group.number())),
            None => Readiness::Ready,
        }
    }

    /// How many of the groups hosted here this node leads, and how many it hosts.
    pub fn leadership(&self) -> (usize, usize) {
        let Some(node) = self.0.node.get() else { return (0, 0) };
        let groups = node.hosted();
        (groups.iter().filter(|group| group.is_leader()).count(), groups.len())
    }

    fn accepts_writes(&self) -> Result<(), WriteError> {
        if self.0.draining.load(Ordering::Relaxed) {
            return Err(WriteError::Draining);
        }
        if self.0.failure.is_raised() {
            return Err(WriteError::NotApplied("the node has failed and is stopping".into()));
        }
        if self.0.node.get().is_some_and(|node| !node.has_space()) {
            return Err(WriteError::Full);
        }
        Ok(())
    }

    fn group(&self, id: &ConversationId) -> Option<Arc<Group>> {
        self.0.node.get()?.group(placement::group_of(id))
    }
}

/// A proposal in the gauges, for as long as it is unanswered.
struct InFlight<'a> {
    metrics: &'a Metrics,
    bytes: i64,
}

impl<'a> InFlight<'a> {
    fn new(metrics: &'a Metrics, bytes: u32) -> Self {
        let bytes = i64::from(bytes);
        metrics.proposals_inflight.inc();
        metrics.proposed_bytes.add(bytes);
        Self { metrics, bytes }
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.metrics.proposals_inflight.dec();
        self.metrics.proposed_bytes.sub(self.bytes);
    }
}

/// Milliseconds since the Unix epoch; the one clock that commands are stamped with.
fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}
