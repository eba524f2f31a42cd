//! What the node that leads the meta group does: it makes changes of the cluster state, and plans.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::timeout;
use tracing::{info, warn};

use super::calls::{self, Change, ChangeAnswer, ChangeFailure, ChangeRequest, FailureKind, Report};
use super::change::Refusal;
use super::control::members;
use super::document::{self, Document, SaveError};
use super::founding::Durable;
use super::keeper::Keeper;
use super::plan::{Liveness, Observed, is_settled, plan};
use super::service::Inner;
use super::state::{ClusterState, META_GROUP, NodeId, NodeRecord, NodeState};
use crate::peer::CallError;
use crate::shards::placement::GROUPS;
use crate::shards::{ControlError, WriteError, now_ms};

/// Between two looks while nothing moves.
const REST: Duration = Duration::from_secs(2);
/// Between two plans while replicas move.
const HURRY: Duration = Duration::from_millis(300);
/// Longest wait for reports: one silent node must not use up the time that a change has.
const REPORT_MAX: Duration = Duration::from_secs(1);
/// A change is tried again so often when the state was written by another hand meanwhile.
const CONFLICTS_MAX: usize = 16;

/// Why a change of the cluster state was not made, or not known to be.
#[derive(Debug, thiserror::Error)]
pub(super) enum ChangeError {
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// What another node said that was asked to make it.
    #[error("{}", .0.why)]
    There(ChangeFailure),
    #[error("the meta group has no leader in reach; try again")]
    NoLeader,
    #[error(transparent)]
    Save(#[from] SaveError),
    #[error(transparent)]
    Call(CallError),
}

impl ChangeError {
    pub(super) fn describe(self) -> ChangeFailure {
        let kind = match &self {
            ChangeError::Refused(Refusal::Unknown(_)) => FailureKind::NoSuchNode,
            ChangeError::Refused(Refusal::NoLeader(_)) => FailureKind::Unavailable,
            ChangeError::Refused(_) => FailureKind::Refused,
            ChangeError::Save(SaveError::Write(WriteError::UnknownOutcome(_)))
            | ChangeError::Call(CallError::Lost(_)) => FailureKind::UnknownOutcome,
            ChangeError::There(failure) => failure.kind,
            ChangeError::NoLeader | ChangeError::Save(_) | ChangeError::Call(_) => FailureKind::Unavailable,
        };
        ChangeFailure { kind, why: self.to_string() }
    }

    pub(super) fn for_operators(self) -> ControlError {
        let ChangeFailure { kind, why } = self.describe();
        match kind {
            FailureKind::NoSuchNode => ControlError::NoSuchNode(why),
            FailureKind::Refused => ControlError::Refused(why),
            FailureKind::Unavailable => ControlError::Unavailable(why),
            FailureKind::UnknownOutcome => ControlError::UnknownOutcome(why),
        }
    }
}

impl Inner {
    /// Plans as long as the meta group is led here.
    pub(super) async fn lead(self: Arc<Self>) {
        loop {
            let leads = self.parts.node.group(META_GROUP).is_some_and(|group| group.is_leader());
            let moving = if leads { self.lead_once().await } else { self.document.borrow().is_none() };
            tokio::time::sleep(if moving { HURRY } else { REST }).await;
        }
    }

    /// One plan; true if there may soon be another.
    async fn lead_once(&self) -> bool {
        let Some(document) = self.document.borrow().clone() else {
            self.write_founding_state().await;
            return true;
        };
        let _turn = self.changing.lock().await;
        let reports = self.reports(&document, REPORT_MAX).await;
        if self.pass_on(&document, &reports).await {
            return true;
        }
        let seen = self.observed(&document, reports);
        let Some(next) = plan(&document.state, &seen) else {
            return !is_settled(&document.state, &seen);
        };
        match document::save(&self.parts.shards, Some(document.version), &next).await {
            Ok(version) => info!(event = "cluster_planned", version),
            Err(SaveError::Conflict) => {}
            Err(error) => warn!(event = "cluster_plan_failed", %error),
        }
        true
    }

