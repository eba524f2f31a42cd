//! How long those rest who work for the archive, so that appends of clients come first. Pure.

use std::time::Duration;

/// From so many events appended a second on, the rest is a full one.
const BUSY_PER_SECOND: f64 = 10_000.0;
/// A full rest, of the time that the batch took.
const REST_SHARE: f64 = 12.0;
const REST_MAX: Duration = Duration::from_secs(2);
/// With so many versions that the archive lacks, nobody rests.
pub(super) const LAG_MAX: u64 = 500_000;
/// Rest after looking at some records, in times of what that took: looking costs a tenth of a core at most.
pub(super) const LOOK_REST: u32 = 9;
/// Looks at the records are so many flush intervals apart while they find nothing to do.
pub(super) const IDLE_INTERVALS: u32 = 12;

/// The rest after a batch that took so long, while which so many events were appended by clients of this node.
pub(super) fn rest(took: Duration, appended: u64, lacking: u64) -> Duration {
    if lacking >= LAG_MAX || took.is_zero() {
        return Duration::ZERO;
    }
    let busy = (appended as f64 / took.as_secs_f64() / BUSY_PER_SECOND).min(1.0);
    took.mul_f64(REST_SHARE * busy).min(REST_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_rests_as_long_as_clients_keep_the_node_busy_and_the_archive_is_not_far_behind() {
        let took = Duration::from_millis(100);
        assert_eq!(rest(took, 0, 1_000), Duration::ZERO);
        assert_eq!(rest(took, 500, 1_000), took.mul_f64(REST_SHARE / 2.0));
        assert_eq!(rest(took, 1_000, 1_000), took.mul_f64(REST_SHARE));
        assert_eq!(rest(took, 50_000, 1_000), took.mul_f64(REST_SHARE));
        assert_eq!(rest(took, 50_000, LAG_MAX), Duration::ZERO);
        assert_eq!(rest(Duration::from_secs(60), 1_000_000, 0), REST_MAX);
        assert_eq!(rest(Duration::ZERO, 1, 0), Duration::ZERO);
    }
}
