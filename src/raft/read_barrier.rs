//! One quorum round confirms all reads of a group that arrived before it began.

use std::future::Future;
use std::mem;
use std::sync::Arc;

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
pub(crate) struct ReadBarrier(Mutex<Waiting>);

#[derive(Default)]
struct Waiting {
    /// A round is under way; it does not count for those who came after it began.
    running: bool,
    reads: Vec<oneshot::Sender<Result<u64, ReadFailure>>>,
}

impl ReadBarrier {
    /// What a round says that began after the call; any that are needed are made by `round`.
    pub(crate) async fn confirm<R>(
        self: &Arc<Self>,
        round: impl Fn() -> R + Send + 'static,
    ) -> Result<u64, ReadFailure>
    where
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
            tokio::spawn(self.clone().rounds(round));
        }
        rx.await.unwrap_or_else(|_| Err(ReadFailure::Unavailable("the node is stopping".into())))
    }

    async fn rounds<R>(self: Arc<Self>, round: impl Fn() -> R)
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
            let confirmed = round().await;
            for read in reads {
                // A reader that gave up needs no answer.
                let _ = read.send(confirmed.clone());
            }
        }
    }
}
