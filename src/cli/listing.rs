//! The conversations of a cluster in the order of their ids, a page at a time.

use bytes::Bytes;
use http::Method;
use serde_json::Value;

use super::client::{Client, ClientError, encoded};

/// Conversations asked for at a time.
const PAGE: usize = 500;

/// A walk over the listing.
pub(super) struct Listing<'a> {
    client: &'a Client,
    /// What narrows the listing down, ready for a query.
    filter: String,
    cursor: Option<String>,
    ended: bool,
}

impl<'a> Listing<'a> {
    pub(super) fn of(client: &'a Client) -> Listing<'a> {
        Listing { client, filter: String::new(), cursor: None, ended: false }
    }

    /// Only conversations with this query parameter.
    pub(super) fn with(mut self, name: &str, value: &str) -> Listing<'a> {
        self.filter.push_str(&format!("&{}={}", encoded(name), encoded(value)));
        self
    }

    /// From the first id behind this one on.
    pub(super) fn after(mut self, id: Option<&str>) -> Listing<'a> {
        self.cursor = id.map(str::to_owned);
        self
    }

    /// The next conversations, at least one; `None` after the last.
    pub(super) async fn next(&mut self) -> Result<Option<Vec<Value>>, ClientError> {
        while !self.ended {
            let cursor = self.cursor.as_deref().map(|id| format!("&cursor={}", encoded(id)));
            let path = format!("/v1/conversations?limit={PAGE}{}{}", self.filter, cursor.unwrap_or_default());
            let page = self.client.patiently(Method::GET, &path, Bytes::new()).await?;
            let page: Value = serde_json::from_slice(&page).unwrap_or(Value::Null);
            self.cursor = page["next_cursor"].as_str().map(str::to_owned);
            self.ended = self.cursor.is_none();
            // A page may be empty with more to come.
            match page["conversations"].as_array() {
                Some(found) if !found.is_empty() => return Ok(Some(found.clone())),
                _ => {}
            }
        }
        Ok(None)
    }
}

/// How much there is, for who tells how far things have come.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Amount {
    pub(super) events: u64,
    /// With the creation of each conversation.
    pub(super) versions: u64,
}

impl Amount {
    pub(super) async fn of(mut listing: Listing<'_>) -> Result<Amount, ClientError> {
        let mut amount = Amount::default();
        while let Some(page) = listing.next().await? {
            for conversation in page {
                amount.events += conversation["last_seq"].as_u64().unwrap_or(0);
                amount.versions += conversation["version"].as_u64().unwrap_or(0) + 1;
            }
        }
        Ok(amount)
    }
}
