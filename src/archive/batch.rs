//! One batch: reads what the archive lacks, writes it in one transaction, and has it marked.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Instant;

use futures_util::future::join_all;
use tokio::time::sleep;
use tracing::{error, warn};

use super::pace;
use super::plan::Outcome;
use super::postgres::{FailureKind, Postgres, WriteError, Written};
use super::rows::{Rows, Unreadable};
use crate::conversation::{ConversationId, MAX_MARKS, Mark, Marks};
use crate::metrics::Metrics;
use crate::shards::placement::group_of;
use crate::shards::{HistoryLimits, HistoryPage, Shards, StoredKind};

/// Bytes of bodies in a batch, about. A batch takes about four times that in memory while it is written.
pub(super) const BATCH_BYTES: u64 = 4 << 20;

/// Of how many conversations it is looked at since when the archive lacks something of them, and at how much of each.
const WAITING_LONGEST: usize = 16;
const FIRST_VERSIONS: HistoryLimits = HistoryLimits { versions: 16, bytes: 64 << 10 };

/// What a batch is done with.
#[derive(Clone)]
pub(super) struct Context {
    pub(super) shards: Shards,
    pub(super) postgres: Postgres,
    pub(super) metrics: Metrics,
    pub(super) cluster: u128,
    pub(super) batch_rows: usize,
}

/// What came of a batch.
#[derive(Debug)]
pub(super) struct Report {
    pub(super) outcomes: Vec<(ConversationId, Outcome)>,
    /// What keeps the archive as a whole from going on.
    pub(super) failure: Option<Failure>,
}

#[derive(Debug)]
pub(super) struct Failure {
    pub(super) kind: FailureKind,
    pub(super) why: String,
}

impl From<WriteError> for Failure {
    fn from(error: WriteError) -> Self {
        Self { kind: error.kind(), why: error.to_string() }
    }
}

/// A conversation's share of a batch.
struct Share {
    id: ConversationId,
    page: HistoryPage,
    /// What the archive held of it, which the page follows.
    held: Option<u64>,
    /// The last version in it.
    upto: u64,
}

impl Share {
    fn add_to(&self, rows: &mut Rows) -> Result<(), Unreadable> {
        rows.add(&self.id, &self.page)?;
        rows.add_standing(&self.id, &self.page.description, self.held, self.upto);
        Ok(())
    }
}

/// When the first message of these versions was appended.
fn oldest_ms(page: &HistoryPage) -> Option<u64> {
    page.versions.iter().find_map(|version| match &version.kind {
        StoredKind::Event { message, .. } => Some(message.inserted_at_ms),
        _ => None,
    })
}

/// Does one batch, and gives appends of clients room after it.
pub(super) async fn paced(context: Context, ids: Vec<ConversationId>) -> Report {
    let (shards, metrics) = (context.shards.clone(), context.metrics.clone());
    let (begun, before) = (Instant::now(), metrics.appended_events_total.get());
    let report = run(context, ids).await;
    let appended = metrics.appended_events_total.get() - before;
    sleep(pace::rest(begun.elapsed(), appended, shards.unarchived_versions())).await;
    report
}

/// Does one batch of these conversations.
async fn run(context: Context, ids: Vec<ConversationId>) -> Report {
    let mut report = Report { outcomes: Vec::with_capacity(ids.len()), failure: None };
    let held = match context.postgres.archived(context.cluster, &ids.iter().collect::<Vec<_>>()).await {
        Ok(held) => held,
        Err(error) => return unanswered(&context, ids, error).await,
    };
    let mut shares = read(&context, ids, &held, &mut report).await;
    let written = match write_all(&context, &mut shares, &mut report).await {
        Ok(written) => written,
        Err(error) => {
            report.failure = Some(error.into());
            let failed =
                |share: Share| (share.id.clone(), Outcome::Failed { oldest_ms: oldest_ms(&share.page) });
            report.outcomes.extend(shares.into_iter().map(failed));
            return report;
        }
    };
    context.metrics.archive_rows_attempted_total.inc_by(written.attempted);
    context.metrics.archive_rows_inserted_total.inc_by(written.inserted);
    mark(&context, shares, &mut report).await;
    report
}

