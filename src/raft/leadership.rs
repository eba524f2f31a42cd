//! Whether a replica leads still, asked of the voters after the reads came that the answer is for.
//!
//! openraft's own way to confirm a read goes by when a follower was last heard, and takes the answer to entries for one to
//! what it had to say later and never sent. A leader that was stopped for longer than its lease could find such answers
//! unread, and confirm by them a read that came when another led.
//!
//! A voter says whether it has voted for somebody else since, as its log has it: what it grants is on its disk before
//! anybody hears of it. So nobody else can have been elected before a majority answered. The question says what is committed
//! as well, for a replica that waits to answer a read.

use std::collections::BTreeSet;
use std::sync::Arc;

use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use openraft::async_runtime::WatchReceiver;
use openraft::type_config::alias::WatchReceiverOf;
use openraft::{Raft, RaftMetrics};

use super::log_store::LogStore;
use super::network::{Confirmation, Network};
use super::read_barrier::{ReadFailure, confirm_by_openraft};
use super::rpc::Address;
use super::state_machine::StateMachine;
use super::types::{LeaderId, LogId, ReplicaId, TypeConfig, Vote};
use crate::store::GroupStore;

/// What confirming takes of a replica.
#[derive(Clone)]
pub(crate) struct Leadership {
    pub(crate) raft: Raft<TypeConfig, StateMachine>,
    pub(crate) metrics: WatchReceiverOf<TypeConfig, RaftMetrics<TypeConfig>>,
    pub(crate) store: Arc<GroupStore>,
    pub(crate) log: LogStore,
    pub(crate) network: Network,
    pub(crate) replica: ReplicaId,
}

/// Who is asked.
struct Members {
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

impl Members {
    fn are_convinced(&self, confirmed: &BTreeSet<ReplicaId>) -> bool {
        self.voters.iter().all(|voters| voters.intersection(confirmed).count() * 2 > voters.len())
    }
}

impl Leadership {
    /// A log index such that a state that has applied it reflects every write acknowledged before the call.
    pub(crate) async fn read_index(&self) -> Result<u64, ReadFailure> {
        let (term, members) = self.standing().ok_or(ReadFailure::NotLeader)?;
        let leader_id = LeaderId { term, node_id: self.replica };
        let vote = Vote { leader_id, committed: true };
        // What others acknowledged before is applied here once something of this term is, and what this one acknowledges is
        // applied first.
        let applied = self.store.applied().0.filter(|at| (at.term, at.leader) == (term, self.replica));
        let Some(applied) = applied else { return confirm_by_openraft(&self.raft).await };
        let committed = LogId { leader_id, index: applied.index };
        let group = self.store.group();
        let mut answers: FuturesUnordered<_> = members
            .others
            .iter()
            .map(async |member| {
                let to = Address { group, replica: member.replica };
                let upto = member.matched.min(Some(committed));
                (member.replica, self.network.confirm(member.node, to, vote, upto).await)
            })
            .collect();
        let mut confirmed = BTreeSet::from([self.replica]);
        let (mut is_deposed, mut is_answered) = (false, true);
        while !members.are_convinced(&confirmed) {
            match answers.next().await {
                Some((replica, Confirmation::Confirmed)) => drop(confirmed.insert(replica)),
                Some((_, Confirmation::Denied)) => is_deposed = true,
                Some((_, Confirmation::Refused)) => is_answered = false,
                Some((_, Confirmation::Missed)) => {}
                None if is_deposed => return Err(ReadFailure::NotLeader),
                // Nodes of an earlier version cannot be asked.
                None if !is_answered => return confirm_by_openraft(&self.raft).await,
                None => {
                    return Err(ReadFailure::Unavailable("a quorum did not confirm the read in time".into()));
                }
            }
        }
        // The others are asked all the same, for what the question says.
        while let Some(Some(_)) = answers.next().now_or_never() {}
        let is_mine = self.log.with(|log| log.vote <= Some(vote));
        if is_mine { Ok(applied.index) } else { Err(ReadFailure::NotLeader) }
    }

    /// The term in which this replica leads, as far as it knows, and whom to ask whether it does.
    fn standing(&self) -> Option<(u64, Members)> {
        let metrics = self.metrics.borrow_watched();
        if !metrics.state.is_leader() {
            return None;
        }
        let membership = metrics.membership_config.membership();
        let matched = |replica| *metrics.replication.as_ref()?.get(&replica)?;
        let others = membership.nodes().filter(|(replica, _)| **replica != self.replica);
        let others = others
            .map(|(replica, host)| Member {
                replica: *replica,
                node: host.node_id,
                matched: matched(*replica),
            })
            .collect();
        Some((metrics.current_term, Members { voters: membership.get_joint_config().clone(), others }))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

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
    async fn the_question_says_what_is_committed() {
        let cluster = Cluster::start().await;
        cluster.net.judge(|_, called| if called == method::COMMITS { Fate::NotSent } else { Fate::Served });
        cluster.node(0).write(0, put()).await;
        let leadership = cluster.node(0).leadership();
        // What one of them acknowledged last may come after the answer that made the majority.
        let both_have = |m: &RaftMetrics<TypeConfig>| {
            m.replication
                .as_ref()
                .is_some_and(|r| r.values().all(|at| at.map(|at| at.index) == m.last_log_index))
        };
        let wait = cluster.node(0).target.raft.wait(Some(Duration::from_secs(60)));
        wait.metrics(both_have, "both have it").await.unwrap();
        let index = leadership.read_index().await.unwrap();
        for node in [1, 2] {
            cluster.node(node).reaches(index).await;
        }
        drop(leadership);
        cluster.stop().await;
    }
}
