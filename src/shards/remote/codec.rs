//! The compact encodings of the calls that are made most: forwarded writes and read indexes.
//!
//! Little-endian, versioned by their first byte. Decoders never panic, whatever the bytes.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::conversation::{CodecError, Reply};
use crate::trace::Context;

const FORMAT: u8 = 1;
/// The format of a write that is traced.
const TRACED: u8 = 2;

/// Longest explanation sent along.
const TEXT_BYTES_MAX: usize = 1_024;

const REPLY: u8 = 0;
const NOT_LEADER: u8 = 1;
const NOT_APPLIED: u8 = 2;
const UNKNOWN: u8 = 3;
const FULL: u8 = 4;

/// What became of a write.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Outcome {
    Reply(Reply),
    /// Not applied; who leads the group, as far as known.
    NotLeader(Option<u128>),
    /// Not applied, for a reason that may pass.
    NotApplied(String),
    /// Perhaps applied.
    Unknown(String),
    /// Not applied: the leader has no disk space left.
    Full,
}

/// A command for the leader of a group: a head, and the command as it is.
pub(crate) fn forward_write(group: u16, command: &Bytes) -> Vec<Bytes> {
    let mut head = BytesMut::with_capacity(3);
    head.put_u8(FORMAT);
    head.put_u16_le(group);
    vec![head.freeze(), command.clone()]
}

/// The same for a span, whose context comes before the command.
pub(crate) fn forward_traced_write(group: u16, caller: Context, command: &Bytes) -> Vec<Bytes> {
    let mut head = BytesMut::with_capacity(27);
    head.put_u8(TRACED);
    head.put_u16_le(group);
    head.put_u128_le(caller.trace);
    head.put_u64_le(caller.span);
    vec![head.freeze(), command.clone()]
}

/// Group, command, and the span of the caller.
pub(crate) fn read_forward_write(mut body: Bytes) -> Result<(u16, Bytes, Option<Context>), CodecError> {
    if body.first() != Some(&TRACED) {
        let mut input = Input::new(body)?;
        return Ok((input.u16()?, input.rest(), None));
    }
    if body.len() < 27 {
        return Err(CodecError::Truncated);
    }
    body.advance(1);
    let (group, trace, span) = (body.get_u16_le(), body.get_u128_le(), body.get_u64_le());
    Ok((group, body, Some(Context { trace, span })))
}

impl Outcome {
    pub(crate) fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(64);
        out.put_u8(FORMAT);
        match self {
            Outcome::Reply(reply) => {
                out.put_u8(REPLY);
                out.put_slice(&reply.encode());
            }
            Outcome::NotLeader(leader) => {
                out.put_u8(NOT_LEADER);
                put_node(&mut out, *leader);
            }
            Outcome::NotApplied(why) => {
                out.put_u8(NOT_APPLIED);
                put_text(&mut out, why);
            }
            Outcome::Unknown(why) => {
                out.put_u8(UNKNOWN);
                put_text(&mut out, why);
            }
            Outcome::Full => out.put_u8(FULL),
        }
        out.freeze()
    }

    pub(crate) fn decode(bytes: Bytes) -> Result<Outcome, CodecError> {
        let mut input = Input::new(bytes)?;
        let outcome = match input.u8()? {
            REPLY => return Reply::decode(input.rest()).map(Outcome::Reply),
            NOT_LEADER => Outcome::NotLeader(input.node()?),
            NOT_APPLIED => Outcome::NotApplied(input.text()?),
            UNKNOWN => Outcome::Unknown(input.text()?),
            FULL => Outcome::Full,
            other => return Err(CodecError::UnknownOrdinal { what: "outcome", value: other.into() }),
        };
        input.end()?;
        Ok(outcome)
    }
}

const INDEX: u8 = 0;
const INDEX_NOT_LEADER: u8 = 1;
const INDEX_FAILED: u8 = 2;

/// What a node answers when it is asked for the read index of a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ReadIndex {
    At(u64),
    NotLeader(Option<u128>),
    Failed(String),
}

