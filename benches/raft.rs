//! What Raft and the store cost per append: the bare journal beside the same messages through 256 groups, in one
//! run. Run with `cargo bench --bench raft`; decision 002 quotes it.

#![allow(clippy::print_stdout)] // A bench reports on its standard output.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use fastpaca::conversation::{
    Action, ConversationId, NewMessage, PartKind, PartMeta, Put, RoleKind, ToolRef,
};
use fastpaca::journal::{Draft, FrameKind, Journal, Options, RealDisk, ScanFrom};
use fastpaca::metrics::Metrics;
use fastpaca::peer::{PROTOCOLS, PeerSettings, Peers, Secrets};
use fastpaca::raft::{NoPeers, Node, NodeSettings, RecoverySettings};
use fastpaca::shards::placement::GROUPS;
use fastpaca::shards::{Placement, Shards};
use fastpaca::store::{CacheSizes, Failure};
use tokio::runtime::Handle;
use tokio::sync::watch;

const RUN: Duration = Duration::from_secs(3);
const IDLE: Duration = Duration::from_secs(10);
const CONVERSATIONS: usize = 1_000;
const BODY_BYTES: usize = 600;
/// The only node, and its replica of every group.
const NODE: u128 = 1;
const REPLICA: u64 = 1;

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    runtime.block_on(run());
}

async fn run() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    println!("{:<34} {:>12} {:>18} {:>14}", "", "appends/s", "CPU per append", "of the journal");
    let mut bare = Vec::new();
    for clients in [1, 64, 256] {
        let rate = bare_journal(&dir.path().join(format!("bare-{clients}")), clients).await;
        print_row(&format!("journal, {clients} clients"), &rate, None);
        bare.push(rate.per_second);
    }
    let (node, shards) = start(&dir.path().join("node")).await;
    let cpu = cpu_seconds();
    tokio::time::sleep(IDLE).await;
    let idle = (cpu_seconds() - cpu) / IDLE.as_secs_f64() * 100.0;
    for (clients, floor) in [1, 64, 256].into_iter().zip(&bare) {
        let rate = through_raft(&shards, clients, CONVERSATIONS).await;
        print_row(&format!("Raft and store, {clients} clients"), &rate, Some(*floor));
    }
    let rate = through_raft(&shards, 64, 1).await;
    print_row("Raft and store, 64 on one", &rate, Some(bare[1]));
    println!("idle with {GROUPS} groups: {idle:.2} % of a core");
    node.shutdown().await;
}

struct Rate {
    per_second: f64,
    cpu_us: f64,
}

fn print_row(name: &str, rate: &Rate, floor: Option<f64>) {
    let ratio = floor.map_or(String::new(), |floor| format!("{:.2}", rate.per_second / floor));
    println!("{name:<34} {:>12.0} {:>15.1} us {ratio:>14}", rate.per_second, rate.cpu_us);
}

