//! Listing over all groups in id order: every node lists the groups it hosts, and the pages are merged.
//!
//! Consistent per group, not a snapshot. A page looks at a bounded number of conversations, so it may be empty and
//! still have a cursor.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use futures_util::future::join_all;
use serde_json::value::RawValue;

use super::attached::Attached;
use super::fresh::Missed;
use super::links::Method;
use super::local::Replica;
use super::placement::GROUPS;
use super::remote::convert;
use super::remote::wire::{self, ListAnswer, ListCall};
use super::route::{Known, Route, to_any_host};
use super::search::{Deadline, Search};
use super::{Consistency, ListPage, ListQuery, ReadError, Shards, here};
use crate::conversation::{ConversationId, Description};
use crate::store::GroupStore;

/// Conversations looked at per page, beyond what a filter lets through; shared out among the groups.
pub(super) const LOOKED_AT_MAX: usize = 2_000;
/// A node's share of a page ends early once its metadata and policies take this much.
const SHARE_BYTES_MAX: usize = 4 << 20;

/// What some groups have to say to a query.
#[derive(Debug, Default)]
pub(super) struct Share {
    /// In id order.
    pub conversations: Vec<(ConversationId, Description)>,
    /// Nothing up to this id is missing; `None` when nothing is missing at all.
    pub upto: Option<ConversationId>,
}

/// Ids, each with the group it was found in.
type Found<'a> = Vec<(ConversationId, &'a Arc<GroupStore>)>;

/// Why there is no share: to be tried again, or not.
enum Failed {
    Missed(Missed),
    Error(ReadError),
}

impl Shards {
    /// Conversations in id order after the cursor that match the query.
    pub async fn list(&self, query: ListQuery) -> Result<ListPage, ReadError> {
        let attached = self.attached()?;
        let deadline = Deadline::after(self.0.request_timeout);
        // Only for its pauses: hosts are chosen for all groups at once.
        let mut search = Search::new(attached, 0);
        let mut open: Vec<u16> = (0..GROUPS).collect();
        let mut shares = Vec::new();
        for attempt in 0.. {
            let mut missed = Missed::new("no node that hosts some of the groups can be reached");
            let parts = attached.by_host(&open, attempt);
            let asked: usize = parts.iter().map(|(_, groups)| groups.len()).sum();
            let unplaced = asked < open.len();
            open.retain(|group| !parts.iter().any(|(_, groups)| groups.contains(group)));
            let answers = parts.into_iter().map(async |(host, groups)| {
                let answer = match host {
                    None => attached.share_here(&groups, &query, &deadline).await,
                    Some(node) => attached.share_at(node, &groups, &query, &deadline).await,
                };
                (groups, answer)
            });
            for (groups, answer) in join_all(answers).await {
                match answer {
                    Ok(share) => shares.push(share),
                    Err(Failed::Error(error)) => return Err(error),
                    Err(Failed::Missed(why)) => {
                        open.extend(groups);
                        missed = why;
                    }
                }
            }
            if open.is_empty() && !unplaced {
                break;
            }
            if !search.again(None, &deadline).await {
                return Err(ReadError::Unavailable(missed.why));
            }
        }
        Ok(merge(shares, query.limit))
    }
}

impl Attached {
    /// Which groups to list where: `None` is here. Groups without a host that can be reached are left out.
    fn by_host(&self, groups: &[u16], attempt: usize) -> Vec<(Option<u128>, Vec<u16>)> {
        let placement = self.placement();
        let mut parts: BTreeMap<Option<u128>, Vec<u16>> = BTreeMap::new();
        for group in groups {
            let hosts = placement.hosts(*group);
            let known = Known { here: self.local.node_id(), replica: None, hint: None, hosts, attempt };
            let host = match self.readable(*group) {
                Some(_) => None,
                None => match to_any_host(&known, |node| self.links.is_up(node)) {
                    Route::To(node) => Some(node),
                    Route::Here | Route::Nowhere => continue,
                },
            };
            parts.entry(host).or_default().push(*group);
        }
        parts.into_iter().collect()
    }

    async fn share_here(
        &self,
        groups: &[u16],
        query: &ListQuery,
        deadline: &Deadline,
    ) -> Result<Share, Failed> {
        let replicas: Option<Vec<Arc<dyn Replica>>> =
            groups.iter().map(|group| self.readable(*group)).collect();
        let gone = || Failed::Missed(Missed::new("a group is no longer hosted here"));
        let replicas = replicas.ok_or_else(gone)?;
        if query.consistency == Consistency::Linearizable {
            self.refresh_all(&replicas, deadline).await.map_err(Failed::Missed)?;
        }
        let stores: Vec<Arc<GroupStore>> = replicas.iter().map(|replica| replica.store().clone()).collect();
        let query = query.clone();
        let share = tokio::task::spawn_blocking(move || share_of(&stores, &query)).await;
        match share {
            Ok(Ok(share)) => Ok(share),
            Ok(Err(ReadError::Unavailable(why))) => Err(Failed::Missed(Missed::new(why))),
            Ok(Err(error)) => Err(Failed::Error(error)),
            Err(error) => Err(Failed::Error(ReadError::Internal(format!("listing task: {error}")))),
        }
    }

