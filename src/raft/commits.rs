//! Tells followers what is committed: for all groups of a pair of nodes in one call instead of one for each commit.
//!
//! openraft sends every advance of a commit as a request without entries. Once a follower has acknowledged entries on a
//! stream, such a request can say nothing else, and is taken out of the stream: what it says is noted here, and told
//! along with what other groups have to say to that node. The first goes at once; while calls are under way, and for a
//! moment after each, others gather.
//!
//! A commit is told only up to what the follower has acknowledged, so that what it hears of is on its disk. One that was lost
//! is told again for a while; after that, when a link to the node stands again, see `heartbeat`.

use std::collections::HashMap;
use std::collections::hash_map::Entry::{Occupied, Vacant};
use std::mem;
use std::sync::Arc;
use std::time::Duration;

use openraft::raft::AppendEntriesRequest;
use parking_lot::Mutex;
use tracing::warn;

use super::network::Transport;
use super::rpc::{self, Address, method};
use super::types::{LogId, TypeConfig, Vote};
use crate::peer::{CallError, Lane};

/// How long commits gather after a call that told some.
const GATHER: Duration = Duration::from_millis(4);
/// How long a node may take to hear of commits before it is told again.
const LIMIT: Duration = Duration::from_secs(5);
/// How often, and after which pauses, commits that did not arrive are told again.
const RETRIES_MAX: u32 = 20;
const RETRY: Duration = Duration::from_millis(250);

/// That a leader's log is committed up to somewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Commit {
    pub(crate) vote: Vote,
    pub(crate) upto: LogId,
}

/// What the followers on other nodes are yet to be told: at most one commit of each replica.
#[derive(Clone)]
pub(crate) struct Commits {
    transport: Arc<dyn Transport>,
    nodes: Arc<Mutex<HashMap<u128, HashMap<Address, Commit>>>>,
}

impl Commits {
    pub(crate) fn new(transport: Arc<dyn Transport>) -> Self {
        Self { transport, nodes: Arc::default() }
    }

    /// Has a replica on a node told, soon. Within a runtime.
    pub(crate) fn tell(&self, node: u128, to: Address, commit: Commit) {
        match self.nodes.lock().entry(node) {
            // Whoever tells that node comes back for it.
            Occupied(mut gathered) => {
                let newest = gathered.get_mut().entry(to).or_insert(commit);
                if newest.upto <= commit.upto {
                    *newest = commit;
                }
            }
            Vacant(none) => {
                none.insert([(to, commit)].into());
                tokio::spawn(self.clone().telling(node));
            }
        }
    }

    async fn telling(self, node: u128) {
        let mut retries = 0;
        while let Some(commits) = self.take(node) {
            let body = rpc::encode_commits(&commits);
            let told = self.transport.call(node, Lane::Log, method::COMMITS, vec![body], LIMIT).await;
            let pause = match told {
                Err(CallError::Lost(_) | CallError::NotSent(_)) if retries < RETRIES_MAX => {
                    retries += 1;
                    self.put_back(node, commits);
                    RETRY
                }
                Err(CallError::Refused(reason)) => {
                    warn!(event = "commits_refused", node, reason);
                    RETRY
                }
                _ => {
                    retries = 0;
                    GATHER
                }
            };
            tokio::time::sleep(pause).await;
        }
    }

    /// What has gathered for a node; nobody tells it any more if that is nothing.
    fn take(&self, node: u128) -> Option<HashMap<Address, Commit>> {
        let mut nodes = self.nodes.lock();
        let gathered = mem::take(nodes.get_mut(&node)?);
        if gathered.is_empty() {
            nodes.remove(&node);
            return None;
        }
        Some(gathered)
    }

    fn put_back(&self, node: u128, lost: HashMap<Address, Commit>) {
        let mut nodes = self.nodes.lock();
        let gathered = nodes.entry(node).or_default();
        for (to, commit) in lost {
            gathered.entry(to).or_insert(commit);
        }
    }
}

/// What one stream of append requests has said of commits.
#[derive(Default)]
pub(super) struct Told {
    /// Entries that the follower has acknowledged on this stream.
    acked: Option<LogId>,
    committed: Option<LogId>,
    told: Option<LogId>,
}

