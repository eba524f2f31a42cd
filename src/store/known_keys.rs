//! Which idempotency keys a conversation in memory has, and under which numbers, once one was looked up. Nearly every key
//! that comes is a new one: known to be, it needs no look into the index, which would wait for a checkpoint that is
//! writing there.

use std::collections::HashMap;

use crate::conversation::Effects;

pub(super) type KeyDigest = [u8; 16];

/// The keys of one conversation.
#[derive(Default)]
pub(super) struct KnownKeys {
    /// All there are, once somebody asked.
    numbers: Option<HashMap<KeyDigest, u64>>,
}

impl KnownKeys {
    /// Those of a conversation that has none.
    pub(super) fn none() -> Self {
        Self { numbers: Some(HashMap::new()) }
    }

    /// Has all keys read, unless they are known.
    pub(super) fn learn<E>(
        &mut self,
        read: impl FnOnce() -> Result<HashMap<KeyDigest, u64>, E>,
    ) -> Result<(), E> {
        if self.numbers.is_none() {
            self.numbers = Some(read()?);
        }
        Ok(())
    }

    /// `None` while they are not known.
    pub(super) fn numbers(&self) -> Option<&HashMap<KeyDigest, u64>> {
        self.numbers.as_ref()
    }

    /// Takes in what a command did.
    pub(super) fn follow(&mut self, effects: &Effects) {
        let Some(numbers) = &mut self.numbers else { return };
        for (_, key) in &effects.idempotency_remove {
            numbers.remove(key);
        }
        numbers.extend(effects.idempotency_put.iter().map(|(number, key, _)| (*key, *number)));
    }

    pub(super) fn heap_bytes(&self) -> usize {
        const ENTRY_BYTES: usize = size_of::<(KeyDigest, u64)>() + 1;
        self.numbers.as_ref().map_or(0, |numbers| numbers.capacity() * ENTRY_BYTES)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::super::testing::Fixture;
    use super::*;
    use crate::conversation::{KEPT_KEYS, KEPT_MS};

    #[test]
    fn keys_are_read_once() {
        let mut keys = KnownKeys::default();
        assert_eq!(keys.learn(|| Err(())), Err(()));
        assert!(keys.numbers().is_none());
        keys.learn(|| Ok::<_, ()>([([1; 16], 7)].into())).unwrap();
        keys.learn(|| Err(())).unwrap();
        assert_eq!(keys.numbers().unwrap()[&[1; 16]], 7);
        KnownKeys::none().learn(|| Err(())).unwrap();
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn a_key_counts_once_wherever_it_is_kept(
            steps in proptest::collection::vec((0..2_usize, 0..90_u64, 0..12_u8), 1..400),
            records in prop_oneof![Just(0), Just(1 << 20)],
        ) {
            let mut fixture = Fixture::new(records);
            let mut expected: HashMap<(usize, u64), u64> = HashMap::new();
            (0..2).for_each(|name| fixture.put(name));
            for (name, key, other) in steps {
                if other == 0 {
                    fixture.store.checkpoint().unwrap();
                }
                let (deduped, seq) = fixture.append(name, key);
                let first = expected.get(&(name, key)).copied();
                prop_assert_eq!(deduped, first.is_some());
                prop_assert_eq!(seq, *expected.entry((name, key)).or_insert(seq));
            }
        }
    }

    #[test]
    fn a_forgotten_key_is_new_again() {
        for records in [0, 1 << 20] {
            let mut fixture = Fixture::new(records);
            fixture.put(0);
            let last = (0..2 * KEPT_KEYS).map(|key| fixture.append(0, key)).last();
            assert_eq!(last, Some((false, 2 * KEPT_KEYS)));
            fixture.store.checkpoint().unwrap();
            fixture.now_ms += KEPT_MS + 2;
            assert_eq!(fixture.append(0, 5_000), (false, 2 * KEPT_KEYS + 1));
            assert_eq!(fixture.append(0, 0), (false, 2 * KEPT_KEYS + 2));
            assert_eq!(fixture.append(0, 0), (true, 2 * KEPT_KEYS + 2));
            assert_eq!(fixture.append(0, 2 * KEPT_KEYS - 1), (true, 2 * KEPT_KEYS));
        }
    }
}
