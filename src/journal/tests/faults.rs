//! Disks that fail and disks that are full.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::rig::{Rig, rig_options};
use super::*;
use crate::journal::format::segment_file;
use crate::journal::sim::{Op, SimDisk};

const SEGMENT_BYTES: u64 = 32 << 10;

/// Options that count how often, and remember why, the journal was poisoned.
fn watched() -> (Options, Arc<AtomicUsize>, Arc<Mutex<String>>) {
    let (count, reason) = (Arc::new(AtomicUsize::new(0)), Arc::new(Mutex::new(String::new())));
    let (count2, reason2) = (Arc::clone(&count), Arc::clone(&reason));
    let on_poison: OnPoison = Arc::new(move |why| {
        count2.fetch_add(1, Ordering::SeqCst);
        *reason2.lock() = why.to_owned();
    });
    (Options { on_poison, ..rig_options() }, count, reason)
}

#[test]
fn a_failed_write_or_fsync_poisons_and_is_not_repeated() {
    for op in [Op::Write, Op::Sync] {
        let (options, count, reason) = watched();
        let disk = SimDisk::new();
        let mut rig = Rig::open_with(options, &disk, ScanFrom::Beginning).unwrap();
        let safe = rig.append_synced(b"safe");
        rig.append(1, &[b"one".to_vec()]).unwrap();
        rig.append(2, &[b"two".to_vec()]).unwrap();
        let end = rig.journal.end();
        disk.fail(op, 1, io::ErrorKind::Other);
        assert!(!rig.write());

        assert_eq!(*rig.acks.lock(), [(1, false), (2, false)]);
        assert_eq!(count.load(Ordering::SeqCst), 1);
        assert!(reason.lock().contains(&segment_file(1)), "{}", reason.lock());
        assert_eq!(rig.journal.poisoned().as_ref(), Some(&*reason.lock()));
        let refused = rig.append(3, &[b"three".to_vec()]);
        assert!(matches!(refused, Err(AppendError::Poisoned(_))), "{refused:?}");
        assert!(rig.journal.block_until_synced(end).is_err());
        assert!(!rig.checkpoint(Position::ZERO, b""));
        // What is on disk can still be read; the disk is otherwise left alone.
        assert_eq!(rig.journal.read(safe.segment, safe.offset, 4).unwrap(), "safe");
        let changes = (disk.count(Op::Write), disk.count(Op::Sync));
        rig.write_all();
        rig.journal.shutdown();
        assert_eq!((disk.count(Op::Write), disk.count(Op::Sync)), changes);
        assert_eq!(count.load(Ordering::SeqCst), 1);
        drop(rig);
        let rig = Rig::open(&disk.after_kill(), ScanFrom::Beginning).unwrap();
        assert_eq!(rig.frames[0].payload, "safe");
    }
}

#[test]
fn an_error_while_preparing_poisons() {
    for op in [Op::Create, Op::Allocate, Op::Write, Op::Sync, Op::Rename, Op::SyncDir] {
        let (options, count, _) = watched();
        let disk = SimDisk::new();
        let mut rig = Rig::open_with(options, &disk, ScanFrom::Beginning).unwrap();
        rig.append(1, &[b"one".to_vec()]).unwrap();
        disk.fail(op, 1, io::ErrorKind::Other);
        rig.prepare();
        assert_eq!(count.load(Ordering::SeqCst), 1, "{op:?}");
        assert_eq!(*rig.acks.lock(), [(1, false)]);
    }
}

