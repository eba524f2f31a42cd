//! Who the members of a group are, how far each of them is, and how they change.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::time::Duration;

use openraft::ChangeMembers;
use openraft::async_runtime::WatchReceiver;
use openraft::errors::{InitializeError, RaftError};
use tokio::time::timeout;

use super::Group;
use crate::raft::types::{Host, Membership, ReplicaId};

/// A replica this many entries behind or fewer may become a voter or the leader.
const CAUGHT_UP_LAG_MAX: u64 = 256;
/// How long a change of the members may take to be committed. One whose leader is deposed meanwhile, and left out by it, is
/// never answered.
const CHANGE_MAX: Duration = Duration::from_secs(10);

/// A change of a group's members failed; whether it took effect shows in the membership.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct MembershipError(String);

/// Who holds a group: replica id to node id.
pub type Members = BTreeMap<ReplicaId, u128>;

impl Group {
    /// Founds the group with these members, of which this replica is one; nothing happens where it was founded.
    pub async fn found(&self, members: &Members) -> Result<(), MembershipError> {
        let hosts: BTreeMap<ReplicaId, Host> =
            members.iter().map(|(replica, node_id)| (*replica, Host { node_id: *node_id })).collect();
        match self.raft.initialize(hosts).await {
            Ok(()) | Err(RaftError::APIError(InitializeError::NotAllowed(_))) => Ok(()),
            Err(error) => Err(MembershipError(error.to_string())),
        }
    }

    /// The voters of the newest configuration; of both halves while it changes.
    pub fn voters(&self) -> Members {
        self.members(|membership, replica| membership.voter_ids().any(|voter| voter == *replica))
    }

    /// The learners of the newest configuration.
    pub fn learners(&self) -> Members {
        self.members(|membership, replica| membership.learner_ids().any(|learner| learner == *replica))
    }

    /// Whether the newest configuration is committed and not a joint one.
    pub fn is_settled(&self) -> bool {
        let metrics = self.metrics.borrow_watched();
        metrics.membership_config == metrics.committed_membership_config
            && metrics.membership_config.membership().get_joint_config().len() == 1
    }

    pub(crate) fn is_sole_voter(&self) -> bool {
        let metrics = self.metrics.borrow_watched();
        metrics.membership_config.voter_ids().eq([self.replica])
    }

    /// On the leader: how many entries a replica has yet to receive; `None` where that is not known.
    pub fn lag_of(&self, replica: ReplicaId) -> Option<u64> {
        let metrics = self.metrics.borrow_watched();
        let matched = metrics.replication.as_ref()?.get(&replica)?.as_ref()?.index;
        Some(metrics.last_log_index?.saturating_sub(matched))
    }

    /// On the leader: how many entries the replica that is furthest behind has yet to receive.
    pub(crate) fn largest_lag(&self) -> Option<u64> {
        let metrics = self.metrics.borrow_watched();
        let last = metrics.last_log_index?;
        let matched = metrics.replication.as_ref()?.values().map(|id| id.as_ref().map_or(0, |id| id.index));
        Some(last.saturating_sub(matched.min()?))
    }

    /// On the leader: whether a replica answers and lacks next to nothing of the log.
    pub fn has_caught_up(&self, replica: ReplicaId) -> bool {
        let host = self.members(|_, member| *member == replica).remove(&replica);
        replica == self.replica
            || host.is_some_and(|node| self.node.liveness.answers(node)) && self.is_near(replica)
    }

    pub(super) fn is_near(&self, replica: ReplicaId) -> bool {
        self.lag_of(replica).is_some_and(|lag| lag <= CAUGHT_UP_LAG_MAX)
    }

    /// On the leader: has these replicas receive the log, without a vote.
    pub async fn add_learners(&self, learners: &Members) -> Result<(), MembershipError> {
        for (replica, node_id) in learners {
            self.renew_lease().await;
            let added = self.raft.add_learner(*replica, Host { node_id: *node_id }, false);
            committed(added).await?;
        }
        Ok(())
    }

