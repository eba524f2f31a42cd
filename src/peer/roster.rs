//! Which nodes are connected, and whether one more connection is wanted. Decides, and does no IO.
//!
//! A node that was started anew takes the place of its former self. Two processes with one id or one name are told
//! apart by the random number each chose at its start.

use std::collections::BTreeMap;

use tokio_util::sync::CancellationToken;

use super::Mark;
use super::hello::{Hello, Reason, Refusal};

/// Most nodes that are connected at once.
const NODES_MAX: usize = 256;

pub(crate) struct Roster {
    node_id: u128,
    name: String,
    instance: u64,
    cluster: Option<u128>,
    /// What nodes last told the cluster.
    marks: BTreeMap<u128, Mark>,
    nodes: BTreeMap<u128, Known>,
}

struct Known {
    name: String,
    instance: u64,
    incarnation: u64,
    cluster: Option<u128>,
    marks: Vec<u64>,
    connections: usize,
    /// Ends the connections of this process of the node.
    stop: CancellationToken,
}

impl Roster {
    pub(crate) fn new(node_id: u128, name: String, instance: u64, cluster: Option<u128>) -> Roster {
        Roster { node_id, name, instance, cluster, marks: BTreeMap::new(), nodes: BTreeMap::new() }
    }

    pub(crate) fn cluster(&self) -> Option<u128> {
        self.cluster
    }

    /// From now on only nodes of this cluster or of none are let in; connections of others end.
    pub(crate) fn set_cluster(&mut self, cluster: u128) {
        self.cluster = Some(cluster);
        let others = self.nodes.values().filter(|node| node.cluster.is_some_and(|other| other != cluster));
        others.for_each(|node| node.stop.cancel());
    }

    /// From now on a node that does not know its mark is not let in; connections of such nodes end.
    pub(crate) fn set_marks(&mut self, marks: BTreeMap<u128, Mark>) {
        self.marks = marks;
        let known = |id: &u128, node: &Known| {
            self.marks.get(id).is_none_or(|mark| mark.is_known_to(node.instance, &node.marks))
        };
        let unknown = self.nodes.iter().filter(|(id, node)| !known(id, node));
        unknown.for_each(|(_, node)| node.stop.cancel());
    }

    /// Counts one more connection of the node that says hello. The token ends it when the node was replaced.
    pub(crate) fn admit(&mut self, hello: &Hello) -> Result<CancellationToken, Refusal> {
        self.check_identity(hello)?;
        self.check_cluster(hello)?;
        self.check_mark(hello)?;
        self.check_others(hello)?;
        if self.nodes.get(&hello.node_id).is_some_and(|known| known.instance != hello.instance) {
            let former = self.nodes.remove(&hello.node_id);
            former.inspect(|former| former.stop.cancel());
        }
        let known = self.nodes.entry(hello.node_id).or_insert_with(|| Known {
            name: hello.name.clone(),
            instance: hello.instance,
            incarnation: hello.incarnation,
            cluster: hello.cluster,
            marks: hello.marks.clone(),
            connections: 0,
            stop: CancellationToken::new(),
        });
        known.connections += 1;
        known.cluster = hello.cluster.or(known.cluster);
        Ok(known.stop.clone())
    }

    /// A connection that was admitted ended.
    pub(crate) fn release(&mut self, node_id: u128, instance: u64) {
        let Some(known) = self.nodes.get_mut(&node_id).filter(|known| known.instance == instance) else {
            return;
        };
        known.connections -= 1;
        if known.connections == 0 {
            self.nodes.remove(&node_id);
        }
    }

    fn check_identity(&self, hello: &Hello) -> Result<(), Refusal> {
        let same_id = hello.node_id == self.node_id;
        if same_id && hello.instance == self.instance {
            return Err(Reason::Yourself.because("this is the same node"));
        }
        if same_id {
            return Err(Reason::SameId.because(format!(
                "nodes {:?} and {:?} have one node id: was a data directory copied?",
                self.name, hello.name
            )));
        }
        if hello.name == self.name {
            return Err(Reason::SameName.because(format!("two nodes are named {:?}", self.name)));
        }
        Ok(())
    }

    fn check_cluster(&self, hello: &Hello) -> Result<(), Refusal> {
        match (self.cluster, hello.cluster) {
            (Some(own), Some(other)) if own != other => Err(Reason::OtherCluster.because(format!(
                "node {:?} is of cluster {own:032x}, node {:?} of {other:032x}",
                self.name, hello.name
            ))),
            _ => Ok(()),
        }
    }

    fn check_mark(&self, hello: &Hello) -> Result<(), Refusal> {
        match self.marks.get(&hello.node_id) {
            Some(mark) if !mark.is_known_to(hello.instance, &hello.marks) => {
                Err(Reason::OutdatedData.because(format!(
                    "node {:?} came back with data of an earlier time, without what it wrote since: empty its data \
                     directory and start it with FASTPACA_REPLACE=true",
                    hello.name
                )))
            }
            _ => Ok(()),
        }
    }

