//! Postgres: connections, and the one transaction that writes a batch.
//!
//! Guarantees: a batch is written whole or not at all, and durably, whatever the database's default; writing it again
//! changes nothing; a row that is there with another digest is reported, and never replaced. Every statement runs within a
//! transaction and without a name, so that a pooler may give each transaction another session.

use std::collections::{BTreeSet, HashMap};
use std::str::FromStr;
use std::time::Duration;

use bytes::Bytes;
use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgConnectOptions, PgConnection, PgPool, PgPoolOptions, PgRow};
use sqlx::{ConnectOptions, Connection, Executor, Row};
use tokio::time::error::Elapsed;
use tokio::time::timeout;
use uuid::Uuid;

use super::migrations::{self, SchemaError};
use super::rows::{ChangeRows, ConversationRows, EventRows, Rows};
use crate::conversation::ConversationId;

/// Longest wait for a connection from the pool, a new one included.
const CONNECT_MAX: Duration = Duration::from_secs(5);
/// How long it is tried to find out why there was none.
const DIAGNOSIS_MAX: Duration = Duration::from_secs(2);
/// Longest wait for connections to be closed.
const GOODBYE_MAX: Duration = Duration::from_secs(2);
/// Longest time for a batch to be written; then its connection is closed.
const WRITE_MAX: Duration = Duration::from_secs(60);
/// Longest time for single messages to be read; then their connection is closed.
const BODIES_MAX: Duration = Duration::from_secs(4);
/// A connection that nobody used for so long is closed.
const IDLE_MAX: Duration = Duration::from_secs(300);

/// The kinds of failures, in the order of the metric's labels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FailureKind {
    Other,
    /// Not reachable, or the connection broke.
    Connection,
    /// A wrong password, or no right to do this.
    Denied,
    /// No such database, or a schema that is not the archive's.
    Schema,
    ReadOnly,
    DiskFull,
    /// No connection was to be had in time.
    PoolExhausted,
    Timeout,
    /// Rows that Postgres does not take.
    Data,
    /// Rows that differ from those in the archive.
    Conflict,
    /// The log could not be read here.
    Log,
    /// The mark was not replicated.
    Mark,
}

/// Why a batch was not written.
#[derive(Debug, thiserror::Error)]
pub(super) enum WriteError {
    #[error("no answer in time")]
    Timeout,
    #[error(transparent)]
    Schema(#[from] SchemaError),
    #[error(transparent)]
    Database(#[from] sqlx::Error),
    /// These conversations have rows of another digest in the archive; nothing was written.
    #[error("the archive holds other rows for {} conversations", .0.len())]
    Conflict(BTreeSet<String>),
    /// Nothing was written: it would have stepped over what is missing.
    #[error("the archive has lost what it held a moment ago of {0} conversations")]
    Lost(usize),
}

impl WriteError {
    pub(super) fn kind(&self) -> FailureKind {
        let error = match self {
            Self::Timeout => return FailureKind::Timeout,
            Self::Conflict(_) => return FailureKind::Conflict,
            Self::Lost(_) => return FailureKind::Other,
            Self::Schema(SchemaError::Database(error)) | Self::Database(error) => error,
            Self::Schema(_) => return FailureKind::Schema,
        };
        match error {
            sqlx::Error::PoolTimedOut => FailureKind::PoolExhausted,
            sqlx::Error::Io(_) | sqlx::Error::Tls(_) | sqlx::Error::PoolClosed | sqlx::Error::Protocol(_) => {
                FailureKind::Connection
            }
            sqlx::Error::Database(error) => of_state(error.code().as_deref().unwrap_or_default()),
            _ => FailureKind::Other,
        }
    }
}

/// By the codes of appendix A of Postgres' manual.
fn of_state(code: &str) -> FailureKind {
    match (code, code.get(..2).unwrap_or_default()) {
        ("25006", _) => FailureKind::ReadOnly,
        ("53100", _) => FailureKind::DiskFull,
        ("53300", _) => FailureKind::PoolExhausted,
        ("42501", _) | (_, "28") => FailureKind::Denied,
        (_, "3D" | "3F" | "42") => FailureKind::Schema,
        ("57014", _) => FailureKind::Timeout,
        (_, "22" | "54") => FailureKind::Data,
        (_, "08" | "57") => FailureKind::Connection,
        _ => FailureKind::Other,
    }
}

/// What a batch came to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Written {
    pub(super) attempted: u64,
    pub(super) inserted: u64,
}

/// The archive in one database. Clones share its connections.
#[derive(Clone)]
pub(super) struct Postgres {
    pool: PgPool,
    options: PgConnectOptions,
}

impl Postgres {
    /// Connects when it is first used. An error means that the URL cannot be read; its text does not hold the URL.
    pub(super) fn new(url: &str, connections: usize) -> Result<Self, sqlx::Error> {
        let options = PgConnectOptions::from_str(url)?
            .application_name("fastpaca")
            .statement_cache_capacity(0)
            // A pooler refuses connections with settings that it does not know.
            .extra_float_digits(None)
            .disable_statement_logging();
        let pool = PgPoolOptions::new()
            .max_connections(u32::try_from(connections).unwrap_or(u32::MAX))
            .acquire_timeout(CONNECT_MAX)
            .idle_timeout(IDLE_MAX)
            .connect_lazy_with(options.clone());
        Ok(Self { pool, options })
    }

