//! Which idempotency keys a conversation in memory has. Nearly every key that comes is a new one: known to be, it needs no
//! look into the index, which would wait for a checkpoint that is writing there.

use std::collections::HashSet;

use crate::conversation::Effects;

pub(super) type KeyDigest = [u8; 16];

/// Keys read from the index in passing for the cost of looking one up.
const READ_PER_LOOKUP: u64 = 32;
/// A conversation with more keys is not read for them: that would hold up its group for too long.
const READ_MAX: u64 = 4_096;

/// The keys of one conversation.
#[derive(Default)]
pub(super) struct KnownKeys {
    /// All there are, once that is known.
    all: Option<HashSet<KeyDigest>>,
    /// How many were asked for while it was not.
    lookups: u64,
}

impl KnownKeys {
    /// Those of a conversation that has none.
    pub(super) fn none() -> Self {
        Self { all: Some(HashSet::new()), lookups: 0 }
    }

    /// Whether a conversation with `count` keys is known not to have this one. Has all of them read once that costs no more
    /// than the lookups so far.
    pub(super) fn lack<E>(
        &mut self,
        key: &KeyDigest,
        count: u64,
        read: impl FnOnce() -> Result<HashSet<KeyDigest>, E>,
    ) -> Result<bool, E> {
        if self.all.is_none() {
            self.lookups += 1;
            if count > READ_MAX.min(self.lookups * READ_PER_LOOKUP) {
                return Ok(false);
            }
            self.all = Some(read()?);
        }
        Ok(self.all.as_ref().is_some_and(|all| !all.contains(key)))
    }

    /// Takes in what a command did.
    pub(super) fn follow(&mut self, effects: &Effects) {
        let Some(all) = &mut self.all else { return };
        for (_, key) in &effects.idempotency_remove {
            all.remove(key);
        }
        all.extend(effects.idempotency_put.iter().map(|(_, key, _)| *key));
    }

    pub(super) fn heap_bytes(&self) -> usize {
        self.all.as_ref().map_or(0, |all| all.capacity() * (size_of::<KeyDigest>() + 1))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::super::testing::Fixture;
    use super::*;
    use crate::conversation::{Action, Idempotency, KEPT_KEYS, KEPT_MS, NewMessage, Reply, RoleKind};

    const HERE: KeyDigest = [1; 16];
    const NEW: KeyDigest = [2; 16];

    fn unread() -> Result<HashSet<KeyDigest>, ()> {
        Err(())
    }

    #[test]
    fn a_conversation_that_began_without_keys_needs_no_reading() {
        let mut keys = KnownKeys::none();
        assert_eq!(keys.lack(&NEW, 0, unread), Ok(true));
    }

    #[test]
    fn all_keys_are_read_once_lookups_would_have_cost_as_much() {
        let mut keys = KnownKeys::default();
        for _ in 0..31 {
            assert_eq!(keys.lack(&NEW, 1_000, unread), Ok(false));
        }
        assert_eq!(keys.lack(&NEW, 1_000, || Ok::<_, ()>([HERE].into())), Ok(true));
        assert_eq!(keys.lack(&HERE, 1_000, unread), Ok(false));
    }

    #[test]
    fn very_many_keys_are_never_read() {
        let mut keys = KnownKeys::default();
        for _ in 0..10_000 {
            assert_eq!(keys.lack(&NEW, READ_MAX + 1, unread), Ok(false));
        }
    }

    impl Fixture {
        fn put(&mut self, name: usize) {
            let action =
                Action::Put { token_budget: None, trigger_ratio: None, policy: None, metadata: None };
            self.command(&format!("c{name}"), action);
        }

        /// Appends under a key; whether that was done before, and the message's seq.
        fn append(&mut self, name: usize, key: u64) -> (bool, u64) {
            let body = r#""role":"user","parts":[],"metadata":{}"#;
            let message =
                NewMessage { body: body.into(), token_count: 1, role: RoleKind::User, parts: Vec::new() };
            let digest = u128::from(key).to_le_bytes();
            let idempotency = Some(Idempotency { key: digest, body: digest });
            let action = Action::Append { messages: vec![message], idempotency, if_version: None };
            match self.command(&format!("c{name}"), action) {
                Reply::Appended { first_seq, deduped, .. } => (deduped, first_seq),
                other => panic!("{other:?}"),
            }
        }
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
