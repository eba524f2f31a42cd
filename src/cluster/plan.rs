//! How replicas move: from the cluster state and what was observed to the next cluster state. Pure.
//!
//! The node that leads the meta group drives it: gather [`Observed`] from the group leaders, call [`plan`], append
//! the state it answers by compare and set, and begin again. **Each observed membership must come from a leader that
//! knew the very state that is planned on**, so reports are dropped whenever the state changes. Every group leader
//! in turn brings its group to the document, asking [`next_change`] for one step at a time. Nothing else is
//! remembered anywhere, so all of it resumes after any crash.
//!
//! What always holds:
//! - At most [`MOVES_MAX`] groups are in motion, that is, differ from their placement. One in motion finishes before
//!   it is planned again, unless it cannot finish: its new voter died or was lost to its leader, or one of its nodes was
//!   removed.
//! - No change leaves a group with fewer caught-up voters than it had, unless the operator left fewer nodes than that.
//! - Only an operator, or a joiner that replaces a node, takes replicas off a dead one for being dead.
//! - In the end every group has [`REPLICATION`] voters on active nodes, as far as there are nodes; active nodes
//!   hold equally many voters and are preferred as leaders equally often, give or take one.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use crate::cluster::state::{
    ClusterState, GroupPlacement, NodeId, NodeState, REPLICATION, Replica, ReplicaId, Role, meta_voters,
};

/// Groups in motion at once. Each costs a snapshot to some node, and the transfers share the nodes' bulk links.
pub const MOVES_MAX: usize = 8;

/// What the cluster was seen to be.
#[derive(Clone, Debug, Default)]
pub struct Observed {
    /// Nodes that are missing count as silent.
    pub nodes: BTreeMap<NodeId, Liveness>,
    /// As the group leaders report. Missing: no leader answers, or its membership is joint at the moment.
    pub groups: BTreeMap<u16, Membership>,
    /// The nodes that a group's leader reaches. Missing: it does not say so.
    pub reached: BTreeMap<u16, BTreeSet<NodeId>>,
    /// The nodes that a group's leader has not reached for so long that nobody should wait for it.
    pub lost: BTreeMap<u16, BTreeSet<NodeId>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Liveness {
    Up,
    /// Unreachable for a short time, or not heard of yet: keeps what it has, and gets nothing new.
    Silent,
    /// Unreachable for so long that nobody should wait for it.
    Dead,
}

/// The committed, uniform membership of a group.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Membership {
    pub voters: BTreeMap<ReplicaId, NodeId>,
    pub learners: BTreeMap<ReplicaId, NodeId>,
    /// Those that are up and lack next to nothing of the leader's log; the leader itself among them.
    pub caught_up: BTreeSet<ReplicaId>,
}

/// What a group leader does next to bring its group to the document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Nothing: the membership is as it shall be.
    Settled,
    /// Nothing now: a replica has to catch up first.
    Wait,
    /// Add these as learners.
    Learn(BTreeMap<ReplicaId, NodeId>),
    /// One joint change to the voters of the placement; its learners stay or become learners, others go.
    Replace,
}

impl Observed {
    pub fn liveness(&self, node: NodeId) -> Liveness {
        self.nodes.get(&node).copied().unwrap_or(Liveness::Silent)
    }

    /// Whether a new replica there could hear from the group's leader.
    fn is_reached(&self, node: NodeId, group: u16) -> bool {
        self.reached.get(&group).is_none_or(|reached| reached.contains(&node))
    }
}

impl Membership {
    fn has(&self, replica: ReplicaId) -> bool {
        self.voters.contains_key(&replica) || self.learners.contains_key(&replica)
    }

    fn caught_up_voters(&self) -> usize {
        self.voters.keys().filter(|id| self.caught_up.contains(id)).count()
    }

    pub(super) fn matches(&self, placement: &GroupPlacement) -> bool {
        self.voters == placement.voters() && self.learners == placement.learners()
    }
}

/// One step from the actual membership towards the placement. Pure; the leader asks again after each step.
pub fn next_change(placement: &GroupPlacement, actual: &Membership) -> Change {
    if actual.matches(placement) {
        return Change::Settled;
    }
    let (voters, mut missing) = (placement.voters(), placement.voters());
    missing.extend(placement.learners());
    missing.retain(|id, _| !actual.has(*id));
    if !missing.is_empty() {
        return Change::Learn(missing);
    }
    let new = voters.keys().filter(|id| !actual.voters.contains_key(id));
    let behind = new.filter(|id| !actual.caught_up.contains(id)).count();
    let after = voters.keys().filter(|id| actual.caught_up.contains(id)).count();
    if behind > 0 || after < actual.caught_up_voters().min(voters.len()) {
        return Change::Wait;
    }
    Change::Replace
}

