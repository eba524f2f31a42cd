//! Following a conversation's version, wherever its group is hosted.
//!
//! A wake only says that reading again is worthwhile. Where the group is hosted elsewhere, a host is asked to hold its
//! answer back until there is news; a lost link is a reason to ask again, never to fall silent.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::sleep;

use super::attached::Attached;
use super::links::Method;
use super::placement::group_of;
use super::remote::wire::{self, WaitCall};
use super::route::Route;
use super::search::Search;
use super::{ReadError, Shards};
use crate::conversation::ConversationId;

/// How long a host holds back its answer for want of news.
pub(super) const WAIT_MAX: Duration = Duration::from_secs(10);
/// How much longer the answer may take.
const WAIT_GRACE: Duration = Duration::from_secs(2);
/// Waits of this node that others hold at once; whoever comes beyond that looks again by itself now and then.
pub(super) const WAITS_MAX: usize = 256;
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Pauses after failures, doubling.
const PAUSE_MIN: Duration = Duration::from_millis(5);
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// What came of waiting.
enum News {
    /// There is a newer version, or there may be.
    Perhaps,
    /// Nothing new so far.
    None,
    /// Could not be asked.
    Failed,
}

/// Wakes when a conversation moves on.
pub struct Watcher {
    shards: Shards,
    id: ConversationId,
    /// The version here, while the group is hosted here.
    version: Option<watch::Receiver<u64>>,
}

impl Shards {
    /// Follows a conversation's version.
    pub fn watch(&self, id: &ConversationId) -> Result<Watcher, ReadError> {
        let version = self.attached()?.watch_here(id);
        Ok(Watcher { shards: self.clone(), id: id.clone(), version })
    }
}

impl Watcher {
    /// Resolves once there may be a version beyond `seen`: always when there is one, now and then when there is none.
    /// Never resolves if the node stops first.
    pub async fn beyond(&mut self, seen: u64) {
        let shards = self.shards.clone();
        let Ok(attached) = shards.attached() else { return std::future::pending().await };
        let group = group_of(&self.id);
        let mut search = Search::new(attached, group);
        let mut pause = PAUSE_MIN;
        loop {
            if self.version.is_none() {
                self.version = attached.watch_here(&self.id);
            }
            let news = match &mut self.version {
                Some(version) => tokio::select! {
                    version = version.wait_for(|version| *version > seen) => {
                        version.map_or(News::Failed, |_| News::Perhaps)
                    }
                    () = attached.placement_changed() => News::None,
                },
                None => attached.wait_beyond(&mut search, &self.id, seen).await,
            };
            match news {
                News::Perhaps => return,
                // The group may have moved away meanwhile.
                News::None if attached.readable(group).is_some() => {}
                News::None => {
                    self.version = None;
                    // This host may be cut off from the leader: the next one may have news.
                    search.failed();
                }
                News::Failed => {
                    self.version = None;
                    search.failed();
                    sleep(pause).await;
                    pause = (pause * 2).min(PAUSE_MAX);
                }
            }
        }
    }
}

impl Attached {
    fn watch_here(&self, id: &ConversationId) -> Option<watch::Receiver<u64>> {
        self.readable(group_of(id))?.store().watch(id).ok()
    }

    /// Asks a host to answer once it has a version beyond `seen`, or after a while.
    async fn wait_beyond(&self, search: &mut Search<'_>, id: &ConversationId, seen: u64) -> News {
        let Ok(_room) = self.room.waits.try_acquire() else {
            sleep(LOOK_EVERY).await;
            return News::Perhaps;
        };
        let Route::To(node) = search.host() else { return News::Failed };
        let call = WaitCall { id: id.as_str().to_owned(), seen, wait_ms: WAIT_MAX.as_millis() as u64 };
        let body = vec![wire::encode(&call)];
        let answer = self.links.call(node, Method::WaitBeyond, body, WAIT_MAX + WAIT_GRACE).await;
        match answer.ok().and_then(|answer| wire::decode::<u64>(&answer).ok()) {
            Some(version) if version > seen => {
                search.found_at(node);
                News::Perhaps
            }
            // It lags, and may for long.
            Some(version) if version < seen => News::Failed,
            Some(_) => News::None,
            None => News::Failed,
        }
    }
}
