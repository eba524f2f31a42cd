//! Copies of a node's data directory, taken while it serves: all at once, as an atomic snapshot of a file system is, and file
//! by file, as it must not be done.
//!
//! The process is stopped (SIGSTOP) for as long as the atomic copy takes: nothing is written meanwhile, and the copy has
//! whatever had been written, synced or not.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::client::{Client, message};
use crate::support::process::{Node, Process, START_MAX, StartError};
use crate::support::{create_conversations, small_node, small_settings, test_dir};

/// A server under load, with a count of what it acknowledged for each conversation.
struct World {
    server: Process,
    node: Node,
    client: Client,
    ids: Vec<String>,
    acknowledged: Arc<Vec<AtomicU64>>,
    stop: Arc<AtomicBool>,
    loads: Vec<tokio::task::JoinHandle<()>>,
}

impl World {
    async fn start(dir: &tempfile::TempDir) -> World {
        let node = small_node(dir);
        let server = node.start().unwrap();
        let client = Client::of(&server);
        let ids = create_conversations(&client, "volume", 6).await;
        let acknowledged: Arc<Vec<AtomicU64>> = Arc::new(ids.iter().map(|_| AtomicU64::new(0)).collect());
        let stop = Arc::new(AtomicBool::new(false));
        let loads = (0..ids.len()).map(|at| {
            let (client, id) = (client.clone(), ids[at].clone());
            let (acknowledged, stop) = (acknowledged.clone(), stop.clone());
            tokio::spawn(async move {
                let text = "x".repeat(4_000);
                while !stop.load(Ordering::Relaxed) {
                    let events = json!({"events": vec![message(&text); 5]});
                    let path = format!("/v1/conversations/{id}/events");
                    let seq = client.post(&path, &events).await.expect(201)["last_seq"].as_u64();
                    acknowledged[at].store(seq.unwrap(), Ordering::Relaxed);
                }
            })
        });
        let loads = loads.collect();
        let world = World { server, node, client, ids, acknowledged, stop, loads };
        world.goes_on(200).await;
        world
    }

    fn acknowledged(&self) -> Vec<u64> {
        self.acknowledged.iter().map(|seq| seq.load(Ordering::Relaxed)).collect()
    }

    /// Until so many more events were acknowledged.
    async fn goes_on(&self, events: u64) {
        let sum = || self.acknowledged().iter().sum::<u64>();
        let wanted = sum() + events;
        while sum() < wanted {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    async fn end(self) -> (Process, Client, Vec<String>) {
        self.stop.store(true, Ordering::Relaxed);
        for load in self.loads {
            load.await.unwrap();
        }
        (self.server, self.client, self.ids)
    }
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { found.extend(files(&path)) } else { found.push(path) }
    }
    found.sort();
    found
}

/// A file that is gone by now is left out, as any copying tool would.
fn copy(file: &Path, from: &Path, to: &Path) {
    let target = to.join(file.strip_prefix(from).unwrap());
    fs::create_dir_all(target.parent().unwrap()).unwrap();
    match fs::copy(file, target) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        copied => drop(copied.unwrap()),
    }
}

/// The copy's conversations are those of the original as they were at some time. Answers how far they have come.
async fn is_a_past_of(client: &Client, original: &Client, ids: &[String]) -> Vec<u64> {
    let mut seqs = Vec::new();
    for id in ids {
        let answer = client.get(&format!("/v1/conversations/{id}")).await;
        if answer.status == 404 {
            seqs.push(0);
            continue;
        }
        let (copied, mut whole) = (client.log(id).await, original.log(id).await);
        whole.truncate(copied.len());
        assert!(copied == whole, "{id} has another past");
        seqs.push(copied.len() as u64);
    }
    seqs
}

#[tokio::test(flavor = "multi_thread")]
async fn an_atomic_snapshot_has_all_that_was_acknowledged() {
    let (dir, copies) = (test_dir(), test_dir());
    let world = World::start(&dir).await;
    let mut snapshots = Vec::new();
    for number in 0..3 {
        world.goes_on(300).await;
        let target = copies.path().join(number.to_string());
        // Before the copy begins, so that all of this must be in it.
        let acknowledged = world.acknowledged();
        world.server.pause();
        let data = world.node.data_dir();
        files(data).iter().for_each(|file| copy(file, data, &target.join("data")));
        world.server.resume();
        snapshots.push((target, acknowledged));
    }
    let (_server, original, ids) = world.end().await;
    for (target, acknowledged) in snapshots {
        let server = small_settings(Node::in_dir(&target)).start().unwrap();
        let seqs = is_a_past_of(&Client::of(&server), &original, &ids).await;
        assert!(seqs.iter().zip(&acknowledged).all(|(seq, least)| seq >= least), "{seqs:?} {acknowledged:?}");
        Client::of(&server).append(&ids[0], "goes on").await.expect(201);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_torn_copy_is_refused_or_is_a_past() {
    let (dir, copies) = (test_dir(), test_dir());
    let world = World::start(&dir).await;
    let mut torn = Vec::new();
    for (name, index_first) in [("index-first", true), ("journal-first", false), ("again", false)] {
        let target = copies.path().join(name);
        let data = world.node.data_dir().to_owned();
        let mut all = files(&data);
        all.sort_by_key(|file| file.starts_with(data.join("index")) != index_first);
        for file in &all {
            copy(file, &data, &target.join("data"));
            world.goes_on(60).await;
        }
        torn.push((name, target));
    }
    let (_server, original, ids) = world.end().await;
    for (name, target) in torn {
        let mut process = small_settings(Node::in_dir(&target)).spawn().unwrap();
        match process.wait_ready(START_MAX) {
            Ok(()) => {
                let seqs = is_a_past_of(&Client::of(&process), &original, &ids).await;
                eprintln!("{name}: recovered to {seqs:?}");
            }
            Err(StartError::Exited(status, log)) => {
                eprintln!("{name}: refused");
                let last: Value = serde_json::from_str(log.lines().last().unwrap()).unwrap_or_default();
                assert!(!status.success() && log.contains("journal"), "{last}\n{log}");
            }
            Err(other) => panic!("{name}: {other}"),
        }
    }
}
