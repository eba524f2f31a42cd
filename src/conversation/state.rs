//! The state of one conversation: what apply reads and writes, small enough to be rewritten whole at a checkpoint.
//!
//! Guarantees: `version` = events + changes after creation; the open messages end at `last_seq`; summaries are sorted
//! and disjoint. Deliberately lacks: message bodies (in the journal) and full runs (sealed, in the store).

use std::sync::Arc;

use bytes::Bytes;
use xxhash_rust::xxh3::xxh3_64;

use super::codec::{CodecError, Reader, Writer};
use super::idempotency::KeyWindow;
use super::message::{Location, MessageMeta, RoleKind, read_metas, write_metas};
use super::pairing::RecentCalls;
use super::policy::{Settings, read_settings, write_settings};
use super::reply::{Description, Status};
use super::runs::{
    Change, ChangeKind, EVENT_RUN, MAX_COUNT, Summary, metas_heap_bytes, read_changes, write_changes,
};
use super::trims::Standing;

/// Most summaries a conversation has at once; compacting over some of them makes room.
pub const MAX_SUMMARIES: usize = 1_000;
/// Most messages in all active summaries of a conversation together.
pub const MAX_SUMMARY_MESSAGES: usize = 10_000;
/// Most parts of all these messages together: a record holds them all, and goes into a snapshot as a whole.
pub const MAX_SUMMARY_PARTS: usize = 64 * 1024;
/// Longest metadata of a conversation in bytes of JSON.
pub const MAX_METADATA_BYTES: usize = 64 * 1024;

/// Format 2 added the archived version; records of format 1 have none.
const FORMAT: u8 = 2;
/// Also tells how far the conversation is trimmed. Others are written as before, for nodes that know no trimming.
const FORMAT_TRIMMED: u8 = 3;

/// One conversation as of the last applied command.
#[derive(Clone, PartialEq, Debug)]
pub struct Conversation {
    pub(super) settings: Arc<Settings>,
    pub(super) metadata: Bytes,
    pub(super) status: Status,
    pub(super) version: u64,
    pub(super) last_seq: u64,
    pub(super) created_at_ms: u64,
    pub(super) updated_at_ms: u64,
    pub(super) changed_index: u64,
    /// The archive holds everything up to this version; nothing yet, if `None`.
    pub(super) archived_version: Option<u64>,
    /// Messages up to this seq lie in the archive alone; a multiple of [`EVENT_RUN`].
    pub(super) trimmed_seq: u64,
    /// Active summaries by position.
    pub(super) summaries: Vec<Summary>,
    /// The first message, when it is a system message: it stays in the window.
    pub(super) leading_system: Option<Box<MessageMeta>>,
    /// The newest messages, fewer than [`EVENT_RUN`].
    pub(super) open: Vec<MessageMeta>,
    /// The newest changes, not yet sealed.
    pub(super) changes: Vec<Change>,
    pub(super) sealed_change_runs: u64,
    /// Changes, with creation, in sealed runs.
    pub(super) sealed_changes: u64,
    pub(super) keys: KeyWindow,
    pub(super) calls: RecentCalls,
}

impl Conversation {
    pub(super) fn new(index: u64, at_ms: u64, settings: Arc<Settings>, metadata: Bytes) -> Conversation {
        Conversation {
            settings: settings.clone(),
            metadata,
            status: Status::Active,
            version: 0,
            last_seq: 0,
            created_at_ms: at_ms,
            updated_at_ms: at_ms,
            changed_index: index,
            archived_version: None,
            trimmed_seq: 0,
            summaries: Vec::new(),
            leading_system: None,
            open: Vec::new(),
            changes: vec![Change { version: 0, kind: ChangeKind::Created(settings) }],
            sealed_change_runs: 0,
            sealed_changes: 0,
            keys: KeyWindow::default(),
            calls: RecentCalls::default(),
        }
    }

    pub fn status(&self) -> Status {
        self.status
    }

    pub fn version(&self) -> u64 {
        self.version
    }

