//! Applying commands: the one place where conversations change.
//!
//! Guarantees: everything outside is read before anything is changed, so that an error leaves the conversation as it
//! was; a refusal changes nothing; a command that changes nothing leaves the version alone.

use std::sync::Arc;

use bytes::Bytes;

use super::command::{Action, Command, Idempotency, Put};
use super::history::Events;
use super::idempotency::{IdempotencyIndex, IdempotencyRecord, Remembered};
use super::message::{Location, MessageMeta, NewMessage, RoleKind};
use super::metadata;
use super::policy::Settings;
use super::reply::{Refusal, Reply, Status};
use super::restore;
use super::runs::{
    CHANGE_RUN_BYTES, Change, ChangeKind, ChangeRun, EVENT_RUN, EventRun, History, HistoryError,
    MAX_CHANGES_PER_RUN,
};
use super::{Conversation, ConversationId};

/// What apply needs besides the record.
pub trait Outside: History + IdempotencyIndex {}

impl<T: History + IdempotencyIndex> Outside for T {}

/// What a command leaves to be done besides the change of the record.
#[derive(Clone, PartialEq, Debug)]
pub struct Effects {
    pub reply: Reply,
    /// The conversation, where there was none.
    pub created: Option<Box<Conversation>>,
    /// Whether the record changed and must be written at the next checkpoint.
    pub changed: bool,
    /// Runs that left the record and must be kept by the store from now on.
    pub sealed_events: Vec<EventRun>,
    pub sealed_changes: Vec<ChangeRun>,
    /// Keys to remember, with their numbers.
    pub idempotency_put: Vec<(u64, [u8; 16], IdempotencyRecord)>,
    /// Keys to forget.
    pub idempotency_remove: Vec<(u64, [u8; 16])>,
}

impl Effects {
    /// Nothing but an answer.
    pub(super) fn reply(reply: Reply) -> Effects {
        Effects {
            reply,
            created: None,
            changed: false,
            sealed_events: Vec::new(),
            sealed_changes: Vec::new(),
            idempotency_put: Vec::new(),
            idempotency_remove: Vec::new(),
        }
    }

    pub(super) fn refused(refusal: Refusal) -> Effects {
        Effects::reply(Reply::Refused(refusal))
    }
}

/// Applies the command at Raft index `index`. `locations` says where the bodies of its messages lie, in order.
pub fn apply(
    conversation: Option<&mut Conversation>,
    index: u64,
    command: &Command,
    locations: &[Location],
    outside: &dyn Outside,
) -> Result<Effects, HistoryError> {
    if let Action::Restore(piece) = &command.action {
        let stamp = (&command.id, command.now_ms);
        return restore::apply(conversation, index, stamp, piece, locations, outside);
    }
    let Some(current) = conversation else {
        let Action::Put(put) = &command.action else { return Ok(Effects::refused(Refusal::NotFound)) };
        return Ok(match create(index, command.now_ms, put) {
            Ok(created) => {
                let reply = Reply::Settled { created: true, changed: true, description: created.describe() };
                Effects { created: Some(Box::new(created)), changed: true, ..Effects::reply(reply) }
            }
            Err(refusal) => Effects::refused(refusal),
        });
    };
    let mut change =
        ChangeTo { at_ms: command.now_ms.max(current.updated_at_ms), conversation: current, index };
    match &command.action {
        Action::Put(put) => Ok(change.put(put)),
        Action::PatchMetadata { patch } => Ok(change.patch(patch)),
        Action::Append { messages, idempotency, if_version } => {
            change.append(&command.id, messages, locations, idempotency, *if_version, outside)
        }
        Action::Compact { range, replacement, if_version } => {
            Ok(change.compact(*range, replacement, locations, *if_version))
        }
        Action::Tombstone => Ok(change.tombstone()),
        Action::Restore(_) => unreachable!("it may create a conversation, and was applied above"),
    }
}

fn create(index: u64, now_ms: u64, put: &Put) -> Result<Conversation, Refusal> {
    let metadata = match &put.metadata {
        Some(metadata) => metadata::checked(metadata)?,
        None => Bytes::from_static(b"{}"),
    };
    let default = Settings::shared_default();
    let settings = put.over(&default);
    let settings = if put.policy.is_none() && settings == *default { default } else { Arc::new(settings) };
    Ok(Conversation::new(index, now_ms, settings, metadata))
}

