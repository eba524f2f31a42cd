//! Between what this node works with and what travels.

use super::wire::{
    Change, ChangePage, Description, DigestPage, Event, EventPage, EventsAsked, LeftOut, ListCall,
    ReadAnswer, Reason, Segment, Status, Window, WindowAsked, WindowMessage,
};
use crate::conversation::{self as domain, ConversationId};
use crate::shards::{self, ReadError};

/// Implements both ways between two types of the same shape.
macro_rules! same_members {
    ($($here:path, $wire:ident { $($member:ident),+ };)+) => {$(
        impl From<$here> for $wire {
            fn from(value: $here) -> Self {
                Self { $($member: value.$member.into()),+ }
            }
        }
        impl From<$wire> for $here {
            fn from(value: $wire) -> Self {
                Self { $($member: value.$member.into()),+ }
            }
        }
    )+};
}

macro_rules! same_variants {
    ($($here:path, $wire:ident { $($variant:ident),+ };)+) => {$(
        impl From<$here> for $wire {
            fn from(value: $here) -> Self {
                use $here as Here;
                match value { $(Here::$variant => Self::$variant),+ }
            }
        }
        impl From<$wire> for $here {
            fn from(value: $wire) -> Self {
                match value { $($wire::$variant => Self::$variant),+ }
            }
        }
    )+};
}

same_members! {
    domain::Description, Description {
        token_budget, trigger_ratio, policy, metadata, status, version, last_seq, created_at_ms, updated_at_ms
    };
    domain::LeftOut, LeftOut { from_seq, to_seq, reason };
    domain::WindowQuery, WindowAsked { budget_tokens, at_version, explain };
    shards::WindowMessage, WindowMessage { seq, to_seq, body, token_count, inserted_at_ms };
    shards::StoredEvent, Event { seq, body, token_count, inserted_at_ms };
}

same_variants! {
    domain::Status, Status { Active, Tombstoned };
    domain::Reason, Reason {
        OverLimit, OverMaxTokens, OverBudget, ExceedsBudget, MessageSkipped, PartsSkipped, CallCompacted,
        ResultCompacted
    };
}

fn all<A, B: From<A>>(values: Vec<A>) -> Vec<B> {
    values.into_iter().map(B::from).collect()
}

impl From<domain::Segment> for Segment {
    fn from(segment: domain::Segment) -> Self {
        match segment {
            domain::Segment::Summary { from_seq, to_seq } => Self { is_summary: true, from_seq, to_seq },
            domain::Segment::Live { from_seq, to_seq } => Self { is_summary: false, from_seq, to_seq },
        }
    }
}

impl From<Segment> for domain::Segment {
    fn from(Segment { is_summary, from_seq, to_seq }: Segment) -> Self {
        if is_summary {
            domain::Segment::Summary { from_seq, to_seq }
        } else {
            domain::Segment::Live { from_seq, to_seq }
        }
    }
}

impl From<shards::Window> for Window {
    fn from(window: shards::Window) -> Self {
        let shards::Window { version, used_tokens, needs_compaction, segments, messages, left_out } = window;
        let (segments, messages, left_out) = (all(segments), all(messages), all(left_out));
        Self { version, used_tokens, needs_compaction, segments, messages, left_out }
    }
}

impl From<Window> for shards::Window {
    fn from(window: Window) -> Self {
        let Window { version, used_tokens, needs_compaction, segments, messages, left_out } = window;
        let (segments, messages, left_out) = (all(segments), all(messages), all(left_out));
        Self { version, used_tokens, needs_compaction, segments, messages, left_out }
    }
}

impl From<shards::EventPage> for EventPage {
    fn from(page: shards::EventPage) -> Self {
        let shards::EventPage { events, has_more, version, last_seq, status } = page;
        Self { events: all(events), has_more, version, last_seq, status: status.into() }
    }
}

impl From<EventPage> for shards::EventPage {
    fn from(page: EventPage) -> Self {
        let EventPage { events, has_more, version, last_seq, status } = page;
        Self { events: all(events), has_more, version, last_seq, status: status.into() }
    }
}

impl From<shards::DigestPage> for DigestPage {
    fn from(page: shards::DigestPage) -> Self {
        let digests = page.digests.iter().map(|digest| ((digest >> 64) as u64, *digest as u64)).collect();
        Self { version: page.version, archived_version: page.archived_version, digests }
    }
}

