//! The receiving end of snapshots: how many come in at a time, and which request belongs to which transfer.
//!
//! What is received goes into the journal, see [`super::import`].

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::time::Instant;
use tracing::info;

use super::codec;
use super::group::Group;
use super::import::Import;
use super::rpc::{Address, Wanted};
use super::snapshot::{GroupSnapshot, Snapshot, SnapshotMeta};
use super::state_machine::applied;
use super::types::Vote;
use crate::peer::Refused;

/// Snapshots that come in at a time; senders of others try again.
const IMPORTS_MAX: usize = 2;
/// A transfer that is silent for so long makes room for another; what it brought stays.
pub(super) const IMPORT_SILENCE_MAX: Duration = Duration::from_secs(10);

/// The snapshots that come in for the replicas of a node.
#[derive(Default)]
pub(super) struct Imports(Mutex<HashMap<Address, Arc<Incoming>>>);

/// What comes in for one replica.
struct Incoming {
    activity: Mutex<Activity>,
    transfer: tokio::sync::Mutex<Option<Transfer>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Activity {
    /// Nobody sends.
    Idle,
    /// Blocks came last at this time.
    Receiving(Instant),
    Installing,
}

/// A snapshot that is here in part, and the vote of the leader that sends it.
struct Transfer {
    vote: Vote,
    meta: SnapshotMeta,
    import: Import,
}

impl Imports {
    /// Makes room for a snapshot and says what of it is lacking.
    pub(super) async fn begin(
        &self,
        to: Address,
        group: &Group,
        (vote, meta): (Vote, SnapshotMeta),
    ) -> Result<Bytes, Refused> {
        let known = group.log.with(|log| log.vote);
        if known > Some(vote) {
            // Its leader has been deposed and is to hear of it.
            return Ok(Wanted::Nothing(known).encode());
        }
        let Some(at) = meta.last_log_id.as_ref().map(applied).filter(|at| lacks(group, at.index)) else {
            self.forget(to);
            return Ok(Wanted::Nothing(known).encode());
        };
        let incoming = self.admit(to)?;
        let mut transfer = incoming.transfer.lock().await;
        let import = match transfer.take() {
            Some(Transfer { mut import, .. }) => {
                import.resume(at.index).await.map_err(refused)?;
                import
            }
            None => {
                let base = group.store.applied().0.map(|here| here.index);
                Import::begin(group.log.clone(), &group.store, base, at.index).await.map_err(refused)?
            }
        };
        let wanted = Wanted::Changes { session: import.session, base: import.base(), resume: import.told() };
        info!(event = "snapshot_begins", group = to.group, index = at.index, ?wanted);
        *transfer = Some(Transfer { vote, meta, import });
        Ok(wanted.encode())
    }

    /// Takes in the blocks of one request.
    pub(super) async fn blocks(
        &self,
        to: Address,
        (session, number, blocks): (u64, u64, Vec<Bytes>),
    ) -> Result<Bytes, Refused> {
        let incoming = self.of(to)?;
        let mut transfer = incoming.transfer.lock().await;
        let import = &mut current(&mut transfer, session, number)?.import;
        incoming.receives();
        import.write(blocks).await.map_err(refused)?;
        incoming.receives();
        Ok(Bytes::new())
    }

    /// Installs what was brought; answers with the vote that Raft has then.
    pub(super) async fn end(
        &self,
        to: Address,
        group: &Group,
        (session, requests): (u64, u64),
    ) -> Result<Bytes, Refused> {
        let incoming = self.of(to)?;
        let Transfer { vote, meta, import } = {
            let mut transfer = incoming.transfer.lock().await;
            current(&mut transfer, session, requests)?;
            *incoming.activity.lock() = Activity::Installing;
            transfer.take().expect("it is the current one")
        };
        let snapshot = Snapshot { meta, snapshot: GroupSnapshot::Received(Box::new(import)) };
        let installed = group.raft.install_full_snapshot(vote, snapshot).await;
        self.forget(to);
        let answer = installed.map_err(refused)?;
        Ok(codec::encode_vote(&answer.vote).into())
    }

    /// Lets go of interrupted transfers that nobody will go on with: what came of them holds up recovery and reclaiming.
    /// `hosted` finds the replica that something is for.
    pub(super) fn prune(&self, hosted: impl Fn(Address) -> Option<Arc<Group>>) {
        let may_go_on =
            |to: Address, incoming: &Incoming| hosted(to).is_some_and(|group| incoming.may_go_on(&group));
        self.0.lock().retain(|to, incoming| incoming.is_busy() || may_go_on(*to, incoming));
    }

    /// Counts the replica among those that receive, unless there are too many.
    fn admit(&self, to: Address) -> Result<Arc<Incoming>, Refused> {
        let mut imports = self.0.lock();
        let others = imports.iter().filter(|(at, _)| **at != to);
        if others.filter(|(_, incoming)| incoming.is_busy()).count() >= IMPORTS_MAX {
            return Err(Refused("as many snapshots as this node takes at a time are under way".into()));
        }
        let incoming = imports.entry(to).or_insert_with(|| {
            Arc::new(Incoming { activity: Mutex::new(Activity::Idle), transfer: Default::default() })
        });
        if *incoming.activity.lock() == Activity::Installing {
            return Err(Refused("a snapshot is being installed".into()));
        }
        incoming.receives();
        Ok(incoming.clone())
    }

    fn of(&self, to: Address) -> Result<Arc<Incoming>, Refused> {
        self.0.lock().get(&to).cloned().ok_or_else(|| Refused("no snapshot was announced".into()))
    }

    fn forget(&self, to: Address) {
        self.0.lock().remove(&to);
    }
}

impl Incoming {
    fn receives(&self) {
        *self.activity.lock() = Activity::Receiving(Instant::now());
    }

    fn is_busy(&self) -> bool {
        match *self.activity.lock() {
            Activity::Idle => false,
            Activity::Receiving(last) => last.elapsed() < IMPORT_SILENCE_MAX,
            Activity::Installing => true,
        }
    }

    /// Whether an interrupted transfer may yet go on.
    fn may_go_on(&self, group: &Group) -> bool {
        let Ok(transfer) = self.transfer.try_lock() else { return true };
        let at = transfer.as_ref().and_then(|transfer| transfer.meta.last_log_id);
        at.is_some_and(|at| lacks(group, at.index))
    }
}

/// The transfer, if it is this session's and expects this request.
fn current(transfer: &mut Option<Transfer>, session: u64, number: u64) -> Result<&mut Transfer, Refused> {
    transfer
        .as_mut()
        .filter(|Transfer { import, .. }| import.session == session && import.next == Some(number))
        .ok_or_else(|| Refused("the transfer was interrupted; begin again".into()))
}

fn lacks(group: &Group, index: u64) -> bool {
    group.store.applied().0.is_none_or(|here| here.index < index)
}

pub(super) fn refused(error: impl ToString) -> Refused {
    Refused(error.to_string())
}
