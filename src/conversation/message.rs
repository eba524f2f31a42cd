//! Messages: as a client sends them, and as the log remembers them. Bodies stay in the journal; only where they
//! lie and what planning needs is kept beside.

use bytes::Bytes;

use super::codec::{CodecError, Reader, Writer};
use super::part::{PartKind, PartMeta};

/// Where the bytes of a message body lie in the journal. `crc` is the CRC32C of exactly these bytes, so that reading
/// a part of a frame is verified too.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Location {
    pub segment: u32,
    pub offset: u32,
    pub len: u32,
    pub crc: u32,
}

impl Location {
    /// Keeps only what is the same on every replica.
    pub(super) fn forget_place(&mut self) {
        (self.segment, self.offset) = (0, 0);
    }

    /// Whether the bytes lie in this node's journal. Those of a trimmed message do not: the archive has them. (No body
    /// lies at the beginning of a segment, where its header is.)
    pub fn is_placed(&self) -> bool {
        (self.segment, self.offset) != (0, 0)
    }

    /// Whether this body is the one that was appended, wherever it comes from.
    pub fn is_of(&self, body: &[u8]) -> bool {
        body.len() == self.len as usize && crc32c::crc32c(body) == self.crc
    }
}

/// The distinctions planning makes between roles.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum RoleKind {
    /// `system`, or `developer` as some model vendors renamed it: the first message of a log stays in the window.
    System,
    /// `user`: begins a new exchange, for tool results that are told apart by their order.
    User,
    #[default]
    Other,
}

impl RoleKind {
    pub fn of(role: &str) -> RoleKind {
        match role {
            "system" | "developer" => RoleKind::System,
            "user" => RoleKind::User,
            _ => RoleKind::Other,
        }
    }

    pub(super) fn ordinal(self) -> u8 {
        match self {
            RoleKind::System => 0,
            RoleKind::User => 1,
            RoleKind::Other => 2,
        }
    }

    pub(super) fn from_ordinal(ordinal: u8) -> Result<RoleKind, CodecError> {
        match ordinal {
            0 => Ok(RoleKind::System),
            1 => Ok(RoleKind::User),
            2 => Ok(RoleKind::Other),
            _ => Err(CodecError::UnknownOrdinal { what: "role", value: ordinal.into() }),
        }
    }
}

/// A message as the edge hands it over: validated and counted.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NewMessage {
    /// The members of a JSON object without its braces, spliced from the bytes received:
    /// `"role":"user","parts":[...],"metadata":{...}`, metadata being `{}` when absent.
    pub body: Bytes,
    pub token_count: u32,
    pub role: RoleKind,
    pub parts: Vec<PartMeta>,
}

/// What a part answers, resolved when it was appended.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum ToolLink {
    #[default]
    None,
    Call,
    /// A result; `None` when no call for it was found.
    Result(Option<CallRef>),
}

/// Points from a result to its call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CallRef {
    /// How many messages back the call lies; 0 is the same message.
    pub back: u32,
    /// Index of the call among the parts of its message.
    pub part: u32,
}

/// One part as the log remembers it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StoredPart {
    pub kind: PartKind,
    pub tokens: u32,
    pub marker_tokens: u32,
    pub tool: ToolLink,
}

/// The parts of a message. A single `text` part, the common case, takes no memory of its own.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Parts(Option<Box<[StoredPart]>>);

impl Parts {
    pub fn new(parts: Vec<StoredPart>) -> Parts {
        match parts.as_slice() {
            [only] if only.kind == PartKind::TEXT => Parts(None),
            _ => Parts(Some(parts.into_boxed_slice())),
        }
    }

    /// One `text` part. What it costs is not kept: without it nothing of the message remains.
    pub const TEXT: Parts = Parts(None);

    /// `None` stands for one `text` part.
    pub fn listed(&self) -> Option<&[StoredPart]> {
        self.0.as_deref()
    }

    pub(super) fn count(&self) -> usize {
        self.listed().map_or(1, <[_]>::len)
    }

    pub(super) fn heap_bytes(&self) -> usize {
        let listed = self.listed().unwrap_or_default();
        let names = listed.iter().map(|part| match &part.kind {
            PartKind::Known(_) => 0,
            PartKind::Other(kind) => kind.len(),
        });
        size_of_val(listed) + names.sum::<usize>()
    }
}

/// A message as the log remembers it: 48 bytes for a text.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MessageMeta {
    pub location: Location,
    pub inserted_at_ms: u64,
    pub parts: Parts,
    pub token_count: u32,
    pub role: RoleKind,
}

/// What reading a message or an event takes: where it lies and what the server stamped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct EventRef {
    pub seq: u64,
    pub location: Location,
    pub token_count: u32,
    pub inserted_at_ms: u64,
}

impl MessageMeta {
    pub(super) fn event(&self, seq: u64) -> EventRef {
        EventRef {
            seq,
            location: self.location,
            token_count: self.token_count,
            inserted_at_ms: self.inserted_at_ms,
        }
    }
}

