//! What whoever writes the archive asks of the groups that are led here.

use std::sync::Arc;

use super::history::{self, First, HistoryLimits, HistoryPage};
use super::local::Replica;
use super::placement::{META_GROUP, group_of};
use super::{ReadError, Shards, Trimmable};
use crate::conversation::{ConversationId, EventRange, Location, plan_events};

/// Records looked at in one step of a scan: about a millisecond, and the scan for what is not archived holds the group's
/// lock for it.
const SCAN_STEP: usize = 512;

/// A conversation of a group led here that the archive lacks something of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lagging {
    pub id: ConversationId,
    /// How many versions, about.
    pub behind: u64,
}

/// What one look at a group found.
#[derive(Debug, Default)]
pub struct Look {
    pub lagging: Vec<Lagging>,
    /// Another look would find more.
    pub more: bool,
}

impl Shards {
    /// The groups of conversations that are led here. Those that are not are no longer tracked.
    pub fn archived_here(&self) -> Vec<u16> {
        let Ok(attached) = self.attached() else { return Vec::new() };
        let mut led = Vec::new();
        for replica in attached.local.hosted() {
            let leads = replica.group() != META_GROUP && attached.leads(&replica);
            replica.store().track_unarchived(leads);
            if leads {
                led.push(replica.group());
            }
        }
        led
    }

    /// The groups of which it is followed here what the archive lacks, each with the number of this following: another one
    /// after the lead was lost, even if it came back.
    pub fn followed_for_archive(&self) -> Vec<(u16, u64)> {
        let Ok(attached) = self.attached() else { return Vec::new() };
        let hosted = attached.local.hosted().into_iter();
        hosted.filter_map(|replica| Some((replica.group(), replica.store().tracking_unarchived()?))).collect()
    }

    /// The groups of conversations that are led here.
    pub fn led_groups(&self) -> Vec<u16> {
        let Ok(attached) = self.attached() else { return Vec::new() };
        let led = attached.local.hosted().into_iter().filter(|replica| attached.leads(replica));
        led.map(|replica| replica.group()).filter(|group| *group != META_GROUP).collect()
    }

    /// Conversations of a group led here that could be trimmed to their newest `keep` messages, among the next records
    /// after `after`; with the last of these, if more follow.
    pub async fn look_for_trimmable(
        &self,
        group: u16,
        after: Option<ConversationId>,
        keep: u64,
    ) -> Result<(Vec<Trimmable>, Option<ConversationId>), ReadError> {
        let Some(replica) = self.led(group)? else { return Ok((Vec::new(), None)) };
        let look = move || replica.store().look_for_trimmable(after.as_ref(), SCAN_STEP, keep);
        let looked = tokio::task::spawn_blocking(look).await;
        Ok(looked.map_err(|error| ReadError::Internal(format!("look task: {error}")))??)
    }

    /// Versions that the archive lacks of the groups led here, as far as they have been looked at.
    pub fn unarchived_versions(&self) -> u64 {
        let Ok(attached) = self.attached() else { return 0 };
        attached.local.hosted().iter().map(|replica| replica.store().unarchived_versions()).sum()
    }

    /// Conversations of a group that changed since they were last asked for, and, while not all records have been looked
    /// at since this node came to lead it, some of those. At most about `room`.
    pub async fn look_for_unarchived(&self, group: u16, room: usize) -> Result<Look, ReadError> {
        let Some(replica) = self.led(group)? else { return Ok(Look::default()) };
        let looked = tokio::task::spawn_blocking(move || {
            let store = replica.store();
            let mut found = store.take_unarchived(room);
            let scanned =
                if found.len() < room { store.scan_unarchived(SCAN_STEP)? } else { Some(Vec::new()) };
            let more = scanned.is_some();
            found.extend(scanned.unwrap_or_default());
            let lagging = found.into_iter().map(|(id, behind)| Lagging { id, behind }).collect();
            Ok::<_, ReadError>(Look { lagging, more })
        });
        looked.await.map_err(|error| ReadError::Internal(format!("look task: {error}")))?
    }

