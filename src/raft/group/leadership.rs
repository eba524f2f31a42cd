//! Who leads a group, who could, and how the lead is handed over.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use openraft::RaftMetrics;
use openraft::async_runtime::WatchReceiver;

use super::Group;
use crate::raft::commits::Commit;
use crate::raft::node::StartError;
use crate::raft::rpc::Address;
use crate::raft::types::{LeaderId, LogId, ReplicaId, TypeConfig, Vote};

/// How long the replica that was asked to take over is given: it syncs the end of the log, and two votes.
const TRANSFER_MAX: Duration = Duration::from_millis(100);

/// What a replica that leads, as far as it knows, has of its group.
pub(super) struct Standing {
    pub(super) vote: Vote,
    /// The last index of its log, which its own first entry is part of.
    pub(super) last: u64,
    /// One set of voters, or two while the membership changes.
    pub(super) voters: Vec<BTreeSet<ReplicaId>>,
    /// Voters and learners elsewhere.
    pub(super) others: Vec<Member>,
}

pub(super) struct Member {
    pub(super) replica: ReplicaId,
    pub(super) node: u128,
    /// What it has of the log for certain.
    matched: Option<LogId>,
}

impl Group {
    /// Whether this replica leads, as far as it knows.
    pub fn is_leader(&self) -> bool {
        self.raft.is_leader()
    }

    /// The node that leads, if this one knows and can reach it.
    pub fn leader(&self) -> Option<u128> {
        let node = leader_node(&self.metrics.borrow_watched())?;
        let is_known =
            if node == self.node.node_id { !self.gives_way() } else { self.node.liveness.is_linked(node) };
        is_known.then_some(node)
    }

    /// Whether this replica leads, and can have something committed.
    pub fn leads_majority(&self) -> bool {
        self.is_leader() && self.has_quorum_in_reach()
    }

    /// Resolves when somebody else may lead.
    pub async fn leader_changed(&self) {
        let mut metrics = self.metrics.clone();
        let seen = leader_and_term(&metrics.borrow_watched());
        while leader_and_term(&metrics.borrow_watched()) == seen {
            if metrics.changed().await.is_err() {
                return;
            }
        }
    }

    /// Returns once the group is led from here and has applied its log.
    pub(crate) async fn led(&self) -> Result<(), StartError> {
        let caught_up = |m: &RaftMetrics<TypeConfig>| {
            m.state.is_leader() && m.last_applied.map(|id| id.index) >= m.last_log_index
        };
        let led = self.raft.wait(None).metrics(caught_up, "lead and apply").await;
        led.map(drop).map_err(|e| StartError::Raft { group: self.number(), reason: e.to_string() })
    }

    /// Whether enough voters answer this node for a proposal to be committed.
    pub(crate) fn has_quorum_in_reach(&self) -> bool {
        let metrics = self.metrics.borrow_watched();
        let membership = metrics.membership_config.membership();
        is_quorum(membership.get_joint_config(), |voter| {
            *voter == self.replica
                || membership.get_node(voter).is_some_and(|host| self.node.liveness.answers(host.node_id))
        })
    }

    /// Whether this replica leads and means to go on. One that asked another to take over no longer claims to lead, so
    /// that if the other does not, the replicas elect.
    pub(crate) fn claims_lead(&self) -> bool {
        self.is_leader() && self.handed_over_at().is_none() && !self.gives_way()
    }

    /// Whether another voter should lead, as this node's disk takes nothing.
    fn gives_way(&self) -> bool {
        self.log.disk_hangs() && !self.is_sole_voter()
    }

    /// Whether this replica leads, and another that it asked to take over may be about to.
    pub fn is_handing_over(&self) -> bool {
        self.is_leader() && self.handed_over_at().is_some_and(|at| at.elapsed() < TRANSFER_MAX)
    }

    fn handed_over_at(&self) -> Option<Instant> {
        let term = self.term();
        self.handing_over.lock().filter(|asked| asked.0 == term).map(|asked| asked.1)
    }

