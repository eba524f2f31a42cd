//! Writes: to the leader wherever it is, tried again only when they certainly had no effect.

use std::sync::Arc;

use bytes::Bytes;
use tokio::time::timeout_at;

use super::WriteError;
use super::attached::Attached;
use super::fresh::NO_LEADER;
use super::links::Method;
use super::local::Replica;
use super::remote::codec::{self, Outcome};
use super::route::Route;
use super::search::{Deadline, Search};
use crate::conversation::Reply;
use crate::peer::CallError;
use crate::raft::WriteFailure;
use crate::trace::{self, Kind};

/// What Raft puts around a command that it sends, with room to spare.
const ENTRY_BYTES: usize = 4 << 10;

impl Attached {
    /// Replicates a command. [`WriteError::UnknownOutcome`] comes at once; what certainly was not applied is tried
    /// again until the deadline.
    pub(super) async fn write(
        &self,
        group: u16,
        command: Bytes,
        deadline: &Deadline,
    ) -> Result<Reply, WriteError> {
        // Here, too: it would be sent to the leader again and again.
        if let Some(why) = self.is_too_large(&command) {
            return Err(WriteError::NotApplied(why));
        }
        let mut search = Search::new(self, group);
        loop {
            let (outcome, asked) = match search.leader() {
                Route::Here => (self.write_here(group, command.clone(), deadline).await, None),
                Route::To(node) => (self.write_at(node, group, &command, deadline).await, Some(node)),
                Route::Nowhere => (Outcome::NotApplied(NO_LEADER.into()), None),
            };
            let (why, leader) = match outcome {
                Outcome::Reply(reply) => {
                    self.remember_leader(group, asked);
                    return Ok(reply);
                }
                Outcome::Unknown(why) => return Err(WriteError::UnknownOutcome(why)),
                Outcome::Full => return Err(WriteError::Full),
                Outcome::NotLeader(leader) => (WriteFailure::NotLeader.to_string(), leader),
                Outcome::NotApplied(why) => (why, None),
            };
            if !search.again(leader, deadline).await {
                return Err(WriteError::NotApplied(why));
            }
        }
    }

    /// Replicates a command whose group should be led from here.
    pub(super) async fn write_here(&self, group: u16, command: Bytes, deadline: &Deadline) -> Outcome {
        let Some(replica) = self.local.replica(group) else { return Outcome::NotLeader(None) };
        if !self.leads(&replica) {
            return Outcome::NotLeader(replica.leader());
        }
        if !self.local.has_space() {
            return Outcome::Full;
        }
        if let Some(why) = self.is_too_large(&command) {
            return Outcome::NotApplied(why);
        }
        match timeout_at(deadline.answer_by, replica.write(command)).await {
            Ok(Ok(reply)) => Outcome::Reply(reply),
            Ok(Err(WriteFailure::NotLeader)) => Outcome::NotLeader(self.leader_elsewhere(&replica)),
            Ok(Err(WriteFailure::Unknown(why))) => Outcome::Unknown(why),
            Err(_) => Outcome::Unknown("the command was not answered in time".into()),
        }
    }

    /// Why a command must not get into the log: to a node in reach that does not take it, it would be sent for ever, and
    /// everything behind it would wait.
    fn is_too_large(&self, command: &Bytes) -> Option<String> {
        let (bytes, bytes_max) = (command.len(), self.links.body_bytes_max());
        (bytes + ENTRY_BYTES > bytes_max).then(|| {
            format!(
                "{bytes} bytes, and another node takes {bytes_max}: is FASTPACA_BATCH_BODY_MAX_BYTES the same on all nodes?"
            )
        })
    }

    async fn write_at(&self, node: u128, group: u16, command: &Bytes, deadline: &Deadline) -> Outcome {
        let Ok(Ok(_room)) = timeout_at(deadline.answer_by, self.room.writes.acquire()).await else {
            return Outcome::NotApplied("too many requests wait for other nodes".into());
        };
        let mut span = trace::begin("forward", Kind::Client);
        let body = match &span {
            None => codec::forward_write(group, command),
            Some(span) => codec::forward_traced_write(group, span.context, command),
        };
        let metrics = self.metrics();
        metrics.forwarded_requests_total.inc();
        let failure = match self.links.call(node, Method::ForwardWrite, body, deadline.left()).await {
            Ok(answer) => match Outcome::decode(answer) {
                Ok(outcome) => return outcome,
                Err(error) => Outcome::Unknown(format!("the leader's answer: {error}")),
            },
            Err(CallError::Lost(why)) => Outcome::Unknown(why),
            Err(CallError::NotSent(why) | CallError::Refused(why)) => Outcome::NotApplied(why),
        };
        metrics.forward_failures_total.inc();
        if let Some(span) = &mut span {
            span.fail();
        }
        failure
    }

    pub(super) fn leads(&self, replica: &Arc<dyn Replica>) -> bool {
        replica.leader() == Some(self.local.node_id())
    }

    /// The leader to point others to; never this node, which has just found that it does not lead.
    pub(super) fn leader_elsewhere(&self, replica: &Arc<dyn Replica>) -> Option<u128> {
        replica.leader().filter(|leader| *leader != self.local.node_id())
    }
}
