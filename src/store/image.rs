//! A group's whole state written anew into this node's journal, so that older segments can go.
//!
//! An image is the state as blocks of a snapshot (see [`super::transfer`]), but where a snapshot carries all messages, an
//! image leaves those where they are that lie in segments to be kept. The others are written to the journal first and
//! given their new places in the records, which a checkpoint then takes to the index. So every location in an image is
//! one of this journal and stays valid when the segments before its floor are gone.
//!
//! The index is verified first: what it has lost must not be lost from the journal too.

use std::collections::HashMap;

use bytes::Bytes;

use super::StoreError;
use super::fresh::Outside;
use super::group::{GroupStore, Inner};
use super::transfer::{Block, KEYS_PER_BLOCK, VisitLocations, by_block};
use crate::conversation::{ChangeRun, ConversationId, EVENT_RUN, EventRun, FrameLocation, Location};

/// Message bytes collected into one block; a larger message is a block of its own.
const BODIES_BLOCK_BYTES: usize = if cfg!(test) { 4 << 10 } else { 256 << 10 };
/// Conversations looked up at a time.
const IDS_AT_A_TIME: usize = 256;
/// A record that is appended to all the while has new messages only, so that once is enough unless it was replaced.
const ATTEMPTS_MAX: usize = 4;

/// Writes a block to the journal and tells where it begins.
pub(crate) type Write<'a> = &'a mut dyn FnMut(Bytes) -> Result<FrameLocation, StoreError>;

/// Where messages lay, and where they lie now.
type Moves = HashMap<(u32, u32), Location>;

impl GroupStore {
    /// Writes the state, with no location before segment `floor`. What changes meanwhile may or may not be in it, and
    /// says so by its changed index. Does IO.
    pub(crate) fn write_image(&self, floor: u32, write: Write<'_>) -> Result<(), StoreError> {
        self.verify()?;
        let mut after: Option<ConversationId> = None;
        loop {
            let ids = self.ids_after("", after.as_ref().map(ConversationId::as_str), IDS_AT_A_TIME)?;
            for id in &ids {
                self.write_conversation(id, floor, write)?;
            }
            match ids.into_iter().next_back() {
                Some(last) => after = Some(last),
                None => return Ok(()),
            }
        }
    }

    fn write_conversation(
        &self,
        id: &ConversationId,
        floor: u32,
        write: Write<'_>,
    ) -> Result<(), StoreError> {
        self.lift_record(id, floor, write)?;
        let Some((mut state, keys)) = self.with_its_keys(id)? else { return Ok(()) };
        for i in 0..state.sealed_event_runs() {
            let mut run = self.lift_event_run(id, 1 + i * EVENT_RUN, floor, write)?;
            self.check_lifted(floor, &mut |visit| run.visit_locations(visit))?;
            write(Block::EventRun { id: id.clone(), run: run.encode() }.encode())?;
        }
        for number in 0..state.sealed_change_runs() {
            let mut run = self.lift_change_run(id, number, floor, write)?;
            self.check_lifted(floor, &mut |visit| run.visit_locations(visit))?;
            write(Block::ChangeRun { id: id.clone(), run: run.encode() }.encode())?;
        }
        for records in keys.chunks(KEYS_PER_BLOCK) {
            write(Block::Keys { id: id.clone(), records: records.to_vec() }.encode())?;
        }
        self.check_lifted(floor, &mut |visit| state.visit_locations(visit))?;
        write(Block::Conversation { id: id.clone(), record: state.encode() }.encode())?;
        Ok(())
    }

    fn lift_record(&self, id: &ConversationId, floor: u32, write: Write<'_>) -> Result<(), StoreError> {
        for _ in 0..ATTEMPTS_MAX {
            let Some(mut state) = self.read(id, |c, _| c.clone())? else { return Ok(()) };
            let moves = self.copy_up(floor, &mut |visit| state.visit_locations(visit), write)?;
            if moves.is_empty() {
                return Ok(());
            }
            let mut inner = self.lock_verified_for([id])?;
            let inner = &mut *inner;
            let Some(mut live) = self.take(inner, id)? else { return Ok(()) };
            live.conversation.visit_locations(&mut |location| follow(&moves, location));
            live.dirty = true;
            inner.meta_dirty = true;
            inner.put_back(id, Some(live));
        }
        Err(StoreError::BelowFloor { group: self.group, floor })
    }

