//! Messages that were trimmed: their bytes are in the archive, and are known again by what the log kept of them.
//!
//! What is read is planned before, on the records here, so that a page or window takes the memory it would take from the
//! journal. Bytes of another length or checksum are never served.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use tokio::sync::Semaphore;

use super::ReadError;
use super::room::AnswerRoom;
use crate::conversation::{ConversationId, Location};

/// Reads of the archive at a time; more wait.
const READS_MAX: usize = 8;

/// Where the bytes of trimmed messages are.
pub trait ColdStore: Send + Sync + 'static {
    /// The bodies of these messages, in this order, `None` for one that is not there; within seconds. The error says
    /// why nothing could be read.
    fn bodies<'a>(
        &'a self,
        id: &'a ConversationId,
        seqs: Vec<u64>,
    ) -> BoxFuture<'a, Result<Vec<Option<Bytes>>, String>>;
}

/// The archive as reads see it, and the bounds of what is read, from there or from here.
pub(super) struct Cold {
    store: OnceLock<Arc<dyn ColdStore>>,
    room: Semaphore,
    window_bytes_max: OnceLock<u64>,
    /// For what is read here for answers that are being made.
    pub(super) answers: AnswerRoom,
}

impl Cold {
    /// `request_timeout` bounds the wait for room.
    pub(super) fn new(request_timeout: Duration) -> Self {
        let (store, window_bytes_max) = Default::default();
        let answers = AnswerRoom::new(request_timeout);
        Self { store, room: Semaphore::new(READS_MAX), window_bytes_max, answers }
    }

    pub(super) fn set(&self, store: Arc<dyn ColdStore>) {
        let _ = self.store.set(store);
    }

    pub(super) fn bound_windows(&self, bytes_max: u64) {
        let _ = self.window_bytes_max.set(bytes_max);
    }

    pub(super) fn window_bytes_max(&self) -> u64 {
        self.window_bytes_max.get().copied().unwrap_or(u64::MAX)
    }

    /// Bodies of trimmed messages, each as it was appended.
    pub(super) async fn read(
        &self,
        id: &ConversationId,
        wanted: &[(u64, Location)],
    ) -> Result<Vec<Bytes>, ReadError> {
        let found = self.look(id, wanted).await?.into_iter().zip(wanted);
        let checked = found.map(|(body, (seq, _))| {
            body.ok_or_else(|| {
                tracing::error!(event = "archive_differs", conversation_id = id.as_str(), seq);
                ReadError::ArchiveUnavailable(format!("it does not hold event {seq} as it was appended"))
            })
        });
        checked.collect()
    }

    /// As [`Cold::read`], with `None` for what the archive lacks or has otherwise.
    pub(super) async fn look(
        &self,
        id: &ConversationId,
        wanted: &[(u64, Location)],
    ) -> Result<Vec<Option<Bytes>>, ReadError> {
        let unavailable = ReadError::ArchiveUnavailable;
        let store =
            self.store.get().ok_or_else(|| unavailable("this node has no FASTPACA_POSTGRES_URL".into()))?;
        let _room = self.room.acquire().await.map_err(|error| unavailable(error.to_string()))?;
        let seqs = wanted.iter().map(|(seq, _)| *seq).collect();
        let bodies = store.bodies(id, seqs).await.map_err(unavailable)?;
        if bodies.len() != wanted.len() {
            return Err(ReadError::Internal("the archive answered another question".into()));
        }
        let as_appended =
            |(body, (_, at)): (Option<Bytes>, &(u64, Location))| body.filter(|body| at.is_of(body));
        Ok(bodies.into_iter().zip(wanted).map(as_appended).collect())
    }
}
