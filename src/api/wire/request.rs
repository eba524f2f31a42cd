//! Request bodies: read once, borrowed from the bytes received, validated, and named in errors as the client named
//! them.
//!
//! Decisions where the contract is silent:
//! - a member the server reads must not occur twice in one object (400); inside parts and metadata duplicates are the
//!   client's business, and the last one counts where the server looks;
//! - `null` for an optional member means that it is absent;
//! - `parts` comes before `content` when both are given.

use std::borrow::Cow;
use std::fmt;

use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};

use super::json::{self, KEPT_DEPTH_MAX};
use super::shape::{Items, List, Object, is_object, must_be, string, whole_number};
use crate::api::dialect::Dialect;
use crate::api::error::ApiError;
use crate::conversation::{
    CompactRange, Idempotency, MAX_METADATA_BYTES, MAX_PARTS, PartFacts, Policy, inspect_part,
    valid_trigger_ratio,
};

/// Most events of one batch, and most messages of one replacement.
pub(crate) const BATCH_MAX: usize = 1_000;
/// Levels of a body around what is kept of it: as a member of the body, or in a list that is one.
const ALONE: usize = 1;
const IN_LIST: usize = 2;
/// Longest idempotency key in bytes.
const KEY_BYTES_MAX: usize = 128;

/// Largest whole number that every JSON reader keeps exact (2^53 - 1).
const EXACT_MAX: u64 = (1 << 53) - 1;

/// `POST .../events`.
pub(crate) struct Append<'a> {
    pub messages: Vec<Message<'a>>,
    /// Sent as a list, and to be answered so.
    pub is_batch: bool,
    pub idempotency: Option<Idempotency>,
    pub if_version: Option<u64>,
}

/// `POST .../compact`.
pub(crate) struct Compact<'a> {
    pub range: CompactRange,
    pub replacement: Vec<Message<'a>>,
    pub if_version: Option<u64>,
}

/// `PUT`.
pub(crate) struct Settings {
    pub token_budget: Option<u64>,
    pub trigger_ratio: Option<f64>,
    pub policy: Option<Policy>,
    pub metadata: Option<Bytes>,
}

/// A message as sent, borrowed from the body.
pub(crate) struct Message<'a> {
    pub role: Cow<'a, str>,
    role_json: &'a str,
    pub parts: Vec<Part<'a>>,
    parts_json: Cow<'a, str>,
    metadata_json: &'a str,
    /// The client's own count.
    pub token_count: Option<u32>,
}

/// A part: its JSON and what planning needs of it.
pub(crate) struct Part<'a> {
    pub json: Cow<'a, str>,
    pub facts: PartFacts,
}

impl<'a> Append<'a> {
    /// `one_bytes_max` bounds a body with a single event, and every event of a batch.
    pub(crate) fn parse(
        bytes: &'a [u8],
        dialect: Dialect,
        one_bytes_max: usize,
    ) -> Result<Append<'a>, ApiError> {
        #[derive(Deserialize)]
        struct Fields<'a> {
            #[serde(borrow)]
            event: Option<Object<MessageFields<'a>>>,
            events: Option<Messages<'a>>,
            message: Option<Object<MessageFields<'a>>>,
            messages: Option<Messages<'a>>,
            idempotency_key: Option<&'a RawValue>,
            if_version: Option<&'a RawValue>,
        }
        let (fields, depth): (Fields<'a>, _) = members(bytes, IN_LIST)?;
        let (one, many) = match dialect {
            Dialect::Conversations => (fields.event, fields.events),
            Dialect::Contexts => (fields.message, fields.messages),
        };
        let (event, events) = (dialect.event(), dialect.events());
        let (messages, is_batch) = match (one, many) {
            (Some(one), None) => (vec![Message::read(one, Place::One(event))?], false),
            (None, Some(many)) => (Message::read_list(many, events, one_bytes_max)?, true),
            _ => return Err(ApiError::InvalidRequest(format!("either {event} or {events} is required"))),
        };
        if !is_batch && depth > KEPT_DEPTH_MAX + ALONE {
            checked(bytes, ALONE)?;
        }
        if !is_batch && bytes.len() > one_bytes_max {
            return Err(ApiError::TooLarge { what: "The request body".into(), limit_bytes: one_bytes_max });
        }
        let if_version = optional(fields.if_version, "if_version", "a whole number", whole_number)?;
        let key = optional(fields.idempotency_key, "idempotency_key", "a string of 1 to 128 bytes", key)?;
        let idempotency =
            key.map(|key| Idempotency { key: digest([key.as_bytes()]), body: digest_of(&messages) });
        Ok(Append { messages, is_batch, idempotency, if_version })
    }
}

