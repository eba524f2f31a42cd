//! Keys of the index: one ordered key space, grouped so that a group, a kind and a conversation are contiguous.
//!
//! `group (u16 BE) | kind (u8) | conversation id | 0x00 | suffix`. Ids hold no control characters, so the
//! terminator keeps id order. The physical record adds a chunk number (see [`super::value`]).

use crate::conversation::ConversationId;

/// What a record holds. The ordinals are persisted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    /// Applied log id, membership, count and digest of the group.
    Meta = 0,
    /// A conversation's record.
    Head = 1,
    /// A sealed run of message metas, by first seq.
    EventRun = 2,
    /// A sealed run of non-event changes, by its number.
    ChangeRun = 3,
    /// A run of idempotency keys and what is remembered of their requests, by its number. Ordinals 4 and 5 are spent.
    KeyRun = 6,
}

/// The prefix of everything a group has.
pub(crate) fn group_prefix(group: u16) -> Vec<u8> {
    group.to_be_bytes().to_vec()
}

/// The prefix of all records of one kind in a group.
pub(crate) fn kind_prefix(group: u16, kind: Kind) -> Vec<u8> {
    let mut key = group_prefix(group);
    key.push(kind as u8);
    key
}

/// The key of the group's meta record.
pub(crate) fn meta(group: u16) -> Vec<u8> {
    kind_prefix(group, Kind::Meta)
}

/// The key of a conversation's record.
pub(crate) fn head(group: u16, id: &ConversationId) -> Vec<u8> {
    with_id(group, Kind::Head, id, 0)
}

/// The first key of `Kind::Head` that may hold an id greater than or equal to `id_text`.
pub(crate) fn head_from(group: u16, id_text: &str) -> Vec<u8> {
    let mut key = kind_prefix(group, Kind::Head);
    key.extend_from_slice(id_text.as_bytes());
    key
}

/// The conversation id inside a `Kind::Head` key (chunk number already removed).
pub(crate) fn id_of_head(key: &[u8]) -> Option<ConversationId> {
    let id = key.get(3..)?.strip_suffix(&[0])?;
    ConversationId::parse(std::str::from_utf8(id).ok()?).ok()
}

/// The key of a run or numbered record.
pub(crate) fn numbered(group: u16, kind: Kind, id: &ConversationId, number: u64) -> Vec<u8> {
    let mut key = with_id(group, kind, id, 8);
    key.extend_from_slice(&number.to_be_bytes());
    key
}

fn with_id(group: u16, kind: Kind, id: &ConversationId, suffix_bytes: usize) -> Vec<u8> {
    let id = id.as_str().as_bytes();
    let mut key = Vec::with_capacity(3 + id.len() + 1 + suffix_bytes + 2);
    key.extend_from_slice(&group.to_be_bytes());
    key.push(kind as u8);
    key.extend_from_slice(id);
    key.push(0);
    key
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(text: &str) -> ConversationId {
        ConversationId::parse(text).unwrap()
    }

    #[test]
    fn heads_sort_like_their_ids() {
        let ids = ["a", "a-b", "a.b", "a:b", "aa", "b", "ü"];
        let keys: Vec<_> = ids.iter().map(|i| head(7, &id(i))).collect();
        assert!(keys.is_sorted());
        for (text, key) in ids.iter().zip(&keys) {
            assert_eq!(id_of_head(key), Some(id(text)));
            assert!(head_from(7, text) <= *key);
        }
    }

    #[test]
    fn golden_keys() {
        assert_eq!(meta(258), [1, 2, 0]);
        assert_eq!(numbered(1, Kind::EventRun, &id("c"), 129), [0, 1, 2, b'c', 0, 0, 0, 0, 0, 0, 0, 0, 129]);
        assert_eq!(numbered(1, Kind::KeyRun, &id("c"), 3), [0, 1, 6, b'c', 0, 0, 0, 0, 0, 0, 0, 0, 3]);
    }
}
