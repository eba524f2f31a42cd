//! Reads: from the state here if the group is hosted here, else by asking a node that hosts it.
//!
//! Reads have no effects, so that every failure of an attempt is safe to try again until the request's time is up.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, timeout};

use super::attached::Attached;
use super::excerpt;
use super::fresh::{Missed, NO_LEADER};
use super::here;
use super::history;
use super::links::Method;
use super::placement::group_of;
use super::remote::wire::{self, EventsAsked, Question, ReadAnswer, ReadCall, WindowAsked};
use super::route::Route;
use super::search::{Deadline, Search};
use super::{
    ChangePage, Consistency, Cursor, DigestPage, EventPage, EventsQuery, Excerpt, ReadError, ReadOptions,
    Shards, Usage, Window,
};
use crate::conversation::{ConversationId, Description, WindowQuery};
use crate::store::GroupStore;

/// Longest wait for `min_version`.
pub(super) const MIN_VERSION_WAIT: Duration = Duration::from_secs(5);
/// How much of that one host elsewhere gets, before another is asked: that may have the version already.
const HOST_WAIT: Duration = Duration::from_secs(1);

/// Whatever a host has applied.
const LOCAL: ReadOptions = ReadOptions { consistency: Consistency::Local, min_version: None };

/// Where a read can be answered.
enum Reached {
    /// From this state, which is as fresh as asked for.
    Here(Arc<GroupStore>),
    /// It has been, elsewhere.
    Answer(ReadAnswer),
}

impl Shards {
    /// A conversation's settings and counters.
    pub async fn describe(
        &self,
        id: &ConversationId,
        options: ReadOptions,
    ) -> Result<Option<Description>, ReadError> {
        match self.reach(id, options, Question::Describe).await? {
            Reached::Here(store) => here::describe(&store, id),
            Reached::Answer(ReadAnswer::Description(description)) => Ok(Some(description.into())),
            Reached::Answer(other) => other.no_value(),
        }
    }

    /// A conversation's version.
    pub async fn version(&self, id: &ConversationId, options: ReadOptions) -> Result<Option<u64>, ReadError> {
        match self.reach(id, options, Question::Version).await? {
            Reached::Here(store) => here::version(&store, id),
            Reached::Answer(ReadAnswer::Version(version)) => Ok(Some(version)),
            Reached::Answer(other) => other.no_value(),
        }
    }

    /// The window its policy makes of a conversation.
    pub async fn window(
        &self,
        id: &ConversationId,
        query: WindowQuery,
        options: ReadOptions,
    ) -> Result<Option<Window>, ReadError> {
        match self.reach(id, options, Question::Window(WindowAsked::from(query))).await? {
            Reached::Here(store) => here::window(&store, &self.0.cold, id, &query).await,
            Reached::Answer(ReadAnswer::Window(window)) => Ok(Some(window.into())),
            Reached::Answer(other) => other.no_value(),
        }
    }

    /// How full the window is as of a version; no message is read for it.
    pub async fn usage(&self, id: &ConversationId, at_version: u64) -> Result<Option<Usage>, ReadError> {
        // The version came from a read that may have been answered by another node.
        let options = ReadOptions { min_version: Some(at_version), ..LOCAL };
        match self.reach(id, options, Question::Usage { at_version }).await? {
            Reached::Here(store) => here::usage(&store, id, at_version),
            Reached::Answer(ReadAnswer::Usage { used_tokens, needs_compaction }) => {
                Ok(Some(Usage { used_tokens, needs_compaction }))
            }
            Reached::Answer(other) => other.no_value(),
        }
    }

    /// A page of the log.
    pub async fn events(
        &self,
        id: &ConversationId,
        query: EventsQuery,
        options: ReadOptions,
    ) -> Result<Option<EventPage>, ReadError> {
        match self.reach(id, options, Question::Events(EventsAsked::from(query.clone()))).await? {
            Reached::Here(store) => here::events(&store, &self.0.cold, id, &query).await,
            Reached::Answer(ReadAnswer::Events(page)) => Ok(Some(page.into())),
            Reached::Answer(other) => other.no_value(),
        }
    }

    /// What happened after a version that there is, in order, as far as fits `limit_bytes` (at least one change).
    pub async fn changes(
        &self,
        id: &ConversationId,
        after_version: u64,
        limit_bytes: u64,
    ) -> Result<Option<ChangePage>, ReadError> {
        // A host that has not got as far could neither continue from there, nor tell of what comes next.
        let options = ReadOptions { min_version: Some(after_version), ..LOCAL };
        match self.reach(id, options, Question::Changes { after_version, limit_bytes }).await? {
            Reached::Here(store) => here::changes(&store, &self.0.cold, id, after_version, limit_bytes).await,
            Reached::Answer(ReadAnswer::Changes(page)) => Ok(Some(page.into())),
            Reached::Answer(other) => other.no_value(),
        }
    }

    /// Digests of a conversation's versions from `first` on, at most about `limit`.
    pub async fn version_digests(
        &self,
        id: &ConversationId,
        first: u64,
        limit: u64,
    ) -> Result<Option<DigestPage>, ReadError> {
        let fresh = ReadOptions::default();
        match self.reach(id, fresh, Question::Digests { first, limit }).await? {
            Reached::Here(store) => history::digests(&store, &self.0.cold, id, first, limit).await,
            Reached::Answer(ReadAnswer::Digests(page)) => Ok(Some(page.into())),
            Reached::Answer(other) => other.no_value(),
        }
    }

