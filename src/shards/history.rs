//! The versions of a conversation in full, bodies included: what an archive keeps and a restore brings back.

use std::sync::Arc;

use bytes::Bytes;
use xxhash_rust::xxh3::Xxh3;

use super::ReadError;
use super::cold::Cold;
use super::here::read_bodies;
use super::room::Taken;
use crate::conversation::{
    ChangeKind, ConversationId, Description, HistoryError, Location, MessageMeta, Settings, Version,
    VersionKind, version_after_event, versions_from,
};
use crate::store::{GroupStore, Reading};

/// Begins the bytes that [`StoredVersion::digest`] is made of. Digests are kept in archives.
const DIGEST_FORMAT: u8 = 1;

/// A message with its bytes and everything that was stamped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredMessage {
    /// The members of a JSON object without its braces.
    pub body: Bytes,
    pub token_count: u32,
    pub inserted_at_ms: u64,
    /// Tokens of each part and of the marker that may stand for it; `None` for one `text` part.
    pub part_tokens: Option<Vec<(u32, u32)>>,
}

/// One version of a conversation.
#[derive(Debug, Clone, PartialEq)]
pub struct StoredVersion {
    pub version: u64,
    pub kind: StoredKind,
}

/// What a version is.
#[derive(Debug, Clone, PartialEq)]
pub enum StoredKind {
    /// Version 0.
    Created(Arc<Settings>),
    Event {
        seq: u64,
        message: StoredMessage,
    },
    Settings(Arc<Settings>),
    /// Earlier metadata is not kept: the newest is the conversation's.
    Metadata,
    Compaction {
        from_seq: u64,
        to_seq: u64,
        replacement: Vec<StoredMessage>,
    },
    Tombstoned,
}

/// Consecutive versions of a conversation, and what it was when they were read.
#[derive(Debug, Clone)]
pub struct HistoryPage {
    pub description: Description,
    pub archived_version: Option<u64>,
    pub versions: Vec<StoredVersion>,
}

/// How much of a history is read at once.
#[derive(Debug, Clone, Copy)]
pub struct HistoryLimits {
    pub versions: usize,
    /// About; at least one version is read.
    pub bytes: u64,
}

impl StoredVersion {
    /// Tells versions of one number apart. It covers every byte that a restore brings back.
    pub fn digest(&self) -> u128 {
        let mut hasher = Digest(Xxh3::new());
        hasher.0.update(&[DIGEST_FORMAT]);
        hasher.number(self.version);
        match &self.kind {
            StoredKind::Created(settings) => hasher.tag(0).settings(settings),
            StoredKind::Event { seq, message } => {
                hasher.tag(1).number(*seq);
                hasher.message(message);
            }
            StoredKind::Settings(settings) => hasher.tag(2).settings(settings),
            StoredKind::Metadata => {
                hasher.tag(3);
            }
            StoredKind::Compaction { from_seq, to_seq, replacement } => {
                hasher.tag(4).number(*from_seq);
                hasher.number(*to_seq);
                hasher.number(replacement.len() as u64);
                replacement.iter().for_each(|message| hasher.message(message));
            }
            StoredKind::Tombstoned => {
                hasher.tag(5);
            }
        }
        hasher.0.digest128()
    }
}

struct Digest(Xxh3);

impl Digest {
    fn tag(&mut self, tag: u8) -> &mut Self {
        self.0.update(&[tag]);
        self
    }

    fn number(&mut self, number: u64) {
        self.0.update(&number.to_le_bytes());
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.number(bytes.len() as u64);
        self.0.update(bytes);
    }

    fn settings(&mut self, settings: &Settings) {
        self.number(settings.token_budget);
        self.number(settings.trigger_ratio.to_bits());
        self.bytes(settings.policy.json());
    }