/// The N-th operation of every kind fails, first while a journal lives, then while it is opened
/// again; each time a kill follows, and in the end everything acknowledged is there.
#[test]
fn any_operation_may_fail_at_any_time() {
    let ops = [Op::Create, Op::Open, Op::Rename, Op::Remove, Op::List, Op::SyncDir, Op::Allocate, Op::Write];
    for op in ops.into_iter().chain([Op::Read, Op::Sync]) {
        for nth in 1..12 {
            let disk = SimDisk::new();
            let mut rig = Rig::open(&disk, ScanFrom::Beginning).unwrap();
            disk.fail(op, nth, io::ErrorKind::Other);
            for number in 0..30 {
                rig.prepare();
                let _ = rig.append(number, &[vec![number as u8; 4500]]);
                rig.write();
                if number == 20 {
                    let end = rig.journal.end();
                    rig.checkpoint(end, b"");
                    let _ = rig.journal.remove_segments_before(rig.journal.stats().active_segment);
                }
            }
            let removed_before = rig.journal.stats().oldest_segment;
            let acknowledged = rig.acks.lock().iter().filter(|(_, ok)| *ok).count();
            drop(rig);

            let disk = disk.after_kill();
            disk.fail(op, nth, io::ErrorKind::Other);
            let _ = Rig::open(&disk, ScanFrom::Beginning);
            let disk = disk.after_kill();
            let rig = Rig::open(&disk, ScanFrom::Beginning).unwrap();
            let entries = rig.frames.iter().filter(|frame| frame.kind == FrameKind::Entry);
            let found: Vec<u8> = entries.map(|frame| frame.payload[0]).collect();
            let first = found.first().copied().unwrap_or(0);
            assert!(found.iter().copied().eq(first..first + found.len() as u8), "{op:?} {nth}: {found:?}");
            assert!(first as usize + found.len() >= acknowledged, "{op:?} {nth}: {acknowledged}, {found:?}");
            assert!(
                first == 0 || rig.journal.stats().oldest_segment >= removed_before.min(2),
                "{op:?} {nth}"
            );
        }
    }
}

#[test]
fn the_reserve_is_not_space_and_still_taken() {
    let disk = SimDisk::new();
    // The active segment, one ahead, and a reserve of two.
    disk.set_capacity(Some(5 * SEGMENT_BYTES));
    let options = Options { reserve_bytes: 2 * SEGMENT_BYTES, ..rig_options() };
    let mut rig = Rig::open_with(options, &disk, ScanFrom::Beginning).unwrap();
    let payload = [vec![7; 7000]];
    let mut accepted = 0;
    while rig.journal.has_space() {
        rig.prepare();
        rig.append(accepted, &payload).unwrap();
        accepted += 1;
        rig.write();
    }
    assert_eq!(rig.journal.stats().space, Space::Low);

    // Appends go on until not even the next segment can be had.
    let busy = loop {
        rig.prepare();
        match rig.append(accepted, &payload) {
            Ok(_) => accepted += 1,
            Err(error) => break error,
        }
        rig.write();
    };
    assert_eq!(busy, AppendError::Busy);
    assert_eq!(rig.journal.stats().space, Space::Exhausted);
    assert_eq!(rig.journal.poisoned(), None);
    rig.write_all();
    assert_eq!(rig.acks.lock().iter().filter(|(_, ok)| *ok).count() as u64, accepted);
    let at = rig.frames.len();
    assert_eq!(at, 0);

    // Space returns, and with it everything.
    disk.set_capacity(Some(20 * SEGMENT_BYTES));
    rig.look_at_space();
    assert!(!rig.journal.has_space(), "not before a segment could be had");
    rig.prepare();
    assert_eq!(rig.journal.stats().space, Space::Ample);
    rig.append(accepted, &payload).unwrap();
    rig.write_all();
    drop(rig);
    let rig = Rig::open(&disk, ScanFrom::Beginning).unwrap();
    assert_eq!(rig.frames.len() as u64, accepted + 1);
    assert!(rig.frames.iter().all(|frame| frame.payload == payload[0]));
}

#[test]
fn a_full_disk_can_be_opened_and_read() {
    let disk = SimDisk::new();
    let mut rig = Rig::open(&disk, ScanFrom::Beginning).unwrap();
    let at = rig.append_synced(b"here");
    drop(rig);
    disk.set_capacity(Some(0));
    let options = Options { reserve_bytes: 1, ..rig_options() };
    let mut rig = Rig::open_with(options, &disk, ScanFrom::Beginning).unwrap();
    assert_eq!(rig.journal.read(at.segment, at.offset, 4).unwrap(), "here");
    assert!(!rig.journal.has_space());
    rig.append(1, &[b"vote".to_vec()]).unwrap();
    rig.write_all();
    assert_eq!(*rig.acks.lock(), [(1, true)]);
}