/// Runs `clients` closed loops of `one` for a while.
async fn measure<F, Fut>(clients: usize, one: F) -> Rate
where
    F: Fn(usize) -> Fut + Clone + Send + 'static,
    Fut: Future<Output = ()> + Send,
{
    let done = Arc::new(AtomicU64::new(0));
    let (cpu, started) = (cpu_seconds(), Instant::now());
    let tasks: Vec<_> = (0..clients)
        .map(|client| {
            let (one, done) = (one.clone(), done.clone());
            tokio::spawn(async move {
                let mut n = client * 7_919;
                while started.elapsed() < RUN {
                    one(n).await;
                    n += 1;
                    done.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.expect("a client loop");
    }
    let total = done.load(Ordering::Relaxed) as f64;
    Rate { per_second: total / started.elapsed().as_secs_f64(), cpu_us: (cpu_seconds() - cpu) / total * 1e6 }
}

async fn bare_journal(dir: &Path, clients: usize) -> Rate {
    let disk = Arc::new(RealDisk::open(dir).expect("a directory"));
    let (journal, _) =
        Journal::open(Options::new(1), disk, ScanFrom::Beginning, &mut |_| Ok(())).expect("a journal");
    let writing = journal.clone();
    let rate = measure(clients, move |n| {
        let journal = writing.clone();
        async move {
            let (tx, rx) = tokio::sync::oneshot::channel();
            let draft =
                Draft { kind: FrameKind::Entry, group: (n % 256) as u16, payload: &[&[7; BODY_BYTES]] };
            let done = Box::new(move |result| drop(tx.send(result)));
            journal.append(&[draft], Some(done)).await.expect("room");
            rx.await.expect("a completion").expect("a synced append");
        }
    })
    .await;
    journal.shutdown();
    rate
}

async fn start(dir: &Path) -> (Arc<Node>, Shards) {
    let settings = NodeSettings {
        node_id: NODE,
        recovery: RecoverySettings {
            index_dir: dir.join("index"),
            index_cache_bytes: 64 << 20,
            caches: CacheSizes { records: 64 << 20, messages: 64 << 20 },
            groups: GROUPS,
            boot_id: "bench".into(),
        },
        journal: Options::new(1),
        checkpoint_bytes: 256 << 20,
        checkpoint_interval: Duration::from_secs(60),
        reclaim: fastpaca::raft::ReclaimSettings {
            bytes_per_second: 32 << 20,
            dead_percent: 100,
            interval: Duration::from_secs(60),
        },
        snapshot_bytes_per_second: 64 << 20,
    };
    let disk = Arc::new(RealDisk::open(&dir.join("journal")).expect("a directory"));
    let failure = Failure::default();
    let node = Node::start(settings, disk, NoPeers, Metrics::new(), failure.clone()).await.expect("a node");
    for group in 0..GROUPS {
        let replica = node.host(group, REPLICA).await.expect("a replica");
        replica.found(&[(REPLICA, NODE)].into()).await.expect("a group of one");
    }
    let node = Arc::new(node);
    let shards = Shards::new(failure, Duration::from_secs(10));
    let placement = Placement::new((0..GROUPS).map(|group| (group, vec![NODE])));
    shards.attach(node.clone(), no_links(), watch::Sender::new(Arc::new(placement)).subscribe());
    for n in 0..CONVERSATIONS {
        let put = Action::Put(Put::default());
        shards.propose(&id(n), put).await.expect("a conversation");
    }
    (node, shards)
}

/// The links of a node that dials nobody.
fn no_links() -> Peers {
    let settings = PeerSettings {
        node_id: NODE,
        name: "bench".into(),
        incarnation: 1,
        protocols: PROTOCOLS,
        marks: Vec::new(),
        cluster: None,
        listen_port: 0,
        advertise: None,
        secrets: Secrets::new(&[], &[]),
        body_bytes_max: 1 << 20,
        tls: None,
    };
    Peers::start(settings, Handle::current(), Handle::current(), Metrics::new())
}

async fn through_raft(shards: &Shards, clients: usize, conversations: usize) -> Rate {
    let body = Bytes::from(format!(
        r#""role":"user","parts":[{{"type":"text","text":"{}"}}],"metadata":{{}}"#,
        "x".repeat(BODY_BYTES)
    ));
    let shards = shards.clone();
    measure(clients, move |n| {
        let (shards, body) = (shards.clone(), body.clone());
        async move {
            let part = PartMeta { kind: PartKind::TEXT, tokens: 146, marker_tokens: 0, tool: ToolRef::None };
            let message = NewMessage { body, token_count: 150, role: RoleKind::Other, parts: vec![part] };
            let append = Action::Append { messages: vec![message], idempotency: None, if_version: None };
            shards.propose(&id(n % conversations), append).await.expect("a reply");
        }
    })
    .await
}

fn id(n: usize) -> ConversationId {
    ConversationId::parse(&format!("conversation-{n}")).expect("a valid id")
}

fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").expect("a /proc file system");
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or("").split_whitespace().collect();
    let ticks = |n: usize| fields[n].parse::<f64>().unwrap_or(0.0);
    (ticks(11) + ticks(12)) / 100.0
}
