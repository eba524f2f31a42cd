//! What apply produced besides conversation records since the last checkpoint: sealed runs and idempotency
//! records. Also the view through which apply and reads look at all of it together with the index.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use bytes::Bytes;

use super::group::GroupStore;
use super::index::IndexError;
use super::keys::{self, Kind};
use super::known_keys::KeyDigest;
use super::records::{self, Writer};
use super::{StoreError, value};
use crate::conversation::{
    ChangeRun, ConversationId, Effects, EventRun, History, HistoryError, IdempotencyIndex, IdempotencyRecord,
    Reply,
};

/// Changes waiting for the next checkpoint. `None` in a map is a removal.
#[derive(Default)]
pub(super) struct Fresh {
    events: HashMap<(ConversationId, u64), Arc<EventRun>>,
    changes: HashMap<(ConversationId, u64), Arc<ChangeRun>>,
    by_key: HashMap<(ConversationId, KeyDigest), Option<IdempotencyRecord>>,
    by_number: HashMap<(ConversationId, u64), Option<KeyDigest>>,
}

impl Fresh {
    /// Keeps the effects of a command and gives its reply back.
    pub(super) fn absorb(&mut self, id: &ConversationId, effects: Effects) -> Reply {
        for run in effects.sealed_events {
            self.events.insert((id.clone(), run.first_seq()), Arc::new(run));
        }
        for run in effects.sealed_changes {
            self.changes.insert((id.clone(), run.number()), Arc::new(run));
        }
        for (number, key) in effects.idempotency_remove {
            self.by_key.insert((id.clone(), key), None);
            self.by_number.insert((id.clone(), number), None);
        }
        for (number, key, record) in effects.idempotency_put {
            self.by_key.insert((id.clone(), key), Some(record));
            self.by_number.insert((id.clone(), number), Some(key));
        }
        effects.reply
    }

    /// Keeps a run that takes the place of the one there is.
    pub(super) fn replace_run(&mut self, id: &ConversationId, run: EventRun) {
        self.events.insert((id.clone(), run.first_seq()), Arc::new(run));
    }

    /// Keeps a run of changes that takes the place of the one there is.
    pub(super) fn replace_change_run(&mut self, id: &ConversationId, run: ChangeRun) {
        self.changes.insert((id.clone(), run.number()), Arc::new(run));
    }

    pub(super) fn write(&self, group: u16, writer: &mut Writer<'_>) -> Result<(), IndexError> {
        for ((id, first_seq), run) in &self.events {
            writer.put(&keys::numbered(group, Kind::EventRun, id, *first_seq), &run.encode())?;
        }
        for ((id, number), run) in &self.changes {
            writer.put(&keys::numbered(group, Kind::ChangeRun, id, *number), &run.encode())?;
        }
        for ((id, digest), record) in &self.by_key {
            let key = keys::idempotency(group, id, digest);
            match record {
                Some(record) => writer.put(&key, &record.encode())?,
                None => writer.remove(&key)?,
            }
        }
        for ((id, number), digest) in &self.by_number {
            let key = keys::numbered(group, Kind::IdempotencyNumber, id, *number);
            match digest {
                Some(digest) => writer.put(&key, digest)?,
                None => writer.remove(&key)?,
            }
        }
        Ok(())
    }
}

/// Everything of a group outside the conversation records: not yet written, being written, and in the index.
pub(super) struct Outside<'a> {
    store: &'a GroupStore,
    /// The newest first.
    layers: [Option<&'a Fresh>; 2],
    /// A key that is known to be in none of it.
    lacked: Option<KeyDigest>,
}

impl<'a> Outside<'a> {
    pub(super) fn new(store: &'a GroupStore, fresh: &'a Fresh, writing: Option<&'a Fresh>) -> Self {
        Self { store, layers: [Some(fresh), writing], lacked: None }
    }

    /// The same, with a key that is known to be in none of it.
    pub(super) fn lacking(self, lacked: Option<KeyDigest>) -> Self {
        Self { lacked, ..self }
    }

    /// All idempotency keys of a conversation.
    pub(super) fn keys_of(&self, id: &ConversationId) -> Result<HashSet<KeyDigest>, StoreError> {
        let prefix = keys::idempotency_prefix(self.store.group, id);
        let mut all = HashSet::new();
        for record in self.store.shared.index.scan(&prefix, &prefix) {
            let (physical, record) = record?;
            value::decode(&physical, &record)?;
            let key =
                value::split_key(&physical).and_then(|(key, _)| key.get(prefix.len()..)?.try_into().ok());
            all.insert(key.ok_or_else(|| undecodable(&physical))?);
        }
        for layer in self.layers.iter().rev().flatten() {
            for ((_, key), record) in layer.by_key.iter().filter(|((of, _), _)| of == id) {
                match record {
                    Some(_) => all.insert(*key),
                    None => all.remove(key),
                };
            }
        }
        Ok(all)
    }

