//! Reading the archive back: whose it is, its conversations, and their versions as they were.

use std::sync::Arc;

use bytes::Bytes;
use serde_json::value::RawValue;
use sqlx::postgres::{PgConnection, PgRow};
use sqlx::{Connection, Row};
use uuid::Uuid;

use super::rows::AFTER_BODY;
use crate::conversation::{ConversationId, Policy, Settings};
use crate::shards::{StoredKind, StoredMessage, StoredVersion};

/// Why the archive was not read.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReadError {
    #[error(transparent)]
    Database(#[from] sqlx::Error),
    #[error("version {version} of {id} in the archive: {reason}")]
    Row { id: String, version: i64, reason: String },
    #[error("the archive holds {0}")]
    Clusters(String),
}

/// A conversation as its row describes it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Archived {
    pub(super) id: ConversationId,
    pub(super) version: u64,
    pub(super) archived_version: u64,
    pub(super) metadata: Bytes,
    pub(super) created_at_ms: u64,
    pub(super) updated_at_ms: u64,
}

/// A version, with the digest that its row carries.
pub(super) struct ArchivedVersion {
    pub(super) version: StoredVersion,
    pub(super) digest: u128,
}

/// The only cluster in the archive, or the one asked for.
pub(super) async fn cluster(connection: &mut PgConnection, wanted: Option<u128>) -> Result<u128, ReadError> {
    let mut transaction = connection.begin().await?;
    let rows = sqlx::query("SELECT DISTINCT cluster_id FROM fastpaca.conversations ORDER BY cluster_id");
    let rows = rows.persistent(false).fetch_all(&mut *transaction).await?;
    transaction.rollback().await?;
    let known = rows.iter().map(|row| row.try_get::<Uuid, _>(0)).collect::<Result<Vec<_>, _>>()?;
    match (wanted, known.as_slice()) {
        (Some(wanted), known) if known.contains(&Uuid::from_u128(wanted)) => Ok(wanted),
        (None, [only]) => Ok(only.as_u128()),
        (_, []) => Err(ReadError::Clusters("no cluster".to_owned())),
        (_, known) => {
            let ids: Vec<String> = known.iter().map(|id| id.simple().to_string()).collect();
            Err(ReadError::Clusters(format!("other clusters (--cluster takes one): {}", ids.join(", "))))
        }
    }
}

const CONVERSATIONS: &str = "SELECT id, version, archived_version, metadata_text,
        (extract(epoch FROM created_at) * 1000)::bigint, (extract(epoch FROM updated_at) * 1000)::bigint
    FROM fastpaca.conversations
    WHERE cluster_id = $1 AND id > $2 COLLATE \"C\" ORDER BY id LIMIT $3";

/// Conversations in the order of their ids.
pub(super) async fn conversations(
    connection: &mut PgConnection,
    cluster: u128,
    after: &str,
    limit: i64,
) -> Result<Vec<Archived>, ReadError> {
    let mut transaction = connection.begin().await?;
    let query = sqlx::query(CONVERSATIONS).persistent(false).bind(Uuid::from_u128(cluster));
    let rows = query.bind(after).bind(limit).fetch_all(&mut *transaction).await?;
    transaction.rollback().await?;
    rows.iter().map(archived).collect()
}

fn archived(row: &PgRow) -> Result<Archived, ReadError> {
    let id: String = row.try_get(0)?;
    let version: i64 = row.try_get(1)?;
    let reason = |error: crate::conversation::InvalidId| error.to_string();
    let parsed = ConversationId::parse(&id).map_err(|error| ReadError::Row {
        id: id.clone(),
        version,
        reason: reason(error),
    })?;
    Ok(Archived {
        id: parsed,
        version: version.unsigned_abs(),
        archived_version: row.try_get::<i64, _>(2)?.unsigned_abs(),
        metadata: row.try_get::<String, _>(3)?.into(),
        created_at_ms: row.try_get::<i64, _>(4)?.unsigned_abs(),
        updated_at_ms: row.try_get::<i64, _>(5)?.unsigned_abs(),
    })
}

