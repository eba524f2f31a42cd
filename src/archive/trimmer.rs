//! The trimmer: has conversations of the groups led here trimmed to their newest messages, once the archive has the rest.
//!
//! It only proposes; what may go is decided by apply. But apply knows the mark alone, which says what the archive was given
//! once: so whatever is proposed was asked for in the archive just before, and is there. Without an answer nothing is
//! trimmed, and what the archive has lost is sent again. The trimmer looks at one record after the other, again and again,
//! so that nothing has to be remembered, and throttles itself by resting after every look, every question and every entry.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::batch::Context;
use super::gaps::{self, GapError, Held};
use super::pace::{IDLE_INTERVALS, LOOK_REST};
use super::postgres::{FailureKind, Postgres};
use super::service::ClusterView;
use crate::conversation::{ConversationId, EVENT_RUN, MAX_TRIMS, Trims};
use crate::metrics::Metrics;
use crate::shards::{Shards, Trimmable};

/// Events that one entry trims, about: applying it takes some milliseconds under the group's lock.
const ENTRY_EVENTS: u64 = 16_384;
/// Rest after an entry: a node trims at most about 80,000 events a second.
const ENTRY_REST: Duration = Duration::from_millis(200);
/// Conversations that one pass tells of; others are counted.
const TOLD_MAX: u64 = 100;

pub(super) struct Trimmer {
    pub(super) shards: Shards,
    pub(super) postgres: Postgres,
    pub(super) metrics: Metrics,
    /// Newest messages of each conversation that stay.
    pub(super) keep: u64,
    /// Rows that are sent again in one transaction.
    pub(super) batch_rows: usize,
    pub(super) flush_interval: Duration,
    pub(super) cluster: Arc<dyn ClusterView>,
}

/// One look at all records, as far as it has come.
struct Pass {
    context: Context,
    /// Events that were trimmed, and rows that the archive has again.
    moved: u64,
    /// Conversations that were not trimmed as far as their marks say.
    refused: u64,
    /// The archive takes rows.
    writable: bool,
}

/// Where the archive of a conversation lacks something.
struct Gap {
    id: ConversationId,
    /// The last event before it.
    after_seq: u64,
}

impl Trimmer {
    pub(super) async fn run(self, stop: CancellationToken) {
        let passes = async {
            loop {
                let moved = if self.cluster.understands_trims() { self.pass().await } else { 0 };
                sleep(self.flush_interval * if moved > 0 { 1 } else { IDLE_INTERVALS }).await;
            }
        };
        tokio::select! {
            () = stop.cancelled() => {}
            () = passes => {}
        }
    }

    /// Looks at every record of the groups led here once, or until the archive cannot be asked. Answers how much was
    /// trimmed or sent again.
    async fn pass(&self) -> u64 {
        let Some(cluster) = self.cluster.id() else { return 0 };
        let context = Context {
            shards: self.shards.clone(),
            postgres: self.postgres.clone(),
            metrics: self.metrics.clone(),
            cluster,
            batch_rows: self.batch_rows,
        };
        let mut pass = Pass { context, moved: 0, refused: 0, writable: true };
        for group in self.shards.led_groups() {
            match self.look(group, &mut pass).await {
                Ok(()) => {}
                Err(GapError::Archive(error)) => {
                    warn!(event = "trim_check_failed", kind = ?error.kind(), %error);
                    break;
                }
                Err(error) => warn!(event = "trim_look_failed", group, %error),
            }
        }
        pass.moved
    }

    /// Looks at every record of a group.
    async fn look(&self, group: u16, pass: &mut Pass) -> Result<(), GapError> {
        let mut after: Option<ConversationId> = None;
        loop {
            let begun = Instant::now();
            let (found, last) = self.shards.look_for_trimmable(group, after, self.keep).await?;
            sleep(begun.elapsed() * LOOK_REST).await;
            for entry in entries(found) {
                self.trim(group, entry, pass).await?;
            }
            after = last;
            if after.is_none() {
                return Ok(());
            }
        }
    }

