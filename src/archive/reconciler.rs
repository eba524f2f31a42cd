//! The reconciler: has sent again what the archive held once, by the marks of conversations, and holds no more.
//!
//! A standby that was promoted without the newest commits, a database that was restored to an earlier time, or another one
//! altogether tells so itself: what it says of a conversation was committed with the conversation's rows. A batch asks about
//! the conversations it is made of. Those that nobody writes to are asked about here: once after the node came to lead
//! them, and again whenever a server of Postgres answers that was started at another time. Lacks on purpose a look at the
//! rows: who deletes some is found out by `verify`, and by the trimmer.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::batch::{self, Context, Failure};
use super::plan::Outcome;
use super::postgres::{FailureKind, Postgres};
use super::service::ClusterView;
use crate::conversation::ConversationId;
use crate::metrics::Metrics;
use crate::shards::{ReadError, Shards};

/// Rest after looking at some records, in times of what that took: looking costs a tenth of a core at most.
const LOOK_REST: u32 = 9;
/// Postgres is asked whether it is another so many flush intervals apart.
const IDLE_INTERVALS: u32 = 12;

pub(super) struct Reconciler {
    pub(super) shards: Shards,
    pub(super) postgres: Postgres,
    pub(super) metrics: Metrics,
    /// Rows that are sent again in one transaction.
    pub(super) batch_rows: usize,
    pub(super) flush_interval: Duration,
    pub(super) cluster: Arc<dyn ClusterView>,
    /// Which server of Postgres, by its start, was asked about the groups led here.
    pub(super) asked: HashMap<u16, String>,
}

impl From<ReadError> for Failure {
    fn from(error: ReadError) -> Self {
        Self { kind: FailureKind::Log, why: error.to_string() }
    }
}

impl Reconciler {
    pub(super) async fn run(mut self, stop: CancellationToken) {
        let passes = async {
            loop {
                sleep(self.flush_interval * IDLE_INTERVALS).await;
                if let Err(failure) = self.pass().await {
                    failed(&failure);
                }
            }
        };
        tokio::select! {
            () = stop.cancelled() => {}
            () = passes => {}
        }
    }

    /// Asks about the groups that this server was not asked about yet.
    async fn pass(&mut self) -> Result<(), Failure> {
        let Some(cluster) = self.cluster.id() else { return Ok(()) };
        let context = Context {
            shards: self.shards.clone(),
            postgres: self.postgres.clone(),
            metrics: self.metrics.clone(),
            cluster,
            batch_rows: self.batch_rows,
        };
        let led = self.shards.led_groups();
        self.asked.retain(|group, _| led.contains(group));
        let server = self.postgres.started().await?;
        for group in led {
            if self.asked.get(&group) == Some(&server) {
                continue;
            }
            match look(&context, group).await {
                Ok(()) => drop(self.asked.insert(group, server.clone())),
                // What is the matter with one group, or with one conversation, is not with the archive.
                Err(failure) if matches!(failure.kind, FailureKind::Log | FailureKind::Mark) => {
                    failed(&failure)
                }
                Err(failure) => return Err(failure),
            }
        }
        Ok(())
    }
}

fn failed(Failure { kind, why }: &Failure) {
    warn!(event = "archive_reconcile_failed", kind = ?kind, error = why);
}

/// Asks about every conversation of a group.
async fn look(context: &Context, group: u16) -> Result<(), Failure> {
    let mut after: Option<ConversationId> = None;
    loop {
        let begun = Instant::now();
        let (marked, last) = context.shards.look_for_archived(group, after).await?;
        let ids: Vec<&ConversationId> = marked.iter().map(|(id, _)| id).collect();
        let held = context.postgres.archived(context.cluster, &ids).await?;
        let is_lost = |(id, upto): &(ConversationId, u64)| held.get(id.as_str()) < Some(upto);
        let lost: Vec<_> = marked.into_iter().filter(is_lost).map(|(id, _)| id).collect();
        sleep(begun.elapsed() * LOOK_REST).await;
        if let Some(first) = lost.first() {
            warn!(event = "archive_lost", conversations = lost.len(), first = %first, "sent again");
            send(context, lost).await?;
        }
        after = last;
        if after.is_none() {
            return Ok(());
        }
    }
}

/// Has all of these conversations written that the archive lacks.
async fn send(context: &Context, mut ids: Vec<ConversationId>) -> Result<(), Failure> {
    while !ids.is_empty() {
        let report = batch::paced(context.clone(), ids).await;
        if let Some(failure) = report.failure {
            context.metrics.archive_failures.of(failure.kind as usize).inc();
            return Err(failure);
        }
        let goes_on = |outcome: &Outcome| match outcome {
            Outcome::Sent { behind } => *behind > 0,
            Outcome::Untouched => true,
            Outcome::Failed { .. } | Outcome::Conflict | Outcome::Gone => false,
        };
        let rest = report.outcomes.into_iter().filter(|(_, outcome)| goes_on(outcome));
        ids = rest.map(|(id, _)| id).collect();
    }
    Ok(())
}