    async fn share_at(
        &self,
        node: u128,
        groups: &[u16],
        query: &ListQuery,
        deadline: &Deadline,
    ) -> Result<Share, Failed> {
        let missed = |why: String| Failed::Missed(Missed::new(why));
        let call = ListCall {
            groups: groups.to_vec(),
            linearizable: query.consistency == Consistency::Linearizable,
            prefix: query.prefix.clone(),
            status: query.status.map(Into::into),
            metadata: query.metadata.clone(),
            cursor: query.cursor.clone(),
            limit: query.limit as u64,
        };
        let _room = self.room.to_read(deadline).await.map_err(Failed::Missed)?;
        self.metrics().forwarded_requests_total.inc();
        let answer = self.links.call(node, Method::List, vec![wire::encode(&call)], deadline.left()).await;
        let answer = answer.map_err(|error| {
            self.metrics().forward_failures_total.inc();
            missed(error.to_string())
        })?;
        match wire::decode(&answer).map_err(|error| missed(error.to_string()))? {
            ListAnswer::Page { conversations, upto } => {
                read_share(conversations, upto).map_err(Failed::Error)
            }
            ListAnswer::Unavailable(why) => Err(missed(why)),
            ListAnswer::Internal(why) => Err(Failed::Error(ReadError::Internal(why))),
        }
    }

    /// Answers another node's call for the listing of groups that are hosted here.
    pub(super) async fn serve_list(&self, call: ListCall, deadline: &Deadline) -> ListAnswer {
        let groups: BTreeSet<u16> = call.groups.iter().copied().filter(|group| *group < GROUPS).collect();
        let groups: Vec<u16> = groups.into_iter().collect();
        match self.share_here(&groups, &call.query(), deadline).await {
            Ok(Share { conversations, upto }) => ListAnswer::Page {
                conversations: conversations
                    .into_iter()
                    .map(|(id, description)| (id.as_str().to_owned(), description.into()))
                    .collect(),
                upto: upto.map(|id| id.as_str().to_owned()),
            },
            Err(Failed::Missed(missed)) => ListAnswer::Unavailable(missed.why),
            Err(Failed::Error(error)) => ListAnswer::Internal(error.to_string()),
        }
    }
}

fn read_share(
    conversations: Vec<(String, wire::Description)>,
    upto: Option<String>,
) -> Result<Share, ReadError> {
    let conversations = conversations
        .into_iter()
        .map(|(id, description)| Ok((convert::id(&id)?, description.into())))
        .collect::<Result<_, ReadError>>()?;
    Ok(Share { conversations, upto: upto.map(|id| convert::id(&id)).transpose()? })
}

/// What some groups have, as far as a page of them goes.
fn share_of(stores: &[Arc<GroupStore>], query: &ListQuery) -> Result<Share, ReadError> {
    let (ids, mut upto) = ids_after(stores, query)?;
    let mut share = Share::default();
    let mut bytes = 0;
    let mut last = None;
    for (id, store) in ids {
        if share.conversations.len() == query.limit || bytes > SHARE_BYTES_MAX {
            upto = last;
            break;
        }
        last = Some(id.clone());
        let Some(description) = here::describe(store, &id)? else { continue };
        if matches(query, &description) {
            bytes += description.metadata.len() + description.policy.len();
            share.conversations.push((id, description));
        }
    }
    share.upto = upto;
    Ok(share)
}

/// Ids after the cursor, merged over the groups and each with its group, and up to where none is missing.
fn ids_after<'a>(
    stores: &'a [Arc<GroupStore>],
    query: &ListQuery,
) -> Result<(Found<'a>, Option<ConversationId>), ReadError> {
    let prefix = query.prefix.as_deref().unwrap_or("");
    let per_group = LOOKED_AT_MAX / usize::from(GROUPS) + 16;
    let mut ids = Vec::new();
    // Beyond the smallest last id of a group that may have more, ids could be missing.
    let mut upto: Option<ConversationId> = None;
    for store in stores {
        let found = store.ids_after(prefix, query.cursor.as_deref(), per_group)?;
        if found.len() == per_group {
            let last = found.last().cloned();
            upto = match (upto, last) {
                (Some(upto), Some(last)) => Some(upto.min(last)),
                (upto, last) => upto.or(last),
            };
        }
        ids.extend(found.into_iter().map(|id| (id, store)));
    }
    if let Some(upto) = &upto {
        ids.retain(|(id, _)| id <= upto);
    }
    ids.sort_unstable_by(|a, b| a.0.cmp(&b.0));
    Ok((ids, upto))
}

/// Joins the shares up to the id at which the first of them ends.
fn merge(shares: Vec<Share>, limit: usize) -> ListPage {
    let upto = shares.iter().filter_map(|share| share.upto.clone()).min();
    let mut conversations: Vec<_> = shares.into_iter().flat_map(|share| share.conversations).collect();
    if let Some(upto) = &upto {
        conversations.retain(|(id, _)| id <= upto);
    }
    conversations.sort_unstable_by(|a, b| a.0.cmp(&b.0));
    let is_cut = conversations.len() > limit;
    conversations.truncate(limit);
    let last = conversations.last().map(|(id, _)| id.clone()).filter(|_| is_cut);
    ListPage { conversations, next_cursor: last.or(upto).map(|id| id.as_str().to_owned()) }
}

fn matches(query: &ListQuery, description: &Description) -> bool {
    if query.status.is_some_and(|status| status != description.status) {
        return false;
    }
    if query.metadata.is_empty() {
        return true;
    }
    // As kept and shown: a number that went through a double would be another text.
    let Ok(metadata) = serde_json::from_slice::<HashMap<String, &RawValue>>(&description.metadata) else {
        return false;
    };
    query.metadata.iter().all(|(key, wanted)| {
        metadata.get(key).is_some_and(|value| match serde_json::from_str::<String>(value.get()) {
            Ok(text) => text == *wanted,
            Err(_) => value.get() == wanted,
        })
    })
}
