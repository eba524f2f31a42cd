//! The receiving side of Raft's calls: finds the replica a call is for, hands it over and encodes the answer.
//!
//! Append requests reach a group in the order in which [`RaftService::handle`]'s futures are first polled; nothing
//! before that waits. One that still comes out of order is a conflict to Raft, which costs time and nothing else.

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use openraft::raft::VoteResponse;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::codec::{Reader, RecordError};
use super::commits::{self, Commit};
use super::elections::Elections;
use super::group::Group;
use super::receive::{IMPORT_SILENCE_MAX, Imports, refused};
use super::rpc::{self, Address, method};
use super::slots::Slots;
use crate::peer::{Answer, Refused, Remote, Service};

/// The answer to commits comes after this time at the latest, so that those of all groups do not wait for one group's syncs.
const COMMITS_MAX: Duration = Duration::from_millis(20);

/// The node as the service sees it.
pub(crate) trait Hosted: Send + Sync + 'static {
    /// The replica of a group that runs here.
    fn group(&self, group: u16) -> Option<Arc<Group>>;

    /// Whether the group may do with another leader: false while its leader shows signs of life.
    fn may_grant_pre_vote(&self, group: u16) -> bool;
}

/// Serves Raft's calls.
pub struct RaftService {
    hosted: Arc<dyn Hosted>,
    imports: Imports,
}

impl Service for RaftService {
    fn call<'a>(&'a self, _from: &'a Remote, method: u16, body: Bytes) -> Answer<'a> {
        Box::pin(self.handle(method, body))
    }
}

/// The replicas of a node.
pub(crate) struct Running {
    pub(crate) slots: Arc<Slots>,
    pub(crate) elections: Arc<Elections>,
}

impl Hosted for Running {
    fn group(&self, group: u16) -> Option<Arc<Group>> {
        self.slots.get(group)?.group()
    }

    fn may_grant_pre_vote(&self, group: u16) -> bool {
        self.elections.may_grant_pre_vote(group)
    }
}

impl From<RecordError> for Refused {
    fn from(error: RecordError) -> Self {
        Self(error.to_string())
    }
}

impl RaftService {
    /// The methods it serves.
    pub const METHODS: RangeInclusive<u16> = 1..=14;

    pub(crate) fn new(hosted: Arc<dyn Hosted>) -> Self {
        Self { hosted, imports: Imports::default() }
    }

    /// Serves one call. Must be polled to its end.
    pub(crate) async fn handle(&self, method: u16, body: Bytes) -> Result<Bytes, Refused> {
        if method == method::COMMITS {
            return self.commits(rpc::decode_commits(&body)?).await;
        }
        let (to, reader) = Address::split("raft request", &body)?;
        let not_here = || Refused(format!("replica {} of group {} does not run here", to.replica, to.group));
        let group = self.hosted(to).ok_or_else(not_here)?;
        match method {
            method::APPEND => {
                let request = rpc::decode_append(&body, reader)?;
                let answer = group.raft.append_entries(request).await.map_err(refused)?;
                Ok(rpc::encode_append_answer(&answer))
            }
            method::VOTE => {
                let answer = group.raft.vote(rpc::decode_vote(reader)?).await.map_err(refused)?;
                Ok(rpc::encode_vote_answer(&answer))
            }
            method::PRE_VOTE => self.pre_vote(&group, reader).await,
            method::TRANSFER_LEADER => {
                let request = rpc::decode_transfer(reader)?;
                let answer = group.raft.handle_transfer_leader(request).await.map_err(refused)?;
                Ok(rpc::encode_transfer_answer(&answer))
            }
            method::CONFIRM => {
                let leader = rpc::decode_confirm(reader)?;
                // Durable: a vote that was granted was written before.
                let is_confirmed =
                    group.log.with(|log| log.replica == to.replica && log.vote <= Some(leader));
                Ok(rpc::encode_confirm_answer(is_confirmed))
            }
            method::SNAPSHOT_BEGIN => self.imports.begin(to, &group, rpc::decode_begin(reader)?).await,
            method::SNAPSHOT_BLOCKS => self.imports.blocks(to, rpc::decode_blocks(&body, reader)?).await,
            method::SNAPSHOT_END => self.imports.end(to, &group, rpc::decode_end(reader)?).await,
            _ => Err(Refused(format!("Raft has no method {method}"))),
        }
    }

    /// The replica a call is for.
    fn hosted(&self, to: Address) -> Option<Arc<Group>> {
        self.hosted.group(to.group).filter(|group| group.replica() == to.replica)
    }

    /// Has every replica that is named and runs here know what is committed.
    async fn commits(&self, commits: Vec<(Address, Commit)>) -> Result<Bytes, Refused> {
        let told = commits.into_iter().filter_map(|(to, commit)| {
            let group = self.hosted(to)?;
            // A replica that follows another leader, or has stopped, has no use for it.
            Some(async move { drop(group.raft.append_entries(commits::as_request(commit)).await) })
        });
        let mut told = Box::pin(join_all(told));
        if timeout(COMMITS_MAX, &mut told).await.is_err() {
            // They are on their way, in order, and wait for what came before them to be synced.
            tokio::spawn(told);
        }
        Ok(Bytes::new())
    }

    async fn pre_vote(&self, group: &Group, reader: Reader<'_>) -> Result<Bytes, Refused> {
        let request = rpc::decode_vote(reader)?;
        let answer = if self.hosted.may_grant_pre_vote(group.number()) {
            group.raft.pre_vote(request).await.map_err(refused)?
        } else {
            let (vote, last) = group.log.with(|log| (log.vote, log.last()));
            let vote = vote.ok_or_else(|| refused("the group's leader is alive"))?;
            VoteResponse::new(vote, last, false)
        };
        Ok(rpc::encode_vote_answer(&answer))
    }

    /// Lets go, now and then, of interrupted snapshots that nobody will go on with.
    pub(crate) async fn prune(self: Arc<Self>, stop: CancellationToken) {
        while stop.run_until_cancelled(tokio::time::sleep(IMPORT_SILENCE_MAX)).await.is_some() {
            self.imports.prune(|to| self.hosted(to));
        }
    }
}
