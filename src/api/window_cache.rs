//! Windows as they were last written out, so that reading one again, unchanged, costs a lookup.
//!
//! A window is a function of conversation, version and budget: an entry of the current version is never stale. Agents
//! and retries read a window several times between two appends; planning it again would give the same bytes.

use bytes::Bytes;
use quick_cache::Weighter;
use quick_cache::sync::Cache;

use crate::conversation::ConversationId;

/// What is asked of a current window: the conversation and `budget_tokens`.
type Key = (ConversationId, Option<u64>);

/// Bytes an entry takes beside the answer.
const ENTRY_OVERHEAD_BYTES: u64 = 256;
/// What an answer is guessed to take, to size the cache's own tables.
const TYPICAL_ANSWER_BYTES: u64 = 16 * 1024;

/// An answer and what it was made from.
#[derive(Clone)]
pub(crate) struct Rendered {
    pub version: u64,
    pub used_tokens: u64,
    pub body: Bytes,
}

/// The newest answer for each key, within a bound of bytes.
pub(crate) struct WindowCache(Cache<Key, Rendered, Weight>);

impl WindowCache {
    pub(crate) fn new(bytes: u64) -> WindowCache {
        WindowCache(Cache::with_weighter((bytes / TYPICAL_ANSWER_BYTES) as usize + 16, bytes, Weight))
    }

    /// The answer as of `version`, if it is the one kept.
    pub(crate) fn get(&self, key: &Key, version: u64) -> Option<Rendered> {
        self.0.get(key).filter(|rendered| rendered.version == version)
    }

    pub(crate) fn put(&self, key: Key, rendered: Rendered) {
        self.0.insert(key, rendered);
    }
}

#[derive(Clone)]
struct Weight;

impl Weighter<Key, Rendered> for Weight {
    fn weight(&self, (id, _): &Key, rendered: &Rendered) -> u64 {
        ENTRY_OVERHEAD_BYTES + (id.as_str().len() + rendered.body.len()) as u64
    }
}
