//! A model cluster that grows, shrinks, drains, loses and replaces nodes while planner and convergers work. At each
//! step nothing is lost; in the end all is balanced and nothing is left to do.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use super::super::plan::*;
use super::super::state::*;
use super::{for_seeds, record, records};
use crate::testing::Rng;

const SEEDS: u64 = 200;
const STORMY: usize = 150;
const CALM_MAX: usize = 1500;
/// Fewer groups than a real cluster, to be fast; the planner takes any number.
const GROUPS: u16 = 20;
const NODES_MAX: usize = 9;

#[test]
fn moves_are_safe_and_end_in_balance() {
    for_seeds(SEEDS, |seed| World::new(seed, GROUPS).run());
}

#[test]
fn a_cluster_of_full_size_too() {
    for_seeds(2, |seed| World::new(seed, META_GROUP).run());
}

#[test]
fn the_same_seed_is_the_same_story() {
    for seed in 0..5 {
        assert_eq!(World::new(seed, GROUPS).run(), World::new(seed, GROUPS).run());
    }
}

struct World {
    rng: Rng,
    state: ClusterState,
    /// What Raft has.
    actual: Vec<Membership>,
    /// What nodes have on disk, and all replicas that they forgot.
    hosted: BTreeMap<(u16, NodeId), ReplicaId>,
    forgotten: BTreeSet<(u16, ReplicaId)>,
    liveness: BTreeMap<NodeId, Liveness>,
    /// A node that the leader of a group does not reach, though others do.
    cut: BTreeMap<u16, NodeId>,
    nodes: u128,
    trace: String,
}

impl World {
    fn new(seed: u64, groups: u16) -> World {
        let mut rng = Rng::new(seed);
        let count = 1 + rng.below(4) as u128;
        let nodes = records(count);
        let placement = founding_placement(&nodes.keys().copied().collect(), groups);
        let member = |group: &GroupPlacement| {
            let (voters, learners) = (group.voters(), group.learners());
            let caught_up = voters.keys().chain(learners.keys()).copied().collect();
            Membership { voters, learners, caught_up }
        };
        let mut world = World {
            rng,
            actual: placement.iter().map(member).collect(),
            hosted: BTreeMap::new(),
            forgotten: BTreeSet::new(),
            liveness: nodes.keys().map(|node| (*node, Liveness::Up)).collect(),
            cut: BTreeMap::new(),
            state: ClusterState { cluster: ClusterId(1), nodes, groups: placement },
            nodes: count,
            trace: format!("{count} nodes\n"),
        };
        world.host();
        world
    }

    fn run(mut self) -> String {
        for _ in 0..STORMY {
            if self.rng.one_in(6) {
                self.disturb();
            }
            self.round(true);
        }
        let silent = |liveness: &mut Liveness| *liveness = Liveness::Up;
        self.liveness.values_mut().for_each(silent);
        if self.rng.one_in(2) {
            self.cut.clear();
        }
        let mut idle = 0;
        for round in 0.. {
            assert!(round < CALM_MAX, "it never comes to rest\n{}", self.trace);
            idle = if self.round(false) { 0 } else { idle + 1 };
            if idle > 30 {
                break;
            }
        }
        self.check_rest();
        self.trace
    }

    /// Observe, let the group leaders work on, plan with what was observed before. Answers whether anything moved.
    fn round(&mut self, stormy: bool) -> bool {
        let seen = self.observe(stormy);
        let mut moved = false;
        for group in 0..self.actual.len() {
            if self.rng.one_in(2) && seen.groups.contains_key(&(group as u16)) {
                moved |= self.converge(group);
            }
        }
        if let Some(next) = plan(&self.state, &seen) {
            self.check_plan(&next, &seen);
            self.state = next;
            self.host();
            moved = true;
        }
        moved
    }

    fn observe(&mut self, stormy: bool) -> Observed {
        let mut groups = BTreeMap::new();
        for (number, actual) in (0u16..).zip(&mut self.actual) {
            // Those on dead nodes fall behind, others catch up sooner or later.
            for (id, node) in actual.voters.iter().chain(&actual.learners) {
                if self.liveness[node] != Liveness::Up || self.cut.get(&number) == Some(node) {
                    actual.caught_up.remove(id);
                } else if !stormy || self.rng.one_in(4) {
                    actual.caught_up.insert(*id);
                }
            }
            let led = actual.voters.keys().any(|id| actual.caught_up.contains(id))
                && has_quorum(actual, &self.liveness);
            let leader_crashed = stormy && self.rng.one_in(20);
            if led && !leader_crashed {
                groups.insert(number, actual.clone());
            }
        }
        let reached = |cut| self.liveness.keys().copied().filter(|node| *node != cut).collect();
        Observed {
            nodes: self.liveness.clone(),
            groups,
            reached: self.cut.iter().map(|(group, cut)| (*group, reached(*cut))).collect(),
            lost: self.cut.iter().map(|(group, cut)| (*group, [*cut].into())).collect(),
        }
    }

