//! One run: a cluster, clients at work on it, faults one after another, and the check of everything that was seen.

use crate::checker::{self, Final};
use crate::fault::{Fault, Nemesis};
use crate::follower::{Followed, follow};
use crate::history::{History, Operation, Outcome, Request, Time, write_down};
use crate::rng::Rng;
use crate::support::client::{Client, text_of};
use crate::support::cluster::{Cluster, Shape};
use crate::worker::{Counts, Run, Worker};
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::watch;
use tokio::task::JoinSet;

const CLIENTS: usize = 9;
const CONVERSATIONS: usize = 8;

/// Longest wait for operations to end while nothing is broken.
const PROGRESS_MAX: Duration = Duration::from_secs(120);

/// Longest wait for them while something is: nothing need end then.
const BROKEN_MAX: Duration = Duration::from_secs(5);

/// Longest wait for each conversation to take an append while a minority of the nodes is broken.
const SERVED_MAX: Duration = Duration::from_secs(30);

/// Longest wait for the streams to reach the end.
const STREAM_MAX: Duration = Duration::from_secs(120);

/// What happens in a run.
pub(crate) struct Plan {
    pub(crate) name: &'static str,
    pub(crate) shape: Shape,
    pub(crate) faults: Vec<Fault>,
    /// How many operations end, at least: an equal share before, between and after the faults.
    pub(crate) operations: usize,
}

/// `FASTPACA_SEED`, or one nobody has tried.
pub(crate) fn seed() -> u64 {
    match std::env::var("FASTPACA_SEED") {
        Ok(seed) => seed.parse().expect("FASTPACA_SEED is a number"),
        Err(_) => {
            let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("it is after 1970");
            Rng::new(now.as_nanos() as u64).next() % 1_000_000_000
        }
    }
}

/// Runs it and panics with everything that is wrong; does nothing where this machine does not allow the shape.
pub(crate) async fn run(seed: u64, plan: Plan) {
    eprintln!("{}: FASTPACA_SEED={seed}", plan.name);
    let rng = Rng::new(seed);
    let cluster = tokio::task::block_in_place(|| Cluster::start(plan.shape));
    let Some(cluster) = cluster else { return };
    let ids: Vec<String> = (0..CONVERSATIONS).map(|number| format!("{}-{number}", plan.name)).collect();
    let client = cluster.client(0);
    for id in &ids {
        client.create(id).await;
    }
    let load = Load::start(&cluster, ids, &rng);
    let mut nemesis =
        Nemesis { cluster, group: group_of(&load.run.ids[0]), rng: rng.split(u64::MAX), injected: None };

    let graceful = plan.faults.iter().all(|fault| matches!(fault, Fault::RollingRestart));
    let share = plan.operations / (plan.faults.len() + 1);
    load.ended_more(share, PROGRESS_MAX, true).await;
    for fault in plan.faults {
        let began = Instant::now();
        let node = nemesis.apply(fault).await;
        let broken = load.run.history.now();
        load.ended_more(share / 2, BROKEN_MAX, false).await;
        if nemesis.leaves_majority(fault) {
            load.served_since(broken, fault).await;
        }
        tokio::time::sleep(fault.holds().saturating_sub(began.elapsed())).await;
        nemesis.heal(fault, node).await;
        eprintln!("  {fault:?} at node {}: ready again after {:?}", node + 1, began.elapsed());
        load.ended_more(share, PROGRESS_MAX, true).await;
    }
    load.finish(&mut nemesis.cluster, plan.name, seed, graceful).await;
}

/// The group of a conversation.
pub(crate) fn group_of(id: &str) -> u16 {
    let id = fastpaca::conversation::ConversationId::parse(id).expect("the test's ids are valid");
    fastpaca::shards::placement::group_of(&id)
}

