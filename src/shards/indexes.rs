//! Read indexes from leaders elsewhere. Concurrent reads of a group share calls: one is on its way, and the next one
//! serves everybody who came meanwhile.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::links::{Links, Method};
use super::remote::codec::{self, ReadIndex};

/// How long a leader may take to confirm that it still leads.
pub(super) const INDEX_CALL_MAX: Duration = Duration::from_secs(1);

/// The leader asked, and the group.
type Key = (u128, u16);
type Waiters = Vec<oneshot::Sender<ReadIndex>>;

/// The calls on their way.
#[derive(Clone)]
pub(super) struct Indexes {
    links: Arc<dyn Links>,
    /// For each call on its way, who waits for the next one: an index asked for before they came would be too old.
    waiting: Arc<Mutex<HashMap<Key, Waiters>>>,
}

impl Indexes {
    pub(super) fn new(links: Arc<dyn Links>) -> Self {
        Self { links, waiting: Arc::default() }
    }

    /// The read index of a group, asked for after this call began.
    pub(super) async fn one(&self, leader: u128, group: u16) -> ReadIndex {
        let (answer, answered) = oneshot::channel();
        match self.waiting.lock().entry((leader, group)) {
            Entry::Occupied(mut next) => next.get_mut().push(answer),
            Entry::Vacant(none) => {
                none.insert(Vec::new());
                // A task of its own: whoever began it may give up, and others still wait.
                tokio::spawn(self.clone().serve((leader, group), vec![answer]));
            }
        }
        answered.await.unwrap_or_else(|_| ReadIndex::Failed("the node is stopping".into()))
    }

    /// The read indexes of several groups, in their order, by one call.
    pub(super) async fn many(&self, leader: u128, groups: &[u16]) -> Vec<ReadIndex> {
        let failed = |why: String| vec![ReadIndex::Failed(why); groups.len()];
        let body: Vec<Bytes> = vec![codec::groups(groups)];
        match self.links.call(leader, Method::ReadIndex, body, INDEX_CALL_MAX).await {
            Ok(bytes) => match codec::read_indexes(bytes) {
                Ok(indexes) if indexes.len() == groups.len() => indexes,
                Ok(_) => failed("the leader answered for other groups".into()),
                Err(error) => failed(format!("the leader's answer: {error}")),
            },
            Err(error) => failed(error.to_string()),
        }
    }

    async fn serve(self, key: Key, mut waiters: Waiters) {
        loop {
            let mut indexes = self.many(key.0, &[key.1]).await;
            let index = indexes.pop().unwrap_or_else(|| ReadIndex::Failed("no answer".into()));
            for waiter in waiters {
                // One that has given up meanwhile needs no answer.
                let _ = waiter.send(index.clone());
            }
            let mut waiting = self.waiting.lock();
            waiters = waiting.get_mut(&key).map(std::mem::take).unwrap_or_default();
            if waiters.is_empty() {
                waiting.remove(&key);
                return;
            }
        }
    }
}