impl From<DigestPage> for shards::DigestPage {
    fn from(page: DigestPage) -> Self {
        let digest = |(high, low)| u128::from(high) << 64 | u128::from(low);
        let digests = page.digests.into_iter().map(|(high, low): (u64, u64)| digest((high, low))).collect();
        Self { version: page.version, archived_version: page.archived_version, digests }
    }
}

impl From<shards::Change> for Change {
    fn from(change: shards::Change) -> Self {
        match change {
            shards::Change::Event { version, event } => Self::Event { version, event: event.into() },
            shards::Change::Compaction { version, from_seq, to_seq } => {
                Self::Compaction { version, from_seq, to_seq }
            }
            shards::Change::Settings { version } => Self::Settings { version },
            shards::Change::Tombstoned { version } => Self::Tombstoned { version },
        }
    }
}

impl From<Change> for shards::Change {
    fn from(change: Change) -> Self {
        match change {
            Change::Event { version, event } => Self::Event { version, event: event.into() },
            Change::Compaction { version, from_seq, to_seq } => {
                Self::Compaction { version, from_seq, to_seq }
            }
            Change::Settings { version } => Self::Settings { version },
            Change::Tombstoned { version } => Self::Tombstoned { version },
        }
    }
}

impl From<shards::ChangePage> for ChangePage {
    fn from(page: shards::ChangePage) -> Self {
        Self { changes: all(page.changes), version: page.version, status: page.status.into() }
    }
}

impl From<ChangePage> for shards::ChangePage {
    fn from(page: ChangePage) -> Self {
        Self { changes: all(page.changes), version: page.version, status: page.status.into() }
    }
}

impl From<shards::EventsQuery> for EventsAsked {
    fn from(query: shards::EventsQuery) -> Self {
        let shards::EventsQuery { from_seq, to_seq, cursor, order, tail_offset, limit, limit_bytes } = query;
        let descending = order == shards::Order::Descending;
        Self { from_seq, to_seq, cursor, descending, tail_offset, limit: limit as u64, limit_bytes }
    }
}

impl From<EventsAsked> for shards::EventsQuery {
    fn from(asked: EventsAsked) -> Self {
        let EventsAsked { from_seq, to_seq, cursor, descending, tail_offset, limit, limit_bytes } = asked;
        let order = if descending { shards::Order::Descending } else { shards::Order::Ascending };
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        Self { from_seq, to_seq, cursor, order, tail_offset, limit, limit_bytes }
    }
}

impl From<ReadError> for ReadAnswer {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Unavailable(why) => ReadAnswer::Unavailable(why),
            ReadError::VersionInFuture { requested, current } => {
                ReadAnswer::VersionInFuture { requested, current }
            }
            ReadError::InvalidQuery(why) => ReadAnswer::InvalidQuery(why),
            ReadError::WindowTooLarge { bytes_max } => ReadAnswer::WindowTooLarge { bytes_max },
            ReadError::Internal(why) => ReadAnswer::Internal(why),
            ReadError::ArchiveUnavailable(why) => ReadAnswer::ArchiveUnavailable(why),
        }
    }
}

impl ReadAnswer {
    /// What an answer means that is not the value asked for.
    pub(crate) fn no_value<T>(self) -> Result<Option<T>, ReadError> {
        Err(match self {
            ReadAnswer::Absent => return Ok(None),
            ReadAnswer::Unavailable(why) | ReadAnswer::Behind(why) => ReadError::Unavailable(why),
            ReadAnswer::VersionInFuture { requested, current } => {
                ReadError::VersionInFuture { requested, current }
            }
            ReadAnswer::InvalidQuery(why) => ReadError::InvalidQuery(why),
            ReadAnswer::WindowTooLarge { bytes_max } => ReadError::WindowTooLarge { bytes_max },
            ReadAnswer::Internal(why) => ReadError::Internal(why),
            ReadAnswer::ArchiveUnavailable(why) => ReadError::ArchiveUnavailable(why),
            _ => ReadError::Internal("another node answered another question".into()),
        })
    }
}

impl ListCall {
    pub(crate) fn query(self) -> shards::ListQuery {
        shards::ListQuery {
            prefix: self.prefix,
            status: self.status.map(Into::into),
            metadata: self.metadata,
            limit: usize::try_from(self.limit).unwrap_or(usize::MAX),
            cursor: self.cursor,
            consistency: match self.linearizable {
                true => shards::Consistency::Linearizable,
                false => shards::Consistency::Local,
            },
        }
    }
}

/// An id as another node sent it.
pub(crate) fn id(text: &str) -> Result<ConversationId, ReadError> {
    ConversationId::parse(text).map_err(|error| ReadError::InvalidQuery(error.to_string()))
}
