//! Gives disk space back: segments of the journal that hold little that anybody needs.
//!
//! A pass surveys what the index locates in which segment, decides (see [`plan`]), and then, for every group, writes an
//! image into the journal that needs no segment before the floor. A checkpoint makes the new places of messages and the
//! images durable. When the last reader is gone that looked a place up before, the segments are removed, oldest first.
//! A crash in between leaves segments that nobody needs, which a later pass finds again.
//!
//! It is throttled in what it reads and writes, and looks for nothing while nothing was appended.

mod plan;
#[cfg(test)]
mod sim_tests;
#[cfg(test)]
mod tests;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::runtime::Handle;
use tokio::sync::Mutex;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::checkpoint::Checkpointer;
use super::image::{self, Imaging};
use super::send::Pace;
use super::slots::{Slot, Slots};
use super::snapshot;
use super::state_machine::stored_membership;
use crate::conversation::FrameLocation;
use crate::journal::{FrameKind, Journal, Position};
use crate::store::{Failure, GroupStore, Shared, StoreError, Survey};
use plan::Plan;

/// Looking takes no more than about one part in so many of the time, however large the index.
const REST_FACTOR: u32 = 10;
/// Bytes of the index read between two looks at the pace.
const SURVEY_STEP_BYTES: usize = 256 << 10;
/// Room for so many segments is left free by a pass: what it writes is an estimate, and others write too.
const SEGMENTS_KEPT_FREE: u64 = 4;
/// The time between two looks doubles so often while passes fail: from a minute to some 17 hours.
const BACKOFF_DOUBLINGS_MAX: u32 = 10;
/// How often it is looked whether the last reader is gone.
const READERS_POLL: Duration = Duration::from_millis(20);

/// How segments are reclaimed.
#[derive(Debug, Clone, Copy)]
pub struct ReclaimSettings {
    /// What is read from the index and written to the journal in a second, at most.
    pub bytes_per_second: u64,
    /// A pass must gain this share of the space that it frees; 100 turns reclaiming off.
    pub dead_percent: u64,
    /// Time between two looks.
    pub interval: Duration,
}

/// What a pass did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Reclaimed {
    pub(crate) segments: usize,
    pub(crate) bytes: u64,
}

/// Why a pass came to no end. Nothing was removed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReclaimError {
    #[error("the node is stopping")]
    Stopped,
    #[error("a snapshot is being installed in group {0}")]
    Installing(u16),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Reclaims segments of the node's journal, one pass at a time.
pub(crate) struct Reclaimer {
    journal: Journal,
    shared: Arc<Shared>,
    slots: Arc<Slots>,
    checkpointer: Arc<Checkpointer>,
    settings: ReclaimSettings,
    pace: Pace,
    failure: Failure,
    stop: CancellationToken,
    turn: Mutex<()>,
    /// The oldest segment that a message could not be read from; [`u32::MAX`] while all could.
    damaged: AtomicU32,
}

impl Reclaimer {
    pub(crate) fn new(
        shared: Arc<Shared>,
        journal: Journal,
        slots: Arc<Slots>,
        checkpointer: Arc<Checkpointer>,
        settings: ReclaimSettings,
        failure: Failure,
        stop: CancellationToken,
    ) -> Self {
        let (pace, turn) = (Pace::new(settings.bytes_per_second), Mutex::default());
        let damaged = AtomicU32::new(u32::MAX);
        Self { journal, shared, slots, checkpointer, settings, pace, failure, stop, turn, damaged }
    }

