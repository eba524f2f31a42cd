//! Logical records over the physical index: read, and written in batches that keep a group's count and digest.

use bytes::Bytes;
use xxhash_rust::xxh3::xxh3_128;

use super::index::{Batch, Index, IndexError};
use super::value;

/// Number and digest of a group's physical records, all kinds but [`super::keys::Kind::Meta`].
///
/// The digest is a sum of hashes: order does not matter, and it can be kept up to date by differences.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Tally {
    pub(crate) records: u64,
    pub(crate) digest: u128,
}

impl Tally {
    pub(crate) fn add(&mut self, physical: &[u8], record: &[u8]) {
        self.records = self.records.wrapping_add(1);
        self.digest = self.digest.wrapping_add(hash(physical, record));
    }

    fn subtract(&mut self, physical: &[u8], record: &[u8]) {
        self.records = self.records.wrapping_sub(1);
        self.digest = self.digest.wrapping_sub(hash(physical, record));
    }
}

fn hash(physical: &[u8], record: &[u8]) -> u128 {
    // Records carry a CRC over key and value, so hashing the value hashes the key; the key's own hash keeps
    // two keys with colliding records apart.
    xxh3_128(physical).rotate_left(64) ^ xxh3_128(record)
}

/// Reads a logical value.
pub(crate) fn load(index: &dyn Index, key: &[u8]) -> Result<Option<Bytes>, IndexError> {
    let physical = value::chunk_key(key, 0);
    let Some(record) = index.get(&physical)? else { return Ok(None) };
    let (chunks, payload) = value::decode(&physical, &record)?;
    let mut whole = payload.to_vec();
    for chunk in 1..chunks {
        let physical = value::chunk_key(key, chunk);
        let missing = || IndexError::Corrupt { key: value::printable(&physical), reason: "missing chunk" };
        let record = index.get(&physical)?.ok_or_else(missing)?;
        whole.extend_from_slice(value::decode(&physical, &record)?.1);
    }
    Ok(Some(whole.into()))
}

/// Collects logical puts and removals into one atomic batch, keeping the tally.
pub(crate) struct Writer<'a> {
    index: &'a dyn Index,
    batch: Batch,
    tally: Tally,
}

impl<'a> Writer<'a> {
    pub(crate) fn new(index: &'a dyn Index, tally: Tally) -> Self {
        Self { index, batch: Batch::default(), tally }
    }

    /// Replaces a logical value. A key may appear once per batch.
    pub(crate) fn put(&mut self, key: &[u8], value: &[u8]) -> Result<(), IndexError> {
        let records = value::encode(key, value);
        self.remove_chunks(key, records.len() as u16)?;
        for (physical, record) in records {
            self.tally.add(&physical, &record);
            self.batch.put(physical, record);
        }
        Ok(())
    }

    /// Removes a logical value, if it is there.
    pub(crate) fn remove(&mut self, key: &[u8]) -> Result<(), IndexError> {
        self.remove_chunks(key, 0)
    }

    /// Writes the batch together with the group's meta record, which is not part of the tally.
    pub(crate) fn commit(
        mut self,
        meta_key: &[u8],
        meta: impl FnOnce(Tally) -> Vec<u8>,
    ) -> Result<Tally, IndexError> {
        for (physical, record) in value::encode(meta_key, &meta(self.tally)) {
            self.batch.put(physical, record);
        }
        self.index.write(self.batch)?;
        Ok(self.tally)
    }

    /// Writes the batch without touching the meta record.
    pub(crate) fn commit_partial(self) -> Result<Tally, IndexError> {
        self.index.write(self.batch)?;
        Ok(self.tally)
    }

    pub(crate) fn operations(&self) -> usize {
        self.batch.ops.len()
    }

    /// Takes the old value's chunks out of the tally, and those from `keep` on out of the index.
    fn remove_chunks(&mut self, key: &[u8], keep: u16) -> Result<(), IndexError> {
        let mut chunk = 0;
        let mut chunks = 1;
        while chunk < chunks {
            let physical = value::chunk_key(key, chunk);
            let Some(record) = self.index.get(&physical)? else { break };
            if chunk == 0 {
                chunks = value::decode(&physical, &record)?.0;
            }
            self.tally.subtract(&physical, &record);
            if chunk >= keep {
                self.batch.remove(physical);
            }
            chunk += 1;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::index::SledIndex;
    use super::*;

    fn scanned(index: &dyn Index, prefix: &[u8]) -> Tally {
        let mut tally = Tally::default();
        for record in index.scan(prefix, prefix) {
            let (key, record) = record.unwrap();
            if !key.starts_with(b"g\0meta") {
                tally.add(&key, &record);
            }
        }
        tally
    }

    #[test]
    fn the_tally_follows_growing_shrinking_and_removed_values() {
        let dir = tempfile::tempdir().unwrap();
        let index = SledIndex::open(dir.path(), 1 << 20).unwrap();
        let mut tally = Tally::default();
        for sizes in [[10, 9_000], [8_000, 5], [3_500, 3_501], [0, 7_000]] {
            let mut writer = Writer::new(&index, tally);
            writer.put(b"g\x01a", &vec![1; sizes[0]]).unwrap();
            writer.put(b"g\x01b", &vec![2; sizes[1]]).unwrap();
            tally = writer.commit(b"g\0meta", |t| t.records.to_le_bytes().to_vec()).unwrap();
            assert_eq!(tally, scanned(&index, b"g"));
            assert_eq!(load(&index, b"g\x01b").unwrap().unwrap(), vec![2; sizes[1]]);
        }
        let mut writer = Writer::new(&index, tally);
        writer.remove(b"g\x01b").unwrap();
        writer.remove(b"g\x01missing").unwrap();
        tally = writer.commit(b"g\0meta", |_| Vec::new()).unwrap();
        assert_eq!(tally, scanned(&index, b"g"));
        assert_eq!(tally.records, 1);
        assert_eq!(load(&index, b"g\x01b").unwrap(), None);
    }
}
