//! Which segments to reclaim, and whether it pays. Pure.
//!
//! Only a beginning of the journal can go, since segments follow each other without a gap. What is still live in it and an
//! image of all records have to be written anew; a share of the space that is freed must be gained by it. So what
//! reclaiming writes is bounded by what it frees, and a journal that is mostly dead shrinks, wherever in it the dead bytes
//! are: the whole of it is a beginning too.

use crate::journal::SegmentStats;
use crate::store::Survey;

/// A record and its frame in an image take at most about this much more than the record, in percent.
const IMAGE_OVERHEAD_PERCENT: u64 = 15;

/// What is known of the journal.
#[derive(Debug)]
pub(super) struct Journal<'a> {
    /// Oldest first.
    pub(super) segments: &'a [SegmentStats],
    pub(super) survey: &'a Survey,
    /// Recovery needs this segment and those behind it.
    pub(super) needed_from: u32,
    /// Bytes that may be written before any are freed.
    pub(super) free_bytes: u64,
}

/// Segments to reclaim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Plan {
    /// Those before this one.
    pub(super) floor: u32,
    /// Bytes of their files.
    pub(super) frees: u64,
    /// Bytes to be written for it, about.
    pub(super) writes: u64,
}

impl Journal<'_> {
    /// Bytes that would be written again if all were: live messages, and an image.
    pub(super) fn live_bytes(&self) -> u64 {
        self.survey.live.values().sum::<u64>() + self.image_bytes()
    }

    fn image_bytes(&self) -> u64 {
        self.survey.record_bytes * (100 + IMAGE_OVERHEAD_PERCENT) / 100
    }

    /// The beginning that gains most over `dead_percent` of its space. So no segment is added that does not gain as much.
    pub(super) fn plan(&self, dead_percent: u64) -> Option<Plan> {
        let may_write_percent = i128::from(100 - dead_percent.min(100));
        let surplus =
            |plan: &Plan| i128::from(plan.frees) * may_write_percent - i128::from(plan.writes) * 100;
        let (mut frees, mut live) = (0, 0);
        let mut best: Option<Plan> = None;
        for segment in self.segments.iter().filter(|segment| segment.segment < self.needed_from) {
            frees += u64::from(segment.file_bytes);
            live += self.survey.live.get(&segment.segment).copied().unwrap_or(0);
            let plan = Plan { floor: segment.segment + 1, frees, writes: live + self.image_bytes() };
            let beats = best.as_ref().map_or(0, surplus);
            if surplus(&plan) > beats && plan.writes < self.free_bytes {
                best = Some(plan);
            }
        }
        best
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn segments(first: u32, count: usize) -> Vec<SegmentStats> {
        (first..)
            .take(count)
            .map(|segment| SegmentStats { segment, used_bytes: 100, file_bytes: 100 })
            .collect()
    }

    fn plan(live: &[u64], record_bytes: u64, needed_from: u32, free_bytes: u64) -> Option<(u32, u64, u64)> {
        let survey = Survey { live: (5..).zip(live.iter().copied()).collect(), record_bytes };
        let segments = segments(5, live.len());
        let journal = Journal { segments: &segments, survey: &survey, needed_from, free_bytes };
        journal.plan(50).map(|plan| (plan.floor, plan.frees, plan.writes))
    }

    #[test]
    fn the_beginning_that_gains_most_is_taken() {
        assert_eq!(plan(&[0, 0, 90, 90], 0, 99, 1_000), Some((7, 200, 0)), "the rest gains too little");
        assert_eq!(plan(&[10, 90, 0, 0], 0, 99, 1_000), Some((9, 400, 100)), "over what is live in between");
        assert_eq!(plan(&[0, 0, 0, 0], 0, 7, 1_000), Some((7, 200, 0)), "recovery needs the others");
        assert_eq!(plan(&[60, 60, 60], 0, 99, 1_000), None, "less than half is dead");
        assert_eq!(plan(&[0, 0], 100, 99, 1_000), None, "the image alone takes more than half");
        assert_eq!(plan(&[0, 0, 0], 100, 99, 1_000), Some((8, 300, 115)));
        assert_eq!(plan(&[40, 40], 0, 99, 60), Some((6, 100, 40)), "as far as there is room");
        assert_eq!(plan(&[], 0, 99, 1_000), None);
    }

    #[test]
    fn never_for_nothing() {
        let survey = Survey { live: [(1, 100)].into(), record_bytes: 0 };
        let segments = segments(1, 2);
        let journal =
            |needed_from| Journal { segments: &segments, survey: &survey, needed_from, free_bytes: 1_000 };
        assert_eq!(journal(2).plan(0), None, "all of it is live");
        assert_eq!(journal(3).plan(0), Some(Plan { floor: 3, frees: 200, writes: 100 }));
        assert_eq!(journal(3).plan(50), None);
        assert_eq!(journal(3).plan(100), None);
    }

    proptest! {
        #[test]
        fn what_is_written_is_bounded_by_what_is_freed(
            live in proptest::collection::vec(0u64..120, 0..30),
            record_bytes in 0u64..500,
            dead_percent in 0u64..120,
        ) {
            let survey = Survey { live: (1..).zip(live.iter().copied()).collect(), record_bytes };
            let segments = segments(1, live.len());
            let journal = Journal { segments: &segments, survey: &survey, needed_from: 25, free_bytes: 2_000 };
            if let Some(plan) = journal.plan(dead_percent) {
                prop_assert!(plan.floor <= 25 && plan.writes < 2_000);
                prop_assert!(plan.writes * 100 <= plan.frees * (100 - dead_percent.min(100)));
            }
        }
    }
}
