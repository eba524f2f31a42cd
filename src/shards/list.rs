//! Listing over all groups in id order.
//!
//! Consistent per group, not a snapshot. A page looks at a bounded number of conversations, so it may be empty and
//! still have a cursor.

use super::{ListPage, ListQuery, ReadError, STARTING, Shards};
use crate::conversation::{ConversationId, Description};

/// Conversations looked at per page, beyond what a filter lets through.
const LOOKED_AT_MAX: usize = 2_000;

impl Shards {
    /// Conversations in id order after the cursor that match the query.
    pub async fn list(&self, query: ListQuery) -> Result<ListPage, ReadError> {
        let shards = self.clone();
        tokio::task::spawn_blocking(move || shards.list_blocking(&query))
            .await
            .map_err(|e| ReadError::Internal(format!("listing task: {e}")))?
    }

    fn list_blocking(&self, query: &ListQuery) -> Result<ListPage, ReadError> {
        let prefix = query.prefix.as_deref().unwrap_or("");
        let (ids, complete) = self.ids_after(prefix, query.cursor.as_deref(), LOOKED_AT_MAX)?;
        let mut page = ListPage::default();
        let mut last = None;
        for id in ids {
            if page.conversations.len() == query.limit {
                page.next_cursor = last;
                return Ok(page);
            }
            last = Some(id.as_str().to_owned());
            let Some(description) = self.readable_group(&id)?.store.read(&id, |c, _| c.describe())? else {
                continue;
            };
            if matches(query, &description) {
                page.conversations.push((id, description));
            }
        }
        if !complete {
            page.next_cursor = last;
        }
        Ok(page)
    }

    /// At least the first `limit` ids after the cursor, if there are as many, merged over the groups; and whether
    /// that was all.
    fn ids_after(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<(Vec<ConversationId>, bool), ReadError> {
        let node = self.0.node.get().ok_or_else(|| ReadError::Unavailable(STARTING.into()))?;
        let groups = node.hosted();
        let per_group = limit / groups.len() + 16;
        let mut ids = Vec::new();
        // Beyond the smallest last id of a group that may have more, ids could be missing.
        let mut known_upto: Option<ConversationId> = None;
        for group in groups.iter() {
            let found = group.store.ids_after(prefix, after, per_group)?;
            if found.len() == per_group {
                let last = found.last().cloned();
                known_upto = match (known_upto, last) {
                    (Some(upto), Some(last)) => Some(upto.min(last)),
                    (upto, last) => upto.or(last),
                };
            }
            ids.extend(found);
        }
        if let Some(upto) = &known_upto {
            ids.retain(|id| id <= upto);
        }
        ids.sort_unstable();
        Ok((ids, known_upto.is_none()))
    }
}

fn matches(query: &ListQuery, description: &Description) -> bool {
    if query.status.is_some_and(|status| status != description.status) {
        return false;
    }
    if query.metadata.is_empty() {
        return true;
    }
    let Ok(metadata) = serde_json::from_slice::<serde_json::Map<_, _>>(&description.metadata) else {
        return false;
    };
    query.metadata.iter().all(|(key, wanted)| match metadata.get(key) {
        Some(serde_json::Value::String(text)) => text == wanted,
        Some(other) => serde_json::to_string(other).is_ok_and(|text| text == *wanted),
        None => false,
    })
}