/// With its threads.
#[tokio::test]
async fn waiting_for_space_ends_when_it_returns() {
    let disk = SimDisk::new();
    disk.set_capacity(Some(2 * SEGMENT_BYTES + 100));
    let (journal, _, _) = open(
        &Options { segment_bytes: SEGMENT_BYTES as u32, reserve_bytes: 1, ..options() },
        &(Arc::new(disk.clone()) as Arc<dyn Disk>),
        ScanFrom::Checkpoint,
    )
    .unwrap();
    let payload = vec![1; 9000];
    let drafts = [Draft { kind: FrameKind::Entry, group: 0, payload: &[&payload] }];
    let mut appended = 0;
    loop {
        let append = journal.append(&drafts, None);
        match tokio::time::timeout(Duration::from_secs(3), append).await {
            Ok(positions) => drop(positions.unwrap()),
            Err(_still_waiting) => break,
        }
        appended += 1;
    }
    assert_eq!(appended, 6, "two segments of three frames");
    assert_eq!(journal.stats().space, Space::Exhausted);
    assert!(!journal.has_space());

    let waiting = {
        let (journal, payload) = (journal.clone(), payload.clone());
        tokio::spawn(async move {
            let draft = Draft { kind: FrameKind::Entry, group: 0, payload: &[&payload] };
            journal.append(&[draft], None).await
        })
    };
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert!(!waiting.is_finished());
    disk.set_capacity(None);
    waiting.await.unwrap().unwrap();
    journal.block_until_synced(journal.end()).unwrap();
    append_synced(&journal, 0, b"data again").await;
}

#[test]
fn segments_are_removed_oldest_first_and_never_what_recovery_needs() {
    let disk = SimDisk::new();
    let mut rig = Rig::open(&disk, ScanFrom::Beginning).unwrap();
    let mut positions = Vec::new();
    for number in 0..20 {
        positions.push(rig.append_synced(&vec![number; 9000]));
    }
    let journal = rig.journal.clone();
    assert_eq!(journal.remove_segments_before(0).unwrap(), 0);
    assert!(journal.remove_segments_before(1).is_err(), "there is no checkpoint");
    let keep = positions[12];
    assert!(rig.checkpoint(keep, b"state"));
    assert!(journal.remove_segments_before(keep.segment + 1).is_err(), "the checkpoint needs it");

    disk.fail(Op::Remove, 2, io::ErrorKind::Other);
    assert!(journal.remove_segments_before(keep.segment).is_err());
    assert_eq!(journal.poisoned(), None);
    assert_eq!(journal.stats().oldest_segment, 2);
    assert_eq!(journal.remove_segments_before(keep.segment).unwrap() as u32, keep.segment - 2);
    assert_eq!(journal.segments()[0].segment, keep.segment);
    let gone = positions[0];
    assert_eq!(journal.read(gone.segment, gone.offset, 1).unwrap_err().kind(), io::ErrorKind::NotFound);
    drop((rig, journal));

    let rig = Rig::open(&disk, ScanFrom::Checkpoint).unwrap();
    assert_eq!(rig.frames[0].payload, "state");
    assert_eq!(
        rig.frames[1..].iter().map(|f| f.payload[0]).collect::<Vec<_>>(),
        (12..20).collect::<Vec<u8>>()
    );
    let rig = Rig::open(&disk, ScanFrom::Beginning).unwrap();
    assert_eq!(rig.frames[0].position.segment, keep.segment);
    drop(rig);

    let mut rig = Rig::open(&disk, ScanFrom::Checkpoint).unwrap();
    let end = rig.journal.end();
    assert!(rig.checkpoint(end, b"newer"));
    disk.fail(Op::SyncDir, 1, io::ErrorKind::Other);
    assert!(rig.journal.remove_segments_before(end.segment).is_err());
    assert!(rig.journal.poisoned().is_some());
}