    /// Whether another voter could take over the lead right now.
    pub fn could_lead(&self, replica: ReplicaId) -> bool {
        let host = self.voters().get(&replica).copied();
        replica != self.replica
            && host.is_some_and(|node| self.node.liveness.may_lead(node))
            && self.is_near(replica)
    }

    /// The voter that could best take over the lead right now.
    pub fn heir(&self) -> Option<ReplicaId> {
        let heirs = self.voters().into_keys().filter(|replica| self.could_lead(*replica));
        heirs.min_by_key(|replica| self.lag_of(*replica))
    }

    /// Asks another voter to take over the lead. It may be asked again: whoever leads by then does not mind.
    pub async fn transfer(&self, to: ReplicaId) {
        *self.handing_over.lock() = Some((self.term(), Instant::now()));
        // An error means that the group has stopped, which its own failure reports.
        let _ = self.raft.trigger().transfer_leader(to).await;
    }

    /// On the leader: has the replicas on a node hear from it, and what is committed of what they have; those that could not be
    /// reached are tried again at once.
    pub(crate) async fn greet(&self, node: u128) {
        // An error means that the group has stopped, which its own failure reports.
        let _ = self.raft.trigger().reset_backoff([]).await;
        let Some(standing) = self.standing() else { return };
        // The first entry of a leader is told by itself.
        let Some(committed) = self.applied_in(&standing) else { return };
        for member in standing.others.iter().filter(|member| member.node == node) {
            if let Some(upto) = member.matched.min(Some(committed)) {
                let to = Address { group: self.number(), replica: member.replica };
                self.node.network.tell(node, to, Commit { vote: standing.vote, upto });
            }
        }
    }

    /// What this replica has of its group, while it leads as far as it knows.
    pub(super) fn standing(&self) -> Option<Standing> {
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

    /// The last entry applied here, if it is of this leadership.
    pub(super) fn applied_in(&self, standing: &Standing) -> Option<LogId> {
        let leader_id = standing.vote.leader_id;
        let applied = self.store.applied().0?;
        let is_own = (applied.term, applied.leader) == (leader_id.term, leader_id.node_id);
        is_own.then_some(LogId { leader_id, index: applied.index })
    }
}

/// The replica that leads according to a replica's metrics. A restarted leader still names itself, but does not lead.
pub(crate) fn leader_replica(metrics: &RaftMetrics<TypeConfig>) -> Option<ReplicaId> {
    metrics.current_leader.filter(|leader| *leader != metrics.id || metrics.state.is_leader())
}

/// The node of [`leader_replica`].
pub(crate) fn leader_node(metrics: &RaftMetrics<TypeConfig>) -> Option<u128> {
    let leader = leader_replica(metrics)?;
    metrics.membership_config.membership().get_node(&leader).map(|host| host.node_id)
}

/// Whether these are a majority of every set of voters.
pub(super) fn is_quorum(configs: &[BTreeSet<ReplicaId>], counts: impl Fn(&ReplicaId) -> bool) -> bool {
    configs.iter().all(|voters| voters.iter().filter(|voter| counts(voter)).count() * 2 > voters.len())
}

fn leader_and_term(metrics: &RaftMetrics<TypeConfig>) -> (Option<ReplicaId>, u64) {
    (leader_replica(metrics), metrics.current_term)
}

#[cfg(test)]
mod tests {
    use crate::raft::rpc::method;
    use crate::raft::testing::{Cluster, Fate, put};

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_greeting_says_what_is_committed() {
        let cluster = Cluster::start().await;
        let (tx, mut refused) = tokio::sync::mpsc::unbounded_channel();
        cluster.net.judge(move |_, call| {
            if call.method != method::COMMITS {
                return Fate::Served;
            }
            tx.send(call.to).unwrap();
            Fate::Refused
        });
        cluster.leader().write(0, put()).await;
        let last = cluster.leader().last_index();
        // One of the others acknowledged it before it was committed, and so has to be told.
        let node = refused.recv().await.unwrap();
        cluster.net.judge(|_, _| Fate::Served);
        cluster.leader().group.greet(node).await;
        cluster.node(node as usize - 1).reaches(last).await;
        cluster.stop().await;
    }
}
