//! Sealed history: runs of messages and of other changes that left the open record, and never change again.
//!
//! Message runs hold exactly [`EVENT_RUN`] messages and are found by the seq of their first; the changes of a
//! conversation (creation, settings, metadata, compactions, tombstone) are cut into runs by size and found by number.

use std::sync::Arc;

use bytes::Bytes;
use xxhash_rust::xxh3::xxh3_64;

use super::ConversationId;
use super::codec::{CodecError, Reader, Writer};
use super::message::{Location, MessageMeta, metas_encoded_len, read_metas, write_metas};
use super::policy::{Settings, read_settings, write_settings};

/// Messages in a sealed run.
pub const EVENT_RUN: u64 = 128;
/// Most changes in a run ...
pub(super) const MAX_CHANGES_PER_RUN: usize = 128;
/// ... which is also sealed once it takes about this many bytes.
pub(super) const CHANGE_RUN_BYTES: usize = 2 * 1024;

const FORMAT: u8 = 1;

/// Sealed history could not be read; says nothing about the request.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HistoryError {
    #[error("{what} {key} of conversation {id} is missing")]
    Missing { what: &'static str, key: u64, id: ConversationId },
    #[error("{0}")]
    Storage(String),
}

/// Sealed runs, as the store keeps them.
pub trait History {
    /// The run of [`EVENT_RUN`] messages that begins with `first_seq`.
    fn event_run(&self, id: &ConversationId, first_seq: u64) -> Result<Arc<EventRun>, HistoryError>;
    /// Change runs are numbered from 0.
    fn change_run(&self, id: &ConversationId, number: u64) -> Result<Arc<ChangeRun>, HistoryError>;
}

/// No seq, version or number of changes comes near this; decoders hold to it, so that arithmetic cannot overflow.
pub(super) const MAX_COUNT: u64 = 1 << 56;

/// The seq that begins the run which holds `seq`.
pub fn run_of(seq: u64) -> u64 {
    debug_assert!(seq > 0, "seqs begin at 1");
    (seq - 1) / EVENT_RUN * EVENT_RUN + 1
}

/// [`EVENT_RUN`] consecutive messages.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EventRun {
    first_seq: u64,
    metas: Box<[MessageMeta]>,
}

impl EventRun {
    pub(super) fn new(first_seq: u64, metas: Vec<MessageMeta>) -> EventRun {
        assert_eq!(metas.len() as u64, EVENT_RUN, "only full runs are sealed");
        assert_eq!(run_of(first_seq), first_seq, "runs begin at multiples of their length");
        EventRun { first_seq, metas: metas.into_boxed_slice() }
    }

    /// The key of the run.
    pub fn first_seq(&self) -> u64 {
        self.first_seq
    }

    /// The messages in order, beginning with [`Self::first_seq`].
    pub fn metas(&self) -> &[MessageMeta] {
        &self.metas
    }

    pub fn encode(&self) -> Bytes {
        let mut out = Writer::new(FORMAT, 20 * self.metas.len() + 16);
        out.varint(self.first_seq);
        write_metas(&mut out, 0, &self.metas);
        out.finish()
    }

    pub fn decode(bytes: Bytes) -> Result<EventRun, CodecError> {
        let mut input = Reader::new(bytes, FORMAT)?;
        let first_seq = input.varint()?;
        let metas = read_metas(&mut input, 0)?;
        input.expect_end()?;
        if first_seq == 0
            || first_seq > MAX_COUNT
            || run_of(first_seq) != first_seq
            || metas.len() as u64 != EVENT_RUN
        {
            return Err(CodecError::Invalid("event run"));
        }
        Ok(EventRun { first_seq, metas: metas.into_boxed_slice() })
    }

    /// Shows every location that has a place to `visit`, which may move it.
    pub fn visit_locations(&mut self, visit: &mut dyn FnMut(&mut Location)) {
        let locations = self.metas.iter_mut().map(|meta| &mut meta.location);
        locations.filter(|location| location.is_placed()).for_each(visit);
    }