    pub fn last_seq(&self) -> u64 {
        self.last_seq
    }

    pub fn created_at_ms(&self) -> u64 {
        self.created_at_ms
    }

    pub fn updated_at_ms(&self) -> u64 {
        self.updated_at_ms
    }

    /// The Raft index of the last command that changed this conversation.
    pub fn changed_index(&self) -> u64 {
        self.changed_index
    }

    /// The newest version that the archive is known to hold, with everything before it; `None` while it holds nothing.
    pub fn archived_version(&self) -> Option<u64> {
        self.archived_version
    }

    /// Messages up to this seq are read from the archive; 0 while nothing was trimmed.
    pub fn trimmed_seq(&self) -> u64 {
        self.trimmed_seq
    }

    /// How many versions the archive lacks.
    pub fn unarchived(&self) -> u64 {
        unarchived(self.version, self.archived_version)
    }

    /// A JSON object.
    pub fn metadata(&self) -> &Bytes {
        &self.metadata
    }

    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Active summaries by position.
    pub fn summaries(&self) -> &[Summary] {
        &self.summaries
    }

    /// How many runs of messages were sealed: they begin at seq 1, 1 + [`EVENT_RUN`], ...
    pub fn sealed_event_runs(&self) -> u64 {
        (self.last_seq - self.open.len() as u64) / EVENT_RUN
    }

    /// How many runs of changes were sealed; they are numbered from 0.
    pub fn sealed_change_runs(&self) -> u64 {
        self.sealed_change_runs
    }

    /// The numbers of the idempotency keys kept, oldest first.
    pub fn key_numbers(&self) -> std::ops::Range<u64> {
        self.keys.numbers()
    }

    pub fn describe(&self) -> Description {
        Description {
            token_budget: self.settings.token_budget,
            trigger_ratio: self.settings.trigger_ratio,
            policy: self.settings.policy.json().clone(),
            metadata: self.metadata.clone(),
            status: self.status,
            version: self.version,
            last_seq: self.last_seq,
            created_at_ms: self.created_at_ms,
            updated_at_ms: self.updated_at_ms,
        }
    }

    /// The seq of the first open message (or of the next one, when none is open).
    pub(super) fn open_first_seq(&self) -> u64 {
        self.last_seq + 1 - self.open.len() as u64
    }

    /// Shows every location in the record to `visit`, which may move it. One that is kept in several places is shown
    /// for each of them.
    pub fn visit_locations(&mut self, visit: &mut dyn FnMut(&mut Location)) {
        self.open.iter_mut().for_each(|meta| visit(&mut meta.location));
        self.leading_system.iter_mut().for_each(|meta| visit(&mut meta.location));
        self.summaries.iter_mut().for_each(|summary| summary.visit_locations(visit));
        self.changes.iter_mut().for_each(|change| change.visit_locations(visit));
    }

    /// Equal on replicas in the same state, wherever they keep the messages.
    pub fn logical_digest(&self) -> u64 {
        let mut nowhere = self.clone();
        nowhere.visit_locations(&mut Location::forget_place);
        xxh3_64(&nowhere.encode())
    }

    /// About the memory this conversation takes beyond itself, for caches bounded in bytes.
    pub fn heap_bytes(&self) -> usize {
        let summaries = self
            .summaries
            .iter()
            .map(|summary| size_of::<Summary>() + metas_heap_bytes(&summary.replacement));
        let leading =
            self.leading_system.iter().map(|meta| size_of::<MessageMeta>() + meta.parts.heap_bytes());
        self.metadata.len()
            + summaries.sum::<usize>()
            + leading.sum::<usize>()
            + metas_heap_bytes(&self.open)
            + (self.open.capacity() - self.open.len()) * size_of::<MessageMeta>()
            + self.changes.iter().map(Change::heap_bytes).sum::<usize>()
            + (self.changes.capacity() - self.changes.len()) * size_of::<Change>()
            + self.calls.heap_bytes()
    }

