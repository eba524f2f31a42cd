//! The two kinds of sealed runs, which are looked up, replaced, taken in and written alike.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use quick_cache::Weighter;
use quick_cache::sync::Cache;

use super::Shared;
use super::fresh::Fresh;
use super::keys::{self, Kind};
use crate::conversation::{ChangeRun, CodecError, ConversationId, EventRun, Location};

/// A conversation and the number of one of its runs.
pub(crate) type RunKey = (ConversationId, u64);
pub(super) type FreshRuns<R> = HashMap<RunKey, Arc<R>>;
/// Is shown locations, and may move them.
type Visit<'a> = &'a mut dyn FnMut(&mut Location);
pub(crate) type RunCache<R> = Cache<RunKey, Arc<R>, RunWeight<R>>;

/// A kind of runs: what can be done with one, and where they are.
pub(super) struct Runs<R: 'static> {
    pub(super) kind: Kind,
    /// What a run is found by within its conversation.
    pub(super) number: fn(&R) -> u64,
    pub(super) encode: fn(&R) -> Bytes,
    pub(super) decode: fn(Bytes) -> Result<R, CodecError>,
    pub(super) visit_locations: fn(&mut R, Visit<'_>),
    /// Those that wait for the next checkpoint.
    pub(super) fresh: fn(&Fresh) -> &FreshRuns<R>,
    pub(super) fresh_mut: fn(&mut Fresh) -> &mut FreshRuns<R>,
    pub(super) cache: fn(&Shared) -> &RunCache<R>,
}

/// Numbered by the seq of their first message.
pub(super) const EVENT_RUNS: Runs<EventRun> = Runs {
    kind: Kind::EventRun,
    number: EventRun::first_seq,
    encode: EventRun::encode,
    decode: EventRun::decode,
    visit_locations: EventRun::visit_locations,
    fresh: |fresh| &fresh.events,
    fresh_mut: |fresh| &mut fresh.events,
    cache: |shared| &shared.event_runs,
};

pub(super) const CHANGE_RUNS: Runs<ChangeRun> = Runs {
    kind: Kind::ChangeRun,
    number: ChangeRun::number,
    encode: ChangeRun::encode,
    decode: ChangeRun::decode,
    visit_locations: ChangeRun::visit_locations,
    fresh: |fresh| &fresh.changes,
    fresh_mut: |fresh| &mut fresh.changes,
    cache: |shared| &shared.change_runs,
};

impl<R> Runs<R> {
    /// The key of a run in the index.
    pub(super) fn key(&self, group: u16, (id, number): &RunKey) -> Vec<u8> {
        keys::numbered(group, self.kind, id, *number)
    }
}

/// A cache of about so many bytes.
pub(super) fn cache<R>(bytes: usize, heap_bytes: fn(&R) -> usize) -> RunCache<R> {
    Cache::with_weighter(bytes / 8192 + 16, bytes as u64, RunWeight(heap_bytes))
}

/// Weighs a run by what it takes beyond itself.
pub(crate) struct RunWeight<R>(fn(&R) -> usize);

impl<R> Clone for RunWeight<R> {
    fn clone(&self) -> Self {
        Self(self.0)
    }
}

impl<R> Weighter<RunKey, Arc<R>> for RunWeight<R> {
    fn weight(&self, _: &RunKey, run: &Arc<R>) -> u64 {
        (self.0)(run) as u64 + 128
    }
}
