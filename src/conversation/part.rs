//! What planning needs to know of the parts of a message: their kind, what they cost, and which of them are tool calls and results.
//!
//! The edge calls [`inspect_part`] once per received part; afterwards nothing parses a part again, except
//! [`render_edited`](super::render_edited) for the few that a policy replaces.

use std::borrow::Cow;
use std::fmt;

use serde::Deserializer as _;
use serde::de::{IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;
use xxhash_rust::xxh3::xxh3_64;

/// Most parts of one message that the edge accepts.
pub const MAX_PARTS: usize = 1_024;
/// Longest `type` of a part in bytes.
pub const MAX_KIND_BYTES: usize = 64;

/// The `type` of a part. The well-known ones take no memory and one byte on disk.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum PartKind {
    /// Index into [`WELL_KNOWN`].
    Known(u8),
    Other(Box<str>),
}

/// Part types with a code of their own. Persisted by index: append only, never reorder.
const WELL_KNOWN: [&str; 17] = [
    "text",
    "tool_call",
    "tool_result",
    "tool_use",
    "tool-call",
    "tool-result",
    "reasoning",
    "thinking",
    "image",
    "image_url",
    "file",
    "audio",
    "tool-invocation",
    "dynamic-tool",
    "function_call",
    "function_call_output",
    "step-start",
];

impl PartKind {
    /// A plain `text` part.
    pub const TEXT: PartKind = PartKind::Known(0);

    /// `None` when the type is longer than [`MAX_KIND_BYTES`].
    pub fn new(kind: &str) -> Option<PartKind> {
        match WELL_KNOWN.iter().position(|known| *known == kind) {
            Some(code) => Some(PartKind::Known(code as u8)),
            None if kind.len() <= MAX_KIND_BYTES => Some(PartKind::Other(kind.into())),
            None => None,
        }
    }

    /// The kind of a code, as persisted.
    pub(super) fn from_code(code: u64) -> Option<PartKind> {
        (code < WELL_KNOWN.len() as u64).then_some(PartKind::Known(code as u8))
    }

    /// Exactly the `type` received.
    pub fn as_str(&self) -> &str {
        match self {
            PartKind::Known(code) => WELL_KNOWN.get(usize::from(*code)).copied().unwrap_or_default(),
            PartKind::Other(kind) => kind,
        }
    }
}

/// What a part is in the exchange with a tool; the number is the [`tool_digest`] of the id it names, if it names one.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum ToolRef {
    #[default]
    None,
    Call(Option<u64>),
    Result(Option<u64>),
    /// Call and result in one part, as user-interface messages carry them (`tool-NAME` with an output). Answers an
    /// earlier call of the same id, else stands for both.
    Exchange(Option<u64>),
}

/// One part of a message on its way in, counted by the edge.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PartMeta {
    pub kind: PartKind,
    /// The part's share of the message's token count.
    pub tokens: u32,
    /// What the text marker costs that `strip_tool_results` leaves in place of a call; 0 for other parts.
    pub marker_tokens: u32,
    pub tool: ToolRef,
}

/// What [`inspect_part`] reads from a part.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PartFacts {
    pub kind: PartKind,
    pub tool: ToolRef,
    /// The text that stands for a call once tool results are stripped; to be counted by the edge.
    pub marker: Option<String>,
}

/// Why a JSON value is not a part; the text is meant for the client, after the path of the part.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidPart {
    #[error("must be an object")]
    NotAnObject,
    #[error("must have a string `type`")]
    NoType,
    #[error("`type` must not be longer than {MAX_KIND_BYTES} bytes")]
    TypeTooLong,
}

/// Digest of a tool id, by which calls and results find each other.
pub fn tool_digest(id: &str) -> u64 {
    xxh3_64(id.as_bytes())
}