/// The archive did not say what it holds. Since when it lags is known all the same, by the marks of those that wait longest.
async fn unanswered(context: &Context, ids: Vec<ConversationId>, error: WriteError) -> Report {
    let mut outcomes = Vec::with_capacity(ids.len());
    for (n, id) in ids.into_iter().enumerate() {
        let page = match n < WAITING_LONGEST {
            true => context.shards.unarchived(&id, Some(u64::MAX), FIRST_VERSIONS).await.ok().flatten(),
            false => None,
        };
        outcomes.push((id, Outcome::Failed { oldest_ms: page.as_ref().and_then(oldest_ms) }));
    }
    Report { outcomes, failure: Some(error.into()) }
}

/// Reads what the archive lacks, as far as a batch goes.
async fn read(
    context: &Context,
    ids: Vec<ConversationId>,
    held: &HashMap<String, u64>,
    report: &mut Report,
) -> Vec<Share> {
    let mut left = HistoryLimits { versions: context.batch_rows, bytes: BATCH_BYTES };
    let mut shares = Vec::with_capacity(ids.len());
    for id in ids {
        if left.versions == 0 || left.bytes == 0 {
            report.outcomes.push((id, Outcome::Untouched));
            continue;
        }
        let held = held.get(id.as_str()).copied();
        let page = match context.shards.unarchived(&id, held, left).await {
            Ok(Some(page)) => page,
            Ok(None) => {
                report.outcomes.push((id, Outcome::Gone));
                continue;
            }
            Err(error) => {
                report.failure = Some(Failure { kind: FailureKind::Log, why: error.to_string() });
                report.outcomes.push((id, Outcome::Failed { oldest_ms: None }));
                continue;
            }
        };
        let Some(last) = page.versions.last() else {
            report.outcomes.push((id, Outcome::Gone));
            continue;
        };
        left.versions = left.versions.saturating_sub(page.versions.len());
        left.bytes = left.bytes.saturating_sub(bytes(&page));
        shares.push(Share { held: held.min(page.archived_version), upto: last.version, id, page });
    }
    // One order for everybody who writes: transactions that meet on the same rows then wait for each other in it.
    shares.sort_unstable_by(|a, b| a.id.cmp(&b.id));
    shares
}

fn bytes(page: &HistoryPage) -> u64 {
    let of = |kind: &StoredKind| match kind {
        StoredKind::Event { message, .. } => message.body.len(),
        StoredKind::Compaction { replacement, .. } => replacement.iter().map(|m| m.body.len()).sum(),
        _ => 0,
    };
    page.versions.iter().map(|version| of(&version.kind) as u64).sum()
}

/// Writes all shares but those that the archive contradicts, which are taken out of `shares`.
async fn write_all(
    context: &Context,
    shares: &mut Vec<Share>,
    report: &mut Report,
) -> Result<Written, WriteError> {
    let stopped = |share: Share, report: &mut Report| report.outcomes.push((share.id, Outcome::Conflict));
    loop {
        let mut rows = Rows::default();
        let mut unreadable = BTreeSet::new();
        for share in shares.iter() {
            if let Err(error) = share.add_to(&mut rows) {
                error!(event = "archive_unreadable", conversation_id = %error.id, version = error.version, %error);
                context.metrics.archive_failures.of(FailureKind::Data as usize).inc();
                unreadable.insert(share.id.as_str().to_owned());
            }
        }
        let out = match unreadable.is_empty() {
            false => unreadable,
            true if shares.is_empty() => return Ok(Written::default()),
            true => match timed(context, &rows).await {
                Err(WriteError::Conflict(ids)) => {
                    for id in &ids {
                        error!(event = "archive_conflict", conversation_id = %id);
                    }
                    context
                        .metrics
                        .archive_failures
                        .of(FailureKind::Conflict as usize)
                        .inc_by(ids.len() as u64);
                    ids
                }
                Err(error) if error.kind() == FailureKind::Data => {
                    warn!(event = "archive_rows_refused", rows = rows.len(), %error);
                    context.metrics.archive_failures.of(FailureKind::Data as usize).inc();
                    return write_each(context, shares, report).await;
                }
                done => return done,
            },
        };
        let (kept, taken) = std::mem::take(shares).into_iter().partition(|s| !out.contains(s.id.as_str()));
        *shares = kept;
        taken.into_iter().for_each(|share| stopped(share, report));
    }
}

