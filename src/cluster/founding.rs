//! How nodes that know nothing but seed addresses become exactly one cluster. Pure: events in, actions out.
//!
//! A node without a cluster that sees one joins it. Otherwise, once every seed address answers and enough nodes are
//! there, the lowest id is the *founder*: it asks all of them for a durable promise, naming the set of members.
//! A node promises to one founding at a time, and only if it sees the very same set; it is bound until a cluster
//! exists or the founder releases it. With all promises the founder commits and tells the others. When anyone refuses,
//! the founder gives that founding up for good, durably, then releases those who promised, and tries a new one at a
//! later tick: so nothing hangs when member sets differ for a while.
//!
//! Two clusters would need two foundings with all promises. Their member sets have a node in common if each is
//! more than half of the nodes that start without a cluster, which `cluster_size` must therefore be; and
//! that node promised only one of them.
//!
//! Drive it like this: restore it from the durable record; pass it every [`Message`] that arrives, the [`View`] whenever
//! it changes, and a [`Event::Tick`] at the start and about every 500 ms; carry out the actions it answers **in
//! order, each before the next, and all before the next event**, where [`Action::Persist`] is on disk when it is done.
//! Messages may be lost, doubled, delayed and reordered; ticks repeat what matters.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::cluster::state::{ClusterId, NodeId};

/// What a node must not forget. As JSON: `{"state":"promised","founder":"...","founding":"...","members":["..."]}`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "lowercase")]
pub enum Durable {
    #[default]
    Nothing,
    /// Bound to a founding of another node.
    Promised { founder: NodeId, founding: ClusterId, members: BTreeSet<NodeId> },
    /// Founding, and bound to that.
    Founding { founding: ClusterId, members: BTreeSet<NodeId> },
    /// The cluster exists; this node has yet to host its part of the founding placement.
    Founded { cluster: ClusterId, members: BTreeSet<NodeId> },
    /// From here on the cluster state says what it hosts.
    Member { cluster: ClusterId },
}

/// What a node sees of the others.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct View {
    /// Every seed was resolved, and every address answered.
    pub complete: bool,
    /// The nodes behind the seeds, without this one, and the clusters they said they belong to.
    pub nodes: BTreeMap<NodeId, Option<ClusterId>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    Tick,
    Saw(View),
    Received(NodeId, Message),
    /// [`Action::Host`] is done.
    Hosted,
    /// A cluster took this node in.
    Joined(ClusterId),
}

/// What to do, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    Persist(Durable),
    Send(NodeId, Message),
    /// Ask this node to be taken into its cluster. Repeated at every tick until [`Event::Joined`].
    Join {
        through: NodeId,
        cluster: ClusterId,
    },
    /// Host this node's replicas of the founding placement and see to it that groups are initialised, then say
    /// [`Event::Hosted`]. Repeated at every tick until then, so it must do no harm twice.
    Host {
        cluster: ClusterId,
        members: BTreeSet<NodeId>,
    },
}

/// Between nodes, as JSON such as `{"kind":"grant","founding":"..."}`. Unknown fields are ignored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Message {
    /// Founder to member: promise this founding.
    Ask { founding: ClusterId, members: BTreeSet<NodeId> },
    /// Member to founder: promised, durably.
    Grant { founding: ClusterId },
    /// Member to founder: no; the text is for the log.
    Refuse { founding: ClusterId, why: String },
    /// Member to founder: is this founding still under way?
    Check { founding: ClusterId },
    /// Founder to member: this founding was given up, and will never be committed.
    Release { founding: ClusterId },
    /// Founder to member: this founding is a cluster now.
    Commit { founding: ClusterId },
}

impl Durable {
    pub fn cluster(&self) -> Option<ClusterId> {
        match self {
            Durable::Founded { cluster, .. } | Durable::Member { cluster } => Some(*cluster),
            _ => None,
        }
    }
}

