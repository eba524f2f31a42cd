//! Rebuilding a fresh cluster from an archive: reads conversations version by version and hands them over as commands
//! that write them again as they were.

use bytes::Bytes;
use futures_util::future::BoxFuture;
use sqlx::postgres::PgConnection;

use super::postgres::Postgres;
use super::read::{self, Archived};
use crate::conversation::{Action, Command, RestoreEnd};
use crate::shards::{Pieces, StoredKind};

/// Conversations read from the archive at a time.
const CONVERSATIONS_AT_A_TIME: i64 = 500;
/// Versions read at a time.
const VERSIONS_AT_A_TIME: i64 = 1_000;

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
        for piece in pieces.finish(None, ends.then_some(end)) {
            let action = Action::Restore(piece.restore);
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