    fn layers(&self) -> impl Iterator<Item = &'a Fresh> {
        self.layers.into_iter().flatten()
    }

    fn load(&self, key: &[u8]) -> Result<Option<Bytes>, HistoryError> {
        records::load(&*self.store.shared.index, key).map_err(|e| HistoryError::Storage(e.to_string()))
    }

    /// As [`History::event_run`], for who looks through everything once: the cache stays as it is.
    pub(super) fn event_run_in_passing(
        &self,
        id: &ConversationId,
        first_seq: u64,
    ) -> Result<Arc<EventRun>, HistoryError> {
        match self.fresh_event_run(&(id.clone(), first_seq)) {
            Some(run) => Ok(run),
            None => self.load_event_run(id, first_seq),
        }
    }

    fn fresh_event_run(&self, at: &(ConversationId, u64)) -> Option<Arc<EventRun>> {
        self.layers().find_map(|layer| layer.events.get(at)).cloned()
    }

    fn load_event_run(&self, id: &ConversationId, first_seq: u64) -> Result<Arc<EventRun>, HistoryError> {
        let key = keys::numbered(self.store.group, Kind::EventRun, id, first_seq);
        let bytes = self.load(&key)?.ok_or_else(|| missing(&key))?;
        Ok(Arc::new(EventRun::decode(bytes).map_err(|_| undecodable(&key))?))
    }

    fn record(
        &self,
        id: &ConversationId,
        digest: &KeyDigest,
    ) -> Result<Option<IdempotencyRecord>, HistoryError> {
        if self.lacked.as_ref() == Some(digest) {
            return Ok(None);
        }
        let at = (id.clone(), *digest);
        if let Some(found) = self.layers().find_map(|layer| layer.by_key.get(&at)) {
            return Ok(*found);
        }
        let key = keys::idempotency(self.store.group, id, digest);
        self.load(&key)?
            .map(|bytes| IdempotencyRecord::decode(bytes).map_err(|_| undecodable(&key)))
            .transpose()
    }
}

impl History for Outside<'_> {
    fn event_run(&self, id: &ConversationId, first_seq: u64) -> Result<Arc<EventRun>, HistoryError> {
        let at = (id.clone(), first_seq);
        if let Some(run) = self.fresh_event_run(&at) {
            return Ok(run);
        }
        if let Some(run) = self.store.shared.event_runs.get(&at) {
            return Ok(run);
        }
        let run = self.load_event_run(id, first_seq)?;
        self.store.shared.event_runs.insert(at, run.clone());
        Ok(run)
    }

    fn change_run(&self, id: &ConversationId, number: u64) -> Result<Arc<ChangeRun>, HistoryError> {
        let at = (id.clone(), number);
        if let Some(run) = self.layers().find_map(|layer| layer.changes.get(&at)) {
            return Ok(run.clone());
        }
        let key = keys::numbered(self.store.group, Kind::ChangeRun, id, number);
        let bytes = self.load(&key)?.ok_or_else(|| missing(&key))?;
        Ok(Arc::new(ChangeRun::decode(bytes).map_err(|_| undecodable(&key))?))
    }
}

impl IdempotencyIndex for Outside<'_> {
    fn get(&self, id: &ConversationId, key: &KeyDigest) -> Result<Option<IdempotencyRecord>, HistoryError> {
        self.record(id, key)
    }

    fn nth(
        &self,
        id: &ConversationId,
        number: u64,
    ) -> Result<Option<(KeyDigest, IdempotencyRecord)>, HistoryError> {
        let at = (id.clone(), number);
        let digest = match self.layers().find_map(|layer| layer.by_number.get(&at)) {
            Some(digest) => *digest,
            None => {
                let key = keys::numbered(self.store.group, Kind::IdempotencyNumber, id, number);
                self.load(&key)?
                    .map(|bytes| KeyDigest::try_from(&bytes[..]).map_err(|_| undecodable(&key)))
                    .transpose()?
            }
        };
        let Some(digest) = digest else { return Ok(None) };
        Ok(self.record(id, &digest)?.map(|record| (digest, record)))
    }
}

fn missing(key: &[u8]) -> HistoryError {
    HistoryError::Storage(format!("index record {} is missing", value::printable(key)))
}

fn undecodable(key: &[u8]) -> HistoryError {
    HistoryError::Storage(format!("index record {} is undecodable", value::printable(key)))
}
