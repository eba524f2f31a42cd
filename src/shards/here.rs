//! Reads of a group that is hosted here: plan on the records, then fetch only the message bytes that were chosen.

use std::sync::Arc;

use bytes::Bytes;

use super::cold::Cold;
use super::room::{AnswerRoom, Taken};
use super::{
    Change, ChangePage, EventPage, EventsQuery, Order, ReadError, StoredEvent, Usage, Window, WindowMessage,
};
use crate::conversation::{
    self, ConversationId, Description, Edit, EventRange, EventRef, HistoryError, Location, PlanError,
    StreamItem, StreamKind, WindowQuery, changes_after, plan_events, plan_usage, plan_window,
};
use crate::store::{GroupStore, Reading, StoreError};

/// What a message takes in a window beside its body, and a segment or a stretch left out in all, at most: in an answer to
/// another node, and in JSON.
const WINDOW_ENTRY_BYTES: u64 = 128;
/// What is in neither of them.
const WINDOW_FRAME_BYTES: u64 = 256;
/// Changes planned for one page of a stream.
const CHANGES_PER_PAGE: usize = 256;

impl From<StoreError> for ReadError {
    fn from(error: StoreError) -> Self {
        match error {
            error if error.is_unreadable() => Self::Unavailable(error.to_string()),
            error => Self::Internal(error.to_string()),
        }
    }
}

impl From<HistoryError> for ReadError {
    fn from(error: HistoryError) -> Self {
        Self::Internal(error.to_string())
    }
}

impl From<PlanError> for ReadError {
    fn from(error: PlanError) -> Self {
        match error {
            PlanError::VersionInFuture { requested, current } => Self::VersionInFuture { requested, current },
            error @ PlanError::TooManyMessages { .. } => Self::Internal(error.to_string()),
            PlanError::History(error) => Self::Internal(error.to_string()),
        }
    }
}

type Store = Arc<GroupStore>;

pub(super) fn describe(store: &Store, id: &ConversationId) -> Result<Option<Description>, ReadError> {
    Ok(store.read(id, |c, _| c.describe())?)
}

pub(super) fn version(store: &Store, id: &ConversationId) -> Result<Option<u64>, ReadError> {
    Ok(store.read(id, |c, _| c.version())?)
}

pub(super) async fn window(
    store: &Store,
    cold: &Cold,
    id: &ConversationId,
    query: &WindowQuery,
) -> Result<Option<Window>, ReadError> {
    let reading = store.reading();
    let bytes_max = cold.window_bytes_max();
    let messages_max = bytes_max / WINDOW_ENTRY_BYTES;
    let plan = match store.read(id, |c, history| plan_window(c, id, history, query, messages_max))? {
        None => return Ok(None),
        Some(Err(PlanError::TooManyMessages { .. })) => return Err(ReadError::WindowTooLarge { bytes_max }),
        Some(plan) => plan?,
    };
    let entries = (plan.messages.len() + plan.segments.len() + plan.left_out.len()) as u64;
    let check = |bodies_bytes: u64| {
        let bytes = WINDOW_FRAME_BYTES + entries * WINDOW_ENTRY_BYTES + bodies_bytes;
        if bytes > bytes_max { Err(ReadError::WindowTooLarge { bytes_max }) } else { Ok(()) }
    };
    check(plan.messages.iter().map(|message| u64::from(message.location.len)).sum())?;
    let wanted = plan.messages.iter().map(|m| (m.seq, m.location));
    let bodies = bodies(store, reading, cold, Some(&cold.answers), id, wanted).await?;
    let messages: Vec<WindowMessage> = plan
        .messages
        .into_iter()
        .zip(bodies)
        .map(|(message, body)| {
            let body = match message.edit {
                Edit::Whole => body,
                Edit::Parts(edits) => conversation::render_edited(&body, &edits)
                    .map_err(|e| ReadError::Internal(format!("stored message {}: {e}", message.seq)))?,
            };
            Ok(WindowMessage {
                seq: message.seq,
                to_seq: message.to_seq,
                body,
                token_count: message.token_count,
                inserted_at_ms: message.inserted_at_ms,
            })
        })
        .collect::<Result<_, ReadError>>()?;
    // A marker may be longer than the call in whose place it is.
    check(messages.iter().map(|message| message.body.len() as u64).sum())?;
    Ok(Some(Window {
        version: plan.version,
        used_tokens: plan.used_tokens,
        needs_compaction: plan.needs_compaction,
        segments: plan.segments,
        messages,
        left_out: plan.left_out,
    }))
}