    /// On the leader: gives the group these members by a joint change. Future voters must be members already.
    pub async fn replace_members(&self, voters: &Members, learners: &Members) -> Result<(), MembershipError> {
        if self.voters() != *voters {
            // A voter that shall learn stays a member.
            let demoted = self.voters().keys().any(|replica| learners.contains_key(replica));
            let change = ChangeMembers::ReplaceAllVoters(voters.keys().copied().collect());
            self.change(change, demoted).await?;
        }
        let surplus: BTreeSet<_> =
            self.learners().into_keys().filter(|replica| !learners.contains_key(replica)).collect();
        if surplus.is_empty() {
            return Ok(());
        }
        self.change(ChangeMembers::RemoveNodes(surplus), false).await
    }

    /// On the leader: completes a joint change whose leader went away between its two steps. Voters that leave by it stay
    /// as learners until the next change.
    pub async fn finish_change(&self) -> Result<(), MembershipError> {
        let is_joint = {
            let metrics = self.metrics.borrow_watched();
            metrics.membership_config.membership().get_joint_config().len() > 1
        };
        if is_joint { self.change(ChangeMembers::AddVoterIds(BTreeSet::new()), true).await } else { Ok(()) }
    }

    fn members(&self, wanted: impl Fn(&Membership, &ReplicaId) -> bool) -> Members {
        let metrics = self.metrics.borrow_watched();
        let membership = metrics.membership_config.membership();
        let nodes = membership.nodes().filter(|(replica, _)| wanted(membership, replica));
        nodes.map(|(replica, host)| (*replica, host.node_id)).collect()
    }

    async fn change(
        &self,
        change: ChangeMembers<ReplicaId, Host>,
        keep_removed_voters: bool,
    ) -> Result<(), MembershipError> {
        self.renew_lease().await;
        committed(self.raft.change_membership(change, keep_removed_voters)).await
    }
}

/// The end of a change of the members, unless that takes too long.
async fn committed<T, E: Display>(change: impl Future<Output = Result<T, E>>) -> Result<(), MembershipError> {
    match timeout(CHANGE_MAX, change).await {
        Ok(changed) => changed.map(drop).map_err(|error| MembershipError(error.to_string())),
        Err(_) => Err(MembershipError("the change was not committed in time".into())),
    }
}

#[cfg(test)]
mod tests {
    use openraft::EntryPayload;

    use super::*;
    use crate::raft::testing::{Cluster, Fate, PATIENCE};

    /// It is no member any more once the change is committed, and so nobody tells it.
    #[tokio::test]
    async fn a_deposed_leader_answers_a_change_that_leaves_it_out() {
        let cluster = Cluster::start().await;
        let remaining: Members = [(2, 2), (3, 3)].into();
        let mut is_final = false;
        cluster.net.judge(move |_, call| {
            is_final |= call.entries().iter().any(|entry| match &entry.payload {
                EntryPayload::Membership(membership) => membership.get_joint_config().len() == 1,
                _ => false,
            });
            if is_final && call.from == 1 { Fate::Lost } else { Fate::Served }
        });
        let leader = cluster.leader();
        let before = leader.last_index();
        let change = tokio::spawn({
            let (leader, remaining) = (leader.group.clone(), remaining.clone());
            async move { leader.replace_members(&remaining, &Members::new()).await }
        });
        for i in [1, 2] {
            // The joint configuration, and the final one.
            cluster.node(i).has(before + 2).await;
        }
        cluster.depose().await;
        cluster.net.judge(|_, _| Fate::Served);
        let wait = leader.group.raft.wait(Some(PATIENCE));
        wait.metrics(|m| !m.state.is_leader(), "hear of it").await.unwrap();
        cluster.node(1).reaches(before + 3).await;
        assert_eq!(cluster.node(1).group.voters(), remaining);

        // From here on the clock is that of whoever waits.
        tokio::time::pause();
        let changed = timeout(PATIENCE, change).await.expect("there is an end to it").unwrap();
        assert!(changed.unwrap_err().to_string().contains("in time"));
        tokio::time::resume();
        cluster.stop().await;
    }
}
