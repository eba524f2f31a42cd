//! Snapshots between nodes: whole, broken off, and installed over what a crash left.

use std::sync::Arc;

use super::*;
use crate::conversation::{ConversationId, FrameLocation};
use crate::journal::Disk;
use crate::metrics::Metrics;
use crate::raft::recovery;
use crate::raft::rpc::{Wanted, method};
use crate::raft::testing::{
    Call, Cluster, Fate, GROUPS, crash, dump, dump_all, fill, group_of, id, journal_options, lose_index,
    open_disk, recovery_settings, start,
};
use crate::store::Failure;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_rebuilds_a_group_on_an_empty_node() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let source = start(from.path()).await;
    fill(&source, 0, 8).await;
    source.checkpoint().await;
    let target = start(to.path()).await;
    for group in 0..usize::from(GROUPS) {
        let snapshot = group_of(&source, group).raft.get_snapshot().await.unwrap().unwrap();
        let group = group_of(&target, group);
        let machine = StateMachine::new(group.store.clone(), group.log.clone(), Failure::default());
        machine.install(&snapshot.meta, snapshot.snapshot).await.unwrap();
        group.store.ensure_verified().unwrap();
    }
    let expected = dump_all(&source, 9);
    assert_eq!(dump_all(&target, 9), expected);

    // The installed state is in the journal: it survives without checkpoint and without index.
    crash(target).await;
    lose_index(to.path());
    let disk: Arc<dyn Disk> = open_disk(to.path());
    let recovery = recovery_settings(to.path(), GROUPS);
    let recovered = recovery::recover(&recovery, &journal_options(), &disk, &Metrics::new()).unwrap();
    let seen: Vec<String> = (0..9).map(|n| dump(&recovered.groups[n % usize::from(GROUPS)].0, n)).collect();
    assert_eq!(seen, expected);
    recovered.journal.shutdown();
    source.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lying_snapshot_is_refused() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (source, target) = (start(from.path()).await, start(to.path()).await);
    fill(&source, 0, 1).await;
    source.checkpoint().await;
    let mut blocks = Vec::new();
    let mut collect = |block: Block| {
        blocks.push(block.encode());
        Ok(())
    };
    let store = group_of(&source, 0).store.clone();
    store.export(None, None, &mut collect).unwrap();
    blocks.remove(0);
    let place = FrameLocation { segment: 0, offset: 0 };
    let mut damaged = blocks.into_iter().map(|block| Ok((place, block)));
    let (at, membership) = store.persisted_state();
    let refused = group_of(&target, 0).store.install(None, at.unwrap(), membership, &mut damaged);
    assert!(refused.is_err());
    source.shutdown().await;
    target.shutdown().await;
}

/// How transfers began: the base the receiver named, and whether it had something of an interrupted one.
fn announced(cluster: &Cluster) -> Vec<(Option<u64>, bool)> {
    let wanted = cluster.net.seen(method::SNAPSHOT_BEGIN, |_, answer| Wanted::decode(answer).unwrap());
    wanted
        .into_iter()
        .filter_map(|wanted| match wanted {
            Wanted::Changes { base, resume, .. } => Some((base, resume.is_some())),
            Wanted::Nothing(_) => None,
        })
        .collect()
}

