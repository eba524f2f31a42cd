//! Who can be reached: seeds are resolved again and again, and every node known by any way is dialled.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tokio::net::lookup_host;
use tokio::time::timeout;
use tracing::{info, warn};

use super::calls::{self, Status};
use super::founding::View;
use super::state::{ClusterId, ClusterState, NodeId, NodeState};
use crate::peer::{LinkInfo, LinkState, Peers};

/// Longest wait for the resolver.
const RESOLVE_MAX: Duration = Duration::from_secs(5);
/// How often names are resolved again while a link is missing.
const RESOLVE_EVERY: Duration = Duration::from_secs(2);

/// Resolves names and keeps the links' targets.
pub(super) struct Discovery {
    me: NodeId,
    peers: Peers,
    seeds: Vec<String>,
    resolved: BTreeMap<String, BTreeSet<SocketAddr>>,
    resolved_at: Option<Instant>,
    targets: BTreeSet<SocketAddr>,
    /// Seeds that could not be resolved, so that each is logged once.
    unresolved: BTreeSet<String>,
}

impl Discovery {
    pub(super) fn new(me: NodeId, peers: Peers, seeds: Vec<String>) -> Discovery {
        Discovery {
            me,
            peers,
            seeds,
            resolved: BTreeMap::new(),
            resolved_at: None,
            targets: BTreeSet::new(),
            unresolved: BTreeSet::new(),
        }
    }

    /// Brings the targets up to date with seeds, state and those that dialled in.
    pub(super) async fn refresh(&mut self, state: Option<&ClusterState>) {
        let mut names: BTreeSet<String> = self.seeds.iter().cloned().collect();
        let members = state.map(|state| &state.nodes);
        names.extend(
            members
                .into_iter()
                .flatten()
                .filter(|(id, record)| **id != self.me && record.state != NodeState::Removed)
                .map(|(_, record)| record.address.clone()),
        );
        let unknown = names.iter().any(|name| !self.resolved.contains_key(name));
        let stale = self.resolved_at.is_none_or(|at| at.elapsed() >= RESOLVE_EVERY);
        if unknown || (stale && self.lacks_links(state)) {
            self.resolve(names).await;
        }
        let mut targets: BTreeSet<SocketAddr> = self.resolved.values().flatten().copied().collect();
        targets.extend(self.inbound(state));
        if targets != self.targets {
            self.peers.set_targets(targets.iter().copied().collect());
            self.targets = targets;
        }
    }

    /// What the nodes behind the seeds are.
    pub(super) async fn view(&self) -> View {
        let behind: BTreeSet<SocketAddr> =
            self.seeds.iter().filter_map(|seed| self.resolved.get(seed)).flatten().copied().collect();
        let links = self.peers.links().borrow().clone();
        let links: Vec<&LinkInfo> = links.iter().filter(|link| behind.contains(&link.address)).collect();
        let answered =
            |link: &&LinkInfo| matches!(link.state, LinkState::Up | LinkState::Myself | LinkState::Duplicate);
        let resolved = |seed: &String| self.resolved.get(seed).is_some_and(|found| !found.is_empty());
        let complete = self.seeds.iter().all(resolved)
            && behind
                .iter()
                .all(|address| links.iter().any(|link| link.address == *address && answered(link)));
        let mut nodes: BTreeMap<NodeId, Option<ClusterId>> = BTreeMap::new();
        for remote in links.iter().filter(|link| link.state != LinkState::Myself && answered(link)) {
            if let Some(remote) = &remote.remote {
                let known = nodes.entry(NodeId(remote.node_id)).or_default();
                *known = known.or(remote.cluster.map(ClusterId));
            }
        }
        // A link may be older than the cluster.
        for (node, cluster) in nodes.iter_mut().filter(|(_, cluster)| cluster.is_none()) {
            if let Ok(Status { cluster: now, .. }) = calls::call(&self.peers, *node, calls::STATUS, &()).await
            {
                *cluster = now;
            }
        }
        View { complete, nodes }
    }

    fn lacks_links(&self, state: Option<&ClusterState>) -> bool {
        let links = self.peers.links().borrow().clone();
        let missing = |node: &NodeId| *node != self.me && !self.peers.is_up(node.0);
        state.is_none_or(|state| state.active().any(|node| missing(&node)))
            || links.iter().any(|link| matches!(link.state, LinkState::Down(_)))
    }

    async fn resolve(&mut self, names: BTreeSet<String>) {
        self.resolved_at = Some(Instant::now());
        let mut resolved = BTreeMap::new();
        for name in names {
            let found: BTreeSet<SocketAddr> = match timeout(RESOLVE_MAX, lookup_host(&name)).await {
                Ok(Ok(addresses)) => addresses.collect(),
                _ => BTreeSet::new(),
            };
            if found.is_empty() {
                if self.unresolved.insert(name.clone()) {
                    warn!(event = "seed_unresolved", seed = name);
                }
            } else if self.unresolved.remove(&name) {
                info!(event = "seed_resolved", seed = name);
            }
            resolved.insert(name, found);
        }
        self.resolved = resolved;
    }

    /// Where members that dialled in are to be dialled back: they may have moved.
    fn inbound(&self, state: Option<&ClusterState>) -> Vec<SocketAddr> {
        let seen = self.peers.seen_inbound().borrow().clone();
        let member = |id: NodeId| {
            state.is_none_or(|state| {
                state.nodes.get(&id).is_some_and(|record| record.state != NodeState::Removed)
            })
        };
        seen.values().filter(|remote| member(NodeId(remote.node_id))).map(|remote| remote.address).collect()
    }
}
