//! Telling a node whose data is from the past: a volume that was restored from a copy.
//!
//! Such a node does not know the votes it gave and the entries it acknowledged since the copy was made, and would break
//! what it promised. So a node writes a numbered random mark to its disk and then has the cluster state say it, after each start
//! and from time to time; its peers let nobody in under its id who has neither the mark that the state says nor one of a higher
//! number. A copy from before the newest mark is thereby refused, however often it is started; a younger one is not told
//! apart, nor is one by a peer that was away itself and has a state from before the copy.
//!
//! A node keeps two marks: the one that the state says, and the next, of which it may not know whether the state says it
//! already. It makes no third one before it knows.

use std::collections::BTreeMap;
use std::io;
use std::time::{Duration, Instant};

use super::document::{self, DocumentError};
use super::service::Inner;
use super::state::{ClusterState, Mark, NodeRecord};
use crate::peer::{self, Peers};
use crate::raft::Node;

/// How often a node that runs on makes a new mark: each is a version of the cluster state.
const MARK_EVERY: Duration = Duration::from_secs(6 * 3_600);

/// What the links have to know of a state.
pub(super) fn of(state: &ClusterState) -> BTreeMap<u128, peer::Mark> {
    let mark =
        |record: &NodeRecord| record.mark.map(|Mark { value, instance }| peer::Mark { value, instance });
    state.nodes.iter().filter_map(|(id, record)| Some((id.0, mark(record)?))).collect()
}

/// Has the links know the marks of the state on this node's disk: before anything is served to others.
///
/// # Errors
/// When that state cannot be read.
pub async fn remember(node: &Node, peers: &Peers) -> Result<(), String> {
    let newest = document::load_newer(node, 0).await;
    let newest = newest.map_err(|error: DocumentError| error.to_string())?;
    if let Some(document) = newest {
        peers.set_marks(of(&document.state));
    }
    Ok(())
}

impl Inner {
    /// The newest mark, as the cluster state is to say it.
    pub(super) fn mark(&self) -> Option<Mark> {
        let value = *self.file.marks().last()?;
        Some(Mark { value, instance: self.parts.peers.instance() })
    }

    /// Makes a new mark once the state says the last one, if it is time for one.
    pub(super) fn renew_mark(&self, known: &NodeRecord, is_with_others: bool) -> io::Result<()> {
        let made_at = *self.marked_at.lock();
        let is_due = made_at.is_none_or(|at| is_with_others && at.elapsed() > MARK_EVERY);
        let is_said = self.file.marks().last().copied() == known.mark.map(|mark| mark.value);
        if is_due && is_said {
            self.parts.peers.set_own_marks(self.file.add_mark()?);
            *self.marked_at.lock() = Some(Instant::now());
        }
        Ok(())
    }
}
