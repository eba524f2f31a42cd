//! The side that serves other nodes' calls. It never sends a request on: a call that does not belong here says so.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::join_all;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use super::codec::{self, Outcome, ReadIndex};
use super::convert;
use super::wire::{self, ListCall, Question, ReadAnswer, ReadCall, WaitCall};
use crate::conversation::{ConversationId, Entry, FrameLocation};
use crate::hold::hold;
use crate::shards::attached::Attached;
use crate::shards::cold::Cold;
use crate::shards::fresh::Missed;
use crate::shards::indexes::INDEX_CALL_MAX;
use crate::shards::links::Method;
use crate::shards::placement::{GROUPS, META_GROUP, group_of};
use crate::shards::read::{MIN_VERSION_WAIT, await_version};
use crate::shards::search::Deadline;
use crate::shards::watcher::WAIT_MAX;
use crate::shards::{InFlight, ReadError, STARTING, Shards, excerpt, here, history};
use crate::store::GroupStore;
use crate::trace;

/// Bytes of other nodes' commands at work; more wait. Apart from this node's own proposals, which may in turn wait for
/// another node: two nodes must never wait for each other's room.
const WRITES_BYTES_MAX: usize = 64 << 20;
/// Reads of other nodes answered at once, until their answers are sent; a page of each is in memory. More wait.
const READS_MAX: usize = 64;
/// An answer of so many bytes at most takes no place among these once it is made: none is to wait for a slow link because of it.
const SMALL_ANSWER_BYTES: usize = 64 << 10;
/// Waits of other nodes held at once, those that nobody waits for any more among them: fewer than the calls that a connection
/// serves, so that Raft's get through. More are refused.
const WAITS_MAX: usize = 512;

/// The bounds of what is served for other nodes.
pub(crate) struct Bounds {
    write_bytes: Semaphore,
    reads: Arc<Semaphore>,
    waits: Semaphore,
}

impl Default for Bounds {
    fn default() -> Self {
        let write_bytes = Semaphore::new(WRITES_BYTES_MAX);
        let reads = Arc::new(Semaphore::new(READS_MAX));
        Self { write_bytes, reads, waits: Semaphore::new(WAITS_MAX) }
    }
}

/// How long no write of another node may have been under way before there are taken to be no more.
const QUIET: Duration = Duration::from_millis(100);
const QUIET_LOOK: Duration = Duration::from_millis(5);

impl Shards {
    /// Returns once no write that another node sent here is under way any more. For a node that leads nothing and is
    /// about to close its links: an answer that does not get out leaves its client without an outcome.
    pub async fn peers_writes_ended(&self) {
        let mut quiet_since = Instant::now();
        while quiet_since.elapsed() < QUIET {
            if self.0.bounds.write_bytes.available_permits() < WRITES_BYTES_MAX {
                quiet_since = Instant::now();
            }
            tokio::time::sleep(QUIET_LOOK).await;
        }
    }