/// Writes each share by itself, so that one which Postgres does not take holds up no other. Such a one goes without what
/// is made of its bytes, which is all that can be wrong with it.
async fn write_each(
    context: &Context,
    shares: &mut Vec<Share>,
    report: &mut Report,
) -> Result<Written, WriteError> {
    let mut sum = Written::default();
    let mut kept = Vec::with_capacity(shares.len());
    let mut failed = None;
    for share in std::mem::take(shares) {
        let mut rows = Rows::default();
        if failed.is_some() || share.add_to(&mut rows).is_err() {
            report.outcomes.push((share.id, Outcome::Failed { oldest_ms: None }));
            continue;
        }
        let mut done = timed(context, &rows).await;
        if done.as_ref().is_err_and(|error| error.kind() == FailureKind::Data) {
            warn!(event = "archive_plain", conversation_id = %share.id, "written without jsonb");
            rows.leave_bytes_only();
            done = timed(context, &rows).await;
        }
        match done {
            Ok(written) => {
                sum.attempted += written.attempted;
                sum.inserted += written.inserted;
                kept.push(share);
            }
            Err(error) => {
                let stops = matches!(error.kind(), FailureKind::Conflict | FailureKind::Data);
                let event = if stops { "archive_conflict" } else { "archive_share_failed" };
                error!(event, conversation_id = %share.id, %error);
                context.metrics.archive_failures.of(error.kind() as usize).inc();
                if stops {
                    report.outcomes.push((share.id, Outcome::Conflict));
                } else {
                    report
                        .outcomes
                        .push((share.id.clone(), Outcome::Failed { oldest_ms: oldest_ms(&share.page) }));
                    failed = Some(Failure::from(error));
                }
            }
        }
    }
    report.failure = failed;
    *shares = kept;
    Ok(sum)
}

/// Writes rows, and measures it.
pub(super) async fn timed(context: &Context, rows: &Rows) -> Result<Written, WriteError> {
    let begun = Instant::now();
    let written = context.postgres.write(context.cluster, rows).await;
    if written.is_ok() {
        context.metrics.archive_flush_seconds.observe(begun.elapsed().as_secs_f64());
        context.metrics.archive_batch_rows.observe(rows.len() as f64);
    }
    written
}

/// Has the log know what was written: one entry for each group.
async fn mark(context: &Context, shares: Vec<Share>, report: &mut Report) {
    let mut groups: BTreeMap<u16, Vec<Share>> = BTreeMap::new();
    for share in shares {
        groups.entry(group_of(&share.id)).or_default().push(share);
    }
    let mut entries = Vec::new();
    for (group, mut shares) in groups {
        while !shares.is_empty() {
            let rest = shares.split_off(shares.len().min(MAX_MARKS));
            entries.push((group, std::mem::replace(&mut shares, rest)));
        }
    }
    let marked = join_all(entries.iter().map(|(group, shares)| {
        let mark = |share: &Share| Mark { id: share.id.clone(), archived_version: share.upto };
        context.shards.mark(*group, Marks::new(shares.iter().map(mark).collect()))
    }));
    for ((_, shares), marked) in entries.iter().zip(marked.await) {
        if let Err(error) = &marked {
            report.failure = Some(Failure { kind: FailureKind::Mark, why: error.to_string() });
        }
        for share in shares {
            let outcome = match marked {
                Ok(()) => Outcome::Sent { behind: share.page.description.version - share.upto },
                Err(_) => Outcome::Failed { oldest_ms: oldest_ms(&share.page) },
            };
            report.outcomes.push((share.id.clone(), outcome));
        }
    }
}
