//! The meta record of a group: what its part of the index holds, as of one atomic batch.

use bytes::Bytes;

use super::group::Applied;
use super::records::Tally;

/// Raised when any record of the index changes its form: then the index is made anew of the journal.
const VERSION: u8 = 2;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Meta {
    pub(super) applied: Option<Applied>,
    pub(super) membership: Bytes,
    pub(super) tally: Tally,
}

impl Meta {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = vec![VERSION, u8::from(self.applied.is_some())];
        let at = self.applied.unwrap_or(Applied { term: 0, leader: 0, index: 0 });
        for field in [at.term, at.leader, at.index, self.tally.records] {
            out.extend_from_slice(&field.to_le_bytes());
        }
        out.extend_from_slice(&self.tally.digest.to_le_bytes());
        out.extend_from_slice(&self.membership);
        out
    }

    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let (head, membership) = bytes.split_at_checked(2 + 4 * 8 + 16)?;
        if head[0] != VERSION {
            return None;
        }
        let field = |i: usize| Some(u64::from_le_bytes(head.get(2 + 8 * i..10 + 8 * i)?.try_into().ok()?));
        let at = Applied { term: field(0)?, leader: field(1)?, index: field(2)? };
        let digest = u128::from_le_bytes(head[34..].try_into().ok()?);
        Some(Self {
            applied: (head[1] != 0).then_some(at),
            membership: Bytes::copy_from_slice(membership),
            tally: Tally { records: field(3)?, digest },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn survives_a_round_trip() {
        for applied in [None, Some(Applied { term: 1, leader: 2, index: 3 })] {
            let meta = Meta {
                applied,
                membership: Bytes::from_static(b"m"),
                tally: Tally { records: 4, digest: 5 << 70 },
            };
            assert_eq!(Meta::decode(&meta.encode()), Some(meta));
        }
        assert_eq!(Meta::decode(&[]), None);
        assert_eq!(Meta::decode(&[9; 60]), None);
    }

    #[test]
    fn golden_bytes() {
        let meta = Meta { applied: None, membership: Bytes::new(), tally: Tally { records: 1, digest: 2 } };
        let mut expected = vec![2, 0];
        expected.extend_from_slice(&[0; 24]);
        expected.extend_from_slice(&[1, 0, 0, 0, 0, 0, 0, 0, 2]);
        expected.extend_from_slice(&[0; 15]);
        assert_eq!(meta.encode(), expected);
    }
}
