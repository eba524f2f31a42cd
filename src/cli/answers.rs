//! What the client reads of the server's answers.
//!
//! Whatever clients wrote stays text: it may be nested deeper, and hold larger numbers, than a parser's own types take, and
//! is handed on byte for byte.

use std::borrow::Cow;

use serde::de::Error;
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use super::client::ClientError;

/// Reads an answer to `what`. One that is not as expected is an error: it must never pass for an empty one.
pub(super) fn parse<'a, T: Deserialize<'a>>(answer: &'a [u8], what: &str) -> Result<T, ClientError> {
    serde_json::from_slice(answer)
        .map_err(|error| ClientError::Unreadable { what: what.to_owned(), why: error.to_string() })
}

/// A conversation without what is the clients' own.
#[derive(Debug, Deserialize)]
pub(super) struct Conversation {
    pub(super) id: String,
    pub(super) status: String,
    pub(super) version: u64,
    pub(super) last_seq: u64,
    pub(super) token_budget: u64,
    pub(super) policy: Policy,
    pub(super) updated_at: String,
}

#[derive(Debug, Deserialize)]
pub(super) struct Policy {
    pub(super) strategy: String,
}

/// A conversation together with the text that describes it.
#[derive(Debug)]
pub(super) struct Described {
    pub(super) text: Box<RawValue>,
    pub(super) conversation: Conversation,
}

impl<'de> Deserialize<'de> for Described {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Described, D::Error> {
        let text = Box::<RawValue>::deserialize(deserializer)?;
        let conversation = serde_json::from_str(text.get()).map_err(D::Error::custom)?;
        Ok(Described { text, conversation })
    }
}

/// A page of the listing.
#[derive(Debug, Deserialize)]
pub(super) struct Page {
    pub(super) conversations: Vec<Described>,
    /// Null after the last; a page that says nothing of it is none.
    #[serde(deserialize_with = "Option::deserialize")]
    pub(super) next_cursor: Option<String>,
}

/// An event of the log, or a message of a window.
#[derive(Debug, Deserialize)]
pub(super) struct Message<'a> {
    pub(super) seq: u64,
    /// The last event that a summary stands for.
    pub(super) to_seq: Option<u64>,
    #[serde(borrow)]
    pub(super) role: Cow<'a, str>,
    #[serde(borrow)]
    pub(super) parts: Vec<&'a RawValue>,
    pub(super) token_count: u64,
    pub(super) inserted_at: String,
}

/// A part of a message that people read as it is.
#[derive(Debug, Deserialize)]
pub(super) struct TextPart {
    pub(super) r#type: String,
    pub(super) text: String,
}

#[derive(Debug, Deserialize)]
pub(super) struct Window<'a> {
    pub(super) version: u64,
    #[serde(borrow)]
    pub(super) messages: Vec<Message<'a>>,
    pub(super) used_tokens: u64,
    pub(super) needs_compaction: bool,
    #[serde(default)]
    pub(super) left_out: Vec<LeftOut>,
}

#[derive(Debug, Deserialize)]
pub(super) struct LeftOut {
    pub(super) from_seq: u64,
    pub(super) to_seq: u64,
    pub(super) reason: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_read_is_an_error() {
        let cut_off = r#"{"conversations":[],"next_cursor":null"#;
        let other = r#"{"conversations":[{}],"next_cursor":null}"#;
        for answer in ["", "null", "{}", r#"{"conversations":[]}"#, cut_off, other, "<html>"] {
            let error = parse::<Page>(answer.as_bytes(), "/v1/conversations").expect_err(answer);
            assert!(
                error.to_string().starts_with("the answer to /v1/conversations cannot be read: "),
                "{error}"
            );
        }
        let page: Page = parse(br#"{"conversations":[],"next_cursor":null}"#, "").expect("a page");
        assert!(page.conversations.is_empty() && page.next_cursor.is_none());
    }

    #[test]
    fn what_clients_wrote_is_not_interpreted() {
        let metadata = format!(r#"{{"n":1e400, "deep":{}{}}}"#, "[".repeat(200), "]".repeat(200));
        let text = format!(
            r#"{{"id":"a","token_budget":1,"trigger_ratio":0.7,"policy":{{"strategy":"manual"}},"metadata":{metadata},"status":"active","version":0,"last_seq":0,"created_at":"now","updated_at":"now"}}"#
        );
        let page = format!(r#"{{"conversations":[{text}],"next_cursor":"a"}}"#);
        let page: Page = parse(page.as_bytes(), "").expect("a page");
        assert_eq!(page.conversations[0].text.get(), text);
        assert_eq!(page.conversations[0].conversation.id, "a");
    }
}