    /// Looks now and then whether there is something to reclaim.
    pub(crate) async fn serve(self: Arc<Self>) {
        if self.settings.dead_percent >= 100 {
            return;
        }
        let mut rest = self.settings.interval;
        let mut seen = Position::ZERO;
        let mut failures = 0;
        loop {
            tokio::select! {
                () = self.stop.cancelled() => return,
                _ = self.failure.raised() => return,
                () = tokio::time::sleep(rest) => {}
            }
            rest = self.settings.interval;
            let end = self.journal.end();
            // What dies, dies by an append.
            if end == seen || !self.has_candidates() {
                continue;
            }
            seen = end;
            let begun = Instant::now();
            failures = match self.pass().await {
                Ok(None) => 0,
                Ok(Some(_)) | Err(ReclaimError::Installing(_)) => {
                    seen = Position::ZERO;
                    0
                }
                Err(ReclaimError::Stopped) => return,
                Err(error) => {
                    self.report(&error);
                    failures + 1
                }
            };
            // A pass that fails has written for nothing.
            let rests = self.settings.interval * 2_u32.pow(failures.min(BACKOFF_DOUBLINGS_MAX));
            rest = rests.max(begun.elapsed() * (REST_FACTOR - 1));
        }
    }

    /// An index that is wrong stops the node; message bytes that are damaged only keep their segment from going.
    fn report(&self, error: &ReclaimError) {
        warn!(event = "reclaim_failed", %error);
        self.shared.metrics.reclaim_failures_total.inc();
        if let ReclaimError::Store(error) = error
            && error.wants_rebuild()
        {
            self.failure.store(error);
        }
    }

    fn has_candidates(&self) -> bool {
        let stats = self.journal.stats();
        stats.checkpoint.is_some_and(|scan_from| stats.oldest_segment < scan_from.segment)
    }

    /// One pass. `None` when nothing is worth it.
    pub(crate) async fn pass(self: &Arc<Self>) -> Result<Option<Reclaimed>, ReclaimError> {
        let _turn = self.turn.lock().await;
        let done = self.reclaim().await;
        if let Err(ReclaimError::Store(StoreError::Damaged { segment, .. })) = &done {
            self.damaged.fetch_min(*segment, Ordering::Relaxed);
        }
        done
    }

    async fn reclaim(self: &Arc<Self>) -> Result<Option<Reclaimed>, ReclaimError> {
        let Some(plan) = self.look().await? else { return Ok(None) };
        let begun = Instant::now();
        info!(event = "reclaim_started", floor = plan.floor, frees = plan.frees, writes = plan.writes);
        for slot in self.slots.iter() {
            self.image(slot, plan.floor).await?;
        }
        let journal = self.journal.clone();
        self.blocking(move || Ok(journal.block_until_synced(journal.end())?)).await?;
        self.checkpointer.checkpoint(&self.failure).await;
        if self.failure.is_raised() {
            return Err(ReclaimError::Stopped);
        }
        self.earlier_readers_gone().await?;
        let (journal, floor) = (self.journal.clone(), plan.floor);
        let removed = tokio::task::spawn_blocking(move || journal.remove_segments_before(floor)).await;
        let segments = removed.map_err(io::Error::other)??;
        let reclaimed = Reclaimed { segments, bytes: plan.frees };
        self.shared.metrics.reclaimed_bytes_total.inc_by(reclaimed.bytes);
        let elapsed_ms = begun.elapsed().as_millis() as u64;
        info!(event = "reclaim_finished", segments, bytes = reclaimed.bytes, elapsed_ms);
        Ok(Some(reclaimed))
    }

    /// Surveys the index, and decides.
    async fn look(self: &Arc<Self>) -> Result<Option<Plan>, ReclaimError> {
        let stats = self.journal.stats();
        let Some(scan_from) = stats.checkpoint else { return Ok(None) };
        // Before the survey: what is appended from here on lies in segments that are kept.
        let segments = self.journal.segments();
        let this = self.clone();
        let survey = self.blocking(move || this.survey()).await?;
        let largest = segments.iter().map(|segment| u64::from(segment.file_bytes)).max();
        let kept_free = SEGMENTS_KEPT_FREE * largest.unwrap_or(0);
        let journal = plan::Journal {
            segments: &segments,
            survey: &survey,
            needed_from: scan_from.segment.min(self.damaged.load(Ordering::Relaxed)),
            free_bytes: stats.free_bytes.saturating_sub(kept_free),
        };
        let bytes: u64 = segments.iter().map(|segment| u64::from(segment.file_bytes)).sum();
        self.shared.metrics.journal_disk_bytes.set(bytes as i64);
        self.shared.metrics.journal_live_bytes.set(journal.live_bytes() as i64);
        Ok(journal.plan(self.settings.dead_percent))
    }