    /// Brings the schema up to date, or only makes sure that it is.
    pub(super) async fn prepare(&self, migrate: bool) -> Result<Vec<&'static str>, WriteError> {
        let mut connection = self.connection().await?;
        let done = match migrate {
            true => timeout(WRITE_MAX, migrations::migrate(&mut connection)).await,
            false => timeout(WRITE_MAX, migrations::check(&mut connection))
                .await
                .map(|done| done.map(|()| Vec::new())),
        };
        judge(connection, done.map(|done| done.map_err(WriteError::from)))
    }

    /// Writes a batch. `cluster` is whose rows they are.
    pub(super) async fn write(&self, cluster: u128, rows: &Rows) -> Result<Written, WriteError> {
        let mut connection = self.connection().await?;
        let done = timeout(WRITE_MAX, write(&mut connection, Uuid::from_u128(cluster), rows)).await;
        judge(connection, done)
    }

    /// Up to which version the archive says it has these conversations, where it has something of them.
    pub(super) async fn archived(
        &self,
        cluster: u128,
        ids: &[&ConversationId],
    ) -> Result<HashMap<String, u64>, WriteError> {
        if ids.is_empty() {
            return Ok(HashMap::new());
        }
        let mut connection = self.connection().await?;
        let done = timeout(WRITE_MAX, archived(&mut connection, Uuid::from_u128(cluster), ids)).await;
        judge(connection, done.map(|done| done.map_err(WriteError::from)))
    }

    /// What tells the archive that answers from others: when the server was started, and the numbers that the database and
    /// the table have there.
    pub(super) async fn instance(&self) -> Result<String, WriteError> {
        let mut connection = self.connection().await?;
        let done = timeout(WRITE_MAX, instance(&mut connection)).await;
        judge(connection, done.map(|done| done.map_err(WriteError::from)))
    }

    /// Those of these messages that are there, each with its seq.
    pub(super) async fn bodies(
        &self,
        cluster: u128,
        id: &ConversationId,
        seqs: &[u64],
    ) -> Result<Vec<(u64, Bytes)>, WriteError> {
        let mut connection = self.connection().await?;
        let done = timeout(BODIES_MAX, bodies(&mut connection, Uuid::from_u128(cluster), id, seqs)).await;
        judge(connection, done.map(|done| done.map_err(WriteError::from)))
    }

    /// A connection, within about [`CONNECT_MAX`].
    pub(super) async fn connection(&self) -> Result<PoolConnection<sqlx::Postgres>, WriteError> {
        match self.pool.acquire().await {
            // The pool waits for a database that does not answer as it does for a connection to come back.
            Err(sqlx::Error::PoolTimedOut) => match timeout(DIAGNOSIS_MAX, self.options.connect()).await {
                Ok(Ok(_)) => Err(sqlx::Error::PoolTimedOut.into()),
                Ok(Err(error)) => Err(error.into()),
                Err(_) => Err(WriteError::Timeout),
            },
            acquired => Ok(acquired?),
        }
    }

    /// Says goodbye, if anybody listens.
    pub(super) async fn close(&self) {
        // Connections that do not answer end with the process.
        let _ = timeout(GOODBYE_MAX, self.pool.close()).await;
    }
}

