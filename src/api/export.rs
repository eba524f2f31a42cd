//! Export: a range of the log as lines (`application/x-ndjson`), one event a line.
//!
//! The range ends at the last event there was when it began. One chunk is in memory at a time, and the next is read
//! only when the client has taken it. A fault half way breaks the transfer off, so that a torn export cannot pass for
//! a whole one.

use std::io;

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use futures_util::stream;
use http::{HeaderValue, header};

use super::error::ApiError;
use super::events::PAGE_MAX;
use super::wire::answer::Json;
use super::{Scope, StreamPermit};
use crate::conversation::ConversationId;
use crate::shards::{Consistency, EventPage, EventsQuery, ReadError, ReadOptions, Shards};

pub(super) const NDJSON: &str = "application/x-ndjson";
/// Bytes of message bodies read at once (at least one event).
const CHUNK_BYTES: u64 = 256 << 10;

/// Answers a range of events as lines.
pub(super) async fn lines(
    scope: &Scope,
    id: ConversationId,
    mut query: EventsQuery,
    options: ReadOptions,
) -> Result<Response, ApiError> {
    let permit = StreamPermit::take(&scope.app)?;
    query.limit = PAGE_MAX;
    query.limit_bytes = CHUNK_BYTES;
    // Read before the answer begins, so that an error can still be told.
    let first = scope.app.shards.events(&id, query.clone(), options).await?.ok_or(ApiError::NotFound)?;
    fix_range(&mut query, first.last_seq);
    let (shards, version) = (scope.app.shards.clone(), first.version);
    let export = Export { shards, id, query, version, step: Step::Hand(first), _permit: permit };
    let chunks = stream::try_unfold(export, async |mut export| {
        let chunk = export.next().await.map_err(|error| export.broken_off(&error))?;
        Ok::<_, io::Error>(chunk.map(|chunk| (chunk, export)))
    });
    let mut response = Response::new(Body::from_stream(chunks));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(NDJSON));
    Ok(response)
}

/// Makes a range absolute, so that what is appended during the export does not move it.
fn fix_range(query: &mut EventsQuery, last_seq: u64) {
    query.to_seq = Some(query.to_seq.unwrap_or(last_seq).min(last_seq));
    if let Some(from @ ..0) = query.from_seq {
        let from = (last_seq + 1).saturating_sub(from.unsigned_abs());
        query.from_seq = i64::try_from(from).ok();
    }
}

struct Export {
    shards: Shards,
    id: ConversationId,
    query: EventsQuery,
    /// Of the conversation as the first page found it.
    version: u64,
    step: Step,
    _permit: StreamPermit,
}

enum Step {
    /// Hand out this page.
    Hand(EventPage),
    /// Read the page at the query's cursor.
    Read,
    Done,
}

impl Export {
    async fn next(&mut self) -> Result<Option<Bytes>, ReadError> {
        let page = match std::mem::replace(&mut self.step, Step::Done) {
            Step::Done => return Ok(None),
            Step::Hand(page) => page,
            Step::Read => {
                // The first read was as fresh as asked for. Another node that answers this one has to have got as far: what it
                // lacks of the range would look like the range's end.
                let local = ReadOptions { consistency: Consistency::Local, min_version: Some(self.version) };
                match self.shards.events(&self.id, self.query.clone(), local).await? {
                    Some(page) => page,
                    None => return Err(ReadError::Internal("the conversation vanished".into())),
                }
            }
        };
        let Some(last) = page.events.last() else { return Ok(None) };
        self.query.cursor = Some(last.seq);
        if page.has_more {
            self.step = Step::Read;
        }
        let mut lines = Json::with_capacity(CHUNK_BYTES as usize);
        for event in &page.events {
            lines.event_on_one_line(event).raw("\n");
        }
        Ok(Some(lines.finish().into()))
    }

    fn broken_off(&self, error: &ReadError) -> io::Error {
        let id = self.id.as_str();
        tracing::error!(event = "export_broken_off", conversation_id = id, seq = self.query.cursor, %error);
        io::Error::other("export broken off")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_relative_range_is_fixed_once() {
        let fixed = |from_seq, to_seq| {
            let mut query = EventsQuery { from_seq, to_seq, ..EventsQuery::default() };
            fix_range(&mut query, 10);
            (query.from_seq, query.to_seq)
        };
        assert_eq!(fixed(None, None), (None, Some(10)));
        assert_eq!(fixed(Some(-3), None), (Some(8), Some(10)));
        assert_eq!(fixed(Some(-30), Some(4)), (Some(0), Some(4)));
        assert_eq!(fixed(Some(3), Some(40)), (Some(3), Some(10)));
    }
}