/// Reads what planning needs from the JSON of one part. Tool parts are recognised by their type, their id by
/// `tool_call_id`, `tool_use_id`, `toolCallId`, `call_id` or `id`, the first of these that is a string or a number.
/// Everything else in a part is the client's.
pub fn inspect_part(json: &str) -> Result<PartFacts, InvalidPart> {
    let head = PartHead::read(json)?;
    let kind = PartKind::new(&head.kind).ok_or(InvalidPart::TypeTooLong)?;
    let digest = head.id().map(|id| tool_digest(&id));
    let tool = match Role::of(&head.kind, head.has_output) {
        Role::Plain => ToolRef::None,
        Role::Call => ToolRef::Call(digest),
        Role::Result => ToolRef::Result(digest),
        Role::Exchange => ToolRef::Exchange(digest),
    };
    let marker = matches!(tool, ToolRef::Call(_) | ToolRef::Exchange(_)).then(|| head.marker());
    Ok(PartFacts { kind, tool, marker })
}

/// The text that stands for the tool call `json` once tool results are stripped.
pub(super) fn marker_text(json: &str) -> Result<String, InvalidPart> {
    PartHead::read(json).map(|head| head.marker())
}

enum Role {
    Plain,
    Call,
    Result,
    Exchange,
}

impl Role {
    fn of(kind: &str, has_output: bool) -> Role {
        match kind {
            "tool_call" | "tool_use" | "tool-call" | "function_call" => Role::Call,
            "tool_result" | "tool-result" | "function_call_output" => Role::Result,
            "dynamic-tool" if has_output => Role::Exchange,
            "dynamic-tool" => Role::Call,
            other if other.starts_with("tool-") && has_output => Role::Exchange,
            other if other.starts_with("tool-") => Role::Call,
            _ => Role::Plain,
        }
    }
}

/// The members of a part that mean something here. The last of duplicate members counts.
#[derive(Default)]
struct PartHead<'a> {
    kind: Cow<'a, str>,
    has_output: bool,
    ids: [Option<&'a RawValue>; 5],
    names: [Option<&'a RawValue>; 3],
}

/// Where parts name the tool call they belong to, most specific first: a result may have an `id` of its own beside it.
const ID_KEYS: [&str; 5] = ["tool_call_id", "tool_use_id", "toolCallId", "call_id", "id"];
/// Where calls name their tool.
const NAME_KEYS: [&str; 3] = ["name", "toolName", "tool_name"];

impl<'a> PartHead<'a> {
    fn read(json: &'a str) -> Result<PartHead<'a>, InvalidPart> {
        let head = serde_json::Deserializer::from_str(json).deserialize_map(PartVisitor);
        head.map_err(|_| InvalidPart::NotAnObject)?.ok_or(InvalidPart::NoType)
    }

    fn id(&self) -> Option<Cow<'a, str>> {
        self.ids.iter().flatten().find_map(|raw| scalar(raw))
    }

    fn name(&self) -> Option<Cow<'_, str>> {
        let named = self.names.iter().flatten().find_map(|raw| scalar(raw));
        named.or_else(|| match &*self.kind {
            "tool-call" | "tool-result" | "tool-invocation" => None,
            kind => kind.strip_prefix("tool-").map(Cow::Borrowed),
        })
    }

    fn marker(&self) -> String {
        match self.name() {
            Some(name) => format!("[tool call: {name}]"),
            None => "[tool call]".to_owned(),
        }
    }
}

/// A string's content or a number as written; other values name nothing.
fn scalar(raw: &RawValue) -> Option<Cow<'_, str>> {
    let text = raw.get();
    match text.as_bytes().first()? {
        b'"' => serde_json::from_str::<Text<'_>>(text).ok().map(|text| text.0),
        b'-' | b'0'..=b'9' => Some(Cow::Borrowed(text)),
        _ => None,
    }
}

/// A JSON string, borrowed where it has no escapes.
#[derive(serde::Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

struct PartVisitor;

impl<'de> Visitor<'de> for PartVisitor {
    /// `None` when there is no string `type`.
    type Value = Option<PartHead<'de>>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a message part")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut head = PartHead::default();
        let mut kind = None;
        while let Some(Text(key)) = map.next_key()? {
            if key == "type" {
                let raw: &RawValue = map.next_value()?;
                kind = raw.get().starts_with('"').then(|| scalar(raw)).flatten();
            } else if let Some(at) = ID_KEYS.iter().position(|known| *known == key) {
                head.ids[at] = Some(map.next_value()?);
            } else if let Some(at) = NAME_KEYS.iter().position(|known| *known == key) {
                head.names[at] = Some(map.next_value()?);
            } else {
                head.has_output |= key == "output" || key == "errorText" || key == "result";
                map.next_value::<IgnoredAny>()?;
            }
        }
        let Some(kind) = kind else { return Ok(None) };
        head.kind = kind;
        Ok(Some(head))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tool(json: &str) -> ToolRef {
        inspect_part(json).unwrap().tool
    }