    /// The run without the places of its messages. What planning needs is kept.
    pub(super) fn trimmed(mut self) -> EventRun {
        self.visit_locations(&mut Location::forget_place);
        self
    }

    /// The run with `first` as its first message.
    pub(super) fn beginning_with(mut self, first: &MessageMeta) -> EventRun {
        self.metas[0].clone_from(first);
        self
    }

    /// Equal on replicas that hold the same messages, wherever they keep them.
    pub fn logical_digest(&self) -> u64 {
        let mut nowhere = self.clone();
        nowhere.visit_locations(&mut Location::forget_place);
        xxh3_64(&nowhere.encode())
    }

    /// About the memory this run takes beyond itself.
    pub fn heap_bytes(&self) -> usize {
        metas_heap_bytes(&self.metas)
    }
}

pub(super) fn metas_heap_bytes(metas: &[MessageMeta]) -> usize {
    size_of_val(metas) + metas.iter().map(|meta| meta.parts.heap_bytes()).sum::<usize>()
}

/// One version of a conversation that is not an event. Creation is version 0 and always the first.
#[derive(Clone, PartialEq, Debug)]
pub struct Change {
    pub version: u64,
    pub kind: ChangeKind,
}

/// What changed.
#[derive(Clone, PartialEq, Debug)]
pub enum ChangeKind {
    Created(Arc<Settings>),
    /// The settings from this version on (metadata may have changed with them).
    Settings(Arc<Settings>),
    Metadata,
    Compaction(Summary),
    Tombstoned,
}

/// A range of the log and the messages that stand for it in windows.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Summary {
    pub from_seq: u64,
    pub to_seq: u64,
    /// Links between these count positions within the replacement.
    pub replacement: Arc<[MessageMeta]>,
}

/// Consecutive changes that left the open record.
#[derive(Clone, PartialEq, Debug)]
pub struct ChangeRun {
    number: u64,
    /// Changes (with creation) in the runs before this one.
    before: u64,
    changes: Box<[Change]>,
}

impl ChangeRun {
    pub(super) fn new(number: u64, before: u64, changes: Vec<Change>) -> ChangeRun {
        assert!(!changes.is_empty(), "an empty run is not sealed");
        ChangeRun { number, before, changes: changes.into_boxed_slice() }
    }

    /// The key of the run: runs are numbered from 0.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// How many changes (with creation) precede this run.
    pub fn before(&self) -> u64 {
        self.before
    }

    pub fn changes(&self) -> &[Change] {
        &self.changes
    }

    pub fn encode(&self) -> Bytes {
        let mut out = Writer::new(FORMAT, CHANGE_RUN_BYTES);
        out.varint(self.number);
        out.varint(self.before);
        write_changes(&mut out, &self.changes);
        out.finish()
    }

    pub fn decode(bytes: Bytes) -> Result<ChangeRun, CodecError> {
        let mut input = Reader::new(bytes, FORMAT)?;
        let number = input.varint()?;
        let before = input.varint()?;
        let changes = read_changes(&mut input)?;
        input.expect_end()?;
        if changes.is_empty() || number > MAX_COUNT || before > MAX_COUNT {
            return Err(CodecError::Invalid("change run"));
        }
        Ok(ChangeRun { number, before, changes: changes.into_boxed_slice() })
    }

    /// Shows every location to `visit`, which may move it.
    pub fn visit_locations(&mut self, visit: &mut dyn FnMut(&mut Location)) {
        for change in &mut self.changes {
            change.visit_locations(visit);
        }
    }

    /// Equal on replicas that hold the same changes, wherever they keep the messages.
    pub fn logical_digest(&self) -> u64 {
        let mut nowhere = self.clone();
        nowhere.visit_locations(&mut Location::forget_place);
        xxh3_64(&nowhere.encode())
    }

    /// About the memory this run takes beyond itself.
    pub fn heap_bytes(&self) -> usize {
        self.changes.iter().map(Change::heap_bytes).sum()
    }
}

