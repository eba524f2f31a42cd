//! A node alone, on real files unless told otherwise: it leads all of its groups.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::{
    append, compact, dump, id, journal_options, mark, narrow, numbered, open_disk, put, recovery_settings,
    trim,
};
use crate::conversation::{Action, Command, Reply};
use crate::journal::{Disk, Options};
use crate::metrics::Metrics;
use crate::raft::group::Group;
use crate::raft::network::NoPeers;
use crate::raft::node::{Node, NodeSettings};
use crate::raft::reclaim::ReclaimSettings;
use crate::store::Failure;

pub(crate) const GROUPS: u16 = 4;
pub(crate) const REPLICA: u64 = 1;

pub(crate) async fn start(dir: &Path) -> Node {
    start_with(dir, Failure::default()).await
}

pub(crate) async fn start_with(dir: &Path, failure: Failure) -> Node {
    start_as(dir, failure, REPLICA).await
}

/// Starts a node whose group 1 is held by the given replica, the others by [`REPLICA`].
pub(crate) async fn start_as(dir: &Path, failure: Failure, replica_of_1: u64) -> Node {
    start_on(open_disk(dir), dir, journal_options(), failure, replica_of_1).await
}

/// As [`start_as`], with the journal on another disk.
pub(crate) async fn start_on(
    disk: Arc<dyn Disk>,
    dir: &Path,
    journal: Options,
    failure: Failure,
    replica_of_1: u64,
) -> Node {
    let interval = Duration::from_secs(3_600);
    let settings = NodeSettings {
        node_id: 7,
        recovery: recovery_settings(dir, GROUPS),
        journal,
        checkpoint_bytes: u64::MAX,
        checkpoint_interval: interval,
        snapshot_bytes_per_second: 64 << 20,
        reclaim: ReclaimSettings { bytes_per_second: 1 << 30, dead_percent: 50, interval },
    };
    let node = Node::start(settings, disk, NoPeers, Metrics::new(), failure).await.unwrap();
    // Reads may come at once: what an earlier life acknowledged must be applied by now.
    for group in node.hosted() {
        assert!(group.is_leader() && group.unapplied() == 0, "group {}", group.number());
        let index = group.read_index().await.unwrap();
        group.wait_applied(index).await.unwrap();
    }
    for group in 0..GROUPS {
        let replica_id = if group == 1 { replica_of_1 } else { REPLICA };
        let replica = node.host(group, replica_id).await.unwrap();
        replica.found(&[(replica_id, 7)].into()).await.unwrap();
        replica.led().await.unwrap();
    }
    node
}

/// Ends a node as a signal does; its files may be opened on return.
pub(crate) async fn stop(node: Node) {
    node.shutdown().await;
    gone(node).await;
}

/// Ends a node like a crash as far as the index is concerned; its files may be opened on return.
pub(crate) async fn crash(node: Node) {
    node.stop_without_checkpoint().await;
    gone(node).await;
}

/// Waits until the last task of a stopped node let go of the index.
async fn gone(node: Node) {
    let index = Arc::downgrade(&node.shared.index);
    drop(node);
    while index.strong_count() > 0 {
        tokio::task::yield_now().await;
    }
}

pub(crate) fn group_of(node: &Node, n: usize) -> Arc<Group> {
    node.group(n as u16 % GROUPS).unwrap()
}

/// Writes to conversation `n`, which lives in group `n % GROUPS`.
pub(crate) async fn write(node: &Node, n: usize, action: Action) -> Reply {
    let command = Command { id: id(n), now_ms: 1_000, action };
    group_of(node, n).write(command.encode()).await.unwrap()
}

pub(crate) fn dump_all(node: &Node, conversations: usize) -> Vec<String> {
    (0..conversations).map(|n| dump(&group_of(node, n).store, n)).collect()
}

/// Conversations with sealed runs, keys, a summary and a tombstone, some of them trimmed.
pub(crate) async fn fill(node: &Node, from: usize, to: usize) {
    for n in from..to {
        write(node, n, put()).await;
        let texts = numbered(&format!("message {n}"), 150);
        write(node, n, append(&texts, Some(1))).await;
        write(node, n, compact("summary")).await;
        write(node, n, append(&texts[..n % 5 + 1], Some(2))).await;
        // Some as far as they are, some further along from an earlier mark, some never.
        let group_mates = (0..=n).rev().step_by(usize::from(GROUPS)).filter(|n| n % 3 > 0);
        let marks = mark(group_mates.map(|n| (n, 150 + n as u64 % 2)));
        let marked = group_of(node, n).write(marks).await.unwrap();
        assert!(matches!(marked, Reply::Marked { .. }), "{marked:?}");
        if n % 2 == 1 {
            write(node, n, narrow()).await;
            let trimmed = group_of(node, n).write(trim(n)).await.unwrap();
            assert_eq!(trimmed, Reply::Trimmed { events: if n % 3 > 0 { 128 } else { 0 } });
        }
    }
    write(node, from, Action::Tombstone).await;
}
