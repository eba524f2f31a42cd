//! The receiving side of Raft's calls: finds the replica a call is for, hands it over and encodes the answer.
//!
//! Append requests reach a group in the order in which [`RaftService::handle`]'s futures are first polled; nothing
//! before that waits. One that still comes out of order is a conflict to Raft, which costs time and nothing else.

use std::collections::HashMap;
use std::ops::RangeInclusive;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::join_all;
use openraft::Raft;
use openraft::raft::VoteResponse;
use parking_lot::Mutex;
use tokio::time::{Duration, Instant, timeout};
use tokio_util::sync::CancellationToken;
use tracing::info;

use super::codec::{self, Reader, RecordError};
use super::commits::{self, Commit};
use super::elections::Elections;
use super::import::Import;
use super::log_store::LogStore;
use super::rpc::{self, Address, Wanted, method};
use super::slots::Slots;
use super::snapshot::{GroupSnapshot, Snapshot, SnapshotMeta};
use super::state_machine::{StateMachine, applied};
use super::types::{ReplicaId, TypeConfig, Vote};
use crate::peer::{Answer, Refused, Remote, Service};
use crate::store::GroupStore;

/// Snapshots that come in at a time; senders of others try again.
const IMPORTS_MAX: usize = 2;
/// A transfer that is silent for so long makes room for another; what it brought stays.
const IMPORT_SILENCE_MAX: Duration = Duration::from_secs(10);

/// The answer to commits comes after this time at the latest, so that those of all groups do not wait for one group's syncs.
const COMMITS_MAX: Duration = Duration::from_millis(20);

/// A replica that runs on this node.
#[derive(Clone)]
pub(crate) struct Target {
    pub(crate) replica: ReplicaId,
    pub(crate) raft: Raft<TypeConfig, StateMachine>,
    pub(crate) store: Arc<GroupStore>,
    pub(crate) log: LogStore,
}

/// The node as the service sees it.
pub(crate) trait Hosted: Send + Sync + 'static {
    /// The replica of a group that runs here.
    fn target(&self, group: u16) -> Option<Target>;

    /// Whether the group may do with another leader: false while its leader shows signs of life.
    fn may_grant_pre_vote(&self, group: u16) -> bool;
}

/// Serves Raft's calls.
pub struct RaftService {
    hosted: Arc<dyn Hosted>,
    imports: Mutex<HashMap<Address, Arc<Slot>>>,
}