pub(super) fn usage(store: &Store, id: &ConversationId, at_version: u64) -> Result<Option<Usage>, ReadError> {
    let Some(usage) = store.read(id, |c, history| plan_usage(c, id, history, at_version))? else {
        return Ok(None);
    };
    let (used_tokens, needs_compaction) = usage?;
    Ok(Some(Usage { used_tokens, needs_compaction }))
}

pub(super) async fn events(
    store: &Store,
    cold: &Cold,
    id: &ConversationId,
    query: &EventsQuery,
) -> Result<Option<EventPage>, ReadError> {
    let reading = store.reading();
    let planned = store.read(id, |c, history| {
        let range = resolve(query, c.last_seq());
        let metas = plan_events(c, id, history, &range)?;
        Ok::<_, HistoryError>((metas, range, c.version(), c.last_seq(), c.status()))
    })?;
    let Some(planned) = planned else { return Ok(None) };
    let (metas, range, version, last_seq, status) = planned?;
    let has_more = metas.last().is_some_and(|last| match range.newest_first {
        true => last.seq > range.from_seq,
        false => last.seq < range.to_seq,
    });
    let mut events = stored_events(store, reading, cold, Some(&cold.answers), id, metas).await?;
    if query.tail_offset.is_some() {
        events.reverse();
    }
    Ok(Some(EventPage { events, has_more, version, last_seq, status }))
}

pub(super) async fn changes(
    store: &Store,
    cold: &Cold,
    id: &ConversationId,
    after_version: u64,
    limit_bytes: u64,
) -> Result<Option<ChangePage>, ReadError> {
    let reading = store.reading();
    let planned = store.read(id, |c, history| {
        let items = changes_after(c, id, history, after_version, CHANGES_PER_PAGE, limit_bytes)?;
        Ok::<_, HistoryError>((items, c.version(), c.status()))
    })?;
    let Some(planned) = planned else { return Ok(None) };
    let (items, version, status) = planned?;
    let events = items.iter().filter_map(|item| match &item.kind {
        StreamKind::Event(event) => Some(*event),
        _ => None,
    });
    // A stream holds them for as long as its client takes, and is bounded with the others.
    let mut events = stored_events(store, reading, cold, None, id, events.collect()).await?.into_iter();
    let changes = items.into_iter().map(|item| change(item, &mut events)).collect();
    Ok(Some(ChangePage { changes, version, status }))
}

async fn stored_events(
    store: &Store,
    reading: Reading,
    cold: &Cold,
    room: Option<&AnswerRoom>,
    id: &ConversationId,
    metas: Vec<EventRef>,
) -> Result<Vec<StoredEvent>, ReadError> {
    let bodies = bodies(store, reading, cold, room, id, metas.iter().map(|m| (m.seq, m.location))).await?;
    let events = metas.into_iter().zip(bodies).map(|(meta, body)| StoredEvent {
        seq: meta.seq,
        body,
        token_count: meta.token_count,
        inserted_at_ms: meta.inserted_at_ms,
    });
    Ok(events.collect())
}

/// The bytes of messages, by their seqs and locations: from the archive for those that were trimmed, once there is room
/// for the others.
async fn bodies(
    store: &Store,
    reading: Reading,
    cold: &Cold,
    room: Option<&AnswerRoom>,
    id: &ConversationId,
    wanted: impl Iterator<Item = (u64, Location)> + Clone,
) -> Result<Vec<Bytes>, ReadError> {
    let trimmed: Vec<_> = wanted.clone().filter(|(_, at)| !at.is_placed()).collect();
    let placed = wanted.clone().map(|(_, at)| at).filter(Location::is_placed);
    if trimmed.is_empty() {
        return placed_bodies(store, reading, room, placed).await;
    }
    let mut far = cold.read(id, &trimmed).await?.into_iter();
    let mut near = placed_bodies(store, reading, room, placed).await?.into_iter();
    let next = |(_, at): (u64, Location)| if at.is_placed() { near.next() } else { far.next() };
    Ok(wanted.map_while(next).collect())
}

/// Message bytes: inline when all are cached, else on the blocking pool, since the disk may be asked.
async fn placed_bodies(
    store: &Store,
    reading: Reading,
    room: Option<&AnswerRoom>,
    locations: impl Iterator<Item = Location> + Clone,
) -> Result<Vec<Bytes>, ReadError> {
    if let Some(bodies) = store.cached_bodies(locations.clone()) {
        return Ok(bodies);
    }
    let taken = match room {
        Some(room) => room.take(locations.clone().map(|at| u64::from(at.len)).sum()).await?,
        None => Taken::default(),
    };
    read_bodies(store, reading, taken, locations.collect()).await
}

