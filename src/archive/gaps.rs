//! Gaps of the archive: whether it holds now what is about to be trimmed, and sending again what it has lost.
//!
//! The mark says what was committed once. A standby that was promoted without the newest commits, a database that was
//! restored to an earlier time, or another one altogether, does not have it. What is asked for here is what a client who
//! reads a trimmed message would be given, and it is known by the same length and checksum.

use std::collections::HashMap;
use std::time::Instant;

use bytes::Bytes;
use tokio::time::sleep;

use super::batch::{self, BATCH_BYTES, Context};
use super::postgres::{FailureKind, WriteError, Written};
use super::rows::{Rows, Unreadable};
use crate::conversation::{ConversationId, Location};
use crate::shards::{HistoryLimits, ReadError};

/// What is asked for at once: few enough that an answer comes within seconds over a slow line. After each answer the
/// archive is left alone for as long as it took.
const QUESTION: HistoryLimits = HistoryLimits { versions: 512, bytes: 1 << 20 };

/// Why the archive was not asked, or given nothing.
#[derive(Debug, thiserror::Error)]
pub(super) enum GapError {
    #[error(transparent)]
    Log(#[from] ReadError),
    #[error(transparent)]
    Unreadable(#[from] Unreadable),
    #[error(transparent)]
    Archive(#[from] WriteError),
}

impl GapError {
    pub(super) fn kind(&self) -> FailureKind {
        match self {
            Self::Log(_) => FailureKind::Log,
            Self::Unreadable(_) => FailureKind::Data,
            Self::Archive(error) => error.kind(),
        }
    }
}

/// How far the archive holds the events that were asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Held {
    /// Up to here, and no further: the next event it lacks, or has otherwise.
    Until(u64),
    All,
    /// The conversation is no longer led here.
    Gone,
}

/// Asks for the events after `after_seq`, up to `upto_seq`.
pub(super) async fn held(
    context: &Context,
    id: &ConversationId,
    mut after_seq: u64,
    upto_seq: u64,
) -> Result<Held, GapError> {
    while after_seq < upto_seq {
        let begun = Instant::now();
        let wanted = context.shards.locations(id, after_seq, upto_seq, QUESTION).await?;
        if wanted.is_empty() {
            return Ok(Held::Gone);
        }
        let seqs: Vec<u64> = wanted.iter().map(|(seq, _)| *seq).collect();
        let found = context.postgres.bodies(context.cluster, id, &seqs).await?.into_iter().collect();
        let held = held_of(after_seq, &wanted, &found);
        if held < after_seq + wanted.len() as u64 {
            return Ok(Held::Until(held));
        }
        after_seq = held;
        sleep(begun.elapsed()).await;
    }
    Ok(Held::All)
}

/// The last of the events which follow `after_seq` and are there as they were appended, without a gap.
fn held_of(after_seq: u64, wanted: &[(u64, Location)], found: &HashMap<u64, Bytes>) -> u64 {
    let is_held = |(next, (seq, at)): &(u64, &(u64, Location))| {
        next == seq && found.get(seq).is_some_and(|body| at.is_of(body))
    };
    after_seq + (after_seq + 1..).zip(wanted).take_while(is_held).count() as u64
}

/// Sends a batch again of what the archive is marked to hold, from what follows event `after_seq` on. What the archive says it
/// holds stays as it is: it may lack more than that, before it.
pub(super) async fn send_again(
    context: &Context,
    id: &ConversationId,
    after_seq: u64,
) -> Result<Written, GapError> {
    let limits = HistoryLimits { versions: context.batch_rows, bytes: BATCH_BYTES };
    let Some(page) = context.shards.archived_after(id, after_seq, limits).await? else {
        return Ok(Written::default());
    };
    let mut rows = Rows::default();
    rows.add(id, &page)?;
    if rows.len() == 0 {
        return Ok(Written::default());
    }
    let mut done = batch::timed(context, &rows).await;
    if done.as_ref().is_err_and(|error| error.kind() == FailureKind::Data) {
        rows.leave_bytes_only();
        done = batch::timed(context, &rows).await;
    }
    let written = done?;
    context.metrics.archive_rows_attempted_total.inc_by(written.attempted);
    context.metrics.archive_rows_inserted_total.inc_by(written.inserted);
    Ok(written)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_held_ends_before_the_first_that_is_missing_or_another() {
        let body = |seq: u64| Bytes::from(format!("body {seq}"));
        let wanted = |seqs: &[u64]| -> Vec<(u64, Location)> {
            let at = |body: &Bytes| Location {
                len: body.len() as u32,
                crc: crc32c::crc32c(body),
                ..Location::default()
            };
            seqs.iter().map(|seq| (*seq, at(&body(*seq)))).collect()
        };
        let all: HashMap<u64, Bytes> = (1..=9).map(|seq| (seq, body(seq))).collect();
        assert_eq!(held_of(4, &wanted(&[5, 6, 7]), &all), 7);
        assert_eq!(held_of(4, &wanted(&[5, 7]), &all), 5, "the log has a gap");
        assert_eq!(held_of(4, &wanted(&[6]), &all), 4);
        let mut lacks = all.clone();
        lacks.remove(&6);
        assert_eq!(held_of(4, &wanted(&[5, 6, 7]), &lacks), 5);
        let differs = |body: &'static [u8]| {
            let mut differs = all.clone();
            differs.insert(5, Bytes::from_static(body));
            held_of(4, &wanted(&[5, 6, 7]), &differs)
        };
        assert_eq!((differs(b"body 6"), differs(b"body 5 "), differs(b"body 5")), (4, 4, 7));
        assert_eq!(held_of(0, &wanted(&[1]), &HashMap::new()), 0);
    }
}