/// One node's part in founding a cluster.
#[derive(Clone, Debug)]
pub struct Founding {
    me: NodeId,
    cluster_size: usize,
    durable: Durable,
    view: View,
    /// Promises received for the founding that is under way. Asked for again after a restart.
    granted: BTreeSet<NodeId>,
    actions: Vec<Action>,
}

impl Founding {
    /// `cluster_size` is how many nodes must meet, more than half of those that start without a cluster; `None` is for
    /// a node without seeds, which founds a cluster of its own.
    pub fn restore(me: NodeId, cluster_size: Option<usize>, durable: Durable) -> Founding {
        let view = View { complete: cluster_size.is_none(), nodes: BTreeMap::new() };
        let (cluster_size, granted, actions) = (cluster_size.unwrap_or(1), BTreeSet::new(), Vec::new());
        Founding { me, cluster_size, durable, view, granted, actions }
    }

    pub fn durable(&self) -> &Durable {
        &self.durable
    }

    /// `fresh` is a new random id; a founding that begins here takes it.
    pub fn on(&mut self, event: Event, fresh: ClusterId) -> Vec<Action> {
        match event {
            Event::Tick => {
                self.remind();
                self.advance(fresh);
            }
            Event::Saw(view) => {
                self.view = view;
                self.advance(fresh);
            }
            Event::Received(from, message) => self.receive(from, message),
            Event::Hosted => {
                if let Durable::Founded { cluster, .. } = self.durable {
                    self.persist(Durable::Member { cluster });
                }
            }
            Event::Joined(cluster) => {
                if self.durable.cluster().is_none() {
                    self.give_up();
                    self.persist(Durable::Member { cluster });
                }
            }
        }
        std::mem::take(&mut self.actions)
    }

    /// What follows from the durable record and the view.
    fn advance(&mut self, fresh: ClusterId) {
        if self.durable.cluster().is_some() {
            return;
        }
        if let Some((through, cluster)) = self.cluster_in_sight() {
            // It may be the one that was promised; any other means that a founding of ours cannot succeed.
            self.commit_if_promised(cluster);
            self.give_up();
            if self.durable.cluster().is_none() {
                self.act(Action::Join { through, cluster });
            }
            return;
        }
        let members = self.members_in_sight();
        match &self.durable {
            Durable::Nothing if members.len() >= self.cluster_size && self.is_founder_of(&members) => {
                self.persist(Durable::Founding { founding: fresh, members });
                self.granted.clear();
                self.remind();
            }
            Durable::Founding { members: asked, .. } if self.view.complete && *asked != members => {
                self.give_up()
            }
            _ => {}
        }
        // Of those a founder asks, it may be the only one.
        self.commit_if_granted();
    }

    /// Says again what may have been lost.
    fn remind(&mut self) {
        match self.durable.clone() {
            Durable::Founded { cluster, members } => self.act(Action::Host { cluster, members }),
            Durable::Founding { founding, members } => {
                let missing = |node: &&NodeId| **node != self.me && !self.granted.contains(node);
                for node in members.iter().filter(missing).copied().collect::<Vec<_>>() {
                    self.send(node, Message::Ask { founding, members: members.clone() });
                }
            }
            Durable::Promised { founder, founding, .. } => self.send(founder, Message::Check { founding }),
            Durable::Nothing | Durable::Member { .. } => {}
        }
    }

