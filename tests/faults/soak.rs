//! Everything at once for a while: appends, windows, compactions and slow streams. Memory stays flat, nothing is answered
//! with an error, and the logs are whole.

use crate::support::client::{Client, message};
use crate::support::ledger::Ledger;
use crate::support::process::resident_bytes;
use crate::support::stream::{Next, Stream};
use crate::support::{create_conversations, small_node, test_dir};
use serde_json::json;
use std::time::{Duration, Instant};

/// `FASTPACA_TEST_SOAK_SECONDS` says otherwise.
const SECONDS: u64 = 120;

/// What caches may still add after the first third.
const GROWTH_MAX: f64 = 1.25;

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: cargo test --test faults -- --ignored"]
async fn everything_at_once() {
    let seconds =
        std::env::var("FASTPACA_TEST_SOAK_SECONDS").map_or(SECONDS, |seconds| seconds.parse().unwrap());
    let dir = test_dir();
    // Small caches, so that a third of the time fills them.
    let node = small_node(&dir)
        .with_env("FASTPACA_RECORD_CACHE_BYTES", "4MiB")
        .with_env("FASTPACA_MESSAGE_CACHE_BYTES", "4MiB")
        .with_env("FASTPACA_WINDOW_CACHE_BYTES", "4MiB")
        .with_env("FASTPACA_INDEX_CACHE_BYTES", "4MiB");
    let process = node.start().unwrap();
    let client = Client::of(&process);
    let conversations = create_conversations(&client, "soak", 200).await;
    let end = Instant::now() + Duration::from_secs(seconds);

    let ledger = Ledger::default();
    let writers = ledger.write(&client, &conversations, 8);
    let readers: Vec<_> =
        (0..4).map(|reader| tokio::spawn(read(client.clone(), conversations.clone(), reader, end))).collect();
    let mut streams = Vec::new();
    for id in conversations.iter().take(8) {
        let stream = Stream::open(&process, id, 0).await.unwrap();
        streams.push(tokio::spawn(follow(stream, client.clone(), id.clone(), end)));
    }
    tokio::time::sleep(Duration::from_secs(seconds / 3)).await;
    let early = resident_bytes(process.pid()).unwrap();
    while Instant::now() < end {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let late = resident_bytes(process.pid()).unwrap();
    writers.stop().await;
    for task in readers.into_iter().chain(streams) {
        task.await.unwrap();
    }
    eprintln!("resident {early} bytes after a third, {late} at the end; {:?}", ledger.counts());
    assert!(
        late as f64 <= early as f64 * GROWTH_MAX,
        "resident {early} bytes after a third, {late} at the end"
    );
    let counts = ledger.counts();
    assert_eq!((counts.not_applied, counts.unknown, counts.lost), (0, 0, 0), "{counts:?}");
    ledger.check_logs(&client).await;
}

/// Reads windows and pages, and compacts now and then, which leaves logs as they are.
async fn read(client: Client, conversations: Vec<String>, reader: usize, end: Instant) {
    let mut round = reader;
    while Instant::now() < end {
        let path = format!("/v1/conversations/{}", conversations[round * 7 % conversations.len()]);
        client.get(&format!("{path}/window")).await.expect(200);
        client.get(&format!("{path}/tail?limit=50")).await.expect(200);
        let last_seq = client.get(&path).await.expect(200)["last_seq"].as_u64().unwrap();
        if round.is_multiple_of(50) && last_seq > 0 {
            let body = json!({"from_seq": 1, "to_seq": last_seq, "replacement": [message("so far")]});
            client.post(&format!("{path}/compact"), &body).await.expect(200);
        }
        round += 4;
    }
}

/// Reads a stream slower than it is written; every version comes once, in order, up to the last one written by `end`.
async fn follow(mut stream: Stream, client: Client, id: String, end: Instant) {
    let mut version = 0;
    let mut target = None;
    while target.is_none_or(|target| version < target) {
        if target.is_none() && Instant::now() >= end {
            let answer = client.get(&format!("/v1/conversations/{id}")).await.expect(200);
            target = answer["version"].as_u64();
            continue;
        }
        let wait = end.saturating_duration_since(Instant::now());
        let next = match target {
            None => match tokio::time::timeout(wait, stream.next_whenever()).await {
                Ok(next) => next,
                Err(_) => continue,
            },
            Some(_) => stream.next().await,
        };
        let Next::Frame(frame) = next else {
            panic!("a stream ended by itself after version {version}: {next:?}")
        };
        let came = frame["version"].as_u64().unwrap();
        assert!(came == version + 1 || frame["type"] == "window", "after version {version} came {frame}");
        version = version.max(came);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
