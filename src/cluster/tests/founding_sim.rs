//! Nodes that start in any order, crash around every write, lose, delay and double messages, and see different
//! seeds for a while. Never two clusters; one in the end.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use super::super::founding::*;
use super::super::state::{ClusterId, NodeId};
use super::for_seeds;
use crate::testing::Rng;

const SEEDS: u64 = 1000;
/// Steps with faults, and steps within which a cluster must be there once they have ended.
const STORMY: usize = 400;
const CALM_MAX: usize = 4000;
const MAIL_MAX: usize = 40;

#[test]
fn exactly_one_cluster_comes_out() {
    for_seeds(SEEDS, |seed| World::new(seed).run());
}

#[test]
fn the_same_seed_is_the_same_story() {
    for seed in 0..20 {
        assert_eq!(World::new(seed).run(), World::new(seed).run());
    }
}

#[test]
fn a_node_alone_founds_a_cluster_at_once() {
    let (me, cluster) = (NodeId(1), ClusterId(9));
    let mut node = Founding::restore(me, None, Durable::Nothing);
    let actions = node.on(Event::Tick, cluster);
    let members = BTreeSet::from([me]);
    let host = Action::Host { cluster, members: members.clone() };
    assert_eq!(actions[1..3], [Action::Persist(Durable::Founded { cluster, members }), host]);
    assert_eq!(node.on(Event::Hosted, cluster), [Action::Persist(Durable::Member { cluster })]);
    assert_eq!(node.on(Event::Tick, cluster), []);
}

#[test]
fn a_node_with_seeds_waits_for_all_of_them() {
    let mut node = Founding::restore(NodeId(1), Some(3), Durable::Nothing);
    let nodes = BTreeMap::from([(NodeId(2), None), (NodeId(3), None)]);
    assert_eq!(node.on(Event::Tick, ClusterId(9)), []);
    assert_eq!(node.on(Event::Saw(View { complete: false, nodes: nodes.clone() }), ClusterId(9)), []);
    let actions = node.on(Event::Saw(View { complete: true, nodes }), ClusterId(9));
    assert!(matches!(actions[0], Action::Persist(Durable::Founding { .. })), "{actions:?}");
}

struct World {
    rng: Rng,
    size: Option<usize>,
    disks: BTreeMap<NodeId, Durable>,
    up: BTreeMap<NodeId, Founding>,
    /// On their way: from, to.
    mail: Vec<(NodeId, NodeId, Message)>,
    joining: BTreeSet<(NodeId, NodeId, ClusterId)>,
    hosting: BTreeSet<NodeId>,
    stormy: bool,
    ids: u128,
    trace: String,
}

impl World {
    fn new(seed: u64) -> World {
        let mut rng = Rng::new(seed);
        let nodes = 1 + rng.index(5);
        // In any order, so that the lowest may come last.
        let disks = (0..nodes).map(|_| (NodeId(u128::from(rng.next_u64())), Durable::Nothing)).collect();
        let size = (nodes > 1).then(|| nodes / 2 + 1 + rng.index(nodes - nodes / 2));
        World {
            rng,
            size,
            disks,
            up: BTreeMap::new(),
            mail: Vec::new(),
            joining: BTreeSet::new(),
            hosting: BTreeSet::new(),
            stormy: true,
            ids: 0,
            trace: format!("{nodes} nodes, cluster size {size:?}\n"),
        }
    }

    fn run(mut self) -> String {
        for _ in 0..STORMY {
            self.step();
        }
        self.stormy = false;
        for node in self.all() {
            self.start(node);
        }
        let mut steps = 0;
        while !self.disks.values().all(|disk| matches!(disk, Durable::Member { .. })) {
            self.step();
            steps += 1;
            assert!(steps < CALM_MAX, "no cluster comes out: {:?}\n{}", self.disks, self.trace);
        }
        self.trace
    }

    fn step(&mut self) {
        let node = self.rng.pick(&self.all());
        match self.rng.below(if self.stormy { 12 } else { 8 }) {
            0 => self.tell(node, Event::Tick),
            1 | 2 => self.look(node),
            3 if self.hosting.remove(&node) => self.tell(node, Event::Hosted),
            4 => self.join(),
            5..=9 => self.deliver(),
            10 if self.up.contains_key(&node) => self.crash(node),
            _ if self.stormy => self.start(node),
            _ => {}
        }
        let clusters: BTreeSet<ClusterId> = self.disks.values().filter_map(Durable::cluster).collect();
        assert!(clusters.len() <= 1, "two clusters: {:?}\n{}", self.disks, self.trace);
    }

    /// A node resolves its seeds; in a storm some names are missing and some addresses do not answer.
    fn look(&mut self, node: NodeId) {
        let mut view = View { complete: true, nodes: BTreeMap::new() };
        for other in self.all().into_iter().filter(|other| *other != node) {
            let resolved = !self.stormy || !self.rng.one_in(4);
            match self.up.get(&other) {
                Some(founding) if resolved => {
                    view.nodes.insert(other, founding.durable().cluster());
                }
                None if resolved => view.complete = false,
                _ => {}
            }
        }
        self.tell(node, Event::Saw(view));
    }

    fn deliver(&mut self) {
        // In a storm any message may be the next, and what piles up is lost; later they come in order.
        self.mail.truncate(MAIL_MAX);
        for _ in 0..if self.stormy { 1 } else { MAIL_MAX } {
            if self.mail.is_empty() {
                return;
            }
            let at = if self.stormy { self.rng.index(self.mail.len()) } else { 0 };
            let (from, to, message) = self.mail[at].clone();
            if !self.stormy || !self.rng.one_in(10) {
                self.mail.remove(at);
            }
            if !self.stormy || !self.rng.one_in(5) {
                self.tell(to, Event::Received(from, message));
            }
        }
    }

    fn join(&mut self) {
        if let Some((node, through, cluster)) = self.joining.pop_first()
            && self.up.get(&through).is_some_and(|there| there.durable().cluster() == Some(cluster))
        {
            self.tell(node, Event::Joined(cluster));
        }
    }

    fn tell(&mut self, node: NodeId, event: Event) {
        let Some(founding) = self.up.get_mut(&node) else { return };
        self.ids += 1;
        writeln!(self.trace, "{node} <- {event:?}").unwrap();
        for action in founding.on(event, ClusterId(self.ids)) {
            writeln!(self.trace, "{node} -> {action:?}").unwrap();
            match action {
                Action::Persist(durable) => {
                    // A crash before the write is done, or after it.
                    let crash = self.stormy && self.rng.one_in(6);
                    if !crash || self.rng.one_in(2) {
                        self.disks.insert(node, durable);
                    }
                    if crash {
                        return self.crash(node);
                    }
                }
                Action::Send(to, message) => self.mail.push((node, to, message)),
                Action::Join { through, cluster } => drop(self.joining.insert((node, through, cluster))),
                Action::Host { .. } => drop(self.hosting.insert(node)),
            }
        }
    }

    fn crash(&mut self, node: NodeId) {
        writeln!(self.trace, "{node} crashes").unwrap();
        self.up.remove(&node);
        self.hosting.remove(&node);
        self.joining.retain(|(joiner, ..)| *joiner != node);
    }

    fn start(&mut self, node: NodeId) {
        if !self.up.contains_key(&node) {
            writeln!(self.trace, "{node} starts").unwrap();
            self.up.insert(node, Founding::restore(node, self.size, self.disks[&node].clone()));
            self.tell(node, Event::Tick);
        }
    }

    fn all(&self) -> Vec<NodeId> {
        self.disks.keys().copied().collect()
    }
}