impl Change {
    pub(super) fn visit_locations(&mut self, visit: &mut dyn FnMut(&mut Location)) {
        if let ChangeKind::Compaction(summary) = &mut self.kind {
            summary.visit_locations(visit);
        }
    }

    /// Counts settings that several changes share once for each: an estimate that errs on the safe side.
    pub(super) fn heap_bytes(&self) -> usize {
        let held = match &self.kind {
            ChangeKind::Created(settings) | ChangeKind::Settings(settings) => settings.heap_bytes(),
            ChangeKind::Compaction(summary) => metas_heap_bytes(&summary.replacement),
            ChangeKind::Metadata | ChangeKind::Tombstoned => 0,
        };
        size_of::<Change>() + held
    }

    /// About the bytes this change takes in an encoded run; the same on every replica.
    pub(super) fn encoded_len(&self) -> usize {
        match &self.kind {
            ChangeKind::Created(settings) | ChangeKind::Settings(settings) => {
                24 + settings.policy.json().len()
            }
            ChangeKind::Compaction(summary) => 16 + metas_encoded_len(&summary.replacement),
            ChangeKind::Metadata | ChangeKind::Tombstoned => 4,
        }
    }
}

impl Summary {
    pub(super) fn visit_locations(&mut self, visit: &mut dyn FnMut(&mut Location)) {
        let mut metas = self.replacement.to_vec();
        metas.iter_mut().for_each(|meta| visit(&mut meta.location));
        self.replacement = metas.into();
    }

    pub(super) fn write(&self, out: &mut Writer) {
        out.varint(self.from_seq);
        out.varint(self.to_seq);
        write_metas(out, 0, &self.replacement);
    }

    pub(super) fn read(input: &mut Reader) -> Result<Summary, CodecError> {
        let from_seq = input.varint()?;
        let to_seq = input.varint()?;
        if from_seq == 0 || from_seq > to_seq || to_seq > MAX_COUNT {
            return Err(CodecError::Invalid("summary range"));
        }
        Ok(Summary { from_seq, to_seq, replacement: read_metas(input, 0)?.into() })
    }
}

const CREATED: u8 = 0;
const SETTINGS: u8 = 1;
const METADATA: u8 = 2;
const COMPACTION: u8 = 3;
const TOMBSTONED: u8 = 4;

pub(super) fn write_changes(out: &mut Writer, changes: &[Change]) {
    out.count(changes.len());
    for change in changes {
        out.varint(change.version);
        match &change.kind {
            ChangeKind::Created(settings) => {
                out.u8(CREATED);
                write_settings(out, settings);
            }
            ChangeKind::Settings(settings) => {
                out.u8(SETTINGS);
                write_settings(out, settings);
            }
            ChangeKind::Metadata => out.u8(METADATA),
            ChangeKind::Compaction(summary) => {
                out.u8(COMPACTION);
                summary.write(out);
            }
            ChangeKind::Tombstoned => out.u8(TOMBSTONED),
        }
    }
}

/// Checks that versions rise and that creation comes first if at all.
pub(super) fn read_changes(input: &mut Reader) -> Result<Vec<Change>, CodecError> {
    let count = input.count()?;
    let mut changes: Vec<Change> = Vec::new();
    for _ in 0..count {
        let version = input.varint()?;
        let kind = match input.u8()? {
            CREATED => ChangeKind::Created(read_settings(input)?),
            SETTINGS => ChangeKind::Settings(read_settings(input)?),
            METADATA => ChangeKind::Metadata,
            COMPACTION => ChangeKind::Compaction(Summary::read(input)?),
            TOMBSTONED => ChangeKind::Tombstoned,
            other => return Err(CodecError::UnknownOrdinal { what: "change", value: other.into() }),
        };
        let creates = matches!(kind, ChangeKind::Created(_));
        if version > MAX_COUNT
            || creates != (version == 0)
            || changes.last().is_some_and(|last| last.version >= version)
        {
            return Err(CodecError::Invalid("change version"));
        }
        changes.push(Change { version, kind });
    }
    Ok(changes)
}
