//! Physical records of the index: small checksummed chunks of a logical value.
//!
//! The index engine keeps values of a few kilobytes well and larger ones badly, so a logical value is cut into
//! chunks under `key | chunk number (u16 BE)`. Each chunk carries a version and a CRC32C over key and payload:
//! a value that moved to another key is as wrong as a flipped bit.

use super::index::IndexError;

/// Largest payload of one chunk.
pub(crate) const CHUNK_BYTES: usize = 3_500;

const VERSION: u8 = 1;
const HEADER_BYTES: usize = 1 + 4 + 2;

/// The physical key of a chunk.
pub(crate) fn chunk_key(key: &[u8], chunk: u16) -> Vec<u8> {
    let mut physical = Vec::with_capacity(key.len() + 2);
    physical.extend_from_slice(key);
    physical.extend_from_slice(&chunk.to_be_bytes());
    physical
}

/// Splits a physical key into logical key and chunk number.
pub(crate) fn split_key(physical: &[u8]) -> Option<(&[u8], u16)> {
    let at = physical.len().checked_sub(2)?;
    let chunk = u16::from_be_bytes(physical[at..].try_into().ok()?);
    Some((&physical[..at], chunk))
}

/// Cuts a logical value into physical records. Values are bounded by the callers far below `u16::MAX` chunks.
pub(crate) fn encode(key: &[u8], value: &[u8]) -> Vec<(Vec<u8>, Vec<u8>)> {
    let chunks = value.chunks(CHUNK_BYTES).count().max(1);
    let total = u16::try_from(chunks).expect("records are bounded well below 200 MB");
    (0..chunks)
        .map(|i| {
            let payload = &value[i * CHUNK_BYTES..value.len().min((i + 1) * CHUNK_BYTES)];
            let physical = chunk_key(key, i as u16);
            let mut record = Vec::with_capacity(HEADER_BYTES + payload.len());
            record.push(VERSION);
            record.extend_from_slice(&checksum(&physical, total, payload).to_le_bytes());
            record.extend_from_slice(&total.to_le_bytes());
            record.extend_from_slice(payload);
            (physical, record)
        })
        .collect()
}

/// Checks a physical record; returns the number of chunks of its value and its payload.
pub(crate) fn decode<'a>(physical: &[u8], record: &'a [u8]) -> Result<(u16, &'a [u8]), IndexError> {
    let corrupt = |reason| IndexError::Corrupt { key: printable(physical), reason };
    if record.len() < HEADER_BYTES {
        return Err(corrupt("record shorter than its header"));
    }
    if record[0] != VERSION {
        return Err(corrupt("unknown record version"));
    }
    let stored = u32::from_le_bytes([record[1], record[2], record[3], record[4]]);
    let total = u16::from_le_bytes([record[5], record[6]]);
    let payload = &record[HEADER_BYTES..];
    if checksum(physical, total, payload) != stored {
        return Err(corrupt("checksum mismatch"));
    }
    Ok((total, payload))
}

/// A key as text for logs and errors.
pub(crate) fn printable(key: &[u8]) -> String {
    key.escape_ascii().to_string()
}

fn checksum(physical: &[u8], total: u16, payload: &[u8]) -> u32 {
    let crc = crc32c::crc32c_append(u32::from(total), physical);
    crc32c::crc32c_append(crc, payload)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_value_survives(key in proptest::collection::vec(any::<u8>(), 1..40),
                              value in proptest::collection::vec(any::<u8>(), 0..12_000)) {
            let records = encode(&key, &value);
            let mut back = Vec::new();
            for (i, (physical, record)) in records.iter().enumerate() {
                prop_assert_eq!(split_key(physical), Some((&key[..], i as u16)));
                let (total, payload) = decode(physical, record).unwrap();
                prop_assert_eq!(usize::from(total), records.len());
                back.extend_from_slice(payload);
            }
            prop_assert_eq!(back, value);
        }

        #[test]
        fn any_flipped_bit_is_seen(value in proptest::collection::vec(any::<u8>(), 0..64), bit in any::<usize>()) {
            let (physical, mut record) = encode(b"key", &value).remove(0);
            let bit = bit % (record.len() * 8);
            record[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(decode(&physical, &record).is_err());
        }

        #[test]
        fn arbitrary_bytes_never_panic(record in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = decode(b"key", &record);
        }
    }

    #[test]
    fn golden_record() {
        let (physical, record) = encode(b"k", b"v").remove(0);
        assert_eq!(physical, b"k\0\0");
        assert_eq!(record, [1, 41, 243, 254, 42, 1, 0, b'v']);
    }
}