    fn receive(&mut self, from: NodeId, message: Message) {
        match message {
            Message::Ask { founding, members } => match self.promise(from, founding, members) {
                Ok(()) => self.send(from, Message::Grant { founding }),
                Err(why) => self.send(from, Message::Refuse { founding, why: why.to_owned() }),
            },
            Message::Grant { founding } if self.is_founding(founding) => {
                self.granted.insert(from);
                self.commit_if_granted();
            }
            Message::Check { founding } if self.is_founding(founding) => {}
            // Asked of a founder about what it no longer founds: foundings are never taken up again.
            Message::Grant { founding } | Message::Check { founding } => {
                let exists = self.durable.cluster() == Some(founding);
                let answer =
                    if exists { Message::Commit { founding } } else { Message::Release { founding } };
                self.send(from, answer);
            }
            Message::Refuse { founding, .. } if self.is_founding(founding) => self.give_up(),
            Message::Refuse { .. } => {}
            Message::Release { founding } => {
                if matches!(self.durable, Durable::Promised { founding: promised, .. } if promised == founding)
                {
                    self.persist(Durable::Nothing);
                }
            }
            Message::Commit { founding } => self.commit_if_promised(founding),
        }
    }

    /// Promises durably, or says why not.
    fn promise(
        &mut self,
        founder: NodeId,
        founding: ClusterId,
        members: BTreeSet<NodeId>,
    ) -> Result<(), &'static str> {
        match &self.durable {
            Durable::Promised { founding: promised, .. } if *promised == founding => return Ok(()),
            Durable::Promised { .. } => return Err("it has promised another founding"),
            Durable::Founding { .. } => return Err("it is founding a cluster itself"),
            Durable::Founded { .. } | Durable::Member { .. } => return Err("it belongs to a cluster"),
            Durable::Nothing => {}
        }
        if self.cluster_in_sight().is_some() {
            return Err("it sees a cluster that it is going to join");
        }
        if !self.view.complete {
            return Err("not every seed of its own has answered yet");
        }
        if members != self.members_in_sight() || members.len() < self.cluster_size {
            return Err("it sees other nodes behind its seeds");
        }
        if members.first() != Some(&founder) {
            return Err("the founder is not the lowest node");
        }
        self.persist(Durable::Promised { founder, founding, members });
        Ok(())
    }

    /// Ends a founding of this node that is not committed: durably first, so that it never will be.
    fn give_up(&mut self) {
        if let Durable::Founding { founding, members } = self.durable.clone() {
            self.persist(Durable::Nothing);
            self.granted.clear();
            for node in members.iter().copied().filter(|node| *node != self.me).collect::<Vec<_>>() {
                self.send(node, Message::Release { founding });
            }
        }
    }

    fn commit_if_granted(&mut self) {
        let Durable::Founding { founding, members } = self.durable.clone() else { return };
        if members.iter().all(|node| *node == self.me || self.granted.contains(node)) {
            self.persist(Durable::Founded { cluster: founding, members: members.clone() });
            for node in members.iter().copied().filter(|node| *node != self.me).collect::<Vec<_>>() {
                self.send(node, Message::Commit { founding });
            }
            self.act(Action::Host { cluster: founding, members });
        }
    }

    fn commit_if_promised(&mut self, cluster: ClusterId) {
        match self.durable.clone() {
            Durable::Promised { founding, members, .. } if founding == cluster => {
                self.persist(Durable::Founded { cluster, members: members.clone() });
                self.act(Action::Host { cluster, members });
            }
            _ => {}
        }
    }

    fn is_founding(&self, founding: ClusterId) -> bool {
        matches!(self.durable, Durable::Founding { founding: own, .. } if own == founding)
    }

    fn is_founder_of(&self, members: &BTreeSet<NodeId>) -> bool {
        self.view.complete && members.first() == Some(&self.me)
    }

    fn members_in_sight(&self) -> BTreeSet<NodeId> {
        self.view.nodes.keys().copied().chain([self.me]).collect()
    }

    fn cluster_in_sight(&self) -> Option<(NodeId, ClusterId)> {
        self.view.nodes.iter().find_map(|(node, cluster)| Some((*node, (*cluster)?)))
    }

    fn persist(&mut self, durable: Durable) {
        self.durable = durable.clone();
        self.act(Action::Persist(durable));
    }

    fn send(&mut self, to: NodeId, message: Message) {
        self.act(Action::Send(to, message));
    }

    fn act(&mut self, action: Action) {
        self.actions.push(action);
    }
}
