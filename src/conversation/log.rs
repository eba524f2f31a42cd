//! Reading the log: pages of events, and the changes after a version for streams.

use super::history::{Changes, Events};
use super::message::EventRef;
use super::runs::{Change, ChangeKind, History, HistoryError};
use super::{Conversation, ConversationId};

/// A page of the log. What lies outside the log is left out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct EventRange {
    /// Inclusive.
    pub from_seq: u64,
    /// Inclusive.
    pub to_seq: u64,
    /// Begin at `to_seq` and go back.
    pub newest_first: bool,
    /// At most this many events ...
    pub limit: usize,
    /// ... and about this many bytes of bodies, but at least one event.
    pub limit_bytes: u64,
}

/// The events of a page, in the order asked for.
pub fn plan_events(
    conversation: &Conversation,
    id: &ConversationId,
    history: &dyn History,
    range: &EventRange,
) -> Result<Vec<EventRef>, HistoryError> {
    let mut events = Events::new(conversation, id, history);
    let first = range.from_seq.max(1);
    let last = range.to_seq.min(conversation.last_seq);
    let mut page = Page::new(range.limit, range.limit_bytes);
    let in_range = (last + 1).saturating_sub(first);
    for step in 0..in_range {
        let seq = if range.newest_first { last - step } else { first + step };
        let event = events.get(seq)?.event(seq);
        if !page.admits(event.location.len) {
            break;
        }
        page.items.push(event);
    }
    Ok(page.items)
}

/// One version of a conversation, for streams.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StreamItem {
    pub version: u64,
    pub kind: StreamKind,
}

/// What a version changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StreamKind {
    Event(EventRef),
    Compaction { from_seq: u64, to_seq: u64 },
    Settings,
    Metadata,
    Tombstoned,
}

/// What followed `after_version`: one item for each version, without gaps, up to `limit` items and about `limit_bytes`
/// of bodies (but at least one item, if there is one).
pub fn changes_after(
    conversation: &Conversation,
    id: &ConversationId,
    history: &dyn History,
    after_version: u64,
    limit: usize,
    limit_bytes: u64,
) -> Result<Vec<StreamItem>, HistoryError> {
    let mut page = Page::new(limit, limit_bytes);
    if after_version >= conversation.version {
        return Ok(page.items);
    }
    let mut events = Events::new(conversation, id, history);
    let changes = Changes::new(conversation, id, history);
    let mut number = changes.chunk_at(after_version)?;
    let mut chunk = changes.chunk(number)?;
    // Changes up to the version at hand, with creation: what separates a version from its seq.
    let mut counted = chunk.count_up_to(after_version);
    for version in after_version + 1..=conversation.version {
        let passed = chunk.changes().partition_point(|change| change.version < version);
        if passed == chunk.changes().len() && number < changes.last_chunk() {
            number += 1;
            chunk = changes.chunk(number)?;
        }
        let change = chunk.changes().iter().find(|change| change.version >= version);
        let kind = match change.filter(|change| change.version == version) {
            Some(change) => {
                counted += 1;
                stream_kind(change)
            }
            None => {
                let seq = version + 1 - counted;
                Some(StreamKind::Event(events.get(seq)?.event(seq)))
            }
        };
        let Some(kind) = kind else { continue };
        let bytes = if let StreamKind::Event(event) = kind { event.location.len } else { 0 };
        if !page.admits(bytes) {
            break;
        }
        page.items.push(StreamItem { version, kind });
    }
    Ok(page.items)
}

/// `None` for creation, which is where every stream begins.
fn stream_kind(change: &Change) -> Option<StreamKind> {
    match &change.kind {
        ChangeKind::Created(_) => None,
        ChangeKind::Settings(_) => Some(StreamKind::Settings),
        ChangeKind::Metadata => Some(StreamKind::Metadata),
        ChangeKind::Compaction(summary) => {
            Some(StreamKind::Compaction { from_seq: summary.from_seq, to_seq: summary.to_seq })
        }
        ChangeKind::Tombstoned => Some(StreamKind::Tombstoned),
    }
}

/// Items bounded in number and in bytes, but never empty for want of bytes.
struct Page<T> {
    items: Vec<T>,
    limit: usize,
    bytes_left: u64,
}

impl<T> Page<T> {
    fn new(limit: usize, limit_bytes: u64) -> Page<T> {
        Page { items: Vec::new(), limit, bytes_left: limit_bytes }
    }

    /// Whether one more item fits; reserves its bytes.
    fn admits(&mut self, bytes: u32) -> bool {
        let fits = self.items.is_empty() || u64::from(bytes) <= self.bytes_left;
        self.bytes_left = self.bytes_left.saturating_sub(bytes.into());
        fits && self.items.len() < self.limit
    }
}
