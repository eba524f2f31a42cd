//! The state of one group: conversations in memory over the index.
//!
//! Apply and reads work on memory; what is not there is loaded from the index. Records changed since the last
//! checkpoint are dirty and stay in memory until [`GroupStore::checkpoint`] has written them. Clean records are a
//! cache. Message bodies are never here: records hold where they lie in the journal.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::watch;

use super::fresh::{Fresh, Outside};
use super::index::IndexError;
use super::live::Live;
use super::meta::Meta;
use super::records::{self, Tally, Writer};
use super::unarchived::Tracking;
use super::{Reading, Shared, StoreError, keys, value};
use crate::conversation::{
    self, Action, Command, Conversation, ConversationId, Entry, FrameLocation, Location, Reply,
};

/// Position in a group's Raft log, as the store keeps it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Applied {
    pub term: u64,
    pub leader: u64,
    pub index: u64,
}

/// The beginning of a conversation's record, as the index has it.
pub(super) struct Head {
    pub(super) id: ConversationId,
    pub(super) key: Vec<u8>,
    pub(super) record: Vec<u8>,
}

impl Head {
    /// `None` for what goes on with a record.
    fn of(key: Vec<u8>, record: Vec<u8>) -> Option<Self> {
        let (logical, _) = value::split_key(&key).filter(|(_, chunk)| *chunk == 0)?;
        let id = keys::id_of_head(logical)?;
        Some(Self { id, key, record })
    }
}

/// One group's conversations on this node.
pub struct GroupStore {
    pub(super) group: u16,
    pub(super) shared: Arc<Shared>,
    pub(super) inner: Mutex<Inner>,
    /// Held by whoever writes the group's part of the index, or must see it unchanging.
    pub(super) index_lock: Mutex<()>,
}

#[derive(Default)]
pub(super) struct Inner {
    pub(super) applied: Option<Applied>,
    /// Opaque to the store; the Raft layer's encoding.
    pub(super) membership: Bytes,
    pub(super) live: HashMap<ConversationId, Box<Live>>,
    pub(super) fresh: Fresh,
    /// What a running checkpoint is writing; still read from here until it is in the index.
    pub(super) writing: Option<Arc<Fresh>>,
    pub(super) watchers: HashMap<ConversationId, watch::Sender<u64>>,
    /// What the index holds.
    pub(super) persisted: Option<Applied>,
    pub(super) persisted_membership: Bytes,
    pub(super) tally: Tally,
    /// Applied or membership moved since the last checkpoint, maybe without touching a conversation.
    pub(super) meta_dirty: bool,
    pub(super) verified: bool,
    /// An entry is being applied. Who takes the lock and finds this set comes after one that was left half applied.
    pub(super) applying: bool,
    /// A snapshot is replacing everything; nothing can be read until it has.
    pub(super) installing: bool,
    /// The replica whose state this was is gone; nothing can be read until the next one begins.
    pub(super) retired: bool,
    /// What the archive lacks, while that is tracked.
    pub(super) tracking: Option<Box<Tracking>>,
    /// How often tracking began.
    pub(super) trackings: u64,
    pub(super) loads_since_sweep: usize,
}

impl GroupStore {
    /// Opens the group over what the index has of it.
    pub(crate) fn open(group: u16, shared: Arc<Shared>) -> Result<Self, StoreError> {
        let mut inner = Inner::default();
        match records::load(&*shared.index, &keys::meta(group))? {
            Some(bytes) => {
                let meta = Meta::decode(&bytes).ok_or(IndexError::Corrupt {
                    key: format!("meta of group {group}"),
                    reason: "undecodable, or of another version",
                })?;
                inner.applied = meta.applied;
                inner.persisted = meta.applied;
                inner.persisted_membership = meta.membership.clone();
                inner.membership = meta.membership;
                inner.tally = meta.tally;
            }
            None => inner.verified = true,
        }
        Ok(Self { group, shared, inner: Mutex::new(inner), index_lock: Mutex::new(()) })
    }

    pub fn group(&self) -> u16 {
        self.group
    }

    /// The last applied position and the membership bytes noted with it.
    pub(crate) fn applied(&self) -> (Option<Applied>, Bytes) {
        let inner = self.inner.lock();
        (inner.applied, inner.membership.clone())
    }

