//! Segments are reclaimed under load while the server is killed at exact points and while the power goes; afterwards, with
//! the index and without it, everything that was acknowledged is there. And the disk really is given back.

use crate::kill_points::was_killed;
use crate::support::client::Client;
use crate::support::faults::{Injected, calls, can_change_boot, can_trace, under_new_boot};
use crate::support::ledger::Ledger;
use crate::support::process::{Node, Process, START_MAX};
use crate::support::recording::{Recording, Unsynced, strace_to};
use crate::support::{create_conversations, cycles, small_node, test_dir};
use reqwest::Method;
use serde_json::json;
use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime};
use tempfile::TempDir;
use tokio::task::JoinHandle;

const CONVERSATIONS: usize = 8;
/// What a life reclaims at least, if nothing ends it before.
const RECLAIMED_MIN: f64 = 3.0 * 1_048_576.0;
const RECLAIMS_MAX: Duration = Duration::from_secs(300);

/// A server that looks all the time whether there is something to reclaim.
fn reclaiming_node(dir: &TempDir) -> Node {
    small_node(dir).with_env("FASTPACA_RECLAIM_INTERVAL_MS", "100")
}

/// Replaces the metadata of one conversation again and again, 40 KB each time, until the server is gone.
fn churn(client: &Client) -> JoinHandle<()> {
    let client = client.clone();
    tokio::spawn(async move {
        client.create("churned").await;
        for number in 0u64.. {
            let patch = json!({"number": number, "filling": "x".repeat(40_000)});
            let answer =
                client.request(Method::PATCH, "/v1/conversations/churned/metadata", Some(&patch)).await;
            if !answer.is_ok_and(|answer| answer.status == 200) {
                return;
            }
        }
    })
}

async fn reclaimed(client: &Client) -> f64 {
    client.metric("fastpaca_reclaimed_bytes_total").await
}

