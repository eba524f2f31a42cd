//! A group's state as a sequence of self-contained blocks, and back: what a snapshot carries.
//!
//! Messages travel with their bytes, since the receiver's journal will hold them elsewhere. The bytes of a document
//! (record or run) come first, in blocks of bounded size, then the document itself; the receiver gives its messages
//! their new locations in the order of [`Conversation::visit_locations`] and its like.
//!
//! Blocks are not a point-in-time view: a conversation may be newer than the snapshot says. Its `changed_index`
//! tells apply which entries it already holds.

use std::sync::atomic::Ordering;

use bytes::{BufMut, Bytes, BytesMut};

use super::fresh::Outside;
use super::group::{Applied, GroupStore};
use super::keys::{self, Kind};
use super::meta::Meta;
use super::records::{Tally, Writer};
use super::{Batch, StoreError};
use crate::conversation::{
    ChangeRun, Conversation, ConversationId, EVENT_RUN, EventRun, FrameLocation, History, IdempotencyIndex,
    IdempotencyRecord, Location,
};

const VERSION: u8 = 1;
/// Message bytes collected into one block before it is sent; a larger message is a block of its own.
const BODIES_BLOCK_BYTES: usize = 1 << 20;
/// Idempotency records in one block.
const KEYS_PER_BLOCK: u64 = 1_000;
/// Conversations looked up at a time while exporting.
const IDS_AT_A_TIME: usize = 256;
/// Physical records written or removed in one batch while installing.
const RECORDS_PER_BATCH: usize = 2_000;