    /// Serves a call of another node. An error means that nothing was done.
    pub(crate) async fn serve(&self, method: u16, body: Bytes) -> Result<Bytes, String> {
        let method = Method::from_number(method).ok_or_else(|| format!("unknown method {method}"))?;
        let attached = self.attached().map_err(|_| STARTING.to_owned())?;
        if self.0.failure.is_raised() {
            return Err("the node has failed and is stopping".to_owned());
        }
        attached.metrics().served_for_peers_total.inc();
        match method {
            Method::ForwardWrite => {
                let (group, command, caller) = codec::read_forward_write(body).map_err(|e| e.to_string())?;
                let span = trace::received("forwarded write", caller);
                let served = trace::within(span.as_ref(), self.serve_write(attached, group, command));
                Ok(served.await?.encode())
            }
            Method::ReadIndex => {
                let groups = codec::read_groups(body).map_err(|e| e.to_string())?;
                Ok(codec::indexes(&attached.serve_indexes(&groups).await))
            }
            Method::Read => {
                let call: ReadCall = wire::decode(&body).map_err(|e| e.to_string())?;
                let mut place = None;
                let answer = self.serve_read(attached, call, &mut place).await;
                Ok(placed(wire::encode(&answer.unwrap_or_else(ReadAnswer::from)), place))
            }
            Method::WaitBeyond => {
                let call: WaitCall = wire::decode(&body).map_err(|e| e.to_string())?;
                let _permit = self.0.bounds.waits.try_acquire().map_err(|_| "too many waits".to_owned())?;
                Ok(wire::encode(&attached.serve_wait(&call).await.map_err(|e| e.to_string())?))
            }
            Method::List => {
                let call: ListCall = wire::decode(&body).map_err(|e| e.to_string())?;
                let place = self.place_to_read().await.map_err(|e| e.to_string())?;
                let listed = attached.serve_list(call, &Deadline::after(self.0.request_timeout)).await;
                Ok(placed(wire::encode(&listed), Some(place)))
            }
        }
    }

    async fn serve_write(&self, attached: &Attached, group: u16, command: Bytes) -> Result<Outcome, String> {
        check(group, &command)?;
        let deadline = Deadline::after(self.0.request_timeout);
        let weight = command.len().min(WRITES_BYTES_MAX) as u32;
        let room = self.0.bounds.write_bytes.acquire_many(weight);
        let Ok(Ok(_room)) = timeout(self.0.request_timeout, room).await else {
            return Ok(Outcome::NotApplied("the leader has too much to do".into()));
        };
        let _inflight = InFlight::new(attached.metrics(), command.len());
        Ok(attached.write_here(group, command, &deadline).await)
    }

    /// `place` gets that of the read among those of other nodes.
    async fn serve_read(
        &self,
        attached: &Attached,
        call: ReadCall,
        place: &mut Option<OwnedSemaphorePermit>,
    ) -> Result<ReadAnswer, ReadError> {
        let id = convert::id(&call.id)?;
        let gone = || ReadError::Unavailable("the group is not hosted by the node asked".into());
        let replica = attached.readable(group_of(&id)).ok_or_else(gone)?;
        let store = replica.store();
        if call.linearizable {
            let limit = self.0.request_timeout;
            let index = timeout(limit, attached.index_here(&*replica)).await;
            let late = |_| ReadError::Unavailable("a quorum did not confirm the read in time".into());
            match index.map_err(late)? {
                ReadIndex::At(index) => {
                    let applied = timeout(limit, replica.wait_applied(index)).await.map_err(late)?;
                    applied.map_err(ReadError::Unavailable)?;
                }
                ReadIndex::NotLeader(leader) => {
                    return Ok(ReadAnswer::NotLeader { leader: leader.map(Into::into) });
                }
                ReadIndex::Failed(why) => return Err(ReadError::Unavailable(why)),
            }
        }
        let wait = call.wait_ms.map_or(MIN_VERSION_WAIT, Duration::from_millis).min(MIN_VERSION_WAIT);
        match await_version(store, &id, call.linearizable, call.min_version, wait).await {
            Err(ReadError::Unavailable(why)) => return Ok(ReadAnswer::Behind(why)),
            reached => reached?,
        }
        *place = Some(self.place_to_read().await?);
        answer(store, &self.0.cold, &id, call.question).await
    }

    /// A place among the reads of other nodes. Whoever asked waits no longer than for this.
    async fn place_to_read(&self) -> Result<OwnedSemaphorePermit, ReadError> {
        let place = timeout(self.0.request_timeout, self.0.bounds.reads.clone().acquire_owned()).await;
        let late = |_| ReadError::Unavailable("the node asked has too many reads of other nodes".into());
        place.map_err(late)?.map_err(|_| ReadError::Unavailable(STARTING.into()))
    }
}

