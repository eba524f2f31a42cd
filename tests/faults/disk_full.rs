//! A disk without space: appends are refused as not applied, reads go on, the node is not ready, and everything recovers
//! when there is space again.

use crate::support::client::Client;
use crate::support::faults::SmallDisk;
use crate::support::{small_node, test_dir};
use serde_json::json;
use std::fs;
use std::time::{Duration, Instant};

const DISK_BYTES: u64 = 96 << 20;
const RESERVE_BYTES: u64 = 8 << 20;

/// Longest wait for the server to notice a change of its disk.
const NOTICE_MAX: Duration = Duration::from_secs(30);

/// What the server says of itself, by the time it says so.
async fn readiness_becomes(client: &Client, status: u16) {
    let deadline = Instant::now() + NOTICE_MAX;
    loop {
        let answer = client.get("/health/ready").await;
        if answer.status == status {
            return;
        }
        assert!(Instant::now() < deadline, "still {answer:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn refuses_appends_reads_on_and_recovers() {
    let dir = test_dir();
    let Some(disk) = SmallDisk::mount(&dir.path().join("disk"), DISK_BYTES) else { return };
    let data_dir = disk.path().join("data");
    let reserve = RESERVE_BYTES.to_string();
    let node = small_node(&dir).with_data_dir(&data_dir).with_env("FASTPACA_DISK_RESERVE_BYTES", reserve);
    let process = node.start().unwrap();
    let client = Client::of(&process);
    client.create("full").await;
    let mut texts = Vec::new();
    for number in 0..20 {
        texts.push(format!("before {number}"));
        client.append("full", texts.last().unwrap()).await.expect(201);
    }

    let filler = disk.path().join("filler");
    fs::write(&filler, vec![0; (disk.free_bytes() - RESERVE_BYTES / 2) as usize]).unwrap();
    readiness_becomes(&client, 503).await;
    assert_eq!(client.get("/health/ready").await.body["status"], json!("degraded"));
    assert_eq!(client.get("/health/live").await.status, 200);
    let refused = client.append("full", "while full").await;
    assert_eq!((refused.status, refused.error()), (503, "unavailable"));
    let log = client.log("full").await;
    assert_eq!(log.iter().map(crate::support::client::text_of).collect::<Vec<_>>(), texts);
    client.get("/v1/conversations/full/window").await.expect(200);

    fs::remove_file(&filler).unwrap();
    readiness_becomes(&client, 200).await;
    texts.push("after".into());
    client.append("full", "after").await.expect(201);

    drop(process);
    let process = node.start().unwrap();
    let log = Client::of(&process).log("full").await;
    assert_eq!(log.iter().map(crate::support::client::text_of).collect::<Vec<_>>(), texts);
}

/// Writers that fill the disk themselves: every refusal is one that says so, and nothing acknowledged is lost.
#[tokio::test(flavor = "multi_thread")]
async fn filled_by_its_own_appends() {
    let dir = test_dir();
    let Some(disk) = SmallDisk::mount(&dir.path().join("disk"), DISK_BYTES) else { return };
    let data_dir = disk.path().join("data");
    let reserve = RESERVE_BYTES.to_string();
    let node = small_node(&dir).with_data_dir(&data_dir).with_env("FASTPACA_DISK_RESERVE_BYTES", reserve);
    let mut process = node.start().unwrap();
    let client = Client::of(&process);
    client.create("full").await;
    let text = "x".repeat(100 << 10);
    let mut acknowledged = 0;
    let refused = loop {
        let answer = client.append("full", &format!("{acknowledged} {text}")).await;
        if answer.status != 201 {
            break answer;
        }
        acknowledged += 1;
        assert!(acknowledged < DISK_BYTES / text.len() as u64, "the disk holds more than it can");
    };
    assert_eq!((refused.status, refused.error()), (503, "unavailable"));
    assert!(process.is_running());
    let log = client.log("full").await;
    assert_eq!(log.len() as u64, acknowledged);

    // A full disk is no reason not to start.
    process.kill();
    let mut process = node.spawn().unwrap();
    process.wait_listening(crate::support::process::START_MAX).unwrap();
    let client = Client::of(&process);
    readiness_becomes(&client, 503).await;
    let deadline = Instant::now() + NOTICE_MAX;
    while client.get("/v1/conversations/full").await.status != 200 {
        assert!(Instant::now() < deadline, "no reads after a start on a full disk:\n{}", process.log_end());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(client.log("full").await.len() as u64, acknowledged);
}