/// The import of one replica.
struct Slot {
    activity: Mutex<Activity>,
    import: tokio::sync::Mutex<Option<(Vote, SnapshotMeta, Import)>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Activity {
    /// Nobody sends.
    Idle,
    /// Blocks came last at this time.
    Receiving(Instant),
    Installing,
}

impl Activity {
    fn is_busy(self) -> bool {
        match self {
            Self::Idle => false,
            Self::Receiving(last) => last.elapsed() < IMPORT_SILENCE_MAX,
            Self::Installing => true,
        }
    }
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
    fn target(&self, group: u16) -> Option<Target> {
        let group = self.slots.get(group)?.group()?;
        Some(Target {
            replica: group.replica(),
            raft: group.raft.clone(),
            store: group.store.clone(),
            log: group.log.clone(),
        })
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

fn refused(error: impl ToString) -> Refused {
    Refused(error.to_string())
}

impl RaftService {
    /// The methods it serves.
    pub const METHODS: RangeInclusive<u16> = 1..=14;

    pub(crate) fn new(hosted: Arc<dyn Hosted>) -> Self {
        Self { hosted, imports: Mutex::default() }
    }

    /// Serves one call. Must be polled to its end.
    pub(crate) async fn handle(&self, method: u16, body: Bytes) -> Result<Bytes, Refused> {
        if method == method::COMMITS {
            return self.commits(rpc::decode_commits(&body)?).await;
        }
        let (to, reader) = Address::split("raft request", &body)?;
        let target = self.target(to)?;
        match method {
            method::APPEND => {
                let request = rpc::decode_append(&body, reader)?;
                let answer = target.raft.append_entries(request).await.map_err(refused)?;
                Ok(rpc::encode_append_answer(&answer))
            }
            method::VOTE => {
                let answer = target.raft.vote(rpc::decode_vote(reader)?).await.map_err(refused)?;
                Ok(rpc::encode_vote_answer(&answer))
            }
            method::PRE_VOTE => self.pre_vote(to, &target, reader).await,
            method::TRANSFER_LEADER => {
                let request = rpc::decode_transfer(reader)?;
                let answer = target.raft.handle_transfer_leader(request).await.map_err(refused)?;
                Ok(rpc::encode_transfer_answer(&answer))
            }
            method::CONFIRM => {
                let leader = rpc::decode_confirm(reader)?;
                // Durable: a vote that was granted was written before.
                let is_confirmed =
                    target.log.with(|log| log.replica == to.replica && log.vote <= Some(leader));
                Ok(rpc::encode_confirm_answer(is_confirmed))
            }
            method::SNAPSHOT_BEGIN => self.begin(to, &target, rpc::decode_begin(reader)?).await,
            method::SNAPSHOT_BLOCKS => self.blocks(to, rpc::decode_blocks(&body, reader)?).await,
            method::SNAPSHOT_END => self.end(to, &target, rpc::decode_end(reader)?).await,
            _ => Err(Refused(format!("Raft has no method {method}"))),
        }
    }

    fn target(&self, to: Address) -> Result<Target, Refused> {
        let target = self.hosted.target(to.group);
        target
            .filter(|target| target.replica == to.replica)
            .ok_or_else(|| Refused(format!("replica {} of group {} does not run here", to.replica, to.group)))
    }

    /// Has every replica that is named and runs here know what is committed.
    async fn commits(&self, commits: Vec<(Address, Commit)>) -> Result<Bytes, Refused> {
        let told = commits.into_iter().filter_map(|(to, commit)| {
            let target = self.target(to).ok()?;
            // A replica that follows another leader, or has stopped, has no use for it.
            Some(async move { drop(target.raft.append_entries(commits::as_request(commit)).await) })
        });
        let mut told = Box::pin(join_all(told));
        if timeout(COMMITS_MAX, &mut told).await.is_err() {
            // They are on their way, in order, and wait for what came before them to be synced.
            tokio::spawn(told);
        }
        Ok(Bytes::new())
    }

    async fn pre_vote(&self, to: Address, target: &Target, reader: Reader<'_>) -> Result<Bytes, Refused> {
        let request = rpc::decode_vote(reader)?;
        let answer = if self.hosted.may_grant_pre_vote(to.group) {
            target.raft.pre_vote(request).await.map_err(refused)?
        } else {
            let (vote, last) = target.log.with(|log| (log.vote, log.last()));
            let vote = vote.ok_or_else(|| refused("the group's leader is alive"))?;
            VoteResponse::new(vote, last, false)
        };
        Ok(rpc::encode_vote_answer(&answer))
    }

    /// Makes room for a snapshot and says what of it is lacking.
    async fn begin(
        &self,
        to: Address,
        target: &Target,
        (vote, meta): (Vote, SnapshotMeta),
    ) -> Result<Bytes, Refused> {
        let known = target.log.with(|log| log.vote);
        if known > Some(vote) {
            // Its leader has been deposed and is to hear of it.
            return Ok(Wanted::Nothing(known).encode());
        }
        let Some(at) = meta.last_log_id.as_ref().map(applied).filter(|at| lacks(target, at.index)) else {
            self.forget(to);
            return Ok(Wanted::Nothing(known).encode());
        };
        let slot = self.admit(to)?;
        let mut held = slot.import.lock().await;
        let import = match held.take() {
            Some((.., mut import)) => {
                import.resume(at.index).await.map_err(refused)?;
                import
            }
            None => {
                let base = target.store.applied().0.map(|here| here.index);
                Import::begin(target.log.clone(), &target.store, base, at.index).await.map_err(refused)?
            }
        };
        let wanted = Wanted::Changes { session: import.session, base: import.base(), resume: import.told() };
        info!(event = "snapshot_begins", group = to.group, index = at.index, ?wanted);
        *held = Some((vote, meta, import));
        Ok(wanted.encode())
    }

    async fn blocks(
        &self,
        to: Address,
        (session, number, blocks): (u64, u64, Vec<Bytes>),
    ) -> Result<Bytes, Refused> {
        let slot = self.slot(to)?;
        let mut held = slot.import.lock().await;
        let (.., import) = current(&mut held, session, number)?;
        slot.receives();
        import.write(blocks).await.map_err(refused)?;
        slot.receives();
        Ok(Bytes::new())
    }

    /// Installs what was brought; answers with the vote that Raft has then.
    async fn end(
        &self,
        to: Address,
        target: &Target,
        (session, requests): (u64, u64),
    ) -> Result<Bytes, Refused> {
        let slot = self.slot(to)?;
        let (vote, meta, import) = {
            let mut held = slot.import.lock().await;
            current(&mut held, session, requests)?;
            *slot.activity.lock() = Activity::Installing;
            held.take().expect("it is the current one")
        };
        let snapshot = Snapshot { meta, snapshot: GroupSnapshot::Received(Box::new(import)) };
        let installed = target.raft.install_full_snapshot(vote, snapshot).await;
        self.forget(to);
        let answer = installed.map_err(refused)?;
        Ok(codec::encode_vote(&answer.vote).into())
    }

    /// Lets go of interrupted imports that nobody will go on with: what came of them holds up recovery and reclaiming.
    pub(crate) async fn prune(self: Arc<Self>, stop: CancellationToken) {
        while stop.run_until_cancelled(tokio::time::sleep(IMPORT_SILENCE_MAX)).await.is_some() {
            let mut imports = self.imports.lock();
            imports.retain(|at, slot| slot.activity.lock().is_busy() || self.is_of_use(*at, slot));
        }
    }

    /// Counts the replica among those that receive, unless there are too many.
    fn admit(&self, to: Address) -> Result<Arc<Slot>, Refused> {
        let mut imports = self.imports.lock();
        let others = imports.iter().filter(|(at, _)| **at != to);
        if others.filter(|(_, slot)| slot.activity.lock().is_busy()).count() >= IMPORTS_MAX {
            return Err(Refused("as many snapshots as this node takes at a time are under way".into()));
        }
        let slot = imports.entry(to).or_insert_with(|| {
            Arc::new(Slot { activity: Mutex::new(Activity::Idle), import: tokio::sync::Mutex::default() })
        });
        if *slot.activity.lock() == Activity::Installing {
            return Err(Refused("a snapshot is being installed".into()));
        }
        slot.receives();
        Ok(slot.clone())
    }

    /// Whether an interrupted import may yet go on.
    fn is_of_use(&self, to: Address, slot: &Slot) -> bool {
        let Ok(target) = self.target(to) else { return false };
        let Ok(held) = slot.import.try_lock() else { return true };
        let at = held.as_ref().and_then(|(_, meta, _)| meta.last_log_id);
        at.is_some_and(|at| lacks(&target, at.index))
    }

    fn slot(&self, to: Address) -> Result<Arc<Slot>, Refused> {
        self.imports.lock().get(&to).cloned().ok_or_else(|| Refused("no snapshot was announced".into()))
    }

    fn forget(&self, to: Address) {
        self.imports.lock().remove(&to);
    }
}

fn lacks(target: &Target, index: u64) -> bool {
    target.store.applied().0.is_none_or(|here| here.index < index)
}

impl Slot {
    fn receives(&self) {
        *self.activity.lock() = Activity::Receiving(Instant::now());
    }
}

/// The import, if it is this session's and expects this request.
fn current(
    held: &mut Option<(Vote, SnapshotMeta, Import)>,
    session: u64,
    number: u64,
) -> Result<&mut (Vote, SnapshotMeta, Import), Refused> {
    held.as_mut()
        .filter(|(.., import)| import.session == session && import.next == Some(number))
        .ok_or_else(|| Refused("the transfer was interrupted; begin again".into()))
}