/// A connection over which something failed is closed rather than given back: it may be broken, silent, or to a database
/// that has become a read-only replica meanwhile.
fn judge<T>(
    connection: PoolConnection<sqlx::Postgres>,
    done: Result<Result<T, WriteError>, Elapsed>,
) -> Result<T, WriteError> {
    match done {
        Ok(Err(error)) => {
            if !matches!(error.kind(), FailureKind::Conflict | FailureKind::Data) {
                drop(connection.detach());
            }
            Err(error)
        }
        Ok(done) => done,
        Err(_) => {
            drop(connection.detach());
            Err(WriteError::Timeout)
        }
    }
}

/// What is marked as archived may be trimmed from the log, so a commit must mean that it is on disk.
const DURABLE: &str = "SELECT set_config('synchronous_commit', 'on', true)
    WHERE current_setting('synchronous_commit') = 'off'";

async fn write(connection: &mut PgConnection, cluster: Uuid, rows: &Rows) -> Result<Written, WriteError> {
    let mut transaction = connection.begin().await?;
    transaction.execute(DURABLE).await?;
    let events = insert_events(&mut transaction, cluster, &rows.events).await?;
    let changes = insert_changes(&mut transaction, cluster, &rows.changes).await?;
    let mut conflicts = BTreeSet::new();
    if events < rows.events.seq.len() as u64 {
        conflicts.append(&mut other_events(&mut transaction, cluster, &rows.events).await?);
    }
    if changes < rows.changes.version.len() as u64 {
        conflicts.append(&mut other_changes(&mut transaction, cluster, &rows.changes).await?);
    }
    if !conflicts.is_empty() {
        transaction.rollback().await?;
        return Err(WriteError::Conflict(conflicts));
    }
    // It may be another server by now than the one that was asked.
    let held = held(&mut transaction, cluster, &rows.conversations.id).await?;
    let before = rows.conversations.id.iter().zip(&rows.conversations.held);
    let lost = before.filter(|(id, before)| held.get(*id).copied() < **before).count();
    if lost > 0 {
        transaction.rollback().await?;
        return Err(WriteError::Lost(lost));
    }
    upsert_conversations(&mut transaction, cluster, &rows.conversations).await?;
    transaction.commit().await?;
    Ok(Written { attempted: rows.len() as u64, inserted: events + changes })
}

const INSERT_EVENTS: &str = "INSERT INTO fastpaca.events (cluster_id, conversation_id, seq, version, inserted_at,
        token_count, escaped, role, parts, metadata, part_tokens, marker_tokens, body, digest)
    SELECT $1, r.conversation_id, r.seq, r.version, timestamptz 'epoch' + r.inserted_at * interval '1 millisecond',
        r.token_count, r.escaped, r.role, r.parts::jsonb, r.metadata::jsonb, r.part_tokens::bigint[],
        r.marker_tokens::bigint[], r.body, r.digest
    FROM unnest($2::text[], $3::bigint[], $4::bigint[], $5::bigint[], $6::bigint[], $7::boolean[], $8::text[],
        $9::text[], $10::text[], $11::text[], $12::text[], $13::text[], $14::bytea[])
        AS r (conversation_id, seq, version, inserted_at, token_count, escaped, role, parts, metadata, part_tokens,
            marker_tokens, body, digest)
    ON CONFLICT (cluster_id, conversation_id, seq) DO NOTHING";

async fn insert_events(
    connection: &mut PgConnection,
    cluster: Uuid,
    rows: &EventRows,
) -> Result<u64, sqlx::Error> {
    if rows.seq.is_empty() {
        return Ok(0);
    }
    let query = sqlx::query(INSERT_EVENTS).persistent(false).bind(cluster);
    let query = query.bind(&rows.conversation).bind(&rows.seq).bind(&rows.version).bind(&rows.inserted_at_ms);
    let query = query.bind(&rows.token_count).bind(&rows.escaped).bind(&rows.role).bind(&rows.parts);
    let query = query.bind(&rows.metadata).bind(&rows.part_tokens).bind(&rows.marker_tokens);
    Ok(query.bind(&rows.body).bind(&rows.digest).execute(connection).await?.rows_affected())
}