    fn converge(&mut self, group: usize) -> bool {
        let (placement, actual) = (&self.state.groups[group], &self.actual[group]);
        let mut next = actual.clone();
        match next_change(placement, actual) {
            Change::Settled | Change::Wait => return false,
            Change::Learn(learners) => next.learners.extend(learners),
            Change::Replace => {
                next.voters = placement.voters();
                next.learners = placement.learners();
                next.learners
                    .retain(|id, _| actual.voters.contains_key(id) || actual.learners.contains_key(id));
            }
        }
        next.caught_up.retain(|id| next.voters.contains_key(id) || next.learners.contains_key(id));
        if !has_quorum(actual, &self.liveness) || !has_quorum(&next, &self.liveness) {
            return false;
        }
        let live = |m: &Membership| m.voters.keys().filter(|id| m.caught_up.contains(id)).count();
        assert!(live(&next) >= live(actual).min(next.voters.len()), "group {group}: {actual:?} -> {next:?}");
        writeln!(self.trace, "group {group}: {:?} -> {:?}", actual.voters, next.voters).unwrap();
        self.actual[group] = next;
        true
    }

    /// Nodes follow the document: they forget what it does not list, and start what it does.
    fn host(&mut self) {
        for (number, group) in (0u16..).zip(&self.state.groups) {
            let listed = |node: NodeId| group.on(node).map(|replica| replica.id);
            let gone = |((at, node), id): &(&(u16, NodeId), &ReplicaId)| {
                *at == number && listed(*node) != Some(**id)
            };
            let gone: Vec<_> = self.hosted.iter().filter(gone).map(|(key, id)| (*key, *id)).collect();
            for (key, id) in gone {
                let actual = &self.actual[usize::from(number)];
                assert!(
                    !actual.voters.contains_key(&id) && !actual.learners.contains_key(&id),
                    "a member forgot"
                );
                self.hosted.remove(&key);
                self.forgotten.insert((number, id));
            }
            for replica in &group.replicas {
                assert!(!self.forgotten.contains(&(number, replica.id)), "replica {} came back", replica.id);
                self.hosted.insert((number, replica.node), replica.id);
            }
        }
    }

    fn check_plan(&mut self, next: &ClusterState, seen: &Observed) {
        let differs = |state: &ClusterState, group: usize| {
            self.actual[group].voters != state.groups[group].voters()
                || self.actual[group].learners != state.groups[group].learners()
        };
        let roles = |state: &ClusterState, group: usize| {
            (state.groups[group].voters(), state.groups[group].learners())
        };
        let moving = (0..self.actual.len()).filter(|group| differs(next, *group)).count();
        let before = (0..self.actual.len()).filter(|group| differs(&self.state, *group)).count();
        assert!(moving <= before.max(MOVES_MAX), "{moving} groups in motion");
        for (number, (old, new)) in self.state.groups.iter().zip(&next.groups).enumerate() {
            let changed = roles(&self.state, number) != roles(next, number);
            assert!(!changed || seen.groups.contains_key(&(number as u16)), "planned in the dark");
            assert!(new.next_replica >= old.next_replica);
            let ids: BTreeSet<ReplicaId> = new.replicas.iter().map(|replica| replica.id).collect();
            let nodes: BTreeSet<NodeId> = new.replicas.iter().map(|replica| replica.node).collect();
            assert!(ids.len() == new.replicas.len() && nodes.len() == new.replicas.len(), "{new:?}");
            for replica in new.replicas.iter().filter(|replica| replica.id >= old.next_replica) {
                assert!(!next.is(replica.node, NodeState::Removed));
                assert!(seen.liveness(replica.node) == Liveness::Up, "a replica for a node that is away");
            }
            // A replica that was no member yet may be called off.
            let due = self.voters_due(number).min(self.actual[number].voters.len());
            assert!(!changed || new.voters().len() >= due, "{old:?} -> {new:?}");
            if changed {
                writeln!(self.trace, "plan {number}: {:?}", new.replicas).unwrap();
            }
        }
    }

