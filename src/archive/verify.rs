//! Comparing a cluster's log with its archive, version by version, by the digests of both.
//!
//! The archive's rows are read in full and their digests made anew: a row that was changed in the database is found even
//! if its digest was left alone.

use std::collections::BTreeMap;
use std::fmt;

use futures_util::future::BoxFuture;
use sqlx::postgres::PgConnection;

use super::postgres::Postgres;
use super::read::{self, Archived};
use crate::conversation::ConversationId;
use crate::shards::{DigestPage, StoredKind};

/// Versions compared at a time.
const VERSIONS_AT_A_TIME: u64 = 500;
/// Conversations read from the archive at a time.
const CONVERSATIONS_AT_A_TIME: i64 = 500;
/// Differences that are told of; others are counted.
const TOLD_MAX: usize = 100;

/// Where the log is read: a node that is asked.
pub trait Log: Send + Sync {
    /// Ids after this one, in order; none when there are no more.
    fn ids_after<'a>(
        &'a self,
        after: Option<&'a ConversationId>,
    ) -> BoxFuture<'a, Result<Vec<ConversationId>, String>>;
    /// Digests of the versions from `first` on; `None` when there is no such conversation.
    fn digests<'a>(
        &'a self,
        id: &'a ConversationId,
        first: u64,
        limit: u64,
    ) -> BoxFuture<'a, Result<Option<DigestPage>, String>>;
}

/// What came of a comparison.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Findings {
    pub conversations: u64,
    pub equal: u64,
    /// Versions that the log does not claim to be archived, and that are not.
    pub lagging: u64,
    pub different: u64,
    /// The first of them, one line each.
    pub told: Vec<String>,
}

impl Findings {
    fn differs(&mut self, id: &ConversationId, what: fmt::Arguments<'_>) {
        self.different += 1;
        if self.told.len() < TOLD_MAX {
            self.told.push(format!("{id}: {what}"));
        }
    }
}

impl fmt::Display for Findings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.told.iter().try_for_each(|line| writeln!(f, "{line}"))?;
        let Self { conversations, equal, lagging, different, .. } = self;
        writeln!(
            f,
            "{conversations} conversations: {equal} versions equal, {lagging} not archived yet, {different} differences"
        )
    }
}

/// Compares one conversation, or all.
pub async fn verify(
    url: &str,
    cluster: u128,
    log: &dyn Log,
    only: Option<&ConversationId>,
) -> Result<Findings, String> {
    let postgres = Postgres::new(url, 1).map_err(|error| error.to_string())?;
    let mut connection = postgres.connection().await.map_err(|error| error.to_string())?;
    let mut verifier = Verifier { connection: &mut connection, cluster, log, findings: Findings::default() };
    match only {
        Some(id) => verifier.one(id).await?,
        None => verifier.all().await?,
    }
    Ok(verifier.findings)
}

struct Verifier<'a> {
    connection: &'a mut PgConnection,
    cluster: u128,
    log: &'a dyn Log,
    findings: Findings,
}

impl Verifier<'_> {
    async fn all(&mut self) -> Result<(), String> {
        let mut last = None;
        loop {
            let ids = self.log.ids_after(last.as_ref()).await?;
            for id in &ids {
                self.one(id).await?;
            }
            match ids.into_iter().next_back() {
                Some(id) => last = Some(id),
                None => return self.strangers().await,
            }
        }
    }

    /// Conversations that only the archive knows.
    async fn strangers(&mut self) -> Result<(), String> {
        let mut after = String::new();
        loop {
            let page =
                read::conversations(self.connection, self.cluster, &after, CONVERSATIONS_AT_A_TIME).await;
            let page = page.map_err(|error| error.to_string())?;
            let Some(last) = page.last() else { return Ok(()) };
            after = last.id.as_str().to_owned();
            for Archived { id, .. } in &page {
                if self.log.digests(id, 0, 1).await?.is_none() {
                    self.findings.differs(id, format_args!("in the archive, and not in the log"));
                }
            }
        }
    }

    async fn one(&mut self, id: &ConversationId) -> Result<(), String> {
        self.findings.conversations += 1;
        let (mut first, mut after_seq) = (0, 0);
        loop {
            let Some(page) = self.log.digests(id, first, VERSIONS_AT_A_TIME).await? else {
                self.findings.differs(id, format_args!("not in the log"));
                return Ok(());
            };
            let count = page.digests.len() as u64;
            if count == 0 {
                return self.beyond(id, first, after_seq, page.version).await;
            }
            after_seq = self.compare(id, first, after_seq, &page).await?;
            first += count;
        }
    }

    /// Answers the seq of the last event compared.
    async fn compare(
        &mut self,
        id: &ConversationId,
        first: u64,
        mut after_seq: u64,
        page: &DigestPage,
    ) -> Result<u64, String> {
        let limit = page.digests.len() as i64;
        let rows = read::versions(self.connection, self.cluster, id, first, after_seq, limit).await;
        let mut rows: BTreeMap<u64, _> = rows.map_err(|error| error.to_string())?.into_iter().collect();
        for (version, expected) in (first..).zip(&page.digests) {
            let Some(row) = rows.remove(&version) else {
                match page.archived_version >= Some(version) {
                    true => {
                        self.findings.differs(id, format_args!("version {version} is not in the archive"))
                    }
                    false => self.findings.lagging += 1,
                }
                continue;
            };
            let row = match row {
                Ok(row) => row,
                Err(error) => {
                    self.findings.differs(id, format_args!("{error}"));
                    continue;
                }
            };
            if let StoredKind::Event { seq, .. } = row.version.kind {
                after_seq = after_seq.max(seq);
            }
            match (row.version.digest() == *expected, row.digest == *expected) {
                (true, true) => self.findings.equal += 1,
                (false, _) => {
                    self.findings.differs(id, format_args!("version {version} is another in the archive"));
                }
                (true, false) => {
                    self.findings
                        .differs(id, format_args!("the digest of version {version} is wrong in the archive"));
                }
            }
        }
        Ok(after_seq)
    }

    /// What the archive has after the last version of the log.
    async fn beyond(
        &mut self,
        id: &ConversationId,
        first: u64,
        after_seq: u64,
        version: u64,
    ) -> Result<(), String> {
        let rows = read::versions(self.connection, self.cluster, id, first, after_seq, 1).await;
        // What was written since the digests were made is not a difference: the log is asked again.
        let now = self.log.digests(id, version + 1, 1).await?.map_or(0, |page| page.version);
        if now == version && !rows.map_err(|error| error.to_string())?.is_empty() {
            self.findings.differs(id, format_args!("the archive goes on after version {version}"));
        }
        Ok(())
    }
}