impl<'a> Compact<'a> {
    /// `one_bytes_max` bounds every message of the replacement.
    pub(crate) fn parse(bytes: &'a [u8], one_bytes_max: usize) -> Result<Compact<'a>, ApiError> {
        #[derive(Deserialize)]
        struct Fields<'a> {
            #[serde(borrow)]
            from_seq: Option<&'a RawValue>,
            to_seq: Option<&'a RawValue>,
            replacement: Option<Messages<'a>>,
            if_version: Option<&'a RawValue>,
        }
        let (fields, _): (Fields<'a>, _) = members(bytes, IN_LIST)?;
        let seq = |raw, field| optional(raw, field, "a whole number of at least 1", positive);
        let range =
            CompactRange { from: seq(fields.from_seq, "from_seq")?, to: seq(fields.to_seq, "to_seq")? };
        let if_version = optional(fields.if_version, "if_version", "a whole number", whole_number)?;
        let replacement = fields.replacement.ok_or_else(|| must_be("replacement", "an array of messages"))?;
        let replacement = Message::read_list(replacement, "replacement", one_bytes_max)?;
        Ok(Compact { range, replacement, if_version })
    }
}

impl Settings {
    /// An empty body settles nothing, which is allowed.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Settings, ApiError> {
        #[derive(Deserialize, Default)]
        struct Fields<'a> {
            #[serde(borrow)]
            token_budget: Option<&'a RawValue>,
            trigger_ratio: Option<&'a RawValue>,
            policy: Option<&'a RawValue>,
            metadata: Option<&'a RawValue>,
        }
        let fields: Fields<'_> =
            if bytes.trim_ascii().is_empty() { Fields::default() } else { members(bytes, ALONE)?.0 };
        let budget = |raw: &RawValue| positive(raw).filter(|budget| *budget <= EXACT_MAX);
        let token_budget =
            optional(fields.token_budget, "token_budget", "a whole number from 1 to 2^53 - 1", budget)?;
        let trigger_ratio =
            optional(fields.trigger_ratio, "trigger_ratio", "a number above 0 and at most 1", ratio)?;
        let policy = fields.policy.map(|raw| Policy::parse_new(Bytes::copy_from_slice(raw.get().as_bytes())));
        let policy = policy.transpose().map_err(|error| ApiError::InvalidRequest(error.to_string()))?;
        let metadata =
            optional(fields.metadata, "metadata", "an object", object)?.map(bounded_metadata).transpose()?;
        // A ratio beside the policy comes before one inside it.
        let trigger_ratio = trigger_ratio.or_else(|| policy.as_ref().and_then(Policy::trigger_ratio));
        Ok(Settings { token_budget, trigger_ratio, policy, metadata })
    }
}

/// `PATCH .../metadata`: a JSON object, as received.
pub(crate) fn metadata_patch(bytes: &[u8]) -> Result<Bytes, ApiError> {
    let raw: &RawValue = serde_json::from_str(checked(bytes, 0)?.0).map_err(syntax)?;
    if !is_object(raw) {
        return Err(must_be("The body", "an object"));
    }
    bounded_metadata(raw.get())
}