/// Waits until so many bytes were reclaimed, or the server ends.
async fn reclaims(client: &Client, process: &mut Process, bytes: f64) {
    let deadline = tokio::time::Instant::now() + RECLAIMS_MAX;
    while process.is_running() && reclaimed(client).await < bytes {
        let late = tokio::time::Instant::now() > deadline;
        assert!(!late, "nothing is reclaimed; the log ends:\n{}", process.log_end());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// How many there are, and the number of the oldest.
fn segments(node: &Node) -> (usize, u32) {
    let names = fs::read_dir(node.data_dir().join("journal")).unwrap();
    let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let numbers: Vec<u32> =
        names.filter_map(|name| Some(name.strip_suffix(".segment")?.parse().unwrap())).collect();
    (numbers.len(), numbers.into_iter().min().unwrap())
}

fn lose_index(data_dir: &Path) {
    fs::remove_dir_all(data_dir.join("index")).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_disk_is_given_back_and_nothing_else() {
    let dir = test_dir();
    let node = small_node(&dir).with_env("FASTPACA_RECLAIM_DEAD_PERCENT", "100");
    let ledger = Ledger::default();
    let mut process = node.start().unwrap();
    let client = Client::of(&process);
    let conversations = create_conversations(&client, "kept", CONVERSATIONS).await;
    let (writers, churning) = (ledger.write(&client, &conversations, 2), churn(&client));
    while segments(&node).0 < 8 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    writers.stop().await;
    churning.abort();
    assert_eq!(reclaimed(&client).await, 0.0, "it is turned off");
    process.terminate();
    assert!(process.wait_exit(START_MAX).unwrap().success());

    let (before, oldest_before) = segments(&node);
    let mut process = reclaiming_node(&dir).start().unwrap();
    let client = Client::of(&process);
    // Nothing is looked for while nothing is appended.
    client.create("another").await;
    reclaims(&client, &mut process, RECLAIMED_MIN).await;
    let everything = everything(&client, &conversations).await;
    let (after, oldest_after) = segments(&node);
    // What it writes for that may begin a segment of its own.
    assert!(oldest_after >= oldest_before + 3, "from {oldest_before} to {oldest_after}");
    assert!(after < before, "{after} segments after {before}");
    assert!(client.metric("fastpaca_journal_live_bytes").await > 0.0);
    process.kill();

    for lost in [false, true] {
        if lost {
            lose_index(node.data_dir());
        }
        let mut process = reclaiming_node(&dir).start().unwrap();
        let client = Client::of(&process);
        assert_eq!(client.metric("fastpaca_index_rebuilds_total").await > 0.0, lost);
        assert_eq!(self::everything(&client, &conversations).await, everything);
        ledger.check_logs(&client).await;
        ledger.check_keys_as_of(&client, 3, SystemTime::now()).await;
        process.kill();
    }
}

async fn everything(client: &Client, conversations: &[String]) -> Vec<serde_json::Value> {
    let mut everything = vec![client.everything("churned").await];
    for id in conversations {
        everything.push(client.everything(id).await);
    }
    everything
}

/// Kills at these points of these calls, once segments are being reclaimed.
async fn killed_at(calls: &str, points: &[u64]) {
    if !can_trace() {
        return;
    }
    let dir = test_dir();
    let (node, ledger) = (reclaiming_node(&dir), Ledger::default());
    let conversations =
        create_conversations(&Client::of(&node.start().unwrap()), "point", CONVERSATIONS).await;
    let mut kills = 0;
    for (life, point) in points.iter().cycle().take(cycles(points.len() as u64) as usize).enumerate() {
        let mut process = node.start().unwrap();
        let client = Client::of(&process);
        let (writers, churning) = (ledger.write(&client, &conversations, 2), churn(&client));
        reclaims(&client, &mut process, 1.0).await;
        let injected = Injected::into(&process, calls, &format!("signal=SIGKILL:when={point}"));
        let ended = tokio::time::timeout(RECLAIMS_MAX, async {
            while !writers.all_ended() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
        let ended = ended.await.is_ok();
        drop(injected);
        let status = process.kill();
        assert!(!ended || was_killed(status), "it ended by itself; its log ends:\n{}", process.log_end());
        kills += usize::from(ended);
        writers.ended().await;
        churning.await.unwrap();
        if life % 2 == 1 {
            lose_index(node.data_dir());
        }
        let process = node.start().unwrap();
        ledger.check_logs(&Client::of(&process)).await;
    }
    let process = node.start().unwrap();
    ledger.replay_keys(&Client::of(&process), 3).await;
    eprintln!("{calls}: {kills} kills, {:?}, {:?}", ledger.counts(), segments(&node));
    assert_eq!(kills as u64, cycles(points.len() as u64), "a kill did not come");
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_a_write_while_reclaiming() {
    killed_at(calls::WRITE, &[3, 40]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_a_sync_while_reclaiming() {
    killed_at(calls::SYNC, &[2, 25]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_the_removal_of_a_segment() {
    killed_at(calls::UNLINK, &[1, 2]).await;
}

/// Cuts in CI, and how many more each cycle asked for adds.
const CUTS_IN_CI: u64 = 6;

#[tokio::test(flavor = "multi_thread")]
async fn whatever_moment_of_reclaiming_the_power_goes() {
    if !can_trace() || !can_change_boot() {
        return;
    }
    let dir = test_dir();
    let (node, ledger) = (reclaiming_node(&dir), Ledger::default());
    let mut recording = Recording::of(node.data_dir());
    let log = dir.path().join("recorded");
    let mut process = node.spawn_under(&strace_to(&log)).unwrap();
    process.wait_ready(START_MAX).unwrap();
    let client = Client::of(&process);
    let conversations = create_conversations(&client, "power", CONVERSATIONS).await;
    let created = SystemTime::now();
    let (writers, churning) = (ledger.write(&client, &conversations, 2), churn(&client));
    reclaims(&client, &mut process, RECLAIMED_MIN).await;
    process.kill();
    writers.ended().await;
    churning.await.unwrap();
    recording.add(&log);

    let cuts = cycles(CUTS_IN_CI) as usize;
    for cut in 0..cuts {
        // Reclaiming goes on in the later half.
        let half = recording.moments() / 2;
        let moment = half + (half - 1) * (2 * cut + 1) / (2 * cuts);
        let unsynced = if cut % 2 == 0 { Unsynced::Lost } else { Unsynced::Torn { seed: cut as u64 } };
        let dir = test_dir();
        let node = reclaiming_node(&dir);
        recording.restore(moment, unsynced, node.data_dir());
        if cut % 3 == 0 {
            lose_index(node.data_dir());
        }
        eprintln!(
            "cut {cut} of {cuts}, before operation {moment}, unsynced {unsynced:?}, {:?}",
            segments(&node)
        );
        let mut process = node.spawn_under(&under_new_boot(dir.path())).unwrap();
        process.wait_ready(START_MAX).unwrap();
        let lost_from = recording.time_of(moment);
        if lost_from > created {
            ledger.check_logs_as_of(&Client::of(&process), lost_from).await;
            ledger.check_keys_as_of(&Client::of(&process), 5, lost_from).await;
        }
    }
}
