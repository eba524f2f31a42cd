//! Conversation records in memory: those changed since the last checkpoint, and a cache of others.

use std::sync::atomic::Ordering;

use super::fresh::Outside;
use super::group::{GroupStore, Inner};
use super::known_keys::KnownKeys;
use super::{IndexError, Shared, StoreError, keys, records, value};
use crate::conversation::{
    self, Action, Command, Conversation, ConversationId, Effects, HistoryError, Location,
};

/// A conversation in memory.
pub(super) struct Live {
    pub(super) conversation: Conversation,
    pub(super) dirty: bool,
    /// Being written by a checkpoint: not dirty, but the index does not have it yet.
    pub(super) writing: bool,
    pub(super) keys: KnownKeys,
    /// Used since the last sweep.
    pub(super) touched: bool,
    /// What it takes in memory.
    pub(super) bytes: usize,
}

impl Live {
    fn new(conversation: Conversation, keys: KnownKeys) -> Self {
        Self { conversation, dirty: false, writing: false, keys, touched: true, bytes: 0 }
    }

    /// What a command makes of a conversation that does not exist.
    pub(super) fn create(
        index: u64,
        command: &Command,
        locations: &[Location],
        outside: Outside<'_>,
    ) -> Result<(Option<Box<Self>>, Effects), HistoryError> {
        let mut keys = KnownKeys::none();
        let mut effects = conversation::apply(None, index, command, locations, &outside.knowing(&keys))?;
        let Some(created) = effects.created.take() else { return Ok((None, effects)) };
        keys.follow(&effects);
        let live = Self { dirty: true, ..Self::new(*created, keys) };
        Ok((Some(Box::new(live)), effects))
    }

    pub(super) fn apply(
        &mut self,
        index: u64,
        command: &Command,
        locations: &[Location],
        outside: Outside<'_>,
    ) -> Result<Effects, HistoryError> {
        if asks_for_keys(command) {
            self.keys.learn(|| outside.numbers_of_keys(&command.id, self.conversation.key_numbers()))?;
        }
        let outside = outside.knowing(&self.keys);
        let effects = conversation::apply(Some(&mut self.conversation), index, command, locations, &outside)?;
        self.keys.follow(&effects);
        self.dirty |= effects.changed;
        self.touched = true;
        Ok(effects)
    }

    /// Counts anew what the record takes in memory, with its share of the map.
    pub(super) fn weigh(&mut self, shared: &Shared, id: &ConversationId) {
        const MAP_ENTRY_BYTES: usize = 64;
        let heap = self.conversation.heap_bytes() + self.keys.heap_bytes();
        let bytes = heap + size_of::<Self>() + id.as_str().len() + MAP_ENTRY_BYTES;
        let grown = bytes.wrapping_sub(std::mem::replace(&mut self.bytes, bytes));
        shared.record_bytes.fetch_add(grown, Ordering::Relaxed);
    }
}

/// Whether applying a command looks idempotency keys up.
fn asks_for_keys(command: &Command) -> bool {
    match &command.action {
        Action::Append { idempotency, .. } => idempotency.is_some(),
        Action::Restore(restore) => restore.keys.is_some(),
        _ => false,
    }
}

impl GroupStore {
    /// Has a conversation in memory, if there is one. There it stays while it is worked on: one that was taken out would be
    /// lost, with what the index does not have of it, to an error or a panic.
    pub(super) fn load(&self, inner: &mut Inner, id: &ConversationId) -> Result<(), StoreError> {
        if inner.live.contains_key(id) {
            self.shared.metrics.record_cache_hits.inc();
            return Ok(());
        }
        self.shared.metrics.record_cache_misses.inc();
        let key = keys::head(self.group, id);
        let Some(bytes) = records::load(&*self.shared.index, &key)? else { return Ok(()) };
        let conversation = Conversation::decode(bytes)
            .map_err(|_| IndexError::Corrupt { key: value::printable(&key), reason: "undecodable record" })?;
        let keys =
            if conversation.key_numbers().is_empty() { KnownKeys::none() } else { KnownKeys::default() };
        let mut live = Live::new(conversation, keys);
        live.weigh(&self.shared, id);
        inner.live.insert(id.clone(), Box::new(live));
        inner.loads_since_sweep += 1;
        Ok(())
    }
}

impl Inner {
    /// Evicts clean records that were not used since the last sweep, when the node's records are over budget.
    /// A sweep looks at every record of the group, so it waits for as many loads as would pay for it.
    pub(super) fn sweep_if_over(&mut self, shared: &Shared) {
        if self.loads_since_sweep * 4 >= self.live.len() {
            self.sweep(shared);
        }
    }

    pub(super) fn sweep(&mut self, shared: &Shared) {
        if shared.record_bytes.load(Ordering::Relaxed) <= shared.record_cache_bytes {
            return;
        }
        self.loads_since_sweep = 0;
        self.live.retain(|_, live| {
            let keep = live.dirty || live.writing || std::mem::take(&mut live.touched);
            if !keep {
                shared.record_bytes.fetch_sub(live.bytes, Ordering::Relaxed);
            }
            keep
        });
    }
}
