//! Reclaiming on real files: what goes, what stays, and who is waited for.

use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::*;
use crate::conversation::{Action, Location, Reply};
use crate::journal::segment_file;
use crate::raft::node::Node;
use crate::raft::testing::{
    GROUPS, append, crash, dump_all, fill, group_of, lose_index, numbered, places, put, start, write,
};

const CONVERSATIONS: usize = 9;

/// Metadata that is replaced again and again: a segment's worth about every 17 times.
pub(super) async fn churn(node: &Node, times: usize) {
    for n in 0..times {
        let patch = format!(r#"{{"n":{n},"filling":"{}"}}"#, "x".repeat(60_000));
        write(node, n % CONVERSATIONS, Action::PatchMetadata { patch: patch.into() }).await;
    }
}

/// Two checkpoints with something between them: the second begins where the first had come to.
pub(super) async fn settle(node: &Node) {
    node.checkpoint().await;
    for group in 0..usize::from(GROUPS) {
        write(node, group, put()).await;
    }
    node.checkpoint().await;
}

fn digests(node: &Node) -> Vec<(u64, u128)> {
    node.hosted().iter().map(|group| group.store.logical_digest().unwrap().unwrap()).collect()
}

fn oldest(node: &Node) -> u32 {
    node.journal.stats().oldest_segment
}

/// The number of the oldest segment that has a file.
fn oldest_file(dir: &Path) -> u32 {
    let names = std::fs::read_dir(dir.join("journal")).unwrap().map(|entry| entry.unwrap().file_name());
    let number = |name: std::ffi::OsString| name.to_str()?.strip_suffix(".segment")?.parse().ok();
    names.filter_map(number).min().unwrap()
}

async fn filled(dir: &Path) -> Node {
    let node = start(dir).await;
    fill(&node, 0, CONVERSATIONS - 1).await;
    // Long enough for several sealed runs, all of which stay.
    let texts = numbered("of the long one", 400);
    write(&node, 2, append(&texts, Some(9))).await;
    churn(&node, 60).await;
    settle(&node).await;
    node
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_left_is_all_there_was() {
    let dir = tempfile::tempdir().unwrap();
    let mut node = filled(dir.path()).await;
    for round in 0..3 {
        let (before, digests_before, oldest_before) =
            (dump_all(&node, CONVERSATIONS), digests(&node), oldest(&node));
        let reclaimed = node.reclaim().await.unwrap().expect("most of it is dead");
        assert!(reclaimed.segments >= 2 && oldest(&node) >= oldest_before + 2, "{reclaimed:?}");
        assert_eq!(oldest_file(dir.path()), oldest(&node), "the files are gone");
        assert_eq!(dump_all(&node, CONVERSATIONS), before);
        assert_eq!(digests(&node), digests_before);
        for group in node.hosted() {
            group.store.ensure_verified().unwrap();
        }
        // What comes after an image counts too, checkpointed or not.
        write(&node, round, append(&[format!("after image {round}")], None)).await;
        let before = dump_all(&node, CONVERSATIONS);
        crash(node).await;
        node = start(dir.path()).await;
        assert_eq!(node.shared.metrics.index_rebuilds.get(), 0);
        assert_eq!(dump_all(&node, CONVERSATIONS), before);
        crash(node).await;

        lose_index(dir.path());
        node = start(dir.path()).await;
        assert_eq!(node.shared.metrics.index_rebuilds.get(), 1);
        assert_eq!(dump_all(&node, CONVERSATIONS), before);
        let texts = numbered("of the long one", 400);
        let again = write(&node, 2, append(&texts, Some(9))).await;
        assert!(matches!(again, Reply::Appended { deduped: true, .. }), "{again:?}");
        churn(&node, 40).await;
        settle(&node).await;
    }
    node.shutdown().await;
}

/// An image that its group's log has outrun meanwhile, by writes and by checkpoints that would purge it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn appends_reads_and_checkpoints_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let node = Arc::new(filled(dir.path()).await);
    let (over, reads) = (Arc::new(AtomicBool::new(false)), std::sync::atomic::AtomicUsize::new(0));
    let reclaiming = async {
        let mut segments = 0;
        for _ in 0..6 {
            segments += node.reclaim().await.unwrap().map_or(0, |reclaimed| reclaimed.segments);
            churn(&node, 30).await;
            settle(&node).await;
        }
        over.store(true, Ordering::Relaxed);
        segments
    };
    let writing = async {
        let mut n = 0;
        while !over.load(Ordering::Relaxed) {
            write(&node, n % CONVERSATIONS, append(&[format!("while reclaiming {n}")], None)).await;
            n += 1;
        }
    };
    let reader = {
        let (node, over) = (node.clone(), over.clone());
        tokio::task::spawn_blocking(move || {
            let mut rounds = 0;
            while !over.load(Ordering::Relaxed) {
                dump_all(&node, CONVERSATIONS);
                rounds += 1;
            }
            rounds
        })
    };
    let (segments, ()) = tokio::join!(reclaiming, writing);
    reads.store(reader.await.unwrap(), Ordering::Relaxed);
    assert!(segments >= 6 && reads.load(Ordering::Relaxed) > 0, "{segments} segments");

    let before = dump_all(&node, CONVERSATIONS);
    crash(Arc::into_inner(node).unwrap()).await;
    lose_index(dir.path());
    let node = start(dir.path()).await;
    assert_eq!(dump_all(&node, CONVERSATIONS), before);
    node.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_segment_waits_for_those_who_looked_a_place_in_it_up() {
    let dir = tempfile::tempdir().unwrap();
    let node = Arc::new(filled(dir.path()).await);
    let store = group_of(&node, 2).store.clone();
    let places = || places(&store, 2, 5);
    let reading = store.reading();
    let old = places();
    assert!(old.iter().all(|place| place.segment == 1));
    let pass = tokio::spawn({
        let node = node.clone();
        async move { node.reclaim().await.unwrap().unwrap() }
    });
    while places().iter().any(|place| place.segment == 1) {
        tokio::task::yield_now().await;
    }
    // The cache must not answer for the disk.
    let direct = |place: &Location| node.journal.read(place.segment, place.offset, place.len);
    assert!(old.iter().all(|place| crc32c::crc32c(&direct(place).unwrap()) == place.crc));
    assert_eq!(oldest(&node), 1);
    drop(reading);
    pass.await.unwrap();
    assert!(oldest(&node) > 1);
    assert!(direct(&old[0]).is_err(), "an old place is an error, never other bytes");
    let reading = store.reading();
    assert_eq!(store.bodies(&reading, &places()).unwrap().len(), 5);
    node.shutdown().await;
}

/// Or each pass would write for nothing what the ones before wrote, until the disk is full.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_message_keeps_its_segment_and_those_behind_it() {
    let dir = tempfile::tempdir().unwrap();
    let node = filled(dir.path()).await;
    let place = places(&group_of(&node, 2).store, 2, 1)[0];
    let path = dir.path().join("journal").join(segment_file(place.segment));
    let file = std::fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, place.offset.into()).unwrap();
    file.write_all_at(&[byte[0] ^ 1], place.offset.into()).unwrap();

    let failed = node.reclaim().await;
    assert!(matches!(failed, Err(ReclaimError::Store(StoreError::Damaged { segment: 1, .. }))), "{failed:?}");
    let end = node.journal.end();
    assert_eq!(node.reclaim().await.unwrap(), None);
    assert_eq!(node.journal.end(), end, "nothing is written for it any more");
    node.stop_without_checkpoint().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_removed_replica_left_behind_goes() {
    let dir = tempfile::tempdir().unwrap();
    let node = start(dir.path()).await;
    let texts: Vec<String> = (0..40).map(|i| format!("{i} {}", "long".repeat(200))).collect();
    for n in 0..60 {
        // Conversations of group 1 only.
        write(&node, 1 + n * usize::from(GROUPS), put()).await;
        write(&node, 1 + n * usize::from(GROUPS), append(&texts, None)).await;
    }
    write(&node, 0, put()).await;
    settle(&node).await;
    assert_eq!(node.reclaim().await.unwrap(), None, "all of it is live");
    node.unhost(1).await.unwrap();
    for group in [0, 2, 3] {
        write(&node, group, put()).await;
    }
    node.checkpoint().await;
    let reclaimed = node.reclaim().await.unwrap().unwrap();
    assert!(reclaimed.segments >= 1, "{reclaimed:?}");
    let before = dump_all(&node, 1);
    crash(node).await;
    lose_index(dir.path());
    let node = start(dir.path()).await;
    assert_eq!(dump_all(&node, 1), before);
    assert_eq!(dump_all(&node, 2)[1], "absent");
    node.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_image_gives_way_to_a_snapshot() {
    let dir = tempfile::tempdir().unwrap();
    let node = filled(dir.path()).await;
    let log = group_of(&node, 3).log.clone();
    let imaging = Imaging::begin(&log).unwrap();
    assert!(Imaging::begin(&log).is_none(), "one at a time");
    log.bar_image();
    assert!(!imaging.commit(b"").await.unwrap(), "the snapshot's state is not in it");
    let refused = node.reclaim().await;
    assert!(matches!(refused, Err(ReclaimError::Installing(3))), "{refused:?}");
    assert_eq!(oldest(&node), 1);
    log.end_import();
    assert!(node.reclaim().await.unwrap().is_some());
    node.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_snapshot_takes_away_from_an_image_is_not_missing() {
    let dir = tempfile::tempdir().unwrap();
    let node = filled(dir.path()).await;
    let group = group_of(&node, 2);
    let imaging = Imaging::begin(&group.log).unwrap();
    let write = async |imaging: Imaging| {
        let (reclaimer, store) = (node.reclaimer.clone(), group.store.clone());
        tokio::task::spawn_blocking(move || reclaimer.write_blocks(&store, 2, imaging)).await.unwrap()
    };
    let imaging = write(imaging).await.unwrap().expect("nothing came in between");

    // As the begin of an installation leaves it.
    let index = &node.shared.index;
    let mut batch = crate::store::Batch::default();
    for record in index.scan(&group.store.group().to_be_bytes(), &group.store.group().to_be_bytes()) {
        batch.remove(record.unwrap().0);
    }
    index.write(batch).unwrap();
    group.log.bar_image();
    assert!(write(imaging).await.unwrap().is_none());
    group.log.end_import();
    let imaging = Imaging::begin(&group.log).unwrap();
    assert!(write(imaging).await.is_err_and(|error| error.wants_rebuild()), "nobody took it away");
    node.stop_without_checkpoint().await;
}
