//! For operators: what the cluster looks like, gathered from its nodes, and changes of who is in it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use tokio::time::timeout;
use tracing::info;

use super::calls::{self, Change, Report};
use super::document::Document;
use super::service::{Cluster, Inner};
use super::state::{ClusterState, META_GROUP, NodeId, NodeRecord, NodeState, Role};
use crate::peer::{LinkInfo, LinkState};
use crate::shards::placement::GROUPS;
use crate::shards::{ClusterControl, ClusterStatus, ControlError, LinkStatus, NodeStatus, Standing};

/// Longest wait for a node to report.
const REPORT_MAX: Duration = Duration::from_secs(1);
/// Longest wait until this node sees a change that was made; it is made all the same.
const SEEN_MAX: Duration = Duration::from_secs(1);

const NOT_JOINED: &str = "the node has not joined a cluster yet";

impl ClusterControl for Cluster {
    fn status(&self) -> BoxFuture<'_, ClusterStatus> {
        Box::pin(self.0.status())
    }

    fn drain<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<(), ControlError>> {
        Box::pin(self.0.set_draining(name, true))
    }

    fn undrain<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<(), ControlError>> {
        Box::pin(self.0.set_draining(name, false))
    }

    fn remove<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<(), ControlError>> {
        Box::pin(async {
            self.0.ask(Change::Remove { name: name.to_owned() }).await?;
            self.0.until_seen(|state| state.named(name).is_none()).await;
            Ok(())
        })
    }
}

impl Inner {
    async fn set_draining(&self, name: &str, draining: bool) -> Result<(), ControlError> {
        let state = self.known()?;
        let name_here = state.state.nodes.get(&self.me).map(|record| record.name.as_str());
        let is_here = name_here == Some(name);
        if is_here && (!draining || is_alone(&state.state)) {
            // Nothing could move anywhere: it only stops taking writes.
            self.parts.shards.refuse_writes(draining);
            info!(event = if draining { "writes_refused" } else { "writes_taken" });
            if is_alone(&state.state) {
                return Ok(());
            }
        }
        let (change, wanted) = match draining {
            true => (Change::Drain { name: name.to_owned() }, NodeState::Draining),
            false => (Change::Undrain { name: name.to_owned() }, NodeState::Active),
        };
        self.ask(change).await?;
        self.until_seen(|state| state.named(name).is_none_or(|node| state.is(node, wanted))).await;
        Ok(())
    }

    async fn ask(&self, change: Change) -> Result<(), ControlError> {
        self.known()?;
        self.make(change, calls::HOPS_MAX).await.map_err(|error| error.for_operators())
    }

    fn known(&self) -> Result<Arc<Document>, ControlError> {
        self.document.borrow().clone().ok_or_else(|| ControlError::Unavailable(NOT_JOINED.into()))
    }

    /// Whoever asked for a change and looks here next shall see it.
    async fn until_seen(&self, is_seen: impl Fn(&ClusterState) -> bool) {
        let mut documents = self.document.subscribe();
        let seen = documents.wait_for(|document| document.as_ref().is_some_and(|d| is_seen(&d.state)));
        let _ = timeout(SEEN_MAX, seen).await;
    }

    async fn status(&self) -> ClusterStatus {
        let Some(document) = self.document.borrow().clone() else { return self.status_alone() };
        let reports = self.reports(&document, REPORT_MAX).await;
        let leaders = self.leaders(&reports);
        let links = self.parts.peers.links().borrow().clone();
        let state = &document.state;
        let members = members(state);
        let node = |(id, record): (NodeId, &NodeRecord)| {
            let report = reports.get(&id);
            let placed = || state.hosted_by(id).filter(|(group, _)| *group < META_GROUP).count();
            NodeStatus {
                name: record.name.clone(),
                id: id.0,
                address: record.address.clone(),
                standing: self.standing(id, record),
                link: if id == self.me { LinkStatus::Here } else { link_to(id, &links) },
                groups: report.map_or_else(placed, |report| report.hosted as usize),
                leaders: leaders.iter().filter(|(group, leader)| **group < GROUPS && **leader == id).count(),
                lag: report.map(|report| report.unapplied),
                incarnation: record.incarnation,
                protocol: record.protocol,
            }
        };
        let mut nodes: Vec<NodeStatus> = members.map(node).collect();
        nodes.sort_by(|a, b| a.name.cmp(&b.name));
        ClusterStatus {
            cluster: Some(state.cluster.0),
            version: document.version,
            groups_without_leader: (0..GROUPS).filter(|group| !leaders.contains_key(group)).count(),
            moving: moving(state, &reports),
            leaders: named(&leaders, state),
            nodes,
        }
    }

