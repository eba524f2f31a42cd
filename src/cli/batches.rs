//! Events in bulk: lines of JSON, sent in batches that may be sent again.
//!
//! A batch's idempotency key is made of the conversation, of where its first line stands and of its lines, so that the same
//! lines, sent again from the beginning after whatever interruption, are appended once. That holds as long as the
//! server remembers keys: [`KEPT_KEYS`](crate::conversation::KEPT_KEYS) batches back, and ten minutes.

use http::Method;
use serde_json::{Value, value::RawValue};
use sha2::{Digest, Sha256};

use super::answers::parse;
use super::client::{Client, ClientError, path_of};

/// Most events of a batch, and bytes of them, which is less than any server refuses; a longer line goes alone.
const EVENTS_MAX: usize = 500;
const BYTES_MAX: usize = 200 << 10;

/// What was appended.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Appended {
    pub(super) events: u64,
    /// Of these, how many an earlier attempt had appended already.
    pub(super) known: u64,
}

/// The events of one conversation that wait to be sent.
pub(super) struct Batches<'a> {
    client: &'a Client,
    id: String,
    /// Events ready for a request, with commas between them.
    body: String,
    count: usize,
    /// Where the first of them stands among all events.
    first: u64,
    done: Appended,
}

impl<'a> Batches<'a> {
    pub(super) fn new(client: &'a Client, id: &str) -> Batches<'a> {
        Batches {
            client,
            id: id.to_owned(),
            body: String::new(),
            count: 0,
            first: 1,
            done: Appended::default(),
        }
    }

    /// Takes the next event, and sends the batch if it is full.
    pub(super) async fn add(&mut self, line: &[u8]) -> Result<(), String> {
        let number = self.first + self.count as u64;
        let event: &RawValue =
            serde_json::from_slice(line).map_err(|error| format!("event {number}: {error}"))?;
        let event = event.get();
        if !event.starts_with('{') {
            return Err(format!("event {number}: it must be a JSON object"));
        }
        if self.count > 0 && self.body.len() + event.len() > BYTES_MAX {
            self.send().await?;
        }
        if self.count > 0 {
            self.body.push(',');
        }
        self.body.push_str(event);
        self.count += 1;
        if self.count == EVENTS_MAX { self.send().await } else { Ok(()) }
    }

    /// Sends what is left.
    pub(super) async fn finish(mut self) -> Result<Appended, String> {
        if self.count > 0 {
            self.send().await?;
        }
        Ok(self.done)
    }

    /// Whose events they are.
    pub(super) fn id(&self) -> &str {
        &self.id
    }

    async fn send(&mut self) -> Result<(), String> {
        let (first, last) = (self.first, self.first + self.count as u64 - 1);
        let key = key(&self.id, first, &self.body);
        let body = format!(r#"{{"events":[{}],"idempotency_key":"{key}"}}"#, self.body);
        let path = format!("{}/events", path_of(&self.id));
        let answer = self.client.patiently(Method::POST, &path, body.into()).await;
        let refused = |error| refused(&format!("{}: events {first} to {last}", self.id), error);
        let answer: Value = parse(&answer.map_err(refused)?, &path)?;
        self.done.events += self.count as u64;
        if answer["deduped"] == true {
            self.done.known += self.count as u64;
        }
        (self.first, self.count) = (last + 1, 0);
        self.body.clear();
        Ok(())
    }
}

/// Why an append to this was refused, and what to do about it.
pub(super) fn refused(what: &str, error: ClientError) -> String {
    let hint = match error {
        ClientError::Refused { status: 404, .. } => "; --create creates it",
        _ => "",
    };
    format!("{}{hint}", error.about(what))
}

fn key(id: &str, first: u64, events: &str) -> String {
    let mut hasher = Sha256::new();
    hasher.update(format!("{id}\n{first}\n"));
    hasher.update(events);
    let digest: String = hasher.finalize()[..16].iter().map(|byte| format!("{byte:02x}")).collect();
    format!("bulk-{digest}")
}

#[cfg(test)]
mod tests {
    use super::key;

    /// A later version must not append again what this one has appended.
    #[test]
    fn keys_stay_what_they_are() {
        assert_eq!(key("chat", 501, r#"{"role":"a"}"#), "bulk-770a5eac48bec4013eaab808e4d78023");
        assert_ne!(key("chat", 1, "{}"), key("chat", 2, "{}"));
        assert_ne!(key("chat", 1, "{}"), key("cha", 1, "{}"));
    }
}
