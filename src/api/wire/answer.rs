//! Answers: stored bytes spliced into one buffer. Message bodies are never parsed or re-serialised on the way out.

use std::ops::RangeInclusive;

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use http::{HeaderValue, StatusCode, header};

use super::json::push_on_one_line;
use super::time::push_rfc3339;
use crate::api::dialect::Dialect;
use crate::conversation::{ConversationId, Description, Segment};
use crate::shards::{StoredEvent, Window, WindowMessage};

/// Bytes an event takes in an answer beside its body: seq, token count, time and their keys.
const STAMPS_BYTES: usize = 128;

/// A JSON text in the making. The caller keeps the grammar; this keeps the bytes.
pub(crate) struct Json {
    out: Vec<u8>,
}

impl Json {
    pub(crate) fn with_capacity(bytes: usize) -> Json {
        Json { out: Vec::with_capacity(bytes) }
    }

    /// JSON text, or a piece of it.
    pub(crate) fn raw(&mut self, text: impl AsRef<[u8]>) -> &mut Json {
        self.out.extend_from_slice(text.as_ref());
        self
    }

    pub(crate) fn number(&mut self, number: u64) -> &mut Json {
        self.raw(itoa::Buffer::new().format(number))
    }

    pub(crate) fn bool(&mut self, value: bool) -> &mut Json {
        self.raw(if value { "true" } else { "false" })
    }

    pub(crate) fn optional(&mut self, number: Option<u64>) -> &mut Json {
        match number {
            Some(number) => self.number(number),
            None => self.raw("null"),
        }
    }

    pub(crate) fn string(&mut self, text: &str) -> &mut Json {
        serde_json::to_writer(&mut self.out, text).expect("writing a string to memory cannot fail");
        self
    }

    pub(crate) fn time(&mut self, ms: u64) -> &mut Json {
        self.raw("\"");
        push_rfc3339(&mut self.out, ms);
        self.raw("\"")
    }

    /// `[item,item]`.
    pub(crate) fn list<T>(
        &mut self,
        items: impl IntoIterator<Item = T>,
        mut push: impl FnMut(&mut Json, T),
    ) -> &mut Json {
        self.raw("[");
        for (index, item) in items.into_iter().enumerate() {
            if index > 0 {
                self.raw(",");
            }
            push(self, item);
        }
        self.raw("]")
    }

    /// `"from_seq":1,"to_seq":9`.
    pub(crate) fn range(&mut self, range: RangeInclusive<u64>) -> &mut Json {
        self.raw(r#""from_seq":"#).number(*range.start()).raw(r#","to_seq":"#).number(*range.end())
    }

    /// One event of the log.
    pub(crate) fn event(&mut self, event: &StoredEvent) -> &mut Json {
        self.raw(r#"{"seq":"#).number(event.seq).raw(",").raw(&event.body);
        self.stamps(event.token_count, event.inserted_at_ms)
    }

    /// As [`Json::event`], free of line breaks, for formats that give them a meaning.
    pub(crate) fn event_on_one_line(&mut self, event: &StoredEvent) -> &mut Json {
        self.raw(r#"{"seq":"#).number(event.seq).raw(",");
        push_on_one_line(&mut self.out, &event.body);
        self.stamps(event.token_count, event.inserted_at_ms)
    }

    /// One message of a window.
    fn message(&mut self, message: &WindowMessage) -> &mut Json {
        self.raw(r#"{"seq":"#).number(message.seq);
        if let Some(to_seq) = message.to_seq {
            self.raw(r#","to_seq":"#).number(to_seq);
        }
        self.raw(",").raw(&message.body);
        self.stamps(message.token_count, message.inserted_at_ms)
    }

    fn stamps(&mut self, token_count: u32, inserted_at_ms: u64) -> &mut Json {
        self.raw(r#","token_count":"#).number(token_count.into());
        self.raw(r#","inserted_at":"#).time(inserted_at_ms).raw("}")
    }

    /// A conversation with its settings and state.
    pub(crate) fn conversation(&mut self, id: &ConversationId, of: &Description) -> &mut Json {
        self.raw(r#"{"id":"#).string(id.as_str());
        self.raw(r#","token_budget":"#).number(of.token_budget);
        self.raw(r#","trigger_ratio":"#).raw(of.trigger_ratio.to_string());
        self.raw(r#","policy":"#).raw(&of.policy);
        self.raw(r#","metadata":"#).raw(&of.metadata);
        self.raw(r#","status":""#).raw(of.status.as_str());
        self.raw(r#"","version":"#).number(of.version);
        self.raw(r#","last_seq":"#).number(of.last_seq);
        self.raw(r#","created_at":"#).time(of.created_at_ms);
        self.raw(r#","updated_at":"#).time(of.updated_at_ms).raw("}")
    }

    pub(crate) fn finish(self) -> Vec<u8> {
        self.out
    }

    pub(crate) fn len(&self) -> usize {
        self.out.len()
    }

    /// The finished text as an answer.
    pub(crate) fn respond(self, status: StatusCode) -> Response {
        json(status, self.out.into())
    }
}

/// A finished JSON text as an answer.
pub(crate) fn json(status: StatusCode, body: Bytes) -> Response {
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// The window of a conversation, with what was left out when that was asked for.
pub(crate) fn window(window: &Window, explain: bool) -> Json {
    let bodies: usize = window.messages.iter().map(|message| message.body.len() + STAMPS_BYTES).sum();
    let mut json = Json::with_capacity(bodies + 256);
    json.raw(r#"{"version":"#).number(window.version);
    json.raw(r#","messages":"#).list(&window.messages, |json, message| {
        json.message(message);
    });
    json.raw(r#","used_tokens":"#).number(window.used_tokens);
    json.raw(r#","needs_compaction":"#).bool(window.needs_compaction);
    json.raw(r#","segments":"#).list(&window.segments, |json, segment| {
        let (kind, from, to) = match segment {
            Segment::Summary { from_seq, to_seq } => ("summary", *from_seq, *to_seq),
            Segment::Live { from_seq, to_seq } => ("live", *from_seq, *to_seq),
        };
        json.raw(r#"{"type":""#).raw(kind).raw(r#"","#).range(from..=to).raw("}");
    });
    if explain {
        json.raw(r#","left_out":"#).list(&window.left_out, |json, left_out| {
            json.raw("{").range(left_out.from_seq..=left_out.to_seq);
            json.raw(r#","reason":""#).raw(left_out.reason.as_str()).raw(r#""}"#);
        });
    }
    json.raw("}");
    json
}

/// A page of the log under the dialect's key, still open for what follows the list.
pub(crate) fn events(dialect: Dialect, events: &[StoredEvent]) -> Json {
    let bodies: usize = events.iter().map(|event| event.body.len() + STAMPS_BYTES).sum();
    let mut json = Json::with_capacity(bodies + 128);
    json.raw(r#"{""#).raw(dialect.events()).raw(r#"":"#).list(events, |json, event| {
        json.event(event);
    });
    json
}
