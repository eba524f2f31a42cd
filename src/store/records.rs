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

/// Key and value of one chunk.
type PhysicalRecord = (Vec<u8>, Vec<u8>);

/// Reads a logical value.
pub(crate) fn load(index: &dyn Index, key: &[u8]) -> Result<Option<Bytes>, IndexError> {
    let chunks = chunks_of(index, key)?;
    if chunks.is_empty() { Ok(None) } else { Ok(Some(whole(&chunks)?)) }
}

/// The chunks of a logical value, as far as they are there.
fn chunks_of(index: &dyn Index, key: &[u8]) -> Result<Vec<PhysicalRecord>, IndexError> {
    let mut found = Vec::new();
    let mut chunks = 1;
    while found.len() < usize::from(chunks) {
        let physical = value::chunk_key(key, found.len() as u16);
        let Some(record) = index.get(&physical)? else { break };
        if found.is_empty() {
            chunks = value::decode(&physical, &record)?.0;
        }
        found.push((physical, record));
    }
    Ok(found)
}

fn whole(chunks: &[PhysicalRecord]) -> Result<Bytes, IndexError> {
    let mut whole = Vec::new();
    for (physical, record) in chunks {
        let (count, payload) = value::decode(physical, record)?;
        if usize::from(count) != chunks.len() {
            return Err(IndexError::Corrupt {
                key: value::printable(physical),
                reason: "chunks are missing",
            });
        }
        whole.extend_from_slice(payload);
    }
    Ok(whole.into())
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
        let old = chunks_of(self.index, key)?;
        self.set(old, value::encode(key, value));
        Ok(())
    }

    /// Removes a logical value, if it is there.
    pub(crate) fn remove(&mut self, key: &[u8]) -> Result<(), IndexError> {
        let old = chunks_of(self.index, key)?;
        self.set(old, Vec::new());
        Ok(())
    }

    /// Replaces a logical value by what is made of it, where no bytes stand for no value. `None` says that it is not what it
    /// should be.
    pub(crate) fn update(
        &mut self,
        key: &[u8],
        change: impl FnOnce(Bytes) -> Option<Vec<u8>>,
    ) -> Result<(), IndexError> {
        let old = chunks_of(self.index, key)?;
        let value = change(whole(&old)?).ok_or_else(|| IndexError::Corrupt {
            key: value::printable(key),
            reason: "undecodable record",
        })?;
        self.set(old, if value.is_empty() { Vec::new() } else { value::encode(key, &value) });
        Ok(())
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

    /// Puts chunks in the place of others.
    fn set(&mut self, old: Vec<PhysicalRecord>, new: Vec<PhysicalRecord>) {
        for (number, (physical, record)) in old.into_iter().enumerate() {
            self.tally.subtract(&physical, &record);
            if number >= new.len() {
                self.batch.remove(physical);
            }
        }
        for (physical, record) in new {
            self.tally.add(&physical, &record);
            self.batch.put(physical, record);
        }
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
        writer
            .update(b"g\x01a", |old| {
                assert_eq!(old, vec![1; 0]);
                Some(vec![3; 8_000])
            })
            .unwrap();
        tally = writer.commit(b"g\0meta", |_| Vec::new()).unwrap();
        assert_eq!(tally, scanned(&index, b"g"));
        let mut writer = Writer::new(&index, tally);
        writer
            .update(b"g\x01a", |old| {
                assert_eq!(old, vec![3; 8_000]);
                Some(Vec::new())
            })
            .unwrap();
        writer.update(b"g\x01never", |old| old.is_empty().then(Vec::new)).unwrap();
        assert!(writer.update(b"g\x01b", |_| None).is_err());
        tally = writer.commit(b"g\0meta", |_| Vec::new()).unwrap();
        assert_eq!(load(&index, b"g\x01a").unwrap(), None);

        let mut writer = Writer::new(&index, tally);
        writer.remove(b"g\x01b").unwrap();
        writer.remove(b"g\x01missing").unwrap();
        tally = writer.commit(b"g\0meta", |_| Vec::new()).unwrap();
        assert_eq!(tally, scanned(&index, b"g"));
        assert_eq!(tally, Tally::default());
        assert_eq!(load(&index, b"g\x01b").unwrap(), None);
    }
}
