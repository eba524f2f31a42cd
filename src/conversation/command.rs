//! Commands: what the Raft log holds. Everything a replica cannot know for itself is stamped in before proposing.
//!
//! Message bodies are contiguous ranges of the encoding, so that where the encoding lies tells where each body lies.

use bytes::Bytes;

use super::ConversationId;
use super::codec::{CodecError, Reader, Writer};
use super::message::{Location, NewMessage, RoleKind, read_kind, write_kind};
use super::part::{PartMeta, ToolRef};
use super::policy::{Policy, read_policy, read_ratio, write_policy};
use super::restore::Restore;

const FORMAT: u8 = 1;

/// One replicated command.
#[derive(Clone, PartialEq, Debug)]
pub struct Command {
    pub id: ConversationId,
    /// The proposer's clock, in ms since 1970. Apply never lets the time of a conversation go back.
    pub now_ms: u64,
    pub action: Action,
}

/// What to do with the conversation.
#[derive(Clone, PartialEq, Debug)]
pub enum Action {
    /// Creates the conversation or updates what is given.
    Put(Put),
    /// Merges the top-level members of a JSON object into the metadata; `null` removes one.
    PatchMetadata {
        patch: Bytes,
    },
    Append {
        messages: Vec<NewMessage>,
        idempotency: Option<Idempotency>,
        if_version: Option<u64>,
    },
    Compact {
        range: CompactRange,
        replacement: Vec<NewMessage>,
        if_version: Option<u64>,
    },
    Tombstone,
    /// Brings versions back from an archive or a backup.
    Restore(Restore),
}

/// What is given of a conversation. `trigger_ratio` and `metadata` were validated by the edge.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Put {
    pub token_budget: Option<u64>,
    pub trigger_ratio: Option<f64>,
    pub policy: Option<Policy>,
    /// A JSON object, as received.
    pub metadata: Option<Bytes>,
}

/// Identifies a request that may be sent again: truncated SHA-256 of the client's key and of the request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Idempotency {
    pub key: [u8; 16],
    pub body: [u8; 16],
}

/// The seqs to compact, inclusive: from the first by default, to the last at apply by default.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct CompactRange {
    pub from: Option<u64>,
    pub to: Option<u64>,
}

/// Where byte 0 of an encoded command lies in the journal.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct FrameLocation {
    pub segment: u32,
    pub offset: u32,
}

const PUT: u8 = 0;
const PATCH_METADATA: u8 = 1;
const APPEND: u8 = 2;
const COMPACT: u8 = 3;
const TOMBSTONE: u8 = 4;
const RESTORE: u8 = 5;
const RESTORE_WITH_KEYS: u8 = 6;

impl Command {
    /// The bytes that go into the log. Bodies are copied once, their checksums computed here.
    pub fn encode(&self) -> Bytes {
        let mut out = Writer::new(FORMAT, self.encoded_capacity());
        out.bytes(self.id.as_str().as_bytes());
        out.varint(self.now_ms);
        match &self.action {
            Action::Put(Put { token_budget, trigger_ratio, policy, metadata }) => {
                out.u8(PUT);
                write_some(&mut out, token_budget, |out, budget| out.varint(*budget));
                write_some(&mut out, trigger_ratio, |out, ratio| out.fixed_u64(ratio.to_bits()));
                write_some(&mut out, policy, write_policy);
                write_some(&mut out, metadata, |out, metadata| out.bytes(metadata));
            }
            Action::PatchMetadata { patch } => {
                out.u8(PATCH_METADATA);
                out.bytes(patch);
            }
            Action::Append { messages, idempotency, if_version } => {
                out.u8(APPEND);
                out.optional(*if_version);
                write_some(&mut out, idempotency, |out, idempotency| {
                    out.raw(&idempotency.key);
                    out.raw(&idempotency.body);
                });
                write_messages(&mut out, messages);
            }
            Action::Compact { range, replacement, if_version } => {
                out.u8(COMPACT);
                out.optional(*if_version);
                out.optional(range.from);
                out.optional(range.to);
                write_messages(&mut out, replacement);
            }
            Action::Tombstone => out.u8(TOMBSTONE),
            Action::Restore(restore) => {
                out.u8(if restore.keys.is_some() { RESTORE_WITH_KEYS } else { RESTORE });
                restore.write(&mut out);
            }
        }
        out.finish()
    }

    /// Reads a command back, with the location of every message body in order, given where the encoding lies.
    pub fn decode(bytes: Bytes, base: FrameLocation) -> Result<(Command, Vec<Location>), CodecError> {
        let mut input = Reader::new(bytes, FORMAT)?;
        let mut locations = Vec::new();
        let id = input.id()?;
        let now_ms = input.varint()?;
        let action = match input.u8()? {
            PUT => Action::Put(Put {
                token_budget: read_some(&mut input, Reader::varint)?,
                trigger_ratio: read_some(&mut input, read_ratio)?,
                policy: read_some(&mut input, read_policy)?,
                metadata: read_some(&mut input, Reader::bytes)?,
            }),
            PATCH_METADATA => Action::PatchMetadata { patch: input.bytes()? },
            APPEND => Action::Append {
                if_version: input.optional()?,
                idempotency: read_some(&mut input, |input| {
                    Ok(Idempotency { key: input.digest()?, body: input.digest()? })
                })?,
                messages: read_messages(&mut input, base, &mut locations)?,
            },
            COMPACT => Action::Compact {
                if_version: input.optional()?,
                range: CompactRange { from: input.optional()?, to: input.optional()? },
                replacement: read_messages(&mut input, base, &mut locations)?,
            },
            TOMBSTONE => Action::Tombstone,
            kind @ (RESTORE | RESTORE_WITH_KEYS) => {
                let has_keys = kind == RESTORE_WITH_KEYS;
                Action::Restore(Restore::read(&mut input, has_keys, base, &mut locations)?)
            }
            other => return Err(CodecError::UnknownOrdinal { what: "action", value: other.into() }),
        };
        input.expect_end()?;
        Ok((Command { id, now_ms, action }, locations))
    }

