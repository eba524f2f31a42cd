//! One quorum round confirms all reads of a group that arrived before it began.

use std::mem;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Weak};

use futures_util::FutureExt;
use parking_lot::Mutex;
use tokio::sync::oneshot;

/// Why a read could not be confirmed. Reads have no effect: all of it is safe to retry.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ReadFailure {
    #[error("this node does not lead the group")]
    NotLeader,
    #[error("{0}")]
    Unavailable(String),
}

/// Reads of one group that wait for their log index.
#[derive(Default)]
pub(super) struct ReadBarrier(Mutex<Waiting>);

#[derive(Default)]
struct Waiting {
    /// A round is under way; it does not count for those who came after it began.
    running: bool,
    reads: Vec<oneshot::Sender<Result<u64, ReadFailure>>>,
}

impl ReadBarrier {
    /// What a round about `of` says that began after the call.
    pub(super) async fn confirm<T, R>(
        self: &Arc<Self>,
        of: &Weak<T>,
        round: impl Fn(Arc<T>) -> R + Send + 'static,
    ) -> Result<u64, ReadFailure>
    where
        T: Send + Sync + 'static,
        R: Future<Output = Result<u64, ReadFailure>> + Send + 'static,
    {
        let (tx, rx) = oneshot::channel();
        let start = {
            let mut waiting = self.0.lock();
            waiting.reads.push(tx);
            !mem::replace(&mut waiting.running, true)
        };
        if start {
            // A task of its own: the reader that starts it may go away before the others are answered.
            tokio::spawn(self.clone().rounds(of.clone(), round));
        }
        rx.await.unwrap_or_else(|_| Err(ReadFailure::Unavailable("the node is stopping".into())))
    }

    async fn rounds<T, R>(self: Arc<Self>, of: Weak<T>, round: impl Fn(Arc<T>) -> R)
    where
        R: Future<Output = Result<u64, ReadFailure>>,
    {
        loop {
            let reads = {
                let mut waiting = self.0.lock();
                if waiting.reads.is_empty() {
                    waiting.running = false;
                    return;
                }
                mem::take(&mut waiting.reads)
            };
            let unavailable = |why: &str| Err(ReadFailure::Unavailable(why.into()));
            let confirmed = match of.upgrade() {
                // A panic is not to keep those waiting who come later.
                Some(of) => AssertUnwindSafe(round(of))
                    .catch_unwind()
                    .await
                    .unwrap_or_else(|_| unavailable("the node failed while it confirmed the read")),
                None => unavailable("the node is stopping"),
            };
            for read in reads {
                // A reader that gave up needs no answer.
                let _ = read.send(confirmed.clone());
            }
        }
    }
}
