//! What apply produced besides conversation records since the last checkpoint: sealed runs and idempotency
//! keys. Also the view through which apply and reads look at all of it together with the index.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use super::group::GroupStore;
use super::index::IndexError;
use super::key_runs::{KeyRun, Numbered, key_run_of, key_runs_of, numbers_of};
use super::keys::{self, Kind};
use super::known_keys::{KeyDigest, KnownKeys};
use super::records::{self, Writer};
use super::runs::{CHANGE_RUNS, EVENT_RUNS, FreshRuns, RunKey, Runs};
use super::{Shared, value};
use crate::conversation::{
    ChangeRun, ConversationId, Effects, EventRun, History, HistoryError, IdempotencyIndex, IdempotencyRecord,
    Reply,
};

/// Changes waiting for the next checkpoint.
#[derive(Default)]
pub(super) struct Fresh {
    pub(super) events: FreshRuns<EventRun>,
    pub(super) changes: FreshRuns<ChangeRun>,
    /// By number.
    keys: HashMap<ConversationId, BTreeMap<u64, Numbered>>,
}

impl Fresh {
    /// Keeps the effects of a command and gives its reply back.
    pub(super) fn absorb(&mut self, id: &ConversationId, effects: Effects) -> Reply {
        effects.sealed_events.into_iter().for_each(|run| self.keep(&EVENT_RUNS, id, run));
        effects.sealed_changes.into_iter().for_each(|run| self.keep(&CHANGE_RUNS, id, run));
        if !effects.idempotency_put.is_empty() || !effects.idempotency_remove.is_empty() {
            let keys = self.keys.entry(id.clone()).or_default();
            keys.extend(effects.idempotency_remove.into_iter().map(|(number, _)| (number, None)));
            let put = effects.idempotency_put.into_iter();
            keys.extend(put.map(|(number, key, record)| (number, Some((key, record)))));
        }
        effects.reply
    }

    fn keep<R>(&mut self, runs: &Runs<R>, id: &ConversationId, run: R) {
        let at = (id.clone(), (runs.number)(&run));
        (runs.fresh_mut)(self).insert(at, Arc::new(run));
    }

    /// Keeps a run that takes the place of the one there is.
    pub(super) fn replace<R>(&mut self, runs: &Runs<R>, shared: &Shared, id: &ConversationId, run: R) {
        // The cache is asked before the index, which is behind until the next checkpoint.
        (runs.cache)(shared).remove(&(id.clone(), (runs.number)(&run)));
        self.keep(runs, id, run);
    }

    pub(super) fn write(&self, group: u16, writer: &mut Writer<'_>) -> Result<(), IndexError> {
        self.write_runs(&EVENT_RUNS, group, writer)?;
        self.write_runs(&CHANGE_RUNS, group, writer)?;
        for (id, keys) in &self.keys {
            let keys: Vec<_> = keys.iter().map(|(number, key)| (*number, *key)).collect();
            for changes in keys.chunk_by(|(a, _), (b, _)| key_run_of(*a) == key_run_of(*b)) {
                let number = key_run_of(changes[0].0);
                let key = keys::numbered(group, Kind::KeyRun, id, number);
                writer.update(&key, |old| {
                    let mut run = KeyRun::decode(number, &old)?;
                    run.follow(changes.iter().copied());
                    Some(run.encode())
                })?;
            }
        }
        Ok(())
    }

    fn write_runs<R>(&self, runs: &Runs<R>, group: u16, writer: &mut Writer<'_>) -> Result<(), IndexError> {
        let mut fresh = (runs.fresh)(self).iter();
        fresh.try_for_each(|(at, run)| writer.put(&runs.key(group, at), &(runs.encode)(run)))
    }
}

/// Everything of a group outside the conversation records: not yet written, being written, and in the index.
pub(super) struct Outside<'a> {
    store: &'a GroupStore,
    /// The newest first.
    layers: [Option<&'a Fresh>; 2],
    /// The numbers of the keys of the conversation that is looked at, if they are known.
    known: Option<&'a KnownKeys>,
}

impl<'a> Outside<'a> {
    pub(super) fn new(store: &'a GroupStore, fresh: &'a Fresh, writing: Option<&'a Fresh>) -> Self {
        Self { store, layers: [Some(fresh), writing], known: None }
    }

    /// The same for one conversation, whose keys these are.
    pub(super) fn knowing(self, known: &'a KnownKeys) -> Self {
        Self { known: Some(known), ..self }
    }

    /// The number of each of a conversation's keys, which have these.
    pub(super) fn numbers_of_keys(
        &self,
        id: &ConversationId,
        numbers: Range<u64>,
    ) -> Result<HashMap<KeyDigest, u64>, HistoryError> {
        let (mut all, mut found) = (HashMap::new(), 0);
        for run in key_runs_of(numbers.clone()) {
            let keys = self.key_run(id, run)?.into_iter().filter(|(number, _)| numbers.contains(number));
            all.extend(keys.inspect(|_| found += 1).map(|(number, (key, _))| (key, number)));
        }
        if found == numbers.end - numbers.start { Ok(all) } else { Err(keys_missing(id)) }
    }

