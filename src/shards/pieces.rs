//! A conversation's versions as the commands that write them again: what archives and backups are restored by.

use serde_json::value::RawValue;
use xxhash_rust::xxh3::Xxh3;

use super::{StoredKind, StoredMessage, StoredVersion};
use crate::conversation::{
    NewMessage, PartMeta, Restore, RestoreEnd, RestoredKeys, RestoredVersion, RoleKind, Settings,
    inspect_part,
};

/// Bytes of one piece, about, unless a single version is larger. Encoded, with keys and metadata, it must fit into the
/// smallest segment of a journal (1 MiB) that a cluster may have which is made of it.
const PIECE_BYTES: usize = 256 << 10;
/// What a message or another version takes besides its JSON.
const VERSION_BYTES: usize = 32;
/// What counting the tokens of a part adds to it.
const PART_BYTES: usize = 24;

/// Some versions as what restores them.
#[derive(Debug, Clone, PartialEq)]
pub struct Piece {
    /// The last of the versions, or the one they follow when there are none.
    pub upto: u64,
    /// Of the versions' own digests, see [`digest_of_digests`].
    pub digest: u128,
    pub restore: Restore,
}

/// Versions cut into pieces of bearable size.
#[derive(Debug)]
pub struct Pieces {
    done: Vec<Piece>,
    after: Option<u64>,
    versions: Vec<RestoredVersion>,
    /// Of the versions in `versions`, where events of one time are together.
    digests: Vec<u128>,
    bytes: usize,
}

impl Pieces {
    /// Nothing yet, of versions from `first` on.
    pub fn new(first: u64) -> Self {
        let after = first.checked_sub(1);
        Self { done: Vec::new(), after, versions: Vec::new(), digests: Vec::new(), bytes: 0 }
    }

    /// Takes the next version.
    ///
    /// # Errors
    /// When its messages cannot be read as such.
    pub fn add(&mut self, version: StoredVersion) -> Result<(), String> {
        let digest = version.digest();
        let (restored, bytes) = restored(version.kind)?;
        if self.bytes + bytes > PIECE_BYTES && !self.versions.is_empty() {
            self.cut(None, None);
        }
        self.bytes += bytes;
        self.digests.push(digest);
        match (restored, self.versions.last_mut()) {
            (
                RestoredVersion::Events { inserted_at_ms, messages },
                Some(RestoredVersion::Events { inserted_at_ms: at, messages: before }),
            ) if *at == inserted_at_ms => before.extend(messages),
            (restored, _) => self.versions.push(restored),
        }
        Ok(())
    }

    fn cut(&mut self, keys: Option<RestoredKeys>, end: Option<RestoreEnd>) {
        let versions = std::mem::take(&mut self.versions);
        let digests = std::mem::take(&mut self.digests);
        let first = self.after.map_or(0, |after| after + 1);
        let upto = (first + digests.len() as u64).saturating_sub(1);
        let restore = Restore { after: self.after, versions, keys, end };
        self.done.push(Piece { upto, digest: digest_of_digests(digests), restore });
        (self.after, self.bytes) = (Some(upto), 0);
    }

    /// The pieces; keys and end come with the last.
    pub fn finish(mut self, keys: Option<RestoredKeys>, end: Option<RestoreEnd>) -> Vec<Piece> {
        if !self.versions.is_empty() || keys.is_some() || end.is_some() {
            self.cut(keys, end);
        }
        self.done
    }
}

/// Tells sequences of versions apart by their digests.
pub fn digest_of_digests(digests: impl IntoIterator<Item = u128>) -> u128 {
    let mut hasher = Xxh3::new();
    digests.into_iter().for_each(|digest| hasher.update(&digest.to_be_bytes()));
    hasher.digest128()
}

/// The version as a command writes it, and about the bytes it takes.
fn restored(kind: StoredKind) -> Result<(RestoredVersion, usize), String> {
    Ok(match kind {
        StoredKind::Created(settings) => {
            let bytes = settings_bytes(&settings);
            (RestoredVersion::Created(settings), bytes)
        }
        StoredKind::Settings(settings) => {
            let bytes = settings_bytes(&settings);
            (RestoredVersion::Settings(settings), bytes)
        }
        StoredKind::Metadata => (RestoredVersion::Metadata, VERSION_BYTES),
        StoredKind::Tombstoned => (RestoredVersion::Tombstoned, VERSION_BYTES),
        StoredKind::Event { message, .. } => {
            let inserted_at_ms = message.inserted_at_ms;
            let messages = vec![new_message(message)?];
            let bytes = messages_bytes(&messages);
            (RestoredVersion::Events { inserted_at_ms, messages }, bytes)
        }
        StoredKind::Compaction { from_seq, to_seq, replacement } => {
            let inserted_at_ms = replacement.first().map_or(0, |message| message.inserted_at_ms);
            let replacement = replacement.into_iter().map(new_message).collect::<Result<Vec<_>, _>>()?;
            let bytes = VERSION_BYTES + messages_bytes(&replacement);
            (RestoredVersion::Compaction { from_seq, to_seq, inserted_at_ms, replacement }, bytes)
        }
    })
}

fn settings_bytes(settings: &Settings) -> usize {
    VERSION_BYTES + settings.policy.json().len()
}

fn messages_bytes(messages: &[NewMessage]) -> usize {
    let bytes = |message: &NewMessage| VERSION_BYTES + message.body.len() + message.parts.len() * PART_BYTES;
    messages.iter().map(bytes).sum()
}

