//! How much of each segment is still located by the index, and how large an image of the index would be: what decides
//! whether reclaiming pays. An estimate, since the state changes while it is looked through.

use std::collections::BTreeMap;

use super::group::GroupStore;
use super::keys::{self, Kind};
use super::{StoreError, value};
use crate::conversation::{ChangeRun, Conversation, EventRun, Location};

/// What was found so far.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Survey {
    /// Bytes of message bodies by segment; segments without any may be missing.
    pub(crate) live: BTreeMap<u32, u64>,
    /// Bytes of the records themselves.
    pub(crate) record_bytes: u64,
}

impl GroupStore {
    /// Adds what the index holds of this group. `read` hears of the bytes read and may end the survey by an error.
    pub(crate) fn survey(
        &self,
        survey: &mut Survey,
        read: &mut dyn FnMut(usize) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let prefix = keys::group_prefix(self.group);
        let mut whole = Vec::new();
        for record in self.shared.index.scan(&prefix, &prefix) {
            let (physical, record) = record?;
            read(physical.len() + record.len())?;
            let (chunks, payload) = value::decode(&physical, &record)?;
            let Some((key, chunk)) = value::split_key(&physical) else { continue };
            if chunk == 0 {
                whole.clear();
            }
            whole.extend_from_slice(payload);
            if chunk + 1 == chunks {
                survey.add(key, std::mem::take(&mut whole));
            }
        }
        Ok(())
    }
}

impl Survey {
    fn add(&mut self, key: &[u8], document: Vec<u8>) {
        let is = |kind: Kind| key.get(2) == Some(&(kind as u8));
        if !is(Kind::Meta) {
            self.record_bytes += (key.len() + document.len()) as u64;
        }
        let mut found = Vec::new();
        let mut collect = |location: &mut Location| {
            if location.is_placed() {
                found.push(*location);
            }
        };
        let document = document.into();
        let seen = if is(Kind::Head) {
            Conversation::decode(document).map(|mut state| state.visit_locations(&mut collect))
        } else if is(Kind::EventRun) {
            EventRun::decode(document).map(|mut run| run.visit_locations(&mut collect))
        } else if is(Kind::ChangeRun) {
            ChangeRun::decode(document).map(|mut run| run.visit_locations(&mut collect))
        } else {
            Ok(())
        };
        if seen.is_err() {
            // Put together of chunks from before and after a checkpoint wrote it. An image verifies what it takes.
            return;
        }
        // A record shows some of its messages more than once.
        found.sort_unstable_by_key(|location| (location.segment, location.offset));
        found.dedup();
        for location in found {
            *self.live.entry(location.segment).or_default() += u64::from(location.len);
        }
    }
}
