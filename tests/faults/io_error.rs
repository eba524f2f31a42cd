//! A disk that breaks under load: a failed write or fsync ends the process, what waits for it is told that its outcome is
//! unknown, and nothing acknowledged is lost.

use crate::support::client::Client;
use crate::support::faults::{Injected, calls, can_trace};
use crate::support::ledger::Ledger;
use crate::support::{create_conversations, small_node, test_dir};
use std::time::Duration;

/// Well above what flushing, answering and ending take.
const EXIT_MAX: Duration = Duration::from_secs(30);

/// The thread that writes and syncs the journal.
const JOURNAL_WRITER: &str = "journal-writer";

async fn broken_under_load(calls: &str, error: &str) {
    if !can_trace() {
        return;
    }
    let dir = test_dir();
    let node = small_node(&dir);
    let ledger = Ledger::default();
    let mut process = node.start().unwrap();
    let client = Client::of(&process);
    let conversations = create_conversations(&client, "broken", 16).await;
    let writers = ledger.write(&client, &conversations, 16);
    ledger.acknowledged_more(&writers, 50).await;
    let injected = Injected::into_thread(&process, JOURNAL_WRITER, calls, &format!("error={error}:when=20+"));
    let Some(status) = process.wait_exit(EXIT_MAX) else {
        panic!("a server whose disk broke still runs; its log ends:\n{}", process.log_end());
    };
    drop(injected);
    writers.ended().await;
    assert!(status.code().is_some_and(|code| code != 0), "it ended with {status}");
    let counts = ledger.counts();
    assert!(
        counts.unknown > 0,
        "no pending append was answered: {counts:?}; the log ends:\n{}",
        process.log_end()
    );

    let process = node.start().unwrap();
    let client = Client::of(&process);
    ledger.check_logs(&client).await;
    ledger.replay_keys(&client, 1).await;
    ledger.check_logs(&client).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_sync() {
    broken_under_load("fdatasync", "EIO").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_write() {
    broken_under_load(calls::WRITE, "EIO").await;
}