    /// What a node that has not joined can say.
    fn status_alone(&self) -> ClusterStatus {
        let NodeRecord { name, address, incarnation, protocol, .. } = self.record();
        let node = NodeStatus {
            name,
            id: self.me.0,
            address,
            standing: Standing::Joining,
            link: LinkStatus::Here,
            groups: 0,
            leaders: 0,
            lag: None,
            incarnation,
            protocol,
        };
        ClusterStatus {
            cluster: self.cluster.lock().map(|cluster| cluster.0),
            groups_without_leader: usize::from(GROUPS),
            nodes: vec![node],
            ..ClusterStatus::default()
        }
    }

    fn standing(&self, id: NodeId, record: &NodeRecord) -> Standing {
        let refuses = id == self.me && self.parts.shards.refuses_writes();
        if refuses || record.state == NodeState::Draining { Standing::Draining } else { Standing::Active }
    }

    /// Who leads: the newest claim of those that report. For nodes that do not, what the replicas here know.
    fn leaders(&self, reports: &BTreeMap<NodeId, Report>) -> BTreeMap<u16, NodeId> {
        let mut claims: BTreeMap<u16, (u64, NodeId)> = BTreeMap::new();
        for (node, report) in reports {
            for (group, term) in &report.terms {
                let claim = claims.entry(*group).or_insert((*term, *node));
                *claim = (*claim).max((*term, *node));
            }
        }
        let mut leaders: BTreeMap<u16, NodeId> =
            claims.into_iter().map(|(group, (_, node))| (group, node)).collect();
        for group in self.parts.node.hosted() {
            let leader = group.leader().map(NodeId).filter(|leader| !reports.contains_key(leader));
            if let Some(leader) = leader {
                leaders.entry(group.number()).or_insert(leader);
            }
        }
        leaders
    }
}

pub(super) fn members(state: &ClusterState) -> impl Iterator<Item = (NodeId, &NodeRecord)> {
    let nodes = state.nodes.iter().filter(|(_, record)| record.state != NodeState::Removed);
    nodes.map(|(node, record)| (*node, record))
}

/// Whether the cluster has one member.
pub(super) fn is_alone(state: &ClusterState) -> bool {
    members(state).count() == 1
}

fn named(leaders: &BTreeMap<u16, NodeId>, state: &ClusterState) -> BTreeMap<u16, String> {
    let name = |node: &NodeId| state.nodes.get(node).map(|record| record.name.clone());
    leaders.iter().filter_map(|(group, node)| Some((*group, name(node)?))).collect()
}

/// Groups whose placement is not final, or that their leader has not brought there.
fn moving(state: &ClusterState, reports: &BTreeMap<NodeId, Report>) -> usize {
    let is_final = |group: usize| {
        let placement = &state.groups[group];
        let roles: BTreeSet<Role> = placement.replicas.iter().map(|replica| replica.role).collect();
        let group = group as u16;
        let led = reports.values().find(|report| report.terms.contains_key(&group));
        let there = led.is_none_or(|report| report.led.get(&group).is_some_and(|is| is.matches(placement)));
        roles.iter().all(|role| *role == Role::Voter) && there
    };
    (0..usize::from(GROUPS)).filter(|group| !is_final(*group)).count()
}

fn link_to(node: NodeId, links: &[LinkInfo]) -> LinkStatus {
    let there = |link: &&LinkInfo| link.remote.as_ref().is_some_and(|remote| remote.node_id == node.0);
    let up = links.iter().filter(there).find(|link| link.is_up());
    let Some(link) = up.or_else(|| links.iter().find(there)) else {
        return LinkStatus::Down { lasting: None, why: None };
    };
    let lasting = Instant::now().saturating_duration_since(link.since);
    match &link.state {
        LinkState::Up => LinkStatus::Up { lasting, round_trip: link.rtt() },
        LinkState::Down(why) => LinkStatus::Down { lasting: Some(lasting), why: Some(why.clone()) },
        _ => LinkStatus::Down { lasting: Some(lasting), why: None },
    }
}
