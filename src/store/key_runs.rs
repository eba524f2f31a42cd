//! Idempotency keys in the index: neighbours by number share a record.
//!
//! A run is written anew when one of its keys comes or goes, which costs less than two records for each key: one under its
//! number, and one to find the number by. A conversation in memory knows the numbers (see [`super::known_keys`]).

use std::collections::BTreeMap;
use std::ops::Range;

use bytes::Bytes;

use super::known_keys::KeyDigest;
use crate::conversation::IdempotencyRecord;

/// Keys of a run. Persisted: a run holds the numbers from a multiple of this on.
const KEY_RUN: u64 = 32;

const VERSION: u8 = 1;

/// Keys and what is remembered of their requests, by number.
pub(super) type Keys = BTreeMap<u64, (KeyDigest, IdempotencyRecord)>;

/// What is remembered under a number; `None` for a number that was forgotten since.
pub(super) type Numbered = Option<(KeyDigest, IdempotencyRecord)>;

/// The run that a key with this number belongs to.
pub(super) fn key_run_of(number: u64) -> u64 {
    number / KEY_RUN
}

/// The runs that keys with these numbers belong to.
pub(super) fn key_runs_of(numbers: Range<u64>) -> Range<u64> {
    key_run_of(numbers.start)..numbers.end.div_ceil(KEY_RUN)
}

/// The numbers that belong to a run.
pub(super) fn numbers_of(run: u64) -> Range<u64> {
    run * KEY_RUN..(run + 1) * KEY_RUN
}

/// The remembered keys of a run, by their numbers.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct KeyRun {
    keys: Keys,
}

impl KeyRun {
    /// Takes in what became of its numbers.
    pub(super) fn follow(&mut self, changes: impl IntoIterator<Item = (u64, Numbered)>) {
        for (number, key) in changes {
            match key {
                Some(key) => self.keys.insert(number, key),
                None => self.keys.remove(&number),
            };
        }
    }

    pub(super) fn get(&self, number: u64) -> Option<&(KeyDigest, IdempotencyRecord)> {
        self.keys.get(&number)
    }

    /// No bytes if there are no keys.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        if !self.keys.is_empty() {
            out.push(VERSION);
        }
        for (number, (digest, record)) in &self.keys {
            let record = record.encode();
            out.push((number % KEY_RUN) as u8);
            out.extend_from_slice(digest);
            out.push(record.len() as u8);
            out.extend_from_slice(&record);
        }
        out
    }

    /// Decodes the run with this number.
    pub(super) fn decode(run: u64, bytes: &Bytes) -> Option<Self> {
        let mut rest = match bytes.split_first() {
            None => return Some(Self::default()),
            Some((&VERSION, rest)) => rest,
            Some(_) => return None,
        };
        let mut keys = Keys::new();
        while let Some((&offset, tail)) = rest.split_first() {
            let (digest, tail) = tail.split_first_chunk::<16>()?;
            let (&len, tail) = tail.split_first()?;
            let (record, tail) = tail.split_at_checked(len.into())?;
            let record = IdempotencyRecord::decode(bytes.slice_ref(record)).ok()?;
            let number = run.checked_mul(KEY_RUN)?.checked_add(offset.into())?;
            let is_again = keys.insert(number, (*digest, record)).is_some();
            if is_again || key_run_of(number) != run {
                return None;
            }
            rest = tail;
        }
        Some(Self { keys })
    }
}

impl IntoIterator for KeyRun {
    type Item = (u64, (KeyDigest, IdempotencyRecord));
    type IntoIter = std::collections::btree_map::IntoIter<u64, (KeyDigest, IdempotencyRecord)>;

    fn into_iter(self) -> Self::IntoIter {
        self.keys.into_iter()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn record(version: u64) -> IdempotencyRecord {
        IdempotencyRecord { first_seq: 1, count: 1, version, body: [3; 16], at_ms: u64::MAX }
    }

    proptest! {
        #[test]
        fn survives_a_round_trip(
            run in 0..1_u64 << 40,
            keys in proptest::collection::btree_map(0..KEY_RUN, (any::<[u8; 16]>(), any::<u64>()), 0..40),
        ) {
            let mut whole = KeyRun::default();
            whole.follow(keys.into_iter().map(|(n, (digest, version))| {
                (run * KEY_RUN + n, Some((digest, record(version))))
            }));
            prop_assert_eq!(KeyRun::decode(run, &whole.encode().into()), Some(whole));
        }

        #[test]
        fn arbitrary_bytes_never_panic(run in any::<u64>(), bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = KeyRun::decode(run, &bytes.into());
        }
    }

    #[test]
    fn every_number_has_its_run() {
        for numbers in [0..0, 0..1, 31..32, 31..33, 32..33, 64..200] {
            let runs = key_runs_of(numbers.clone());
            assert!(numbers.clone().all(|number| runs.contains(&key_run_of(number))));
            assert!(runs.clone().all(|run| numbers_of(run).any(|number| numbers.contains(&number))));
        }
        assert_eq!(key_runs_of(40..40).count(), 1);
    }

    #[test]
    fn what_is_forgotten_goes() {
        let mut run = KeyRun::default();
        run.follow([(32, Some(([1; 16], record(1)))), (33, Some(([2; 16], record(2))))]);
        run.follow([(32, None), (40, None)]);
        assert_eq!(run.get(32), None);
        assert_eq!(run.get(33), Some(&([2; 16], record(2))));
        run.follow([(33, None)]);
        assert_eq!(run, KeyRun::default());
    }

    #[test]
    fn a_run_takes_one_chunk() {
        let mut run = KeyRun::default();
        let large = IdempotencyRecord { first_seq: 1 << 40, count: u32::MAX, version: u64::MAX, ..record(0) };
        run.follow((0..KEY_RUN).map(|number| (number, Some(([7; 16], large)))));
        assert!(run.encode().len() <= super::super::value::CHUNK_BYTES);
    }

    #[test]
    fn golden_bytes() {
        let mut run = KeyRun::default();
        run.follow([(65, Some(([9; 16], record(300))))]);
        let mut expected = vec![1, 1];
        expected.extend_from_slice(&[9; 16]);
        expected.extend_from_slice(&[31, 1, 1, 1, 0xAC, 2]);
        expected.extend_from_slice(&[3; 16]);
        expected.extend_from_slice(&[0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 1]);
        assert_eq!(run.encode(), expected);
        assert_eq!(KeyRun::decode(2, &expected.into()), Some(run));
    }
}
