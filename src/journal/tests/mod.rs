//! Tests of the journal as a whole. `basics` and `threads` run it as the server does, with its two
//! threads; the others drive it step by step on a simulated disk, so that a seed is a whole story.

mod basics;
mod damage;
mod faults;
mod golden;
mod power_loss;
mod rig;
mod threads;

use std::time::Duration;

use tokio::sync::oneshot;

use super::*;

pub(super) const NODE: u128 = 0x0123_4567_89ab_cdef_0123_4567_89ab_cdef;

/// Small segments, and no idle batches unless a test wants them.
pub(super) fn options() -> Options {
    Options {
        segment_bytes: 64 << 10,
        reserve_bytes: 0,
        idle_delay: Duration::from_secs(3600),
        space_interval: Duration::from_millis(5),
        hangs_after: Duration::from_millis(100),
        ..Options::new(NODE)
    }
}

/// A frame as tests compare them.
pub(super) type Seen = (FrameKind, u16, Vec<u8>);

pub(super) fn seen(frame: &Frame) -> Seen {
    (frame.kind, frame.group, frame.payload.to_vec())
}

/// Opens and collects what is recovered.
pub(super) fn open(
    options: &Options,
    disk: &Arc<dyn Disk>,
    from: ScanFrom,
) -> Result<(Journal, Recovery, Vec<Frame>), OpenError> {
    let mut frames = Vec::new();
    let (journal, recovery) = Journal::open(options.clone(), Arc::clone(disk), from, &mut |frame| {
        frames.push(frame);
        Ok(())
    })?;
    Ok((journal, recovery, frames))
}

/// A completion and what it was told.
pub(super) fn completion() -> (Option<Completion>, oneshot::Receiver<io::Result<()>>) {
    let (sender, receiver) = oneshot::channel();
    let done: Completion = Box::new(move |result| {
        // The test may have gone on.
        let _ = sender.send(result);
    });
    (Some(done), receiver)
}

/// Appends one entry and waits until it is on disk.
pub(super) async fn append_synced(journal: &Journal, group: u16, payload: &[u8]) -> Position {
    let (done, synced) = completion();
    let draft = Draft { kind: FrameKind::Entry, group, payload: &[payload] };
    let positions = journal.append(&[draft], done).await.unwrap();
    synced.await.unwrap().unwrap();
    positions[0]
}