    fn encoded_capacity(&self) -> usize {
        let of = |message: &NewMessage| message.body.len() + 16 + message.parts.len() * 8;
        let bodies: usize = match &self.action {
            Action::Append { messages, .. } => messages.iter().map(of).sum(),
            Action::Compact { replacement, .. } => replacement.iter().map(of).sum(),
            Action::Restore(restore) => restore.messages().map(of).sum(),
            _ => 64,
        };
        self.id.as_str().len() + 64 + bodies
    }
}

pub(super) fn write_some<T>(out: &mut Writer, value: &Option<T>, write: impl FnOnce(&mut Writer, &T)) {
    out.flag(value.is_some());
    if let Some(value) = value {
        write(out, value);
    }
}

pub(super) fn read_some<T>(
    input: &mut Reader,
    read: impl FnOnce(&mut Reader) -> Result<T, CodecError>,
) -> Result<Option<T>, CodecError> {
    if input.flag()? { read(input).map(Some) } else { Ok(None) }
}

const TOOL_NONE: u8 = 0;
const TOOL_CALL: u8 = 1;
const TOOL_RESULT: u8 = 2;
const TOOL_EXCHANGE: u8 = 3;
/// Added to the ordinal when the digest of a tool id follows.
const TOOL_HAS_ID: u8 = 0x80;

pub(super) fn write_messages(out: &mut Writer, messages: &[NewMessage]) {
    out.count(messages.len());
    for message in messages {
        out.u8(message.role.ordinal());
        out.varint(message.token_count.into());
        out.fixed_u32(crc32c::crc32c(&message.body));
        out.bytes(&message.body);
        out.count(message.parts.len());
        for part in &message.parts {
            write_kind(out, &part.kind);
            out.varint(part.tokens.into());
            out.varint(part.marker_tokens.into());
            write_tool(out, part.tool);
        }
    }
}

fn write_tool(out: &mut Writer, tool: ToolRef) {
    let (ordinal, digest) = match tool {
        ToolRef::None => (TOOL_NONE, None),
        ToolRef::Call(digest) => (TOOL_CALL, digest),
        ToolRef::Result(digest) => (TOOL_RESULT, digest),
        ToolRef::Exchange(digest) => (TOOL_EXCHANGE, digest),
    };
    match digest {
        None => out.u8(ordinal),
        Some(digest) => {
            out.u8(ordinal | TOOL_HAS_ID);
            out.fixed_u64(digest);
        }
    }
}

pub(super) fn read_messages(
    input: &mut Reader,
    base: FrameLocation,
    locations: &mut Vec<Location>,
) -> Result<Vec<NewMessage>, CodecError> {
    let count = input.count()?;
    let mut messages = Vec::new();
    for _ in 0..count {
        let role = RoleKind::from_ordinal(input.u8()?)?;
        let token_count = input.varint_u32()?;
        let crc = input.fixed_u32()?;
        let len = input.count()?;
        let offset = u32::try_from(input.position()).ok().and_then(|at| base.offset.checked_add(at));
        let (Some(offset), Ok(len_u32)) = (offset, u32::try_from(len)) else {
            return Err(CodecError::Invalid("message location"));
        };
        let body = input.shared(len)?;
        let parts = read_parts(input)?;
        locations.push(Location { segment: base.segment, offset, len: len_u32, crc });
        messages.push(NewMessage { body, token_count, role, parts });
    }
    Ok(messages)
}

fn read_parts(input: &mut Reader) -> Result<Vec<PartMeta>, CodecError> {
    let count = input.count()?;
    let mut parts = Vec::new();
    for _ in 0..count {
        parts.push(PartMeta {
            kind: read_kind(input)?,
            tokens: input.varint_u32()?,
            marker_tokens: input.varint_u32()?,
            tool: read_tool(input)?,
        });
    }
    Ok(parts)
}

fn read_tool(input: &mut Reader) -> Result<ToolRef, CodecError> {
    let head = input.u8()?;
    let digest = if head & TOOL_HAS_ID != 0 { Some(input.fixed_u64()?) } else { None };
    match (head & !TOOL_HAS_ID, digest) {
        (TOOL_NONE, None) => Ok(ToolRef::None),
        (TOOL_CALL, digest) => Ok(ToolRef::Call(digest)),
        (TOOL_RESULT, digest) => Ok(ToolRef::Result(digest)),
        (TOOL_EXCHANGE, digest) => Ok(ToolRef::Exchange(digest)),
        _ => Err(CodecError::UnknownOrdinal { what: "tool reference", value: head.into() }),
    }
}