    fn message(&mut self, message: &StoredMessage) {
        self.bytes(&message.body);
        self.number(message.token_count.into());
        self.number(message.inserted_at_ms);
        match &message.part_tokens {
            None => {
                self.tag(0);
            }
            Some(parts) => {
                self.tag(1).number(parts.len() as u64);
                for (tokens, marker) in parts {
                    self.number((*tokens).into());
                    self.number((*marker).into());
                }
            }
        }
    }
}

/// The digests of consecutive versions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DigestPage {
    /// The conversation's version when they were made.
    pub version: u64,
    pub archived_version: Option<u64>,
    /// Of the versions from the one asked for on.
    pub digests: Vec<u128>,
}

/// Versions whose digests are made at once, and bytes of their bodies.
const DIGESTS_MAX: usize = 1_000;
const DIGESTED_BYTES: u64 = 4 << 20;

pub(super) async fn digests(
    store: &Arc<GroupStore>,
    cold: &Cold,
    id: &ConversationId,
    first: u64,
    limit: u64,
) -> Result<Option<DigestPage>, ReadError> {
    let versions = usize::try_from(limit).unwrap_or(DIGESTS_MAX).min(DIGESTS_MAX);
    let page =
        read(store, cold, id, First::Version(first), HistoryLimits { versions, bytes: DIGESTED_BYTES })
            .await?;
    Ok(page.map(|page| DigestPage {
        version: page.description.version,
        archived_version: page.archived_version,
        digests: page.versions.iter().map(StoredVersion::digest).collect(),
    }))
}

/// In place of a trimmed body that the archive lacks or has otherwise: no message's, so that its digest is none either.
const NOT_THERE: Bytes = Bytes::from_static(b"\0");

/// Where the reading of versions begins.
#[derive(Debug, Clone, Copy)]
pub(super) enum First {
    Version(u64),
    /// At the first that is not archived: by its mark, or after the version up to which the archive is said to hold it, if
    /// that is less. What was trimmed only the archive had.
    Unarchived {
        held: Option<u64>,
    },
    /// At the one that follows event `seq`; at creation for seq 0.
    AfterEvent {
        seq: u64,
    },
}

/// Reads versions from `first` on.
pub(super) async fn read(
    store: &Arc<GroupStore>,
    cold: &Cold,
    id: &ConversationId,
    first: First,
    limits: HistoryLimits,
) -> Result<Option<HistoryPage>, ReadError> {
    let reading = store.reading();
    let planned = store.read(id, |c, history| {
        let archived = c.archived_version();
        let after = |version: Option<u64>| version.map_or(0, |version| version + 1);
        let first = match first {
            First::Version(first) => first,
            First::Unarchived { held } if held < archived => {
                let trimmed = match c.trimmed_seq() {
                    0 => 0,
                    seq => version_after_event(c, id, history, seq)?,
                };
                after(held).max(trimmed).min(after(archived))
            }
            First::Unarchived { .. } => after(archived),
            First::AfterEvent { seq } => version_after_event(c, id, history, seq)?,
        };
        let versions = versions_from(c, id, history, first, limits.versions, limits.bytes)?;
        Ok::<_, HistoryError>((c.describe(), archived, versions))
    })?;
    let Some(planned) = planned else { return Ok(None) };
    let (description, archived_version, versions) = planned?;
    let versions = in_full(store, reading, cold, id, versions).await?;
    Ok(Some(HistoryPage { description, archived_version, versions }))
}

/// Versions with the bodies of their messages, from the archive where they were trimmed here.
pub(super) async fn in_full(
    store: &Arc<GroupStore>,
    reading: Reading,
    cold: &Cold,
    id: &ConversationId,
    versions: Vec<Version>,
) -> Result<Vec<StoredVersion>, ReadError> {
    let trimmed = trimmed(&versions);
    let mut far = match trimmed.is_empty() {
        true => Vec::new(),
        false => cold.look(id, &trimmed).await?,
    }
    .into_iter();
    let mut near = read_bodies(store, reading, Taken::default(), locations(&versions)).await?.into_iter();
    let mut bodies = |at: &Location| match at.is_placed() {
        true => near.next(),
        false => far.next().map(|body| body.unwrap_or(NOT_THERE)),
    };
    Ok(versions.into_iter().map(|version| stored(version, &mut bodies)).collect())
}

