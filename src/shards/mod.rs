//! Routing: what the edge calls. Takes a request to the group of its conversation, wherever that is led or hosted.
//!
//! Guarantees: a write that answers was committed and applied; [`WriteError`] tells "not applied" from "unknown", also
//! through other nodes; a write is sent on once, and tried again only while it certainly had no effect.
//!
//! Reading order: `route` decides (pure), `search` repeats that within a deadline, `write` and `read` do the work, `here`
//! reads what is hosted here, `remote` is what nodes say to each other, `attached` is what all of them work with.

mod archive;
mod attached;
mod cold;
mod control;
mod digests;
mod excerpt;
mod fresh;
mod here;
mod history;
mod indexes;
mod links;
mod list;
mod local;
mod node;
mod pieces;
pub mod placement;
mod read;
mod remote;
mod room;
mod route;
mod search;
mod standing;
#[cfg(test)]
mod tests;
mod types;
mod watcher;
mod write;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, watch};
use tokio::time::timeout_at;

pub use self::archive::{Lagging, Look};
use self::attached::Attached;
use self::cold::Cold;
pub use self::cold::ColdStore;
pub use self::control::{ClusterControl, ClusterStatus, ControlError, LinkStatus, NodeStatus, Standing};
pub use self::digests::ReplicaDigest;
pub use self::excerpt::{Cursor, Excerpt, RestoringCommand};
pub use self::history::{DigestPage, HistoryLimits, HistoryPage, StoredKind, StoredMessage, StoredVersion};
use self::links::{Links, METHODS};
use self::local::Local;
pub use self::pieces::{Piece, Pieces, digest_of_digests};
pub use self::placement::Placement;
use self::remote::peers::PeerService;
use self::remote::service::Bounds;
use self::search::Deadline;
pub use self::types::*;
pub use self::watcher::Watcher;
use crate::conversation::{Action, Command, ConversationId, Marks, Reply, Trims};
use crate::metrics::Metrics;
use crate::peer::Peers;
use crate::raft::Node;
use crate::store::Failure;
pub use crate::store::Trimmable;

/// Bytes of commands proposed here and not yet answered; further proposals wait.
const PROPOSED_BYTES_MAX: usize = 64 << 20;

const STARTING: &str = "the node is recovering its files";

/// The shards of a node. Cheap to clone.
#[derive(Clone)]
pub struct Shards(Arc<Inner>);

struct Inner {
    /// Set once recovery is done; the edge serves health before that.
    attached: OnceLock<Attached>,
    proposed_bytes: Semaphore,
    cold: Cold,
    /// What is served for other nodes.
    bounds: Bounds,
    request_timeout: Duration,
    /// An operator asked for no more writes.
    refuses_writes: AtomicBool,
    /// The replicas here move to other nodes; everything is served on.
    moving_out: AtomicBool,
    /// Held while digests are made: they read everything.
    digesting: Arc<tokio::sync::Mutex<()>>,
    /// The process is ending: what has arrived is still served.
    leaving: AtomicBool,
    was_ready: AtomicBool,
    /// Says what this node has yet to get of the cluster before it is ready for the first time.
    lacking_share: OnceLock<Box<dyn Fn() -> Option<String> + Send + Sync>>,
    failure: Failure,
}

impl Shards {
    /// Shards that are starting until [`Shards::attach`]. `request_timeout` bounds how long a read waits for a
    /// quorum, and how long a proposal may stay unanswered before its outcome counts as unknown.
    pub fn new(failure: Failure, request_timeout: Duration) -> Self {
        Self(Arc::new(Inner {
            attached: OnceLock::new(),
            proposed_bytes: Semaphore::new(PROPOSED_BYTES_MAX),
            cold: Cold::new(request_timeout),
            bounds: Bounds::default(),
            request_timeout,
            refuses_writes: AtomicBool::new(false),
            moving_out: AtomicBool::new(false),
            digesting: Arc::default(),
            leaving: AtomicBool::new(false),
            was_ready: AtomicBool::new(false),
            lacking_share: OnceLock::new(),
            failure,
        }))
    }

    /// The node has recovered and has links to others: serve from it, and for them. Within the runtime that requests
    /// run on.
    pub fn attach(&self, node: Arc<Node>, peers: Peers, placement: watch::Receiver<Arc<Placement>>) {
        let service = PeerService { shards: self.clone(), runtime: Handle::current() };
        self.attach_parts(node, Arc::new(peers.clone()), placement);
        peers.serve(METHODS, Arc::new(service));
    }

    fn attach_parts(
        &self,
        local: Arc<dyn Local>,
        links: Arc<dyn Links>,
        placement: watch::Receiver<Arc<Placement>>,
    ) {
        if self.0.attached.set(Attached::new(local, links, placement)).is_ok() {
            tokio::spawn(standing::prove_replicas(Arc::downgrade(&self.0)));
        }
    }

