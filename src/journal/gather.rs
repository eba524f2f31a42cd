//! When a batch waits for others to join it.
//!
//! On busy cores an append wakes the writer, which takes the core from a thread that was about to bring more appends: many
//! batches of a few frames each, every one with a sync of its own. So the writer lets other threads run first, for as long
//! as they bring more. On a core with nothing else to do that takes no time. On one that something else keeps busy it takes
//! a turn of the scheduler, and brings little: then it is given up for a while.

use std::time::{Duration, Instant};

use parking_lot::MutexGuard;

use super::queue::Queue;

/// After so long no further turn is given.
const GATHER_MAX: Duration = Duration::from_millis(1);
/// A turn that takes no longer costs less than finding out what it brings.
const CHEAP: Duration = Duration::from_micros(100);
/// What an append is worth that joins a batch instead of having one of its own, in syncs: two changes of threads come with
/// each, and the threads that it wakes. With 1, three nodes on two cores gain nothing; with 8, sixteen clients beside two
/// busy loops lose half of their rate.
const WORTH: u32 = 3;
/// Most batches to go without, after gathering was for nothing again and again.
const SKIPPED_MAX: u32 = 256;

/// What the writer has learned about gathering.
#[derive(Debug, Default)]
pub(super) struct Gather {
    /// What it takes to write and sync a batch while nobody else has the core: the shortest of late.
    sync: Duration,
    /// Batches yet to go without.
    skip: u32,
    /// How many went without the last time.
    skipped: u32,
}

impl Gather {
    /// Lets other threads run while they bring more.
    pub(super) fn gather(&mut self, queue: &mut MutexGuard<'_, Queue>) {
        if self.skip > 0 {
            self.skip -= 1;
            return;
        }
        let (begun, waiting) = (Instant::now(), queue.waiting());
        let mut last = waiting;
        loop {
            MutexGuard::unlocked(queue, std::thread::yield_now);
            let now = queue.waiting();
            if now <= last || begun.elapsed() > GATHER_MAX {
                break;
            }
            last = now;
        }
        self.judge(begun.elapsed(), queue.waiting().saturating_sub(waiting));
    }

    /// If what the appends that joined saved was less than the wait, the next batches go without.
    fn judge(&mut self, took: Duration, joined: usize) {
        if joined > 0 && took <= self.sync * WORTH * joined as u32 {
            self.skipped /= 2;
        } else if took > CHEAP {
            self.skipped = (self.skipped * 2).clamp(1, SKIPPED_MAX);
            self.skip = self.skipped;
        }
    }

    /// A batch was written and synced.
    pub(super) fn synced(&mut self, took: Duration) {
        self.sync = if self.sync.is_zero() { took } else { took.min(self.sync + self.sync / 64) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SYNC: Duration = Duration::from_micros(200);

    /// How many batches go without after each of these waits.
    fn skips(waits: impl IntoIterator<Item = (u64, usize)>) -> Vec<u32> {
        let mut gather = Gather { sync: SYNC, ..Gather::default() };
        let judged = waits.into_iter().map(|(took_us, joined)| {
            gather.judge(Duration::from_micros(took_us), joined);
            std::mem::take(&mut gather.skip)
        });
        judged.collect()
    }

    #[test]
    fn a_wait_that_saves_more_than_it_takes_is_repeated() {
        assert_eq!(skips([(50, 0), (600, 1), (2_900, 5), (900, 15)]), [0, 0, 0, 0]);
    }

    #[test]
    fn a_wait_for_nothing_is_repeated_more_and_more_seldom() {
        assert_eq!(skips([(2_900, 0), (2_900, 1), (2_900, 4), (2_900, 5), (101, 0)]), [1, 2, 4, 0, 4]);
        assert_eq!(skips([(2_900, 0); 12])[8..], [256; 4]);
    }

    #[test]
    fn what_a_sync_takes_is_learned() {
        let mut gather = Gather::default();
        for took in [4 * SYNC, SYNC, 2 * SYNC] {
            gather.synced(took);
        }
        assert_eq!(gather.sync, SYNC + SYNC / 64);
        (0..100).for_each(|_| gather.synced(2 * SYNC));
        assert_eq!(gather.sync, 2 * SYNC);
    }
}