/// The state to write next; `None` when there is nothing to do now.
pub fn plan(state: &ClusterState, seen: &Observed) -> Option<ClusterState> {
    let mut planner = Planner::new(state, seen);
    planner.forget_departed();
    planner.repair();
    planner.balance_voters();
    planner.balance_leaders();
    (planner.state != *state).then_some(planner.state)
}

/// Whether every group is seen to have the members it shall have.
pub fn is_settled(state: &ClusterState, seen: &Observed) -> bool {
    let settled = |(number, placement): (u16, &GroupPlacement)| {
        seen.groups.get(&number).is_some_and(|actual| actual.matches(placement))
    };
    (0..).zip(&state.groups).all(settled)
}

struct Planner<'a> {
    state: ClusterState,
    seen: &'a Observed,
    active: BTreeSet<NodeId>,
    /// Voters of conversation groups on each active node.
    load: BTreeMap<NodeId, usize>,
    /// Groups that differ from their placement, or may.
    moving: BTreeSet<u16>,
    meta: u16,
}

impl<'a> Planner<'a> {
    fn new(state: &ClusterState, seen: &'a Observed) -> Planner<'a> {
        let meta = u16::try_from(state.groups.len() - 1).expect("group numbers are 16 bits wide");
        let settled = |group: &u16| {
            seen.groups.get(group).is_some_and(|actual| actual.matches(&state.groups[usize::from(*group)]))
        };
        let active: BTreeSet<NodeId> = state.active().collect();
        let mut load: BTreeMap<NodeId, usize> = active.iter().map(|node| (*node, 0)).collect();
        for node in state.groups[..usize::from(meta)].iter().flat_map(|group| group.voters().into_values()) {
            load.entry(node).and_modify(|load| *load += 1);
        }
        let moving = (0..=meta).filter(|group| !settled(group)).collect();
        Planner { state: state.clone(), seen, active, load, moving, meta }
    }

    /// Takes leaving replicas off the list once the membership was seen without them.
    fn forget_departed(&mut self) {
        for (number, actual) in &self.seen.groups {
            let group = &mut self.state.groups[usize::from(*number)];
            group.replicas.retain(|replica| replica.role != Role::Leaving || actual.has(replica.id));
        }
    }

    /// Gives groups the members they shall have: the meta group first, then those with the fewest live voters.
    fn repair(&mut self) {
        let live = |group: u16| {
            let voters = self.state.groups[usize::from(group)].voters();
            voters.values().filter(|node| self.fit(**node)).count()
        };
        let mut groups: Vec<u16> = (0..=self.meta).filter(|group| self.may_move(*group)).collect();
        groups.sort_by_cached_key(|group| (*group != self.meta, live(*group), *group));
        for group in groups {
            let room = self.moving.len() < MOVES_MAX || self.moving.contains(&group);
            let wanted = room.then(|| self.wanted(group)).flatten();
            if let Some(wanted) = wanted {
                self.place(group, wanted);
            }
        }
    }

    /// Whether a group may be planned: it is settled, or it cannot finish what it is at.
    fn may_move(&self, group: u16) -> bool {
        let Some(actual) = self.seen.groups.get(&group) else { return false };
        let stuck = |replica: &Replica| match replica.role {
            Role::Leaving => false,
            _ if self.state.is(replica.node, NodeState::Removed) => true,
            Role::Voter => self.is_lost(group, replica, actual),
            Role::Learner => false,
        };
        !self.moving.contains(&group) || self.state.groups[usize::from(group)].replicas.iter().any(stuck)
    }

    /// A replica that was not a voter before its node died, or before the group's leader lost it.
    fn is_lost(&self, group: u16, replica: &Replica, actual: &Membership) -> bool {
        let is_gone = self.seen.liveness(replica.node) == Liveness::Dead
            || self.seen.lost.get(&group).is_some_and(|lost| lost.contains(&replica.node));
        is_gone && !actual.voters.contains_key(&replica.id)
    }

    /// Whether a node may get new replicas.
    fn fit(&self, node: NodeId) -> bool {
        self.active.contains(&node) && self.seen.liveness(node) == Liveness::Up
    }

    /// The placement a group shall have, if it is another than it has and the way there is safe.
    fn wanted(&self, group: u16) -> Option<GroupPlacement> {
        let (old, actual) = (&self.state.groups[usize::from(group)], self.seen.groups.get(&group)?);
        let count = if group == self.meta {
            meta_voters(self.active.len())
        } else {
            self.active.len().min(REPLICATION)
        };
        let (stay, fall_back) = self.candidates(group, actual);
        let mut voters: BTreeSet<ReplicaId> = stay.into_iter().take(count).collect();
        let mut new = old.clone();
        for node in self.fresh_nodes(group).into_iter().take(count - voters.len()) {
            voters.insert(new.next_replica);
            new.add(node, Role::Voter);
        }
        // Nodes on their way out stay voters as long as there is no one to take over.
        let short = count - voters.len();
        voters.extend(fall_back.into_iter().take(short));
        if group == self.meta {
            let member = |node: &NodeId| !self.state.is(*node, NodeState::Removed);
            let up = |node: &NodeId| self.seen.liveness(*node) == Liveness::Up;
            for node in self.state.nodes.keys().filter(|node| member(node) && up(node)) {
                if new.on(*node).is_none() {
                    new.add(*node, Role::Learner);
                }
            }
        }
        for replica in &mut new.replicas {
            let hosts_meta = group == self.meta && !self.state.is(replica.node, NodeState::Removed);
            replica.role = match voters.contains(&replica.id) {
                true => Role::Voter,
                false if hosts_meta => Role::Learner,
                false => Role::Leaving,
            };
        }
        (new != *old && is_safe(&voters, actual, count)).then_some(new)
    }

    /// Replicas that can be voters: those that should be, best first, and those that may be for want of others.
    fn candidates(&self, group: u16, actual: &Membership) -> (Vec<ReplicaId>, Vec<ReplicaId>) {
        let replicas = &self.state.groups[usize::from(group)].replicas;
        let usable = replicas.iter().filter(|replica| !self.is_lost(group, replica, actual));
        let (mut stay, mut fall_back): (Vec<&Replica>, Vec<&Replica>) =
            usable.partition(|replica| self.active.contains(&replica.node));
        let load = |replica: &Replica| self.load[&replica.node];
        let up = |replica: &Replica| self.seen.liveness(replica.node) == Liveness::Up;
        // Promoting one that is not up would be no gain.
        stay.retain(|replica| {
            replica.role == Role::Voter || up(replica) || actual.voters.contains_key(&replica.id)
        });
        stay.sort_by_key(|replica| (replica.role, !actual.caught_up.contains(&replica.id), load(replica)));
        fall_back.retain(|replica| actual.voters.contains_key(&replica.id));
        fall_back.sort_by_key(|replica| self.state.is(replica.node, NodeState::Removed));
        let ids = |replicas: Vec<&Replica>| replicas.into_iter().map(|replica| replica.id).collect();
        (ids(stay), ids(fall_back))
    }

    /// Nodes that may get a replica of a group, the least loaded first. Among equals each group has its own order, so
    /// that a node's groups are spread over many others.
    fn fresh_nodes(&self, group: u16) -> Vec<NodeId> {
        let here = &self.state.groups[usize::from(group)];
        let free =
            |node: &NodeId| self.fit(*node) && here.on(*node).is_none() && self.seen.is_reached(*node, group);
        let mut nodes: Vec<NodeId> = self.active.iter().copied().filter(free).collect();
        nodes.sort_by_cached_key(|node| (self.load[node], shuffle(group, *node)));
        nodes
    }

    fn place(&mut self, group: u16, placement: GroupPlacement) {
        let old = std::mem::replace(&mut self.state.groups[usize::from(group)], placement);
        let new = &self.state.groups[usize::from(group)];
        if group != self.meta {
            for node in old.voters().values() {
                self.load.entry(*node).and_modify(|load| *load -= 1);
            }
            for node in new.voters().values() {
                self.load.entry(*node).and_modify(|load| *load += 1);
            }
        }
        self.moving.insert(group);
    }

    /// Moves voters from the fullest nodes to the emptiest. Each move makes the sum of the squared loads smaller, so
    /// this ends.
    fn balance_voters(&mut self) {
        while self.moving.len() < MOVES_MAX {
            let Some((group, from, to)) = self.best_shift() else { return };
            let mut placement = self.state.groups[usize::from(group)].clone();
            placement.add(to, Role::Voter);
            let leaving = placement.replicas.iter_mut().find(|replica| replica.node == from);
            leaving.expect("it was found there").role = Role::Leaving;
            self.place(group, placement);
        }
    }

    fn best_shift(&self) -> Option<(u16, NodeId, NodeId)> {
        let mut nodes: Vec<NodeId> = self.active.iter().copied().collect();
        nodes.sort_by_key(|node| self.load[node]);
        let fit: Vec<NodeId> = nodes.iter().copied().filter(|node| self.fit(*node)).collect();
        for &from in nodes.iter().rev() {
            for &to in fit.iter().take_while(|to| self.load[*to] + 1 < self.load[&from]) {
                let groups = (0..self.meta).filter(|group| self.can_shift(*group, from, to));
                // Moving a preferred leader would cost a transfer of leadership as well.
                let leads = |group: &u16| {
                    self.state.groups[usize::from(*group)].preferred().is_some_and(|first| first.node == from)
                };
                if let Some(group) = groups.min_by_key(|group| (leads(group), shuffle(*group, to))) {
                    return Some((group, from, to));
                }
            }
        }
        None
    }

    fn can_shift(&self, group: u16, from: NodeId, to: NodeId) -> bool {
        let placement = &self.state.groups[usize::from(group)];
        let votes = placement.on(from).is_some_and(|replica| replica.role == Role::Voter);
        let free = placement.on(to).is_none() && self.seen.is_reached(to, group);
        votes && free && !self.moving.contains(&group)
    }

    /// Changes who is preferred as leader: never a node on its way out, and each node equally often. An order is
    /// only a preference, so this moves no data and may concern any group.
    fn balance_leaders(&mut self) {
        let mut leads: BTreeMap<NodeId, usize> = self.active.iter().map(|node| (*node, 0)).collect();
        let mut headless = Vec::new();
        for group in 0..self.meta {
            let preferred = self.state.groups[usize::from(group)].preferred();
            match preferred.and_then(|replica| leads.get_mut(&replica.node)) {
                Some(count) => *count += 1,
                None => headless.push(group),
            }
        }
        for group in headless {
            let voters = self.state.groups[usize::from(group)].voters().into_values();
            let least = voters.filter(|node| leads.contains_key(node)).min_by_key(|node| leads[node]);
            if let Some(node) = least {
                self.prefer(group, node);
                *leads.entry(node).or_default() += 1;
            }
        }
        while let Some((from, path)) = self.relief(&leads) {
            let to = path.iter().fold(from, |_, (group, node)| {
                self.prefer(*group, *node);
                *node
            });
            *leads.entry(from).or_default() -= 1;
            *leads.entry(to).or_default() += 1;
        }
    }

    /// A chain of groups, each of which can hand leadership on to the next node, from one that leads too many to
    /// one that leads at least two fewer. When there is none, no other choice of leaders is more even.
    fn relief(&self, leads: &BTreeMap<NodeId, usize>) -> Option<(NodeId, Vec<(u16, NodeId)>)> {
        let least = leads.values().min()?;
        let mut heavy: Vec<NodeId> = leads.keys().copied().filter(|node| leads[node] > least + 1).collect();
        if heavy.is_empty() {
            return None;
        }
        heavy.sort_by_key(|node| Reverse(leads[node]));
        let mut handovers: BTreeMap<NodeId, BTreeMap<NodeId, u16>> = BTreeMap::new();
        for group in 0..self.meta {
            let placement = &self.state.groups[usize::from(group)];
            let Some(first) = placement.preferred() else { continue };
            for to in
                placement.voters().into_values().filter(|to| leads.contains_key(to) && *to != first.node)
            {
                handovers.entry(first.node).or_default().entry(to).or_insert(group);
            }
        }
        heavy.into_iter().find_map(|from| {
            let goal = |node: NodeId| leads[&node] + 1 < leads[&from];
            shortest_path(from, &handovers, goal).map(|path| (from, path))
        })
    }

    fn prefer(&mut self, group: u16, node: NodeId) {
        let replicas = &mut self.state.groups[usize::from(group)].replicas;
        let at = replicas.iter().position(|replica| replica.node == node).expect("it is a voter there");
        replicas[..=at].rotate_right(1);
    }
}

/// Whether a group, once it has these voters, has as many that are caught up as it has now, or as it shall have. New
/// voters count, since they catch up first.
fn is_safe(voters: &BTreeSet<ReplicaId>, actual: &Membership, count: usize) -> bool {
    let counts = |id: &ReplicaId| actual.caught_up.contains(id) || !actual.voters.contains_key(id);
    let after = voters.iter().filter(|id| counts(id)).count();
    !voters.is_empty() && after >= actual.caught_up_voters().min(count)
}

/// Breadth first from one node to the nearest that is a goal.
fn shortest_path(
    from: NodeId,
    edges: &BTreeMap<NodeId, BTreeMap<NodeId, u16>>,
    goal: impl Fn(NodeId) -> bool,
) -> Option<Vec<(u16, NodeId)>> {
    let mut paths = BTreeMap::from([(from, Vec::new())]);
    let mut queue = VecDeque::from([from]);
    while let Some(node) = queue.pop_front() {
        if goal(node) {
            return paths.remove(&node);
        }
        for (next, group) in edges.get(&node).into_iter().flatten() {
            if !paths.contains_key(next) {
                let mut path = paths[&node].clone();
                path.push((*group, *next));
                paths.insert(*next, path);
                queue.push_back(*next);
            }
        }
    }
    None
}

fn shuffle(group: u16, node: NodeId) -> u64 {
    let mut bytes = [0; 18];
    bytes[..2].copy_from_slice(&group.to_le_bytes());
    bytes[2..].copy_from_slice(&node.0.to_le_bytes());
    xxh3_64(&bytes)
}