    fn survey(&self) -> Result<Survey, StoreError> {
        let (mut survey, mut unpaid) = (Survey::default(), 0);
        let handle = Handle::current();
        for slot in self.slots.iter() {
            slot.store.survey(&mut survey, &mut |bytes| {
                unpaid += bytes;
                if unpaid >= SURVEY_STEP_BYTES {
                    handle.block_on(self.pace.take(std::mem::take(&mut unpaid)));
                    self.go_on()?;
                }
                Ok(())
            })?;
        }
        Ok(survey)
    }

    /// Writes the image of one group, if it has any state here.
    async fn image(self: &Arc<Self>, slot: &Slot, floor: u32) -> Result<(), ReclaimError> {
        // The replica is neither removed nor begun anew meanwhile.
        let _turn = slot.turn.lock().await;
        let group = slot.store.group();
        if slot.log.with(|log| log.replica) == 0 {
            return Ok(());
        }
        let imaging = Imaging::begin(&slot.log).ok_or(ReclaimError::Installing(group))?;
        // After the log is held from being purged: every entry behind this one stays.
        let (Some(at), membership) = slot.store.applied() else { return Ok(()) };
        let commit = snapshot::encode_commit(at, &stored_membership(&membership)?);
        imaging.write(FrameKind::ImportBegin, &image::encode_begin(floor)).await?;
        let (this, store) = (self.clone(), slot.store.clone());
        let written = self.blocking(move || this.write_blocks(&store, floor, imaging)).await?;
        let imaging = written.ok_or(ReclaimError::Installing(group))?;
        if imaging.commit(&commit).await? { Ok(()) } else { Err(ReclaimError::Installing(group)) }
    }

    /// `None` when a snapshot came in between: its installation takes away what is being read.
    fn write_blocks(
        &self,
        store: &GroupStore,
        floor: u32,
        imaging: Imaging,
    ) -> Result<Option<Imaging>, StoreError> {
        let handle = Handle::current();
        let written = store.write_image(floor, &mut |block: Bytes| {
            self.go_on()?;
            self.shared.metrics.reclaim_written_bytes_total.inc_by(block.len() as u64);
            let at = handle.block_on(async {
                self.pace.take(block.len()).await;
                imaging.write(FrameKind::Import, &block).await
            })?;
            Ok(FrameLocation { segment: at.segment, offset: at.offset })
        });
        if imaging.is_overtaken() {
            return Ok(None);
        }
        written.map(|()| Some(imaging))
    }

    /// Returns once nobody reads from places that were looked up before.
    async fn earlier_readers_gone(&self) -> Result<(), ReclaimError> {
        let earlier = self.shared.readers.so_far();
        while !earlier.are_gone() {
            tokio::select! {
                () = self.stop.cancelled() => return Err(ReclaimError::Stopped),
                () = tokio::time::sleep(READERS_POLL) => {}
            }
        }
        Ok(())
    }

    /// Runs what does IO; when the node stops, what comes of it does not matter.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, ReclaimError> {
        let done = tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?;
        done.map_err(|error| if self.is_stopping() { ReclaimError::Stopped } else { error.into() })
    }

    fn is_stopping(&self) -> bool {
        self.stop.is_cancelled() || self.failure.is_raised()
    }

    fn go_on(&self) -> Result<(), StoreError> {
        if self.is_stopping() { Err(io::Error::other("the node is stopping").into()) } else { Ok(()) }
    }
}