    fn check_rest(&self) {
        let active: Vec<NodeId> = self.state.active().collect();
        let conversations = &self.state.groups[..self.state.groups.len() - 1];
        let voters =
            |node| conversations.iter().filter(|group| group.voters().values().any(|v| *v == node)).count();
        let leads =
            |node| conversations.iter().filter(|group| group.preferred().unwrap().node == node).count();
        let spread = |counts: Vec<usize>| counts.iter().max().unwrap() - counts.iter().min().unwrap();
        if self.cut.is_empty() {
            assert!(spread(active.iter().map(|node| voters(*node)).collect()) <= 1, "{}", self.trace);
            assert!(spread(active.iter().map(|node| leads(*node)).collect()) <= 1, "{}", self.trace);
        }
        for (number, (placement, actual)) in self.state.groups.iter().zip(&self.actual).enumerate() {
            assert_eq!(next_change(placement, actual), Change::Settled, "group {number}\n{}", self.trace);
            // Its leader may reach too few.
            if self.cut.contains_key(&(number as u16)) {
                continue;
            }
            assert!(placement.replicas.iter().all(|replica| replica.role != Role::Leaving));
            assert!(
                placement.voters().values().all(|node| active.contains(node)),
                "group {number}: {placement:?}"
            );
            assert_eq!(placement.voters().len(), self.voters_due(number));
        }
        let meta = self.state.groups.last().unwrap();
        let members = self.state.nodes.iter().filter(|(_, record)| record.state != NodeState::Removed);
        assert_eq!(meta.replicas.len(), members.count());
        assert_eq!(
            plan(&self.state, &Observed { nodes: self.liveness.clone(), ..Observed::default() }),
            None
        );
    }

    fn voters_due(&self, group: usize) -> usize {
        let active = self.state.active().count();
        if group + 1 == self.state.groups.len() { meta_voters(active) } else { active.min(REPLICATION) }
    }

    /// Something happens to the nodes. What is refused does not.
    fn disturb(&mut self) {
        let members: Vec<NodeId> = self
            .state
            .nodes
            .iter()
            .filter(|(_, r)| r.state != NodeState::Removed)
            .map(|(id, _)| *id)
            .collect();
        let node = self.rng.pick(&members);
        let name = self.state.nodes[&node].name.clone();
        let down = members.iter().copied().find(|node| self.liveness[node] != Liveness::Up);
        let seen = self.observe(true);
        let what = self.rng.below(10);
        let done = match (what, down) {
            (0 | 1, _) if members.len() < NODES_MAX => {
                self.join(&format!("n{}", self.nodes + 1), false, &seen)
            }
            (2, _) => self.state.drain(&name).is_ok(),
            (3, _) => self.state.undrain(&name).is_ok(),
            (4, _) => self.state.remove(&name, &seen).is_ok(),
            (5, None) => self.liveness.insert(node, Liveness::Silent).is_some(),
            (5, Some(down)) => self.liveness.insert(down, Liveness::Dead).is_some(),
            (6, Some(down)) => self.liveness.insert(down, Liveness::Up).is_some(),
            (7, Some(down)) => {
                let name = self.state.nodes[&down].name.clone();
                self.join(&name, true, &seen)
            }
            (8, Some(down)) => {
                let name = self.state.nodes[&down].name.clone();
                self.state.remove(&name, &seen).is_ok()
            }
            (9, _) => self.cut_off(node),
            _ => false,
        };
        if done {
            writeln!(self.trace, "{what} happens to {name} or {down:?}").unwrap();
        }
    }

    /// The leader of a group reaches a node no more that is not one of its voters, or all nodes again.
    fn cut_off(&mut self, node: NodeId) -> bool {
        let group = self.rng.below(self.actual.len() as u64 - 1) as u16;
        if self.cut.remove(&group).is_some() {
            return true;
        }
        let actual = &mut self.actual[usize::from(group)];
        if actual.voters.values().any(|voter| *voter == node) {
            return false;
        }
        actual.caught_up.retain(|id| actual.learners.get(id) != Some(&node));
        self.cut.insert(group, node).is_none()
    }

    fn join(&mut self, name: &str, replace: bool, seen: &Observed) -> bool {
        let node = NodeId(self.nodes + 1);
        let admitted = self.state.admit(node, record(name), replace, seen).is_ok();
        if admitted {
            self.nodes += 1;
            self.liveness.insert(node, Liveness::Up);
        }
        admitted
    }
}

fn has_quorum(membership: &Membership, liveness: &BTreeMap<NodeId, Liveness>) -> bool {
    let up = membership.voters.values().filter(|node| liveness[node] == Liveness::Up).count();
    up > membership.voters.len() / 2
}