    /// The applied position that the index holds.
    pub(crate) fn persisted(&self) -> Option<Applied> {
        self.inner.lock().persisted
    }

    /// The applied position that the index holds, and the membership at it.
    pub(crate) fn persisted_state(&self) -> (Option<Applied>, Bytes) {
        let inner = self.inner.lock();
        (inner.persisted, inner.persisted_membership.clone())
    }

    /// Applies an entry that is no command; `membership` when it carries one.
    pub(crate) fn note(&self, at: Applied, membership: Option<Bytes>) {
        let mut inner = self.inner.lock();
        inner.applied = Some(at);
        inner.meta_dirty = true;
        if let Some(membership) = membership {
            inner.membership = membership;
        }
    }

    /// Applies a committed command whose encoding begins at `frame` in the journal. `None` when a snapshot already
    /// brought its effect.
    pub(crate) fn apply(
        &self,
        at: Applied,
        encoded: Bytes,
        frame: FrameLocation,
    ) -> Result<Option<Reply>, StoreError> {
        let entry = Entry::decode(encoded, frame).map_err(|e| StoreError::Command {
            group: self.group,
            index: at.index,
            reason: e.to_string(),
        })?;
        match entry {
            Entry::Command(command, locations) => self.apply_command(at, &command, &locations),
            Entry::Marks(marks) => self.apply_marks(at, &marks).map(Some),
            Entry::Trims(trims) => self.apply_trims(at, &trims).map(Some),
        }
    }

    fn apply_command(
        &self,
        at: Applied,
        command: &Command,
        locations: &[Location],
    ) -> Result<Option<Reply>, StoreError> {
        let mut inner = self.begin_entry([&command.id])?;
        self.load(&mut inner, &command.id)?;
        let reply = self.execute(&mut inner, at.index, command, locations)?;
        self.end_entry(&mut inner, at);
        Ok(reply)
    }

    fn execute(
        &self,
        inner: &mut Inner,
        index: u64,
        command: &Command,
        locations: &[Location],
    ) -> Result<Option<Reply>, StoreError> {
        let id = &command.id;
        let Inner { live: lives, fresh, writing, watchers, tracking, .. } = inner;
        let outside = Outside::new(self, fresh, writing.as_deref());
        let (live, lacked, effects) = match lives.get_mut(id) {
            // A snapshot that was taken while this entry was on its way already holds its effect.
            Some(live) if live.conversation.changed_index() >= index => return Ok(None),
            Some(live) => {
                let lacked = live.conversation.unarchived();
                let effects = live.apply(index, command, locations, outside)?;
                (live, lacked, effects)
            }
            None => match Live::create(index, command, locations, outside)? {
                (None, effects) => return Ok(Some(effects.reply)),
                (Some(created), effects) => (lives.entry(id.clone()).or_insert(created), 0, effects),
            },
        };
        live.weigh(&self.shared, id);
        if effects.changed {
            if let Some(watcher) = watchers.get(id) {
                watcher.send_replace(live.conversation.version());
            }
            if let Some(tracking) = tracking {
                tracking.moved(id, lacked, live.conversation.unarchived());
            }
            self.keep_bodies(command, locations);
        }
        Ok(Some(fresh.absorb(id, effects)))
    }

