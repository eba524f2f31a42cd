//! Reading the log: pages of events, and the changes after a version for streams.

use super::history::{Changes, Events};
use super::message::{EventRef, MessageMeta};
use super::runs::{ChangeKind, History, HistoryError};
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
        if !page.admits(event.location.len.into()) {
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

/// One version of a conversation in full, for archives.
#[derive(Clone, PartialEq, Debug)]
pub struct Version {
    pub version: u64,
    pub kind: VersionKind,
}

/// What a version is.
#[derive(Clone, PartialEq, Debug)]
pub enum VersionKind {
    Event { seq: u64, meta: MessageMeta },
    Change(ChangeKind),
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
    // Creation is where every stream begins.
    walk(conversation, id, history, after_version.saturating_add(1), &mut |version, step| {
        let (kind, bytes) = match step {
            Step::Event(seq, meta) => (StreamKind::Event(meta.event(seq)), meta.location.len),
            Step::Change(change) => match stream_kind(change) {
                Some(kind) => (kind, 0),
                None => return true,
            },
        };
        page.take(bytes.into(), || StreamItem { version, kind })
    })?;
    Ok(page.items)
}

/// The versions from `first` on, creation (version 0) among them, bounded as [`changes_after`]; the bodies of summaries
/// count too.
pub fn versions_from(
    conversation: &Conversation,
    id: &ConversationId,
    history: &dyn History,
    first: u64,
    limit: usize,
    limit_bytes: u64,
) -> Result<Vec<Version>, HistoryError> {
    let mut page = Page::new(limit, limit_bytes);
    walk(conversation, id, history, first, &mut |version, step| {
        let bytes = match step {
            Step::Event(_, meta) => meta.location.len.into(),
            Step::Change(ChangeKind::Compaction(summary)) => {
                summary.replacement.iter().map(|meta| u64::from(meta.location.len)).sum()
            }
            Step::Change(_) => 0,
        };
        page.take(bytes, || match step {
            Step::Event(seq, meta) => {
                Version { version, kind: VersionKind::Event { seq, meta: meta.clone() } }
            }
            Step::Change(change) => Version { version, kind: VersionKind::Change(change.clone()) },
        })
    })?;
    Ok(page.items)
}

/// The version that follows the one which appended event `seq`; that of creation, 0, for seq 0.
pub fn version_after_event(
    conversation: &Conversation,
    id: &ConversationId,
    history: &dyn History,
    seq: u64,
) -> Result<u64, HistoryError> {
    if seq == 0 || seq > conversation.last_seq {
        return Ok(if seq == 0 { 0 } else { conversation.version + 1 });
    }
    let changes = Changes::new(conversation, id, history);
    // The first version as of which the event is there. None lies below its seq.
    let (mut low, mut high) = (seq, conversation.version);
    while low < high {
        let middle = low + (high - low) / 2;
        if changes.last_seq_at(middle)? < seq {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    Ok(low + 1)
}

/// A version as [`walk`] comes by it.
#[derive(Clone, Copy)]
enum Step<'a> {
    Event(u64, &'a MessageMeta),
    Change(&'a ChangeKind),
}

/// Shows every version from `first` on, in order, until `visit` has had enough.
fn walk(
    conversation: &Conversation,
    id: &ConversationId,
    history: &dyn History,
    first: u64,
    visit: &mut dyn FnMut(u64, Step<'_>) -> bool,
) -> Result<(), HistoryError> {
    if first > conversation.version {
        return Ok(());
    }
    let mut events = Events::new(conversation, id, history);
    let changes = Changes::new(conversation, id, history);
    let before = first.checked_sub(1);
    let mut number = before.map_or(Ok(0), |before| changes.chunk_at(before))?;
    let mut chunk = changes.chunk(number)?;
    // Changes up to the version at hand, with creation: what separates a version from its seq.
    let mut counted = before.map_or(0, |before| chunk.count_up_to(before));
    for version in first..=conversation.version {
        let passed = chunk.changes().partition_point(|change| change.version < version);
        if passed == chunk.changes().len() && number < changes.last_chunk() {
            number += 1;
            chunk = changes.chunk(number)?;
        }
        let change = chunk.changes().iter().find(|change| change.version >= version);
        let goes_on = match change.filter(|change| change.version == version) {
            Some(change) => {
                counted += 1;
                visit(version, Step::Change(&change.kind))
            }
            None => {
                let seq = version + 1 - counted;
                visit(version, Step::Event(seq, events.get(seq)?))
            }
        };
        if !goes_on {
            break;
        }
    }
    Ok(())
}

fn stream_kind(change: &ChangeKind) -> Option<StreamKind> {
    match change {
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
    fn admits(&mut self, bytes: u64) -> bool {
        let fits = self.items.is_empty() || bytes <= self.bytes_left;
        self.bytes_left = self.bytes_left.saturating_sub(bytes);
        fits && self.items.len() < self.limit
    }

    /// Takes one more item in, if it fits.
    fn take(&mut self, bytes: u64, item: impl FnOnce() -> T) -> bool {
        let fits = self.admits(bytes);
        if fits {
            self.items.push(item());
        }
        fits
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Harness, append, put, text};
    use super::super::{Action, Put};
    use super::*;

    #[test]
    fn what_follows_an_event_is_found_among_changes() {
        let mut real = Harness::new();
        real.apply(put());
        for n in 0..200 {
            let token_budget = Some(10_000 + n);
            real.apply(Action::Put(Put { token_budget, ..Put::default() }));
            real.apply(append((0..1 + n % 3).map(|_| text(1)).collect()));
        }
        let after = |seq| version_after_event(real.current(), &real.id, &real.store, seq).unwrap();
        let all = versions_from(real.current(), &real.id, &real.store, 0, usize::MAX, u64::MAX).unwrap();
        let mut last_seq = 0;
        for Version { version, kind } in all {
            if let VersionKind::Event { seq, .. } = kind {
                assert_eq!(after(seq), version + 1);
                last_seq = seq;
            }
        }
        assert_eq!(last_seq, real.current().last_seq());
        assert_eq!((after(0), after(last_seq + 1)), (0, real.current().version() + 1));
    }
}
