//! Reading single messages back from the archive, for those that were trimmed from the log.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use tokio::time::timeout;

use super::postgres::Postgres;
use super::service::ClusterView;
use crate::conversation::ConversationId;
use crate::metrics::Metrics;
use crate::shards::ColdStore;

/// Longest wait for one page, a connection included.
const READ_MAX: Duration = Duration::from_secs(5);
/// After a failure others are answered with it for so long, rather than each waiting by itself.
const REST: Duration = Duration::from_secs(1);

/// The archive's rows, one by one.
pub(super) struct ColdRows {
    pub(super) postgres: Postgres,
    pub(super) cluster: Arc<dyn ClusterView>,
    pub(super) metrics: Metrics,
    /// When and why the archive could last not be read.
    pub(super) failed: Mutex<Option<(Instant, String)>>,
}

impl ColdRows {
    async fn read(&self, id: &ConversationId, seqs: Vec<u64>) -> Result<Vec<Option<Bytes>>, String> {
        let recently = self.failed.lock().clone().filter(|(at, _)| at.elapsed() < REST);
        if let Some((_, why)) = recently {
            return Err(why);
        }
        let cluster = self.cluster.id().ok_or("this node belongs to no cluster yet")?;
        let found = match timeout(READ_MAX, self.postgres.bodies(cluster, id, &seqs)).await {
            Ok(Ok(found)) => found,
            Ok(Err(error)) => return Err(self.note(error.to_string())),
            Err(_) => return Err(self.note(format!("it did not answer within {READ_MAX:?}"))),
        };
        self.metrics.archive_reads_total.inc_by(found.len() as u64);
        let mut found: HashMap<u64, Bytes> = found.into_iter().collect();
        Ok(seqs.iter().map(|seq| found.remove(seq)).collect())
    }

    fn note(&self, why: String) -> String {
        self.metrics.archive_read_failures_total.inc();
        tracing::warn!(event = "archive_read_failed", error = %why);
        *self.failed.lock() = Some((Instant::now(), why.clone()));
        why
    }
}

impl ColdStore for ColdRows {
    fn bodies<'a>(
        &'a self,
        id: &'a ConversationId,
        seqs: Vec<u64>,
    ) -> BoxFuture<'a, Result<Vec<Option<Bytes>>, String>> {
        Box::pin(self.read(id, seqs))
    }
}
