//! Proves that a group's part of the index is complete: every checksum, the number of records and their digest.
//!
//! A checksum per record cannot see a record that is missing or stale, and the engine may lose records silently
//! when the machine loses power or the process dies at a bad moment.

use super::group::GroupStore;
use super::keys::{self, Kind};
use super::records::Tally;
use super::{StoreError, value};

impl GroupStore {
    /// Verifies the group's part of the index unless that was done since the start. Reads all of it.
    pub(crate) fn ensure_verified(&self) -> Result<(), StoreError> {
        if self.inner.lock().verified { Ok(()) } else { self.verify() }
    }

    /// Verifies the group's part of the index, whether or not that was done before.
    pub(super) fn verify(&self) -> Result<(), StoreError> {
        let _index = self.index_lock.lock();
        let expected = self.inner.lock().tally;
        let found = self.scan_tally()?;
        if found != expected {
            return Err(StoreError::Disagrees {
                group: self.group,
                expected: expected.records,
                found: found.records,
            });
        }
        self.inner.lock().verified = true;
        Ok(())
    }

    fn scan_tally(&self) -> Result<Tally, StoreError> {
        let prefix = keys::group_prefix(self.group);
        let mut tally = Tally::default();
        for record in self.shared.index.scan(&prefix, &prefix) {
            let (physical, record) = record?;
            value::decode(&physical, &record)?;
            if physical.get(2) != Some(&(Kind::Meta as u8)) {
                tally.add(&physical, &record);
            }
        }
        Ok(tally)
    }
}