/// Clients and readers at work.
struct Load {
    run: Arc<Run>,
    workers: JoinSet<()>,
    followers: Vec<tokio::task::JoinHandle<Result<Followed, String>>>,
    ends: Vec<watch::Sender<Option<u64>>>,
}

impl Load {
    fn start(cluster: &Cluster, ids: Vec<String>, rng: &Rng) -> Load {
        let run = Arc::new(Run {
            ids,
            addresses: cluster.addresses(),
            history: History::default(),
            counts: Counts::default(),
            findings: Mutex::default(),
            stop: false.into(),
        });
        let mut load = Load { run, workers: JoinSet::new(), followers: Vec::new(), ends: Vec::new() };
        for number in 0..CLIENTS {
            let worker = Worker::new(Arc::clone(&load.run), number, rng.split(number as u64));
            load.workers.spawn(worker.work());
        }
        for (number, id) in load.run.ids.iter().enumerate() {
            let (end, ended) = watch::channel(None);
            let rng = rng.split(1_000 + number as u64);
            load.followers.push(tokio::spawn(follow(load.run.addresses.clone(), id.clone(), rng, ended)));
            load.ends.push(end);
        }
        load
    }

    /// Waits until this many more operations ended.
    async fn ended_more(&self, more: usize, limit: Duration, must: bool) {
        let goal = self.run.history.len() + more;
        let deadline = Instant::now() + limit;
        while self.run.history.len() < goal && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let ended = self.run.history.len();
        assert!(ended >= goal || !must, "clients stand still: {ended} operations of {goal} ended");
    }

