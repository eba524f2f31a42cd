//! Marks: how far things beside the log have come with a conversation. Replicated, but no part of its history: a mark
//! changes no version.
//!
//! One entry of a group's log carries the marks of many conversations, so that keeping them costs little: one entry, one
//! share of an fsync. Marks only ever go forward, so applying one again, late, or from a former leader does no harm.

use bytes::Bytes;

use super::codec::{CodecError, Reader, Writer};
use super::command::{Command, FrameLocation};
use super::message::Location;
use super::trims::{self, Trims};
use super::{Conversation, ConversationId};

/// Most marks in one entry: applying it loads as many records under the group's lock.
pub const MAX_MARKS: usize = 512;

/// The first byte of encoded marks; that of a command is the version of its format, and far smaller.
const FORMAT: u8 = 0x81;

/// How far the archive has a conversation.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Mark {
    pub id: ConversationId,
    /// The archive holds everything up to this version.
    pub archived_version: u64,
}

/// Marks of conversations of one group, by id, each once.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Marks(Vec<Mark>);

impl Marks {
    /// Of several marks of one conversation the furthest counts.
    ///
    /// # Panics
    /// When there are more than [`MAX_MARKS`].
    pub fn new(mut marks: Vec<Mark>) -> Marks {
        marks.sort_unstable_by(|a, b| a.id.cmp(&b.id).then(b.archived_version.cmp(&a.archived_version)));
        marks.dedup_by(|later, kept| later.id == kept.id);
        assert!(marks.len() <= MAX_MARKS, "the caller splits what is more");
        Marks(marks)
    }

    pub fn as_slice(&self) -> &[Mark] {
        &self.0
    }

    pub fn encode(&self) -> Bytes {
        let ids: usize = self.0.iter().map(|mark| mark.id.as_str().len() + 8).sum();
        let mut out = Writer::new(FORMAT, 4 + ids);
        out.count(self.0.len());
        for mark in &self.0 {
            out.bytes(mark.id.as_str().as_bytes());
            out.varint(mark.archived_version);
        }
        out.finish()
    }

    pub fn decode(bytes: Bytes) -> Result<Marks, CodecError> {
        let mut input = Reader::new(bytes, FORMAT)?;
        let count = input.count()?;
        if count > MAX_MARKS {
            return Err(CodecError::Invalid("number of marks"));
        }
        let mut marks: Vec<Mark> = Vec::new();
        for _ in 0..count {
            let id = input.id()?;
            if marks.last().is_some_and(|last| last.id >= id) {
                return Err(CodecError::Invalid("order of marks"));
            }
            marks.push(Mark { id, archived_version: input.varint()? });
        }
        input.expect_end()?;
        Ok(Marks(marks))
    }
}

/// What one entry of a group's log asks for.
#[derive(Clone, PartialEq, Debug)]
pub enum Entry {
    /// With the location of every message body, in order.
    Command(Command, Vec<Location>),
    Marks(Marks),
    Trims(Trims),
}

impl Entry {
    /// Reads an entry back, given where its encoding lies.
    pub fn decode(bytes: Bytes, base: FrameLocation) -> Result<Entry, CodecError> {
        match bytes.first() {
            Some(&FORMAT) => Marks::decode(bytes).map(Entry::Marks),
            Some(&trims::FORMAT) => Trims::decode(bytes).map(Entry::Trims),
            _ => Command::decode(bytes, base).map(|(command, locations)| Entry::Command(command, locations)),
        }
    }
}

impl Conversation {
    /// Takes a mark in that the entry at Raft index `index` brings. False when it is no news.
    pub fn mark_archived(&mut self, index: u64, version: u64) -> bool {
        // The archive cannot hold what is not there: a mark beyond the version would hide what comes.
        let version = Some(version.min(self.version));
        let further = version > self.archived_version;
        if further {
            self.archived_version = version;
            self.changed_index = index;
        }
        further
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::testing::{Harness, append, put, text};
    use super::*;

    fn mark(id: &str, archived_version: u64) -> Mark {
        Mark { id: ConversationId::parse(id).unwrap(), archived_version }
    }

    #[test]
    fn golden_bytes() {
        let encoded = Marks::new(vec![mark("b", 300), mark("a", 0)]).encode();
        assert_eq!(&encoded[..], b"\x81\x02\x01a\x00\x01b\xac\x02");
    }

    #[test]
    fn marks_go_forward_only_and_change_no_version() {
        let mut real = Harness::new();
        real.apply(put());
        real.apply(append(vec![text(1), text(1)]));
        let conversation = real.conversation.as_mut().unwrap();
        assert_eq!(conversation.archived_version(), None);
        let digest = conversation.logical_digest();
        for (index, version, archived) in [(10, 0, 0), (11, 1, 1), (12, 0, 1), (13, 1, 1), (14, 99, 2)] {
            let before = conversation.clone();
            let moved = conversation.mark_archived(index, version);
            assert_eq!(moved, *conversation != before);
            assert_eq!(conversation.archived_version(), Some(archived));
            assert_eq!(conversation.changed_index() == index, moved);
            assert_eq!(conversation.version(), 2);
            assert_eq!(Conversation::decode(conversation.encode()).as_ref(), Ok(&*conversation));
        }
        assert_ne!(conversation.logical_digest(), digest, "replicas must agree on marks too");
    }

    #[test]
    fn the_furthest_of_several_marks_counts() {
        let marks = Marks::new(vec![mark("a", 3), mark("b", 1), mark("a", 7), mark("a", 5)]);
        assert_eq!(marks.as_slice(), [mark("a", 7), mark("b", 1)]);
    }

    #[test]
    fn what_is_out_of_order_or_cut_is_refused() {
        for bytes in [&b"\x81\x02\x01b\x00\x01a\x00"[..], b"\x81\x02\x01a\x00\x01a\x00", b"\x81\x01\x00\x00"]
        {
            assert!(Marks::decode(Bytes::from_static(bytes)).is_err());
        }
        let encoded = Marks::new(vec![mark("a", 1), mark("b", 1_000)]).encode();
        for len in 0..encoded.len() {
            assert!(Entry::decode(encoded.slice(..len), FrameLocation::default()).is_err(), "{len}");
        }
    }

    proptest! {
        #[test]
        fn marks_come_back(versions in proptest::collection::btree_map("[a-z]{1,9}", any::<u64>(), 0..40)) {
            let marks = Marks::new(versions.iter().map(|(id, version)| mark(id, *version)).collect());
            prop_assert_eq!(Entry::decode(marks.encode(), FrameLocation::default()), Ok(Entry::Marks(marks)));
        }
    }
}
