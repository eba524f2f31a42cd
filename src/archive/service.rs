//! The flusher: finds out what the archive lacks of the groups led here, and has it written in batches.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::backoff::Backoff;
use super::batch::{self, Context, Failure, Report};
use super::cold::ColdRows;
use super::plan::Planner;
use super::postgres::{FailureKind, Postgres, WriteError};
use super::reconciler::Reconciler;
use super::trimmer::Trimmer;
use crate::config::Secret;
use crate::metrics::Metrics;
use crate::shards::{Lagging, Shards, now_ms};

/// Batches written at the same time, at most; the pool may allow fewer.
const BATCHES_MAX: usize = 4;
/// Conversations that may wait to be written; others are found when there is room again.
const QUEUE_MAX: usize = 50_000;

/// How the archive is written.
#[derive(Debug, Clone)]
pub struct ArchiveSettings {
    pub url: Secret,
    /// Between two looks at what changed.
    pub flush_interval: Duration,
    /// Rows in one batch.
    pub batch_rows: usize,
    pub connections: usize,
    /// Bring the schema up to date, or only check it.
    pub migrate: bool,
    /// Newest messages of a conversation that its log keeps, however many are archived; all, if `None`.
    pub tail_keep: Option<u64>,
}

/// What the archive asks of the cluster.
pub trait ClusterView: Send + Sync + 'static {
    /// Whose rows they are, once that is known.
    fn id(&self) -> Option<u128>;
    /// Whether every node of it knows what a trim is.
    fn understands_trims(&self) -> bool;
}

/// FASTPACA_POSTGRES_URL is no URL of Postgres. The text does not hold it.
#[derive(Debug, thiserror::Error)]
#[error("FASTPACA_POSTGRES_URL: {0}")]
pub struct InvalidUrl(String);

/// The running flusher.
pub struct Archive {
    stop: CancellationToken,
    tasks: Vec<JoinHandle<()>>,
    postgres: Postgres,
}

impl Archive {
    /// Starts it, and has the shards read from it what was trimmed. Postgres need not be there.
    pub fn start(
        settings: ArchiveSettings,
        shards: Shards,
        metrics: Metrics,
        cluster: Arc<dyn ClusterView>,
    ) -> Result<Self, InvalidUrl> {
        let postgres = Postgres::new(settings.url.expose(), settings.connections)
            .map_err(|error| InvalidUrl(error.to_string()))?;
        let stop = CancellationToken::new();
        let mut tasks = Vec::new();
        shards.set_cold_store(Arc::new(ColdRows {
            postgres: postgres.clone(),
            cluster: cluster.clone(),
            metrics: metrics.clone(),
            failed: Mutex::default(),
        }));
        let (found, lost) = mpsc::channel(1);
        let reconciler = Reconciler {
            shards: shards.clone(),
            postgres: postgres.clone(),
            flush_interval: settings.flush_interval,
            cluster: cluster.clone(),
            lost: found,
            asked: HashMap::new(),
        };
        tasks.push(tokio::spawn(reconciler.run(stop.clone())));
        if let Some(keep) = settings.tail_keep {
            let trimmer = Trimmer {
                shards: shards.clone(),
                postgres: postgres.clone(),
                metrics: metrics.clone(),
                keep,
                batch_rows: settings.batch_rows,
                flush_interval: settings.flush_interval,
                cluster: cluster.clone(),
            };
            tasks.push(tokio::spawn(trimmer.run(stop.clone())));
        }
        let flusher = Flusher {
            planner: Planner::new(settings.batch_rows, QUEUE_MAX),
            settings,
            shards,
            metrics,
            postgres: postgres.clone(),
            cluster,
            lost,
            tasks: JoinSet::new(),
            backoff: Backoff::default(),
            not_before: None,
            prepared: Prepared::No,
            more: false,
            failing: None,
        };
        tasks.push(tokio::spawn(flusher.run(stop.clone())));
        Ok(Self { stop, tasks, postgres })
    }

    /// Stops between two steps; what is under way is written again by whoever leads next, or found to be there.
    pub async fn stop(self) {
        self.stop.cancel();
        for task in self.tasks {
            let _ = task.await;
        }
        self.postgres.close().await;
    }
}

/// Whether the schema is known to be what it must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Prepared {
    No,
    UnderWay,
    Yes,
}