    #[test]
    fn recognises_the_spellings_of_tool_parts() {
        let x = Some(tool_digest("x"));
        assert_eq!(tool(r#"{"type":"tool_call","id":"x"}"#), ToolRef::Call(x));
        assert_eq!(tool(r#"{"type":"tool_call","id":"y","tool_call_id":"x"}"#), ToolRef::Call(x));
        assert_eq!(tool(r#"{"type":"tool_use","id":"\u0078"}"#), ToolRef::Call(x));
        assert_eq!(tool(r#"{"type":"tool-call","toolCallId":"x"}"#), ToolRef::Call(x));
        assert_eq!(tool(r#"{"type":"function_call","id":"fc","call_id":"x"}"#), ToolRef::Call(x));
        assert_eq!(tool(r#"{"id":"own","tool_call_id":"x","type":"tool_result"}"#), ToolRef::Result(x));
        assert_eq!(tool(r#"{"type":"tool_result","tool_use_id":"x"}"#), ToolRef::Result(x));
        assert_eq!(tool(r#"{"type":"tool-result","toolCallId":"x"}"#), ToolRef::Result(x));
        assert_eq!(tool(r#"{"type":"function_call_output","call_id":"x"}"#), ToolRef::Result(x));
        assert_eq!(tool(r#"{"type":"tool-search","toolCallId":"x","input":{}}"#), ToolRef::Call(x));
        assert_eq!(tool(r#"{"type":"tool-search","toolCallId":"x","output":[]}"#), ToolRef::Exchange(x));
        assert_eq!(tool(r#"{"type":"dynamic-tool","toolCallId":"x","errorText":"e"}"#), ToolRef::Exchange(x));
    }

    #[test]
    fn other_parts_and_odd_ids_are_the_clients() {
        assert_eq!(tool(r#"{"type":"toolbox","id":"x"}"#), ToolRef::None);
        assert_eq!(tool(r#"{"type":"text","text":"x","id":{"a":[1]}}"#), ToolRef::None);
        assert_eq!(tool(r#"{"type":"tool_call","id":null}"#), ToolRef::Call(None));
        assert_eq!(tool(r#"{"type":"tool_call","id":["x"]}"#), ToolRef::Call(None));
        assert_eq!(tool(r#"{"type":"tool_call","id":17}"#), ToolRef::Call(Some(tool_digest("17"))));
        assert_eq!(tool(r#"{"type":"text","type":"tool_call"}"#), ToolRef::Call(None));
    }

    #[test]
    fn says_what_is_wrong_with_a_part() {
        for json in ["1", "[]", "\"text\"", "null", "{", "{\"type\"}"] {
            assert_eq!(inspect_part(json), Err(InvalidPart::NotAnObject), "{json}");
        }
        for json in ["{}", r#"{"type":null}"#, r#"{"type":["text"]}"#, r#"{"text":"type"}"#] {
            assert_eq!(inspect_part(json), Err(InvalidPart::NoType), "{json}");
        }
        let longest = "x".repeat(MAX_KIND_BYTES);
        assert_eq!(inspect_part(&format!(r#"{{"type":"{longest}"}}"#)).unwrap().kind.as_str(), longest);
        assert_eq!(inspect_part(&format!(r#"{{"type":"{longest}x"}}"#)), Err(InvalidPart::TypeTooLong));
    }

    #[test]
    fn kinds_give_the_type_back() {
        for (code, kind) in WELL_KNOWN.iter().enumerate() {
            assert_eq!(PartKind::new(kind), Some(PartKind::Known(code as u8)));
            assert_eq!(PartKind::from_code(code as u64).unwrap().as_str(), *kind);
        }
        assert_eq!(PartKind::new("anything/else").unwrap().as_str(), "anything/else");
        assert_eq!(PartKind::TEXT.as_str(), "text");
        assert_eq!(PartKind::from_code(WELL_KNOWN.len() as u64), None);
    }
}