impl<'a> Message<'a> {
    /// Reads messages none of which is larger than a stream can deliver in one frame.
    fn read_list(
        list: Messages<'a>,
        field: &'static str,
        one_bytes_max: usize,
    ) -> Result<Vec<Message<'a>>, ApiError> {
        let Items { kept, count } = list.expect(field)?;
        if count == 0 || count > BATCH_MAX {
            return Err(must_be(field, &format!("an array of 1 to {BATCH_MAX}, not {count}")));
        }
        let read = |(index, fields)| {
            let place = Place::Item(field, index);
            let message = Message::read(fields, place)?;
            match message.body_bytes() > one_bytes_max {
                true => {
                    Err(ApiError::TooLarge { what: place.to_string().into(), limit_bytes: one_bytes_max })
                }
                false => Ok(message),
            }
        };
        kept.into_iter().enumerate().map(read).collect()
    }

    fn read(fields: Object<MessageFields<'a>>, place: Place) -> Result<Message<'a>, ApiError> {
        let fields = fields.expect(&place.to_string())?;
        let role =
            fields.role.and_then(|raw| Some((raw.get(), string(raw)?))).filter(|(_, role)| !role.is_empty());
        let (role_json, role) =
            role.ok_or_else(|| must_be(&format!("{place}.role"), "a non-empty string"))?;
        let content = fields.content.map(|raw| match string(raw) {
            Some(_) => Ok(raw.get()),
            None => Err(must_be(&format!("{place}.content"), "a string")),
        });
        let (parts_json, parts) = match (fields.parts, content.transpose()?) {
            (Some(raw), _) => (Cow::Borrowed(raw.get()), parts(raw, place)?),
            (None, Some(text)) => text_part(text, place)?,
            (None, None) => return Err(must_be(&format!("{place}.parts"), "an array of objects")),
        };
        let metadata_json = match fields.metadata {
            None => "{}",
            Some(raw) if is_object(raw) => raw.get(),
            Some(_) => return Err(must_be(&format!("{place}.metadata"), "an object")),
        };
        let count = |raw: &RawValue| whole_number(raw).and_then(|count| u32::try_from(count).ok());
        let token_count = match fields.token_count {
            None => None,
            Some(raw) => Some(count(raw).ok_or_else(|| {
                must_be(&format!("{place}.token_count"), &format!("a whole number from 0 to {}", u32::MAX))
            })?),
        };
        Ok(Message { role, role_json, parts, parts_json, metadata_json, token_count })
    }

    /// The bytes that are stored: the members of an object without its braces, as received.
    pub(crate) fn body(&self) -> Bytes {
        let mut body = Vec::with_capacity(self.body_bytes());
        self.pieces().iter().for_each(|piece| body.extend_from_slice(piece.as_bytes()));
        Bytes::from(body)
    }

    fn body_bytes(&self) -> usize {
        self.pieces().iter().map(|piece| piece.len()).sum()
    }

    fn pieces(&self) -> [&str; 6] {
        let [role, parts, metadata] = [r#""role":"#, r#","parts":"#, r#","metadata":"#];
        [role, self.role_json, parts, &self.parts_json, metadata, self.metadata_json]
    }

    /// Size of what counting tokens would look at. With a count of the client's that is what stands in for tool calls, and
    /// the parts where there are several to share it.
    pub(crate) fn countable_bytes(&self) -> usize {
        let markers = self.parts.iter().filter_map(|part| part.facts.marker.as_ref()).map(String::len).sum();
        let (role, parts) = (self.role.len(), self.parts_json.len());
        match (self.token_count, self.parts.len()) {
            (None, _) => role + parts + markers,
            (Some(_), 0 | 1) => markers,
            (Some(_), _) => parts + markers,
        }
    }
}

/// The members of a message that the server reads.
#[derive(Deserialize)]
struct MessageFields<'a> {
    #[serde(borrow)]
    role: Option<&'a RawValue>,
    parts: Option<&'a RawValue>,
    content: Option<&'a RawValue>,
    metadata: Option<&'a RawValue>,
    token_count: Option<&'a RawValue>,
}

/// The messages of a batch or a replacement.
type Messages<'a> = List<Object<MessageFields<'a>>, BATCH_MAX>;

fn parts<'a>(raw: &'a RawValue, place: Place) -> Result<Vec<Part<'a>>, ApiError> {
    let list: List<&'a RawValue, MAX_PARTS> = serde_json::from_str(raw.get()).map_err(syntax)?;
    let field = format!("{place}.parts");
    let Items { kept, count } = list.expect(&field)?;
    if count > MAX_PARTS {
        return Err(must_be(&field, &format!("an array of at most {MAX_PARTS}, not {count}")));
    }
    let part = |(index, raw): (usize, &'a RawValue)| part(Cow::Borrowed(raw.get()), place, index);
    kept.into_iter().enumerate().map(part).collect()
}