    /// Waits until every conversation has taken an append that came after this moment.
    async fn served_since(&self, since: Time, fault: Fault) {
        let deadline = Instant::now() + SERVED_MAX;
        loop {
            let mut waiting: BTreeSet<usize> = (0..CONVERSATIONS).collect();
            for operation in self.run.history.operations() {
                if operation.called >= since && matches!(operation.outcome, Outcome::Appended { .. }) {
                    waiting.remove(&operation.conversation);
                }
            }
            if waiting.is_empty() {
                return;
            }
            assert!(Instant::now() < deadline, "{fault:?}: conversations {waiting:?} take no appends");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn finish(mut self, cluster: &mut Cluster, name: &str, seed: u64, graceful: bool) {
        self.run.stop.store(true, Ordering::Relaxed);
        while let Some(ended) = self.workers.join_next().await {
            ended.expect("a client does not panic");
        }
        tokio::task::block_in_place(|| cluster.wait_ready());
        let ends = self.read_ends(cluster).await;
        let mut findings =
            std::mem::take(&mut *self.run.findings.lock().expect("nobody panics with the lock"));
        let connections = self.check_streams(&ends, &mut findings).await;
        findings.extend(compare_replicas(cluster, &self.run.ids, &ends).await);
        let operations = self.run.history.operations();
        findings.extend(checker::check(&operations, &ends));
        let counts = &self.run.counts;
        eprintln!(
            "  {} operations, {counts:?}, {connections} stream connections; {}",
            operations.len(),
            gaps(&operations)
        );
        let unknown = counts.unknown.load(Ordering::Relaxed);
        if graceful && unknown > 0 {
            findings.push(format!("{unknown} outcomes were unknown though every node was asked to stop"));
        }
        if !findings.is_empty() {
            let path =
                write_down(&operations, Path::new(env!("CARGO_TARGET_TMPDIR")), &format!("{name}-{seed}"));
            panic!(
                "{name} with FASTPACA_SEED={seed} broke {} promises (history: {}):\n{}",
                findings.len(),
                path.display(),
                findings[..findings.len().min(20)].join("\n")
            );
        }
    }

    async fn read_ends(&self, cluster: &Cluster) -> Vec<Final> {
        let client = cluster.client(0);
        let mut ends = Vec::new();
        for id in &self.run.ids {
            let read_at = self.run.history.now();
            let described = client.get(&format!("/v1/conversations/{id}")).await.expect(200);
            let number = |key: &str| described[key].as_u64().expect("a conversation has versions");
            let events = client.log(id).await;
            let events =
                events.iter().map(|event| (event["seq"].as_u64().unwrap_or(0), text_of(event).to_owned()));
            ends.push(Final::new(read_at, number("version"), number("last_seq"), events.collect()));
        }
        ends
    }

    /// Every reader must have what the log has; how many connections they took.
    async fn check_streams(&mut self, ends: &[Final], findings: &mut Vec<String>) -> usize {
        for (sender, end) in self.ends.iter().zip(ends) {
            sender.send_replace(Some(end.version));
        }
        let mut connections = 0;
        for ((follower, id), end) in self.followers.drain(..).zip(&self.run.ids).zip(ends) {
            let abort = follower.abort_handle();
            match tokio::time::timeout(STREAM_MAX, follower).await {
                Ok(Ok(Ok(followed))) => {
                    connections += followed.connections;
                    if followed.events != end.events {
                        findings
                            .push(format!("the stream of {id} differs from its log: {:?}", followed.events));
                    }
                }
                Ok(Ok(Err(finding))) => findings.push(finding),
                Ok(Err(panicked)) => findings.push(format!("the reader of {id} failed: {panicked}")),
                Err(_) => {
                    abort.abort();
                    findings.push(format!("the stream of {id} does not reach version {}", end.version));
                }
            }
        }
        connections
    }
}

/// Replicas must have the same digest wherever they applied the same index, and must show clients the same.
async fn compare_replicas(cluster: &Cluster, ids: &[String], ends: &[Final]) -> Vec<String> {
    let mut findings = Vec::new();
    for (id, end) in ids.iter().zip(ends) {
        let mut seen: Option<Value> = None;
        for index in cluster.running_members() {
            let shown = everything_local(&cluster.client(index), id, end).await;
            if seen.as_ref().is_some_and(|seen| *seen != shown) {
                findings.push(format!("node {} shows another {id} than the nodes before it", index + 1));
            }
            seen = Some(shown);
        }
    }
    findings.extend(cluster.compare_digests().await);
    findings
}

/// All that a node itself has of a conversation.
async fn everything_local(client: &Client, id: &str, end: &Final) -> Value {
    let path = format!("/v1/conversations/{id}");
    let fresh = format!("consistency=local&min_version={}", end.version);
    let described = client.get(&format!("{path}?{fresh}")).await.expect(200);
    let window = client.get(&format!("{path}/window?explain=true&{fresh}")).await.expect(200);
    let mut pages = Vec::new();
    for page in 0..=end.last_seq / 1000 {
        let after = page * 1000;
        pages.push(client.get(&format!("{path}/events?cursor={after}&limit=1000&{fresh}")).await.expect(200));
    }
    serde_json::json!([described, window, pages])
}

/// The longest time without an acknowledged append in any conversation. Clients choose conversations at random, so that
/// some hundredths of a second pass by themselves.
fn gaps(operations: &[Operation]) -> String {
    let mut longest = [0; CONVERSATIONS];
    for (conversation, longest) in longest.iter_mut().enumerate() {
        let mut acknowledged: Vec<u64> = operations
            .iter()
            .filter(|operation| operation.conversation == conversation)
            .filter(|operation| matches!(operation.request, Request::Append { .. }))
            .filter(|operation| matches!(operation.outcome, Outcome::Appended { .. }))
            .map(|operation| operation.returned)
            .collect();
        acknowledged.sort_unstable();
        *longest = acknowledged.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or(0);
    }
    longest.sort_unstable();
    let show = |gap: u64| Duration::from_nanos(gap).as_millis();
    format!(
        "longest gap between acknowledged appends: {} ms, in half of the conversations at most {} ms",
        show(longest[CONVERSATIONS - 1]),
        show(longest[(CONVERSATIONS - 1) / 2])
    )
}