impl Told {
    /// Whether a request has to be sent, and otherwise what it has to say.
    pub(super) fn asks(&mut self, rpc: &AppendEntriesRequest<TypeConfig>) -> Result<(), Option<Commit>> {
        self.committed = self.committed.max(rpc.leader_commit);
        if !rpc.entries.is_empty() || self.acked.is_none() {
            return Ok(());
        }
        Err(self.due(rpc.vote))
    }

    /// A request that carried this commit was acknowledged up to there; what is yet to be told.
    pub(super) fn answered(
        &mut self,
        vote: Vote,
        acked: Option<LogId>,
        carried: Option<LogId>,
    ) -> Option<Commit> {
        self.acked = self.acked.max(acked);
        self.told = self.told.max(carried.min(self.acked));
        self.due(vote)
    }

    fn due(&mut self, vote: Vote) -> Option<Commit> {
        let upto = self.committed.min(self.acked);
        if upto <= self.told {
            return None;
        }
        self.told = upto;
        upto.map(|upto| Commit { vote, upto })
    }
}

/// A commit as a follower takes it.
pub(super) fn as_request(commit: Commit) -> AppendEntriesRequest<TypeConfig> {
    let upto = Some(commit.upto);
    AppendEntriesRequest { vote: commit.vote, prev_log_id: upto, leader_commit: upto, entries: Vec::new() }
}

#[cfg(test)]
mod tests {
    use openraft::entry::RaftEntry;

    use super::*;
    use crate::raft::testing::{Cluster, Fate};
    use crate::raft::types::{Entry, LeaderId};

    const VOTE: Vote = Vote { leader_id: LeaderId { term: 2, node_id: 1 }, committed: true };

    fn at(index: u64) -> Option<LogId> {
        Some(LogId { leader_id: VOTE.leader_id, index })
    }

    fn request(committed: u64, entries: std::ops::Range<u64>) -> AppendEntriesRequest<TypeConfig> {
        let entries = entries.map(|index| Entry::new_blank(at(index).unwrap())).collect();
        AppendEntriesRequest { vote: VOTE, prev_log_id: None, leader_commit: at(committed), entries }
    }

    fn told(commit: Option<Commit>) -> Option<u64> {
        commit.map(|commit| commit.upto.index)
    }

    #[test]
    fn a_stream_begins_with_a_request_that_is_sent() {
        let mut stream = Told::default();
        assert_eq!(stream.asks(&request(3, 0..0)), Ok(()));
        assert_eq!(told(stream.answered(VOTE, at(5), at(3))), None);
        assert_eq!(stream.asks(&request(3, 0..0)).map_err(told), Err(None));
        assert_eq!(stream.asks(&request(4, 0..0)).map_err(told), Err(Some(4)));
        assert_eq!(stream.asks(&request(4, 6..8)), Ok(()));
    }

    #[test]
    fn a_follower_hears_only_of_what_it_has_and_of_the_rest_once_it_has_it() {
        let mut stream = Told::default();
        stream.asks(&request(0, 1..5)).unwrap();
        assert_eq!(told(stream.answered(VOTE, at(4), at(0))), None);
        stream.asks(&request(2, 5..8)).unwrap();
        stream.asks(&request(2, 8..9)).unwrap();
        // The others were faster.
        assert_eq!(stream.asks(&request(8, 0..0)).map_err(told), Err(Some(4)));
        assert_eq!(told(stream.answered(VOTE, at(7), at(2))), Some(7));
        assert_eq!(told(stream.answered(VOTE, at(8), at(2))), Some(8));
        assert_eq!(stream.asks(&request(8, 0..0)).map_err(told), Err(None));
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn commits_go_by_themselves_and_are_told_again_when_lost() {
        let cluster = Cluster::start().await;
        let mut lost = 0;
        cluster.net.judge(move |_, call| {
            let is_lost = call.method == method::COMMITS && call.to == 3 && lost < 3;
            lost += u32::from(is_lost);
            if is_lost { Fate::Lost } else { Fate::Served }
        });
        for n in 0..3 {
            cluster.leader().fill(n).await;
        }
        // Nobody sends heartbeats here: without these calls no follower would learn of the last commit.
        cluster.agree(3).await;
        let are_without_entries = cluster.net.seen(method::APPEND, |call, _| call.entries().is_empty());
        // One at the begin of a stream may be.
        let without = are_without_entries.iter().filter(|is_without| **is_without).count();
        let all = are_without_entries.len();
        assert!(without <= 4, "{without} of {all} append requests only told of commits");
        cluster.stop().await;
    }
}