/// Shows every message location of a document, to be read or replaced.
type VisitLocations<'a> = &'a mut dyn FnMut(&mut dyn FnMut(&mut Location));

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
        records: Vec<(u64, [u8; 16], Bytes)>,
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
    fn decode(bytes: &Bytes) -> Option<(Self, Vec<(u32, u32)>)> {
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

impl GroupStore {
    /// Feeds the group's state to `emit`, block by block. Reads message bytes, so it does IO.
    pub(crate) fn export(
        &self,
        emit: &mut dyn FnMut(Block) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let mut after: Option<ConversationId> = None;
        loop {
            let ids = self.ids_after("", after.as_ref().map(ConversationId::as_str), IDS_AT_A_TIME)?;
            for id in &ids {
                self.export_conversation(id, emit)?;
            }
            match ids.into_iter().next_back() {
                Some(last) => after = Some(last),
                None => return Ok(()),
            }
        }
    }

    fn export_conversation(
        &self,
        id: &ConversationId,
        emit: &mut dyn FnMut(Block) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let Some(mut state) = self.read(id, |c, _| c.clone())? else { return Ok(()) };
        for i in 0..state.sealed_event_runs() {
            let run = self.with_outside(|outside| outside.event_run(id, 1 + i * EVENT_RUN))?;
            let mut run = EventRun::clone(&run);
            self.emit_bodies(&mut |visit| run.visit_locations(visit), emit)?;
            emit(Block::EventRun { id: id.clone(), run: run.encode() })?;
        }
        for number in 0..state.sealed_change_runs() {
            let run = self.with_outside(|outside| outside.change_run(id, number))?;
            let mut run = ChangeRun::clone(&run);
            self.emit_bodies(&mut |visit| run.visit_locations(visit), emit)?;
            emit(Block::ChangeRun { id: id.clone(), run: run.encode() })?;
        }
        let mut numbers = state.key_numbers();
        while !numbers.is_empty() {
            let upto = numbers.end.min(numbers.start + KEYS_PER_BLOCK);
            let mut records = Vec::new();
            for number in numbers.start..upto {
                if let Some((digest, record)) = self.with_outside(|outside| outside.nth(id, number))? {
                    records.push((number, digest, record.encode()));
                }
            }
            emit(Block::Keys { id: id.clone(), records })?;
            numbers.start = upto;
        }
        self.emit_bodies(&mut |visit| state.visit_locations(visit), emit)?;
        emit(Block::Conversation { id: id.clone(), record: state.encode() })
    }

    fn emit_bodies(
        &self,
        visit: VisitLocations<'_>,
        emit: &mut dyn FnMut(Block) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let mut locations = Vec::new();
        visit(&mut |location| locations.push(*location));
        let (mut bodies, mut size) = (Vec::new(), 0);
        for location in locations {
            let body = self.shared.body(location)?;
            size += body.len();
            bodies.push(body);
            if size >= BODIES_BLOCK_BYTES {
                emit(Block::Bodies(std::mem::take(&mut bodies)))?;
                size = 0;
            }
        }
        if bodies.is_empty() { Ok(()) } else { emit(Block::Bodies(bodies)) }
    }

    fn with_outside<T>(&self, look: impl FnOnce(&Outside<'_>) -> T) -> T {
        let inner = self.inner.lock();
        look(&Outside::new(self, &inner.fresh, inner.writing.as_deref()))
    }

    /// Replaces the group's state by the blocks, which lie at the given places of this node's journal.
    ///
    /// The meta record goes first and comes back last, so that a crash in between shows as an index without the
    /// group's state; recovery then installs again from the journal.
    pub(crate) fn install(
        &self,
        applied: Applied,
        membership: Bytes,
        blocks: &mut dyn Iterator<Item = Result<(FrameLocation, Bytes), StoreError>>,
    ) -> Result<(), StoreError> {
        let _index = self.index_lock.lock();
        {
            let mut inner = self.inner.lock();
            let bytes: usize = inner.live.values().map(|live| live.bytes()).sum();
            self.shared.record_bytes.fetch_sub(bytes, Ordering::Relaxed);
            inner.live.clear();
            inner.fresh = Default::default();
            inner.installing = true;
        }
        self.clear_index()?;
        let mut importer = Importer {
            store: self,
            writer: Writer::new(&*self.shared.index, Tally::default()),
            places: Vec::new(),
        };
        for block in blocks {
            let (frame, bytes) = block?;
            importer.block(frame, &bytes)?;
        }
        let meta_key = keys::meta(self.group);
        let tally = importer.writer.commit(&meta_key, |tally| {
            Meta { applied: Some(applied), membership: membership.clone(), tally }.encode()
        })?;
        let mut inner = self.inner.lock();
        inner.applied = Some(applied);
        inner.persisted = Some(applied);
        inner.persisted_membership = membership.clone();
        inner.membership = membership;
        inner.tally = tally;
        inner.verified = true;
        inner.installing = false;
        inner.meta_dirty = true;
        Ok(())
    }

    pub(super) fn clear_index(&self) -> Result<(), StoreError> {
        let prefix = keys::group_prefix(self.group);
        loop {
            let mut batch = Batch::default();
            for record in self.shared.index.scan(&prefix, &prefix).take(RECORDS_PER_BATCH) {
                batch.remove(record?.0);
            }
            if batch.ops.is_empty() {
                return Ok(());
            }
            self.shared.index.write(batch)?;
        }
    }
}

/// Turns blocks into index records.
struct Importer<'a> {
    store: &'a GroupStore,
    writer: Writer<'a>,
    /// Where the messages of the coming document lie.
    places: Vec<Location>,
}

impl Importer<'_> {
    fn block(&mut self, frame: FrameLocation, bytes: &Bytes) -> Result<(), StoreError> {
        let group = self.store.group;
        let bad = || StoreError::Block { group };
        let (block, places) = Block::decode(bytes).ok_or_else(bad)?;
        match block {
            Block::Bodies(bodies) => {
                let located = bodies.iter().zip(places).map(|(body, (offset, crc))| Location {
                    segment: frame.segment,
                    offset: frame.offset + offset,
                    len: body.len() as u32,
                    crc,
                });
                self.places.extend(located);
                return Ok(());
            }
            Block::Conversation { id, record } => {
                let mut state = Conversation::decode(record).map_err(|_| bad())?;
                self.relocate(&mut |visit| state.visit_locations(visit))?;
                self.writer.put(&keys::head(group, &id), &state.encode())?;
            }
            Block::EventRun { id, run } => {
                let mut run = EventRun::decode(run).map_err(|_| bad())?;
                self.relocate(&mut |visit| run.visit_locations(visit))?;
                self.writer
                    .put(&keys::numbered(group, Kind::EventRun, &id, run.first_seq()), &run.encode())?;
            }
            Block::ChangeRun { id, run } => {
                let mut run = ChangeRun::decode(run).map_err(|_| bad())?;
                self.relocate(&mut |visit| run.visit_locations(visit))?;
                self.writer.put(&keys::numbered(group, Kind::ChangeRun, &id, run.number()), &run.encode())?;
            }
            Block::Keys { id, records } => {
                for (number, digest, record) in records {
                    IdempotencyRecord::decode(record.clone()).map_err(|_| bad())?;
                    self.writer.put(&keys::numbered(group, Kind::IdempotencyNumber, &id, number), &digest)?;
                    self.writer.put(&keys::idempotency(group, &id, &digest), &record)?;
                }
            }
        }
        self.flush_if_large()
    }

    /// Gives a document's messages the places that its bodies came to lie at.
    fn relocate(&mut self, visit: VisitLocations<'_>) -> Result<(), StoreError> {
        let mut places = std::mem::take(&mut self.places).into_iter();
        let mut complete = true;
        visit(&mut |location| match places.next() {
            Some(place) if place.len == location.len && place.crc == location.crc => *location = place,
            _ => complete = false,
        });
        if complete && places.next().is_none() {
            Ok(())
        } else {
            Err(StoreError::Block { group: self.store.group })
        }
    }

    fn flush_if_large(&mut self) -> Result<(), StoreError> {
        if self.writer.operations() >= RECORDS_PER_BATCH {
            let index = &*self.store.shared.index;
            let full = std::mem::replace(&mut self.writer, Writer::new(index, Tally::default()));
            let tally = full.commit_partial()?;
            self.writer = Writer::new(index, tally);
        }
        Ok(())
    }
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
