//! The Raft layer on real files: openraft's own storage suite, recovery of a node, and snapshots between nodes.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use openraft::StorageError;
use openraft::storage::RaftLogStorage;
use openraft::testing::log::{StoreBuilder, Suite};
use tempfile::TempDir;

use super::codec::{Checkpoint, GroupCheckpoint};
use super::group::Group;
use super::log_store::{GroupLog, LogStore};
use super::network::NoPeers;
use super::node::{Node, NodeSettings};
use super::reclaim::ReclaimSettings;
use super::recovery::RecoverySettings;
use super::state_machine::StateMachine;
use super::types::{LeaderId, TypeConfig, Vote};
use crate::conversation::{
    Action, Command, ConversationId, EventRange, Idempotency, Location, Mark, Marks, NewMessage, PartKind,
    PartMeta, Policy, Put, Reply, RoleKind, ToolRef, Trim, Trims, plan_events,
};
use crate::journal::sim::SimDisk;
use crate::journal::{Disk, Journal, OpenError, Options, RealDisk, ScanFrom};
use crate::metrics::Metrics;
use crate::store::{Batch, CacheSizes, Failure, GroupStore, Index, Shared, SledIndex, StoreError};

pub(super) const GROUPS: u16 = 4;
const REPLICA: u64 = 1;
pub(super) const CACHES: CacheSizes = CacheSizes { records: 1 << 20, messages: 1 << 20 };

pub(super) fn journal_options() -> Options {
    let mut options = Options::new(7);
    options.segment_bytes = 1 << 20;
    options.reserve_bytes = 0;
    options
}

pub(super) fn reclaim_settings() -> ReclaimSettings {
    ReclaimSettings { bytes_per_second: 1 << 30, dead_percent: 50, interval: Duration::from_secs(3_600) }
}

struct SuiteBuilder;

impl StoreBuilder<TypeConfig, LogStore, StateMachine, TempDir> for SuiteBuilder {
    async fn build(&self) -> Result<(TempDir, LogStore, StateMachine), StorageError<TypeConfig>> {
        let dir = tempfile::tempdir().unwrap();
        let disk = Arc::new(RealDisk::open(&dir.path().join("journal")).unwrap());
        let (journal, _) =
            Journal::open(journal_options(), disk, ScanFrom::Beginning, &mut |_| Ok(())).unwrap();
        let index = SledIndex::open(&dir.path().join("index"), 1 << 20).unwrap();
        let shared = Arc::new(Shared::new(Arc::new(index), Metrics::new(), CACHES));
        shared.attach(journal.clone());
        let store = Arc::new(GroupStore::open(0, shared).unwrap());
        let log = LogStore::new(0, journal, GroupLog::default());
        let machine = StateMachine::new(store, log.clone(), Failure::default());
        Ok((dir, log, machine))
    }
}

#[test]
fn passes_the_storage_suite_of_openraft() {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
        .block_on(Suite::test_all(SuiteBuilder))
        .unwrap();
}

/// A checkpoint that is written while a frame is on its way to disk must not have recovery begin behind it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn recovery_begins_before_what_is_being_written() {
    let disk = SimDisk::new();
    let (journal, _) =
        Journal::open(journal_options(), Arc::new(disk.clone()), ScanFrom::Beginning, &mut |_| Ok(()))
            .unwrap();
    let log = LogStore::new(0, journal.clone(), GroupLog::default());
    let vote = Vote { leader_id: LeaderId { term: 2, node_id: REPLICA }, committed: true };
    for write in 0..3 {
        let (held, mut log) = (disk.hold_syncs(), log.clone());
        let look = log.clone();
        let written = tokio::spawn(async move {
            match write {
                0 => log.adopt(REPLICA).await.unwrap(),
                1 => log.save_vote(&vote).await.unwrap(),
                _ => log.truncate_after(None).await.unwrap(),
            }
        });
        let from = async {
            loop {
                match look.with(GroupLog::first_retained) {
                    Some(from) if from < journal.end() => return from,
                    _ => tokio::task::yield_now().await,
                }
            }
        };
        let from = tokio::time::timeout(Duration::from_secs(60), from).await;
        from.unwrap_or_else(|_| panic!("write {write} is not seen"));
        assert!(!written.is_finished());
        drop(held);
        written.await.unwrap();
        assert_eq!(look.with(GroupLog::first_retained), None, "write {write}");
    }
    assert_eq!(log.with(|log| (log.replica, log.vote)), (REPLICA, Some(vote)));
}

/// Opens a journal's directory once its former holder, which may just be letting go, has.
pub(super) fn open_disk(dir: &Path) -> Arc<RealDisk> {
    loop {
        match RealDisk::open(&dir.join("journal")) {
            Err(OpenError::Locked(_)) => std::thread::yield_now(),
            opened => return Arc::new(opened.unwrap()),
        }
    }
}

pub(super) async fn start(dir: &Path) -> Node {
    start_with(dir, Failure::default()).await
}

async fn start_with(dir: &Path, failure: Failure) -> Node {
    start_as(dir, failure, REPLICA).await
}

