//! What tests write to conversations, and what they read of them.

use bytes::Bytes;

use crate::conversation::{
    Action, CompactRange, ConversationId, EventRange, Idempotency, Location, Mark, Marks, NewMessage,
    PartKind, PartMeta, Policy, Put, RoleKind, ToolRef, Trim, Trims, WindowQuery, plan_events, plan_window,
};
use crate::store::GroupStore;

pub(crate) fn id(n: usize) -> ConversationId {
    ConversationId::parse(&format!("conversation-{n}")).unwrap()
}

fn message(text: &str) -> NewMessage {
    let part = PartMeta { kind: PartKind::TEXT, tokens: 3, marker_tokens: 0, tool: ToolRef::None };
    NewMessage {
        body: Bytes::from(format!(
            r#""role":"user","parts":[{{"type":"text","text":"{text}"}}],"metadata":{{}}"#
        )),
        token_count: 7,
        role: RoleKind::Other,
        parts: vec![part],
    }
}

/// That many texts that differ.
pub(crate) fn numbered(prefix: &str, count: usize) -> Vec<String> {
    (0..count).map(|i| format!("{prefix}.{i}")).collect()
}

pub(crate) fn put() -> Action {
    Action::Put(Put::default())
}

/// A window so small that most of the log can be trimmed.
pub(crate) fn narrow() -> Action {
    let policy = Bytes::from_static(br#"{"strategy":"last_n","config":{"limit":9}}"#);
    let policy = Some(Policy::parse(policy).unwrap());
    Action::Put(Put { policy, ..Put::default() })
}

pub(crate) fn append(texts: &[String], key: Option<u8>) -> Action {
    Action::Append {
        messages: texts.iter().map(|text| message(text)).collect(),
        idempotency: key.map(|key| Idempotency { key: [key; 16], body: [key; 16] }),
        if_version: None,
    }
}

pub(crate) fn compact(text: &str) -> Action {
    Action::Compact {
        range: CompactRange { from: Some(1), to: Some(2) },
        replacement: vec![message(text)],
        if_version: None,
    }
}

/// The command that a conversation is archived up to a version.
pub(crate) fn mark(conversations: impl Iterator<Item = (usize, u64)>) -> Bytes {
    let marks = conversations.map(|(n, archived_version)| Mark { id: id(n), archived_version });
    Marks::new(marks.collect()).encode()
}

/// The command that trims what may be trimmed of a conversation.
pub(crate) fn trim(n: usize) -> Bytes {
    Trims::new(3, vec![Trim { id: id(n), upto_seq: 1_000 }]).encode()
}

/// Everything a client could see of a conversation, as text, and how far it is archived and trimmed.
pub(crate) fn dump(store: &GroupStore, n: usize) -> String {
    let id = id(n);
    let reading = store.reading();
    let seen = store.read(&id, |c, history| {
        let events = plan_events(c, &id, history, &events_to(u64::MAX)).unwrap();
        let query = WindowQuery { budget_tokens: None, at_version: None, explain: true };
        let window = plan_window(c, &id, history, &query, u64::MAX).unwrap();
        let window: Vec<_> = window.messages.iter().map(|m| (m.seq, m.to_seq, m.token_count)).collect();
        (format!("{:?} {:?} {window:?}", c.describe(), c.standing()), events)
    });
    let Some((text, events)) = seen.unwrap() else { return "absent".into() };
    let body = |at: Location| at.is_placed().then(|| store.bodies(&reading, &[at]).unwrap());
    let events: Vec<_> =
        events.iter().map(|e| (e.seq, e.inserted_at_ms, e.location.crc, body(e.location))).collect();
    format!("{text} {events:?}")
}

/// Where the events of a conversation lie, up to a sequence number; nowhere if there is no such conversation.
pub(crate) fn places(store: &GroupStore, n: usize, to_seq: u64) -> Vec<Location> {
    let id = id(n);
    let planned = store.read(&id, |c, history| plan_events(c, &id, history, &events_to(to_seq)).unwrap());
    planned.unwrap().unwrap_or_default().iter().map(|event| event.location).collect()
}

fn events_to(to_seq: u64) -> EventRange {
    EventRange { from_seq: 1, to_seq, newest_first: false, limit: usize::MAX, limit_bytes: u64::MAX }
}