    fn check_others(&self, hello: &Hello) -> Result<(), Refusal> {
        let same_name = |(id, known): (&u128, &Known)| *id != hello.node_id && known.name == hello.name;
        if self.nodes.iter().any(same_name) {
            let text = format!("another node named {:?} is connected", hello.name);
            return Err(Reason::SameName.because(text));
        }
        match self.nodes.get(&hello.node_id) {
            Some(known) if known.instance != hello.instance && known.incarnation >= hello.incarnation => {
                let text = format!("another process with the node id of {:?} is connected", known.name);
                Err(Reason::SameId.because(text))
            }
            None if self.nodes.len() >= NODES_MAX => {
                Err(Reason::Full.because(format!("{NODES_MAX} nodes are connected already")))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peer::Lane;

    fn hello(node_id: u128, name: &str, instance: u64, incarnation: u64) -> Hello {
        Hello {
            protocol_min: 1,
            protocol_max: 1,
            lane: Lane::Control,
            node_id,
            instance,
            incarnation,
            cluster: None,
            port: 1,
            body_bytes_max: 1,
            nonce: [0; 32],
            name: name.to_owned(),
            advertised: None,
            keys: Vec::new(),
            marks: Vec::new(),
        }
    }

    fn reason(roster: &mut Roster, hello: &Hello) -> Option<Reason> {
        roster.admit(hello).err().map(|refusal| refusal.reason)
    }

    #[test]
    fn nobody_is_two_nodes_and_no_two_are_one() {
        let mut roster = Roster::new(1, "a".into(), 10, None);
        assert_eq!(reason(&mut roster, &hello(1, "a", 10, 1)), Some(Reason::Yourself));
        assert_eq!(reason(&mut roster, &hello(1, "a", 11, 1)), Some(Reason::SameId));
        assert_eq!(reason(&mut roster, &hello(2, "a", 12, 1)), Some(Reason::SameName));
        assert_eq!(reason(&mut roster, &hello(2, "b", 12, 5)), None);
        assert_eq!(reason(&mut roster, &hello(2, "b", 12, 5)), None);
        assert_eq!(reason(&mut roster, &hello(3, "b", 13, 1)), Some(Reason::SameName));
        assert_eq!(reason(&mut roster, &hello(2, "b", 14, 5)), Some(Reason::SameId));
        assert_eq!(reason(&mut roster, &hello(2, "b", 14, 4)), Some(Reason::SameId));
        roster.release(2, 12);
        assert_eq!(reason(&mut roster, &hello(3, "b", 13, 1)), Some(Reason::SameName));
        roster.release(2, 12);
        assert_eq!(reason(&mut roster, &hello(3, "b", 13, 1)), None);
    }

    #[test]
    fn a_node_started_anew_replaces_its_former_self() {
        let mut roster = Roster::new(1, "a".into(), 10, None);
        let former = roster.admit(&hello(2, "b", 20, 5)).expect("wanted");
        let later = roster.admit(&hello(2, "b", 21, 6)).expect("wanted");
        assert!(former.is_cancelled() && !later.is_cancelled());
        roster.release(2, 20);
        assert_eq!(reason(&mut roster, &hello(2, "b", 20, 5)), Some(Reason::SameId), "21 is still there");
        roster.release(2, 21);
        assert_eq!(reason(&mut roster, &hello(2, "b", 20, 5)), None);
    }

    #[test]
    fn data_from_the_past_is_not_let_in() {
        let mut roster = Roster::new(1, "a".into(), 10, None);
        let mark = |number: u64, random: u64| number << Mark::RANDOM_BITS | random;
        let with = |instance, marks: &[u64]| Hello { marks: marks.to_vec(), ..hello(2, "b", instance, 5) };
        let told = |number, instance| BTreeMap::from([(2, Mark { value: mark(number, 1), instance })]);
        roster.set_marks(told(7, 20));
        let other = mark(7, 2);
        for outdated in [with(21, &[]), with(21, &[mark(6, 1)]), with(21, &[mark(6, 1), other])] {
            let refused = roster.admit(&outdated).expect_err("7 was told after this was written");
            assert_eq!(refused.reason, Reason::OutdatedData);
            assert!(refused.text.contains("\"b\"") && refused.text.contains("FASTPACA_REPLACE"), "{refused}");
        }
        let later = with(21, &[mark(9, 1), mark(10, 1)]);
        let current = [with(21, &[mark(7, 1)]), with(21, &[mark(6, 1), mark(7, 1)]), later];
        for current in current {
            assert!(roster.admit(&current).is_ok());
            roster.release(2, 21);
        }
        let told_it = roster.admit(&with(20, &[mark(6, 1)])).expect("the process that told the mark");
        assert!(roster.admit(&hello(3, "c", 30, 1)).is_ok(), "it has told none yet");
        roster.set_marks(told(8, 20));
        assert!(!told_it.is_cancelled(), "it goes on to tell marks");
        roster.set_marks(told(9, 22));
        assert!(told_it.is_cancelled(), "a process that started later told one");
    }

    #[test]
    fn clusters_do_not_mix() {
        let mut roster = Roster::new(1, "a".into(), 10, None);
        let of = |cluster, hello: Hello| Hello { cluster, ..hello };
        let other = roster.admit(&of(Some(8), hello(2, "b", 20, 1))).expect("no cluster of its own yet");
        let none = roster.admit(&hello(3, "c", 30, 1)).expect("wanted");
        roster.set_cluster(7);
        assert!(other.is_cancelled() && !none.is_cancelled());
        let refused = roster.admit(&of(Some(8), hello(4, "d", 40, 1))).expect_err("of another cluster");
        assert_eq!(refused.reason, Reason::OtherCluster);
        assert!(refused.text.contains("\"a\"") && refused.text.contains("\"d\""), "{refused}");
        assert!(roster.admit(&of(Some(7), hello(5, "e", 50, 1))).is_ok());
    }
}
