//! Power cuts: from a record of everything a server did to its files, the disks that a cut at many moments would have left
//! are made, and a server is started on each, on what looks to it like a machine that was booted since.

use crate::support::client::Client;
use crate::support::faults::{can_change_boot, can_trace, under_new_boot};
use crate::support::ledger::Ledger;
use crate::support::process::Node;
use crate::support::recording::{Recording, Unsynced, strace_to};
use crate::support::{create_conversations, cycles, small_node, test_dir};
use std::path::Path;
use std::time::SystemTime;

/// Cuts in CI, and how many more each cycle asked for adds.
const CUTS_IN_CI: u64 = 16;

const APPENDS: usize = 150;
const CONVERSATIONS: usize = 8;

#[tokio::test(flavor = "multi_thread")]
async fn whatever_moment_the_power_goes() {
    if !can_trace() || !can_change_boot() {
        return;
    }
    let dir = test_dir();
    let node = small_node(&dir);
    let ledger = Ledger::default();
    let mut recording = Recording::of(node.data_dir());
    let created = recorded_life(&node, &ledger, &dir.path().join("first"), &mut recording).await;
    recorded_life(&node, &ledger, &dir.path().join("second"), &mut recording).await;

    let cuts = cycles(CUTS_IN_CI) as usize;
    for cut in 0..cuts {
        // Even over the whole record, from the very first start on, and each between two of the last ones tried.
        let moment = (recording.moments() - 1) * (2 * cut + 1) / (2 * cuts);
        for unsynced in [Unsynced::Lost, Unsynced::Torn { seed: cut as u64 }] {
            eprintln!("cut {cut} of {cuts}, before operation {moment}, unsynced {unsynced:?}");
            survives(&recording, moment, unsynced, &ledger, created).await;
        }
    }
}

/// A start, load until enough was acknowledged, and a kill; all of it recorded. Returns when the conversations were there.
async fn recorded_life(node: &Node, ledger: &Ledger, log: &Path, recording: &mut Recording) -> SystemTime {
    let mut process = node.spawn_under(&strace_to(log)).unwrap();
    process.wait_ready(crate::support::process::START_MAX).unwrap();
    let client = Client::of(&process);
    let conversations = create_conversations(&client, "power", CONVERSATIONS).await;
    let created = SystemTime::now();
    let writers = ledger.write(&client, &conversations, 4);
    ledger.acknowledged_more(&writers, APPENDS).await;
    process.kill();
    writers.ended().await;
    recording.add(log);
    created
}

async fn survives(
    recording: &Recording,
    moment: usize,
    unsynced: Unsynced,
    ledger: &Ledger,
    created: SystemTime,
) {
    let dir = test_dir();
    let node = small_node(&dir);
    recording.restore(moment, unsynced, node.data_dir());
    let mut process = node.spawn_under(&under_new_boot(dir.path())).unwrap();
    process.wait_ready(crate::support::process::START_MAX).unwrap();
    let client = Client::of(&process);
    let lost_from = recording.time_of(moment);
    if lost_from > created {
        ledger.check_logs_as_of(&client, lost_from).await;
        ledger.check_keys_as_of(&client, 5, lost_from).await;
    }
    // Whatever is left is a server that can be used.
    let ids = create_conversations(&client, "power", CONVERSATIONS).await;
    for id in ids {
        let len = client.log(&id).await.len() as u64;
        assert_eq!(client.append(&id, "after the cut").await.expect(201)["seq"], len + 1);
    }
}
