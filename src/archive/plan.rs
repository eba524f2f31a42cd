//! What to send next: conversations that wait, are under way, or are stopped. Pure.
//!
//! A conversation is under way in one batch at a time, which keeps its rows in order. What is queued is only a hint at
//! where to look: how much a batch takes of each conversation follows from its record.

use std::collections::{BTreeMap, VecDeque};

use crate::conversation::ConversationId;

/// How long a conversation that the archive contradicts is left alone before it is tried again.
pub(super) const STOPPED_MS: u64 = 300_000;
/// Stopped conversations remembered; beyond it they are met, and stopped, again.
const STOPPED_MAX: usize = 10_000;

/// One conversation that waits or is under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Lag {
    /// Versions, about.
    behind: u64,
    /// Lags since this time or earlier.
    since_ms: u64,
}

/// What came of sending a conversation's versions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Sent and marked; `behind` versions are left.
    Sent { behind: u64 },
    /// Not looked at, for want of room in the batch.
    Untouched,
    /// Not written or not marked; the oldest version of it is from this time, if known.
    Failed { oldest_ms: Option<u64> },
    /// The archive holds something else.
    Conflict,
    /// No longer led here, or nothing is left to send.
    Gone,
}

/// The queue of one node.
#[derive(Debug)]
pub(super) struct Planner {
    /// Rows that a batch should have.
    batch_rows: u64,
    /// Conversations that may wait; what does not fit is found again by looking at the groups.
    queue_max: usize,
    queue: VecDeque<ConversationId>,
    waiting: BTreeMap<ConversationId, Lag>,
    under_way: BTreeMap<ConversationId, Lag>,
    /// Changed while they were under way.
    again: BTreeMap<ConversationId, Lag>,
    /// Until when.
    stopped: BTreeMap<ConversationId, u64>,
}

impl Planner {
    pub(super) fn new(batch_rows: usize, queue_max: usize) -> Self {
        Self {
            batch_rows: batch_rows as u64,
            queue_max,
            queue: VecDeque::new(),
            waiting: BTreeMap::new(),
            under_way: BTreeMap::new(),
            again: BTreeMap::new(),
            stopped: BTreeMap::new(),
        }
    }

    /// How many more conversations may wait.
    pub(super) fn room(&self) -> usize {
        self.queue_max.saturating_sub(self.waiting.len() + self.under_way.len())
    }

    pub(super) fn stopped(&self) -> usize {
        self.stopped.len()
    }

    /// The time since when the archive has lacked something.
    pub(super) fn oldest_ms(&self) -> Option<u64> {
        self.waiting.values().chain(self.under_way.values()).map(|lag| lag.since_ms).min()
    }

    /// A conversation lacks about `behind` versions in the archive.
    pub(super) fn lags(&mut self, id: ConversationId, behind: u64, now_ms: u64) {
        match self.stopped.get(&id) {
            Some(until) if *until > now_ms => return,
            Some(_) => drop(self.stopped.remove(&id)),
            None => {}
        }
        let lag = Lag { behind, since_ms: now_ms };
        if self.under_way.contains_key(&id) {
            self.again.insert(id, lag);
        } else {
            self.wait(id, lag, false);
        }
    }

    /// Conversations that are tried again now, though nobody says that they changed.
    pub(super) fn release(&mut self, now_ms: u64) {
        let due = self.stopped.iter().filter(|(_, until)| **until <= now_ms);
        let due: Vec<ConversationId> = due.map(|(id, _)| id.clone()).collect();
        for id in due {
            self.lags(id, 1, now_ms);
        }
    }

    /// The conversations of the next batch, which are under way from now on.
    pub(super) fn next_batch(&mut self) -> Vec<ConversationId> {
        let (mut batch, mut rows) = (Vec::new(), 0);
        while rows < self.batch_rows {
            let Some(id) = self.queue.pop_front() else { break };
            let Some(lag) = self.waiting.remove(&id) else { continue };
            rows += lag.behind.max(1);
            self.under_way.insert(id.clone(), lag);
            batch.push(id);
        }
        batch
    }

    /// Takes the outcome of a conversation that was under way.
    pub(super) fn settle(&mut self, id: ConversationId, outcome: Outcome, now_ms: u64) {
        let Some(lag) = self.under_way.remove(&id) else { return };
        let again = self.again.remove(&id);
        match outcome {
            Outcome::Sent { behind } => match again {
                Some(again) => self.wait(id, Lag { behind: behind.max(again.behind), ..again }, false),
                None if behind > 0 => self.wait(id, Lag { behind, since_ms: now_ms }, false),
                None => {}
            },
            Outcome::Untouched => self.wait(id, lag, true),
            Outcome::Failed { oldest_ms } => {
                let since_ms = oldest_ms.map_or(lag.since_ms, |oldest| oldest.min(lag.since_ms));
                self.wait(id, Lag { since_ms, ..lag }, true);
            }
            Outcome::Conflict => {
                if self.stopped.len() < STOPPED_MAX {
                    self.stopped.insert(id, now_ms + STOPPED_MS);
                }
            }
            Outcome::Gone => {
                if let Some(again) = again {
                    self.wait(id, again, false);
                }
            }
        }
    }

