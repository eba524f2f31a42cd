//! Idempotency keys: the newest 1,000 requests of a conversation and all younger than ten minutes are remembered.
//!
//! Keys are numbered in the order of their requests. The record keeps the range of numbers, the store the rest.

use bytes::Bytes;

use super::ConversationId;
use super::codec::{CodecError, Reader, Writer};
use super::reply::Refusal;
use super::runs::HistoryError;

/// Keys always kept.
pub const KEPT_KEYS: u64 = 1_000;
/// Younger keys than this are kept too ...
pub const KEPT_MS: u64 = 10 * 60 * 1_000;
/// ... up to this many in all, beyond which requests with new keys are refused for a while.
pub const MAX_KEYS: u64 = 100_000;
/// Old keys are removed this many at a time, so that most appends need not look for them.
const REMOVE_AT_ONCE: u64 = 64;

const FORMAT: u8 = 1;

/// What is remembered of a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct IdempotencyRecord {
    pub first_seq: u64,
    pub count: u32,
    /// The version its append left.
    pub version: u64,
    /// Digest of the request, to tell a repetition from another request under the same key.
    pub body: [u8; 16],
    pub at_ms: u64,
}

impl IdempotencyRecord {
    pub fn encode(&self) -> Bytes {
        let mut out = Writer::new(FORMAT, 40);
        out.varint(self.first_seq);
        out.varint(self.count.into());
        out.varint(self.version);
        out.raw(&self.body);
        out.varint(self.at_ms);
        out.finish()
    }

    pub fn decode(bytes: Bytes) -> Result<IdempotencyRecord, CodecError> {
        let mut input = Reader::new(bytes, FORMAT)?;
        let record = IdempotencyRecord {
            first_seq: input.varint()?,
            count: input.varint_u32()?,
            version: input.varint()?,
            body: input.digest()?,
            at_ms: input.varint()?,
        };
        input.expect_end()?;
        if record.first_seq == 0 || record.count == 0 {
            return Err(CodecError::Invalid("idempotency record"));
        }
        Ok(record)
    }
}

/// The remembered keys, as the store keeps them.
pub trait IdempotencyIndex {
    fn get(&self, id: &ConversationId, key: &[u8; 16]) -> Result<Option<IdempotencyRecord>, HistoryError>;
    /// The key with this number, and its record.
    fn nth(
        &self,
        id: &ConversationId,
        number: u64,
    ) -> Result<Option<([u8; 16], IdempotencyRecord)>, HistoryError>;
}

/// What remembering a request leaves to be done.
#[derive(Default)]
pub(super) struct Remembered {
    pub(super) put: Option<(u64, [u8; 16], IdempotencyRecord)>,
    pub(super) remove: Vec<(u64, [u8; 16])>,
}

/// The numbers of the keys kept.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct KeyWindow {
    first: u64,
    next: u64,
    /// When the oldest key came, or earlier.
    oldest_ms: u64,
}

impl KeyWindow {
    pub(super) fn numbers(&self) -> std::ops::Range<u64> {
        self.first..self.next
    }

    pub(super) fn len(&self) -> u64 {
        self.next - self.first
    }

    pub(super) fn is_empty(&self) -> bool {
        self.next == self.first
    }

    /// Counts one more key, unless there are too many, and decides which old ones to forget.
    pub(super) fn remember(
        &mut self,
        id: &ConversationId,
        key: [u8; 16],
        record: IdempotencyRecord,
        index: &dyn IdempotencyIndex,
    ) -> Result<Result<Remembered, Refusal>, HistoryError> {
        let mut after = self.clone();
        let remove = after.outdated(id, record.at_ms, index)?;
        if after.len() >= MAX_KEYS {
            let retry_after_ms = (after.oldest_ms + KEPT_MS + 1).saturating_sub(record.at_ms);
            return Ok(Err(Refusal::TooManyKeys { retry_after_ms }));
        }
        if after.is_empty() {
            after.oldest_ms = record.at_ms;
        }
        let number = after.next;
        after.next += 1;
        *self = after;
        Ok(Ok(Remembered { put: Some((number, key, record)), remove }))
    }

    /// Takes the oldest keys out that need not be kept at `now_ms`, once there are enough of them.
    fn outdated(
        &mut self,
        id: &ConversationId,
        now_ms: u64,
        index: &dyn IdempotencyIndex,
    ) -> Result<Vec<(u64, [u8; 16])>, HistoryError> {
        let mut removed = Vec::new();
        if self.len() < KEPT_KEYS + REMOVE_AT_ONCE || now_ms.saturating_sub(self.oldest_ms) <= KEPT_MS {
            return Ok(removed);
        }
        // Twice as many as may have come in since the last time, so that a surplus left by a burst shrinks.
        while self.len() >= KEPT_KEYS && (removed.len() as u64) < 2 * REMOVE_AT_ONCE {
            let missing =
                || HistoryError::Missing { what: "idempotency key", key: self.first, id: id.clone() };
            let (key, record) = index.nth(id, self.first)?.ok_or_else(missing)?;
            self.oldest_ms = record.at_ms;
            if now_ms.saturating_sub(record.at_ms) <= KEPT_MS {
                break;
            }
            removed.push((self.first, key));
            self.first += 1;
        }
        Ok(removed)
    }

    pub(super) fn write(&self, out: &mut Writer) {
        out.varint(self.first);
        out.varint(self.len());
        out.varint(self.oldest_ms);
    }

    pub(super) fn read(input: &mut Reader) -> Result<KeyWindow, CodecError> {
        let first = input.varint()?;
        let next = first.checked_add(input.varint()?).ok_or(CodecError::Invalid("idempotency keys"))?;
        Ok(KeyWindow { first, next, oldest_ms: input.varint()? })
    }
}