/// Message bytes, on the blocking pool.
pub(super) async fn read_bodies(
    store: &Store,
    reading: Reading,
    taken: Taken,
    locations: Vec<Location>,
) -> Result<Vec<Bytes>, ReadError> {
    let store = store.clone();
    // It goes on when nobody waits for it any more, and keeps its room until then.
    let read = move || store.bodies(&reading, &locations).map(|bodies| taken.hold_with(bodies));
    let read = tokio::task::spawn_blocking(read).await;
    let bodies = read.map_err(|e| ReadError::Internal(format!("read task: {e}")))?;
    if let Err(error @ StoreError::Damaged { .. }) = &bodies {
        tracing::error!(event = "message_damaged", error = %error);
    }
    Ok(bodies?)
}

/// The range of seqs a query means, in a log of `last_seq` events.
fn resolve(query: &EventsQuery, last_seq: u64) -> EventRange {
    let mut range = EventRange {
        from_seq: 1,
        to_seq: query.to_seq.unwrap_or(last_seq).min(last_seq),
        newest_first: query.order == Order::Descending,
        limit: query.limit,
        limit_bytes: query.limit_bytes,
    };
    if let Some(offset) = query.tail_offset {
        range.to_seq = last_seq.saturating_sub(offset);
        range.from_seq = range.to_seq.saturating_sub(query.limit as u64) + 1;
        // A tail page that is cut short must keep its newest end, which the next page joins.
        range.newest_first = true;
        return range;
    }
    range.from_seq = match query.from_seq {
        Some(negative) if negative < 0 => (last_seq + 1).saturating_sub(negative.unsigned_abs()).max(1),
        Some(from) => from.unsigned_abs().max(1),
        None => 1,
    };
    match (query.cursor, query.order) {
        (Some(cursor), Order::Ascending) => range.from_seq = range.from_seq.max(cursor.saturating_add(1)),
        (Some(cursor), Order::Descending) => range.to_seq = range.to_seq.min(cursor.saturating_sub(1)),
        (None, _) => {}
    }
    range
}

fn change(item: StreamItem, events: &mut impl Iterator<Item = StoredEvent>) -> Change {
    let version = item.version;
    match item.kind {
        StreamKind::Event(_) => {
            Change::Event { version, event: events.next().expect("one event was read for each planned one") }
        }
        StreamKind::Compaction { from_seq, to_seq } => Change::Compaction { version, from_seq, to_seq },
        StreamKind::Settings | StreamKind::Metadata => Change::Settings { version },
        StreamKind::Tombstoned => Change::Tombstoned { version },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query() -> EventsQuery {
        EventsQuery { limit: 100, limit_bytes: 1 << 20, ..EventsQuery::default() }
    }

    fn resolved(query: EventsQuery, last_seq: u64) -> (u64, u64, Order) {
        let range = resolve(&query, last_seq);
        (range.from_seq, range.to_seq, if range.newest_first { Order::Descending } else { Order::Ascending })
    }

    #[test]
    fn queries_resolve_to_inclusive_ranges() {
        let asc = Order::Ascending;
        assert_eq!(resolved(query(), 10), (1, 10, asc));
        assert_eq!(resolved(EventsQuery { from_seq: Some(-3), ..query() }, 10), (8, 10, asc));
        assert_eq!(resolved(EventsQuery { from_seq: Some(-30), ..query() }, 10), (1, 10, asc));
        assert_eq!(resolved(EventsQuery { cursor: Some(4), ..query() }, 10), (5, 10, asc));
        assert_eq!(resolved(EventsQuery { cursor: Some(99), ..query() }, 10), (100, 10, asc));
        let desc = EventsQuery { cursor: Some(4), order: Order::Descending, ..query() };
        assert_eq!(resolved(desc, 10), (1, 3, Order::Descending));
        let tail = |offset, limit| EventsQuery { tail_offset: Some(offset), limit, ..query() };
        assert_eq!(resolved(tail(0, 4), 10), (7, 10, Order::Descending));
        assert_eq!(resolved(tail(8, 4), 10), (1, 2, Order::Descending));
        assert_eq!(resolved(tail(10, 4), 10), (1, 0, Order::Descending));
        assert_eq!(resolved(query(), 0), (1, 0, asc));
    }
}
