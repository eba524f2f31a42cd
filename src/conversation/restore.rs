//! Restoring a conversation: its versions written again as they were, piece by piece, with the stamps they had.
//!
//! A piece names the version it follows, and its keys how many there are before them, and is refused anywhere else, so that
//! sending one again does no harm. Archives keep no keys; nobody keeps metadata older than the newest.

use std::sync::Arc;

use bytes::Bytes;

use super::apply::{ChangeTo, Effects, Outside};
use super::codec::{CodecError, Reader, Writer};
use super::command::{FrameLocation, read_messages, read_some, write_messages, write_some};
use super::idempotency::{IdempotencyRecord, MAX_KEYS};
use super::message::{Location, NewMessage};
use super::policy::{Settings, read_settings, write_settings};
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

const CREATED: u8 = 0;
const EVENTS: u8 = 1;
const SETTINGS: u8 = 2;
const METADATA: u8 = 3;
const COMPACTION: u8 = 4;
const TOMBSTONED: u8 = 5;

impl Restore {
    /// All messages, in the order of their locations.
    pub fn messages(&self) -> impl Iterator<Item = &NewMessage> {
        self.versions.iter().flat_map(|version| match version {
            RestoredVersion::Events { messages, .. } => messages.as_slice(),
            RestoredVersion::Compaction { replacement, .. } => replacement,
            _ => &[],
        })
    }

    pub(super) fn write(&self, out: &mut Writer) {
        out.optional(self.after);
        out.count(self.versions.len());
        for version in &self.versions {
            match version {
                RestoredVersion::Created(settings) => {
                    out.u8(CREATED);
                    write_settings(out, settings);
                }
                RestoredVersion::Events { inserted_at_ms, messages } => {
                    out.u8(EVENTS);
                    out.varint(*inserted_at_ms);
                    write_messages(out, messages);
                }
                RestoredVersion::Settings(settings) => {
                    out.u8(SETTINGS);
                    write_settings(out, settings);
                }
                RestoredVersion::Metadata => out.u8(METADATA),
                RestoredVersion::Compaction { from_seq, to_seq, inserted_at_ms, replacement } => {
                    out.u8(COMPACTION);
                    out.varint(*from_seq);
                    out.varint(*to_seq);
                    out.varint(*inserted_at_ms);
                    write_messages(out, replacement);
                }
                RestoredVersion::Tombstoned => out.u8(TOMBSTONED),
            }
        }
        write_some(out, &self.end, |out, end| {
            out.bytes(&end.metadata);
            out.varint(end.updated_at_ms);
        });
        if let Some(RestoredKeys { after, keys }) = &self.keys {
            out.varint(*after);
            out.count(keys.len());
            for (key, record) in keys {
                out.raw(key);
                out.bytes(&record.encode());
            }
        }
    }

    /// `has_keys` says whether keys were written.
    pub(super) fn read(
        input: &mut Reader,
        has_keys: bool,
        base: FrameLocation,
        locations: &mut Vec<Location>,
    ) -> Result<Restore, CodecError> {
        let after = input.optional()?;
        let mut versions = Vec::new();
        for _ in 0..input.count()? {
            versions.push(match input.u8()? {
                CREATED => RestoredVersion::Created(read_settings(input)?),
                EVENTS => RestoredVersion::Events {
                    inserted_at_ms: input.varint()?,
                    messages: read_messages(input, base, locations)?,
                },
                SETTINGS => RestoredVersion::Settings(read_settings(input)?),
                METADATA => RestoredVersion::Metadata,
                COMPACTION => RestoredVersion::Compaction {
                    from_seq: input.varint()?,
                    to_seq: input.varint()?,
                    inserted_at_ms: input.varint()?,
                    replacement: read_messages(input, base, locations)?,
                },
                TOMBSTONED => RestoredVersion::Tombstoned,
                other => {
                    return Err(CodecError::UnknownOrdinal { what: "restored version", value: other.into() });
                }
            });
        }
        let end = read_some(input, |input| {
            Ok(RestoreEnd { metadata: input.bytes()?, updated_at_ms: input.varint()? })
        })?;
        let keys = if has_keys { Some(RestoredKeys::read(input)?) } else { None };
        Ok(Restore { after, versions, keys, end })
    }
}

impl RestoredKeys {
    fn read(input: &mut Reader) -> Result<RestoredKeys, CodecError> {
        let after = input.varint()?;
        let mut keys = Vec::new();
        for _ in 0..input.count()? {
            keys.push((input.digest()?, IdempotencyRecord::decode(input.bytes()?)?));
        }
        Ok(RestoredKeys { after, keys })
    }
}

