//! A node on the files of an earlier life, with and without its index.

use crate::conversation::Reply;
use crate::raft::recovery::request_rebuild;
use crate::raft::testing::{
    append, crash, dump_all, fill, group_of, id, lose_index, numbered, start, start_with, stop, write,
};
use crate::store::{Batch, Failure, Index, SledIndex, StoreError, head_key};

/// Conversations of the recovery test, the last of which is never created.
const CONVERSATIONS: usize = 19;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_recovers_with_and_without_its_index() {
    let dir = tempfile::tempdir().unwrap();
    let node = start(dir.path()).await;
    fill(&node, 0, 6).await;
    node.checkpoint().await;
    fill(&node, 6, 12).await;
    // Checkpoints must not need a quiet moment.
    let writing = async {
        for n in (12..18).rev() {
            fill(&node, n, n + 1).await;
        }
    };
    let checkpointing = async {
        for _ in 0..5 {
            node.checkpoint().await;
            tokio::task::yield_now().await;
        }
    };
    tokio::join!(writing, checkpointing);
    let before = dump_all(&node, CONVERSATIONS);
    assert_eq!(before[CONVERSATIONS - 1], "absent");
    // Not a shutdown: everything after the checkpoint is only in the journal.
    crash(node).await;

    let node = start(dir.path()).await;
    assert_eq!(node.shared.metrics.index_rebuilds.get(), 0);
    assert_eq!(dump_all(&node, CONVERSATIONS), before);
    let again = write(&node, 7, append(&numbered("message 7", 150), Some(1))).await;
    assert!(matches!(again, Reply::Appended { first_seq: 1, last_seq: 150, deduped: true, .. }), "{again:?}");
    stop(node).await;

    lose_index(dir.path());
    let node = start(dir.path()).await;
    assert_eq!(node.shared.metrics.index_rebuilds.get(), 1);
    assert_eq!(dump_all(&node, CONVERSATIONS), before);
    stop(node).await;

    let node = start(dir.path()).await;
    assert_eq!(node.shared.metrics.index_rebuilds.get(), 0);
    assert_eq!(dump_all(&node, CONVERSATIONS), before);
    for group in node.hosted() {
        group.store.ensure_verified().unwrap();
    }
    node.shutdown().await;
}

/// The engine may lose records without a word; "not found" must never be its word alone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_index_that_lost_a_record_stops_the_node_and_asks_for_a_rebuild() {
    let dir = tempfile::tempdir().unwrap();
    let node = start(dir.path()).await;
    fill(&node, 0, 4).await;
    let before = dump_all(&node, 4);
    stop(node).await;
    let index = SledIndex::open(&dir.path().join("index"), 1 << 20).unwrap();
    let lost = head_key(1, &id(1));
    let mut batch = Batch::default();
    batch.remove(lost);
    index.write(batch).unwrap();
    drop(index);

    let failure = Failure::default();
    let node = start_with(dir.path(), failure.clone()).await;
    let refused = group_of(&node, 1).store.read(&id(1), |c, _| c.version());
    assert!(matches!(refused, Err(StoreError::Disagrees { group: 1, .. })), "{refused:?}");
    let reason = failure.raised().await;
    assert!(reason.rebuild_index, "{reason:?}");
    stop(node).await;

    request_rebuild(&dir.path().join("index"), &reason.text);
    let node = start(dir.path()).await;
    assert_eq!(node.shared.metrics.index_rebuilds.get(), 1);
    assert_eq!(dump_all(&node, 4), before);
    node.shutdown().await;
}
