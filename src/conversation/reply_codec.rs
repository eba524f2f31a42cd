//! The encoding of replies, for the way from the leader back to the node that was asked.

use bytes::Bytes;

use super::codec::{CodecError, Reader, Writer};
use super::reply::{Description, Refusal, Reply, Status};

const FORMAT: u8 = 1;

const SETTLED: u8 = 0;
const APPENDED: u8 = 1;
const COMPACTED: u8 = 2;
const TOMBSTONED: u8 = 3;
const REFUSED: u8 = 4;
const MARKED: u8 = 5;
const RESTORED: u8 = 6;
const TRIMMED: u8 = 7;

const NOT_FOUND: u8 = 0;
const CONFLICT: u8 = 1;
const IS_TOMBSTONED: u8 = 2;
const IDEMPOTENCY_CONFLICT: u8 = 3;
const INVALID_RANGE: u8 = 4;
const TOO_MANY_SUMMARIES: u8 = 5;
const TOO_MANY_KEYS: u8 = 6;
const INVALID_METADATA: u8 = 7;

impl Reply {
    pub fn encode(&self) -> Bytes {
        let mut out = Writer::new(FORMAT, 64);
        match self {
            Reply::Settled { created, changed, description } => {
                out.u8(SETTLED);
                out.flag(*created);
                out.flag(*changed);
                write_description(&mut out, description);
            }
            Reply::Appended { first_seq, last_seq, version, token_counts, deduped } => {
                out.u8(APPENDED);
                out.varint(*first_seq);
                out.varint(*last_seq);
                out.varint(*version);
                out.flag(*deduped);
                out.count(token_counts.len());
                token_counts.iter().for_each(|count| out.varint((*count).into()));
            }
            Reply::Compacted { version } => {
                out.u8(COMPACTED);
                out.varint(*version);
            }
            Reply::Tombstoned { changed } => {
                out.u8(TOMBSTONED);
                out.flag(*changed);
            }
            Reply::Marked { moved } => {
                out.u8(MARKED);
                out.varint((*moved).into());
            }
            Reply::Trimmed { events } => {
                out.u8(TRIMMED);
                out.varint(*events);
            }
            Reply::Restored { version } => {
                out.u8(RESTORED);
                out.varint(*version);
            }
            Reply::Refused(refusal) => {
                out.u8(REFUSED);
                write_refusal(&mut out, refusal);
            }
        }
        out.finish()
    }

    pub fn decode(bytes: Bytes) -> Result<Reply, CodecError> {
        let mut input = Reader::new(bytes, FORMAT)?;
        let reply = match input.u8()? {
            SETTLED => Reply::Settled {
                created: input.flag()?,
                changed: input.flag()?,
                description: read_description(&mut input)?,
            },
            APPENDED => read_appended(&mut input)?,
            COMPACTED => Reply::Compacted { version: input.varint()? },
            TOMBSTONED => Reply::Tombstoned { changed: input.flag()? },
            MARKED => Reply::Marked { moved: input.varint_u32()? },
            TRIMMED => Reply::Trimmed { events: input.varint()? },
            RESTORED => Reply::Restored { version: input.varint()? },
            REFUSED => Reply::Refused(read_refusal(&mut input)?),
            other => return Err(CodecError::UnknownOrdinal { what: "reply", value: other.into() }),
        };
        input.expect_end()?;
        Ok(reply)
    }
}

fn read_appended(input: &mut Reader) -> Result<Reply, CodecError> {
    let (first_seq, last_seq, version) = (input.varint()?, input.varint()?, input.varint()?);
    let deduped = input.flag()?;
    let count = input.count()?;
    let token_counts = (0..count).map(|_| input.varint_u32()).collect::<Result<_, _>>()?;
    Ok(Reply::Appended { first_seq, last_seq, version, token_counts, deduped })
}

fn write_description(out: &mut Writer, description: &Description) {
    out.varint(description.token_budget);
    out.fixed_u64(description.trigger_ratio.to_bits());
    out.bytes(&description.policy);
    out.bytes(&description.metadata);
    out.flag(description.status == Status::Tombstoned);
    out.varint(description.version);
    out.varint(description.last_seq);
    out.varint(description.created_at_ms);
    out.varint(description.updated_at_ms);
}

fn read_description(input: &mut Reader) -> Result<Description, CodecError> {
    Ok(Description {
        token_budget: input.varint()?,
        trigger_ratio: f64::from_bits(input.fixed_u64()?),
        policy: input.bytes()?,
        metadata: input.bytes()?,
        status: if input.flag()? { Status::Tombstoned } else { Status::Active },
        version: input.varint()?,
        last_seq: input.varint()?,
        created_at_ms: input.varint()?,
        updated_at_ms: input.varint()?,
    })
}

fn write_refusal(out: &mut Writer, refusal: &Refusal) {
    match refusal {
        Refusal::NotFound => out.u8(NOT_FOUND),
        Refusal::Conflict { expected, current } => {
            out.u8(CONFLICT);
            out.varint(*expected);
            out.varint(*current);
        }
        Refusal::Tombstoned => out.u8(IS_TOMBSTONED),
        Refusal::IdempotencyConflict => out.u8(IDEMPOTENCY_CONFLICT),
        Refusal::InvalidRange { message, covering } => {
            out.u8(INVALID_RANGE);
            out.bytes(message.as_bytes());
            out.flag(covering.is_some());
            if let Some((from, to)) = covering {
                out.varint(*from);
                out.varint(*to);
            }
        }
        Refusal::TooManySummaries => out.u8(TOO_MANY_SUMMARIES),
        Refusal::TooManyKeys { retry_after_ms } => {
            out.u8(TOO_MANY_KEYS);
            out.varint(*retry_after_ms);
        }
        Refusal::InvalidMetadata { message } => {
            out.u8(INVALID_METADATA);
            out.bytes(message.as_bytes());
        }
    }
}

fn read_refusal(input: &mut Reader) -> Result<Refusal, CodecError> {
    Ok(match input.u8()? {
        NOT_FOUND => Refusal::NotFound,
        CONFLICT => Refusal::Conflict { expected: input.varint()?, current: input.varint()? },
        IS_TOMBSTONED => Refusal::Tombstoned,
        IDEMPOTENCY_CONFLICT => Refusal::IdempotencyConflict,
        INVALID_RANGE => Refusal::InvalidRange {
            message: input.text()?.to_owned(),
            covering: if input.flag()? { Some((input.varint()?, input.varint()?)) } else { None },
        },
        TOO_MANY_SUMMARIES => Refusal::TooManySummaries,
        TOO_MANY_KEYS => Refusal::TooManyKeys { retry_after_ms: input.varint()? },
        INVALID_METADATA => Refusal::InvalidMetadata { message: input.text()?.to_owned() },
        other => return Err(CodecError::UnknownOrdinal { what: "refusal", value: other.into() }),
    })
}
