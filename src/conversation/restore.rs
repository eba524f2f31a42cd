//! Restoring a conversation: its versions written again as they were, piece by piece, with the stamps they had.
//!
//! A piece names the version it follows, and its keys how many there are before them, and is refused anywhere else, so that
//! sending one again does no harm. Archives keep no keys; nobody keeps metadata older than the newest.

use std::sync::Arc;

use bytes::Bytes;

use super::apply::{ChangeTo, Effects, Outside};
use super::command::CompactRange;
use super::idempotency::{IdempotencyRecord, MAX_KEYS};
use super::message::{Location, NewMessage};
use super::metadata;
use super::policy::Settings;
use super::reply::{Refusal, Reply};
use super::runs::{ChangeKind, HistoryError};
use super::{Conversation, ConversationId};

/// Versions that follow each other.
#[derive(Clone, PartialEq, Debug)]
pub struct Restore {
    /// The version they follow; `None` when the first of them creates the conversation.
    pub after: Option<u64>,
    pub versions: Vec<RestoredVersion>,
    pub keys: Option<RestoredKeys>,
    /// With the last piece: what the conversation was besides.
    pub end: Option<RestoreEnd>,
}

/// One version, or several events of one time.
#[derive(Clone, PartialEq, Debug)]
pub enum RestoredVersion {
    /// At the time of the command.
    Created(Arc<Settings>),
    Events {
        inserted_at_ms: u64,
        messages: Vec<NewMessage>,
    },
    Settings(Arc<Settings>),
    Metadata,
    Compaction {
        from_seq: u64,
        to_seq: u64,
        inserted_at_ms: u64,
        replacement: Vec<NewMessage>,
    },
    Tombstoned,
}

/// Idempotency keys in the order of their requests, which the versions up to here hold.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RestoredKeys {
    /// How many are restored before these.
    pub after: u64,
    pub keys: Vec<([u8; 16], IdempotencyRecord)>,
}

/// What no version tells.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RestoreEnd {
    /// A JSON object, as received.
    pub metadata: Bytes,
    pub updated_at_ms: u64,
}

impl Restore {
    /// All messages, in the order of their locations.
    pub fn messages(&self) -> impl Iterator<Item = &NewMessage> {
        self.versions.iter().flat_map(|version| match version {
            RestoredVersion::Events { messages, .. } => messages.as_slice(),
            RestoredVersion::Compaction { replacement, .. } => replacement,
            _ => &[],
        })
    }
}

/// Applies a piece, or refuses it as a whole.
pub(super) fn apply(
    conversation: Option<&mut Conversation>,
    index: u64,
    (id, now_ms): (&ConversationId, u64),
    restore: &Restore,
    locations: &[Location],
    outside: &dyn Outside,
) -> Result<Effects, HistoryError> {
    let current = conversation.as_deref();
    let version = current.map(Conversation::version);
    let held = current.map_or(0, |conversation| conversation.keys.len());
    let follows = restore.keys.as_ref().is_none_or(|keys| keys.after == held);
    if version != restore.after || !follows {
        return Ok(Effects::refused(match version {
            None => Refusal::NotFound,
            Some(current) => Refusal::Conflict { expected: restore.after.unwrap_or(0), current },
        }));
    }
    let mut effects = Effects::reply(Reply::Restored { version: version.unwrap_or(0) });
    // Of a copy: a piece that is refused in its middle leaves the conversation as it was.
    let restored = match restored(current.cloned(), (index, now_ms), restore, locations, &mut effects) {
        Ok(restored) => restored,
        Err(refusal) => return Ok(Effects::refused(refusal)),
    };
    if is_any_known(id, restore, outside)? {
        return Ok(Effects::refused(invalid("a restored idempotency key is known already")));
    }
    effects.reply = Reply::Restored { version: restored.version };
    effects.changed = !restore.versions.is_empty() || restore.keys.is_some() || restore.end.is_some();
    match conversation {
        Some(conversation) => *conversation = restored,
        None => effects.created = Some(Box::new(restored)),
    }
    Ok(effects)
}