/// Starts a node whose group 1 is held by the given replica, the others by [`REPLICA`].
async fn start_as(dir: &Path, failure: Failure, replica_of_1: u64) -> Node {
    start_on(open_disk(dir), dir, journal_options(), failure, replica_of_1).await
}

/// As [`start_as`], with the journal on another disk.
pub(super) async fn start_on(
    disk: Arc<dyn Disk>,
    dir: &Path,
    journal: Options,
    failure: Failure,
    replica_of_1: u64,
) -> Node {
    let settings = NodeSettings {
        node_id: 7,
        recovery: RecoverySettings {
            index_dir: dir.join("index"),
            index_cache_bytes: 1 << 20,
            caches: CACHES,
            groups: GROUPS,
            boot_id: "this boot".into(),
        },
        journal,
        checkpoint_bytes: u64::MAX,
        checkpoint_interval: Duration::from_secs(3_600),
        snapshot_bytes_per_second: 64 << 20,
        reclaim: reclaim_settings(),
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

/// Drops a stopped node and waits until its last task let go of the index, whose files are opened again next.
pub(super) async fn gone(node: Node) {
    let index = Arc::downgrade(&node.shared.index);
    drop(node);
    while index.strong_count() > 0 {
        tokio::task::yield_now().await;
    }
}

pub(super) fn id(n: usize) -> ConversationId {
    ConversationId::parse(&format!("conversation-{n}")).unwrap()
}

fn message(text: &str) -> NewMessage {
    let part = PartMeta { kind: PartKind::TEXT, tokens: 3, marker_tokens: 0, tool: ToolRef::None };
    NewMessage {
        body: Bytes::from(format!(
            r#""role":"user","parts":[{{"type":"text","text":"{text}"}}],"metadata":{{}}"#
        )),
        token_count: 7,
        role: RoleKind::Other,
        parts: vec![part],
    }
}

pub(super) fn put() -> Action {
    Action::Put(Put::default())
}

/// A window so small that most of the log can be trimmed.
pub(super) fn narrow() -> Action {
    let policy = Bytes::from_static(br#"{"strategy":"last_n","config":{"limit":9}}"#);
    let policy = Some(Policy::parse(policy).unwrap());
    Action::Put(Put { policy, ..Put::default() })
}

pub(super) fn trim(n: usize) -> Bytes {
    Trims::new(3, vec![Trim { id: id(n), upto_seq: 1_000 }]).encode()
}

pub(super) fn append(texts: &[String], key: Option<u8>) -> Action {
    Action::Append {
        messages: texts.iter().map(|text| message(text)).collect(),
        idempotency: key.map(|key| Idempotency { key: [key; 16], body: [key; 16] }),
        if_version: None,
    }
}

pub(super) fn compact(text: &str) -> Action {
    Action::Compact {
        range: crate::conversation::CompactRange { from: Some(1), to: Some(2) },
        replacement: vec![message(text)],
        if_version: None,
    }
}

pub(super) fn group_of(node: &Node, n: usize) -> Arc<Group> {
    node.group(n as u16 % GROUPS).unwrap()
}

/// Writes to conversation `n`, which lives in group `n % GROUPS`.
pub(super) async fn write(node: &Node, n: usize, action: Action) -> Reply {
    let command = Command { id: id(n), now_ms: 1_000, action };
    group_of(node, n).write(command.encode()).await.unwrap()
}

/// Everything a client could see of a conversation, as text, and how far it is archived and trimmed.
pub(super) fn dump(store: &GroupStore, n: usize) -> String {
    let id = id(n);
    let reading = store.reading();
    let seen = store.read(&id, |c, history| {
        let range = EventRange {
            from_seq: 1,
            to_seq: u64::MAX,
            newest_first: false,
            limit: usize::MAX,
            limit_bytes: u64::MAX,
        };
        let events = plan_events(c, &id, history, &range).unwrap();
        let query = crate::conversation::WindowQuery { budget_tokens: None, at_version: None, explain: true };
        let window = crate::conversation::plan_window(c, &id, history, &query, u64::MAX).unwrap();
        let window: Vec<_> = window.messages.iter().map(|m| (m.seq, m.to_seq, m.token_count)).collect();
        (format!("{:?} {:?} {window:?}", c.describe(), c.standing()), events)
    });
    let Some((text, events)) = seen.unwrap() else { return "absent".into() };
    let body = |at: Location| at.is_placed().then(|| store.bodies(&reading, &[at]).unwrap());
    let events: Vec<_> =
        events.iter().map(|e| (e.seq, e.inserted_at_ms, e.location.crc, body(e.location))).collect();
    format!("{text} {events:?}")
}

pub(super) fn dump_all(node: &Node, conversations: usize) -> Vec<String> {
    (0..conversations).map(|n| dump(&group_of(node, n).store, n)).collect()
}

/// Conversations with sealed runs, keys, a summary and a tombstone, some of them trimmed.
pub(super) async fn fill(node: &Node, from: usize, to: usize) {
    for n in from..to {
        write(node, n, put()).await;
        let texts: Vec<String> = (0..150).map(|i| format!("message {n}.{i}")).collect();
        write(node, n, append(&texts, Some(1))).await;
        write(node, n, compact("summary")).await;
        write(node, n, append(&texts[..n % 5 + 1], Some(2))).await;
        // Some as far as they are, some further along from an earlier mark, some never.
        let group_mates = (0..=n).rev().step_by(usize::from(GROUPS)).filter(|n| n % 3 > 0);
        let mark = |n| Mark { id: id(n), archived_version: 150 + n as u64 % 2 };
        let marks = Marks::new(group_mates.map(mark).collect());
        let marked = group_of(node, n).write(marks.encode()).await.unwrap();
        assert!(matches!(marked, Reply::Marked { .. }), "{marked:?}");
        if n % 2 == 1 {
            write(node, n, narrow()).await;
            let trimmed = group_of(node, n).write(trim(n)).await.unwrap();
            assert_eq!(trimmed, Reply::Trimmed { events: if n % 3 > 0 { 128 } else { 0 } });
        }
    }
    write(node, from, Action::Tombstone).await;
}

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
    node.stop_without_checkpoint().await;
    gone(node).await;

    let node = start(dir.path()).await;
    assert_eq!(node.shared.metrics.index_rebuilds.get(), 0);
    assert_eq!(dump_all(&node, CONVERSATIONS), before);
    let again =
        write(&node, 7, append(&(0..150).map(|i| format!("message 7.{i}")).collect::<Vec<_>>(), Some(1)))
            .await;
    assert!(matches!(again, Reply::Appended { first_seq: 1, last_seq: 150, deduped: true, .. }), "{again:?}");
    node.shutdown().await;
    gone(node).await;

    std::fs::remove_dir_all(dir.path().join("index")).unwrap();
    let node = start(dir.path()).await;
    assert_eq!(node.shared.metrics.index_rebuilds.get(), 1);
    assert_eq!(dump_all(&node, CONVERSATIONS), before);
    node.shutdown().await;
    gone(node).await;

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
    node.shutdown().await;
    gone(node).await;
    let index = SledIndex::open(&dir.path().join("index"), 1 << 20).unwrap();
    let lost = crate::store::head_key(1, &id(1));
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
    node.shutdown().await;
    gone(node).await;

    super::request_rebuild(&dir.path().join("index"), &reason.text);
    let node = start(dir.path()).await;
    assert_eq!(node.shared.metrics.index_rebuilds.get(), 1);
    assert_eq!(dump_all(&node, 4), before);
    node.shutdown().await;
}

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
    target.stop_without_checkpoint().await;
    gone(target).await;
    std::fs::remove_dir_all(to.path().join("index")).unwrap();
    let disk = open_disk(to.path());
    let recovery = RecoverySettings {
        index_dir: to.path().join("index"),
        index_cache_bytes: 1 << 20,
        caches: CACHES,
        groups: GROUPS,
        boot_id: "this boot".into(),
    };
    let disk: Arc<dyn Disk> = disk;
    let recovered = super::recovery::recover(&recovery, &journal_options(), &disk, &Metrics::new()).unwrap();
    let seen: Vec<String> = (0..9).map(|n| dump(&recovered.stores[n % usize::from(GROUPS)], n)).collect();
    assert_eq!(seen, expected);
    recovered.journal.shutdown();
    source.shutdown().await;
}

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
    node.stop_without_checkpoint().await;
    drop(again);
    gone(node).await;

    for (rebuilds, lost) in [(0, false), (1, true)] {
        if lost {
            std::fs::remove_dir_all(dir.path().join("index")).unwrap();
        }
        let node = start_as(dir.path(), Failure::default(), 2).await;
        assert_eq!(node.shared.metrics.index_rebuilds.get(), rebuilds);
        assert_eq!(dump_all(&node, 4), expected);
        node.shutdown().await;
        gone(node).await;
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
    node.stop_without_checkpoint().await;
    gone(node).await;

    std::fs::remove_dir_all(dir.path().join("index")).unwrap();
    let node = start(dir.path()).await;
    assert_eq!(node.shared.metrics.index_rebuilds.get(), 1);
    // The node of a test begins group 1 again.
    let after = dump_all(&node, 4);
    assert_eq!([0, 2, 3].map(|n| &after[n]), [0, 2, 3].map(|n| &before[n]));
    assert_ne!(after[1], before[1]);
    node.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lying_snapshot_is_refused() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (source, target) = (start(from.path()).await, start(to.path()).await);
    fill(&source, 0, 1).await;
    source.checkpoint().await;
    let mut blocks = Vec::new();
    let collect = |block: crate::store::Block| {
        blocks.push(block.encode());
        Ok(())
    };
    let store = group_of(&source, 0).store.clone();
    let mut collect = collect;
    store.export(None, None, &mut collect).unwrap();
    blocks.remove(0);
    let place = crate::conversation::FrameLocation { segment: 0, offset: 0 };
    let mut damaged = blocks.into_iter().map(|block| Ok((place, block)));
    let (at, membership) = store.persisted_state();
    let refused = group_of(&target, 0).store.install(None, at.unwrap(), membership, &mut damaged);
    assert!(refused.is_err());
    source.shutdown().await;
    target.shutdown().await;
}
