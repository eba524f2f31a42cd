//! A websocket client that reads replay and live across kills and restarts of the server, and misses and repeats nothing.

use crate::support::client::Client;
use crate::support::process::{Node, Process};
use crate::support::stream::{Next, Stream};
use crate::support::{cycles, small_node, test_dir};
use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

const ID: &str = "streamed";

/// What a client keeps: the last version processed, and the events seen with their sequence numbers.
#[derive(Default)]
struct Reader {
    cursor: u64,
    events: Vec<(u64, String)>,
}

impl Reader {
    /// Takes one frame and checks it against the one before: versions rise one by one, whatever lies between.
    fn take(&mut self, frame: &Value) {
        let version = frame["version"].as_u64().unwrap();
        if frame["type"] == "window" && version <= self.cursor {
            return; // Says nothing new about the log.
        }
        assert_eq!(version, self.cursor + 1, "after version {} came {frame}", self.cursor);
        self.cursor = version;
        if frame["type"] == "event" {
            let text = crate::support::client::text_of(&frame["event"]).to_owned();
            self.events.push((frame["seq"].as_u64().unwrap(), text));
        }
    }
}

/// Reads until `last_seq` was seen, connecting again wherever the server is now.
async fn read_until(mut servers: watch::Receiver<Option<Arc<Process>>>, last_seq: u64) -> Reader {
    let mut reader = Reader::default();
    loop {
        let server = servers.wait_for(Option::is_some).await.unwrap().clone().unwrap();
        let Ok(mut stream) = Stream::open(&server, ID, reader.cursor).await else {
            tokio::time::sleep(Duration::from_millis(10)).await;
            continue;
        };
        drop(server);
        while let Next::Frame(frame) = stream.next().await {
            reader.take(&frame);
            if reader.events.last().is_some_and(|(seq, _)| *seq == last_seq) {
                return reader;
            }
        }
    }
}

/// Appends one message under a key until it is acknowledged, through whatever happens; its sequence number.
async fn append_until_acknowledged(servers: &watch::Sender<Option<Arc<Process>>>, number: u64) -> u64 {
    let body = serde_json::json!({"event": crate::support::client::message(&text(number)), "idempotency_key": format!("{number}")});
    loop {
        let server = servers.subscribe().wait_for(Option::is_some).await.unwrap().clone().unwrap();
        let client = Client::of(&server);
        drop(server);
        let path = format!("/v1/conversations/{ID}/events");
        match client.request(reqwest::Method::POST, &path, Some(&body)).await {
            Ok(answer) if matches!(answer.status, 200 | 201) => return answer.body["seq"].as_u64().unwrap(),
            _ => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    }
}

fn text(number: u64) -> String {
    format!("streamed {number}")
}

/// Kills or stops the server and starts it again, as often as asked.
fn restart(node: &Node, servers: &watch::Sender<Option<Arc<Process>>>, orderly: bool) {
    let server = servers.send_replace(None).unwrap();
    let mut server = wait_for_sole_owner(server);
    if orderly {
        server.terminate();
        assert!(server.wait_exit(crate::support::process::START_MAX).unwrap().success());
    } else {
        server.kill();
    }
    servers.send_replace(Some(Arc::new(node.start().unwrap())));
}

fn wait_for_sole_owner(mut server: Arc<Process>) -> Process {
    loop {
        match Arc::try_unwrap(server) {
            Ok(process) => return process,
            Err(shared) => server = shared,
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn every_event_once_in_order_across_restarts() {
    let dir = test_dir();
    let node = small_node(&dir);
    let process = node.start().unwrap();
    Client::of(&process).create(ID).await;
    let (servers, _) = watch::channel(Some(Arc::new(process)));
    // The first half is there before anybody reads: replay and live are one sequence.
    let mut sent = BTreeMap::new();
    for number in 0..100 {
        sent.insert(append_until_acknowledged(&servers, number).await, text(number));
    }
    let restarts = cycles(3);
    let total = 100 + 60 * restarts;
    let reading = tokio::spawn(read_until(servers.subscribe(), total));
    let writing = {
        let servers = servers.clone();
        tokio::spawn(async move {
            let mut sent = BTreeMap::new();
            for number in 100..total {
                sent.insert(append_until_acknowledged(&servers, number).await, text(number));
            }
            sent
        })
    };
    for round in 0..restarts {
        tokio::time::sleep(Duration::from_millis(150)).await; // Some writing and reading in between.
        restart(&node, &servers, round % 2 == 1);
    }
    sent.extend(writing.await.unwrap());
    let reader = reading.await.unwrap();
    assert_eq!(reader.events, sent.into_iter().collect::<Vec<_>>());
}