    /// Replicates a command and answers once it is applied.
    ///
    /// # Errors
    /// [`WriteError::UnknownOutcome`] when the command may have been or may yet be applied; all other errors mean
    /// that it certainly was not.
    pub async fn propose(&self, id: &ConversationId, action: Action) -> Result<Reply, WriteError> {
        if self.refuses_writes() {
            return Err(WriteError::Draining);
        }
        self.propose_to(placement::group_of(id), id, action).await
    }

    /// As [`Shards::propose`], to a group of the caller's choice, also while draining: for the cluster's own state.
    pub async fn propose_to(
        &self,
        group: u16,
        id: &ConversationId,
        action: Action,
    ) -> Result<Reply, WriteError> {
        self.replicate(group, Command { id: id.clone(), now_ms: now_ms(), action }.encode()).await
    }

    /// Replicates marks of conversations of `group`, also while draining. Doing it again is harmless, whatever the
    /// error said.
    pub async fn mark(&self, group: u16, marks: Marks) -> Result<(), WriteError> {
        self.replicate(group, marks.encode()).await.map(|_| ())
    }

    /// Replicates trims of conversations of `group`, also while draining; answers how many events they trimmed. Doing it
    /// again is harmless, whatever the error said.
    pub async fn trim(&self, group: u16, trims: Trims) -> Result<u64, WriteError> {
        match self.replicate(group, trims.encode()).await? {
            Reply::Trimmed { events } => Ok(events),
            _ => Ok(0),
        }
    }

    /// From here on messages that were trimmed are read from there.
    pub fn set_cold_store(&self, store: Arc<dyn ColdStore>) {
        self.0.cold.set(store);
    }

    /// From here on a window that takes more than this is refused, as nodes answer it to each other. The first call counts.
    pub fn bound_windows(&self, bytes_max: u64) {
        self.0.cold.bound_windows(bytes_max);
    }

    /// Replicates a command that restores a piece of a conversation, with the time it carries.
    pub async fn restore(&self, command: Command) -> Result<Reply, WriteError> {
        if self.refuses_writes() {
            return Err(WriteError::Draining);
        }
        self.replicate(placement::group_of(&command.id), command.encode()).await
    }

    async fn replicate(&self, group: u16, command: Bytes) -> Result<Reply, WriteError> {
        if self.0.failure.is_raised() {
            return Err(WriteError::NotApplied("the node has failed and is stopping".into()));
        }
        let attached = self.attached().map_err(|_| WriteError::NotApplied(STARTING.into()))?;
        let deadline = Deadline::after(self.0.request_timeout);
        let weight = command.len().min(PROPOSED_BYTES_MAX) as u32;
        let room = timeout_at(deadline.answer_by, self.0.proposed_bytes.acquire_many(weight)).await;
        let Ok(Ok(_room)) = room else {
            return Err(WriteError::NotApplied("too many bytes wait to be replicated".into()));
        };
        let _inflight = InFlight::new(attached.metrics(), command.len());
        let result = attached.write(group, command, &deadline).await;
        if let Err(WriteError::UnknownOutcome(_)) = &result {
            attached.metrics().unknown_outcomes_total.inc();
        }
        result
    }

    /// Stops accepting writes, or takes them again; reads go on. For a node that is alone.
    pub fn refuse_writes(&self, refuse: bool) {
        self.0.refuses_writes.store(refuse, Ordering::Relaxed);
    }

    pub fn refuses_writes(&self) -> bool {
        self.0.refuses_writes.load(Ordering::Relaxed)
    }

    /// Turns unready while the replicas here move to other nodes. Everything is served on, by forwarding.
    pub fn set_moving_out(&self, moving_out: bool) {
        self.0.moving_out.store(moving_out, Ordering::Relaxed);
        if moving_out {
            // Taken back in, it is ready once it has its share again.
            self.0.was_ready.store(false, Ordering::Relaxed);
        }
    }

    /// Has this node become ready only once `lacking` has nothing to say. Counts the first time.
    pub fn on_share(&self, lacking: impl Fn() -> Option<String> + Send + Sync + 'static) {
        let _ = self.0.lacking_share.set(Box::new(lacking));
    }

    /// Announces that the node is about to stop.
    pub fn leave(&self) {
        self.0.leaving.store(true, Ordering::Relaxed);
    }

    /// Whether the node is about to stop.
    pub fn is_leaving(&self) -> bool {
        self.0.leaving.load(Ordering::Relaxed)
    }

    fn attached(&self) -> Result<&Attached, ReadError> {
        self.0.attached.get().ok_or_else(|| ReadError::Unavailable(STARTING.into()))
    }
}

/// A proposal in the gauges, for as long as it is unanswered.
struct InFlight<'a> {
    metrics: &'a Metrics,
    bytes: i64,
}

impl<'a> InFlight<'a> {
    fn new(metrics: &'a Metrics, bytes: usize) -> Self {
        let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
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
pub(crate) fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}
