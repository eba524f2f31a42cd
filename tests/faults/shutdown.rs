//! SIGTERM: requests are finished, streams closed with 1001, the exit code is 0; a second signal ends the process at once.

use crate::support::client::Client;
use crate::support::ledger::Ledger;
use crate::support::stream::{Next, Stream};
use crate::support::{create_conversations, small_node, test_dir};
use std::time::{Duration, Instant};

/// The bound the server is given here, and what a test allows beside it for a slow machine.
const SHUTDOWN_MS: u64 = 10_000;
const MARGIN: Duration = Duration::from_secs(30);

#[tokio::test(flavor = "multi_thread")]
async fn finishes_what_it_began_and_exits_zero() {
    let dir = test_dir();
    let node = small_node(&dir).with_env("FASTPACA_SHUTDOWN_TIMEOUT_MS", SHUTDOWN_MS.to_string());
    let mut process = node.start().unwrap();
    let client = Client::of(&process);
    let conversations = create_conversations(&client, "shutdown", 8).await;
    let mut stream = Stream::open(&process, &conversations[0], 0).await.unwrap();
    let ledger = Ledger::default();
    let writers = ledger.write(&client, &conversations, 8);
    ledger.acknowledged_more(&writers, 50).await;

    process.terminate();
    let closed = loop {
        match stream.next().await {
            Next::Frame(_) => {}
            end => break end,
        }
    };
    let status =
        process.wait_exit(Duration::from_millis(SHUTDOWN_MS) + MARGIN).expect("it ends within its bound");
    writers.ended().await;
    assert!(status.success(), "it ended with {status}; its log ends:\n{}", process.log_end());
    assert_eq!(closed, Next::Closed(1001));
    let counts = ledger.counts();
    assert_eq!(counts.unknown, 0, "an orderly end leaves no append in the dark: {counts:?}");

    let process = node.start().unwrap();
    let client = Client::of(&process);
    ledger.check_logs(&client).await;
    ledger.replay_keys(&client, 1).await;
    ledger.check_logs(&client).await;
}

/// A request that is not finished holds the shutdown; the second signal does not wait for it.
#[tokio::test(flavor = "multi_thread")]
async fn a_second_signal_ends_it_at_once() {
    let dir = test_dir();
    let node = small_node(&dir).with_env("FASTPACA_SHUTDOWN_TIMEOUT_MS", "60000");
    let mut process = node.start().unwrap();
    let mut unfinished = std::net::TcpStream::connect(process.address()).unwrap();
    let head =
        "POST /v1/conversations/held/events HTTP/1.1\r\nhost: test\r\ncontent-type: application/json\r\n";
    std::io::Write::write_all(&mut unfinished, format!("{head}content-length: 100\r\n\r\n{{").as_bytes())
        .unwrap();
    // At work on it, beside the request that asks.
    let client = Client::of(&process);
    while client.metric("fastpaca_http_requests_inflight").await < 2.0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }

    process.terminate();
    let deadline = Instant::now() + MARGIN;
    while !process.log().contains("shutdown_started") {
        assert!(Instant::now() < deadline, "{}", process.log_end());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(
        process.wait_exit(Duration::from_millis(500)),
        None,
        "it did not wait for a request it had begun"
    );
    let begin = Instant::now();
    process.terminate();
    let status = process.wait_exit(MARGIN).expect("the second signal ends it");
    assert!(begin.elapsed() < MARGIN && !status.success(), "it ended with {status}");
}