/// Groups whose read index is asked for.
pub(crate) fn groups(groups: &[u16]) -> Bytes {
    let mut out = BytesMut::with_capacity(3 + groups.len() * 2);
    out.put_u8(FORMAT);
    out.put_u16_le(groups.len() as u16);
    groups.iter().for_each(|group| out.put_u16_le(*group));
    out.freeze()
}

pub(crate) fn read_groups(bytes: Bytes) -> Result<Vec<u16>, CodecError> {
    let mut input = Input::new(bytes)?;
    let count = input.u16()?;
    let groups = (0..count).map(|_| input.u16()).collect::<Result<_, _>>()?;
    input.end()?;
    Ok(groups)
}

/// The answers, in the order of the groups asked for.
pub(crate) fn indexes(indexes: &[ReadIndex]) -> Bytes {
    let mut out = BytesMut::with_capacity(3 + indexes.len() * 9);
    out.put_u8(FORMAT);
    out.put_u16_le(indexes.len() as u16);
    for index in indexes {
        match index {
            ReadIndex::At(index) => {
                out.put_u8(INDEX);
                out.put_u64_le(*index);
            }
            ReadIndex::NotLeader(leader) => {
                out.put_u8(INDEX_NOT_LEADER);
                put_node(&mut out, *leader);
            }
            ReadIndex::Failed(why) => {
                out.put_u8(INDEX_FAILED);
                put_text(&mut out, why);
            }
        }
    }
    out.freeze()
}

pub(crate) fn read_indexes(bytes: Bytes) -> Result<Vec<ReadIndex>, CodecError> {
    let mut input = Input::new(bytes)?;
    let count = input.u16()?;
    let one = |input: &mut Input| {
        Ok(match input.u8()? {
            INDEX => ReadIndex::At(input.u64()?),
            INDEX_NOT_LEADER => ReadIndex::NotLeader(input.node()?),
            INDEX_FAILED => ReadIndex::Failed(input.text()?),
            other => return Err(CodecError::UnknownOrdinal { what: "read index", value: other.into() }),
        })
    };
    let indexes = (0..count).map(|_| one(&mut input)).collect::<Result<_, _>>()?;
    input.end()?;
    Ok(indexes)
}

/// A node's id; zeros for none.
fn put_node(out: &mut BytesMut, node: Option<u128>) {
    out.put_u128_le(node.unwrap_or(0));
}

fn put_text(out: &mut BytesMut, text: &str) {
    let text = &text[..text.floor_char_boundary(TEXT_BYTES_MAX)];
    out.put_u16_le(text.len() as u16);
    out.put_slice(text.as_bytes());
}

struct Input(Bytes);

impl Input {
    fn new(bytes: Bytes) -> Result<Input, CodecError> {
        let mut input = Input(bytes);
        match input.u8()? {
            FORMAT => Ok(input),
            other => Err(CodecError::UnknownVersion(other)),
        }
    }

    fn take(&mut self, len: usize) -> Result<Bytes, CodecError> {
        if len > self.0.len() {
            return Err(CodecError::Truncated);
        }
        Ok(self.0.split_to(len))
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], CodecError> {
        let mut array = [0; N];
        array.copy_from_slice(&self.take(N)?);
        Ok(array)
    }

    fn u8(&mut self) -> Result<u8, CodecError> {
        Ok(self.array::<1>()?[0])
    }

    fn u16(&mut self) -> Result<u16, CodecError> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    fn u64(&mut self) -> Result<u64, CodecError> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    fn node(&mut self) -> Result<Option<u128>, CodecError> {
        let node = u128::from_le_bytes(self.array()?);
        Ok((node != 0).then_some(node))
    }

    fn text(&mut self) -> Result<String, CodecError> {
        let len = self.u16()?;
        String::from_utf8(self.take(len.into())?.into()).map_err(|_| CodecError::Invalid("text"))
    }

    fn rest(self) -> Bytes {
        self.0
    }

    fn end(&self) -> Result<(), CodecError> {
        if self.0.is_empty() { Ok(()) } else { Err(CodecError::Trailing(self.0.len())) }
    }
}
