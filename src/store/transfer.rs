//! A group's state as a sequence of self-contained blocks, and back: what a snapshot carries.
//!
//! Messages travel with their bytes, since the receiver's journal will hold them elsewhere. The bytes of a document
//! (record or run) come first, in blocks of bounded size, then the document itself; the receiver gives its messages
//! their new locations in the order of [`Conversation::visit_locations`] and its like.
//!
//! Blocks are not a point-in-time view: a conversation may be newer than the snapshot says. Its `changed_index`
//! tells apply which entries it already holds. The same index tells which conversations a receiver lacks that has
//! applied its log up to somewhere: only those travel. [`super::install`] takes them in.

use bytes::{BufMut, Bytes, BytesMut};

use super::StoreError;
use super::fresh::{Outside, keys_missing};
use super::group::GroupStore;
use super::key_runs::key_runs_of;
use super::runs::{CHANGE_RUNS, EVENT_RUNS};
use crate::conversation::{
    ChangeRun, Conversation, ConversationId, EVENT_RUN, EventRun, HistoryError, Location,
};

const VERSION: u8 = 1;
/// Message bytes collected into one block before it is sent; a larger message is a block of its own.
const BODIES_BLOCK_BYTES: usize = 1 << 20;
/// Idempotency records in one block.
pub(super) const KEYS_PER_BLOCK: usize = 1_000;
/// Conversations looked up at a time while exporting.
const IDS_AT_A_TIME: usize = 256;

/// Shows every message location of a document, to be read or replaced.
pub(super) type VisitLocations<'a> = &'a mut dyn FnMut(&mut dyn FnMut(&mut Location));
/// Takes the blocks of an export one by one.
pub(super) type Emit<'a> = &'a mut dyn FnMut(Block) -> Result<(), StoreError>;
/// An idempotency record: its number, the digest of its key, its encoding.
type KeyRecord = (u64, [u8; 16], Bytes);

/// What an interrupted transfer of the same group brought.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Resume {
    /// What it brought is as of this log index or later.
    pub(crate) since: u64,
    /// It brought the conversations with ids up to this one; all of them, if `None`.
    pub(crate) upto: Option<ConversationId>,
}

/// One piece of a snapshot. Ordinals are sent and persisted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Block {
    /// Bytes of the next messages of the document that follows.
    Bodies(Vec<Bytes>),
    Conversation {
        id: ConversationId,
        record: Bytes,
    },
    EventRun {
        id: ConversationId,
        run: Bytes,
    },
    ChangeRun {
        id: ConversationId,
        run: Bytes,
    },
    Keys {
        id: ConversationId,
        records: Vec<KeyRecord>,
    },
}

impl Block {
    pub(crate) fn encode(&self) -> Bytes {
        let mut out = BytesMut::new();
        out.put_u8(VERSION);
        match self {
            Self::Bodies(bodies) => {
                out.put_u8(1);
                out.put_u32_le(bodies.len() as u32);
                for body in bodies {
                    out.put_u32_le(crc32c::crc32c(body));
                    put_bytes(&mut out, body);
                }
            }
            Self::Conversation { id, record } => put_document(&mut out, 2, id, record),
            Self::EventRun { id, run } => put_document(&mut out, 3, id, run),
            Self::ChangeRun { id, run } => put_document(&mut out, 4, id, run),
            Self::Keys { id, records } => {
                out.put_u8(5);
                put_bytes(&mut out, id.as_str().as_bytes());
                out.put_u32_le(records.len() as u32);
                for (number, digest, record) in records {
                    out.put_u64_le(*number);
                    out.put_slice(digest);
                    put_bytes(&mut out, record);
                }
            }
        }
        out.freeze()
    }

