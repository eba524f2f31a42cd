//! What the tests of the conversation core share: a store in memory, and a harness that applies commands the way a
//! replica does, through their encoding, while it checks every record against its own.

mod bounds;
mod codecs;
mod generate;
mod golden;
mod model;
mod properties;

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;

use super::*;

/// Sealed runs and idempotency keys of conversations, held as their encodings.
#[derive(Default)]
pub(super) struct MemoryStore {
    events: BTreeMap<(ConversationId, u64), Bytes>,
    changes: BTreeMap<(ConversationId, u64), Bytes>,
    keys: BTreeMap<(ConversationId, [u8; 16]), Bytes>,
    numbers: BTreeMap<(ConversationId, u64), [u8; 16]>,
}

impl History for MemoryStore {
    fn event_run(&self, id: &ConversationId, first_seq: u64) -> Result<Arc<EventRun>, HistoryError> {
        let bytes = self.events.get(&(id.clone(), first_seq));
        let bytes =
            bytes.ok_or(HistoryError::Missing { what: "event run", key: first_seq, id: id.clone() })?;
        EventRun::decode(bytes.clone())
            .map(Arc::new)
            .map_err(|error| HistoryError::Storage(error.to_string()))
    }

    fn change_run(&self, id: &ConversationId, number: u64) -> Result<Arc<ChangeRun>, HistoryError> {
        let bytes = self.changes.get(&(id.clone(), number));
        let bytes = bytes.ok_or(HistoryError::Missing { what: "change run", key: number, id: id.clone() })?;
        ChangeRun::decode(bytes.clone())
            .map(Arc::new)
            .map_err(|error| HistoryError::Storage(error.to_string()))
    }
}

impl IdempotencyIndex for MemoryStore {
    fn get(&self, id: &ConversationId, key: &[u8; 16]) -> Result<Option<IdempotencyRecord>, HistoryError> {
        let bytes = self.keys.get(&(id.clone(), *key));
        Ok(bytes.map(|bytes| IdempotencyRecord::decode(bytes.clone()).unwrap()))
    }

    fn nth(
        &self,
        id: &ConversationId,
        number: u64,
    ) -> Result<Option<([u8; 16], IdempotencyRecord)>, HistoryError> {
        let Some(key) = self.numbers.get(&(id.clone(), number)) else { return Ok(None) };
        Ok(self.get(id, key)?.map(|record| (*key, record)))
    }
}

/// One conversation with its store.
pub(super) struct Harness {
    pub(super) id: ConversationId,
    pub(super) store: MemoryStore,
    pub(super) conversation: Option<Conversation>,
    pub(super) index: u64,
    pub(super) now_ms: u64,
}

impl Harness {
    pub(super) fn new() -> Harness {
        Harness {
            id: ConversationId::parse("chat").unwrap(),
            store: MemoryStore::default(),
            conversation: None,
            index: 0,
            now_ms: 1_700_000_000_000,
        }
    }

    /// Applies through the encoding; checks that the record survives its own.
    pub(super) fn apply(&mut self, action: Action) -> Reply {
        self.index += 1;
        let command = Command { id: self.id.clone(), now_ms: self.now_ms, action };
        let base = FrameLocation { segment: 3, offset: (self.index as u32).wrapping_mul(4096) };
        let encoded = command.encode();
        let (decoded, locations) = Command::decode(encoded.clone(), base).unwrap();
        assert_eq!(decoded, command);
        for (message, location) in messages_of(&decoded).into_iter().zip(&locations) {
            let start = (location.offset - base.offset) as usize;
            let body = &encoded[start..start + location.len as usize];
            assert_eq!((body, location.crc), (&*message.body, crc32c::crc32c(body)));
        }
        let before = self.conversation.clone();
        let mut effects = apply(self.conversation.as_mut(), self.index, &decoded, &locations, &self.store)
            .expect("the store reads");
        if let Some(created) = effects.created.take() {
            assert_eq!(self.conversation.replace(*created), None);
        }
        assert_eq!(effects.changed, before != self.conversation, "{:?}", effects.reply);
        let reply = effects.reply.clone();
        self.keep(effects);
        if let Some(conversation) = &self.conversation {
            assert_eq!(Conversation::decode(conversation.encode()).as_ref(), Ok(conversation));
        }
        reply
    }

    /// Trims through the encoding; answers how many messages that took.
    pub(super) fn trim(&mut self, keep: u64, upto_seq: u64) -> u64 {
        self.index += 1;
        let trims = Trims::new(keep, vec![Trim { id: self.id.clone(), upto_seq }]);
        assert_eq!(Entry::decode(trims.encode(), FrameLocation::default()), Ok(Entry::Trims(trims)));
        let conversation = self.conversation.as_mut().expect("the conversation was created");
        let before = (conversation.version(), conversation.trimmed_seq());
        let runs = conversation.trim(self.index, &self.id, &self.store, keep, upto_seq).unwrap();
        assert_eq!(conversation.changed_index() == self.index, !runs.is_empty());
        assert_eq!(conversation.version(), before.0);
        assert_eq!(Conversation::decode(conversation.encode()).as_ref(), Ok(&*conversation));
        for run in runs {
            self.store.events.insert((self.id.clone(), run.first_seq()), run.encode());
        }
        self.current().trimmed_seq() - before.1
    }

    fn keep(&mut self, effects: Effects) {
        let id = &self.id;
        for run in &effects.sealed_events {
            self.store.events.insert((id.clone(), run.first_seq()), run.encode());
        }
        for run in &effects.sealed_changes {
            self.store.changes.insert((id.clone(), run.number()), run.encode());
        }
        for (number, key, record) in effects.idempotency_put {
            self.store.keys.insert((id.clone(), key), record.encode());
            self.store.numbers.insert((id.clone(), number), key);
        }
        for (number, key) in effects.idempotency_remove {
            assert!(self.store.keys.remove(&(id.clone(), key)).is_some());
            assert_eq!(self.store.numbers.remove(&(id.clone(), number)), Some(key));
        }
    }

    pub(super) fn current(&self) -> &Conversation {
        self.conversation.as_ref().expect("the conversation was created")
    }

    pub(super) fn window(&self, query: &WindowQuery) -> Result<WindowPlan, PlanError> {
        self.window_of(query, u64::MAX)
    }

    pub(super) fn window_of(&self, query: &WindowQuery, messages_max: u64) -> Result<WindowPlan, PlanError> {
        plan_window(self.current(), &self.id, &self.store, query, messages_max)
    }
}

pub(super) fn messages_of(command: &Command) -> Vec<&NewMessage> {
    match &command.action {
        Action::Append { messages, .. } => messages.iter().collect(),
        Action::Compact { replacement, .. } => replacement.iter().collect(),
        Action::Restore(restore) => restore.messages().collect(),
        _ => Vec::new(),
    }
}

/// A message with one part of type `text`.
pub(super) fn text(tokens: u32) -> NewMessage {
    let part = PartMeta { kind: PartKind::TEXT, tokens, marker_tokens: 0, tool: ToolRef::None };
    NewMessage {
        body: Bytes::from_static(b""),
        token_count: tokens,
        role: RoleKind::Other,
        parts: vec![part],
    }
}

pub(super) fn append(messages: Vec<NewMessage>) -> Action {
    Action::Append { messages, idempotency: None, if_version: None }
}

pub(super) fn put() -> Action {
    Action::Put(Put::default())
}