impl Put {
    /// The settings given, and for the others those that are in force.
    fn over(&self, current: &Settings) -> Settings {
        Settings {
            token_budget: self.token_budget.unwrap_or(current.token_budget),
            trigger_ratio: self.trigger_ratio.unwrap_or(current.trigger_ratio),
            policy: self.policy.as_ref().unwrap_or(&current.policy).clone(),
        }
    }
}

/// A command about to change an existing conversation, at a time that does not go back.
pub(super) struct ChangeTo<'a> {
    pub(super) conversation: &'a mut Conversation,
    pub(super) index: u64,
    pub(super) at_ms: u64,
}

impl ChangeTo<'_> {
    fn put(&mut self, put: &Put) -> Effects {
        let current = &self.conversation;
        if current.status == Status::Tombstoned {
            return Effects::refused(Refusal::Tombstoned);
        }
        let metadata = match &put.metadata {
            Some(metadata) if !metadata::equal(metadata, &current.metadata) => {
                match metadata::checked(metadata) {
                    Ok(metadata) => Some(metadata),
                    Err(refusal) => return Effects::refused(refusal),
                }
            }
            _ => None,
        };
        let settings = put.over(&current.settings);
        let settings = (settings != *current.settings).then(|| Arc::new(settings));
        self.settle(settings, metadata)
    }

    fn patch(&mut self, patch: &Bytes) -> Effects {
        if self.conversation.status == Status::Tombstoned {
            return Effects::refused(Refusal::Tombstoned);
        }
        match metadata::merged(&self.conversation.metadata, patch) {
            Ok(metadata) => self.settle(None, metadata),
            Err(refusal) => Effects::refused(refusal),
        }
    }

    /// Takes in what really differs, as one version.
    fn settle(&mut self, settings: Option<Arc<Settings>>, metadata: Option<Bytes>) -> Effects {
        let kind = match &settings {
            Some(settings) => Some(ChangeKind::Settings(settings.clone())),
            None => metadata.is_some().then_some(ChangeKind::Metadata),
        };
        let changed = kind.is_some();
        if let Some(settings) = settings {
            self.conversation.settings = settings;
        }
        if let Some(metadata) = metadata {
            self.conversation.metadata = metadata;
        }
        let sealed_changes = kind.map(|kind| self.record(kind)).unwrap_or_default();
        let description = self.conversation.describe();
        Effects {
            changed,
            sealed_changes,
            ..Effects::reply(Reply::Settled { created: false, changed, description })
        }
    }

    fn append(
        &mut self,
        id: &ConversationId,
        messages: &[NewMessage],
        locations: &[Location],
        idempotency: &Option<Idempotency>,
        if_version: Option<u64>,
        outside: &dyn Outside,
    ) -> Result<Effects, HistoryError> {
        if let Some(request) = idempotency
            && let Some(answer) = self.answered_before(id, request, outside)?
        {
            return Ok(Effects::reply(answer));
        }
        if let Err(refusal) = self.may_write(if_version) {
            return Ok(Effects::refused(refusal));
        }
        let remembered = match idempotency {
            Some(request) if !messages.is_empty() => self.remember(id, request, messages.len(), outside)?,
            _ => Ok(Remembered::default()),
        };
        let remembered = match remembered {
            Ok(remembered) => remembered,
            Err(refusal) => return Ok(Effects::refused(refusal)),
        };
        let first_seq = self.conversation.last_seq + 1;
        let sealed_events = self.append_messages(messages, locations);
        let reply = Reply::Appended {
            first_seq,
            last_seq: self.conversation.last_seq,
            version: self.conversation.version,
            token_counts: messages.iter().map(|message| message.token_count).collect(),
            deduped: false,
        };
        Ok(Effects {
            changed: !messages.is_empty(),
            sealed_events,
            idempotency_put: remembered.put.into_iter().collect(),
            idempotency_remove: remembered.remove,
            ..Effects::reply(reply)
        })
    }

    /// The answer to a request whose key is known.
    fn answered_before(
        &self,
        id: &ConversationId,
        request: &Idempotency,
        outside: &dyn Outside,
    ) -> Result<Option<Reply>, HistoryError> {
        if self.conversation.keys.is_empty() {
            return Ok(None);
        }
        let Some(first) = outside.get(id, &request.key)? else { return Ok(None) };
        if first.body != request.body {
            return Ok(Some(Reply::Refused(Refusal::IdempotencyConflict)));
        }
        let last_seq = first.first_seq + u64::from(first.count) - 1;
        let mut events = Events::new(self.conversation, id, outside);
        let token_counts =
            (first.first_seq..=last_seq).map(|seq| events.get(seq).map(|meta| meta.token_count));
        Ok(Some(Reply::Appended {
            first_seq: first.first_seq,
            last_seq,
            version: first.version,
            token_counts: token_counts.collect::<Result<_, _>>()?,
            deduped: true,
        }))
    }

    /// Keeps the key of a request that is about to append so many messages.
    fn remember(
        &mut self,
        id: &ConversationId,
        request: &Idempotency,
        count: usize,
        outside: &dyn Outside,
    ) -> Result<Result<Remembered, Refusal>, HistoryError> {
        let record = IdempotencyRecord {
            first_seq: self.conversation.last_seq + 1,
            count: count as u32,
            version: self.conversation.version + count as u64,
            body: request.body,
            at_ms: self.at_ms,
        };
        self.conversation.keys.remember(id, request.key, record, outside)
    }

    pub(super) fn may_write(&self, if_version: Option<u64>) -> Result<(), Refusal> {
        if self.conversation.status == Status::Tombstoned {
            return Err(Refusal::Tombstoned);
        }
        match if_version {
            Some(expected) if expected != self.conversation.version => {
                Err(Refusal::Conflict { expected, current: self.conversation.version })
            }
            _ => Ok(()),
        }
    }

    pub(super) fn append_messages(
        &mut self,
        messages: &[NewMessage],
        locations: &[Location],
    ) -> Vec<EventRun> {
        assert_eq!(messages.len(), locations.len(), "a location for every message");
        let Some(last) = messages.len().checked_sub(1) else { return Vec::new() };
        let conversation = &mut *self.conversation;
        let mut sealed = Vec::new();
        for (message, location) in messages.iter().zip(locations) {
            conversation.last_seq += 1;
            let meta = MessageMeta {
                location: *location,
                inserted_at_ms: self.at_ms,
                parts: conversation.calls.link(conversation.last_seq, message),
                token_count: message.token_count,
                role: message.role,
            };
            if conversation.last_seq == 1 && meta.role == RoleKind::System {
                conversation.leading_system = Some(Box::new(meta.clone()));
            }
            conversation.open.push(meta);
            if conversation.open.len() as u64 == EVENT_RUN {
                let metas = std::mem::take(&mut conversation.open);
                sealed.push(EventRun::new(conversation.last_seq + 1 - EVENT_RUN, metas));
            }
        }
        conversation.version += last as u64 + 1;
        conversation.updated_at_ms = self.at_ms;
        conversation.changed_index = self.index;
        sealed
    }

    fn tombstone(&mut self) -> Effects {
        if self.conversation.status == Status::Tombstoned {
            return Effects::reply(Reply::Tombstoned { changed: false });
        }
        self.conversation.status = Status::Tombstoned;
        let sealed_changes = self.record(ChangeKind::Tombstoned);
        Effects { changed: true, sealed_changes, ..Effects::reply(Reply::Tombstoned { changed: true }) }
    }

    /// Counts a change that is not an event; seals the open changes once they fill a run.
    pub(super) fn record(&mut self, kind: ChangeKind) -> Vec<ChangeRun> {
        let conversation = &mut *self.conversation;
        conversation.version += 1;
        conversation.updated_at_ms = self.at_ms;
        conversation.changed_index = self.index;
        conversation.changes.push(Change { version: conversation.version, kind });
        let bytes: usize = conversation.changes.iter().map(Change::encoded_len).sum();
        if conversation.changes.len() < MAX_CHANGES_PER_RUN && bytes < CHANGE_RUN_BYTES {
            return Vec::new();
        }
        let changes = std::mem::take(&mut conversation.changes);
        let (number, before) = (conversation.sealed_change_runs, conversation.sealed_changes);
        conversation.sealed_change_runs += 1;
        conversation.sealed_changes += changes.len() as u64;
        vec![ChangeRun::new(number, before, changes)]
    }
}
