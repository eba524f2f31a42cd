//! One digest over everything a group holds, equal on replicas that applied the same entries, wherever their journals
//! keep the messages. Message bytes count by the checksums that records carry.

use xxhash_rust::xxh3::Xxh3;

use super::StoreError;
use super::group::GroupStore;
use super::runs::{CHANGE_RUNS, EVENT_RUNS};
use crate::conversation::{ConversationId, EVENT_RUN};

/// Conversations looked up at a time.
const IDS_AT_A_TIME: usize = 256;
/// The state is read again so often when it changed meanwhile.
const ATTEMPTS_MAX: usize = 4;

impl GroupStore {
    /// The log index that is applied, and the digest of the state as of it. `None` when the state did not hold still, or
    /// is partly newer than its index, as it is just after a snapshot. Reads everything, so it does IO.
    pub(crate) fn logical_digest(&self) -> Result<Option<(u64, u128)>, StoreError> {
        for _ in 0..ATTEMPTS_MAX {
            let before = self.applied().0;
            let digested = match self.digest_all() {
                // A snapshot replaces what was being read.
                Err(error) if error.is_unreadable() => return Ok(None),
                // What was looked for may have been replaced or forgotten since.
                Err(_) if self.applied().0 != before => continue,
                digested => digested?,
            };
            let index = before.map_or(0, |at| at.index);
            if self.applied().0 == before && !self.is_installing() {
                return Ok((digested.newest <= index).then_some((index, digested.digest)));
            }
        }
        Ok(None)
    }

    fn digest_all(&self) -> Result<Digested, StoreError> {
        let (mut hasher, mut newest) = (Xxh3::new(), 0);
        let mut after: Option<ConversationId> = None;
        loop {
            let ids = self.ids_after("", after.as_ref().map(ConversationId::as_str), IDS_AT_A_TIME)?;
            for id in &ids {
                newest = newest.max(self.digest_one(id, &mut hasher)?);
            }
            match ids.into_iter().next_back() {
                Some(last) => after = Some(last),
                None => return Ok(Digested { digest: hasher.digest128(), newest }),
            }
        }
    }

    /// Answers the log index of the conversation's last change.
    fn digest_one(&self, id: &ConversationId, hasher: &mut Xxh3) -> Result<u64, StoreError> {
        let Some((state, keys)) = self.with_its_keys(id)? else { return Ok(0) };
        hasher.update(id.as_str().as_bytes());
        hasher.update(&[0]);
        hasher.update(&state.logical_digest().to_le_bytes());
        for i in 0..state.sealed_event_runs() {
            let run =
                self.with_outside(|outside| outside.run_in_passing(&EVENT_RUNS, id, 1 + i * EVENT_RUN))?;
            hasher.update(&run.logical_digest().to_le_bytes());
        }
        for number in 0..state.sealed_change_runs() {
            let run = self.with_outside(|outside| outside.run_in_passing(&CHANGE_RUNS, id, number))?;
            hasher.update(&run.logical_digest().to_le_bytes());
        }
        for (number, key, record) in keys {
            hasher.update(&number.to_le_bytes());
            hasher.update(&key);
            hasher.update(&record);
        }
        Ok(state.changed_index())
    }
}

struct Digested {
    digest: u128,
    /// The log index of the last change in it.
    newest: u64,
}
