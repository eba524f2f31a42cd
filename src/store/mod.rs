//! Conversation state on this node: records in memory, over an index that the journal can rebuild.
//!
//! The journal is the only truth. The index (sled) holds small records and where message bytes lie; deleting it
//! loses nothing. Apply never waits for it, except to load a record that is not in memory.

mod digest;
mod fresh;
mod group;
mod image;
mod index;
mod install;
mod key_runs;
mod keys;
mod known_keys;
mod live;
mod marks;
mod meta;
mod readers;
mod records;
mod runs;
mod survey;
#[cfg(test)]
mod testing;
mod transfer;
mod trims;
mod unarchived;
mod value;
mod verify;

use std::io;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use quick_cache::Weighter;
use quick_cache::sync::Cache;
use tokio_util::sync::CancellationToken;

pub use self::group::{Applied, GroupStore};
pub use self::index::{Batch, Index, IndexError, Records, SledIndex};
pub(crate) use self::readers::{Readers, Reading};
use self::runs::RunCache;
pub(crate) use self::survey::Survey;
pub(crate) use self::transfer::{Block, Resume, completes};
pub use self::trims::Trimmable;
use crate::conversation::{ChangeRun, EventRun, HistoryError, Location};
use crate::journal::{Journal, Position, segment_file};
use crate::metrics::Metrics;

