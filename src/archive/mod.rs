//! The archive: committed versions of conversations flow to Postgres in batches, off the path of requests.
//!
//! Guarantees: what is marked as archived is in Postgres, committed and on disk; the mark is replicated, so that whoever
//! leads a group next goes on from there; rows are written in the order of a conversation's versions, and writing some
//! again changes nothing; a conversation whose rows differ from those in the archive stops, and no other. Appends wait for
//! none of it, and nothing here grows with what waits.
//!
//! Reading order: `plan` decides what goes next (pure), `rows` makes rows (pure), `postgres` writes them, `batch` does one
//! batch from log to mark, `service` runs all of it. `reconciler` finds out what the archive has lost. `read` reads the
//! archive back, for `verify` and `restore`. `trimmer` has the log let go of what the archive holds, `gaps` finds out whether
//! it does, and `cold` reads that back for clients.

mod backoff;
mod batch;
mod cold;
mod gaps;
mod jsonb;
mod migrations;
mod pace;
mod plan;
mod postgres;
mod read;
mod reconciler;
mod restore;
mod rows;
mod service;
mod trimmer;
mod verify;

pub use self::migrations::SchemaError;
pub use self::restore::{Restored, Target, restore};
pub use self::service::{Archive, ArchiveSettings, ClusterView, InvalidUrl};
pub use self::verify::{Findings, Log, verify};

/// Brings the schema of the archive to what this version needs; answers what was done, for people.
pub async fn migrate(url: &str) -> Result<String, String> {
    let postgres = postgres::Postgres::new(url, 1).map_err(|error| error.to_string())?;
    let done = postgres.prepare(true).await.map_err(|error| error.to_string())?;
    postgres.close().await;
    match done.is_empty() {
        true => Ok("the archive's schema is up to date\n".to_owned()),
        false => Ok(format!("applied: {}\n", done.join(", "))),
    }
}