    /// Has another node lead the meta group that reaches more nodes than this one has reached for long: without the reports of
    /// all who lead groups next to nothing can be planned. True if one was asked to.
    ///
    /// Each that takes over lacks fewer nodes than the one before, and leads until it has lacked more than another for as
    /// long: the lead comes to rest, and links that come and go do not move it all the time.
    async fn pass_on(&self, document: &Document, reports: &BTreeMap<NodeId, Report>) -> bool {
        let Some(group) = self.parts.node.group(META_GROUP) else { return false };
        let lost = |(node, _): &(NodeId, &NodeRecord)| self.liveness(*node) == Liveness::Dead;
        let lost = members(&document.state).filter(lost).count();
        let heirs = group.voters().into_iter().filter(|(replica, _)| group.could_lead(*replica));
        let heirs = heirs.filter_map(|(replica, node)| {
            let Report { reached, .. } = reports.get(&NodeId(node))?;
            let lacked = members(&document.state).filter(|(node, _)| !reached.contains(node)).count();
            Some((lacked, replica, NodeId(node)))
        });
        let Some((_, replica, node)) = heirs.min().filter(|(lacked, ..)| *lacked < lost) else {
            return false;
        };
        info!(event = "cluster_lead_passed_on", %node, lost, reason = "it reaches nodes that this one does not");
        group.transfer(replica).await;
        true
    }

    /// The first state of a cluster that was just founded.
    async fn write_founding_state(&self) {
        let Durable::Founded { cluster, members } = self.founding.lock().await.durable().clone() else {
            return;
        };
        let records = self.founding_records(&members);
        if records.len() < members.len() {
            return;
        }
        match document::save(&self.parts.shards, None, &ClusterState::found(cluster, records)).await {
            Ok(_) => info!(event = "cluster_founded", %cluster, nodes = members.len()),
            Err(SaveError::Conflict) => {}
            Err(error) => warn!(event = "cluster_founding_failed", %error),
        }
    }

    fn founding_records(&self, members: &BTreeSet<NodeId>) -> BTreeMap<NodeId, NodeRecord> {
        let links = self.parts.peers.links().borrow().clone();
        let remotes = links.iter().filter_map(|link| link.remote.as_ref()).map(|remote| {
            let record = NodeRecord {
                name: remote.name.clone(),
                address: remote.address.to_string(),
                state: NodeState::Active,
                incarnation: Some(remote.incarnation),
                mark: None,
                protocol: remote.protocols,
                joined_ms: now_ms() as i64,
            };
            (NodeId(remote.node_id), record)
        });
        let mut records: BTreeMap<NodeId, NodeRecord> = remotes.collect();
        records.insert(self.me, self.record());
        records.retain(|node, _| members.contains(node));
        records
    }

    /// Makes a change here if the meta group is led here, else has its leader make it.
    pub(super) async fn make(&self, change: Change, hops_left: u8) -> Result<(), ChangeError> {
        let leader = self.parts.node.group(META_GROUP).and_then(|group| group.leader());
        match leader {
            Some(leader) if leader == self.me.0 => self.make_here(&change).await,
            _ if hops_left == 0 => Err(ChangeError::NoLeader),
            // Where the meta group is not hosted, somebody else knows its leader.
            leader => {
                let to = leader.map(NodeId).or_else(|| self.any_member()).ok_or(ChangeError::NoLeader)?;
                let request = ChangeRequest { change, hops_left: hops_left - 1 };
                let answer = calls::call(&self.parts.peers, to, calls::CHANGE, &request).await;
                match answer.map_err(ChangeError::Call)? {
                    ChangeAnswer { failure: None } => Ok(()),
                    ChangeAnswer { failure: Some(failure) } => Err(ChangeError::There(failure)),
                }
            }
        }
    }

    fn any_member(&self) -> Option<NodeId> {
        let document = self.document.borrow().clone()?;
        document.state.active().find(|node| *node != self.me && self.parts.peers.is_up(node.0))
    }

