//! Append, read, recover, with real threads.

use super::*;

fn real_disk(dir: &tempfile::TempDir) -> Arc<dyn Disk> {
    Arc::new(RealDisk::open(&dir.path().join("journal")).unwrap())
}

#[tokio::test]
async fn what_was_appended_is_read_and_recovered() {
    let dir = tempfile::tempdir().unwrap();
    let disk = real_disk(&dir);
    let (journal, recovery, frames) = open(&options(), &disk, ScanFrom::Checkpoint).unwrap();
    assert_eq!((recovery.epoch, recovery.frames, frames.len()), (1, 0, 0));

    let mut written = Vec::new();
    // Enough for several segments.
    for number in 0..301_u32 {
        let payload = number.to_le_bytes().repeat(1 + number as usize);
        let position = append_synced(&journal, number as u16, &payload).await;
        let read = journal.read(position.segment, position.offset, payload.len() as u32).unwrap();
        assert_eq!(read, payload);
        written.push((position, number as u16, payload));
    }
    assert_eq!(journal.synced(), journal.end());
    let segments = journal.segments();
    assert!(segments.len() > 3, "{segments:?}");
    for (position, _, payload) in &written {
        let read = journal.read(position.segment, position.offset, payload.len() as u32).unwrap();
        assert_eq!(&read, payload);
    }
    let end = journal.end();
    journal.shutdown();
    drop(journal);

    let (journal, recovery, frames) = open(&options(), &disk, ScanFrom::Checkpoint).unwrap();
    assert_eq!(recovery.epoch, 2);
    assert_eq!(recovery.torn_tail, None);
    // The shutdown proved the last batch by a watermark.
    assert!(recovery.end > end);
    let recovered: Vec<_> = frames.iter().map(|f| (f.position, f.group, f.payload.to_vec())).collect();
    assert_eq!(recovered, written);
    let used = |s: &[SegmentStats]| s.iter().map(|s| (s.segment, s.used_bytes)).collect::<Vec<_>>();
    let (_active, sealed) = segments.split_last().unwrap();
    assert_eq!(used(&journal.segments())[..sealed.len()], used(sealed));
}

#[tokio::test]
async fn one_append_may_carry_many_frames_and_pieces() {
    let disk: Arc<dyn Disk> = Arc::new(sim::SimDisk::new());
    let (journal, _, _) = open(&options(), &disk, ScanFrom::Checkpoint).unwrap();
    let drafts = [
        Draft { kind: FrameKind::Vote, group: 7, payload: &[b"vo", b"", b"te"] },
        Draft { kind: FrameKind::TruncateAfter, group: 65535, payload: &[] },
        Draft { kind: FrameKind::Entry, group: 0, payload: &[b"entry"] },
    ];
    let (done, synced) = completion();
    let positions = journal.append(&drafts, done).await.unwrap();
    synced.await.unwrap().unwrap();
    assert_eq!(positions.len(), 3);
    assert_eq!(journal.read(positions[0].segment, positions[0].offset, 4).unwrap(), "vote");
    drop(journal);

    let (_journal, _, frames) = open(&options(), &disk, ScanFrom::Checkpoint).unwrap();
    let expected: [Seen; 3] = [
        (FrameKind::Vote, 7, b"vote".to_vec()),
        (FrameKind::TruncateAfter, 65535, vec![]),
        (FrameKind::Entry, 0, b"entry".to_vec()),
    ];
    assert_eq!(frames.iter().map(seen).collect::<Vec<_>>(), expected);
    assert_eq!(frames.iter().map(|f| f.position).collect::<Vec<_>>(), positions);
}

#[tokio::test]
async fn recovery_starts_at_the_newest_checkpoint() {
    let disk: Arc<dyn Disk> = Arc::new(sim::SimDisk::new());
    let (journal, _, _) = open(&options(), &disk, ScanFrom::Checkpoint).unwrap();
    append_synced(&journal, 1, b"before").await;
    journal.checkpoint(journal.end(), b"old").await.unwrap();
    let scan_from = journal.end();
    append_synced(&journal, 2, b"between").await;
    let at = journal.checkpoint(scan_from, b"new").await.unwrap();
    assert_eq!(journal.read(at.segment, at.offset, 3).unwrap(), "new");
    append_synced(&journal, 3, b"after").await;
    drop(journal);

    let expected_new: [Seen; 3] = [
        (FrameKind::Checkpoint, 0, b"new".to_vec()),
        (FrameKind::Entry, 2, b"between".to_vec()),
        (FrameKind::Entry, 3, b"after".to_vec()),
    ];
    // Once from the last segment itself, once through the header of a later one.
    for _ in 0..2 {
        let (journal, recovery, frames) = open(&options(), &disk, ScanFrom::Checkpoint).unwrap();
        assert_eq!(frames[..3].iter().map(seen).collect::<Vec<_>>(), expected_new);
        assert_eq!(recovery.checkpoint, Some(scan_from));
        assert_eq!(frames[0].position, at);
        for _ in 0..4 {
            append_synced(&journal, 4, &[4; 40_000]).await;
        }
    }
    let (_journal, _, frames) = open(&options(), &disk, ScanFrom::Beginning).unwrap();
    let kinds = frames[..5].iter().map(|f| f.group);
    assert_eq!(kinds.collect::<Vec<_>>(), [1, 0, 2, 0, 3]);
    assert_eq!(frames.len(), 5 + 8);
}

#[tokio::test]
async fn a_failing_visitor_stops_the_opening() {
    let disk: Arc<dyn Disk> = Arc::new(sim::SimDisk::new());
    let (journal, _, _) = open(&options(), &disk, ScanFrom::Checkpoint).unwrap();
    let position = append_synced(&journal, 1, b"x").await;
    drop(journal);
    let refused = Journal::open(options(), disk, ScanFrom::Checkpoint, &mut |_| Err("no".into()));
    let error = refused.err().unwrap();
    assert!(matches!(error, OpenError::Visit { position: p, .. } if p == position), "{error}");
}
