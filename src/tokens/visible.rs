//! What a model is shown of a part: text to be counted, and tokens that stand for binary content.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::{Map, Value};

use super::binary;

/// Members that hold the text of a `text`, `reasoning` or `thinking` part; the rest of such a part is not
/// shown to a model.
const TEXT_KEYS: [&str; 3] = ["text", "reasoning", "thinking"];

/// Members that clients and SDKs keep for themselves.
const HIDDEN_KEYS: [&str; 9] = [
    "type",
    "state",
    "cache_control",
    "providerMetadata",
    "providerOptions",
    "callProviderMetadata",
    "providerExecuted",
    "signature",
    "encrypted_content",
];

/// What a model is shown of a part.
pub(super) struct Visible<'a> {
    pub(super) text: Cow<'a, str>,
    /// What the binary content costs that is left out of the text.
    pub(super) binary_tokens: u32,
}

impl<'a> Visible<'a> {
    /// Of the JSON of a part. What cannot be understood is shown as it is.
    pub(super) fn of(json: &'a str) -> Visible<'a> {
        if let Ok(part) = serde_json::from_str::<TextPart<'_>>(json)
            && is_text(&part.kind.0)
        {
            return Visible { text: part.text.0, binary_tokens: 0 };
        }
        match serde_json::from_str(json) {
            Ok(Value::Object(part)) => Visible::of_object(part),
            _ => Visible { text: Cow::Borrowed(json), binary_tokens: 0 },
        }
    }

    fn of_object(mut part: Map<String, Value>) -> Visible<'static> {
        let kind = part.get("type").and_then(Value::as_str).unwrap_or_default();
        if is_text(kind) {
            let text = TEXT_KEYS.iter().find_map(|key| part.get(*key)?.as_str());
            if let Some(text) = text {
                return Visible { text: Cow::Owned(text.to_owned()), binary_tokens: 0 };
            }
        }
        if let Some(binary_tokens) = binary::part_tokens(&part) {
            return Visible { text: Cow::Borrowed(""), binary_tokens };
        }
        part.retain(|key, _| !HIDDEN_KEYS.contains(&key.as_str()));
        let binary_tokens = part.values_mut().map(take_binaries).fold(0, u32::saturating_add);
        Visible { text: Cow::Owned(members_text(&part)), binary_tokens }
    }
}

/// The common case, read without allocating unless the text has escapes.
#[derive(Deserialize)]
struct TextPart<'a> {
    #[serde(rename = "type", borrow)]
    kind: JsonString<'a>,
    #[serde(borrow)]
    text: JsonString<'a>,
}

/// A JSON string, borrowed where it has no escapes.
#[derive(Deserialize)]
struct JsonString<'a>(#[serde(borrow)] Cow<'a, str>);

fn is_text(kind: &str) -> bool {
    matches!(kind, "text" | "reasoning" | "thinking" | "input_text" | "output_text")
}

/// Compact JSON without the outer braces. A member that is a string appears as its content: what is in it,
/// often JSON itself, is shown to a model without the escapes of the envelope.
fn members_text(part: &Map<String, Value>) -> String {
    let mut text = String::new();
    for (key, value) in part {
        if !text.is_empty() {
            text.push(',');
        }
        text.push_str(key);
        text.push(':');
        match value {
            Value::String(content) => text.push_str(content),
            other => text.push_str(&other.to_string()),
        }
    }
    text
}

/// Takes binary content out of `value` and says what it costs. The parser has bounded the depth.
fn take_binaries(value: &mut Value) -> u32 {
    let tokens = match value {
        Value::String(text) => binary::string_tokens(text),
        Value::Object(part) => binary::part_tokens(part),
        _ => None,
    };
    if let Some(tokens) = tokens {
        *value = Value::Null;
        return tokens;
    }
    match value {
        Value::Array(items) => items.iter_mut().map(take_binaries).fold(0, u32::saturating_add),
        Value::Object(members) => members.values_mut().map(take_binaries).fold(0, u32::saturating_add),
        _ => 0,
    }
}