    /// Decodes a block; for bodies also their offsets in the encoding and their checksums.
    pub(super) fn decode(bytes: &Bytes) -> Option<(Self, Vec<(u32, u32)>)> {
        let mut reader = BlockReader { bytes, at: 0 };
        if reader.u8()? != VERSION {
            return None;
        }
        let kind = reader.u8()?;
        if kind == 1 {
            let (mut bodies, mut places) = (Vec::new(), Vec::new());
            for _ in 0..reader.u32()? {
                let crc = reader.u32()?;
                let body = reader.bytes()?;
                places.push(((reader.at - body.len()) as u32, crc));
                bodies.push(body);
            }
            return Some((Self::Bodies(bodies), places));
        }
        let id = ConversationId::parse(std::str::from_utf8(&reader.bytes()?).ok()?).ok()?;
        let block = match kind {
            2 => Self::Conversation { id, record: reader.bytes()? },
            3 => Self::EventRun { id, run: reader.bytes()? },
            4 => Self::ChangeRun { id, run: reader.bytes()? },
            5 => {
                let mut records = Vec::new();
                for _ in 0..reader.u32()? {
                    let number = reader.u64()?;
                    let digest = reader.take(16)?[..].try_into().ok()?;
                    records.push((number, digest, reader.bytes()?));
                }
                Self::Keys { id, records }
            }
            _ => return None,
        };
        Some((block, Vec::new()))
    }
}

/// The conversation that an encoded block completes, if it does.
pub(crate) fn completes(block: &Bytes) -> Option<ConversationId> {
    let mut reader = BlockReader { bytes: block, at: 0 };
    if reader.u8()? != VERSION || reader.u8()? != 2 {
        return None;
    }
    ConversationId::parse(std::str::from_utf8(&reader.bytes()?).ok()?).ok()
}

impl GroupStore {
    /// Feeds what changed after log index `base` to `emit`, block by block, less what an interrupted transfer
    /// brought. Reads message bytes, so it does IO.
    pub(crate) fn export(
        &self,
        base: Option<u64>,
        resume: Option<&Resume>,
        emit: Emit<'_>,
    ) -> Result<(), StoreError> {
        let _reading = self.reading();
        let Some(Resume { since, upto }) = resume else { return self.export_range(None, None, base, emit) };
        if upto.is_some() {
            self.export_range(upto.as_ref(), None, base, emit)?;
        }
        self.export_range(None, upto.as_ref(), Some(*since), emit)
    }

    /// Conversations with an id in `(after, upto]` that changed after log index `since`.
    fn export_range(
        &self,
        after: Option<&ConversationId>,
        upto: Option<&ConversationId>,
        since: Option<u64>,
        emit: Emit<'_>,
    ) -> Result<(), StoreError> {
        let mut after = after.cloned();
        loop {
            let ids = self.ids_after("", after.as_ref().map(ConversationId::as_str), IDS_AT_A_TIME)?;
            for id in &ids {
                if upto.is_some_and(|upto| id > upto) {
                    return Ok(());
                }
                let changed = self.read(id, |c, _| c.changed_index())?;
                if changed.is_some() && changed > since {
                    self.export_conversation(id, emit)?;
                }
            }
            match ids.into_iter().next_back() {
                Some(last) => after = Some(last),
                None => return Ok(()),
            }
        }
    }

    fn export_conversation(&self, id: &ConversationId, emit: Emit<'_>) -> Result<(), StoreError> {
        let Some((mut state, keys)) = self.with_its_keys(id)? else { return Ok(()) };
        for i in 0..state.sealed_event_runs() {
            let run =
                self.with_outside(|outside| outside.run_in_passing(&EVENT_RUNS, id, 1 + i * EVENT_RUN))?;
            let mut run = EventRun::clone(&run);
            self.emit_bodies(&mut |visit| run.visit_locations(visit), emit)?;
            emit(Block::EventRun { id: id.clone(), run: run.encode() })?;
        }
        for number in 0..state.sealed_change_runs() {
            let run = self.with_outside(|outside| outside.run_in_passing(&CHANGE_RUNS, id, number))?;
            let mut run = ChangeRun::clone(&run);
            self.emit_bodies(&mut |visit| run.visit_locations(visit), emit)?;
            emit(Block::ChangeRun { id: id.clone(), run: run.encode() })?;
        }
        for records in keys.chunks(KEYS_PER_BLOCK) {
            emit(Block::Keys { id: id.clone(), records: records.to_vec() })?;
        }
        self.emit_bodies(&mut |visit| state.visit_locations(visit), emit)?;
        emit(Block::Conversation { id: id.clone(), record: state.encode() })
    }