impl Attached {
    async fn serve_indexes(&self, groups: &[u16]) -> Vec<ReadIndex> {
        let one = async |group: &u16| match self.local.replica(*group) {
            None => ReadIndex::NotLeader(None),
            Some(replica) => timeout(INDEX_CALL_MAX, self.index_here(&*replica))
                .await
                .unwrap_or_else(|_| ReadIndex::Failed("a quorum did not confirm the read in time".into())),
        };
        // No more than there are, whatever was asked for.
        join_all(groups.iter().take(usize::from(GROUPS) + 1).map(one)).await
    }

    async fn serve_wait(&self, call: &WaitCall) -> Result<u64, ReadError> {
        let id = convert::id(&call.id)?;
        let missed = Missed::new("the group is not hosted by the node asked");
        let replica = self.readable(group_of(&id)).ok_or(ReadError::Unavailable(missed.why))?;
        let mut version = replica.store().watch(&id)?;
        // The store may go while nothing but this wait holds it.
        drop(replica);
        let wait = Duration::from_millis(call.wait_ms).min(WAIT_MAX);
        let news = timeout(wait, version.wait_for(|version| *version > call.seen)).await;
        let closed = news.is_ok_and(|version| version.is_err());
        if closed {
            return Err(ReadError::Unavailable("the group moves".into()));
        }
        Ok(*version.borrow())
    }
}

/// An answer that keeps its place among the reads until the last of it is sent: however slow the links are, only so many
/// are in memory.
fn placed(answer: Bytes, place: Option<OwnedSemaphorePermit>) -> Bytes {
    if answer.len() <= SMALL_ANSWER_BYTES { answer } else { hold(answer, place) }
}

/// A command that replicas could not apply must not get into a log: applying it would stop them all.
fn check(group: u16, command: &Bytes) -> Result<(), String> {
    let entry = Entry::decode(command.clone(), FrameLocation::default()).map_err(|e| e.to_string())?;
    let belongs = |id: &ConversationId| group == META_GROUP || group == group_of(id);
    let all_belong = match &entry {
        Entry::Command(command, _) => belongs(&command.id),
        Entry::Marks(marks) => marks.as_slice().iter().all(|mark| belongs(&mark.id)),
        Entry::Trims(trims) => trims.as_slice().iter().all(|trim| belongs(&trim.id)),
    };
    if all_belong { Ok(()) } else { Err("the conversation belongs to another group".to_owned()) }
}

async fn answer(
    store: &Arc<GroupStore>,
    cold: &Cold,
    id: &ConversationId,
    question: Question,
) -> Result<ReadAnswer, ReadError> {
    let answer = match question {
        Question::Describe => here::describe(store, id)?.map(|d| ReadAnswer::Description(d.into())),
        Question::Version => here::version(store, id)?.map(ReadAnswer::Version),
        Question::Window(asked) => {
            here::window(store, cold, id, &asked.into()).await?.map(|w| ReadAnswer::Window(w.into()))
        }
        Question::Usage { at_version } => here::usage(store, id, at_version)?.map(|usage| {
            ReadAnswer::Usage { used_tokens: usage.used_tokens, needs_compaction: usage.needs_compaction }
        }),
        Question::Events(asked) => {
            here::events(store, cold, id, &asked.into()).await?.map(|page| ReadAnswer::Events(page.into()))
        }
        Question::Digests { first, limit } => {
            let page = history::digests(store, cold, id, first, limit).await?;
            page.map(|page| ReadAnswer::Digests(page.into()))
        }
        Question::Excerpt(from) => excerpt::read(store, cold, id, from).await?.map(ReadAnswer::Excerpt),
        Question::Changes { after_version, limit_bytes } => {
            here::changes(store, cold, id, after_version, limit_bytes)
                .await?
                .map(|page| ReadAnswer::Changes(page.into()))
        }
    };
    Ok(answer.unwrap_or(ReadAnswer::Absent))
}
