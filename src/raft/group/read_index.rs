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
use openraft::ReadPolicy;
use tokio::time::timeout;

use super::leadership::{Member, is_quorum};
use super::{Group, ReadFailure};
use crate::raft::network::Confirmation;
use crate::raft::rpc::Address;

/// How long a quorum may take to renew a lease.
const LEASE_ROUND_MAX: Duration = Duration::from_secs(2);

impl Group {
    /// On the leader: a log index such that a state that has applied it reflects every write acknowledged before.
    pub async fn read_index(&self) -> Result<u64, ReadFailure> {
        if !self.is_leader() {
            return Err(ReadFailure::NotLeader);
        }
        // A quorum of one: whatever was acknowledged was applied here first, and nobody else can lead. What an earlier
        // process acknowledged is applied by the time that something of this term is.
        if let Some(applied) = self.store.applied().0.filter(|at| at.term == self.term())
            && self.is_sole_voter()
        {
            return Ok(applied.index);
        }
        self.reads.confirm(&self.this, Self::ask_voters).await
    }

    /// Has openraft hear from a quorum, so that it takes writes again. It says too little for a read.
    pub(super) async fn renew_lease(&self) -> bool {
        self.leases.confirm(&self.this, Self::hear_from_quorum).await.is_ok()
    }

    async fn hear_from_quorum(self: Arc<Self>) -> Result<u64, ReadFailure> {
        match timeout(LEASE_ROUND_MAX, self.raft.get_read_linearizer(ReadPolicy::ReadIndex)).await {
            Ok(Ok(linearizer)) => Ok(linearizer.read_log_id().index()),
            _ => Err(ReadFailure::NotLeader),
        }
    }

    async fn ask_voters(self: Arc<Self>) -> Result<u64, ReadFailure> {
        let standing = self.standing().ok_or(ReadFailure::NotLeader)?;
        // What others acknowledged before is applied here once something of this term is, and what this one acknowledges is
        // applied first. Until then all that lies in its log has to be.
        let index = self.applied_in(&standing).map_or(standing.last, |at| at.index);
        let group = self.number();
        let has_vote = |member: &&Member| standing.voters.iter().any(|set| set.contains(&member.replica));
        let mut answers: FuturesUnordered<_> = standing
            .others
            .iter()
            .filter(has_vote)
            .map(async |member| {
                let to = Address { group, replica: member.replica };
                (member.replica, self.node.network.confirm(member.node, to, standing.vote).await)
            })
            .collect();
        let mut confirmed = BTreeSet::from([self.replica]);
        let mut is_deposed = false;
        while !is_quorum(&standing.voters, |voter| confirmed.contains(voter)) {
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
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raft::rpc::method;
    use crate::raft::testing::{Cluster, Fate, put};

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_majority_confirms_who_leads_and_nobody_else() {
        let cluster = Cluster::start().await;
        cluster.leader().write(0, put()).await;
        // So that any of them may be elected.
        cluster.agree(1).await;
        let leader = &cluster.leader().group;
        let applied = || leader.store.applied().0.unwrap().index;
        assert_eq!(leader.read_index().await.unwrap(), applied());
        cluster.cut(1);
        assert_eq!(leader.read_index().await.unwrap(), applied(), "two of three are enough");
        cluster.heal(1);
        assert!(matches!(cluster.node(1).group.read_index().await, Err(ReadFailure::NotLeader)));

        cluster.cut(0);
        assert!(matches!(leader.read_index().await, Err(ReadFailure::Unavailable(_))));
        cluster.depose().await;
        assert!(leader.is_leader(), "as far as it knows");
        cluster.heal(0);
        assert!(matches!(leader.read_index().await, Err(ReadFailure::NotLeader)));
        cluster.stop().await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn answers_that_were_read_late_confirm_no_read() {
        let cluster = Cluster::start().await;
        cluster.leader().write(0, put()).await;
        cluster.agree(1).await;
        // What the leader sends arrives and the answers do not yet; nor does what the others say to it.
        cluster.net.judge(|_, call| match (call.from, call.to, call.method) {
            (1, _, method::APPEND) => Fate::Late,
            (_, 1, _) => Fate::Refused,
            _ => Fate::Served,
        });
        let last = cluster.leader().last_index() + 1;
        cluster.leader().begin_write(1, put()).await;
        for i in [1, 2] {
            cluster.node(i).has(last).await;
        }
        cluster.depose().await;
        cluster.node(1).write(2, put()).await;

        cluster.net.deliver();
        cluster.leader().reaches(last).await;
        let deposed = &cluster.leader().group;
        assert!(deposed.is_leader(), "as far as it knows");
        assert!(matches!(deposed.read_index().await, Err(ReadFailure::NotLeader)));
        cluster.stop().await;
    }
}
