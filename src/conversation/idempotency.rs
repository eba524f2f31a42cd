//! Idempotency keys: the newest 1,000 requests of a conversation and all younger than ten minutes are remembered.
//!
//! Keys are numbered in the order of their requests. The record keeps the range of numbers, the store the rest.

use bytes::Bytes;

use super::ConversationId;
use super::codec::{CodecError, Reader, Writer};
use super::reply::Refusal;
use super::runs::{HistoryError, MAX_COUNT};

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
        if record.first_seq == 0 || record.first_seq > MAX_COUNT || record.count == 0 {
            return Err(CodecError::Invalid("idempotency record"));
        }
        Ok(record)
    }
}

/// The remembered keys, as the store keeps them.
pub trait IdempotencyIndex {
    /// What is remembered of a key. Only for the command that is being applied: who reads has no use for it.
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
            let forgettable_ms = after.oldest_ms.saturating_add(KEPT_MS + 1);
            let retry_after_ms = forgettable_ms.saturating_sub(record.at_ms);
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

    /// Counts keys that another cluster remembered, in their order, and numbers them.
    pub(super) fn restore(
        &mut self,
        keys: &[([u8; 16], IdempotencyRecord)],
    ) -> Vec<(u64, [u8; 16], IdempotencyRecord)> {
        if let (true, Some((_, oldest))) = (self.is_empty(), keys.first()) {
            self.oldest_ms = oldest.at_ms;
        }
        let first = self.next;
        self.next += keys.len() as u64;
        (first..).zip(keys).map(|(number, (key, record))| (number, *key, *record)).collect()
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
        let kept = input.varint()?;
        if first > MAX_COUNT || kept > MAX_KEYS {
            return Err(CodecError::Invalid("idempotency keys"));
        }
        Ok(KeyWindow { first, next: first + kept, oldest_ms: input.varint()? })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[derive(Default)]
    struct Index(BTreeMap<u64, ([u8; 16], IdempotencyRecord)>);

    impl IdempotencyIndex for Index {
        fn get(&self, _: &ConversationId, _: &[u8; 16]) -> Result<Option<IdempotencyRecord>, HistoryError> {
            unreachable!("remembering asks by number only")
        }

        fn nth(
            &self,
            _: &ConversationId,
            number: u64,
        ) -> Result<Option<([u8; 16], IdempotencyRecord)>, HistoryError> {
            Ok(self.0.get(&number).copied())
        }
    }

    /// Remembers one more key at a time; keeps the index as a store would.
    fn remember(keys: &mut KeyWindow, index: &mut Index, at_ms: u64) -> Result<(), Refusal> {
        let id = ConversationId::parse("chat").unwrap();
        let record = IdempotencyRecord { first_seq: 1, count: 1, version: 1, body: [0; 16], at_ms };
        let remembered = keys.remember(&id, [7; 16], record, index).unwrap()?;
        let (number, key, record) = remembered.put.unwrap();
        assert_eq!(index.0.insert(number, (key, record)), None);
        for (number, key) in remembered.remove {
            assert_eq!(index.0.remove(&number).map(|(key, _)| key), Some(key));
        }
        assert!(index.0.keys().copied().eq(keys.numbers()));
        Ok(())
    }

    #[test]
    fn keeps_the_newest_thousand_and_all_of_ten_minutes() {
        let (mut keys, mut index) = (KeyWindow::default(), Index::default());
        // First one a second: ten minutes hold 600. Then ten a second: they hold 6,000.
        let times: Vec<u64> =
            (0..5_000).map(|n| n * 1_000).chain((0..20_000).map(|n| 5_000_000 + n * 100)).collect();
        for (number, now_ms) in times.iter().enumerate() {
            remember(&mut keys, &mut index, *now_ms).unwrap();
            let kept = keys.numbers();
            if let Some(forgotten) = kept.start.checked_sub(1) {
                assert!(keys.len() >= KEPT_KEYS);
                assert!(now_ms - times[forgotten as usize] > KEPT_MS);
            }
            let needed = KEPT_KEYS
                .max(times[..=number].iter().rev().take_while(|at| now_ms - *at <= KEPT_MS).count() as u64);
            assert!(keys.len() <= needed + 2 * REMOVE_AT_ONCE, "{} of {needed}", keys.len());
        }
    }

    #[test]
    fn refuses_beyond_the_bound_until_the_oldest_may_go() {
        let (mut keys, mut index) = (KeyWindow::default(), Index::default());
        let id = ConversationId::parse("chat").unwrap();
        let record = |at_ms| IdempotencyRecord { first_seq: 1, count: 1, version: 1, body: [0; 16], at_ms };
        for number in 0..MAX_KEYS {
            let remembered = keys.remember(&id, [0; 16], record(1_000 + number), &index).unwrap().unwrap();
            index.0.insert(number, ([0; 16], remembered.put.unwrap().2));
        }
        let before = keys.clone();
        let refused = keys.remember(&id, [0; 16], record(200_000), &index).unwrap().err();
        let retry_after_ms = 1_000 + KEPT_MS + 1 - 200_000;
        assert_eq!(refused, Some(Refusal::TooManyKeys { retry_after_ms }));
        assert_eq!(keys, before);
        let remembered =
            keys.remember(&id, [0; 16], record(200_000 + retry_after_ms), &index).unwrap().unwrap();
        assert_eq!(remembered.remove.len(), 1);
    }
}