/// Both tables, each bounded by itself, so that neither is read in full.
const VERSIONS: &str = "(SELECT version, digest, seq, body, token_count,
            (extract(epoch FROM inserted_at) * 1000)::bigint AS inserted_at, part_tokens, marker_tokens,
            NULL AS kind, NULL AS payload
        FROM fastpaca.events WHERE cluster_id = $1 AND conversation_id = $2 AND version >= $3 AND seq >= $4
        ORDER BY seq LIMIT $5)
    UNION ALL
    (SELECT version, digest, NULL, NULL, NULL, NULL, NULL, NULL, kind, payload_text
        FROM fastpaca.changes WHERE cluster_id = $1 AND conversation_id = $2 AND version >= $3
        ORDER BY version LIMIT $5)
    ORDER BY version LIMIT $5";

/// What is archived of a conversation, from a version on, in order, each under its number; `after_seq` is the seq of the last event before it.
pub(super) async fn versions(
    connection: &mut PgConnection,
    cluster: u128,
    id: &ConversationId,
    first: u64,
    after_seq: u64,
    limit: i64,
) -> Result<Vec<(u64, Result<ArchivedVersion, ReadError>)>, ReadError> {
    let mut transaction = connection.begin().await?;
    let query = sqlx::query(VERSIONS).persistent(false).bind(Uuid::from_u128(cluster)).bind(id.as_str());
    let query = query.bind(first as i64).bind(after_seq as i64 + 1).bind(limit);
    let rows = query.fetch_all(&mut *transaction).await?;
    transaction.rollback().await?;
    let one = |row: &PgRow| Ok((row.try_get::<i64, _>("version")?.unsigned_abs(), version_of(id, row)));
    rows.iter().map(one).collect()
}

fn version_of(id: &ConversationId, row: &PgRow) -> Result<ArchivedVersion, ReadError> {
    let version: i64 = row.try_get("version")?;
    let bad = |reason: String| ReadError::Row { id: id.as_str().to_owned(), version, reason };
    let digest: Vec<u8> = row.try_get("digest")?;
    let digest = <[u8; 16]>::try_from(digest).map_err(|_| bad("the digest has not 16 bytes".to_owned()))?;
    let kind = match row.try_get::<Option<String>, _>("kind")? {
        None => event_of(row)?,
        Some(kind) => change_of(&kind, &row.try_get::<String, _>("payload")?).map_err(bad)?,
    };
    let version = StoredVersion { version: version.unsigned_abs(), kind };
    Ok(ArchivedVersion { version, digest: u128::from_be_bytes(digest) })
}

fn event_of(row: &PgRow) -> Result<StoredKind, sqlx::Error> {
    let parts: Option<Vec<i64>> = row.try_get("part_tokens")?;
    let markers: Option<Vec<i64>> = row.try_get("marker_tokens")?;
    let part_tokens = parts.map(|parts| {
        let markers = markers.unwrap_or_else(|| vec![0; parts.len()]);
        parts.into_iter().zip(markers).map(|(tokens, marker)| (tokens as u32, marker as u32)).collect()
    });
    Ok(StoredKind::Event {
        seq: row.try_get::<i64, _>("seq")?.unsigned_abs(),
        message: StoredMessage {
            body: row.try_get::<String, _>("body")?.into(),
            token_count: row.try_get::<i64, _>("token_count")? as u32,
            inserted_at_ms: row.try_get::<i64, _>("inserted_at")?.unsigned_abs(),
            part_tokens,
        },
    })
}

#[derive(serde::Deserialize)]
struct SettingsPayload<'a> {
    token_budget: u64,
    /// Read by the standard library, which is exact.
    #[serde(borrow)]
    trigger_ratio: &'a RawValue,
    #[serde(borrow)]
    policy: &'a RawValue,
}

#[derive(serde::Deserialize)]
struct CompactionPayload<'a> {
    from_seq: u64,
    to_seq: u64,
    #[serde(borrow)]
    replacement: Vec<&'a RawValue>,
}

#[derive(serde::Deserialize)]
struct ReplacementStamps {
    token_count: u32,
    inserted_at_ms: u64,
    part_tokens: Option<Vec<u32>>,
    marker_tokens: Option<Vec<u32>>,
}