/// Applies a piece. Everything is looked at before anything is changed.
pub(super) fn apply(
    conversation: &mut Option<Conversation>,
    index: u64,
    (id, now_ms): (&ConversationId, u64),
    restore: &Restore,
    mut locations: &[Location],
    outside: &dyn Outside,
) -> Result<Effects, HistoryError> {
    let current = conversation.as_ref();
    let version = current.map(Conversation::version);
    let held = current.map_or(0, |conversation| conversation.keys.len());
    let follows = restore.keys.as_ref().is_none_or(|keys| keys.after == held);
    if version != restore.after || !follows {
        return Ok(Effects::refused(match version {
            None => Refusal::NotFound,
            Some(current) => Refusal::Conflict { expected: restore.after.unwrap_or(0), current },
        }));
    }
    let checked = check(current, restore);
    if let Err(refusal) = checked.and_then(|after| check_keys(restore, after)) {
        return Ok(Effects::refused(refusal));
    }
    if is_any_known(id, restore, outside)? {
        return Ok(Effects::refused(invalid("a restored idempotency key is known already")));
    }
    let mut effects = Effects::reply(Reply::Restored { version: version.unwrap_or(0) });
    for version in &restore.versions {
        match (version, &mut *conversation) {
            (RestoredVersion::Created(settings), slot) => {
                let metadata = Bytes::from_static(b"{}");
                *slot = Some(Conversation::new(index, now_ms, settings.clone(), metadata));
            }
            (version, Some(conversation)) => {
                let at_ms = conversation.updated_at_ms;
                let mut change = ChangeTo { conversation, index, at_ms };
                change.restore(version, &mut locations, &mut effects);
            }
            (_, None) => unreachable!("checked: nothing but creation comes first"),
        }
    }
    if let Some(conversation) = conversation {
        if let Some(restored) = &restore.keys {
            effects.idempotency_put = conversation.keys.restore(&restored.keys);
            conversation.changed_index = index;
        }
        if let Some(end) = &restore.end {
            conversation.metadata = Bytes::copy_from_slice(&end.metadata);
            conversation.updated_at_ms = end.updated_at_ms;
            conversation.changed_index = index;
        }
        effects.reply = Reply::Restored { version: conversation.version };
        effects.changed = !restore.versions.is_empty() || restore.keys.is_some() || restore.end.is_some();
    }
    Ok(effects)
}

fn invalid(message: &str) -> Refusal {
    Refusal::InvalidRange { message: message.to_owned(), covering: None }
}

/// Creation comes first and only then; summaries fit the log as it is by then. Answers the last seq after the piece.
fn check(conversation: Option<&Conversation>, restore: &Restore) -> Result<u64, Refusal> {
    let mut last_seq = conversation.map_or(0, Conversation::last_seq);
    for (at, version) in restore.versions.iter().enumerate() {
        let creates = matches!(version, RestoredVersion::Created(_));
        if creates != (at == 0 && conversation.is_none()) {
            return Err(invalid("a restored conversation begins with its creation"));
        }
        match version {
            RestoredVersion::Events { messages, .. } => last_seq += messages.len() as u64,
            RestoredVersion::Compaction { from_seq, to_seq, .. }
                if *from_seq == 0 || from_seq > to_seq || *to_seq > last_seq =>
            {
                return Err(invalid("a restored summary does not lie within the log"));
            }
            _ => {}
        }
    }
    if conversation.is_none() && restore.versions.is_empty() {
        return Err(invalid("a restored conversation begins with its creation"));
    }
    Ok(last_seq)
}

/// Keys stand for events that are there, and are no more than a conversation may have.
fn check_keys(restore: &Restore, last_seq: u64) -> Result<(), Refusal> {
    let Some(RestoredKeys { after, keys }) = &restore.keys else { return Ok(()) };
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
    fn restore(&mut self, version: &RestoredVersion, locations: &mut &[Location], effects: &mut Effects) {
        let mut take = |count: usize| {
            let (taken, rest) = locations.split_at(count);
            *locations = rest;
            taken
        };
        match version {
            RestoredVersion::Created(_) => {}
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
                let range = (*from_seq, *to_seq);
                let sealed = self.summarise(range, replacement, take(replacement.len()));
                effects.sealed_changes.extend(sealed);
            }
            RestoredVersion::Tombstoned => {
                self.conversation.status = super::Status::Tombstoned;
                effects.sealed_changes.extend(self.record(ChangeKind::Tombstoned));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Harness, append, put, text};
    use super::super::{Action, CompactRange};
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
}