/// The conversation after the piece, which is held to the rules that clients' commands are held to.
fn restored(
    conversation: Option<Conversation>,
    (index, now_ms): (u64, u64),
    restore: &Restore,
    mut locations: &[Location],
    effects: &mut Effects,
) -> Result<Conversation, Refusal> {
    let mut versions = restore.versions.iter();
    let mut conversation = match conversation {
        Some(conversation) => conversation,
        None => {
            let Some(RestoredVersion::Created(settings)) = versions.next() else { return Err(misplaced()) };
            Conversation::new(index, now_ms, settings.clone(), Bytes::from_static(b"{}"))
        }
    };
    for version in versions {
        let at_ms = conversation.updated_at_ms;
        let mut change = ChangeTo { conversation: &mut conversation, index, at_ms };
        change.restore(version, &mut locations, effects)?;
    }
    if let Some(keys) = &restore.keys {
        check_keys(keys, conversation.last_seq)?;
        effects.idempotency_put = conversation.keys.restore(&keys.keys);
        conversation.changed_index = index;
    }
    if let Some(end) = &restore.end {
        conversation.metadata = metadata::checked(&end.metadata)?;
        conversation.updated_at_ms = end.updated_at_ms;
        conversation.changed_index = index;
    }
    Ok(conversation)
}

fn invalid(message: &str) -> Refusal {
    Refusal::InvalidRange { message: message.to_owned(), covering: None }
}

fn misplaced() -> Refusal {
    invalid("a restored conversation begins with its creation")
}

/// Keys stand for events that are there, and are no more than a conversation may have.
fn check_keys(RestoredKeys { after, keys }: &RestoredKeys, last_seq: u64) -> Result<(), Refusal> {
    let is_there = |record: &IdempotencyRecord| record.first_seq + u64::from(record.count) - 1 <= last_seq;
    if !keys.iter().all(|(_, record)| is_there(record)) {
        return Err(invalid("a restored idempotency key stands for events that are not there"));
    }
    if after.saturating_add(keys.len() as u64) > MAX_KEYS {
        return Err(invalid("more idempotency keys are restored than a conversation may have"));
    }
    Ok(())
}

/// Whether a key is remembered already or comes twice: forgetting one of the two would lose the other.
fn is_any_known(id: &ConversationId, restore: &Restore, outside: &dyn Outside) -> Result<bool, HistoryError> {
    let Some(RestoredKeys { keys, .. }) = &restore.keys else { return Ok(false) };
    let mut sorted: Vec<&[u8; 16]> = keys.iter().map(|(key, _)| key).collect();
    sorted.sort_unstable();
    if sorted.windows(2).any(|pair| pair[0] == pair[1]) {
        return Ok(true);
    }
    for key in sorted {
        if outside.get(id, key)?.is_some() {
            return Ok(true);
        }
    }
    Ok(false)
}

