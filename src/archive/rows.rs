//! Versions of conversations as rows of the archive, and back. Pure.
//!
//! Columns that can be asked about in SQL are made from the bytes; the bytes themselves lie beside them, since `jsonb`
//! keeps neither the order and repetition of members nor the spelling of numbers.

use std::borrow::Cow;
use std::fmt::Write as _;

use serde_json::value::RawValue;

use super::jsonb::{holdable, holdable_text};
use crate::conversation::{ConversationId, Description, Settings};
use crate::shards::{HistoryPage, StoredKind, StoredMessage, StoredVersion};

/// Begins what follows a message's own members in the payload of a compaction. A reader takes the last one.
pub(super) const AFTER_BODY: &str = ",\"token_count\":";

/// A stored message is not what the edge lets in. Never a client's fault.
#[derive(Debug, Clone, thiserror::Error)]
#[error("version {version} of conversation {id} cannot be read: {reason}")]
pub(super) struct Unreadable {
    pub(super) id: ConversationId,
    pub(super) version: u64,
    pub(super) reason: String,
}

/// Rows of table `events`, by column.
#[derive(Debug, Default)]
pub(super) struct EventRows {
    pub(super) conversation: Vec<String>,
    pub(super) seq: Vec<i64>,
    pub(super) version: Vec<i64>,
    pub(super) inserted_at_ms: Vec<i64>,
    pub(super) token_count: Vec<i64>,
    pub(super) escaped: Vec<bool>,
    pub(super) role: Vec<String>,
    pub(super) parts: Vec<String>,
    pub(super) metadata: Vec<String>,
    /// Array literals.
    pub(super) part_tokens: Vec<Option<String>>,
    pub(super) marker_tokens: Vec<Option<String>>,
    pub(super) body: Vec<String>,
    pub(super) digest: Vec<Vec<u8>>,
}

/// Rows of table `changes`, by column.
#[derive(Debug, Default)]
pub(super) struct ChangeRows {
    pub(super) conversation: Vec<String>,
    pub(super) version: Vec<i64>,
    pub(super) kind: Vec<&'static str>,
    pub(super) payload: Vec<String>,
    pub(super) payload_text: Vec<String>,
    pub(super) digest: Vec<Vec<u8>>,
}

/// Rows of table `conversations`, by column.
#[derive(Debug, Default)]
pub(super) struct ConversationRows {
    pub(super) id: Vec<String>,
    pub(super) status: Vec<&'static str>,
    pub(super) version: Vec<i64>,
    pub(super) archived_version: Vec<i64>,
    pub(super) last_seq: Vec<i64>,
    pub(super) token_budget: Vec<i64>,
    pub(super) trigger_ratio: Vec<f64>,
    pub(super) policy: Vec<String>,
    pub(super) metadata: Vec<String>,
    pub(super) metadata_text: Vec<String>,
    pub(super) created_at_ms: Vec<i64>,
    pub(super) updated_at_ms: Vec<i64>,
    /// What the archive said it holds when the rows were made, of which they are the continuation. No column.
    pub(super) held: Vec<Option<u64>>,
}

/// Everything that one transaction writes.
#[derive(Debug, Default)]
pub(super) struct Rows {
    pub(super) events: EventRows,
    pub(super) changes: ChangeRows,
    pub(super) conversations: ConversationRows,
}

impl Rows {
    pub(super) fn len(&self) -> usize {
        self.events.seq.len() + self.changes.version.len()
    }

    /// Leaves out what is made of the bytes, and keeps the bytes.
    pub(super) fn leave_bytes_only(&mut self) {
        let columns = [
            &mut self.events.parts,
            &mut self.events.metadata,
            &mut self.changes.payload,
            &mut self.conversations.policy,
            &mut self.conversations.metadata,
        ];
        columns.into_iter().flatten().for_each(|json| "null".clone_into(json));
        self.events.escaped.fill(true);
    }

    /// Adds versions that were read of a conversation.
    pub(super) fn add(&mut self, id: &ConversationId, page: &HistoryPage) -> Result<(), Unreadable> {
        for version in &page.versions {
            let unreadable = |reason| Unreadable { id: id.clone(), version: version.version, reason };
            let digest = version.digest().to_be_bytes().to_vec();
            match &version.kind {
                StoredKind::Event { seq, message } => {
                    self.events.add(id, version.version, *seq, message, digest).map_err(unreadable)?;
                }
                _ => self.changes.add(id, version, digest).map_err(unreadable)?,
            }
        }
        Ok(())
    }

    /// Adds that the archive holds a conversation up to a version with these rows, given that it still holds what it `held`.
    pub(super) fn add_standing(
        &mut self,
        id: &ConversationId,
        description: &Description,
        held: Option<u64>,
        archived_version: u64,
    ) {
        self.conversations.add(id, description, archived_version);
        self.conversations.held.push(held);
    }
}