const INSERT_CHANGES: &str =
    "INSERT INTO fastpaca.changes (cluster_id, conversation_id, version, kind, payload,
        payload_text, digest)
    SELECT $1, r.conversation_id, r.version, r.kind, r.payload::jsonb, r.payload_text, r.digest
    FROM unnest($2::text[], $3::bigint[], $4::text[], $5::text[], $6::text[], $7::bytea[])
        AS r (conversation_id, version, kind, payload, payload_text, digest)
    ON CONFLICT (cluster_id, conversation_id, version) DO NOTHING";

async fn insert_changes(
    connection: &mut PgConnection,
    cluster: Uuid,
    rows: &ChangeRows,
) -> Result<u64, sqlx::Error> {
    if rows.version.is_empty() {
        return Ok(0);
    }
    let query = sqlx::query(INSERT_CHANGES).persistent(false).bind(cluster);
    let query = query.bind(&rows.conversation).bind(&rows.version).bind(&rows.kind).bind(&rows.payload);
    Ok(query.bind(&rows.payload_text).bind(&rows.digest).execute(connection).await?.rows_affected())
}

const UPSERT_CONVERSATIONS: &str = "INSERT INTO fastpaca.conversations AS known (cluster_id, id, status, version,
        archived_version, last_seq, token_budget, trigger_ratio, policy, metadata, metadata_text, created_at, updated_at)
    SELECT $1, r.id, r.status, r.version, r.archived_version, r.last_seq, r.token_budget, r.trigger_ratio,
        r.policy::jsonb, r.metadata::jsonb, r.metadata_text,
        timestamptz 'epoch' + r.created_at * interval '1 millisecond',
        timestamptz 'epoch' + r.updated_at * interval '1 millisecond'
    FROM unnest($2::text[], $3::text[], $4::bigint[], $5::bigint[], $6::bigint[], $7::bigint[], $8::double precision[],
        $9::text[], $10::text[], $11::text[], $12::bigint[], $13::bigint[])
        AS r (id, status, version, archived_version, last_seq, token_budget, trigger_ratio, policy, metadata,
            metadata_text, created_at, updated_at)
    ON CONFLICT (cluster_id, id) DO UPDATE SET
        status = excluded.status, version = excluded.version, last_seq = excluded.last_seq,
        archived_version = greatest(known.archived_version, excluded.archived_version),
        token_budget = excluded.token_budget, trigger_ratio = excluded.trigger_ratio, policy = excluded.policy,
        metadata = excluded.metadata, metadata_text = excluded.metadata_text, updated_at = excluded.updated_at
    WHERE (known.version, known.archived_version) < (excluded.version, excluded.archived_version)";

async fn upsert_conversations(
    connection: &mut PgConnection,
    cluster: Uuid,
    rows: &ConversationRows,
) -> Result<(), sqlx::Error> {
    if rows.id.is_empty() {
        return Ok(());
    }
    let query = sqlx::query(UPSERT_CONVERSATIONS).persistent(false).bind(cluster);
    let query = query.bind(&rows.id).bind(&rows.status).bind(&rows.version).bind(&rows.archived_version);
    let query = query.bind(&rows.last_seq).bind(&rows.token_budget).bind(&rows.trigger_ratio);
    let query = query.bind(&rows.policy).bind(&rows.metadata).bind(&rows.metadata_text);
    query.bind(&rows.created_at_ms).bind(&rows.updated_at_ms).execute(connection).await?;
    Ok(())
}

const ARCHIVED: &str = "SELECT id, archived_version FROM fastpaca.conversations
    WHERE cluster_id = $1 AND id = ANY ($2)";

async fn archived(
    connection: &mut PgConnection,
    cluster: Uuid,
    ids: &[&ConversationId],
) -> Result<HashMap<String, u64>, sqlx::Error> {
    let ids: Vec<String> = ids.iter().map(|id| id.as_str().to_owned()).collect();
    let mut transaction = connection.begin().await?;
    let held = held(&mut transaction, cluster, &ids).await?;
    transaction.rollback().await?;
    Ok(held)
}

async fn held(
    connection: &mut PgConnection,
    cluster: Uuid,
    ids: &[String],
) -> Result<HashMap<String, u64>, sqlx::Error> {
    if ids.is_empty() {
        return Ok(HashMap::new());
    }
    let query = sqlx::query(ARCHIVED).persistent(false).bind(cluster).bind(ids);
    let rows = query.fetch_all(connection).await?;
    let archived = |row: &PgRow| Ok((row.try_get(0)?, row.try_get::<i64, _>(1)?.unsigned_abs()));
    rows.iter().map(archived).collect()
}