impl ChangeTo<'_> {
    fn restore(
        &mut self,
        version: &RestoredVersion,
        locations: &mut &[Location],
        effects: &mut Effects,
    ) -> Result<(), Refusal> {
        let mut take = |count: usize| {
            let (taken, rest) = locations.split_at(count);
            *locations = rest;
            taken
        };
        match version {
            RestoredVersion::Created(_) => return Err(misplaced()),
            RestoredVersion::Events { inserted_at_ms, messages } => {
                self.at_ms = *inserted_at_ms;
                effects.sealed_events.extend(self.append_messages(messages, take(messages.len())));
            }
            RestoredVersion::Settings(settings) => {
                self.conversation.settings = settings.clone();
                effects.sealed_changes.extend(self.record(ChangeKind::Settings(settings.clone())));
            }
            RestoredVersion::Metadata => {
                effects.sealed_changes.extend(self.record(ChangeKind::Metadata));
            }
            RestoredVersion::Compaction { from_seq, to_seq, inserted_at_ms, replacement } => {
                self.at_ms = *inserted_at_ms;
                let range = CompactRange { from: Some(*from_seq), to: Some(*to_seq) };
                let range = self.compactable(range, replacement)?;
                let sealed = self.summarise(range, replacement, take(replacement.len()));
                effects.sealed_changes.extend(sealed);
            }
            RestoredVersion::Tombstoned => {
                self.conversation.status = super::Status::Tombstoned;
                effects.sealed_changes.extend(self.record(ChangeKind::Tombstoned));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::{Strategy, prop_oneof, proptest};

    use super::super::testing::{Harness, append, put, text};
    use super::super::{Action, MAX_SUMMARIES};
    use super::*;

    fn original() -> Harness {
        let mut real = Harness::new();
        real.apply(put());
        real.apply(append((0..140).map(text).collect()));
        let range = CompactRange { from: Some(3), to: Some(9) };
        real.apply(Action::Compact { range, replacement: vec![text(7)], if_version: None });
        real.apply(Action::PatchMetadata { patch: Bytes::from_static(br#"{"n":1.50}"#) });
        real.apply(Action::Tombstone);
        real
    }

    fn pieces(at_ms: u64) -> [Restore; 3] {
        let events = |from, to| RestoredVersion::Events {
            inserted_at_ms: at_ms,
            messages: (from..to).map(text).collect(),
        };
        let compaction = RestoredVersion::Compaction {
            from_seq: 3,
            to_seq: 9,
            inserted_at_ms: at_ms,
            replacement: vec![text(7)],
        };
        let end = RestoreEnd { metadata: Bytes::from_static(br#"{"n":1.50}"#), updated_at_ms: at_ms };
        let rest = vec![events(100, 140), compaction, RestoredVersion::Metadata, RestoredVersion::Tombstoned];
        [
            Restore {
                after: None,
                versions: vec![RestoredVersion::Created(Arc::default())],
                keys: None,
                end: None,
            },
            Restore { after: Some(0), versions: vec![events(0, 100)], keys: None, end: None },
            Restore { after: Some(100), versions: rest, keys: None, end: Some(end) },
        ]
    }

    #[test]
    fn what_is_restored_is_what_it_was() {
        let (real, mut restored) = (original(), Harness::new());
        for (piece, version) in pieces(real.now_ms).into_iter().zip([0, 100, 143]) {
            assert_eq!(restored.apply(Action::Restore(piece.clone())), Reply::Restored { version });
            // The same once more is told from what would follow.
            let again = restored.apply(Action::Restore(piece));
            assert!(matches!(again, Reply::Refused(Refusal::Conflict { current, .. }) if current == version));
        }
        let mut current = restored.current().clone();
        // When it was written is the cluster's own.
        current.changed_index = real.current().changed_index;
        assert_eq!(current.logical_digest(), real.current().logical_digest());
        assert_eq!(current.describe(), real.current().describe());
    }

    fn key(number: u8) -> ([u8; 16], IdempotencyRecord) {
        let record = IdempotencyRecord { first_seq: 1, count: 140, version: 140, body: [1; 16], at_ms: 5 };
        ([number; 16], record)
    }

    fn keys_piece(after: u64, keys: Vec<([u8; 16], IdempotencyRecord)>) -> Action {
        let keys = Some(RestoredKeys { after, keys });
        Action::Restore(Restore { after: Some(143), versions: Vec::new(), keys, end: None })
    }

    #[test]
    fn keys_are_known_again() {
        let mut restored = Harness::new();
        pieces(1).into_iter().for_each(|piece| drop(restored.apply(Action::Restore(piece))));
        let refused = |reply: Reply| assert!(matches!(reply, Reply::Refused(_)), "{reply:?}");
        let is_restored = |reply: Reply| assert_eq!(reply, Reply::Restored { version: 143 });
        refused(restored.apply(keys_piece(1, vec![key(1)])));
        is_restored(restored.apply(keys_piece(0, vec![key(1), key(2)])));
        // The same once more, a key that is known, one that comes twice, and one that stands for more than there is.
        refused(restored.apply(keys_piece(0, vec![key(1), key(2)])));
        refused(restored.apply(keys_piece(2, vec![key(2)])));
        refused(restored.apply(keys_piece(2, vec![key(3), key(3)])));
        let mut beyond = key(3);
        beyond.1.count = 141;
        refused(restored.apply(keys_piece(2, vec![beyond])));
        is_restored(restored.apply(keys_piece(2, vec![key(3)])));
        assert_eq!(restored.current().key_numbers(), 0..3);
        let again = |key: [u8; 16], body| Action::Append {
            messages: vec![text(1)],
            idempotency: Some(super::super::Idempotency { key, body }),
            if_version: None,
        };
        let known = restored.apply(again([3; 16], [1; 16]));
        assert!(matches!(known, Reply::Appended { first_seq: 1, last_seq: 140, deduped: true, .. }));
        let other = restored.apply(again([3; 16], [2; 16]));
        assert_eq!(other, Reply::Refused(Refusal::IdempotencyConflict));
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let mut restored = Harness::new();
        let [created, events, rest] = pieces(1);
        let refused = |reply: Reply| assert!(matches!(reply, Reply::Refused(_)), "{reply:?}");
        refused(restored.apply(Action::Restore(events)));
        refused(restored.apply(Action::Restore(Restore { after: None, ..rest.clone() })));
        refused(restored.apply(Action::Restore(Restore {
            after: None,
            versions: Vec::new(),
            keys: None,
            end: None,
        })));
        restored.apply(Action::Restore(created.clone()));
        refused(restored.apply(Action::Restore(Restore { after: Some(0), ..created })));
        let beyond = rest.versions[1].clone();
        refused(restored.apply(Action::Restore(Restore {
            after: Some(0),
            versions: vec![beyond],
            keys: None,
            end: None,
        })));
    }

    /// A conversation restored by one piece of these versions, and the answer.
    fn restored_by(versions: Vec<RestoredVersion>, metadata: &'static str) -> Reply {
        let created = RestoredVersion::Created(Arc::default());
        let versions = std::iter::once(created).chain(versions).collect();
        let end = RestoreEnd { metadata: Bytes::from_static(metadata.as_bytes()), updated_at_ms: 1 };
        Harness::new().apply(Action::Restore(Restore { after: None, versions, keys: None, end: Some(end) }))
    }

    fn events(count: usize) -> RestoredVersion {
        RestoredVersion::Events { inserted_at_ms: 1, messages: vec![text(1); count] }
    }

    fn compaction(from_seq: u64, to_seq: u64) -> RestoredVersion {
        RestoredVersion::Compaction { from_seq, to_seq, inserted_at_ms: 1, replacement: vec![text(1)] }
    }

    #[test]
    fn a_summary_that_cuts_another_is_refused() {
        let cut = restored_by(vec![events(20), compaction(1, 10), compaction(5, 15)], "{}");
        let Reply::Refused(Refusal::InvalidRange { covering, .. }) = cut else { panic!("{cut:?}") };
        assert_eq!(covering, Some((1, 10)));
        let around = restored_by(vec![events(20), compaction(5, 10), compaction(5, 15)], "{}");
        assert_eq!(around, Reply::Restored { version: 22 });
    }

    #[test]
    fn no_more_summaries_are_restored_than_a_conversation_may_have() {
        let with = |summaries: usize| {
            let single = (1..=summaries as u64).map(|seq| compaction(seq, seq));
            restored_by(std::iter::once(events(summaries)).chain(single).collect(), "{}")
        };
        assert_eq!(with(MAX_SUMMARIES), Reply::Restored { version: 2 * MAX_SUMMARIES as u64 });
        assert_eq!(with(MAX_SUMMARIES + 1), Reply::Refused(Refusal::TooManySummaries));
    }

    #[test]
    fn restored_metadata_is_an_object() {
        for metadata in ["", "[]", "{"] {
            let reply = restored_by(Vec::new(), metadata);
            assert!(matches!(reply, Reply::Refused(Refusal::InvalidMetadata { .. })), "{metadata:?}");
        }
    }

    fn version() -> impl Strategy<Value = RestoredVersion> {
        prop_oneof![
            2 => (1..90usize).prop_map(events),
            3 => (0..150u64, 0..60u64).prop_map(|(from, length)| compaction(from, from + length)),
        ]
    }

    /// What a client would send.
    fn command(version: &RestoredVersion) -> Action {
        match version {
            RestoredVersion::Events { messages, .. } => append(messages.clone()),
            RestoredVersion::Compaction { from_seq, to_seq, replacement, .. } => Action::Compact {
                range: CompactRange { from: Some(*from_seq), to: Some(*to_seq) },
                replacement: replacement.clone(),
                if_version: None,
            },
            other => unreachable!("{other:?} is not generated"),
        }
    }

    proptest! {
        /// Also that records decode again, and that a refusal changes nothing: the harness looks at both.
        #[test]
        fn a_restore_takes_what_clients_could_have_written(pieces in vec(vec(version(), 1..5), 1..12)) {
            let (mut client, mut restored) = (Harness::new(), Harness::new());
            client.apply(put());
            let created = vec![RestoredVersion::Created(Arc::default())];
            restored.apply(Action::Restore(Restore { after: None, versions: created, keys: None, end: None }));
            for versions in pieces {
                let replies: Vec<Reply> =
                    versions.iter().map(|version| client.apply(command(version))).collect();
                let after = Some(restored.current().version());
                let piece = Restore { after, versions, keys: None, end: None };
                let reply = restored.apply(Action::Restore(piece));
                if let Some(refused) = replies.iter().find(|reply| matches!(reply, Reply::Refused(_))) {
                    assert_eq!(&reply, refused);
                    break;
                }
                let ranges = |harness: &Harness| -> Vec<_> {
                    let summaries = harness.current().summaries().iter();
                    summaries.map(|summary| (summary.from_seq, summary.to_seq)).collect()
                };
                assert_eq!(reply, Reply::Restored { version: client.current().version() });
                assert_eq!(ranges(&restored), ranges(&client));
            }
        }
    }
}