    /// Locks the state to apply an entry that touches these conversations. Without [`GroupStore::end_entry`], be it for an
    /// error or a panic, what is in memory is of no use to anybody from then on.
    pub(super) fn begin_entry<'a>(
        &self,
        ids: impl IntoIterator<Item = &'a ConversationId>,
    ) -> Result<MutexGuard<'_, Inner>, StoreError> {
        let mut inner = self.lock_verified_for(ids)?;
        inner.applying = true;
        Ok(inner)
    }

    pub(super) fn end_entry(&self, inner: &mut Inner, at: Applied) {
        inner.applying = false;
        inner.applied = Some(at);
        inner.meta_dirty = true;
        inner.sweep_if_over(&self.shared);
    }

    /// Looks at a conversation; `None` when it does not exist.
    pub(crate) fn read<T>(
        &self,
        id: &ConversationId,
        look: impl FnOnce(&Conversation, &dyn conversation::Outside) -> T,
    ) -> Result<Option<T>, StoreError> {
        let mut inner = self.lock_verified_for([id])?;
        self.load(&mut inner, id)?;
        let Inner { live, fresh, writing, .. } = &mut *inner;
        let Some(live) = live.get_mut(id) else { return Ok(None) };
        live.touched = true;
        let answer = look(&live.conversation, &Outside::new(self, fresh, writing.as_deref()));
        inner.sweep_if_over(&self.shared);
        Ok(Some(answer))
    }

    /// Whether a snapshot is replacing everything, so that nothing can be read.
    pub(crate) fn is_installing(&self) -> bool {
        self.inner.lock().installing
    }

    /// Follows a conversation's version. The value is the newest version applied here, 0 for an unknown one.
    /// Closed when a snapshot replaces the state, or when the group is no longer hosted here.
    pub(crate) fn watch(&self, id: &ConversationId) -> Result<watch::Receiver<u64>, StoreError> {
        let mut inner = self.lock_verified_for([id])?;
        // Under one lock with the look at the version, so that no change falls between the two.
        self.load(&mut inner, id)?;
        let version = inner.live.get(id).map_or(0, |live| live.conversation.version());
        inner.watchers.retain(|_, sender| sender.receiver_count() > 0);
        let sender = inner.watchers.entry(id.clone()).or_insert_with(|| watch::Sender::new(version));
        sender.send_if_modified(|seen| {
            let newer = version > *seen;
            *seen = version.max(*seen);
            newer
        });
        Ok(sender.subscribe())
    }

    /// Conversations whose id is greater than `after` and starts with `prefix`, in id order, at most `limit`.
    pub(crate) fn ids_after(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<ConversationId>, StoreError> {
        self.ensure_verified()?;
        let inner = self.lock_readable()?;
        let wanted =
            |id: &ConversationId| id.as_str().starts_with(prefix) && after.is_none_or(|a| id.as_str() > a);
        let mut ids: Vec<ConversationId> = inner
            .live
            .iter()
            .filter(|(id, live)| (live.dirty || live.writing) && wanted(id))
            .map(|(id, _)| id.clone())
            .collect();
        let mut indexed = 0;
        for head in self.heads_from(after.map_or(prefix, |a| a.max(prefix))) {
            let Head { id, .. } = head?;
            if !id.as_str().starts_with(prefix) {
                break;
            }
            if wanted(&id) {
                ids.push(id);
                indexed += 1;
            }
            if indexed == limit {
                break;
            }
        }
        ids.sort_unstable();
        ids.dedup();
        ids.truncate(limit);
        Ok(ids)
    }

    /// The beginnings of the records in the index, from this text on, in id order.
    fn heads_from(&self, text: &str) -> impl Iterator<Item = Result<Head, StoreError>> + '_ {
        let prefix = keys::kind_prefix(self.group, keys::Kind::Head);
        let records = self.shared.index.scan(&prefix, &keys::head_from(self.group, text));
        records.filter_map(|record| match record {
            Ok((key, record)) => Head::of(key, record).map(Ok),
            Err(error) => Some(Err(error.into())),
        })
    }

    /// The beginnings of the records in the index behind this id.
    pub(super) fn heads_after<'a>(
        &'a self,
        after: Option<&'a ConversationId>,
    ) -> impl Iterator<Item = Result<Head, StoreError>> + 'a {
        let heads = self.heads_from(after.map_or("", ConversationId::as_str));
        heads
            .filter(move |head| head.as_ref().map_or(true, |head| after.is_none_or(|after| head.id > *after)))
    }

    /// Bytes of messages, from the cache only; `None` when one is missing there.
    pub(crate) fn cached_bodies(&self, locations: impl Iterator<Item = Location>) -> Option<Vec<Bytes>> {
        let bodies: Option<Vec<Bytes>> =
            locations.map(|at| self.shared.bodies.get(&(at.segment, at.offset))).collect();
        self.shared.metrics.body_cache_hits.inc_by(bodies.as_ref().map_or(0, Vec::len) as u64);
        bodies
    }

    /// To be held from before locations are looked up until their bodies were read: until then they stay where they are.
    pub(crate) fn reading(&self) -> Reading {
        self.shared.readers.enter()
    }

    /// Bytes of messages, from cache or journal, verified. Does IO. `_reading` began before the locations were looked up.
    pub(crate) fn bodies(
        &self,
        _reading: &Reading,
        locations: &[Location],
    ) -> Result<Vec<Bytes>, StoreError> {
        locations.iter().map(|at| self.shared.body(*at)).collect()
    }

    /// Writes what changed since the last checkpoint to the index, atomically with the applied position.
    /// Returns false when nothing had changed. The caller syncs the index.
    pub(crate) fn checkpoint(&self) -> Result<bool, StoreError> {
        let _index = self.index_lock.lock();
        let mut inner = self.inner.lock();
        if inner.applying {
            return Err(StoreError::Broken { group: self.group });
        }
        if !inner.meta_dirty {
            return Ok(false);
        }
        inner.meta_dirty = false;
        let fresh = Arc::new(std::mem::take(&mut inner.fresh));
        inner.writing = Some(fresh.clone());
        let mut heads = Vec::new();
        for (id, live) in inner.live.iter_mut().filter(|(_, live)| live.dirty) {
            live.dirty = false;
            live.writing = true;
            heads.push((id.clone(), live.conversation.encode()));
        }
        let (applied, membership, tally) = (inner.applied, inner.membership.clone(), inner.tally);
        let referred = self.shared.journal.get().map(|journal| (journal, journal.end()));
        drop(inner);

        // The records say where messages lie, which must not be lost when the records are not.
        if let Some((journal, end)) = referred {
            journal.block_until_synced(end)?;
        }
        let mut writer = Writer::new(&*self.shared.index, tally);
        for (id, head) in &heads {
            writer.put(&keys::head(self.group, id), head)?;
        }
        fresh.write(self.group, &mut writer)?;
        let meta = |tally| Meta { applied, membership: membership.clone(), tally }.encode();
        let tally = writer.commit(&keys::meta(self.group), meta)?;

        let mut inner = self.inner.lock();
        inner.tally = tally;
        inner.persisted = applied;
        inner.persisted_membership = membership;
        inner.writing = None;
        for (id, _) in &heads {
            if let Some(live) = inner.live.get_mut(id) {
                live.writing = false;
            }
        }
        inner.sweep(&self.shared);
        Ok(true)
    }

    /// Makes what was written to the index durable.
    pub(crate) fn sync(&self) -> Result<(), StoreError> {
        Ok(self.shared.index.sync()?)
    }

    /// A checkpoint of this group alone, durable on return.
    pub(crate) fn checkpoint_synced(&self) -> Result<(), StoreError> {
        if self.checkpoint()? {
            self.sync()?;
        }
        Ok(())
    }

    /// Forgets everything: the group is as if it had never been here. The caller syncs the index.
    pub(crate) fn reset(&self) -> Result<(), StoreError> {
        let _index = self.index_lock.lock();
        let mut inner = self.inner.lock();
        let bytes: usize = inner.live.values().map(|live| live.bytes).sum();
        self.shared.record_bytes.fetch_sub(bytes, Ordering::Relaxed);
        *inner = Inner { verified: true, retired: inner.retired, ..Inner::default() };
        // Runs are found by conversation, whichever replica they are of.
        self.shared.event_runs.clear();
        self.shared.change_runs.clear();
        self.clear_index()
    }

    /// Forgets everything with the replica that goes. Whoever still holds this finds nothing to read in it.
    pub(crate) fn retire(&self) -> Result<(), StoreError> {
        self.inner.lock().retired = true;
        self.reset()
    }

    /// A replica begins here.
    pub(crate) fn begin(&self) {
        self.inner.lock().retired = false;
    }

    /// Locks the state; when one of `ids` is not in memory and the index is not yet verified, verifies first, so
    /// that "not found" is never the answer of an index that lost records.
    pub(super) fn lock_verified_for<'a>(
        &self,
        ids: impl IntoIterator<Item = &'a ConversationId>,
    ) -> Result<MutexGuard<'_, Inner>, StoreError> {
        let inner = self.lock_readable()?;
        let mut known = inner.verified;
        if !known {
            known = true;
            for id in ids {
                known &= inner.live.contains_key(id) || self.has_head(id)?;
            }
        }
        if known {
            return Ok(inner);
        }
        drop(inner);
        self.ensure_verified()?;
        self.lock_readable()
    }

    /// Locks the state unless it stands for nothing: what is not found in it would be taken for what does not exist.
    pub(super) fn lock_readable(&self) -> Result<MutexGuard<'_, Inner>, StoreError> {
        let inner = self.inner.lock();
        let group = self.group;
        match &*inner {
            Inner { applying: true, .. } => Err(StoreError::Broken { group }),
            Inner { installing: true, .. } => Err(StoreError::Installing { group }),
            Inner { retired: true, .. } => Err(StoreError::Retired { group }),
            _ => Ok(inner),
        }
    }

    fn has_head(&self, id: &ConversationId) -> Result<bool, StoreError> {
        Ok(self.shared.index.get(&super::value::chunk_key(&keys::head(self.group, id), 0))?.is_some())
    }

    /// Newly appended messages are the ones read next.
    fn keep_bodies(&self, command: &Command, locations: &[Location]) {
        let (Action::Append { messages, .. } | Action::Compact { replacement: messages, .. }) =
            &command.action
        else {
            return;
        };
        for (message, at) in messages.iter().zip(locations) {
            // A copy: a slice would keep the whole command in memory.
            self.shared.bodies.insert((at.segment, at.offset), Bytes::copy_from_slice(&message.body));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use super::super::Batch;
    use super::super::testing::{Fixture, id};
    use super::*;

    #[test]
    fn what_a_replica_left_behind_is_not_taken_for_empty() {
        let mut fixture = Fixture::new(1 << 20);
        fixture.put(0);
        fixture.store.checkpoint().unwrap();
        fixture.put(1);
        let ids = |store: &GroupStore| store.ids_after("", None, 10);
        assert_eq!(ids(&fixture.store).unwrap(), [id("c0"), id("c1")]);
        fixture.store.retire().unwrap();
        assert!(matches!(ids(&fixture.store), Err(StoreError::Retired { group: 0 })));
        let read = |store: &GroupStore| store.read(&id("c0"), |_, _| ());
        assert!(matches!(read(&fixture.store), Err(StoreError::Retired { .. })));
        fixture.store.begin();
        assert_eq!(ids(&fixture.store).unwrap(), []);
        assert!(read(&fixture.store).unwrap().is_none());
    }

    /// The edge answers a panic like any error, and the node goes on.
    #[test]
    fn a_reader_that_panics_takes_no_record_along() {
        let mut fixture = Fixture::new(0);
        fixture.put(0);
        fixture.append(0, 1);
        let read = || fixture.store.read(&id("c0"), |c, _| assert_eq!(c.last_seq(), 7, "as asked"));
        assert!(catch_unwind(AssertUnwindSafe(read)).is_err());
        assert_eq!(fixture.store.read(&id("c0"), |c, _| c.last_seq()).unwrap(), Some(1));
    }

    #[test]
    fn what_was_left_half_applied_is_neither_read_nor_written() {
        let mut fixture = Fixture::new(0);
        fixture.put(0);
        fixture.append(0, 1);
        fixture.store.checkpoint().unwrap();
        let shared = fixture.store.shared.clone();
        let keys = keys::numbered(0, keys::Kind::KeyRun, &id("c0"), 0);
        let mut batch = Batch::default();
        batch.put(value::chunk_key(&keys, 0), b"damaged".to_vec());
        shared.index.write(batch).unwrap();
        fixture.store = GroupStore::open(0, shared).unwrap();

        let refused = fixture.try_append(0, 2);
        assert!(matches!(refused, Err(StoreError::History(_))), "{refused:?}");
        let broken = |error| matches!(error, StoreError::Broken { group: 0 });
        assert!(fixture.store.read(&id("c0"), |_, _| ()).is_err_and(broken));
        assert!(fixture.store.checkpoint().is_err_and(broken));
        fixture.store.reset().unwrap();
        assert!(fixture.store.read(&id("c0"), |_, _| ()).unwrap().is_none());
    }
}