    pub fn encode(&self) -> Bytes {
        let format = if self.trimmed_seq > 0 { FORMAT_TRIMMED } else { FORMAT };
        let mut out = Writer::new(format, 256 + self.metadata.len() + 20 * self.open.len());
        out.u8(match self.status {
            Status::Active => 0,
            Status::Tombstoned => 1,
        });
        out.varint(self.version);
        out.varint(self.last_seq);
        out.varint(self.created_at_ms);
        out.varint(self.updated_at_ms);
        out.varint(self.changed_index);
        out.optional(self.archived_version);
        if format == FORMAT_TRIMMED {
            out.varint(self.trimmed_seq);
        }
        out.bytes(&self.metadata);
        out.varint(self.sealed_change_runs);
        out.varint(self.sealed_changes);
        write_changes(&mut out, &self.changes);
        self.write_current_settings(&mut out);
        out.count(self.summaries.len());
        self.summaries.iter().for_each(|summary| summary.write(&mut out));
        write_metas(&mut out, self.created_at_ms, &self.open);
        self.write_leading_system(&mut out);
        self.keys.write(&mut out);
        self.calls.write(&mut out);
        out.finish()
    }

    pub fn decode(bytes: Bytes) -> Result<Conversation, CodecError> {
        let (mut input, format) = Reader::up_to(bytes, FORMAT_TRIMMED)?;
        let input = &mut input;
        let status = match input.u8()? {
            0 => Status::Active,
            1 => Status::Tombstoned,
            other => return Err(CodecError::UnknownOrdinal { what: "status", value: other.into() }),
        };
        let version = input.varint()?;
        let last_seq = input.varint()?;
        let created_at_ms = input.varint()?;
        let updated_at_ms = input.varint()?;
        let changed_index = input.varint()?;
        let archived_version = if format >= 2 { input.optional()? } else { None };
        let trimmed_seq = if format >= FORMAT_TRIMMED { input.varint()? } else { 0 };
        if (format == FORMAT_TRIMMED) != (trimmed_seq > 0) {
            return Err(CodecError::Invalid("trim frontier"));
        }
        // A copy: a slice would keep the whole encoded record alive.
        let metadata = Bytes::copy_from_slice(&input.bytes()?);
        let sealed_change_runs = input.varint()?;
        let sealed_changes = input.varint()?;
        let changes = read_changes(input)?;
        let settings = read_current_settings(input, &changes)?;
        let summaries = read_summaries(input)?;
        let open = read_metas(input, created_at_ms)?;
        let leading_system = read_leading_system(input, created_at_ms, last_seq, &open)?;
        let keys = KeyWindow::read(input)?;
        let calls = RecentCalls::read(input, last_seq)?;
        input.expect_end()?;
        let conversation = Conversation {
            settings,
            metadata,
            status,
            version,
            last_seq,
            created_at_ms,
            updated_at_ms,
            changed_index,
            archived_version,
            trimmed_seq,
            summaries,
            leading_system,
            open,
            changes,
            sealed_change_runs,
            sealed_changes,
            keys,
            calls,
        };
        conversation.check()?;
        Ok(conversation)
    }

    /// How far the archive is with an encoded record, whose beginning is enough.
    pub fn peek(beginning: Bytes) -> Result<Standing, CodecError> {
        let (mut input, format) = Reader::up_to(beginning, FORMAT_TRIMMED)?;
        input.u8()?;
        let (version, last_seq) = (input.varint()?, input.varint()?);
        for _ in ["created", "updated", "changed"] {
            input.varint()?;
        }
        let archived_version = if format >= 2 { input.optional()? } else { None };
        let trimmed_seq = if format >= FORMAT_TRIMMED { input.varint()? } else { 0 };
        Ok(Standing { version, last_seq, archived_version, trimmed_seq })
    }

