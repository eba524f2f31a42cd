//! A group's store over an index that begins empty, for tests.

use std::sync::Arc;

use bytes::Bytes;

use super::{Applied, CacheSizes, GroupStore, Shared, SledIndex, StoreError};
use crate::conversation::{
    Action, Command, ConversationId, FrameLocation, Idempotency, NewMessage, Put, Reply, RoleKind,
};
use crate::metrics::Metrics;

pub(super) struct Fixture {
    pub(super) store: GroupStore,
    /// The log index of the last entry.
    pub(super) index: u64,
    pub(super) now_ms: u64,
    _dir: tempfile::TempDir,
}

pub(super) fn id(text: &str) -> ConversationId {
    ConversationId::parse(text).unwrap()
}

impl Fixture {
    /// `records` is what clean records in memory may take.
    pub(super) fn new(records: usize) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let index = SledIndex::open(dir.path(), 1 << 20).unwrap();
        let sizes = CacheSizes { records, messages: 1 << 20 };
        let shared = Arc::new(Shared::new(Arc::new(index), Metrics::new(), sizes));
        Self { store: GroupStore::open(0, shared).unwrap(), index: 0, now_ms: 1, _dir: dir }
    }

    /// Applies the next entry of the log.
    pub(super) fn apply(&mut self, encoded: Bytes) -> Reply {
        self.try_apply(encoded).unwrap()
    }

    fn try_apply(&mut self, encoded: Bytes) -> Result<Reply, StoreError> {
        self.index += 1;
        let at = Applied { term: 1, leader: 1, index: self.index };
        Ok(self.store.apply(at, encoded, FrameLocation::default())?.unwrap())
    }

    pub(super) fn command(&mut self, name: &str, action: Action) -> Reply {
        self.try_command(name, action).unwrap()
    }

    fn try_command(&mut self, name: &str, action: Action) -> Result<Reply, StoreError> {
        self.try_apply(Command { id: id(name), now_ms: self.now_ms, action }.encode())
    }

    /// Creates a conversation.
    pub(super) fn put(&mut self, name: usize) {
        let action = Action::Put(Put::default());
        self.command(&format!("c{name}"), action);
    }

    /// Appends under a key; whether that was done before, and the message's seq.
    pub(super) fn append(&mut self, name: usize, key: u64) -> (bool, u64) {
        match self.try_append(name, key).unwrap() {
            Reply::Appended { first_seq, deduped, .. } => (deduped, first_seq),
            other => panic!("{other:?}"),
        }
    }

    pub(super) fn try_append(&mut self, name: usize, key: u64) -> Result<Reply, StoreError> {
        let body = r#""role":"user","parts":[],"metadata":{}"#;
        let message =
            NewMessage { body: body.into(), token_count: 1, role: RoleKind::User, parts: Vec::new() };
        let digest = u128::from(key).to_le_bytes();
        let idempotency = Some(Idempotency { key: digest, body: digest });
        let action = Action::Append { messages: vec![message], idempotency, if_version: None };
        self.try_command(&format!("c{name}"), action)
    }
}
