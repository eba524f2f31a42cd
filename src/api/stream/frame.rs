//! What a stream delivers: JSON objects with a `type` and a `version`, in the dialect's words.

use axum::extract::ws::Utf8Bytes;

use crate::api::dialect::Dialect;
use crate::api::wire::answer::Json;
use crate::shards::{StoredEvent, Usage};

/// A frame. `version` is the cursor with which a client that has processed the frame resumes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Frame {
    pub version: u64,
    /// JSON on one line.
    pub text: Utf8Bytes,
}

impl Frame {
    pub(super) fn event(dialect: Dialect, version: u64, event: &StoredEvent) -> Frame {
        Frame::new(dialect.event(), version, event.body.len() + 256, |json| {
            json.raw(r#","seq":"#).number(event.seq);
            json.raw(r#",""#).raw(dialect.event()).raw(r#"":"#).event_on_one_line(event);
        })
    }

    pub(super) fn window(dialect: Dialect, version: u64, usage: Usage) -> Frame {
        Frame::new(dialect.window(), version, 128, |json| {
            json.raw(r#","used_tokens":"#).number(usage.used_tokens);
            json.raw(r#","needs_compaction":"#).bool(usage.needs_compaction);
        })
    }

    pub(super) fn compaction(version: u64, from_seq: u64, to_seq: u64) -> Frame {
        Frame::new("compaction", version, 128, |json| {
            json.raw(r#","range":{"#).range(from_seq..=to_seq).raw("}");
        })
    }

    /// Versions from `expected` up to `actual` (exclusive) cannot be delivered any more.
    pub(super) fn gap(expected: u64, actual: u64) -> Frame {
        Frame::new("gap", actual - 1, 96, |json| {
            json.raw(r#","expected":"#).number(expected).raw(r#","actual":"#).number(actual);
        })
    }

    pub(super) fn tombstoned(version: u64) -> Frame {
        Frame::new("tombstoned", version, 64, |_| {})
    }

    /// The client's cursor belongs to a future this conversation does not have.
    pub(super) fn reset(version: u64) -> Frame {
        Frame::new("reset", version, 64, |_| {})
    }

    pub(super) fn ping(version: u64) -> Frame {
        Frame::new("ping", version, 64, |_| {})
    }

    fn new(kind: &str, version: u64, capacity: usize, members: impl FnOnce(&mut Json)) -> Frame {
        let mut json = Json::with_capacity(capacity);
        json.raw(r#"{"type":""#).raw(kind).raw(r#"","version":"#).number(version);
        members(&mut json);
        json.raw("}");
        let text = Utf8Bytes::try_from(bytes::Bytes::from(json.finish())).unwrap_or_default();
        Frame { version, text }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_dialect_has_its_words() {
        let body = "\"role\":\"user\",\n\"parts\":[],\"metadata\":{}".into();
        let event = StoredEvent { seq: 7, body, token_count: 3, inserted_at_ms: 0 };
        assert_eq!(
            Frame::event(Dialect::Conversations, 9, &event).text.as_str(),
            r#"{"type":"event","version":9,"seq":7,"event":{"seq":7,"role":"user", "parts":[],"metadata":{},"token_count":3,"inserted_at":"1970-01-01T00:00:00.000Z"}}"#
        );
        let message = Frame::event(Dialect::Contexts, 9, &event).text;
        assert!(message.starts_with(r#"{"type":"message","version":9,"seq":7,"message":{"#));
        let usage = Usage { used_tokens: 5, needs_compaction: false };
        assert_eq!(
            Frame::window(Dialect::Contexts, 2, usage).text.as_str(),
            r#"{"type":"context","version":2,"used_tokens":5,"needs_compaction":false}"#
        );
    }

    #[test]
    fn frames_without_words_of_a_dialect() {
        let text = |frame: Frame| frame.text.to_string();
        assert_eq!(
            text(Frame::compaction(5, 1, 4)),
            r#"{"type":"compaction","version":5,"range":{"from_seq":1,"to_seq":4}}"#
        );
        assert_eq!(text(Frame::gap(3, 9)), r#"{"type":"gap","version":8,"expected":3,"actual":9}"#);
        assert_eq!(text(Frame::tombstoned(3)), r#"{"type":"tombstoned","version":3}"#);
        assert_eq!(text(Frame::reset(3)), r#"{"type":"reset","version":3}"#);
        assert_eq!(text(Frame::ping(3)), r#"{"type":"ping","version":3}"#);
    }
}
