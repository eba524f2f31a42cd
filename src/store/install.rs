//! Taking a snapshot's blocks in: over nothing, or over what this replica has.
//!
//! The blocks lie in this node's journal, so an install that a crash interrupts is begun again from there. Over
//! nothing, the meta record goes first and comes back last. Over an older state every batch leaves index and tally in
//! agreement and a conversation's record and keys change in one batch, so that what a crash leaves is the older state
//! with some conversations newer, which apply and a second install both know how to handle.

use std::collections::HashSet;
use std::sync::atomic::Ordering;

use bytes::Bytes;

use super::group::{Applied, GroupStore};
use super::key_runs::{KeyRun, Keys, key_runs_of, numbers_of};
use super::keys::{self, Kind};
use super::meta::Meta;
use super::records::{self, Tally, Writer};
use super::runs::{CHANGE_RUNS, EVENT_RUNS, Runs};
use super::transfer::{Block, VisitLocations};
use super::{Batch, StoreError};
use crate::conversation::{Conversation, ConversationId, FrameLocation, IdempotencyRecord, Location};

/// Physical records written or removed in one batch, about. Tests are to see many batches.
const RECORDS_PER_BATCH: usize = if cfg!(test) { 20 } else { 2_000 };

/// Blocks with their places in the journal.
pub(crate) type Blocks<'a> = &'a mut dyn Iterator<Item = Result<(FrameLocation, Bytes), StoreError>>;

/// What a group's index holds while a snapshot is being put over it.
struct Under {
    applied: Option<Applied>,
    membership: Bytes,
}

impl GroupStore {
    /// Takes in the blocks, which lie at the given places of this node's journal: they are the group's whole state,
    /// or, with `base`, what changed after that log index, which must have been applied here.
    pub(crate) fn install(
        &self,
        base: Option<u64>,
        applied: Applied,
        membership: Bytes,
        blocks: Blocks<'_>,
    ) -> Result<(), StoreError> {
        self.take_in(base, false, applied, membership, blocks)
    }

    /// Takes in an image: the group's whole state, whose locations are right as they stand.
    pub(crate) fn install_image(
        &self,
        applied: Applied,
        membership: Bytes,
        blocks: Blocks<'_>,
    ) -> Result<(), StoreError> {
        self.take_in(None, true, applied, membership, blocks)
    }

    fn take_in(
        &self,
        base: Option<u64>,
        placed: bool,
        applied: Applied,
        membership: Bytes,
        blocks: Blocks<'_>,
    ) -> Result<(), StoreError> {
        if base > self.applied().0.map(|at| at.index) {
            return Err(StoreError::Block { group: self.group });
        }
        // What changed in memory must not be lost under what comes.
        while base.is_some() && self.checkpoint()? {}
        let _index = self.index_lock.lock();
        let (under, tally) = self.begin_install(base.is_some());
        if base.is_none() {
            self.clear_index()?;
        }
        let mut importer = Importer {
            store: self,
            writer: Writer::new(&*self.shared.index, tally),
            under: base.map(|_| under),
            placed,
            places: Vec::new(),
            keys: None,
            in_batch: HashSet::new(),
        };
        for block in blocks {
            let (frame, bytes) = block?;
            importer.block(frame, &bytes)?;
        }
        let meta_key = keys::meta(self.group);
        let tally = importer.writer.commit(&meta_key, |tally| {
            Meta { applied: Some(applied), membership: membership.clone(), tally }.encode()
        })?;
        self.end_install(base.is_none(), applied, membership, tally);
        Ok(())
    }

    /// Empties the memory; nothing can be read until the end of the install.
    fn begin_install(&self, over: bool) -> (Under, Tally) {
        let mut inner = self.inner.lock();
        let bytes: usize = inner.live.values().map(|live| live.bytes).sum();
        self.shared.record_bytes.fetch_sub(bytes, Ordering::Relaxed);
        inner.live.clear();
        inner.fresh = Default::default();
        inner.tracking = None;
        inner.installing = true;
        let under = Under { applied: inner.persisted, membership: inner.persisted_membership.clone() };
        (under, if over { inner.tally } else { Tally::default() })
    }

    fn end_install(&self, whole: bool, applied: Applied, membership: Bytes, tally: Tally) {
        let mut inner = self.inner.lock();
        inner.applied = Some(applied);
        inner.persisted = Some(applied);
        inner.persisted_membership = membership.clone();
        inner.membership = membership;
        inner.tally = tally;
        inner.verified |= whole;
        inner.installing = false;
        inner.meta_dirty = true;
        // Versions may have moved: whoever watches finds the watch closed, and begins a new one.
        inner.watchers.clear();
    }