fn part(json: Cow<'_, str>, place: Place, index: usize) -> Result<Part<'_>, ApiError> {
    let facts = inspect_part(&json)
        .map_err(|error| ApiError::InvalidRequest(format!("{place}.parts[{index}] {error}")))?;
    Ok(Part { json, facts })
}

/// The parts that `content` stands for: one text.
fn text_part(content: &str, place: Place) -> Result<(Cow<'_, str>, Vec<Part<'_>>), ApiError> {
    let json = format!(r#"{{"type":"text","text":{content}}}"#);
    Ok((Cow::Owned(format!("[{json}]")), vec![part(Cow::Owned(json), place, 0)?]))
}

/// Where a message stands in the body, for errors.
#[derive(Clone, Copy)]
enum Place {
    One(&'static str),
    Item(&'static str, usize),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::One(field) => f.write_str(field),
            Place::Item(field, index) => write!(f, "{field}[{index}]"),
        }
    }
}

/// Reads the members of the object that nearly every body is; answers also how deep it is nested.
fn members<'a, T: Deserialize<'a>>(bytes: &'a [u8], wraps: usize) -> Result<(T, usize), ApiError> {
    let (text, depth) = checked(bytes, wraps)?;
    let object: Object<T> = serde_json::from_str(text).map_err(syntax)?;
    Ok((object.expect("The body")?, depth))
}

fn checked(bytes: &[u8], wraps: usize) -> Result<(&str, usize), ApiError> {
    json::check(bytes, wraps).map_err(|fault| ApiError::InvalidJson(fault.to_string()))
}

/// Text that is not JSON, or JSON with a member twice.
fn syntax(error: serde_json::Error) -> ApiError {
    if error.is_data() {
        ApiError::InvalidRequest(format!("The body is not accepted: {error}"))
    } else {
        ApiError::InvalidJson(format!("The body is not valid JSON: {error}"))
    }
}

/// A member that may be absent, but not of a wrong type.
fn optional<'a, T>(
    raw: Option<&'a RawValue>,
    field: &str,
    expected: &str,
    read: impl Fn(&'a RawValue) -> Option<T>,
) -> Result<Option<T>, ApiError> {
    raw.map(|raw| read(raw).ok_or_else(|| must_be(field, expected))).transpose()
}

fn positive(raw: &RawValue) -> Option<u64> {
    whole_number(raw).filter(|number| *number > 0)
}

fn ratio(raw: &RawValue) -> Option<f64> {
    serde_json::from_str(raw.get()).ok().filter(|ratio| valid_trigger_ratio(*ratio))
}

fn key(raw: &RawValue) -> Option<Cow<'_, str>> {
    string(raw).filter(|key| (1..=KEY_BYTES_MAX).contains(&key.len()))
}

fn object(raw: &RawValue) -> Option<&str> {
    is_object(raw).then_some(raw.get())
}

fn bounded_metadata(json: &str) -> Result<Bytes, ApiError> {
    if json.len() > MAX_METADATA_BYTES {
        return Err(ApiError::TooLarge { what: "metadata".into(), limit_bytes: MAX_METADATA_BYTES });
    }
    Ok(Bytes::copy_from_slice(json.as_bytes()))
}

/// Digest of what a request appends: its messages as sent. Not of `if_version`, which a retry may drop.
fn digest_of(messages: &[Message<'_>]) -> [u8; 16] {
    let mut hash = Sha256::new();
    for message in messages {
        let pieces = [message.role_json, &message.parts_json, message.metadata_json];
        for piece in pieces {
            hash.update((piece.len() as u64).to_le_bytes());
            hash.update(piece);
        }
        hash.update(message.token_count.map_or(u64::MAX, u64::from).to_le_bytes());
    }
    truncated(hash)
}

fn digest<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> [u8; 16] {
    let mut hash = Sha256::new();
    pieces.into_iter().for_each(|piece| hash.update(piece));
    truncated(hash)
}

fn truncated(hash: Sha256) -> [u8; 16] {
    let mut digest = [0; 16];
    digest.copy_from_slice(&hash.finalize()[..16]);
    digest
}

#[cfg(test)]
#[path = "request_tests.rs"]
mod tests;