    async fn make_here(&self, change: &Change) -> Result<(), ChangeError> {
        let _turn = self.changing.lock().await;
        for _ in 0..CONFLICTS_MAX {
            let newest = document::load_newer(&self.parts.node, 0).await;
            let document = newest.map_err(|_| ChangeError::NoLeader)?.ok_or(ChangeError::NoLeader)?;
            let seen = self.observe(&document).await;
            let mut state = document.state.clone();
            if !apply(&mut state, change, &seen)? {
                return Ok(());
            }
            match document::save(&self.parts.shards, Some(document.version), &state).await {
                Ok(version) => {
                    info!(event = "cluster_changed", version, change = ?change);
                    return Ok(());
                }
                Err(SaveError::Conflict) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(SaveError::Conflict.into())
    }

    /// What all reachable nodes report for a state, and who is reachable.
    async fn observe(&self, document: &Document) -> Observed {
        self.observed(document, self.reports(document, REPORT_MAX).await)
    }

    /// One that was deposed as a group's leader, and does not know it yet, may report too: the highest term counts.
    fn observed(&self, document: &Document, reports: BTreeMap<NodeId, Report>) -> Observed {
        let nodes = members(&document.state).map(|(node, _)| (node, self.liveness(node))).collect();
        let mut seen = Observed { nodes, ..Observed::default() };
        let mut newest: BTreeMap<u16, u64> = BTreeMap::new();
        let current = reports.into_values().filter(|report| report.version == document.version);
        for Report { led, terms, reached, lost, .. } in current {
            for (group, membership) in led {
                let term = terms.get(&group).copied().unwrap_or_default();
                if newest.get(&group).is_none_or(|held| *held <= term) {
                    newest.insert(group, term);
                    seen.groups.insert(group, membership);
                    seen.reached.insert(group, reached.clone());
                    seen.lost.insert(group, lost.clone());
                }
            }
        }
        // A node of an older version does not say whom it reaches.
        seen.reached.retain(|_, reached| !reached.is_empty());
        seen
    }

    /// What this node and all others that answer within a limit report.
    pub(super) async fn reports(&self, document: &Document, limit: Duration) -> BTreeMap<NodeId, Report> {
        let others = members(&document.state).map(|(node, _)| node);
        let others = others.filter(|node| *node != self.me && self.parts.peers.is_up(node.0));
        let reports = join_all(others.map(|node| async move {
            let asked = calls::call::<Report>(&self.parts.peers, node, calls::REPORT, &());
            Some((node, timeout(limit, asked).await.ok()?.ok()?))
        }));
        let mut reports: BTreeMap<_, _> = reports.await.into_iter().flatten().collect();
        reports.insert(self.me, self.report(Some(document)));
        reports
    }

    /// What this node knows of the groups it leads, going by a state once it has one.
    pub(super) fn report(&self, document: Option<&Document>) -> Report {
        let hosted = self.parts.node.hosted();
        let led =
            hosted.iter().filter_map(|group| Some((group.number(), Keeper::membership(group)?))).collect();
        let leads = hosted.iter().filter(|group| group.leads_majority());
        let terms = leads.map(|group| (group.number(), group.term())).collect();
        let unapplied = hosted.iter().map(|group| group.unapplied()).sum();
        let conversations = hosted.iter().filter(|group| group.number() < GROUPS);
        let reached = self.parts.peers.reached().into_iter().map(|remote| NodeId(remote.node_id));
        let reached = reached.chain([self.me]).collect();
        let known = document.into_iter().flat_map(|document| members(&document.state)).map(|(node, _)| node);
        let lost = known.filter(|node| self.liveness(*node) == Liveness::Dead).collect();
        let version = document.map_or(0, |document| document.version);
        let hosted = conversations.count() as u32;
        Report { version, led, terms, hosted, unapplied, reached, lost }
    }
}

fn apply(state: &mut ClusterState, change: &Change, seen: &Observed) -> Result<bool, Refusal> {
    match change {
        Change::Admit { node, record, replace } => state.admit(*node, record.clone(), *replace, seen),
        Change::Drain { name } => state.drain(name),
        Change::Undrain { name } => state.undrain(name),
        Change::Remove { name } => state.remove(name, seen).map(|()| true),
    }
}
