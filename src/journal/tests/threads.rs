//! The journal with its threads: many appenders, readers of what is still queued, bounds, idleness,
//! the end.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::thread;
use std::time::Instant;

use super::*;
use crate::journal::sim::{Op, SimDisk};

fn sim() -> (SimDisk, Arc<dyn Disk>) {
    let disk = SimDisk::new();
    (disk.clone(), Arc::new(disk))
}

fn entry<'a>(payload: &'a [&'a [u8]]) -> Draft<'a> {
    Draft { kind: FrameKind::Entry, group: 0, payload }
}

fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !holds() {
        assert!(Instant::now() < deadline, "{what}");
        thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn appends_of_many_threads_keep_each_threads_order_and_complete_in_order() {
    const THREADS: u16 = 8;
    const APPENDS: u32 = 400;
    let (_, disk) = sim();
    let (journal, _, _) = open(&options(), &disk, ScanFrom::Checkpoint).unwrap();
    let completed = Arc::new(AtomicU64::new(0));
    let acknowledged = Arc::new(AtomicUsize::new(0));
    thread::scope(|scope| {
        for group in 0..THREADS {
            let (journal, completed, acknowledged) = (&journal, &completed, &acknowledged);
            scope.spawn(move || {
                for number in 0..APPENDS {
                    let bytes = number.to_le_bytes();
                    let draft = Draft { kind: FrameKind::Entry, group, payload: &[&bytes, &[0; 100]] };
                    loop {
                        // Completions run one after the other, so that a counter can number them.
                        let at = Arc::new(AtomicU64::new(0));
                        let (at2, completed) = (Arc::clone(&at), Arc::clone(completed));
                        let acknowledged = Arc::clone(acknowledged);
                        let done: Completion = Box::new(move |result| {
                            result.unwrap();
                            let position = at2.load(Ordering::SeqCst);
                            // Zero if the append has not returned yet; positions only rise.
                            if position != 0 {
                                assert!(completed.fetch_max(position, Ordering::SeqCst) < position);
                            }
                            acknowledged.fetch_add(1, Ordering::SeqCst);
                        });
                        match journal.try_append(&[draft], Some(done)) {
                            Ok(positions) => {
                                at.store(positions[0].pack(), Ordering::SeqCst);
                                break;
                            }
                            Err(AppendError::Busy) => thread::yield_now(),
                            Err(error) => panic!("{error}"),
                        }
                    }
                }
            });
        }
    });
    journal.shutdown();
    assert_eq!(acknowledged.load(Ordering::SeqCst), THREADS as usize * APPENDS as usize);
    drop(journal);

    let (_journal, _, frames) = open(&options(), &disk, ScanFrom::Checkpoint).unwrap();
    let mut next = [0_u32; THREADS as usize];
    for frame in &frames {
        let number = u32::from_le_bytes(*frame.payload.first_chunk().unwrap());
        assert_eq!(number, next[frame.group as usize]);
        next[frame.group as usize] += 1;
    }
    assert_eq!(next, [APPENDS; THREADS as usize]);
}

#[tokio::test]
async fn what_is_queued_or_being_written_can_be_read() {
    let (sim, disk) = sim();
    let (journal, _, _) = open(&options(), &disk, ScanFrom::Checkpoint).unwrap();
    eventually("a segment ahead", || sim.count(Op::Rename) == 2);
    let held = sim.hold_syncs();
    let (done, synced) = completion();
    let first = journal.try_append(&[entry(&[b"first"])], done).unwrap()[0];
    eventually("the first batch is written", || journal.inner.shared.written() > first);
    let mut queued = Vec::new();
    // More than the segment has room for: some wait in the next one.
    for number in 0..100_u8 {
        let payload = vec![number; 900];
        let at = journal.try_append(&[entry(&[&payload])], None).unwrap()[0];
        queued.push((at, payload));
    }
    assert!(queued[99].0.segment > first.segment);
    assert_eq!(journal.read(first.segment, first.offset, 5).unwrap(), "first");
    for (at, payload) in &queued {
        assert_eq!(&journal.read(at.segment, at.offset, 900).unwrap(), payload);
        assert_eq!(&journal.read(at.segment, at.offset + 100, 7).unwrap(), &payload[..7]);
    }
    assert!(journal.synced() < first);
    let end = journal.end();
    assert!(journal.read(end.segment, end.offset, 1).is_err());
    assert!(journal.read(end.segment, u32::MAX, u32::MAX).is_err());
    assert!(journal.read(end.segment + 7, 0, 1).is_err());
    drop(held);
    synced.await.unwrap().unwrap();
    journal.block_until_synced(end).unwrap();
    for (at, payload) in &queued {
        assert_eq!(&journal.read(at.segment, at.offset, 900).unwrap(), payload);
    }
}

#[tokio::test]
async fn the_queue_is_bounded_and_appends_wait_for_room() {
    let (sim, disk) = sim();
    let options = Options { queue_bytes_max: 10_000, ..options() };
    let (journal, _, _) = open(&options, &disk, ScanFrom::Checkpoint).unwrap();
    eventually("a segment ahead", || sim.count(Op::Rename) == 2);
    let held = sim.hold_syncs();
    let payload = [5; 1000];
    let refused = (0..1000).find_map(|_| journal.try_append(&[entry(&[&payload])], None).err());
    assert_eq!(refused, Some(AppendError::Busy));
    assert!((9_000..=10_000).contains(&journal.stats().queued_bytes));
    let tasks: Vec<_> = (0..20)
        .map(|_| {
            let journal = journal.clone();
            tokio::spawn(async move {
                let (done, synced) = completion();
                journal.append(&[entry(&[&[6; 1000]])], done).await.unwrap();
                synced.await.unwrap().unwrap();
            })
        })
        .collect();
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert!(journal.stats().queued_bytes <= 10_000);
    drop(held);
    for task in tasks {
        task.await.unwrap();
    }
    // What is larger than the bound is let through alone.
    append_synced(&journal, 0, &[7; 30_000]).await;
    assert_eq!(journal.stats().queued_bytes, 0);
}

#[tokio::test]
async fn lazy_frames_wait_for_company_a_waiter_or_idleness() {
    let (sim, disk) = sim();
    let (journal, _, _) = open(&options(), &disk, ScanFrom::Checkpoint).unwrap();
    eventually("a segment ahead", || sim.count(Op::Rename) == 2);
    let before = sim.count(Op::Sync);
    let lazy = journal.append(&[entry(&[b"lazy"])], None).await.unwrap()[0];
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert_eq!(sim.count(Op::Sync), before);
    append_synced(&journal, 0, b"company").await;
    assert!(journal.synced() > lazy);
    assert_eq!(sim.count(Op::Sync), before + 1, "one batch for both");

    journal.append(&[entry(&[b"lazy"])], None).await.unwrap();
    journal.block_until_synced(journal.end()).unwrap();
    assert_eq!(sim.count(Op::Sync), before + 2);
    let past = Position { offset: journal.end().offset + 1, ..journal.end() };
    assert_eq!(journal.block_until_synced(past).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    drop(journal);

    let idle = Options { idle_delay: Duration::from_millis(10), ..options() };
    let (journal, _, _) = open(&idle, &disk, ScanFrom::Checkpoint).unwrap();
    let lazy = journal.append(&[entry(&[b"lazy"])], None).await.unwrap()[0];
    eventually("idleness writes lazy frames", || journal.synced() > lazy);
}

#[tokio::test]
async fn a_disk_that_does_not_come_back_hangs() {
    let (sim, disk) = sim();
    let (journal, _, _) = open(&options(), &disk, ScanFrom::Checkpoint).unwrap();
    append_synced(&journal, 0, b"taken").await;
    assert!(!journal.hangs());
    let held = sim.hold_syncs();
    let (done, synced) = completion();
    journal.append(&[entry(&[b"held"])], done).await.unwrap();
    eventually("the disk hangs", || journal.hangs());
    drop(held);
    synced.await.unwrap().unwrap();
    eventually("the disk answers", || !journal.hangs());
}

#[tokio::test]
async fn lazy_frames_at_the_end_of_a_segment_do_not_hold_up_the_first_append_of_the_next() {
    let (sim, disk) = sim();
    let (journal, _, _) = open(&options(), &disk, ScanFrom::Checkpoint).unwrap();
    eventually("a segment ahead", || sim.count(Op::Rename) == 2);
    let half = vec![0; 40 << 10];
    journal.append(&[entry(&[&half])], None).await.unwrap();
    // The writer hears of it, and waits for company.
    tokio::time::sleep(Duration::from_millis(50)).await;
    let appended = append_synced(&journal, 0, &half);
    let position = tokio::time::timeout(Duration::from_secs(60), appended).await.expect("it is written");
    assert_eq!(position.segment, journal.end().segment);
    assert!(position.segment > journal.stats().oldest_segment, "in the next segment");
}

#[tokio::test]
async fn silence_is_followed_by_one_watermark_and_then_by_nothing() {
    let (sim, disk) = sim();
    let idle = Options { idle_delay: Duration::from_millis(10), ..options() };
    let (journal, _, _) = open(&idle, &disk, ScanFrom::Checkpoint).unwrap();
    eventually("a segment ahead", || sim.count(Op::Rename) == 2);
    let before = sim.count(Op::Sync);
    append_synced(&journal, 0, b"x").await;
    eventually("the watermark", || sim.count(Op::Sync) >= before + 2);
    tokio::time::sleep(Duration::from_millis(60)).await;
    assert_eq!(sim.count(Op::Sync), before + 2);
    drop(journal);
    let (_journal, _, frames) = open(&idle, &disk, ScanFrom::Beginning).unwrap();
    assert_eq!(frames.len(), 1, "a watermark is not delivered");
}

#[tokio::test]
async fn shutdown_writes_what_is_queued_and_refuses_the_rest() {
    let (_, disk) = sim();
    let (journal, _, _) = open(&options(), &disk, ScanFrom::Checkpoint).unwrap();
    journal.append(&[entry(&[b"lazy"])], None).await.unwrap();
    let end = journal.end();
    journal.shutdown();
    journal.shutdown();
    assert!(journal.synced() >= end);
    let refused = journal.append(&[entry(&[b"late"])], None).await;
    assert_eq!(refused, Err(AppendError::Closed));
    assert_eq!(journal.checkpoint(Position::ZERO, b"").await, Err(AppendError::Closed));
    assert_eq!(journal.read(1, end.offset - 4, 4).unwrap(), "lazy");
}

#[tokio::test]
async fn the_last_handle_may_go_on_the_writer_thread() {
    let (_, disk) = sim();
    let (journal, _, _) = open(&options(), &disk, ScanFrom::Checkpoint).unwrap();
    let (sender, gone) = tokio::sync::oneshot::channel();
    let last = journal.clone();
    let done: Completion = Box::new(move |result| {
        drop(last);
        let _ = sender.send(result);
    });
    journal.append(&[entry(&[b"x"])], Some(done)).await.unwrap();
    drop(journal);
    gone.await.unwrap().unwrap();
}

#[tokio::test]
async fn what_fits_no_segment_is_refused_at_once() {
    let (_, disk) = sim();
    let (journal, _, _) = open(&options(), &disk, ScanFrom::Checkpoint).unwrap();
    let max = journal.inner.shared.options.append_bytes_max();
    let payload = vec![0; max as usize - 15];
    let refused = journal.append(&[entry(&[&payload])], None).await;
    assert_eq!(refused, Err(AppendError::TooLarge { bytes: max + 1, max }));
    let at = append_synced(&journal, 0, &payload[1..]).await;
    assert_eq!(at.segment, 1, "fits exactly");
    append_synced(&journal, 0, &payload[1..]).await;
    append_synced(&journal, 0, b"small").await;
    let barrier = completion();
    journal.append(&[], barrier.0).await.unwrap();
    barrier.1.await.unwrap().unwrap();
    drop(journal);
    let (_journal, _, frames) = open(&options(), &disk, ScanFrom::Beginning).unwrap();
    assert_eq!(frames.len(), 3);
}

#[test]
fn options_are_checked() {
    let (_, disk) = sim();
    for segment_bytes in [0, 4096, (16 << 10) | 1, 2 << 30] {
        let wrong = Options { segment_bytes, ..options() };
        assert!(matches!(open(&wrong, &disk, ScanFrom::Beginning), Err(OpenError::InvalidOption(_))));
    }
    let changed = Options { segment_bytes: 16 << 10, ..options() };
    // The size of new segments may change from start to start.
    drop(open(&options(), &disk, ScanFrom::Beginning).unwrap());
    open(&changed, &disk, ScanFrom::Beginning).unwrap();
}