    /// Conversations of a group led here that the archive is marked to hold something of, and up to which version, among the
    /// next records after `after`; with the last of these, if more follow.
    pub async fn look_for_archived(
        &self,
        group: u16,
        after: Option<ConversationId>,
    ) -> Result<(Vec<(ConversationId, u64)>, Option<ConversationId>), ReadError> {
        let Some(replica) = self.led_or_untracked(group)? else { return Ok((Vec::new(), None)) };
        let look = move || replica.store().look_for_archived(after.as_ref(), SCAN_STEP);
        let looked = tokio::task::spawn_blocking(look).await;
        Ok(looked.map_err(|error| ReadError::Internal(format!("look task: {error}")))??)
    }

    /// The versions of a conversation that the archive lacks, oldest first; also those that it is marked to hold and has
    /// lost, by what it says it holds. `None` if its group is not led here, or it does not exist.
    pub async fn unarchived(
        &self,
        id: &ConversationId,
        held: Option<u64>,
        limits: HistoryLimits,
    ) -> Result<Option<HistoryPage>, ReadError> {
        let first = First::Unarchived { held };
        match self.led_or_untracked(group_of(id))? {
            Some(replica) => history::read(replica.store(), &self.0.cold, id, first, limits).await,
            None => Ok(None),
        }
    }

    /// What the archive is marked to hold of a conversation and follows event `seq`, oldest first; the very beginning for
    /// seq 0. `None` if its group is not led here, or it does not exist.
    pub async fn archived_after(
        &self,
        id: &ConversationId,
        seq: u64,
        limits: HistoryLimits,
    ) -> Result<Option<HistoryPage>, ReadError> {
        let Some(replica) = self.led(group_of(id))? else { return Ok(None) };
        let first = First::AfterEvent { seq };
        let mut page = history::read(replica.store(), &self.0.cold, id, first, limits).await?;
        if let Some(page) = &mut page {
            let archived = page.archived_version;
            page.versions.retain(|version| Some(version.version) <= archived);
        }
        Ok(page)
    }

    /// The events of a conversation after `after_seq` and up to `upto_seq`, in order, with what their bodies are known by:
    /// so many at most, of about so many bytes, but at least one. None if its group is not led here, or it does not exist.
    pub async fn locations(
        &self,
        id: &ConversationId,
        after_seq: u64,
        upto_seq: u64,
        limits: HistoryLimits,
    ) -> Result<Vec<(u64, Location)>, ReadError> {
        let Some(replica) = self.led(group_of(id))? else { return Ok(Vec::new()) };
        let range = EventRange {
            from_seq: after_seq + 1,
            to_seq: upto_seq,
            newest_first: false,
            limit: limits.versions,
            limit_bytes: limits.bytes,
        };
        let id = id.clone();
        let plan = move || replica.store().read(&id, |c, history| plan_events(c, &id, history, &range));
        let planned = tokio::task::spawn_blocking(plan).await;
        let planned = planned.map_err(|error| ReadError::Internal(format!("look task: {error}")))??;
        let events = planned.transpose()?.unwrap_or_default();
        Ok(events.into_iter().map(|event| (event.seq, event.location)).collect())
    }

    /// As [`Shards::led`]. A group that is not led here is tracked no more: whoever leads it next looks at all of its records,
    /// which has to include this node if it leads again at once.
    fn led_or_untracked(&self, group: u16) -> Result<Option<Arc<dyn Replica>>, ReadError> {
        let led = self.led(group)?;
        if led.is_none()
            && let Some(replica) = self.attached()?.local.replica(group)
        {
            replica.store().track_unarchived(false);
        }
        Ok(led)
    }

    fn led(&self, group: u16) -> Result<Option<Arc<dyn Replica>>, ReadError> {
        let attached = self.attached()?;
        Ok(attached.local.replica(group).filter(|replica| attached.leads(replica)))
    }
}
