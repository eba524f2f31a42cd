//! The conversations of a cluster in the order of their ids, a page at a time.

use super::answers::{Described, Page};
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
    pub(super) async fn next(&mut self) -> Result<Option<Vec<Described>>, ClientError> {
        while !self.ended {
            let cursor = self.cursor.as_deref().map(|id| format!("&cursor={}", encoded(id)));
            let path = format!("/v1/conversations?limit={PAGE}{}{}", self.filter, cursor.unwrap_or_default());
            let Page { conversations, next_cursor } = self.client.read(&path).await?;
            self.cursor = next_cursor;
            self.ended = self.cursor.is_none();
            // A page may be empty with more to come.
            if !conversations.is_empty() {
                return Ok(Some(conversations));
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
            for Described { conversation, .. } in page {
                amount.events += conversation.last_seq;
                amount.versions += conversation.version + 1;
            }
        }
        Ok(amount)
    }
}
