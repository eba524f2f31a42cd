//! Whether a replica leads still, asked of the voters after the reads came that the answer is for.
//!
//! openraft's own way to confirm a read goes by when a follower was last heard, and takes the answer to entries for one to
//! what it had to say later and never sent. A leader that was stopped for longer than its lease could find such answers
//! unread, and confirm by them a read that came when another led.
//!
//! A voter says whether it has voted for somebody else since, as its log has it: what it grants is on its disk before
//! anybody hears of it. So nobody else can have been elected before a majority answered.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use openraft::async_runtime::WatchReceiver;
use openraft::type_config::alias::WatchReceiverOf;
use openraft::{Raft, RaftMetrics, ReadPolicy};
use tokio::time::timeout;

use super::commits::Commit;
use super::log_store::LogStore;
use super::network::{Confirmation, Network};
use super::read_barrier::ReadFailure;
use super::rpc::Address;
use super::state_machine::StateMachine;
use super::types::{LeaderId, LogId, ReplicaId, TypeConfig, Vote};
use crate::store::GroupStore;

/// How long a quorum may take to renew a lease.
const LEASE_ROUND_MAX: Duration = Duration::from_secs(2);

/// What a replica needs to know whether it leads, and to have others know.
#[derive(Clone)]
pub(crate) struct Leadership {
    pub(crate) raft: Raft<TypeConfig, StateMachine>,
    pub(crate) metrics: WatchReceiverOf<TypeConfig, RaftMetrics<TypeConfig>>,
    pub(crate) store: Arc<GroupStore>,
    pub(crate) log: LogStore,
    pub(crate) network: Network,
    pub(crate) replica: ReplicaId,
}

/// What a replica that leads, as far as it knows, has of its group.
struct Standing {
    vote: Vote,
    /// The last index of its log, which its own first entry is part of.
    last: u64,
    /// One set of voters, or two while the membership changes.
    voters: Vec<BTreeSet<ReplicaId>>,
    /// Voters and learners elsewhere.
    others: Vec<Member>,
}

struct Member {
    replica: ReplicaId,
    node: u128,
    /// What it has of the log for certain.
    matched: Option<LogId>,
}

impl Standing {
    fn is_confirmed_by(&self, confirmed: &BTreeSet<ReplicaId>) -> bool {
        self.voters.iter().all(|voters| voters.intersection(confirmed).count() * 2 > voters.len())
    }
}

impl Leadership {
    /// A log index such that a state that has applied it reflects every write acknowledged before the call.
    pub(crate) async fn read_index(&self) -> Result<u64, ReadFailure> {
        let standing = self.standing().ok_or(ReadFailure::NotLeader)?;
        // What others acknowledged before is applied here once something of this term is, and what this one acknowledges is
        // applied first. Until then all that lies in its log has to be.
        let index = self.applied_in(&standing).map_or(standing.last, |at| at.index);
        let group = self.store.group();
        let has_vote = |member: &&Member| standing.voters.iter().any(|set| set.contains(&member.replica));
        let mut answers: FuturesUnordered<_> = standing
            .others
            .iter()
            .filter(has_vote)
            .map(async |member| {
                let to = Address { group, replica: member.replica };
                (member.replica, self.network.confirm(member.node, to, standing.vote).await)
            })
            .collect();
        let mut confirmed = BTreeSet::from([self.replica]);
        let mut is_deposed = false;
        while !standing.is_confirmed_by(&confirmed) {
            match answers.next().await {
                Some((replica, Confirmation::Confirmed)) => drop(confirmed.insert(replica)),
                Some((_, Confirmation::Denied)) => {
                    is_deposed = true;
                    // The core finds out as well. An error means that the group has stopped, which its own failure reports.
                    let _ = self.raft.trigger().heartbeat().await;
                }
                Some((_, Confirmation::Missed)) => {}
                None if is_deposed => return Err(ReadFailure::NotLeader),
                None => {
                    return Err(ReadFailure::Unavailable("a quorum did not confirm the read in time".into()));
                }
            }
        }
        let is_mine = self.log.with(|log| log.vote <= Some(standing.vote));
        if is_mine { Ok(index) } else { Err(ReadFailure::NotLeader) }
    }

    /// Has openraft hear from a quorum, so that it takes writes again. It says too little for a read.
    pub(crate) async fn renew_lease(&self) -> Result<u64, ReadFailure> {
        match timeout(LEASE_ROUND_MAX, self.raft.get_read_linearizer(ReadPolicy::ReadIndex)).await {
            Ok(Ok(linearizer)) => Ok(linearizer.read_log_id().index()),
            _ => Err(ReadFailure::NotLeader),
        }
    }