    /// What a conversation's history has from a place on, as commands that restore it.
    pub async fn excerpt(&self, id: &ConversationId, from: Cursor) -> Result<Option<Excerpt>, ReadError> {
        match self.reach(id, ReadOptions::default(), Question::Excerpt(from)).await? {
            Reached::Here(store) => excerpt::read(&store, &self.0.cold, id, from).await,
            Reached::Answer(ReadAnswer::Excerpt(excerpt)) => Ok(Some(excerpt)),
            Reached::Answer(other) => other.no_value(),
        }
    }

    /// Makes attempts, here or elsewhere, until one succeeds or the time is up.
    async fn reach(
        &self,
        id: &ConversationId,
        options: ReadOptions,
        question: Question,
    ) -> Result<Reached, ReadError> {
        let attached = self.attached()?;
        let group = group_of(id);
        let deadline = Deadline::after(self.0.request_timeout);
        let mut search = Search::new(attached, group);
        let linearizable = options.consistency == Consistency::Linearizable;
        let patience_ends = Instant::now() + MIN_VERSION_WAIT;
        let mut call = None;
        loop {
            let missed = match attached.readable(group) {
                Some(replica) => {
                    let fresh = match linearizable {
                        true => attached.refresh(&replica, &mut search, &deadline).await,
                        false => Ok(()),
                    };
                    match fresh {
                        Ok(()) => {
                            let (store, wanted) = (replica.store(), options.min_version);
                            await_version(store, id, linearizable, wanted, MIN_VERSION_WAIT).await?;
                            return Ok(Reached::Here(store.clone()));
                        }
                        Err(missed) => missed,
                    }
                }
                None => {
                    let call = call.get_or_insert_with(|| ReadCall {
                        id: id.as_str().to_owned(),
                        linearizable,
                        min_version: options.min_version,
                        wait_ms: None,
                        question: question.clone(),
                    });
                    // Of a leader it is the last word that it is behind: nobody else can be further.
                    if options.min_version.is_some() && !linearizable {
                        let patience = patience_ends.saturating_duration_since(Instant::now());
                        call.wait_ms = Some(patience.min(HOST_WAIT).as_millis() as u64);
                    }
                    match attached.ask(call, group, &mut search, &deadline).await {
                        Ok(ReadAnswer::Behind(why)) if !linearizable && Instant::now() < patience_ends => {
                            Missed::new(why)
                        }
                        Ok(answer) => return Ok(Reached::Answer(answer)),
                        Err(missed) => missed,
                    }
                }
            };
            if !search.again(missed.leader, &deadline).await {
                return Err(ReadError::Unavailable(missed.why));
            }
        }
    }
}

impl Attached {
    /// Has another node answer a read, by one attempt.
    async fn ask(
        &self,
        call: &ReadCall,
        group: u16,
        search: &mut Search<'_>,
        deadline: &Deadline,
    ) -> Result<ReadAnswer, Missed> {
        let route = if call.linearizable { search.leader() } else { search.host() };
        let Route::To(node) = route else {
            let why =
                if call.linearizable { NO_LEADER } else { "no node that hosts the group can be reached" };
            return Err(Missed::new(why));
        };
        let _room = self.room.to_read(deadline).await?;
        let metrics = self.metrics();
        metrics.forwarded_requests_total.inc();
        let limit =
            deadline.left() + if call.min_version.is_some() { MIN_VERSION_WAIT } else { Duration::ZERO };
        let answer = self.links.call(node, Method::Read, vec![wire::encode(call)], limit).await;
        let answer = answer
            .map_err(|error| Missed::new(error.to_string()))
            .and_then(|bytes| wire::decode(&bytes).map_err(|error| Missed::new(error.to_string())));
        match answer {
            Ok(ReadAnswer::NotLeader { leader }) => Err(Missed {
                why: "the node asked does not lead the group".into(),
                leader: leader.map(u128::from),
            }),
            Ok(ReadAnswer::Unavailable(why)) => Err(Missed::new(why)),
            Ok(answer) => {
                match &answer {
                    ReadAnswer::Behind(_) => {}
                    _ if call.linearizable => self.remember_leader(group, Some(node)),
                    _ if call.min_version.is_some() => search.found_at(node),
                    _ => {}
                }
                Ok(answer)
            }
            Err(missed) => {
                metrics.forward_failures_total.inc();
                Err(missed)
            }
        }
    }
}

/// Waits, within bounds, until the state here has reached a version. One that is not there has not reached version 0; a
/// linearizable read knows of every creation, and does not wait for one.
pub(super) async fn await_version(
    store: &Arc<GroupStore>,
    id: &ConversationId,
    linearizable: bool,
    wanted: Option<u64>,
    wait: Duration,
) -> Result<(), ReadError> {
    let Some(wanted) = wanted else { return Ok(()) };
    let is_reached =
        || Ok::<_, ReadError>(here::version(store, id)?.is_some_and(|version| version >= wanted));
    let is_absent = || Ok::<_, ReadError>(here::version(store, id)?.is_none());
    if is_reached()? || linearizable && is_absent()? {
        return Ok(());
    }
    let mut version = store.watch(id)?;
    let reached = async {
        // What is watched is 0 before the creation too.
        while !is_reached()? {
            if version.changed().await.is_err() {
                return Ok(false);
            }
        }
        Ok::<_, ReadError>(true)
    };
    match timeout(wait, reached).await.unwrap_or(Ok(false))? {
        true => Ok(()),
        false => Err(ReadError::Unavailable(format!("version {wanted} was not reached within {wait:?}"))),
    }
}