/// What a task comes back with.
enum Done {
    Prepared(Result<Vec<&'static str>, WriteError>),
    Batch(Report),
}

struct Flusher {
    settings: ArchiveSettings,
    shards: Shards,
    metrics: Metrics,
    postgres: Postgres,
    cluster: Arc<dyn ClusterView>,
    planner: Planner,
    /// What the reconciler finds.
    lost: mpsc::Receiver<Vec<Lagging>>,
    tasks: JoinSet<Done>,
    backoff: Backoff,
    /// Nothing is tried before, since something failed.
    not_before: Option<Instant>,
    prepared: Prepared,
    /// Another look at the groups would find more.
    more: bool,
    /// The kind of the last failure, until something succeeds.
    failing: Option<FailureKind>,
}

impl Flusher {
    async fn run(mut self, stop: CancellationToken) {
        let mut tick = interval(self.settings.flush_interval);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let retry_at = self.not_before;
            let has_room = self.planner.room() > 0;
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                Some(done) = self.tasks.join_next() => match done {
                    Ok(Done::Prepared(done)) => self.on_prepared(done),
                    Ok(Done::Batch(report)) => self.on_batch(report),
                    Err(error) => warn!(event = "archive_task_failed", %error),
                },
                () = wait_until(retry_at), if retry_at.is_some() => self.not_before = None,
                _ = tick.tick() => {
                    self.planner.release(now_ms());
                    self.look().await;
                }
                Some(lost) = self.lost.recv(), if has_room => self.lags(lost),
                () = tokio::task::yield_now(), if has_room && self.more => self.look().await,
            }
            self.dispatch();
            self.measure();
        }
        self.tasks.shutdown().await;
    }

    /// Takes in what changed in the groups led here.
    async fn look(&mut self) {
        self.more = false;
        for group in self.shards.archived_here() {
            let room = self.planner.room();
            if room == 0 {
                self.more = true;
                return;
            }
            match self.shards.look_for_unarchived(group, room).await {
                Ok(look) => {
                    self.more |= look.more;
                    self.lags(look.lagging);
                }
                Err(error) => warn!(event = "archive_look_failed", group, %error),
            }
        }
    }

    fn lags(&mut self, lagging: Vec<Lagging>) {
        let now = now_ms();
        lagging.into_iter().for_each(|lag| self.planner.lags(lag.id, lag.behind, now));
    }

    /// Starts what may be started.
    fn dispatch(&mut self) {
        let Some(cluster) = self.cluster.id() else { return };
        if self.not_before.is_some() {
            return;
        }
        match self.prepared {
            Prepared::Yes => {}
            Prepared::UnderWay => return,
            Prepared::No => {
                self.prepared = Prepared::UnderWay;
                let (postgres, migrate) = (self.postgres.clone(), self.settings.migrate);
                self.tasks.spawn(async move { Done::Prepared(postgres.prepare(migrate).await) });
                return;
            }
        }
        while self.tasks.len() < BATCHES_MAX.min(self.settings.connections) {
            let ids = self.planner.next_batch();
            if ids.is_empty() {
                return;
            }
            let context = Context {
                shards: self.shards.clone(),
                postgres: self.postgres.clone(),
                metrics: self.metrics.clone(),
                cluster,
                batch_rows: self.settings.batch_rows,
            };
            self.tasks.spawn(async move { Done::Batch(batch::paced(context, ids).await) });
        }
    }

    fn on_prepared(&mut self, done: Result<Vec<&'static str>, WriteError>) {
        match done {
            Ok(applied) => {
                info!(event = "archive_ready", applied = applied.join(","));
                self.prepared = Prepared::Yes;
                self.succeeded();
            }
            Err(error) => {
                self.prepared = Prepared::No;
                self.failed(&error.into());
            }
        }
    }

    fn on_batch(&mut self, report: Report) {
        let now = now_ms();
        report.outcomes.into_iter().for_each(|(id, outcome)| self.planner.settle(id, outcome, now));
        match &report.failure {
            Some(failure) => self.failed(failure),
            None => self.succeeded(),
        }
    }

    fn succeeded(&mut self) {
        self.backoff.succeeded();
        if let Some(kind) = self.failing.take() {
            info!(event = "archive_recovered", after = ?kind);
        }
    }

    /// Leaves everything alone for a while. Batches that fail together count once.
    fn failed(&mut self, failure: &Failure) {
        let Failure { kind, why } = failure;
        self.metrics.archive_failures.of(*kind as usize).inc();
        if self.not_before.is_some() {
            return;
        }
        // Where there is no randomness, there is no jitter.
        let delay = self.backoff.failed(getrandom::u32().unwrap_or(0));
        self.not_before = Some(Instant::now() + delay);
        self.failing = Some(*kind);
        warn!(event = "archive_failed", kind = ?kind, error = %why, retry_ms = delay.as_millis() as u64);
    }

    fn measure(&self) {
        let pending = i64::try_from(self.shards.unarchived_versions()).unwrap_or(i64::MAX);
        self.metrics.raft_pending_flush_messages.set(pending);
        let lag = self.planner.oldest_ms().map_or(0, |oldest| now_ms().saturating_sub(oldest));
        self.metrics.archive_lag_seconds.set(lag as f64 / 1_000.0);
        self.metrics.archive_stopped_conversations.set(self.planner.stopped() as i64);
    }
}

async fn wait_until(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}
