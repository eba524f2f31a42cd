//! kill -9 of the server in a loop, under concurrent load and while it starts: nothing acknowledged is lost or doubled,
//! and every idempotency key keeps its answer.

use crate::support::client::Client;
use crate::support::ledger::Ledger;
use crate::support::{create_conversations, cycles, small_node, test_dir};
use std::time::Duration;

const WRITERS: u64 = 8;

#[tokio::test(flavor = "multi_thread")]
async fn killed_under_load_and_while_starting() {
    let dir = test_dir();
    let node = small_node(&dir);
    let ledger = Ledger::default();
    let conversations = create_conversations(&Client::of(&node.start().unwrap()), "crash", 40).await;
    let (cycles, mut lost) = (cycles(3), 0);
    for cycle in 0..cycles {
        // Somewhere in a start: the moment differs from cycle to cycle, and none of them is special.
        let mut starting = node.spawn().unwrap();
        tokio::time::sleep(Duration::from_millis(cycle * 67 % 500)).await;
        starting.kill();

        let mut process = node.start().unwrap();
        let client = Client::of(&process);
        ledger.check_logs(&client).await;
        ledger.replay_keys(&client, 7).await;
        let writers = ledger.write(&client, &conversations, WRITERS);
        ledger.acknowledged_more(&writers, 50 + (cycle as usize * 97) % 300).await;
        process.kill();
        writers.ended().await;
        lost += ledger.counts().lost;
    }
    let process = node.start().unwrap();
    let client = Client::of(&process);
    ledger.check_logs(&client).await;
    ledger.replay_keys(&client, 1).await;
    ledger.check_logs(&client).await;
    let present = ledger.counts().acknowledged;
    eprintln!(
        "{cycles} cycles of two kills: {present} appends present once and in order, {lost} of them unanswered at first"
    );
}

/// A node that has just been founded is killed while its first checkpoints fall among the replicas that it begins to host.
#[tokio::test(flavor = "multi_thread")]
async fn killed_just_after_it_was_founded() {
    for _ in 0..cycles(4) {
        let dir = test_dir();
        let node = small_node(&dir).with_env("FASTPACA_CHECKPOINT_INTERVAL_MS", "250");
        let mut process = node.start().unwrap();
        let ids = create_conversations(&Client::of(&process), "young", 64).await;
        process.kill();
        let process = node.start().unwrap();
        let client = Client::of(&process);
        for id in &ids {
            assert!(client.log(id).await.is_empty(), "{id}");
        }
    }
}
