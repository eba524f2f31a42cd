//! Which group a conversation belongs to. Pure, and fixed for ever: changing it would lose every conversation.

use xxhash_rust::xxh3::xxh3_64;

use crate::conversation::ConversationId;

/// Raft groups that conversations are spread over.
pub const GROUPS: u16 = 256;

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