    pub(super) fn clear_index(&self) -> Result<(), StoreError> {
        let prefix = keys::group_prefix(self.group);
        loop {
            let mut batch = Batch::default();
            for record in self.shared.index.scan(&prefix, &prefix).take(RECORDS_PER_BATCH) {
                batch.remove(record?.0);
            }
            if batch.ops.is_empty() {
                return Ok(());
            }
            self.shared.index.write(batch)?;
        }
    }
}

/// Turns blocks into index records.
struct Importer<'a> {
    store: &'a GroupStore,
    writer: Writer<'a>,
    /// What the index holds besides, if it is not empty.
    under: Option<Under>,
    /// Documents say themselves where their messages lie.
    placed: bool,
    /// Where the messages of the coming document lie.
    places: Vec<Location>,
    /// Keys of the coming conversation.
    keys: Option<(ConversationId, Keys)>,
    /// Conversations in the running batch, in which none may come twice.
    in_batch: HashSet<ConversationId>,
}

impl Importer<'_> {
    fn block(&mut self, frame: FrameLocation, bytes: &Bytes) -> Result<(), StoreError> {
        let group = self.store.group;
        let bad = || StoreError::Block { group };
        let (block, places) = Block::decode(bytes).ok_or_else(bad)?;
        match block {
            Block::Bodies(bodies) => {
                let located = bodies.iter().zip(places).map(|(body, (offset, crc))| Location {
                    segment: frame.segment,
                    offset: frame.offset + offset,
                    len: body.len() as u32,
                    crc,
                });
                self.places.extend(located);
                return Ok(());
            }
            Block::Conversation { id, record } => {
                let mut state = Conversation::decode(record).map_err(|_| bad())?;
                self.relocate(&mut |visit| state.visit_locations(visit))?;
                return self.conversation(id, &state);
            }
            Block::EventRun { id, run } => self.run(&EVENT_RUNS, id, run)?,
            Block::ChangeRun { id, run } => self.run(&CHANGE_RUNS, id, run)?,
            Block::Keys { id, records } => {
                let (_, keys) = match self.keys.take() {
                    Some((of, keys)) if of == id => self.keys.insert((of, keys)),
                    _ => self.keys.insert((id, Keys::new())),
                };
                for (number, digest, record) in records {
                    keys.insert(number, (digest, IdempotencyRecord::decode(record).map_err(|_| bad())?));
                }
                return Ok(());
            }
        }
        self.flush_if_large()
    }

    fn run<R>(&mut self, runs: &Runs<R>, id: ConversationId, run: Bytes) -> Result<(), StoreError> {
        let mut run = (runs.decode)(run).map_err(|_| StoreError::Block { group: self.store.group })?;
        self.relocate(&mut |visit| (runs.visit_locations)(&mut run, visit))?;
        self.not_again(&id)?;
        let at = (id, (runs.number)(&run));
        // One that is cached has other places.
        (runs.cache)(&self.store.shared).remove(&at);
        Ok(self.writer.put(&runs.key(self.store.group, &at), &(runs.encode)(&run))?)
    }

    /// The record of a conversation with its keys; all else of it has been written.
    fn conversation(&mut self, id: ConversationId, state: &Conversation) -> Result<(), StoreError> {
        let group = self.store.group;
        self.not_again(&id)?;
        let key = keys::head(group, &id);
        let (numbers, brought) = (state.key_numbers(), self.keys.take());
        let mut keys = brought.filter(|(of, _)| *of == id).map(|(_, keys)| keys).unwrap_or_default();
        keys.retain(|number, _| numbers.contains(number));
        if keys.len() as u64 != numbers.end - numbers.start {
            return Err(StoreError::Block { group });
        }
        let run_key = |run| keys::numbered(group, Kind::KeyRun, &id, run);
        for run in key_runs_of(numbers.clone()) {
            let mut here = KeyRun::default();
            here.follow(keys.range(numbers_of(run)).map(|(number, key)| (*number, Some(*key))));
            // Whatever was there: of a run without keys nothing is kept.
            self.writer.update(&run_key(run), |_| Some(here.encode()))?;
        }
        if let Some(old) = records::load(&*self.store.shared.index, &key)? {
            let old = Conversation::decode(old).map_err(|_| StoreError::Block { group })?;
            let forgotten =
                key_runs_of(old.key_numbers()).filter(|run| !key_runs_of(numbers.clone()).contains(run));
            for run in forgotten {
                self.writer.remove(&run_key(run))?;
            }
        }
        self.writer.put(&key, &state.encode())?;
        self.in_batch.insert(id);
        self.flush_if_large()
    }

    /// A resumed transfer may bring a conversation twice: the second time needs a batch of its own.
    fn not_again(&mut self, id: &ConversationId) -> Result<(), StoreError> {
        if self.in_batch.contains(id) { self.flush() } else { Ok(()) }
    }

    /// Gives a document's messages the places that its bodies came to lie at.
    fn relocate(&mut self, visit: VisitLocations<'_>) -> Result<(), StoreError> {
        let mut places = std::mem::take(&mut self.places).into_iter();
        if self.placed {
            return Ok(());
        }
        let mut complete = true;
        visit(&mut |location| match places.next() {
            Some(place) if place.len == location.len && place.crc == location.crc => *location = place,
            _ => complete = false,
        });
        if complete && places.next().is_none() {
            Ok(())
        } else {
            Err(StoreError::Block { group: self.store.group })
        }
    }

    fn flush_if_large(&mut self) -> Result<(), StoreError> {
        if self.writer.operations() >= RECORDS_PER_BATCH { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<(), StoreError> {
        let index = &*self.store.shared.index;
        let full = std::mem::replace(&mut self.writer, Writer::new(index, Tally::default()));
        let tally = match &self.under {
            None => full.commit_partial()?,
            Some(Under { applied, membership }) => full.commit(&keys::meta(self.store.group), |tally| {
                Meta { applied: *applied, membership: membership.clone(), tally }.encode()
            })?,
        };
        self.writer = Writer::new(index, tally);
        self.in_batch.clear();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Fixture, id};
    use super::super::transfer::KEYS_PER_BLOCK;
    use super::*;
    use crate::conversation::{KEPT_KEYS, KEPT_MS};

    fn append_keys(fixture: &mut Fixture) {
        for key in 0..KEPT_KEYS + 100 {
            fixture.append(0, key);
        }
    }

    /// The conversation as blocks, less its sealed runs, and where the log is.
    fn image(fixture: &Fixture) -> (Applied, Vec<Bytes>) {
        let (state, keys) = fixture.store.with_its_keys(&id("c0")).unwrap().unwrap();
        let keys =
            keys.chunks(KEYS_PER_BLOCK).map(|keys| Block::Keys { id: id("c0"), records: keys.to_vec() });
        let record = Block::Conversation { id: id("c0"), record: state.encode() };
        let blocks = keys.chain([record]).map(|block| block.encode()).collect();
        (fixture.store.applied().0.unwrap(), blocks)
    }

    fn take_in(
        store: &GroupStore,
        base: Option<Applied>,
        at: Applied,
        blocks: &[Bytes],
    ) -> Result<(), StoreError> {
        let mut blocks = blocks.iter().map(|block| Ok((FrameLocation::default(), block.clone())));
        store.take_in(base.map(|base| base.index), true, at, Bytes::new(), &mut blocks)
    }

    #[test]
    fn keys_forgotten_since_are_gone_after_an_install_over_an_older_state() {
        let (mut source, target) = (Fixture::new(1 << 20), Fixture::new(1 << 20));
        source.put(0);
        append_keys(&mut source);
        let (base, blocks) = image(&source);
        take_in(&target.store, None, base, &blocks).unwrap();
        target.store.verify().unwrap();

        source.now_ms += KEPT_MS + 2;
        source.append(0, 5_000);
        let (at, blocks) = image(&source);
        take_in(&target.store, Some(base), at, &blocks).unwrap();
        target.store.verify().unwrap();
        let (expected, found) =
            (source.store.with_its_keys(&id("c0")), target.store.with_its_keys(&id("c0")));
        let (_, expected) = expected.unwrap().unwrap();
        assert!(expected[0].0 > 64, "no run was forgotten");
        assert_eq!(found.unwrap().unwrap().1, expected);
    }

    #[test]
    fn a_conversation_without_all_of_its_keys_is_malformed() {
        let (mut source, target) = (Fixture::new(1 << 20), Fixture::new(1 << 20));
        source.put(0);
        append_keys(&mut source);
        let (at, mut blocks) = image(&source);
        blocks.remove(0);
        let refused = take_in(&target.store, None, at, &blocks);
        assert!(matches!(refused, Err(StoreError::Block { .. })), "{refused:?}");
    }
}
