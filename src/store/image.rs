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
use super::group::GroupStore;
use super::runs::{CHANGE_RUNS, EVENT_RUNS, Runs};
use super::transfer::{Block, KEYS_PER_BLOCK, VisitLocations, by_block};
use crate::conversation::{ConversationId, EVENT_RUN, FrameLocation, Location};

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
            let run = self.lift_run(&EVENT_RUNS, (id, 1 + i * EVENT_RUN), floor, write)?;
            write(Block::EventRun { id: id.clone(), run }.encode())?;
        }
        for number in 0..state.sealed_change_runs() {
            let run = self.lift_run(&CHANGE_RUNS, (id, number), floor, write)?;
            write(Block::ChangeRun { id: id.clone(), run }.encode())?;
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
            self.load(&mut inner, id)?;
            let Some(live) = inner.live.get_mut(id) else { return Ok(()) };
            live.conversation.visit_locations(&mut |location| follow(&moves, location));
            live.dirty = true;
            inner.meta_dirty = true;
        }
        Err(StoreError::BelowFloor { group: self.group, floor })
    }

    fn lift_run<R: Clone>(
        &self,
        runs: &Runs<R>,
        (id, number): (&ConversationId, u64),
        floor: u32,
        write: Write<'_>,
    ) -> Result<Bytes, StoreError> {
        let run = self.with_outside(|outside| outside.run_in_passing(runs, id, number))?;
        let mut run = R::clone(&run);
        let moves = self.copy_up(floor, &mut |visit| (runs.visit_locations)(&mut run, visit), write)?;
        if !moves.is_empty() {
            let mut inner = self.lock_readable()?;
            // Read again: it may have been replaced.
            let outside = Outside::new(self, &inner.fresh, inner.writing.as_deref());
            run = R::clone(&*outside.run_in_passing(runs, id, number)?);
            (runs.visit_locations)(&mut run, &mut |location| follow(&moves, location));
            inner.fresh.replace(runs, &self.shared, id, run.clone());
            inner.meta_dirty = true;
        }
        self.check_lifted(floor, &mut |visit| (runs.visit_locations)(&mut run, visit))?;
        Ok((runs.encode)(&run))
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