impl EventRows {
    fn add(
        &mut self,
        id: &ConversationId,
        version: u64,
        seq: u64,
        message: &StoredMessage,
        digest: Vec<u8>,
    ) -> Result<(), String> {
        let body = text(&message.body)?;
        let object = format!("{{{body}}}");
        let members: Members<'_> = serde_json::from_str(&object).map_err(|error| error.to_string())?;
        let (role, parts, metadata) =
            (holdable_text(&members.role), holdable(members.parts.get()), holdable(members.metadata.get()));
        let is_owned = |text: &Cow<'_, str>| matches!(text, Cow::Owned(_));
        self.escaped.push(members.role != role || is_owned(&parts) || is_owned(&metadata));
        self.role.push(role.into_owned());
        self.parts.push(parts.into_owned());
        self.metadata.push(metadata.into_owned());
        self.conversation.push(id.as_str().to_owned());
        self.seq.push(number(seq));
        self.version.push(number(version));
        self.inserted_at_ms.push(number(message.inserted_at_ms));
        self.token_count.push(message.token_count.into());
        let parts = message.part_tokens.as_deref();
        self.part_tokens.push(parts.map(|parts| array(parts.iter().map(|part| part.0))));
        let marked = parts.filter(|parts| parts.iter().any(|part| part.1 > 0));
        self.marker_tokens.push(marked.map(|parts| array(parts.iter().map(|part| part.1))));
        self.body.push(body.to_owned());
        self.digest.push(digest);
        Ok(())
    }
}

impl ChangeRows {
    fn add(&mut self, id: &ConversationId, version: &StoredVersion, digest: Vec<u8>) -> Result<(), String> {
        let (kind, payload) = payload(&version.kind)?;
        self.conversation.push(id.as_str().to_owned());
        self.version.push(number(version.version));
        self.kind.push(kind);
        self.payload.push(holdable(&payload).into_owned());
        self.payload_text.push(payload);
        self.digest.push(digest);
        Ok(())
    }
}

impl ConversationRows {
    fn add(&mut self, id: &ConversationId, of: &Description, archived_version: u64) {
        let metadata = String::from_utf8_lossy(&of.metadata);
        self.id.push(id.as_str().to_owned());
        self.status.push(of.status.as_str());
        self.version.push(number(of.version));
        self.archived_version.push(number(archived_version));
        self.last_seq.push(number(of.last_seq));
        self.token_budget.push(number(of.token_budget));
        self.trigger_ratio.push(of.trigger_ratio);
        self.policy.push(holdable(&String::from_utf8_lossy(&of.policy)).into_owned());
        self.metadata.push(holdable(&metadata).into_owned());
        self.metadata_text.push(metadata.into_owned());
        self.created_at_ms.push(number(of.created_at_ms));
        self.updated_at_ms.push(number(of.updated_at_ms));
    }
}

/// A stored message taken apart, every value as it was written.
#[derive(serde::Deserialize)]
struct Members<'a> {
    #[serde(borrow)]
    role: Cow<'a, str>,
    #[serde(borrow)]
    parts: &'a RawValue,
    #[serde(borrow)]
    metadata: &'a RawValue,
}

/// Kind and payload of a change.
pub(super) fn payload(kind: &StoredKind) -> Result<(&'static str, String), String> {
    Ok(match kind {
        StoredKind::Created(settings) => ("created", settings_payload(settings)?),
        StoredKind::Settings(settings) => ("settings", settings_payload(settings)?),
        StoredKind::Metadata => ("metadata", "{}".to_owned()),
        StoredKind::Tombstoned => ("tombstoned", "{}".to_owned()),
        StoredKind::Compaction { from_seq, to_seq, replacement } => {
            ("compaction", compaction_payload(*from_seq, *to_seq, replacement)?)
        }
        StoredKind::Event { .. } => unreachable!("events have rows of their own"),
    })
}

fn settings_payload(settings: &Settings) -> Result<String, String> {
    let Settings { token_budget, trigger_ratio, policy } = settings;
    let policy = text(policy.json())?;
    Ok(format!(r#"{{"token_budget":{token_budget},"trigger_ratio":{trigger_ratio},"policy":{policy}}}"#))
}

fn compaction_payload(from_seq: u64, to_seq: u64, replacement: &[StoredMessage]) -> Result<String, String> {
    let mut out = format!(r#"{{"from_seq":{from_seq},"to_seq":{to_seq},"replacement":["#);
    for (index, message) in replacement.iter().enumerate() {
        if index > 0 {
            out.push(',');
        }
        let (body, tokens, at) = (text(&message.body)?, message.token_count, message.inserted_at_ms);
        // A string takes any format; writing to it cannot fail.
        let _ = write!(out, r#"{{{body}{AFTER_BODY}{tokens},"inserted_at_ms":{at}"#);
        if let Some(parts) = &message.part_tokens {
            let list = |of: &dyn Fn(&(u32, u32)) -> u32| {
                parts.iter().map(|part| of(part).to_string()).collect::<Vec<_>>().join(",")
            };
            let (tokens, markers) = (list(&|part| part.0), list(&|part| part.1));
            let _ = write!(out, r#","part_tokens":[{tokens}],"marker_tokens":[{markers}]"#);
        }
        out.push('}');
    }
    out.push_str("]}");
    Ok(out)
}

/// An array literal of Postgres.
fn array(numbers: impl Iterator<Item = u32>) -> String {
    format!("{{{}}}", numbers.map(|number| number.to_string()).collect::<Vec<_>>().join(","))
}

fn text(bytes: &[u8]) -> Result<&str, String> {
    std::str::from_utf8(bytes).map_err(|error| error.to_string())
}

/// Versions, seqs and times lie far below the bound.
fn number(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