    /// Trims what one entry takes as far as the archive holds it.
    async fn trim(&self, group: u16, entry: Vec<Trimmable>, pass: &mut Pass) -> Result<(), GapError> {
        let (mut trims, mut gaps) = (Vec::with_capacity(entry.len()), Vec::new());
        for Trimmable { mut trim, events } in entry {
            let frontier = trim.upto_seq - events;
            // The newest event that was trimmed is asked for, too: a database without it is not the one that has the others.
            match gaps::held(&pass.context, &trim.id, frontier.saturating_sub(1), trim.upto_seq).await? {
                Held::All => {}
                Held::Gone => continue,
                Held::Until(held) => {
                    pass.refuse(&trim.id, held + 1);
                    if held < frontier {
                        continue;
                    }
                    gaps.push(Gap { id: trim.id.clone(), after_seq: held });
                    // Whole runs only: less than one is no reason for an entry.
                    trim.upto_seq = held / EVENT_RUN * EVENT_RUN;
                    if trim.upto_seq <= frontier {
                        continue;
                    }
                }
            }
            trims.push(trim);
        }
        if !trims.is_empty() {
            match self.shards.trim(group, Trims::new(self.keep, trims)).await {
                Ok(events) => {
                    pass.moved += events;
                    self.metrics.trimmed_events_total.inc_by(events);
                }
                Err(error) => warn!(event = "trim_failed", group, %error),
            }
        }
        for gap in gaps {
            pass.send_again(&gap).await;
        }
        sleep(ENTRY_REST).await;
        Ok(())
    }
}

impl Pass {
    /// A conversation is not trimmed further, for want of event `seq`.
    fn refuse(&mut self, id: &ConversationId, seq: u64) {
        self.context.metrics.trims_refused_total.inc();
        self.refused += 1;
        if self.refused <= TOLD_MAX {
            error!(event = "trim_refused", conversation_id = %id, seq, "the archive lacks it, or has it otherwise");
        }
    }

    /// Gives the archive a batch of what it lacks; the next pass asks for it.
    async fn send_again(&mut self, gap: &Gap) {
        if !self.writable {
            return;
        }
        let Gap { id, after_seq } = gap;
        match gaps::send_again(&self.context, id, *after_seq).await {
            Ok(written) => {
                self.moved += written.inserted;
                if written.inserted > 0 && self.refused <= TOLD_MAX {
                    let rows = written.inserted;
                    info!(event = "archive_sent_again", conversation_id = %id, after_seq, rows);
                }
            }
            Err(error) => {
                let kind = error.kind();
                self.context.metrics.archive_failures.of(kind as usize).inc();
                warn!(event = "archive_again_failed", conversation_id = %id, kind = ?kind, %error);
                // What is the matter with one conversation, or with this node, is not with the archive.
                let of_archive =
                    !matches!(kind, FailureKind::Conflict | FailureKind::Data | FailureKind::Log);
                self.writable &= !of_archive;
            }
        }
    }
}

/// What was found, cut into what one entry takes.
fn entries(found: Vec<Trimmable>) -> Vec<Vec<Trimmable>> {
    let mut entries: Vec<Vec<Trimmable>> = Vec::new();
    let mut events = ENTRY_EVENTS;
    for trimmable in found {
        let more = trimmable.events;
        match entries.last_mut() {
            Some(entry) if entry.len() < MAX_TRIMS && events + more <= ENTRY_EVENTS => {
                entry.push(trimmable);
                events += more;
            }
            _ => {
                entries.push(vec![trimmable]);
                events = more;
            }
        }
    }
    entries
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conversation::Trim;

    #[test]
    fn entries_are_bounded_in_events_and_conversations() {
        let lengths = |events: &[u64]| {
            let found = events.iter().enumerate().map(|(n, &events)| Trimmable {
                trim: Trim { id: ConversationId::parse(&format!("c{n:04}")).unwrap(), upto_seq: events },
                events,
            });
            entries(found.collect()).iter().map(Vec::len).collect::<Vec<_>>()
        };
        assert!(lengths(&[]).is_empty());
        assert_eq!(lengths(&[8_192, 8_192, 128, 20_000, 1]), [2, 1, 1, 1]);
        assert_eq!(lengths(&[1; 600]), [MAX_TRIMS, 600 - MAX_TRIMS]);
    }
}