    /// A conversation's record with the idempotency records it counts, which may be forgotten at any moment: then
    /// the record is read again.
    pub(super) fn with_its_keys(
        &self,
        id: &ConversationId,
    ) -> Result<Option<(Conversation, Vec<KeyRecord>)>, StoreError> {
        loop {
            let Some(state) = self.read(id, |c, _| c.clone())? else { return Ok(None) };
            let numbers = state.key_numbers();
            let mut keys = Vec::new();
            for run in key_runs_of(numbers.clone()) {
                let run = self.with_outside(|outside| outside.key_run(id, run))?.into_iter();
                let counted = run.filter(|(number, _)| numbers.contains(number));
                keys.extend(counted.map(|(number, (digest, record))| (number, digest, record.encode())));
            }
            if keys.len() as u64 == numbers.end - numbers.start {
                return Ok(Some((state, keys)));
            }
            if self.read(id, |c, _| c.key_numbers() == numbers)? == Some(true) {
                return Err(keys_missing(id).into());
            }
        }
    }

    fn emit_bodies(&self, visit: VisitLocations<'_>, emit: Emit<'_>) -> Result<(), StoreError> {
        let mut locations = Vec::new();
        visit(&mut |location| locations.push(*location));
        by_block(&locations, BODIES_BLOCK_BYTES)
            .try_for_each(|places| emit(Block::Bodies(self.shared.bodies_in_passing(places)?)))
    }

    /// A look at what is outside the records, unless that cannot be read.
    pub(super) fn with_outside<T>(
        &self,
        look: impl FnOnce(&Outside<'_>) -> Result<T, HistoryError>,
    ) -> Result<T, StoreError> {
        let inner = self.lock_readable()?;
        Ok(look(&Outside::new(self, &inner.fresh, inner.writing.as_deref()))?)
    }
}

/// Messages in portions of a block each.
pub(super) fn by_block(places: &[Location], block_bytes: usize) -> impl Iterator<Item = &[Location]> {
    let mut size = 0;
    places.chunk_by(move |at, _| {
        size += at.len as usize;
        let more = size < block_bytes;
        if !more {
            size = 0;
        }
        more
    })
}

fn put_bytes(out: &mut BytesMut, bytes: &[u8]) {
    out.put_u32_le(bytes.len() as u32);
    out.put_slice(bytes);
}

fn put_document(out: &mut BytesMut, kind: u8, id: &ConversationId, document: &[u8]) {
    out.put_u8(kind);
    put_bytes(out, id.as_str().as_bytes());
    put_bytes(out, document);
}

struct BlockReader<'a> {
    bytes: &'a Bytes,
    at: usize,
}

impl BlockReader<'_> {
    fn take(&mut self, n: usize) -> Option<Bytes> {
        let end = self.at.checked_add(n).filter(|end| *end <= self.bytes.len())?;
        let taken = self.bytes.slice(self.at..end);
        self.at = end;
        Some(taken)
    }

    fn u8(&mut self) -> Option<u8> {
        Some(self.take(1)?[0])
    }

    fn u32(&mut self) -> Option<u32> {
        Some(u32::from_le_bytes(self.take(4)?[..].try_into().ok()?))
    }

    fn u64(&mut self) -> Option<u64> {
        Some(u64::from_le_bytes(self.take(8)?[..].try_into().ok()?))
    }

    fn bytes(&mut self) -> Option<Bytes> {
        let n = self.u32()? as usize;
        self.take(n)
    }
}
