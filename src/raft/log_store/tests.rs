//! The log over a journal: openraft's own storage suite, and what a checkpoint may see of it.

use std::sync::Arc;

use openraft::StorageError;
use openraft::testing::log::{StoreBuilder, Suite};
use tempfile::TempDir;

use super::*;
use crate::journal::ScanFrom;
use crate::journal::sim::SimDisk;
use crate::metrics::Metrics;
use crate::raft::state_machine::StateMachine;
use crate::raft::testing::{PATIENCE, REPLICA, journal_options, open_disk, recovery_settings};
use crate::raft::types::LeaderId;
use crate::store::{Failure, GroupStore, Shared, SledIndex};

struct SuiteBuilder;

impl StoreBuilder<TypeConfig, LogStore, StateMachine, TempDir> for SuiteBuilder {
    async fn build(&self) -> Result<(TempDir, LogStore, StateMachine), StorageError<TypeConfig>> {
        let dir = tempfile::tempdir().unwrap();
        let disk = open_disk(dir.path());
        let (journal, _) =
            Journal::open(journal_options(), disk, ScanFrom::Beginning, &mut |_| Ok(())).unwrap();
        let settings = recovery_settings(dir.path(), 1);
        let index = SledIndex::open(&settings.index_dir, settings.index_cache_bytes).unwrap();
        let shared = Arc::new(Shared::new(Arc::new(index), Metrics::new(), settings.caches));
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
        let from = tokio::time::timeout(PATIENCE, from).await;
        from.unwrap_or_else(|_| panic!("write {write} is not seen"));
        assert!(!written.is_finished());
        drop(held);
        written.await.unwrap();
        assert_eq!(look.with(GroupLog::first_retained), None, "write {write}");
    }
    assert_eq!(log.with(|log| (log.replica, log.vote)), (REPLICA, Some(vote)));
}