const INSTANCE: &str = "SELECT concat_ws('/', extract(epoch FROM pg_postmaster_start_time()), d.oid,
        'fastpaca.conversations'::regclass::oid)
    FROM pg_database AS d WHERE d.datname = current_database()";

async fn instance(connection: &mut PgConnection) -> Result<String, sqlx::Error> {
    let mut transaction = connection.begin().await?;
    let row = sqlx::query(INSTANCE).persistent(false).fetch_one(&mut *transaction).await?;
    transaction.rollback().await?;
    row.try_get(0)
}

const BODIES: &str = "SELECT seq, body FROM fastpaca.events
    WHERE cluster_id = $1 AND conversation_id = $2 AND seq = ANY ($3)";

async fn bodies(
    connection: &mut PgConnection,
    cluster: Uuid,
    id: &ConversationId,
    seqs: &[u64],
) -> Result<Vec<(u64, Bytes)>, sqlx::Error> {
    let seqs: Vec<i64> = seqs.iter().map(|seq| *seq as i64).collect();
    let mut transaction = connection.begin().await?;
    let query = sqlx::query(BODIES).persistent(false).bind(cluster).bind(id.as_str()).bind(seqs);
    let rows = query.fetch_all(&mut *transaction).await?;
    transaction.rollback().await?;
    let body = |row: &PgRow| {
        Ok((row.try_get::<i64, _>(0)?.unsigned_abs(), Bytes::from(row.try_get::<String, _>(1)?)))
    };
    rows.iter().map(body).collect()
}

const OTHER_EVENTS: &str = "SELECT DISTINCT r.conversation_id
    FROM unnest($2::text[], $3::bigint[], $4::bytea[]) AS r (conversation_id, seq, digest)
    JOIN fastpaca.events AS e
        ON e.cluster_id = $1 AND e.conversation_id = r.conversation_id AND e.seq = r.seq
    WHERE e.digest <> r.digest";

async fn other_events(
    connection: &mut PgConnection,
    cluster: Uuid,
    rows: &EventRows,
) -> Result<BTreeSet<String>, sqlx::Error> {
    let query = sqlx::query(OTHER_EVENTS).persistent(false).bind(cluster);
    let query = query.bind(&rows.conversation).bind(&rows.seq).bind(&rows.digest);
    query.fetch_all(connection).await?.iter().map(|row| row.try_get(0)).collect()
}

const OTHER_CHANGES: &str = "SELECT DISTINCT r.conversation_id
    FROM unnest($2::text[], $3::bigint[], $4::bytea[]) AS r (conversation_id, version, digest)
    JOIN fastpaca.changes AS c
        ON c.cluster_id = $1 AND c.conversation_id = r.conversation_id AND c.version = r.version
    WHERE c.digest <> r.digest";

async fn other_changes(
    connection: &mut PgConnection,
    cluster: Uuid,
    rows: &ChangeRows,
) -> Result<BTreeSet<String>, sqlx::Error> {
    let query = sqlx::query(OTHER_CHANGES).persistent(false).bind(cluster);
    let query = query.bind(&rows.conversation).bind(&rows.version).bind(&rows.digest);
    query.fetch_all(connection).await?.iter().map(|row| row.try_get(0)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_are_told_apart() {
        let kinds = [
            ("25006", FailureKind::ReadOnly),
            ("53100", FailureKind::DiskFull),
            ("53300", FailureKind::PoolExhausted),
            ("28P01", FailureKind::Denied),
            ("42501", FailureKind::Denied),
            ("3D000", FailureKind::Schema),
            ("42P01", FailureKind::Schema),
            ("22P05", FailureKind::Data),
            ("57P01", FailureKind::Connection),
            ("40P01", FailureKind::Other),
            ("", FailureKind::Other),
        ];
        for (code, kind) in kinds {
            assert_eq!(of_state(code), kind, "{code}");
        }
    }

    #[test]
    fn a_url_that_cannot_be_read_is_not_repeated() {
        for url in ["postgres://user:hunter2@[", "nonsense hunter2"] {
            let error = Postgres::new(url, 1).err().expect("no URL");
            assert!(!error.to_string().contains("hunter2"), "{error}");
        }
    }
}