    /// What every other function here relies on.
    fn check(&self) -> Result<(), CodecError> {
        let bounded = [self.version, self.last_seq, self.sealed_changes, self.sealed_change_runs];
        if bounded.iter().any(|count| *count > MAX_COUNT) {
            return Err(CodecError::Invalid("counts"));
        }
        let open = self.open.len() as u64;
        let sealed = self.last_seq.checked_sub(open).ok_or(CodecError::Invalid("open messages"))?;
        if open >= EVENT_RUN || sealed % EVENT_RUN != 0 {
            return Err(CodecError::Invalid("open messages"));
        }
        let changes = self.sealed_changes.checked_add(self.changes.len() as u64);
        let versions = changes.and_then(|changes| changes.checked_sub(1)?.checked_add(self.last_seq));
        let newest = self.changes.last().map_or(0, |change| change.version);
        let begins = self.changes.first().map(|change| change.version);
        let begun = if self.sealed_changes == 0 { begins == Some(0) } else { begins != Some(0) };
        if versions != Some(self.version) || newest > self.version || !begun {
            return Err(CodecError::Invalid("versions"));
        }
        if self.archived_version > Some(self.version) {
            return Err(CodecError::Invalid("archived version"));
        }
        if self.trimmed_seq > sealed || !self.trimmed_seq.is_multiple_of(EVENT_RUN) {
            return Err(CodecError::Invalid("trim frontier"));
        }
        if (self.sealed_changes == 0) != (self.sealed_change_runs == 0) {
            return Err(CodecError::Invalid("change runs"));
        }
        let ordered = self.summaries.windows(2).all(|pair| pair[0].to_seq < pair[1].from_seq);
        if !ordered || self.summaries.last().is_some_and(|last| last.to_seq > self.last_seq) {
            return Err(CodecError::Invalid("summaries"));
        }
        Ok(())
    }

    /// Settings last changed in an open change are there already.
    fn write_current_settings(&self, out: &mut Writer) {
        let listed = latest_settings(&self.changes).is_some();
        out.flag(listed);
        if !listed {
            write_settings(out, &self.settings);
        }
    }

    /// While no run is sealed the first message is among the open ones.
    fn write_leading_system(&self, out: &mut Writer) {
        if self.last_seq >= EVENT_RUN {
            write_metas(
                out,
                self.created_at_ms,
                self.leading_system.as_deref().map_or(&[], std::slice::from_ref),
            );
        }
    }
}

/// How many versions an archive lacks that has everything up to `archived`; creation is one.
pub fn unarchived(version: u64, archived: Option<u64>) -> u64 {
    version + 1 - archived.map_or(0, |archived| archived + 1)
}

/// The settings that the newest change of settings among `changes` left.
pub(super) fn latest_settings(changes: &[Change]) -> Option<&Arc<Settings>> {
    changes.iter().rev().find_map(|change| match &change.kind {
        ChangeKind::Created(settings) | ChangeKind::Settings(settings) => Some(settings),
        _ => None,
    })
}

fn read_current_settings(input: &mut Reader, changes: &[Change]) -> Result<Arc<Settings>, CodecError> {
    if input.flag()? {
        latest_settings(changes).cloned().ok_or(CodecError::Invalid("current settings"))
    } else {
        read_settings(input)
    }
}

fn read_summaries(input: &mut Reader) -> Result<Vec<Summary>, CodecError> {
    let count = input.count()?;
    let mut summaries = Vec::new();
    for _ in 0..count {
        summaries.push(Summary::read(input)?);
    }
    Ok(summaries)
}

fn read_leading_system(
    input: &mut Reader,
    created_at_ms: u64,
    last_seq: u64,
    open: &[MessageMeta],
) -> Result<Option<Box<MessageMeta>>, CodecError> {
    if last_seq < EVENT_RUN {
        return Ok(open.first().filter(|meta| meta.role == RoleKind::System).cloned().map(Box::new));
    }
    let mut leading = read_metas(input, created_at_ms)?;
    if leading.len() > 1 {
        return Err(CodecError::Invalid("leading system message"));
    }
    Ok(leading.pop().map(Box::new))
}