    /// The keys of one run.
    pub(super) fn key_run(&self, id: &ConversationId, number: u64) -> Result<KeyRun, HistoryError> {
        let key = keys::numbered(self.store.group, Kind::KeyRun, id, number);
        let bytes = self.load(&key)?.unwrap_or_default();
        let mut run = KeyRun::decode(number, &bytes).ok_or_else(|| undecodable(&key))?;
        for layer in self.layers.iter().rev().flatten() {
            let changes = layer.keys.get(id).into_iter().flat_map(|keys| keys.range(numbers_of(number)));
            run.follow(changes.map(|(number, key)| (*number, *key)));
        }
        Ok(run)
    }

    fn layers(&self) -> impl Iterator<Item = &'a Fresh> {
        self.layers.into_iter().flatten()
    }

    fn load(&self, key: &[u8]) -> Result<Option<Bytes>, HistoryError> {
        records::load(&*self.store.shared.index, key).map_err(|e| HistoryError::Storage(e.to_string()))
    }

    fn run<R>(&self, runs: &Runs<R>, id: &ConversationId, number: u64) -> Result<Arc<R>, HistoryError> {
        let at = (id.clone(), number);
        let cache = (runs.cache)(&self.store.shared);
        if let Some(run) = self.fresh_run(runs, &at).or_else(|| cache.get(&at)) {
            return Ok(run);
        }
        let run = self.load_run(runs, &at)?;
        cache.insert(at, run.clone());
        Ok(run)
    }

    /// For who looks through everything once: the cache stays as it is.
    pub(super) fn run_in_passing<R>(
        &self,
        runs: &Runs<R>,
        id: &ConversationId,
        number: u64,
    ) -> Result<Arc<R>, HistoryError> {
        let at = (id.clone(), number);
        match self.fresh_run(runs, &at) {
            Some(run) => Ok(run),
            None => self.load_run(runs, &at),
        }
    }

    fn fresh_run<R>(&self, runs: &Runs<R>, at: &RunKey) -> Option<Arc<R>> {
        self.layers().find_map(|layer| (runs.fresh)(layer).get(at)).cloned()
    }

    fn load_run<R>(&self, runs: &Runs<R>, at: &RunKey) -> Result<Arc<R>, HistoryError> {
        let key = runs.key(self.store.group, at);
        let bytes = self.load(&key)?.ok_or_else(|| missing(&key))?;
        Ok(Arc::new((runs.decode)(bytes).map_err(|_| undecodable(&key))?))
    }
}

impl History for Outside<'_> {
    fn event_run(&self, id: &ConversationId, first_seq: u64) -> Result<Arc<EventRun>, HistoryError> {
        self.run(&EVENT_RUNS, id, first_seq)
    }

    fn change_run(&self, id: &ConversationId, number: u64) -> Result<Arc<ChangeRun>, HistoryError> {
        self.run(&CHANGE_RUNS, id, number)
    }
}

impl IdempotencyIndex for Outside<'_> {
    fn get(&self, id: &ConversationId, key: &KeyDigest) -> Result<Option<IdempotencyRecord>, HistoryError> {
        let numbers = self.known.and_then(KnownKeys::numbers);
        let numbers =
            numbers.ok_or_else(|| HistoryError::Storage(format!("the keys of {id} were not read")))?;
        let Some(number) = numbers.get(key) else { return Ok(None) };
        match self.nth(id, *number)? {
            Some((_, record)) => Ok(Some(record)),
            None => Err(keys_missing(id)),
        }
    }

    fn nth(
        &self,
        id: &ConversationId,
        number: u64,
    ) -> Result<Option<(KeyDigest, IdempotencyRecord)>, HistoryError> {
        let changed = |layer: &Fresh| layer.keys.get(id)?.get(&number).copied();
        match self.layers().find_map(changed) {
            Some(key) => Ok(key),
            None => Ok(self.key_run(id, key_run_of(number))?.get(number).copied()),
        }
    }
}

pub(super) fn keys_missing(id: &ConversationId) -> HistoryError {
    HistoryError::Storage(format!("idempotency keys of {id} are missing"))
}

fn missing(key: &[u8]) -> HistoryError {
    HistoryError::Storage(format!("index record {} is missing", value::printable(key)))
}

fn undecodable(key: &[u8]) -> HistoryError {
    HistoryError::Storage(format!("index record {} is undecodable", value::printable(key)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conversation::{Action, Put};
    use crate::store::testing::{Fixture, id};

    /// What a stream says of each change of settings looks at all changes before it.
    #[test]
    fn runs_of_changes_are_read_from_the_index_once() {
        let mut fixture = Fixture::new(0);
        fixture.put(0);
        for budget in 1..=300 {
            let token_budget = Some(budget);
            let action = Action::Put(Put { token_budget, ..Put::default() });
            fixture.command("c0", action);
        }
        assert!(fixture.store.checkpoint().unwrap());
        let run = || fixture.store.with_outside(|outside| outside.change_run(&id("c0"), 1)).unwrap();
        let first = run();
        assert!(Arc::ptr_eq(&first, &run()));
        let passing =
            fixture.store.with_outside(|outside| outside.run_in_passing(&CHANGE_RUNS, &id("c0"), 1));
        assert_eq!(passing.unwrap(), first);
        fixture.store.reset().unwrap();
        assert!(fixture.store.with_outside(|outside| outside.change_run(&id("c0"), 1)).is_err());
    }
}
