//! What becomes of a replica that is removed.

use crate::raft::codec::{Checkpoint, GroupCheckpoint};
use crate::raft::group_log::GroupLog;
use crate::raft::testing::{crash, dump_all, fill, group_of, lose_index, put, start, start_as, stop, write};
use crate::store::Failure;

/// A replica that was removed leaves nothing that its successor, under another id, could take for its own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removed_replica_is_forgotten_for_good() {
    let dir = tempfile::tempdir().unwrap();
    let node = start(dir.path()).await;
    fill(&node, 0, 4).await;
    node.checkpoint().await;
    let before = dump_all(&node, 4);
    node.unhost(1).await.unwrap();
    assert!(node.group(1).is_none());
    let again = node.host(1, 2).await.unwrap();
    assert_eq!((again.replica(), again.applied_index()), (2, 0));
    again.found(&[(2, 7)].into()).await.unwrap();
    again.led().await.unwrap();
    let (vote, replica) = again.log.with(|log| (log.vote, log.replica));
    assert_eq!((vote.unwrap().leader_id.node_id, replica), (2, 2));
    write(&node, 1, put()).await;
    let mut expected = before.clone();
    expected[1] = dump_all(&node, 4)[1].clone();
    assert_ne!(expected[1], before[1]);
    assert_eq!(dump_all(&node, 4), expected);
    drop(again);
    crash(node).await;

    for (rebuilds, lost) in [(0, false), (1, true)] {
        if lost {
            lose_index(dir.path());
        }
        let node = start_as(dir.path(), Failure::default(), 2).await;
        assert_eq!(node.shared.metrics.index_rebuilds.get(), rebuilds);
        assert_eq!(dump_all(&node, 4), expected);
        stop(node).await;
    }
}

/// A checkpoint that is written just when a replica goes still speaks of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_checkpoint_says_of_a_replica_that_is_gone_does_not_count() {
    let dir = tempfile::tempdir().unwrap();
    let node = start(dir.path()).await;
    fill(&node, 0, 4).await;
    let before = dump_all(&node, 4);
    let group = group_of(&node, 1);
    let said = group.log.with(|log| GroupCheckpoint {
        group: 1,
        replica: log.replica,
        vote: log.vote,
        committed: log.committed,
        purged: log.purged,
        last: log.last(),
        applied: None,
    });
    assert!(said.committed.is_some());
    let journal = group.log.journal().clone();
    let from = group.log.with(GroupLog::first_retained).unwrap();
    drop(group);
    node.unhost(1).await.unwrap();
    let stale = Checkpoint { boot_id: "this boot".into(), groups: vec![said] };
    journal.checkpoint(from, &stale.encode()).await.unwrap();
    drop(journal);
    crash(node).await;

    lose_index(dir.path());
    let node = start(dir.path()).await;
    assert_eq!(node.shared.metrics.index_rebuilds.get(), 1);
    // The node of a test begins group 1 again.
    let after = dump_all(&node, 4);
    assert_eq!([0, 2, 3].map(|n| &after[n]), [0, 2, 3].map(|n| &before[n]));
    assert_ne!(after[1], before[1]);
    node.shutdown().await;
}