/// What can go wrong here. None of it is a client's fault, and none of it may be served over.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error(transparent)]
    Index(#[from] IndexError),
    #[error("history of a conversation: {0}")]
    History(#[from] HistoryError),
    #[error("group {group}: the index holds {found} records where {expected} were written")]
    Disagrees { group: u16, expected: u64, found: u64 },
    #[error("group {group}: the command at log index {index} does not decode: {reason}")]
    Command { group: u16, index: u64, reason: String },
    #[error("message bytes in {file} at offset {offset} are damaged", file = segment_file(*segment))]
    Damaged { segment: u32, offset: u32 },
    #[error("group {group} is being replaced by a snapshot")]
    Installing { group: u16 },
    #[error("group {group} is no longer hosted here")]
    Retired { group: u16 },
    #[error("group {group}: an entry was left half applied")]
    Broken { group: u16 },
    #[error("group {group}: a block of a snapshot is malformed")]
    Block { group: u16 },
    #[error("group {group}: messages are still located before segment {floor}")]
    BelowFloor { group: u16, floor: u32 },
    #[error("reading the journal: {0}")]
    Journal(#[from] io::Error),
}

impl StoreError {
    /// The state cannot be read here now: it is being replaced, went with its replica, or is broken.
    pub(crate) fn is_unreadable(&self) -> bool {
        matches!(self, Self::Installing { .. } | Self::Retired { .. } | Self::Broken { .. })
    }

    /// The index is wrong, and rebuilding it from the journal is the way out.
    pub(crate) fn wants_rebuild(&self) -> bool {
        match self {
            Self::Index(IndexError::Denied(_)) => false,
            other => matches!(other, Self::Index(_) | Self::History(_) | Self::Disagrees { .. }),
        }
    }
}

/// Raised once when the node must not go on: damaged state, a broken journal. The process then ends, non-zero.
#[derive(Clone, Default)]
pub struct Failure {
    raised: CancellationToken,
    first: Arc<OnceLock<FailureReason>>,
}

/// Why the node must stop.
#[derive(Debug, Clone)]
pub struct FailureReason {
    pub text: String,
    /// The next start must rebuild the index.
    pub rebuild_index: bool,
}

impl Failure {
    /// Raises it; only the first reason counts.
    pub fn raise(&self, text: String, rebuild_index: bool) {
        tracing::error!(event = "node_failure", reason = %text, rebuild_index);
        let _ = self.first.set(FailureReason { text, rebuild_index });
        self.raised.cancel();
    }

    pub(crate) fn store(&self, error: &StoreError) {
        self.raise(error.to_string(), error.wants_rebuild());
    }

    /// Resolves when it was raised.
    pub async fn raised(&self) -> FailureReason {
        self.raised.cancelled().await;
        self.first.get().cloned().unwrap_or(FailureReason { text: String::new(), rebuild_index: false })
    }

    pub fn is_raised(&self) -> bool {
        self.raised.is_cancelled()
    }
}

/// Bounds of the store's memory, in bytes.
#[derive(Debug, Clone, Copy)]
pub struct CacheSizes {
    /// Conversation records that are not waiting for a checkpoint.
    pub records: usize,
    /// Message bodies and sealed runs.
    pub messages: usize,
}

/// What all groups of a node share.
pub(crate) struct Shared {
    pub(crate) index: Arc<dyn Index>,
    pub(super) journal: OnceLock<Journal>,
    pub(crate) metrics: Metrics,
    pub(crate) bodies: Cache<(u32, u32), Bytes, BodyWeight>,
    /// Who may be about to read bodies.
    pub(crate) readers: Readers,
    pub(crate) event_runs: RunCache<EventRun>,
    pub(crate) change_runs: RunCache<ChangeRun>,
    /// Bytes of conversation records in memory, dirty and clean.
    pub(crate) record_bytes: AtomicUsize,
    pub(crate) record_cache_bytes: usize,
}

impl Shared {
    pub(crate) fn new(index: Arc<dyn Index>, metrics: Metrics, sizes: CacheSizes) -> Self {
        let (bodies, for_events, for_changes) =
            (sizes.messages / 4 * 3, sizes.messages / 16 * 3, sizes.messages / 16);
        Self {
            index,
            journal: OnceLock::new(),
            metrics,
            bodies: Cache::with_weighter(bodies / 1024 + 16, bodies as u64, BodyWeight),
            readers: Readers::default(),
            event_runs: runs::cache(for_events, EventRun::heap_bytes),
            change_runs: runs::cache(for_changes, ChangeRun::heap_bytes),
            record_bytes: AtomicUsize::new(0),
            record_cache_bytes: sizes.records,
        }
    }

    /// Recovery applies before the journal is open; from here on bodies can be read.
    pub(crate) fn attach(&self, journal: Journal) {
        let _ = self.journal.set(journal);
    }

    /// The bytes of one message, verified against the checksum its location carries.
    pub(crate) fn body(&self, at: Location) -> Result<Bytes, StoreError> {
        if let Some(body) = self.bodies.get(&(at.segment, at.offset)) {
            self.metrics.body_cache_hits.inc();
            return Ok(body);
        }
        self.metrics.body_cache_misses.inc();
        let body = verified(self.journal()?.read(at.segment, at.offset, at.len)?, at)?;
        self.bodies.insert((at.segment, at.offset), body.clone());
        Ok(body)
    }

    /// The bytes of messages in their order, past the cache, each verified; neighbours in the journal come by one read.
    pub(crate) fn bodies_in_passing(&self, places: &[Location]) -> Result<Vec<Bytes>, StoreError> {
        let journal = self.journal()?;
        let synced = journal.synced();
        let mut bodies = Vec::with_capacity(places.len());
        let mut rest = places;
        while let Some(Location { segment, offset, .. }) = rest.first().copied() {
            let (near, len) = neighbours(rest, synced);
            let bytes = journal.read(segment, offset, len)?;
            for at in &rest[..near] {
                let begin = (at.offset - offset) as usize;
                bodies.push(verified(bytes.slice(begin..begin + at.len as usize), *at)?);
            }
            rest = &rest[near..];
        }
        Ok(bodies)
    }

    fn journal(&self) -> Result<&Journal, StoreError> {
        Ok(self.journal.get().ok_or_else(|| io::Error::other("the journal is not open yet"))?)
    }
}

fn verified(body: Bytes, at: Location) -> Result<Bytes, StoreError> {
    if crc32c::crc32c(&body) != at.crc {
        return Err(StoreError::Damaged { segment: at.segment, offset: at.offset });
    }
    Ok(body)
}

/// How many of these messages, the first ones, are read at once, and how many bytes that takes. Only what is on disk is
/// read along: the journal's queue is read by the frame.
fn neighbours(places: &[Location], synced: Position) -> (usize, u32) {
    let first = places[0];
    let (mut near, mut end) = (1, first.offset.saturating_add(first.len));
    for at in &places[1..] {
        let at_end = at.offset.saturating_add(at.len);
        let follows =
            at.segment == first.segment && (end..=end.saturating_add(GAP_BYTES_MAX)).contains(&at.offset);
        let is_on_disk = Position { segment: at.segment, offset: at_end } <= synced;
        if !follows || !is_on_disk || at_end - first.offset > READ_BYTES_MAX {
            break;
        }
        (near, end) = (near + 1, at_end);
    }
    (near, end - first.offset)
}

/// What may lie between two messages that are read at once: reading so much more costs less than another call.
const GAP_BYTES_MAX: u32 = 1 << 10;
/// Most bytes that are read at once, unless one message has more.
const READ_BYTES_MAX: u32 = 256 << 10;

/// What the cache keeps beside the bytes of a body: its key, handle, bookkeeping, and the allocation's own.
const BODY_OVERHEAD_BYTES: u64 = 160;

#[derive(Clone)]
pub(crate) struct BodyWeight;

impl Weighter<(u32, u32), Bytes> for BodyWeight {
    fn weight(&self, _: &(u32, u32), body: &Bytes) -> u64 {
        body.len() as u64 + BODY_OVERHEAD_BYTES
    }
}

/// The physical key of a conversation's record, for tests that damage it.
#[cfg(test)]
pub(crate) fn head_key(group: u16, id: &crate::conversation::ConversationId) -> Vec<u8> {
    value::chunk_key(&keys::head(group, id), 0)
}
