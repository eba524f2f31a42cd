//! Rebuilding a fresh cluster from an archive: reads conversations version by version and hands them over as commands
//! that write them again as they were.

use bytes::Bytes;
use futures_util::future::BoxFuture;
use serde_json::value::RawValue;
use sqlx::postgres::PgConnection;

use super::postgres::Postgres;
use super::read::{self, Archived};
use crate::conversation::{
    Action, Command, NewMessage, PartMeta, Restore, RestoreEnd, RestoredVersion, RoleKind, inspect_part,
};
use crate::shards::{StoredKind, StoredMessage, StoredVersion};

/// Conversations read from the archive at a time.
const CONVERSATIONS_AT_A_TIME: i64 = 500;
/// Versions read at a time.
const VERSIONS_AT_A_TIME: i64 = 1_000;
/// Bytes of bodies in one command, about.
const PIECE_BYTES: usize = 1 << 20;

/// Where the commands go: a node of the fresh cluster.
pub trait Target: Send + Sync {
    /// Whether there is no conversation yet.
    fn is_empty(&self) -> BoxFuture<'_, Result<bool, String>>;
    /// Replicates an encoded command; answers the version it led to, or that of a conversation which is further already.
    fn restore(&self, command: Bytes) -> BoxFuture<'_, Result<u64, String>>;
}

/// What was brought back.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Restored {
    pub conversations: u64,
    pub versions: u64,
}

/// Restores everything that the archive has of one cluster. `progress` is told of every conversation.
pub async fn restore(
    url: &str,
    cluster: Option<u128>,
    target: &dyn Target,
    progress: &mut (dyn FnMut(Restored) + Send),
) -> Result<Restored, String> {
    if !target.is_empty().await? {
        return Err("the cluster holds conversations already: restore into an empty one".to_owned());
    }
    let postgres = Postgres::new(url, 1).map_err(|error| error.to_string())?;
    let mut connection = postgres.connection().await.map_err(|error| error.to_string())?;
    let cluster = read::cluster(&mut connection, cluster).await.map_err(|error| error.to_string())?;
    let mut sum = Restored::default();
    let mut after = String::new();
    loop {
        let page = read::conversations(&mut connection, cluster, &after, CONVERSATIONS_AT_A_TIME).await;
        let page = page.map_err(|error| error.to_string())?;
        let Some(last) = page.last() else { return Ok(sum) };
        after = last.id.as_str().to_owned();
        for archived in &page {
            sum.versions += one(&mut connection, cluster, archived, target).await?;
            sum.conversations += 1;
            progress(sum);
        }
    }
}

/// Answers how many versions there were.
async fn one(
    connection: &mut PgConnection,
    cluster: u128,
    archived: &Archived,
    target: &dyn Target,
) -> Result<u64, String> {
    let id = &archived.id;
    let (mut next, mut after_seq) = (0, 0);
    loop {
        let rows = read::versions(connection, cluster, id, next, after_seq, VERSIONS_AT_A_TIME).await;
        let rows = rows.map_err(|error| error.to_string())?;
        let ends = (rows.len() as i64) < VERSIONS_AT_A_TIME;
        let mut pieces = Pieces::new(next);
        for (_, row) in rows {
            let row = row.map_err(|error| error.to_string())?;
            if row.version.digest() != row.digest {
                return Err(format!("{id}: version {} in the archive is damaged", row.version.version));
            }
            if row.version.version != next {
                return Err(format!("{id}: version {next} is not in the archive"));
            }
            if let StoredKind::Event { seq, .. } = row.version.kind {
                after_seq = seq;
            }
            next += 1;
            pieces.add(row.version).map_err(|error| format!("{id}: {error}"))?;
        }
        let end = RestoreEnd { metadata: archived.metadata.clone(), updated_at_ms: archived.updated_at_ms };
        for restore in pieces.finish(ends.then_some(end)) {
            let action = Action::Restore(restore);
            let command = Command { id: id.clone(), now_ms: archived.created_at_ms, action };
            let reached = target.restore(command.encode()).await?;
            if reached > next {
                return Err(format!("{id} is at version {reached} in the cluster, which was to be empty"));
            }
        }
        if ends {
            return Ok(next);
        }
    }
}

/// Versions cut into commands of bearable size.
struct Pieces {
    done: Vec<Restore>,
    after: Option<u64>,
    versions: Vec<RestoredVersion>,
    /// In `versions`, events counted one by one.
    count: u64,
    bytes: usize,
}

impl Pieces {
    fn new(first: u64) -> Self {
        Self { done: Vec::new(), after: first.checked_sub(1), versions: Vec::new(), count: 0, bytes: 0 }
    }

    fn add(&mut self, version: StoredVersion) -> Result<(), String> {
        let (restored, bytes) = restored(version.kind)?;
        if self.bytes + bytes > PIECE_BYTES && !self.versions.is_empty() {
            self.cut(None);
        }
        self.bytes += bytes;
        self.count += 1;
        match (restored, self.versions.last_mut()) {
            (
                RestoredVersion::Events { inserted_at_ms, messages },
                Some(RestoredVersion::Events { inserted_at_ms: at, messages: before }),
            ) if *at == inserted_at_ms => before.extend(messages),
            (restored, _) => self.versions.push(restored),
        }
        Ok(())
    }

    fn cut(&mut self, end: Option<RestoreEnd>) {
        let versions = std::mem::take(&mut self.versions);
        self.done.push(Restore { after: self.after, versions, end });
        let last = self.after.map_or(self.count, |after| after + self.count + 1) - 1;
        (self.after, self.count, self.bytes) = (Some(last), 0, 0);
    }

    fn finish(mut self, end: Option<RestoreEnd>) -> Vec<Restore> {
        if !self.versions.is_empty() || end.is_some() {
            self.cut(end);
        }
        self.done
    }
}

/// The version as a command writes it, and the bytes of its bodies.
fn restored(kind: StoredKind) -> Result<(RestoredVersion, usize), String> {
    Ok(match kind {
        StoredKind::Created(settings) => (RestoredVersion::Created(settings), 0),
        StoredKind::Settings(settings) => (RestoredVersion::Settings(settings), 0),
        StoredKind::Metadata => (RestoredVersion::Metadata, 0),
        StoredKind::Tombstoned => (RestoredVersion::Tombstoned, 0),
        StoredKind::Event { message, .. } => {
            let (inserted_at_ms, bytes) = (message.inserted_at_ms, message.body.len());
            (RestoredVersion::Events { inserted_at_ms, messages: vec![new_message(message)?] }, bytes)
        }
        StoredKind::Compaction { from_seq, to_seq, replacement } => {
            let inserted_at_ms = replacement.first().map_or(0, |message| message.inserted_at_ms);
            let bytes = replacement.iter().map(|message| message.body.len()).sum();
            let replacement = replacement.into_iter().map(new_message).collect::<Result<_, _>>()?;
            (RestoredVersion::Compaction { from_seq, to_seq, inserted_at_ms, replacement }, bytes)
        }
    })
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

    use super::*;

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
        let done = pieces.finish(Some(end.clone()));
        let afters = done.iter().map(|piece| (piece.after, piece.versions.len(), piece.messages().count()));
        assert_eq!(afters.collect::<Vec<_>>(), [(None, 2, 3), (Some(3), 1, 1), (Some(4), 1, 1)]);
        assert_eq!(done.last().unwrap().end, Some(end));
        assert_eq!(done[0].end, None);
    }
}
