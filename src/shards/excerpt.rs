//! Excerpts of a conversation's history: what a backup keeps, made by whoever hosts the conversation.
//!
//! Following the cursors from the beginning brings every version up to one that the conversation had when the last
//! excerpt was made, with its metadata as of then and every idempotency key remembered then. Excerpts are kept in
//! backups, as MessagePack maps: what a newer version adds to them needs `#[serde(default)]`.

use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::cold::Cold;
use super::pieces::{Piece, Pieces};
use super::remote::wire::{self, Undecodable};
use super::{ReadError, StoredVersion, history};
use crate::conversation::{
    Action, Command, Conversation, ConversationId, HistoryError, MAX_KEYS, Outside, RestoreEnd, RestoredKeys,
    versions_from,
};
use crate::store::GroupStore;

/// Versions in one excerpt, and bytes of their bodies, about; at least one version.
const VERSIONS_MAX: usize = 1_000;
const BODY_BYTES: u64 = 4 << 20;
/// Idempotency keys in one excerpt: they are read under the group's lock.
const KEYS_MAX: usize = 1_000;

/// Part of a conversation's history as the commands that write it again.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Excerpt {
    pub id: String,
    pub commands: Vec<RestoringCommand>,
    /// Where the next excerpt begins; `None` when there was no more.
    pub next: Option<Cursor>,
}

/// An encoded [`Command`] that restores some versions.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RestoringCommand {
    /// The version it follows; `None` when it creates the conversation.
    pub after: Option<u64>,
    /// The version it leads to.
    pub upto: u64,
    /// [`digest_of_digests`](super::digest_of_digests) of the versions after `after`; the higher half comes first.
    pub digest: (u64, u64),
    /// How many idempotency keys it brings.
    pub keys: u64,
    pub command: Bytes,
}

/// A place in a conversation's history.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Cursor {
    /// The first version that is wanted.
    pub version: u64,
    /// The number of the first idempotency key that is wanted.
    pub key: u64,
    /// How many keys came before it.
    pub keys: u64,
}

impl Excerpt {
    pub fn encode(&self) -> Bytes {
        wire::encode(self)
    }

    /// # Errors
    /// A line for people, when these bytes are none of an excerpt.
    pub fn decode(bytes: &[u8]) -> Result<Excerpt, String> {
        wire::decode(bytes).map_err(|error: Undecodable| error.to_string())
    }
}

impl RestoringCommand {
    pub fn digest(&self) -> u128 {
        u128::from(self.digest.0) << 64 | u128::from(self.digest.1)
    }

    fn of(Piece { upto, digest, restore }: Piece, id: &ConversationId, created_at_ms: u64) -> Self {
        let (after, keys) = (restore.after, restore.keys.as_ref().map_or(0, |keys| keys.keys.len() as u64));
        let command = Command { id: id.clone(), now_ms: created_at_ms, action: Action::Restore(restore) };
        let digest = ((digest >> 64) as u64, digest as u64);
        Self { after, upto, digest, keys, command: command.encode() }
    }
}

pub(super) async fn read(
    store: &Arc<GroupStore>,
    cold: &Cold,
    id: &ConversationId,
    from: Cursor,
) -> Result<Option<Excerpt>, ReadError> {
    let reading = store.reading();
    let planned = store.read(id, |conversation, outside| {
        let first = from.version;
        let versions = versions_from(conversation, id, outside, first, VERSIONS_MAX, BODY_BYTES)?;
        let rest = Rest::of(conversation, id, outside, from, versions.len() as u64)?;
        Ok::<_, HistoryError>((versions, rest, conversation.created_at_ms()))
    })?;
    let Some(planned) = planned else { return Ok(None) };
    let (versions, rest, created_at_ms) = planned?;
    let versions = history::in_full(store, reading, cold, id, versions).await?;
    let id = id.clone();
    // Messages are looked at once more, which is work for longer than a request may hold up others.
    let made = tokio::task::spawn_blocking(move || excerpt(&id, created_at_ms, from.version, versions, rest));
    let made = made.await.map_err(|error| ReadError::Internal(format!("excerpt task: {error}")))?;
    made.map(Some).map_err(ReadError::Internal)
}

fn excerpt(
    id: &ConversationId,
    created_at_ms: u64,
    first: u64,
    versions: Vec<StoredVersion>,
    rest: Rest,
) -> Result<Excerpt, String> {
    let mut pieces = Pieces::new(first);
    for version in versions {
        let number = version.version;
        pieces.add(version).map_err(|error| format!("version {number} of {}: {error}", id.as_str()))?;
    }
    let pieces = pieces.finish(rest.keys, rest.end).into_iter();
    let commands = pieces.map(|piece| RestoringCommand::of(piece, id, created_at_ms)).collect();
    Ok(Excerpt { id: id.as_str().to_owned(), commands, next: rest.next })
}

/// What comes behind the versions of an excerpt.
struct Rest {
    keys: Option<RestoredKeys>,
    end: Option<RestoreEnd>,
    next: Option<Cursor>,
}

impl Rest {
    /// Keys follow the last version: they stand for events, which must be there.
    fn of(
        conversation: &Conversation,
        id: &ConversationId,
        outside: &dyn Outside,
        from: Cursor,
        versions: u64,
    ) -> Result<Rest, HistoryError> {
        let next = Cursor { version: from.version + versions, ..from };
        if next.version <= conversation.version() {
            return Ok(Rest { keys: None, end: None, next: Some(next) });
        }
        // Those that were forgotten meanwhile are not missed.
        let held = conversation.key_numbers();
        let first = from.key.max(held.start);
        // While a backup goes on more may come and go than may be held at once.
        let wanted = held.end.min(first.saturating_add(MAX_KEYS.saturating_sub(from.keys)));
        let upto = wanted.min(first.saturating_add(KEYS_MAX as u64));
        let mut keys = Vec::new();
        for number in first..upto {
            let missing = || HistoryError::Missing { what: "idempotency key", key: number, id: id.clone() };
            keys.push(outside.nth(id, number)?.ok_or_else(missing)?);
        }
        let count = keys.len() as u64;
        let keys = (count > 0).then_some(RestoredKeys { after: from.keys, keys });
        if upto < wanted {
            let next = Cursor { key: upto, keys: from.keys + count, ..next };
            return Ok(Rest { keys, end: None, next: Some(next) });
        }
        let end = RestoreEnd {
            metadata: conversation.metadata().clone(),
            updated_at_ms: conversation.updated_at_ms(),
        };
        Ok(Rest { keys, end: Some(end), next: None })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden_bytes() {
        let command = RestoringCommand {
            after: None,
            upto: 7,
            digest: (1, 2),
            keys: 3,
            command: Bytes::from_static(b"c"),
        };
        let next = Some(Cursor { version: 8, key: 9, keys: 10 });
        let excerpt = Excerpt { id: "a".to_owned(), commands: vec![command], next };
        let golden: &[u8] =
            b"\x83\xa2id\xa1a\xa8commands\x91\x85\xa5after\xc0\xa4upto\x07\xa6digest\x92\x01\x02\
            \xa4keys\x03\xa7command\xc4\x01c\xa4next\x83\xa7version\x08\xa3key\x09\xa4keys\x0a";
        assert_eq!(excerpt.encode(), golden);
        assert_eq!(Excerpt::decode(golden), Ok(excerpt));
        for len in 0..golden.len() {
            assert!(Excerpt::decode(&golden[..len]).is_err(), "{len}");
        }
    }
}
