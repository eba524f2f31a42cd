//! A server with an archive, and what every test asks of the two.

use crate::support::client::Client;
use crate::support::cluster::{Cluster, Shape};
use crate::support::postgres::Postgres;
use crate::support::process::{Node, Process};
pub(crate) use crate::support::rich::{encoded, fill};
use crate::support::{small_node, test_dir};
use std::process::{Command, Output};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Longest wait for the archive to catch up, over the backoff after a fault.
const CAUGHT_UP_MAX: Duration = Duration::from_secs(300);
const POLL: Duration = Duration::from_millis(20);
/// Longest wait for anything else, and for one answer.
const WAIT_MAX: Duration = Duration::from_secs(120);
pub(crate) const ANSWER_MAX: Duration = Duration::from_secs(30);

/// One server that archives into one database.
pub(crate) struct World {
    pub(crate) postgres: Postgres,
    pub(crate) url: String,
    pub(crate) node: Node,
    pub(crate) process: Process,
    pub(crate) client: Client,
    _dir: TempDir,
}

/// Settings of a server that archives there, looking for work all the time, in batches that split what it finds.
fn archive_settings(url: &str) -> [(&'static str, String); 3] {
    [
        ("FASTPACA_POSTGRES_URL", url.to_owned()),
        ("FASTPACA_FLUSH_INTERVAL_MS", "20".to_owned()),
        ("FASTPACA_FLUSH_BATCH_SIZE", "50".to_owned()),
    ]
}

/// Nodes that archive into one database, with more settings, up and ready; and a client of each.
pub(crate) fn archiving_cluster(
    postgres: &Postgres,
    size: usize,
    more: &[(&str, &str)],
) -> Option<(Cluster, Vec<Client>)> {
    let mut cluster = Cluster::prepare(Shape::of(size), 0)?;
    for index in 0..size {
        for (name, value) in archive_settings(&postgres.url()) {
            cluster.set(index, name, &value);
        }
        for (name, value) in more {
            cluster.set(index, name, value);
        }
    }
    cluster.start_all();
    cluster.wait_ready();
    let addresses = cluster.addresses().all();
    let clients = addresses.into_iter().map(|address| Client::at(address, ANSWER_MAX)).collect();
    Some((cluster, clients))
}

pub(crate) async fn until(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + WAIT_MAX;
    while !is_so().await {
        assert!(Instant::now() < deadline, "waited for: {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

impl World {
    /// `None`, with a word about it, where Postgres is not installed.
    pub(crate) fn start() -> Option<World> {
        let postgres = Postgres::start()?;
        let url = postgres.url();
        Some(World::over(postgres, url, |node| node))
    }

    /// Over a database that is reached by this URL, with other settings of the server.
    pub(crate) fn over(postgres: Postgres, url: String, settings: impl FnOnce(Node) -> Node) -> World {
        let dir = test_dir();
        let archiving = archive_settings(&url);
        let node =
            archiving.into_iter().fold(small_node(&dir), |node, (name, value)| node.with_env(name, value));
        let node = settings(node);
        let process = node.start().unwrap();
        let client = Client::of(&process);
        World { postgres, url, node, process, client, _dir: dir }
    }

    /// Starts the server again after its end.
    pub(crate) fn restart(&mut self) {
        self.process = self.node.start().unwrap();
        self.client = Client::of(&self.process);
    }

    /// Appends one message to each of these conversations, which must succeed.
    pub(crate) async fn append(&self, ids: &[String], text: &str) {
        for id in ids {
            self.client.append(id, text).await.expect(201);
        }
    }

    /// Waits until the archive lacks nothing.
    pub(crate) async fn caught_up(&self) {
        self.until("the archive catches up", async || lag(&self.client).await == 0).await;
    }

    /// Waits until a failure of this kind was counted.
    pub(crate) async fn failed(&self, kind: &str) {
        self.until(&format!("a failure {kind}"), async || failures(&self.client, kind).await > 0.0).await;
    }

    pub(crate) async fn until(&self, what: &str, mut is_so: impl AsyncFnMut() -> bool) {
        let deadline = Instant::now() + CAUGHT_UP_MAX;
        while !is_so().await {
            assert!(Instant::now() < deadline, "waited for: {what}\n{}", self.process.log_end());
            tokio::time::sleep(POLL).await;
        }
    }

    /// The archive lacks nothing and is what the log is, version by version.
    pub(crate) async fn archive_is_the_log(&self) {
        self.caught_up().await;
        let verified = self.verify(&[]);
        assert!(verified.status.success(), "{verified:?}\n{}", self.process.log_end());
    }

    pub(crate) fn verify(&self, arguments: &[&str]) -> Output {
        let node = self.process.url("");
        fastpaca(&[&["archive", "verify", "--url", &node], arguments].concat(), &self.url)
    }

    pub(crate) async fn cluster_id(&self) -> String {
        let status = self.client.get("/v1/cluster").await.expect(200);
        status["cluster_id"].as_str().unwrap().to_owned()
    }
}

/// Runs the command line against an archive.
pub(crate) fn fastpaca(arguments: &[&str], url: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fastpaca"));
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("FASTPACA_")) {
        command.env_remove(name);
    }
    command.args(arguments).env("FASTPACA_POSTGRES_URL", url).output().unwrap()
}

pub(crate) fn text(output: &[u8]) -> &str {
    std::str::from_utf8(output).unwrap()
}

/// What the archive lacks of what this node leads. A node that has not looked yet lacks nothing that it knows of, so that
/// what it hosts is asked too.
pub(crate) async fn lag(client: &Client) -> u64 {
    let pending = client.metric("fastpaca_raft_pending_flush_messages").await as u64;
    if pending > 0 {
        return pending;
    }
    // What cannot be read just now may lack something.
    let unknown = 1;
    let list = client.get("/v1/conversations?limit=1000").await;
    let Some(conversations) = list.body["conversations"].as_array() else { return unknown };
    let mut lacking = 0;
    for conversation in conversations {
        let id = conversation["id"].as_str().unwrap();
        let answer = client.get(&format!("/internal/versions?id={}&first=0&limit=1", encoded(id))).await.body;
        let archived = answer["archived_version"].as_u64().map_or(0, |archived| archived + 1);
        lacking += answer["version"].as_u64().map_or(unknown, |version| version + 1 - archived);
    }
    lacking
}

pub(crate) async fn failures(client: &Client, kind: &str) -> f64 {
    client.metric(&format!("fastpaca_archive_failures_total{{kind=\"{kind}\"}}")).await
}
