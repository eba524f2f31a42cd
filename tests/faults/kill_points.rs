//! The server killed at exact points: a thread's n-th `fdatasync`, `pwrite`, `rename` or `unlink`, while it starts and
//! under load. Whatever it was doing then, the next start finds everything that was acknowledged.

use crate::support::client::Client;
use crate::support::faults::{Injected, calls, can_trace, strace};
use crate::support::ledger::Ledger;
use crate::support::process::{Node, START_MAX, StartError};
use crate::support::{create_conversations, cycles, small_node, test_dir};
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::Duration;

const SIGKILL: i32 = 9;
const KILLED_MAX: Duration = Duration::from_secs(60);

/// The counts a kill waits for. The first ones of a start are each a state of their own; later ones repeat.
const POINTS: [u64; 16] = [1, 2, 3, 5, 8, 20, 60, 150, 4, 6, 7, 10, 15, 30, 100, 300];
const POINTS_IN_CI: u64 = 8;

/// A kill that has not come by so many appends will not come.
const APPENDS_MAX: usize = 250;

/// How often a kill came before its life was over.
#[derive(Debug, Default)]
struct Kills {
    starting: usize,
    serving: usize,
}

async fn killed_at(calls: &str) -> Option<Kills> {
    if !can_trace() {
        return None;
    }
    let dir = test_dir();
    let node = small_node(&dir);
    let ledger = Ledger::default();
    let conversations = create_conversations(&Client::of(&node.start().unwrap()), "point", 16).await;
    let mut kills = Kills::default();
    for point in POINTS.iter().take(cycles(POINTS_IN_CI) as usize) {
        let fault = format!("signal=SIGKILL:when={point}");
        kills.starting += usize::from(killed_starting(&node, calls, &fault));
        kills.serving += usize::from(killed_serving(&node, &ledger, &conversations, calls, &fault).await);
        let process = node.start().unwrap();
        ledger.check_logs(&Client::of(&process)).await;
        // Dropped without goodbye: the next life begins with a recovery too.
    }
    let process = node.start().unwrap();
    let client = Client::of(&process);
    ledger.replay_keys(&client, 1).await;
    ledger.check_logs(&client).await;
    eprintln!("{calls}: {kills:?}, {:?}", ledger.counts());
    Some(kills)
}

fn killed_starting(node: &Node, calls: &str, fault: &str) -> bool {
    let mut process = node.spawn_under(&strace(calls, fault)).unwrap();
    match process.wait_ready(START_MAX) {
        Ok(()) => false,
        Err(StartError::Exited(status, _)) if was_killed(status) => true,
        Err(error) => panic!("{error}"),
    }
}

async fn killed_serving(node: &Node, ledger: &Ledger, ids: &[String], calls: &str, fault: &str) -> bool {
    let mut process = node.start().unwrap();
    let writers = ledger.write(&Client::of(&process), ids, 4);
    let _injected = Injected::into(&process, calls, fault);
    ledger.acknowledged_more(&writers, APPENDS_MAX).await;
    let killed = writers.all_ended();
    if killed {
        let status = process.wait_exit(KILLED_MAX).expect("a killed process ends");
        assert!(was_killed(status), "it ended by itself; its log ends:\n{}", process.log_end());
    }
    process.kill();
    writers.ended().await;
    killed
}

pub(crate) fn was_killed(status: ExitStatus) -> bool {
    status.signal() == Some(SIGKILL)
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_a_sync() {
    let Some(kills) = killed_at(calls::SYNC).await else { return };
    assert!(kills.starting > 4 && kills.serving > 4, "{kills:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_a_write() {
    let Some(kills) = killed_at(calls::WRITE).await else { return };
    assert!(kills.starting > 4 && kills.serving > 4, "{kills:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_a_rename() {
    let Some(kills) = killed_at(calls::RENAME).await else { return };
    assert!(kills.starting + kills.serving > 0, "{kills:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_an_unlink() {
    let Some(kills) = killed_at(calls::UNLINK).await else { return };
    assert!(kills.starting + kills.serving > 0, "{kills:?}");
}