#[derive(serde::Deserialize)]
struct Body<'a> {
    role: String,
    #[serde(borrow)]
    parts: Vec<&'a RawValue>,
}

fn new_message(message: StoredMessage) -> Result<NewMessage, String> {
    let object = [b"{".as_slice(), &message.body, b"}"].concat();
    let body: Body<'_> = serde_json::from_slice(&object).map_err(|error| error.to_string())?;
    // Of a single text part the share is the whole.
    let tokens = message.part_tokens.unwrap_or_else(|| vec![(message.token_count, 0); body.parts.len()]);
    if tokens.len() != body.parts.len() {
        return Err("a message has another number of parts than counts of tokens".to_owned());
    }
    let parts = body.parts.iter().zip(tokens).map(|(part, (tokens, marker_tokens))| {
        let facts = inspect_part(part.get()).map_err(|error| error.to_string())?;
        Ok(PartMeta { kind: facts.kind, tokens, marker_tokens, tool: facts.tool })
    });
    Ok(NewMessage {
        role: RoleKind::of(&body.role),
        parts: parts.collect::<Result<_, String>>()?,
        token_count: message.token_count,
        body: message.body,
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bytes::Bytes;

    use super::*;
    use crate::conversation::{Action, Command, ConversationId, MAX_POLICY_BYTES, Policy};

    fn event(version: u64, at: u64, len: usize) -> StoredVersion {
        let body = format!(
            r#""role":"user","parts":[{{"type":"text","text":"{}"}}],"metadata":{{}}"#,
            "x".repeat(len)
        );
        let message =
            StoredMessage { body: body.into(), token_count: 5, inserted_at_ms: at, part_tokens: None };
        StoredVersion { version, kind: StoredKind::Event { seq: version, message } }
    }

    #[test]
    fn pieces_follow_each_other() {
        let mut pieces = Pieces::new(0);
        pieces.add(StoredVersion { version: 0, kind: StoredKind::Created(Arc::default()) }).unwrap();
        for version in 1..=3 {
            pieces.add(event(version, 7, 10)).unwrap();
        }
        pieces.add(event(4, 8, PIECE_BYTES)).unwrap();
        pieces.add(event(5, 8, 10)).unwrap();
        let end = RestoreEnd { metadata: Bytes::from_static(b"{}"), updated_at_ms: 9 };
        let digests: Vec<u128> =
            (1..=3).map(|version| event(version, 7, 10)).map(|version| version.digest()).collect();
        let done = pieces.finish(None, Some(end.clone()));
        let shape = |Piece { upto, restore, .. }: &Piece| {
            (restore.after, *upto, restore.versions.len(), restore.messages().count())
        };
        let shapes: Vec<_> = done.iter().map(shape).collect();
        assert_eq!(shapes, [(None, 3, 2, 3), (Some(3), 4, 1, 1), (Some(4), 5, 1, 1)]);
        assert_eq!(done[2].restore.end, Some(end));
        assert_eq!(done[0].restore.end, None);
        let created = StoredVersion { version: 0, kind: StoredKind::Created(Arc::default()) }.digest();
        assert_eq!(done[0].digest, digest_of_digests([created].into_iter().chain(digests)));
    }

    /// Whatever versions are made of: small messages of many parts, and long policies.
    #[test]
    fn pieces_fit_into_the_smallest_segment() {
        let policy = format!(r#"{{"strategy":"manual"{}}}"#, " ".repeat(MAX_POLICY_BYTES - 40));
        let policy = Policy::parse(policy.into()).unwrap();
        let settings = Arc::new(Settings { policy, ..Settings::default() });
        let part = r#"{"type":"a"}"#;
        let parts = vec![part; 1_000];
        let body = format!(r#""role":"user","parts":[{}],"metadata":{{}}"#, parts.join(","));
        let message = StoredMessage {
            body: body.into(),
            token_count: u32::MAX,
            inserted_at_ms: 7,
            part_tokens: Some(vec![(u32::MAX, u32::MAX); parts.len()]),
        };
        let mut pieces = Pieces::new(0);
        pieces.add(StoredVersion { version: 0, kind: StoredKind::Created(settings.clone()) }).unwrap();
        for version in 1..=400 {
            let kind = match version % 2 {
                0 => StoredKind::Settings(settings.clone()),
                _ => StoredKind::Event { seq: version / 2 + 1, message: message.clone() },
            };
            pieces.add(StoredVersion { version, kind }).unwrap();
        }
        let done = pieces.finish(None, None);
        assert!(done.len() > 10);
        for piece in done {
            let id = ConversationId::parse("a").unwrap();
            let encoded = Command { id, now_ms: 7, action: Action::Restore(piece.restore) }.encode();
            assert!(encoded.len() < 2 * PIECE_BYTES, "{}", encoded.len());
        }
    }

    #[test]
    fn what_follows_no_version_is_a_piece_too() {
        let keys = RestoredKeys { after: 9, keys: Vec::new() };
        let done = Pieces::new(7).finish(Some(keys.clone()), None);
        assert_eq!((done.len(), done[0].upto, done[0].restore.after), (1, 6, Some(6)));
        assert_eq!(done[0].restore.keys, Some(keys));
        assert_eq!(Pieces::new(7).finish(None, None), []);
    }
}