/// Shapes of [`Parts`], as persisted in bits 4 and up of a message's first byte; its role sits in the low bits.
const SHAPE_TEXT: u8 = 0;
const SHAPE_LISTED: u8 = 1;

/// The smallest encoded message.
const MIN_META_BYTES: usize = 10;

/// Encodes consecutive messages: times as differences from the one before, beginning at `base_ms`.
pub(super) fn write_metas(out: &mut Writer, base_ms: u64, metas: &[MessageMeta]) {
    out.count(metas.len());
    let mut before_ms = base_ms;
    for meta in metas {
        let shape = if meta.parts.listed().is_some() { SHAPE_LISTED } else { SHAPE_TEXT };
        out.u8(meta.role.ordinal() | shape << 4);
        out.varint(meta.location.segment.into());
        out.varint(meta.location.offset.into());
        out.varint(meta.location.len.into());
        out.fixed_u32(meta.location.crc);
        out.varint(meta.token_count.into());
        out.varint(meta.inserted_at_ms.wrapping_sub(before_ms));
        if let Some(parts) = meta.parts.listed() {
            write_parts(out, parts);
        }
        before_ms = meta.inserted_at_ms;
    }
}

pub(super) fn read_metas(input: &mut Reader, base_ms: u64) -> Result<Vec<MessageMeta>, CodecError> {
    let count = input.count()?;
    let mut metas = Vec::with_capacity(input.plausible(count, MIN_META_BYTES));
    let mut before_ms = base_ms;
    for _ in 0..count {
        let head = input.u8()?;
        let role = RoleKind::from_ordinal(head & 0x0f)?;
        let location = Location {
            segment: input.varint_u32()?,
            offset: input.varint_u32()?,
            len: input.varint_u32()?,
            crc: input.fixed_u32()?,
        };
        let token_count = input.varint_u32()?;
        before_ms = before_ms.wrapping_add(input.varint()?);
        let parts = match head >> 4 {
            SHAPE_TEXT => Parts::TEXT,
            SHAPE_LISTED => Parts::new(read_parts(input)?),
            shape => return Err(CodecError::UnknownOrdinal { what: "message shape", value: shape.into() }),
        };
        metas.push(MessageMeta { location, inserted_at_ms: before_ms, parts, token_count, role });
    }
    Ok(metas)
}

/// About the bytes that [`write_metas`] takes: exact for parts. The rest counts as usual, since places differ between
/// replicas, and what is sealed by this must not.
pub(super) fn metas_encoded_len(metas: &[MessageMeta]) -> usize {
    let listed = metas.iter().filter_map(|meta| meta.parts.listed());
    24 * metas.len() + Writer::measure(|out| listed.for_each(|parts| write_parts(out, parts)))
}

const LINK_NONE: u8 = 0;
const LINK_CALL: u8 = 1;
const LINK_RESULT: u8 = 2;
const LINK_RESULT_OF: u8 = 3;

fn write_parts(out: &mut Writer, parts: &[StoredPart]) {
    out.count(parts.len());
    for part in parts {
        write_kind(out, &part.kind);
        out.varint(part.tokens.into());
        match part.tool {
            ToolLink::None => out.u8(LINK_NONE),
            ToolLink::Call => out.u8(LINK_CALL),
            ToolLink::Result(None) => out.u8(LINK_RESULT),
            ToolLink::Result(Some(call)) => {
                out.u8(LINK_RESULT_OF);
                out.varint(call.back.into());
                out.varint(call.part.into());
            }
        }
        out.varint(part.marker_tokens.into());
    }
}

fn read_parts(input: &mut Reader) -> Result<Vec<StoredPart>, CodecError> {
    let count = input.count()?;
    let mut parts = Vec::new();
    for _ in 0..count {
        let kind = read_kind(input)?;
        let tokens = input.varint_u32()?;
        let tool = match input.u8()? {
            LINK_NONE => ToolLink::None,
            LINK_CALL => ToolLink::Call,
            LINK_RESULT => ToolLink::Result(None),
            LINK_RESULT_OF => {
                ToolLink::Result(Some(CallRef { back: input.varint_u32()?, part: input.varint_u32()? }))
            }
            other => return Err(CodecError::UnknownOrdinal { what: "tool link", value: other.into() }),
        };
        parts.push(StoredPart { kind, tokens, tool, marker_tokens: input.varint_u32()? });
    }
    Ok(parts)
}

/// A well-known kind is its code plus one; 0 announces the type itself.
pub(super) fn write_kind(out: &mut Writer, kind: &PartKind) {
    match kind {
        PartKind::Known(code) => out.varint(u64::from(*code) + 1),
        PartKind::Other(kind) => {
            out.varint(0);
            out.bytes(kind.as_bytes());
        }
    }
}

pub(super) fn read_kind(input: &mut Reader) -> Result<PartKind, CodecError> {
    match input.optional()? {
        Some(code) => {
            PartKind::from_code(code).ok_or(CodecError::UnknownOrdinal { what: "part kind", value: code })
        }
        None => PartKind::new(input.text()?).ok_or(CodecError::Invalid("part kind")),
    }
}