/// Seqs and locations of the events that were trimmed.
fn trimmed(versions: &[Version]) -> Vec<(u64, Location)> {
    let event = |version: &Version| match &version.kind {
        VersionKind::Event { seq, meta } => Some((*seq, meta.location)),
        VersionKind::Change(_) => None,
    };
    versions.iter().filter_map(event).filter(|(_, at)| !at.is_placed()).collect()
}

/// Where bodies lie, of those that were not trimmed.
fn locations(versions: &[Version]) -> Vec<Location> {
    let mut locations = Vec::with_capacity(versions.len());
    for version in versions {
        match &version.kind {
            VersionKind::Event { meta, .. } if meta.location.is_placed() => locations.push(meta.location),
            VersionKind::Event { .. } => {}
            VersionKind::Change(ChangeKind::Compaction(summary)) => {
                locations.extend(summary.replacement.iter().map(|meta| meta.location));
            }
            VersionKind::Change(_) => {}
        }
    }
    locations
}

fn stored(version: Version, body: &mut impl FnMut(&Location) -> Option<Bytes>) -> StoredVersion {
    let mut message = |meta: &MessageMeta| StoredMessage {
        body: body(&meta.location).expect("one body was read for each location"),
        token_count: meta.token_count,
        inserted_at_ms: meta.inserted_at_ms,
        part_tokens: meta
            .parts
            .listed()
            .map(|parts| parts.iter().map(|part| (part.tokens, part.marker_tokens)).collect()),
    };
    let kind = match version.kind {
        VersionKind::Event { seq, meta } => StoredKind::Event { seq, message: message(&meta) },
        VersionKind::Change(ChangeKind::Created(settings)) => StoredKind::Created(settings),
        VersionKind::Change(ChangeKind::Settings(settings)) => StoredKind::Settings(settings),
        VersionKind::Change(ChangeKind::Metadata) => StoredKind::Metadata,
        VersionKind::Change(ChangeKind::Compaction(summary)) => StoredKind::Compaction {
            from_seq: summary.from_seq,
            to_seq: summary.to_seq,
            replacement: summary.replacement.iter().map(message).collect(),
        },
        VersionKind::Change(ChangeKind::Tombstoned) => StoredKind::Tombstoned,
    };
    StoredVersion { version: version.version, kind }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden_digests() {
        let message = StoredMessage {
            body: Bytes::from_static(br#""role":"user","parts":[],"metadata":{}"#),
            token_count: 7,
            inserted_at_ms: 1_700_000_000_123,
            part_tokens: Some(vec![(3, 0)]),
        };
        let plain = StoredMessage { part_tokens: None, ..message.clone() };
        let kinds = [
            StoredKind::Created(Arc::default()),
            StoredKind::Event { seq: 1, message: message.clone() },
            StoredKind::Event { seq: 1, message: plain },
            StoredKind::Settings(Arc::default()),
            StoredKind::Metadata,
            StoredKind::Compaction { from_seq: 1, to_seq: 1, replacement: vec![message] },
            StoredKind::Tombstoned,
        ];
        let found: Vec<String> = kinds
            .into_iter()
            .map(|kind| format!("{:032x}", StoredVersion { version: 1, kind }.digest()))
            .collect();
        assert_eq!(found, GOLDEN);
    }

    const GOLDEN: [&str; 7] = [
        "aeb769e5ab4fb29945711a429ec26f17",
        "59d698202f67b461232e1c461308cdb4",
        "765f4d7430fe3ca432188abcb953ca21",
        "b2f90eff932e9a7772161e6d4d8f71e4",
        "44688191d29570aace7a10cf168104a0",
        "e1efe9225360dbbf9b846c73f008dab1",
        "e45cba412341044f91241c6617de25b2",
    ];
}
