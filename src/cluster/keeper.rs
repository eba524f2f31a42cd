//! Brings what runs on this node to what the cluster state says: replicas, memberships, leaders.
//!
//! All of it derives from the state and the actual memberships, so every step may fail or be cut short: the next
//! round goes on from there.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures_util::future::join_all;
use tracing::{info, warn};

use super::document::Document;
use super::plan::{Change, Membership, next_change};
use super::state::{GroupPlacement, META_GROUP, NodeId, NodeState};
use crate::raft::{Group, Members, Node};
use crate::store::Failure;

/// Leaderships handed on at a time: each is an election, and many at once would keep all of their groups waiting.
const TRANSFERS_MAX: usize = 4;

/// See the module.
pub(super) struct Keeper {
    me: NodeId,
    node: Arc<Node>,
    failure: Failure,
}

impl Keeper {
    pub(super) fn new(me: NodeId, node: Arc<Node>, failure: Failure) -> Keeper {
        Keeper { me, node, failure }
    }

    /// One round; true while something is still on its way.
    pub(super) async fn round(&self, document: &Document, leads_are_settled: bool) -> bool {
        let state = &document.state;
        if state.is(self.me, NodeState::Removed) {
            let text =
                "this node was removed from the cluster: it can join again with an empty data directory";
            self.failure.raise(text.to_owned(), false);
            return false;
        }
        let busy = self.host_and_forget(document).await;
        let led: Vec<Arc<Group>> =
            self.node.hosted().into_iter().filter(|group| group.claims_lead()).collect();
        let steps = led.iter().map(|group| self.step(group, &state.groups[usize::from(group.number())]));
        let unsettled = join_all(steps).await.into_iter().filter(|settled| !settled).count();
        if leads_are_settled {
            self.hand_on(&led, document).await;
        }
        busy || unsettled > 0
    }

    /// The membership of a group that is led here, unless it is changing at the moment.
    pub(super) fn membership(group: &Group) -> Option<Membership> {
        if !group.is_leader() || !group.is_settled() {
            return None;
        }
        let (voters, learners) = (named(group.voters()), named(group.learners()));
        let all = voters.keys().chain(learners.keys()).copied();
        let caught_up = all.filter(|replica| group.has_caught_up(*replica)).collect();
        Some(Membership { voters, learners, caught_up })
    }

    /// Hands leaderships over, a few at a time, and again where that came to nothing; true once none is left that could be.
    pub(super) async fn hand_over(&self) -> bool {
        let led: Vec<Arc<Group>> = self.node.hosted().into_iter().filter(|group| group.is_leader()).collect();
        let (under_way, waiting): (Vec<_>, Vec<_>) = led.iter().partition(|group| group.is_handing_over());
        let heirs: Vec<_> =
            waiting.into_iter().filter_map(|group| group.heir().map(|heir| (group, heir))).collect();
        for (group, heir) in heirs.iter().take(TRANSFERS_MAX.saturating_sub(under_way.len())) {
            group.transfer(*heir).await;
        }
        under_way.is_empty() && heirs.is_empty()
    }

    /// Starts the replicas that the state lists for this node and drops those it no longer lists.
    async fn host_and_forget(&self, document: &Document) -> bool {
        let wanted: BTreeMap<u16, u64> =
            document.state.hosted_by(self.me).map(|(group, replica)| (group, replica.id)).collect();
        let mut busy = false;
        for (number, replica) in self.node.held() {
            // A state that would give out this id again is older than the replica.
            let known = document.state.groups[usize::from(number)].next_replica > replica;
            if known && wanted.get(&number) != Some(&replica) {
                busy = true;
                match self.node.unhost(number).await {
                    Ok(()) => info!(event = "replica_dropped", group = number, replica),
                    Err(error) => warn!(event = "replica_drop_failed", group = number, %error),
                }
            }
        }
        let missing = wanted.iter().filter(|(group, _)| self.node.group(**group).is_none());
        let hosting = join_all(missing.map(|(group, replica)| async move {
            match self.node.host(*group, *replica).await {
                Ok(_) => info!(event = "replica_hosted", group, replica),
                Err(error) => warn!(event = "replica_host_failed", group, %error),
            }
        }));
        busy | !hosting.await.is_empty()
    }

    /// One step of a group that is led here; true once it is as it shall be.
    async fn step(&self, group: &Group, placement: &GroupPlacement) -> bool {
        let stepped = match Self::membership(group).map(|actual| next_change(placement, &actual)) {
            None if !group.is_leader() => return true,
            // No other step is being made here, so a leader before this one has left it half done.
            None => group.finish_change().await,
            Some(Change::Settled) => return true,
            Some(Change::Wait) => return false,
            Some(Change::Learn(learners)) => group.add_learners(&plain(learners)).await,
            Some(Change::Replace) => {
                group.replace_members(&plain(placement.voters()), &plain(placement.learners())).await
            }
        };
        if let Err(error) = stepped {
            warn!(event = "membership_step_failed", group = group.number(), %error);
        }
        false
    }

    /// Hands leaderships on to the nodes that are preferred for them.
    async fn hand_on(&self, led: &[Arc<Group>], document: &Document) {
        let mut left = TRANSFERS_MAX;
        for group in led {
            let placement = &document.state.groups[usize::from(group.number())];
            let preferred = placement.preferred().map(|replica| replica.id);
            let Some(heir) =
                preferred.filter(|replica| group.number() != META_GROUP && group.could_lead(*replica))
            else {
                continue;
            };
            if left == 0 {
                return;
            }
            left -= 1;
            group.transfer(heir).await;
        }
    }
}

fn named(members: Members) -> BTreeMap<u64, NodeId> {
    members.into_iter().map(|(replica, node)| (replica, NodeId(node))).collect()
}

fn plain(members: BTreeMap<u64, NodeId>) -> Members {
    members.into_iter().map(|(replica, node)| (replica, node.0)).collect()
}