fn was_sent(cluster: &Cluster, conversation: &ConversationId) -> bool {
    let needle = conversation.as_str().as_bytes();
    // Followed by the length of what comes behind it, so that no longer id counts.
    let is_it = |window: &[u8]| window.starts_with(needle) && !window[needle.len()].is_ascii_digit();
    let is_in = |call: &Call, _: &Bytes| call.body.windows(needle.len() + 4).any(is_it);
    cluster.net.seen(method::SNAPSHOT_BLOCKS, is_in).contains(&true)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lagging_replica_gets_what_it_lacks_by_snapshot() {
    let mut cluster = Cluster::start().await;
    for n in 0..6 {
        cluster.leader().fill(n).await;
    }
    cluster.agree(6).await;
    cluster.cut(2);
    for n in 4..8 {
        cluster.leader().fill(n).await;
    }
    cluster.leader().purge().await;
    cluster.heal(2);
    let expected = cluster.agree(8).await;
    let announced = announced(&cluster);
    assert!(matches!(announced[..], [(Some(_), false)]), "{announced:?}");
    let sent: Vec<bool> = (0..8).map(|n| was_sent(&cluster, &id(n))).collect();
    assert_eq!(sent, [false, false, false, false, true, true, true, true]);

    // What was installed lies in the journal: first with, then without the index.
    cluster.restart(2).await;
    assert_eq!(cluster.agree(8).await, expected);
    cluster.kill(2).await;
    lose_index(cluster.dirs[2].path());
    cluster.launch(2).await;
    cluster.leader().fill(1).await;
    cluster.agree(8).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broken_transfer_goes_on_where_it_stopped() {
    let cluster = Cluster::start().await;
    cluster.cut(2);
    for n in 0..12 {
        cluster.leader().fill(n).await;
    }
    cluster.leader().purge().await;
    let mut blocks = 0;
    cluster.net.judge(move |_, call| {
        let is_block = call.method == method::SNAPSHOT_BLOCKS;
        blocks += u32::from(is_block);
        if is_block && [3, 11].contains(&blocks) { Fate::Lost } else { Fate::Served }
    });
    cluster.heal(2);
    // Conversations that came before the break change while the transfer goes on.
    cluster.leader().fill(0).await;
    cluster.agree(12).await;
    let announced = announced(&cluster);
    assert!(announced.iter().filter(|(_, resumed)| *resumed).count() >= 1, "{announced:?}");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_receiver_that_dies_between_blocks_begins_again() {
    let mut cluster = Cluster::start().await;
    for n in 0..4 {
        cluster.leader().fill(n).await;
    }
    cluster.agree(4).await;
    cluster.cut(2);
    for n in 2..10 {
        cluster.leader().fill(n).await;
    }
    cluster.leader().purge().await;
    let (tx, mut died) = tokio::sync::mpsc::unbounded_channel();
    let mut blocks = 0;
    cluster.net.judge(move |net, call| {
        let is_block = call.method == method::SNAPSHOT_BLOCKS;
        blocks += u32::from(is_block);
        if is_block && blocks == 5 {
            net.cut(call.to);
            tx.send(call.to).unwrap();
        }
        Fate::Served
    });
    cluster.heal(2);
    assert_eq!(died.recv().await, Some(3));
    cluster.restart(2).await;
    cluster.heal(2);
    cluster.agree(10).await;
    cluster.restart(2).await;
    cluster.agree(10).await;
    cluster.stop().await;
}

/// What a crash in the middle of an install leaves in the index is installed over once more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_interrupted_install_is_finished_by_recovery() {
    let mut cluster = Cluster::start().await;
    for n in 0..6 {
        cluster.leader().fill(n).await;
    }
    cluster.agree(6).await;
    cluster.cut(2);
    for n in 3..9 {
        cluster.leader().fill(n).await;
    }
    let (leader, node) = (cluster.leader(), cluster.node(2));
    leader.checkpoint().await;
    let (source, store, log) = (&leader.group.store, &node.group.store, &node.group.log);
    let here = store.applied().0.unwrap().index;
    let (at, membership) = source.persisted_state();
    let mut import = Import::begin(log.clone(), store, Some(here), at.unwrap().index).await.unwrap();
    let mut export = Export::start(source.clone(), Some(here), None);
    while let Some(block) = export.next().await.unwrap() {
        import.write(vec![block]).await.unwrap();
    }
    let commit = encode_commit(at.unwrap(), &stored_membership(&membership).unwrap());
    log.write_synced(FrameKind::ImportCommit, &commit).await.unwrap();
    let (base, frames) = import.committed();
    let (last, journal) = (frames[frames.len() - 2].0, node.journal.clone());
    let installed = Installed { base, applied: at.unwrap(), membership, frames };
    let interrupted = installed.load(store, &|at, len| match at == last {
        true => Err(io::Error::other("killed")),
        false => journal.read(at.segment, at.offset, len),
    });
    assert!(interrupted.is_err());
    drop(journal);

    let expected = leader.dumps(9);
    cluster.restart(2).await;
    assert_eq!(cluster.node(2).group.store.applied().0, at);
    cluster.node(2).group.store.ensure_verified().unwrap();
    assert_eq!(cluster.node(2).dumps(9), expected);
    cluster.heal(2);
    cluster.leader().fill(0).await;
    cluster.agree(9).await;

    // The index has the snapshot now, and the journal no word of what was purged for it.
    cluster.node(2).checkpoint().await;
    cluster.restart(2).await;
    assert_eq!(cluster.node(2).group.log.with(|log| log.purged.map(|id| id.index)), at.map(|at| at.index));
    cluster.leader().fill(1).await;
    cluster.agree(9).await;
    cluster.stop().await;
}
