//! Conversation records in memory: those changed since the last checkpoint, and a cache of others.

use std::sync::atomic::Ordering;

use super::group::{GroupStore, Inner};
use super::known_keys::KnownKeys;
use super::{IndexError, Shared, StoreError, keys, records, value};
use crate::conversation::{Conversation, ConversationId};

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

impl GroupStore {
    /// Takes a conversation out of memory, loading it first if need be.
    pub(super) fn take(
        &self,
        inner: &mut Inner,
        id: &ConversationId,
    ) -> Result<Option<Box<Live>>, StoreError> {
        if let Some(live) = inner.live.remove(id) {
            self.shared.metrics.record_cache_hits.inc();
            return Ok(Some(live));
        }
        self.shared.metrics.record_cache_misses.inc();
        let key = keys::head(self.group, id);
        let Some(bytes) = records::load(&*self.shared.index, &key)? else { return Ok(None) };
        let conversation = Conversation::decode(bytes)
            .map_err(|_| IndexError::Corrupt { key: value::printable(&key), reason: "undecodable record" })?;
        let keys =
            if conversation.key_numbers().is_empty() { KnownKeys::none() } else { KnownKeys::default() };
        let bytes = live_bytes(&conversation, &keys, id);
        self.shared.record_bytes.fetch_add(bytes, Ordering::Relaxed);
        inner.loads_since_sweep += 1;
        Ok(Some(Box::new(Live { conversation, dirty: false, writing: false, keys, touched: true, bytes })))
    }
}

/// What a record in memory takes, with its share of the map.
fn live_bytes(conversation: &Conversation, keys: &KnownKeys, id: &ConversationId) -> usize {
    const MAP_ENTRY_BYTES: usize = 64;
    conversation.heap_bytes() + keys.heap_bytes() + size_of::<Live>() + id.as_str().len() + MAP_ENTRY_BYTES
}

impl Inner {
    pub(super) fn put_back(&mut self, id: &ConversationId, live: Option<Box<Live>>) {
        if let Some(live) = live {
            self.live.insert(id.clone(), live);
        }
    }

    pub(super) fn insert(
        &mut self,
        shared: &Shared,
        id: &ConversationId,
        conversation: Conversation,
        keys: KnownKeys,
        dirty: bool,
        writing: bool,
    ) {
        let bytes = live_bytes(&conversation, &keys, id);
        shared.record_bytes.fetch_add(bytes, Ordering::Relaxed);
        let live = Live { conversation, dirty, writing, keys, touched: true, bytes };
        self.live.insert(id.clone(), Box::new(live));
    }

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
