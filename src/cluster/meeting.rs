//! Carries out what founding decides: durable notes, messages, joining, and hosting the founding placement.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use tracing::{error, info, warn};
use uuid::Uuid;

use super::calls::{self, Change, ChangeAnswer, Status};
use super::founding::{Action, Durable, Event, Message, View};
use super::service::Inner;
use super::state::{ClusterId, META_GROUP, NodeId, NodeState, founding_placement};
use crate::peer::CallError;

/// Groups whose preferred leader has not founded them by then are founded by any member.
const FOUNDER_MAX: Duration = Duration::from_secs(10);

impl Inner {
    /// Lets founding know and does what it says, in order.
    pub(super) async fn on(&self, event: Event) {
        let mut founding = self.founding.lock().await;
        let fresh = ClusterId(Uuid::new_v4().as_u128());
        let mut events = vec![event];
        while let Some(event) = events.pop() {
            for action in founding.on(event, fresh) {
                match action {
                    Action::Persist(durable) => {
                        if let Err(error) = self.file.save(&durable) {
                            // Nothing that follows may happen without it.
                            self.parts.failure.raise(format!("cluster.json: {error}"), false);
                            return;
                        }
                        info!(event = "cluster_membership", membership = ?durable);
                        if let Some(ClusterId(cluster)) = durable.cluster() {
                            *self.cluster.lock() = Some(ClusterId(cluster));
                            self.parts.peers.set_cluster(cluster);
                        }
                    }
                    Action::Send(to, message) => self.send(to, message),
                    Action::Join { through, cluster } => {
                        if self.join(through).await {
                            events.push(Event::Joined(cluster));
                        }
                    }
                    Action::Host { members, .. } => self.host_founding(&members).await,
                }
            }
        }
    }

    /// Logs what a founding waits for: one that a lost disk has ended for good shows by nothing else.
    pub(super) async fn tell_wait(&self, view: &View) {
        let founding = self.founding.lock().await;
        let (reason, members) = match founding.durable() {
            // Why it is not taken in is logged as it is said.
            Durable::Nothing if view.nodes.values().any(Option::is_some) => return,
            Durable::Nothing if !view.complete => ("not every seed answers", None),
            Durable::Nothing => ("fewer nodes than FASTPACA_CLUSTER_SIZE are there, or see the same", None),
            Durable::Promised { members, .. } => {
                ("its founder has not said what became of it", Some(members))
            }
            Durable::Founding { members, .. } => ("not every member has promised", Some(members)),
            Durable::Founded { members, .. } => ("the cluster has no state yet", Some(members)),
            Durable::Member { .. } => return,
        };
        let in_sight = view.nodes.len() + 1;
        let is_silent = |node: &&NodeId| **node != self.me && !view.nodes.contains_key(node);
        let silent: Vec<&NodeId> = members.into_iter().flatten().filter(is_silent).collect();
        warn!(event = "founding_waits", reason, in_sight, ?silent);
    }

    /// Messages may be lost, so nobody waits for them.
    fn send(&self, to: NodeId, message: Message) {
        if let Message::Refuse { why, .. } = &message {
            info!(event = "founding_refused", founder = %to, why);
        }
        let peers = self.parts.peers.clone();
        tokio::spawn(async move {
            let _ = calls::call::<()>(&peers, to, calls::FOUNDING, &message).await;
        });
    }

    async fn join(&self, through: NodeId) -> bool {
        self.learn_own_address(through).await;
        let change = Change::Admit { node: self.me, record: self.record(), replace: self.settings.replace };
        let request = calls::ChangeRequest { change, hops_left: calls::HOPS_MAX };
        let why = match calls::call(&self.parts.peers, through, calls::CHANGE, &request).await {
            Ok(ChangeAnswer { failure: None }) => return true,
            Ok(ChangeAnswer { failure: Some(failure) }) => failure.why,
            Err(CallError::Refused(why)) => why,
            Err(error) => {
                warn!(event = "join_failed", %error);
                return false;
            }
        };
        let mut last = self.refused.lock();
        if *last != why {
            error!(event = "join_refused", reason = why);
            *last = why;
        }
        false
    }

    async fn learn_own_address(&self, through: NodeId) {
        if let Ok(Status { you, .. }) = calls::call(&self.parts.peers, through, calls::STATUS, &()).await {
            *self.seen_at.lock() = Some(you);
        }
    }

    /// Hosts this node's part of the founding placement; the preferred leader of each group founds it.
    async fn host_founding(&self, members: &BTreeSet<NodeId>) {
        let placement = founding_placement(members, META_GROUP);
        let since = *self.founding_since.lock().get_or_insert_with(Instant::now);
        let overdue = since.elapsed() > FOUNDER_MAX;
        let here =
            (0u16..).zip(&placement).filter_map(|(number, group)| Some((number, group, group.on(self.me)?)));
        let hosted = join_all(here.map(|(number, group, replica)| async move {
            let running = self.parts.node.host(number, replica.id).await.map_err(|e| e.to_string())?;
            // All would found the group with the very same members; one suffices, if it lives.
            if group.preferred() == Some(replica) || overdue {
                let voters = group.voters().into_iter().map(|(id, node)| (id, node.0)).collect();
                running.found(&voters).await.map_err(|e| e.to_string())?;
            }
            Ok::<_, String>(())
        }));
        if let Some(Err(error)) = hosted.await.into_iter().find(Result::is_err) {
            warn!(event = "founding_incomplete", error);
        }
    }

    /// Has the cluster know where this node is now.
    pub(super) async fn keep_record_fresh(&self) {
        let Some(document) = self.document.borrow().clone() else { return };
        let other = document.state.active().find(|node| *node != self.me && self.parts.peers.is_up(node.0));
        if self.seen_at.lock().is_none()
            && let Some(other) = other
        {
            self.learn_own_address(other).await;
        }
        let Some(known) = document.state.nodes.get(&self.me) else { return };
        if let Err(error) = self.renew_mark(known, other.is_some()) {
            self.parts.failure.raise(format!("cluster.json: {error}"), false);
            return;
        }
        let mut now = self.record();
        (now.state, now.joined_ms) = (known.state, known.joined_ms);
        if now == *known || (other.is_some() && self.seen_at.lock().is_none()) {
            return;
        }
        let change = Change::Admit { node: self.me, record: now, replace: false };
        if let Err(error) = self.make(change, calls::HOPS_MAX).await {
            warn!(event = "record_update_failed", %error);
            // A replica here of the state's group hears nothing any more once the node was removed.
            let newer = self.newest_elsewhere().await;
            if let Some(newer) = newer.filter(|newer| newer.state.is(self.me, NodeState::Removed)) {
                self.publish(newer);
            }
        }
    }
}
