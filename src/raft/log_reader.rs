//! What one follower is sent of a log: how much is read for it at a time.
//!
//! openraft reads the entries of a request before it waits to try again where a follower cannot be reached, and does so
//! for as long as it cannot. Entries that are applied come from the journal. So little is read of what was read before, until
//! something gets through; then more each time.

use std::fmt::Debug;
use std::io;
use std::ops::RangeBounds;

use openraft::{OptionalSend, RaftLogReader};

use super::log_store::LogStore;
use super::types::{Entry, TypeConfig, Vote};

/// Entries sent in one request take about this many bytes at most, unless a single one is larger.
const BYTES_MAX: usize = 1 << 20;
/// The same where earlier ones did not get through.
const RETRY_BYTES_MAX: usize = 16 << 10;
/// How much more is read for a request after one that got through.
const GROWTH: usize = 4;

/// Reads a log for one follower.
pub(crate) struct LogReader {
    log: LogStore,
    window: Window,
}

impl LogReader {
    pub(super) fn new(log: LogStore) -> Self {
        Self { log, window: Window { start: None, bytes: BYTES_MAX } }
    }
}

impl RaftLogReader<TypeConfig> for LogReader {
    async fn try_get_log_entries<RB>(&mut self, range: RB) -> Result<Vec<Entry>, io::Error>
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        self.log.try_get_log_entries(range).await
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, io::Error> {
        self.log.read_vote().await
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> Result<Vec<Entry>, io::Error> {
        self.log.read_some(start, end, self.window.next(start))
    }
}

/// How many bytes are read for the next request.
struct Window {
    /// Where the last request began.
    start: Option<u64>,
    bytes: usize,
}

impl Window {
    /// For a request that begins at this log index.
    fn next(&mut self, start: u64) -> usize {
        let goes_on = self.start.is_none_or(|last| start > last);
        self.bytes = if goes_on { BYTES_MAX.min(self.bytes * GROWTH) } else { RETRY_BYTES_MAX };
        self.start = Some(start);
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_that_is_tried_again_is_small_and_grows_once_it_gets_through() {
        let mut window = Window { start: None, bytes: BYTES_MAX };
        let kib =
            [0, 900, 900, 900, 920, 1_000, 1_300, 2_500, 920, 930].map(|start| window.next(start) >> 10);
        assert_eq!(kib, [1_024, 1_024, 16, 16, 64, 256, 1_024, 1_024, 16, 64]);
    }
}
