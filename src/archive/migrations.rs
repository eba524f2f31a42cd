//! The schema of the archive: numbered scripts, each applied once, under a lock.
//!
//! All of it happens in one transaction with a lock that ends with it, and without prepared statements: so it works
//! through a pooler that gives each transaction another session, which the migrator of the driver does not.

use sha2::{Digest, Sha256};
use sqlx::{Connection, Executor, PgConnection, Row};

/// In order. A script that was ever released is never changed.
const SCRIPTS: &[(i64, &str, &str)] = &[
    (1, "archive", include_str!("../../migrations/0001_archive.sql")),
    (2, "summarize", include_str!("../../migrations/0002_summarize.sql")),
];

/// Any number; nodes that migrate at the same time must agree on it.
const LOCK: i64 = 0x6661_7374_7061_6361;

const LEDGER: &str = "CREATE TABLE IF NOT EXISTS fastpaca.migrations (
    version bigint PRIMARY KEY,
    name text NOT NULL,
    checksum bytea NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT now()
)";

/// Why the schema is not what it must be.
#[derive(Debug, thiserror::Error)]
pub enum SchemaError {
    #[error(transparent)]
    Database(#[from] sqlx::Error),
    #[error("script {version} of the archive's schema is missing: run `fastpaca migrate`")]
    Missing { version: i64 },
    #[error("the database holds script {version}, which this version of the server does not know")]
    Unknown { version: i64 },
    #[error("script {version} was applied in another form than this version of the server has")]
    Differs { version: i64 },
}

/// Brings the schema to what this version needs; answers the scripts that were applied.
pub(super) async fn migrate(connection: &mut PgConnection) -> Result<Vec<&'static str>, SchemaError> {
    let mut transaction = connection.begin().await?;
    let lock = sqlx::query("SELECT pg_advisory_xact_lock($1)").persistent(false).bind(LOCK);
    lock.execute(&mut *transaction).await?;
    // Not IF NOT EXISTS: that asks for the right to create schemas even where there is nothing to be created.
    if !exists(&mut transaction, "SELECT to_regnamespace('fastpaca') IS NOT NULL").await? {
        transaction.execute("CREATE SCHEMA fastpaca").await?;
    }
    if !has_ledger(&mut transaction).await? {
        transaction.execute(LEDGER).await?;
    }
    let known = applied(&mut transaction).await?;
    let mut done = Vec::new();
    for (version, name, script) in &SCRIPTS[known..] {
        transaction.execute(*script).await?;
        let note =
            sqlx::query("INSERT INTO fastpaca.migrations (version, name, checksum) VALUES ($1, $2, $3)");
        let note = note.persistent(false).bind(version).bind(name).bind(checksum(script));
        note.execute(&mut *transaction).await?;
        done.push(*name);
    }
    transaction.commit().await?;
    Ok(done)
}

/// Makes sure that the schema is what this version needs.
pub(super) async fn check(connection: &mut PgConnection) -> Result<(), SchemaError> {
    let mut transaction = connection.begin().await?;
    let known = if has_ledger(&mut transaction).await? { applied(&mut transaction).await? } else { 0 };
    transaction.rollback().await?;
    match SCRIPTS.get(known) {
        None => Ok(()),
        Some((version, _, _)) => Err(SchemaError::Missing { version: *version }),
    }
}

/// How many scripts were applied: those that come first here, unchanged.
async fn applied(connection: &mut PgConnection) -> Result<usize, SchemaError> {
    let rows = sqlx::query("SELECT version, checksum FROM fastpaca.migrations ORDER BY version");
    let rows = rows.persistent(false).fetch_all(connection).await?;
    for (at, row) in rows.iter().enumerate() {
        let (version, found): (i64, Vec<u8>) = (row.try_get(0)?, row.try_get(1)?);
        match SCRIPTS.get(at) {
            Some((known, _, script)) if *known == version => {
                if found != checksum(script) {
                    return Err(SchemaError::Differs { version });
                }
            }
            _ => return Err(SchemaError::Unknown { version }),
        }
    }
    Ok(rows.len())
}

async fn has_ledger(connection: &mut PgConnection) -> Result<bool, sqlx::Error> {
    exists(connection, "SELECT to_regclass('fastpaca.migrations') IS NOT NULL").await
}

async fn exists(connection: &mut PgConnection, question: &'static str) -> Result<bool, sqlx::Error> {
    sqlx::query(question).persistent(false).fetch_one(connection).await?.try_get(0)
}

fn checksum(script: &str) -> Vec<u8> {
    Sha256::digest(script.as_bytes()).to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A released script that is changed would be refused wherever it was applied.
    #[test]
    fn scripts_are_what_they_were() {
        let sums: Vec<String> = SCRIPTS
            .iter()
            .map(|(version, name, script)| {
                let hex: String = checksum(script).iter().take(8).map(|byte| format!("{byte:02x}")).collect();
                format!("{version} {name} {hex}")
            })
            .collect();
        assert_eq!(sums, ["1 archive 68420fb0d579a0bc", "2 summarize b1b38129d01dbc70"]);
    }
}