    fn lift_event_run(
        &self,
        id: &ConversationId,
        first_seq: u64,
        floor: u32,
        write: Write<'_>,
    ) -> Result<EventRun, StoreError> {
        let load = |inner: &Inner| -> Result<EventRun, StoreError> {
            let outside = Outside::new(self, &inner.fresh, inner.writing.as_deref());
            Ok(EventRun::clone(&*outside.event_run_in_passing(id, first_seq)?))
        };
        let mut run = load(&self.inner.lock())?;
        let moves = self.copy_up(floor, &mut |visit| run.visit_locations(visit), write)?;
        if moves.is_empty() {
            return Ok(run);
        }
        let mut inner = self.lock_readable()?;
        // Read again: it may have been replaced.
        let mut run = load(&inner)?;
        run.visit_locations(&mut |location| follow(&moves, location));
        inner.fresh.replace_run(id, run.clone());
        inner.meta_dirty = true;
        self.shared.event_runs.remove(&(id.clone(), first_seq));
        Ok(run)
    }

    fn lift_change_run(
        &self,
        id: &ConversationId,
        number: u64,
        floor: u32,
        write: Write<'_>,
    ) -> Result<ChangeRun, StoreError> {
        let run = self.with_outside(|outside| outside.change_run_in_passing(id, number))?;
        let mut run = ChangeRun::clone(&run);
        let moves = self.copy_up(floor, &mut |visit| run.visit_locations(visit), write)?;
        if moves.is_empty() {
            return Ok(run);
        }
        run.visit_locations(&mut |location| follow(&moves, location));
        let mut inner = self.lock_readable()?;
        inner.fresh.replace_change_run(id, run.clone());
        inner.meta_dirty = true;
        self.shared.change_runs.remove(&(id.clone(), number));
        Ok(run)
    }

    /// Writes the messages of a document anew that lie before the floor.
    fn copy_up(&self, floor: u32, visit: VisitLocations<'_>, write: Write<'_>) -> Result<Moves, StoreError> {
        let mut low = Vec::new();
        visit(&mut |location| {
            if is_below(location, floor) {
                low.push(*location);
            }
        });
        low.sort_unstable_by_key(|location| (location.segment, location.offset));
        low.dedup();
        let mut moves = Moves::with_capacity(low.len());
        for moved in by_block(&low, BODIES_BLOCK_BYTES) {
            let block = Block::Bodies(self.shared.bodies_in_passing(moved)?).encode();
            let (_, places) = Block::decode(&block).ok_or(StoreError::Block { group: self.group })?;
            let frame = write(block)?;
            for (old, (offset, crc)) in moved.iter().zip(places) {
                let segment = frame.segment;
                let new = Location { segment, offset: frame.offset + offset, len: old.len, crc };
                moves.insert((old.segment, old.offset), new);
            }
        }
        Ok(moves)
    }

    fn check_lifted(&self, floor: u32, visit: VisitLocations<'_>) -> Result<(), StoreError> {
        let mut lifted = true;
        visit(&mut |location| lifted &= !is_below(location, floor));
        if lifted { Ok(()) } else { Err(StoreError::BelowFloor { group: self.group, floor }) }
    }
}

/// What has no place in this journal, having been trimmed, has none to leave: segments begin at 1.
fn is_below(location: &Location, floor: u32) -> bool {
    (1..floor).contains(&location.segment)
}

fn follow(moves: &Moves, location: &mut Location) {
    if let Some(new) = moves.get(&(location.segment, location.offset)) {
        *location = *new;
    }
}
