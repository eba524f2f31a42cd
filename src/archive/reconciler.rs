//! The reconciler: has sent again what the archive held once, by the marks of conversations, and holds no more.
//!
//! A standby that was promoted without the newest commits, a database that was restored to an earlier time, or another one
//! altogether tells so itself: what it says of a conversation was committed with the conversation's rows. A batch asks about
//! the conversations it is made of. Those that nobody writes to are asked about here: once after the node came to lead
//! them, and again whenever another archive answers, or one that was restarted. What lacks something is the flusher's to
//! send, as if it had changed. Lacks on purpose a look at the rows: who deletes some is found out by `verify`, and by the
//! trimmer.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::pace::{IDLE_INTERVALS, LOOK_REST};
use super::postgres::{Postgres, WriteError};
use super::service::ClusterView;
use crate::conversation::{ConversationId, unarchived};
use crate::shards::{Lagging, ReadError, Shards};

pub(super) struct Reconciler {
    pub(super) shards: Shards,
    pub(super) postgres: Postgres,
    pub(super) flush_interval: Duration,
    pub(super) cluster: Arc<dyn ClusterView>,
    /// To the flusher: what the archive lacks.
    pub(super) lost: mpsc::Sender<Vec<Lagging>>,
    /// Of each group, which following of it was asked about, and which archive.
    pub(super) asked: HashMap<u16, (u64, String)>,
}

/// Why a group was not asked about to the end.
#[derive(Debug, thiserror::Error)]
enum LookError {
    #[error(transparent)]
    Log(#[from] ReadError),
    #[error(transparent)]
    Archive(#[from] WriteError),
}

impl Reconciler {
    pub(super) async fn run(mut self, stop: CancellationToken) {
        let passes = async {
            loop {
                sleep(self.flush_interval * IDLE_INTERVALS).await;
                if let Err(error) = self.pass().await {
                    warn!(event = "archive_reconcile_failed", kind = ?error.kind(), %error);
                }
            }
        };
        tokio::select! {
            () = stop.cancelled() => {}
            () = passes => {}
        }
    }

    /// Asks about the groups that this archive was not asked about yet.
    async fn pass(&mut self) -> Result<(), WriteError> {
        let Some(cluster) = self.cluster.id() else { return Ok(()) };
        let archive = self.postgres.instance().await?;
        for (group, following) in self.shards.followed_for_archive() {
            let asked = (following, archive.clone());
            if self.asked.get(&group) == Some(&asked) {
                continue;
            }
            match self.look(cluster, group).await {
                Ok(()) => drop(self.asked.insert(group, asked)),
                Err(LookError::Archive(error)) => return Err(error),
                Err(LookError::Log(error)) => warn!(event = "archive_reconcile_failed", group, %error),
            }
        }
        Ok(())
    }

    /// Asks about every conversation of a group.
    async fn look(&self, cluster: u128, group: u16) -> Result<(), LookError> {
        let mut after: Option<ConversationId> = None;
        loop {
            let begun = Instant::now();
            let (marked, last) = self.shards.look_for_archived(group, after).await?;
            let ids: Vec<&ConversationId> = marked.iter().map(|(id, _)| id).collect();
            let held = self.postgres.archived(cluster, &ids).await?;
            let lacks = |(id, upto): (ConversationId, u64)| {
                let held = held.get(id.as_str()).copied();
                // It may hold more than it is marked to.
                (held < Some(upto)).then(|| Lagging { id, behind: unarchived(upto, held) })
            };
            let lost: Vec<Lagging> = marked.into_iter().filter_map(lacks).collect();
            sleep(begun.elapsed() * LOOK_REST).await;
            if let Some(first) = lost.first() {
                warn!(event = "archive_lost", conversations = lost.len(), first = %first.id, "sent again");
                // Waits for room. Without a flusher the node is stopping.
                let _ = self.lost.send(lost).await;
            }
            after = last;
            if after.is_none() {
                return Ok(());
            }
        }
    }
}
