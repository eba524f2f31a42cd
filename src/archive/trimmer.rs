//! The trimmer: has conversations of the groups led here trimmed to their newest messages, once the archive has the rest.
//!
//! It only proposes; what may go is decided by apply. It looks at one record after the other, again and again, so that
//! nothing has to be remembered, and throttles itself by resting after every look and every entry.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::service::ClusterView;
use crate::conversation::{ConversationId, MAX_TRIMS, Trim, Trims};
use crate::metrics::Metrics;
use crate::shards::{Shards, Trimmable};

/// Events that one entry trims, about: applying it takes some milliseconds under the group's lock.
const ENTRY_EVENTS: u64 = 16_384;
/// Rest after an entry: a node trims at most about 80,000 events a second.
const ENTRY_REST: Duration = Duration::from_millis(200);
/// Rest after looking at some records, in times of what that took: looking costs a tenth of a core at most.
const LOOK_REST: u32 = 9;
/// Looks at the records are so many flush intervals apart when there was nothing to trim.
const IDLE_INTERVALS: u32 = 12;

pub(super) struct Trimmer {
    pub(super) shards: Shards,
    pub(super) metrics: Metrics,
    /// Newest messages of each conversation that stay.
    pub(super) keep: u64,
    pub(super) flush_interval: Duration,
    pub(super) cluster: Arc<dyn ClusterView>,
}

impl Trimmer {
    pub(super) async fn run(self, stop: CancellationToken) {
        let passes = async {
            loop {
                let trimmed = if self.cluster.understands_trims() { self.pass().await } else { 0 };
                sleep(self.flush_interval * if trimmed > 0 { 1 } else { IDLE_INTERVALS }).await;
            }
        };
        tokio::select! {
            () = stop.cancelled() => {}
            () = passes => {}
        }
    }

    /// Looks at every record of the groups led here once. Answers how many events were trimmed.
    async fn pass(&self) -> u64 {
        let mut trimmed = 0;
        for group in self.shards.led_groups() {
            let mut after: Option<ConversationId> = None;
            loop {
                let begun = Instant::now();
                let (found, last) = match self.shards.look_for_trimmable(group, after, self.keep).await {
                    Ok(look) => look,
                    Err(error) => {
                        warn!(event = "trim_look_failed", group, %error);
                        break;
                    }
                };
                sleep(begun.elapsed() * LOOK_REST).await;
                trimmed += self.trim(group, found).await;
                after = last;
                if after.is_none() {
                    break;
                }
            }
        }
        trimmed
    }

    async fn trim(&self, group: u16, found: Vec<Trimmable>) -> u64 {
        let mut trimmed = 0;
        for trims in entries(found) {
            match self.shards.trim(group, Trims::new(self.keep, trims)).await {
                Ok(events) => trimmed += events,
                Err(error) => warn!(event = "trim_failed", group, %error),
            }
            sleep(ENTRY_REST).await;
        }
        self.metrics.trimmed_events_total.inc_by(trimmed);
        trimmed
    }
}

/// What was found, cut into what one entry takes.
fn entries(found: Vec<Trimmable>) -> Vec<Vec<Trim>> {
    let mut entries: Vec<Vec<Trim>> = Vec::new();
    let mut events = ENTRY_EVENTS;
    for Trimmable { trim, events: more } in found {
        match entries.last_mut() {
            Some(entry) if entry.len() < MAX_TRIMS && events + more <= ENTRY_EVENTS => {
                entry.push(trim);
                events += more;
            }
            _ => {
                entries.push(vec![trim]);
                events = more;
            }
        }
    }
    entries
}

#[cfg(test)]
mod tests {
    use super::*;

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
