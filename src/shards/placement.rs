//! Which group a conversation belongs to, and which nodes host a group. Pure.
//!
//! The former is fixed for ever: changing it would lose every conversation. The latter changes with the cluster.

use std::collections::BTreeMap;

use xxhash_rust::xxh3::xxh3_64;

use crate::conversation::ConversationId;

/// Raft groups that conversations are spread over.
pub const GROUPS: u16 = 256;

/// The group of the cluster's own state; it holds no conversation of a client.
pub const META_GROUP: u16 = GROUPS;

/// The nodes that host each group, by their permanent ids.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Placement(BTreeMap<u16, Vec<u128>>);

impl Placement {
    /// Hosts of each group in order of preference: the first should lead.
    pub fn new(hosts: impl IntoIterator<Item = (u16, Vec<u128>)>) -> Self {
        Self(hosts.into_iter().collect())
    }

    /// Whether it is not known yet who hosts what.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The hosts of a group, the preferred leader first; none for a group that is not placed.
    pub fn hosts(&self, group: u16) -> &[u128] {
        self.0.get(&group).map_or(&[], Vec::as_slice)
    }
}

/// The group of a conversation: the top byte of XXH3-64 over the id's UTF-8 bytes.
pub fn group_of(id: &ConversationId) -> u16 {
    (xxh3_64(id.as_str().as_bytes()) >> 56) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden_groups() {
        let groups: Vec<u16> = ["a", "chat-1", "user:42@example.com", "ünïcode"]
            .iter()
            .map(|id| group_of(&ConversationId::parse(id).unwrap()))
            .collect();
        assert_eq!(groups, [230, 13, 163, 179]);
    }

    #[test]
    fn ids_spread_evenly() {
        let mut counts = [0u32; GROUPS as usize];
        for i in 0..100_000 {
            counts[usize::from(group_of(&ConversationId::parse(&format!("conversation-{i}")).unwrap()))] += 1;
        }
        assert!(counts.iter().all(|c| (250..550).contains(c)), "{counts:?}");
    }
}