    fn wait(&mut self, id: ConversationId, lag: Lag, first: bool) {
        match self.waiting.get_mut(&id) {
            Some(waiting) => waiting.behind = waiting.behind.max(lag.behind),
            None => {
                self.waiting.insert(id.clone(), lag);
                if first { self.queue.push_front(id) } else { self.queue.push_back(id) }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn id(n: u32) -> ConversationId {
        ConversationId::parse(&format!("c{n}")).unwrap()
    }

    #[test]
    fn batches_are_cut_by_rows_and_keep_the_order() {
        let mut planner = Planner::new(10, 100);
        for (n, behind) in [(1, 4), (2, 4), (3, 4), (4, 100), (5, 1)] {
            planner.lags(id(n), behind, u64::from(n));
        }
        planner.lags(id(2), 5, 9);
        assert_eq!(planner.next_batch(), [id(1), id(2), id(3)]);
        assert_eq!(planner.next_batch(), [id(4)], "one that fills a batch has it for itself");
        assert_eq!(planner.next_batch(), [id(5)]);
        assert!(planner.next_batch().is_empty());
        assert_eq!(planner.oldest_ms(), Some(1));
    }

    #[test]
    fn what_changed_under_way_goes_again_and_what_failed_goes_first() {
        let mut planner = Planner::new(1, 100);
        planner.lags(id(1), 1, 10);
        planner.lags(id(2), 1, 11);
        planner.lags(id(3), 1, 12);
        assert_eq!((planner.next_batch(), planner.next_batch()), (vec![id(1)], vec![id(2)]));
        planner.lags(id(1), 7, 20);
        assert!(planner.room() == 97);
        planner.settle(id(1), Outcome::Sent { behind: 0 }, 30);
        planner.settle(id(2), Outcome::Failed { oldest_ms: Some(3) }, 31);
        assert_eq!(planner.oldest_ms(), Some(3));
        let order: Vec<_> = (0..3).flat_map(|_| planner.next_batch()).collect();
        assert_eq!(order, [id(2), id(3), id(1)]);
    }

    #[test]
    fn a_conflict_stops_one_conversation_for_a_while() {
        let mut planner = Planner::new(1, 100);
        planner.lags(id(1), 1, 10);
        planner.next_batch();
        planner.settle(id(1), Outcome::Conflict, 100);
        planner.lags(id(1), 1, 200);
        assert!(planner.next_batch().is_empty() && planner.stopped() == 1);
        planner.release(100 + STOPPED_MS);
        assert_eq!(planner.next_batch(), [id(1)]);
        assert_eq!(planner.stopped(), 0);
    }

    proptest! {
        /// Whatever happens, a conversation is never in two batches, and none that lags is forgotten.
        #[test]
        fn nothing_is_sent_twice_at_once_and_nothing_is_forgotten(
            steps in proptest::collection::vec((0u32..6, 0u32..7, any::<bool>()), 1..200)
        ) {
            let mut planner = Planner::new(2, 100);
            let (mut flying, mut owed) = (Vec::new(), std::collections::BTreeSet::new());
            for (n, what, more) in steps {
                match what {
                    0 | 1 => {
                        planner.lags(id(n), 1, 1);
                        owed.insert(id(n));
                    }
                    2 => {
                        for id in planner.next_batch() {
                            prop_assert!(!flying.contains(&id));
                            owed.remove(&id);
                            flying.push(id);
                        }
                    }
                    _ if flying.is_empty() => {}
                    _ => {
                        let id = flying.swap_remove(n as usize % flying.len());
                        let outcome = match what {
                            3 => Outcome::Sent { behind: more.into() },
                            4 => Outcome::Untouched,
                            5 => Outcome::Failed { oldest_ms: None },
                            _ => Outcome::Gone,
                        };
                        let owes = matches!(outcome, Outcome::Untouched | Outcome::Failed { .. } | Outcome::Sent { behind: 1 });
                        if owes {
                            owed.insert(id.clone());
                        }
                        planner.settle(id, outcome, 2);
                    }
                }
            }
            let mut rest = std::collections::BTreeSet::new();
            loop {
                let batch = planner.next_batch();
                if batch.is_empty() {
                    break;
                }
                for id in batch {
                    prop_assert!(!flying.contains(&id));
                    rest.insert(id);
                }
            }
            // What changed under way and has not come back is still remembered for then.
            owed.retain(|id| !flying.contains(id));
            prop_assert_eq!(rest, owed);
        }
    }
}
