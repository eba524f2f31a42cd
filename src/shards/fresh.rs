//! Freshness: making sure that state here reflects every write acknowledged before a read began.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures_util::future::join_all;
use tokio::time::timeout_at;

use super::attached::Attached;
use super::local::Replica;
use super::remote::codec::ReadIndex;
use super::route::Route;
use super::search::{Deadline, Search};

pub(super) const NO_LEADER: &str = "its group has no leader";

/// An attempt that failed without an effect: another one may do.
#[derive(Debug)]
pub(super) struct Missed {
    pub why: String,
    /// Who leads the group according to whom was asked.
    pub leader: Option<u128>,
}

impl Missed {
    pub(super) fn new(why: impl Into<String>) -> Self {
        Self { why: why.into(), leader: None }
    }
}

impl Attached {
    /// Brings one replica up to date, by one attempt.
    pub(super) async fn refresh(
        &self,
        replica: &Arc<dyn Replica>,
        search: &mut Search<'_>,
        deadline: &Deadline,
    ) -> Result<(), Missed> {
        let attempt = async {
            let index = match search.leader() {
                Route::Here => self.index_here(&**replica).await,
                Route::To(node) => self.indexes.one(node, replica.group()).await,
                Route::Nowhere => ReadIndex::Failed(NO_LEADER.into()),
            };
            self.reach(&**replica, index).await
        };
        let late = |_| Missed::new("a quorum did not confirm the read in time");
        timeout_at(deadline.answer_by, attempt).await.map_err(late)?
    }

    /// Brings many replicas up to date at once, by one call to each node that leads some of them. Those that missed are tried
    /// again as long as others do not: on a busy machine not all of hundreds of rounds get through at once.
    pub(super) async fn refresh_all(
        &self,
        replicas: &[Arc<dyn Replica>],
        deadline: &Deadline,
    ) -> Result<(), Missed> {
        let mut left: Vec<&Arc<dyn Replica>> = replicas.iter().collect();
        let attempts = async {
            loop {
                let mut missed = self.refresh_once(&left).await;
                match missed.pop() {
                    None => return Ok(()),
                    Some((_, why)) if missed.len() + 1 == left.len() => return Err(why),
                    Some((last, _)) => {
                        left = missed.into_iter().map(|(replica, _)| replica).chain([last]).collect();
                    }
                }
            }
        };
        let late = |_| Missed::new("a quorum did not confirm the read in time");
        timeout_at(deadline.answer_by, attempts).await.map_err(late)?
    }

    /// Answers which replicas were not brought up to date, and why.
    async fn refresh_once<'a>(
        &self,
        replicas: &[&'a Arc<dyn Replica>],
    ) -> Vec<(&'a Arc<dyn Replica>, Missed)> {
        let here = self.local.node_id();
        let mut by_leader: BTreeMap<Option<u128>, Vec<&'a Arc<dyn Replica>>> = BTreeMap::new();
        for replica in replicas {
            by_leader.entry(replica.leader()).or_default().push(replica);
        }
        let calls = by_leader.into_iter().map(async |(leader, replicas)| {
            let indexes = match leader {
                None => vec![ReadIndex::Failed(NO_LEADER.into()); replicas.len()],
                Some(leader) if leader == here => {
                    join_all(replicas.iter().map(|replica| self.index_here(&***replica))).await
                }
                Some(leader) => {
                    let groups: Vec<u16> = replicas.iter().map(|replica| replica.group()).collect();
                    self.indexes.many(leader, &groups).await
                }
            };
            let each = replicas.into_iter().zip(indexes).map(async |(replica, index)| {
                self.reach(&**replica, index).await.err().map(|missed| (replica, missed))
            });
            join_all(each).await
        });
        join_all(calls).await.into_iter().flatten().flatten().collect()
    }

    /// The read index of a group that should be led from here.
    pub(super) async fn index_here(&self, replica: &dyn Replica) -> ReadIndex {
        let leader = replica.leader();
        if leader != Some(self.local.node_id()) {
            return ReadIndex::NotLeader(leader);
        }
        match replica.read_index().await {
            Ok(index) => ReadIndex::At(index),
            Err(why) => ReadIndex::Failed(why),
        }
    }

    async fn reach(&self, replica: &dyn Replica, index: ReadIndex) -> Result<(), Missed> {
        match index {
            ReadIndex::At(index) => replica.wait_applied(index).await.map_err(Missed::new)?,
            ReadIndex::NotLeader(leader) => {
                return Err(Missed { why: "the node asked does not lead the group".into(), leader });
            }
            ReadIndex::Failed(why) => return Err(Missed::new(why)),
        }
        self.set_caught_up(replica);
        Ok(())
    }
}