fn change_of(kind: &str, payload: &str) -> Result<StoredKind, String> {
    match kind {
        "created" => settings_of(payload).map(StoredKind::Created),
        "settings" => settings_of(payload).map(StoredKind::Settings),
        "metadata" => Ok(StoredKind::Metadata),
        "tombstoned" => Ok(StoredKind::Tombstoned),
        "compaction" => {
            let CompactionPayload { from_seq, to_seq, replacement } = json(payload)?;
            let replacement = replacement.into_iter().map(|message| replacement_of(message.get()));
            Ok(StoredKind::Compaction {
                from_seq,
                to_seq,
                replacement: replacement.collect::<Result<_, _>>()?,
            })
        }
        other => Err(format!("a change of unknown kind {other:?}")),
    }
}

fn settings_of(payload: &str) -> Result<Arc<Settings>, String> {
    let SettingsPayload { token_budget, trigger_ratio, policy } = json(payload)?;
    let trigger_ratio =
        trigger_ratio.get().parse().map_err(|_| "the trigger ratio is no number".to_owned())?;
    let policy = Policy::parse(policy.get().to_owned().into()).map_err(|error| error.to_string())?;
    Ok(Arc::new(Settings { token_budget, trigger_ratio, policy }))
}

fn replacement_of(message: &str) -> Result<StoredMessage, String> {
    // What the message itself says comes first, so that the last such member is the one that was stamped.
    let at = message.rfind(AFTER_BODY).ok_or("a message of a summary has no stamps")?;
    let stamps: ReplacementStamps = json(&format!("{{{}", &message[at + 1..]))?;
    let part_tokens = match (stamps.part_tokens, stamps.marker_tokens) {
        (Some(parts), Some(markers)) => Some(parts.into_iter().zip(markers).collect()),
        _ => None,
    };
    Ok(StoredMessage {
        body: message[1..at].to_owned().into(),
        token_count: stamps.token_count,
        inserted_at_ms: stamps.inserted_at_ms,
        part_tokens,
    })
}

fn json<'a, T: serde::Deserialize<'a>>(text: &'a str) -> Result<T, String> {
    serde_json::from_str(text).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::super::rows::payload;
    use super::*;

    fn message(body: &str, part_tokens: Option<Vec<(u32, u32)>>) -> StoredMessage {
        StoredMessage { body: body.to_owned().into(), token_count: 7, inserted_at_ms: 123, part_tokens }
    }

    #[test]
    fn changes_come_back_as_they_were() {
        let policy = Policy::parse(Bytes::from_static(br#"{ "strategy" : "manual", "x": 1.50 }"#)).unwrap();
        let settings = Arc::new(Settings { token_budget: 9, trigger_ratio: 0.1 + 0.2, policy });
        // A message that says of itself what is stamped on it.
        let nasty = r#""role":"a","parts":[ {"type":"text","t":",\"token_count\":9"} ],"metadata":{"x":0,"token_count":1}"#;
        let replacement = vec![message(nasty, None), message(r#""role":"b""#, Some(vec![(3, 1), (4, 0)]))];
        let kinds = [
            StoredKind::Created(settings.clone()),
            StoredKind::Settings(settings),
            StoredKind::Metadata,
            StoredKind::Compaction { from_seq: 1, to_seq: 2, replacement },
            StoredKind::Compaction { from_seq: 1, to_seq: 2, replacement: Vec::new() },
            StoredKind::Tombstoned,
        ];
        for kind in kinds {
            let (name, text) = payload(&kind).unwrap();
            let back = change_of(name, &text).unwrap();
            let digest = |kind: &StoredKind| StoredVersion { version: 1, kind: kind.clone() }.digest();
            assert_eq!(digest(&back), digest(&kind), "{text}");
            assert_eq!(back, kind);
        }
    }

    #[test]
    fn what_is_no_payload_is_refused() {
        for (kind, payload) in [
            ("created", "{}"),
            ("created", r#"{"token_budget":1,"trigger_ratio":"a","policy":{}}"#),
            ("compaction", r#"{"from_seq":1,"to_seq":2,"replacement":[{}]}"#),
            ("future", "{}"),
        ] {
            assert!(change_of(kind, payload).is_err(), "{kind} {payload}");
        }
    }
}