    /// Has the replicas on a node hear from their leader, and what is committed of what they have.
    pub(crate) fn greet(&self, node: u128) {
        let Some(standing) = self.standing() else { return };
        // The first entry of a leader is told by itself.
        let Some(committed) = self.applied_in(&standing) else { return };
        for member in standing.others.iter().filter(|member| member.node == node) {
            if let Some(upto) = member.matched.min(Some(committed)) {
                let to = Address { group: self.store.group(), replica: member.replica };
                self.network.tell(node, to, Commit { vote: standing.vote, upto });
            }
        }
    }

    /// The last entry applied here, if it is of this leadership.
    fn applied_in(&self, standing: &Standing) -> Option<LogId> {
        let leader_id = standing.vote.leader_id;
        let applied = self.store.applied().0?;
        let is_own = (applied.term, applied.leader) == (leader_id.term, leader_id.node_id);
        is_own.then_some(LogId { leader_id, index: applied.index })
    }

    fn standing(&self) -> Option<Standing> {
        let metrics = self.metrics.borrow_watched();
        if !metrics.state.is_leader() {
            return None;
        }
        let membership = metrics.membership_config.membership();
        let matched = |replica| *metrics.replication.as_ref()?.get(&replica)?;
        let others = membership.nodes().filter(|(replica, _)| **replica != self.replica);
        let others = others.map(|(replica, host)| Member {
            replica: *replica,
            node: host.node_id,
            matched: matched(*replica),
        });
        let leader_id = LeaderId { term: metrics.current_term, node_id: self.replica };
        Some(Standing {
            vote: Vote { leader_id, committed: true },
            last: metrics.last_log_index?,
            voters: membership.get_joint_config().clone(),
            others: others.collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use openraft::raft::TransferLeaderRequest;

    use super::super::network_tests::{Cluster, Fate};
    use super::super::rpc::method;
    use super::super::tests::put;
    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_majority_confirms_who_leads_and_nobody_else() {
        let cluster = Cluster::start().await;
        cluster.node(0).write(0, put()).await;
        let leader = cluster.node(0).leadership();
        let applied = || leader.store.applied().0.unwrap().index;
        assert_eq!(leader.read_index().await.unwrap(), applied());
        cluster.cut(1);
        assert_eq!(leader.read_index().await.unwrap(), applied(), "two of three are enough");
        cluster.heal(1);
        assert!(matches!(cluster.node(1).leadership().read_index().await, Err(ReadFailure::NotLeader)));

        // The others agree on another leader, of which the first one does not hear.
        cluster.cut(0);
        assert!(matches!(leader.read_index().await, Err(ReadFailure::Unavailable(_))));
        let vote = leader.log.with(|log| log.vote.unwrap());
        let last = leader.log.with(|log| log.last());
        for node in [2, 1] {
            let raft = &cluster.node(node).target.raft;
            raft.handle_transfer_leader(TransferLeaderRequest::new(vote, 2, last)).await.unwrap().unwrap();
        }
        let raft = &cluster.node(1).target.raft;
        raft.wait(Some(Duration::from_secs(60))).metrics(|m| m.state.is_leader(), "lead").await.unwrap();
        assert!(leader.metrics.borrow_watched().state.is_leader(), "as far as it knows");
        cluster.heal(0);
        assert!(matches!(leader.read_index().await, Err(ReadFailure::NotLeader)));
        drop(leader);
        cluster.stop().await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_greeting_says_what_is_committed() {
        let cluster = Cluster::start().await;
        let (tx, mut refused) = tokio::sync::mpsc::unbounded_channel();
        cluster.net.judge(move |to, called| {
            if called != method::COMMITS {
                return Fate::Served;
            }
            tx.send(to).unwrap();
            Fate::Refused
        });
        cluster.node(0).write(0, put()).await;
        let last = cluster.node(0).last_index();
        // One of the others acknowledged it before it was committed, and so has to be told.
        let node = refused.recv().await.unwrap();
        cluster.net.judge(|_, _| Fate::Served);
        let leadership = cluster.node(0).leadership();
        leadership.greet(node);
        cluster.node(node as usize - 1).reaches(last).await;
        drop(leadership);
        cluster.stop().await;
    }
}
