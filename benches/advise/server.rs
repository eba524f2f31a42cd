//! The server under proof, and what it takes: CPU, memory, disk.

use crate::Error;
use crate::drive::id;
use crate::http::Connection;
use crate::process::{Node, Process, cpu_time, resident_bytes};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Connections that prepare data.
const PREPARING: u64 = 16;

/// A release server with a directory of its own, which goes when it does.
pub(crate) struct Server {
    process: Process,
    /// Last, so that the server has ended when the directory is removed.
    _dir: TempDir,
}

/// A look at a server.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sample {
    at: Instant,
    cpu: Duration,
    resident_bytes: u64,
    journal_bytes: f64,
    index_bytes: f64,
    appended: f64,
}

/// What lay between two looks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Taken {
    pub(crate) seconds: f64,
    pub(crate) cores: f64,
    /// At the end.
    pub(crate) resident_bytes: u64,
    pub(crate) journal_bytes: f64,
    pub(crate) index_bytes: f64,
    pub(crate) appended: f64,
}

impl Server {
    pub(crate) fn start(dir: &Path, settings: &[(String, String)]) -> Result<Server, Error> {
        let dir = tempfile::Builder::new().prefix("proof-").tempdir_in(dir)?;
        let node = Node::in_dir(dir.path());
        let node = settings.iter().fold(node, |node, (name, value)| node.with_env(name, value));
        Ok(Server { process: node.start()?, _dir: dir })
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.process.address()
    }

    pub(crate) fn resident_bytes(&self) -> Result<u64, Error> {
        Ok(resident_bytes(self.process.pid())?)
    }

    /// Creates conversations `0..count` whose window is their newest `window` messages.
    pub(crate) async fn create(&self, count: u64, window: u64) -> Result<(), Error> {
        let body = format!(
            r#"{{"policy":{{"strategy":"last_n","config":{{"limit":{window}}}}},"token_budget":1000000}}"#
        );
        self.each(count, |number| ("PUT", format!("/v1/conversations/{}", id(number)), body.clone())).await
    }

    /// Appends a batch of the same messages to each of them.
    pub(crate) async fn fill(&self, count: u64, body: &[u8]) -> Result<(), Error> {
        let body = String::from_utf8(body.to_vec())?;
        self.each(count, |number| ("POST", format!("/v1/conversations/{}/events", id(number)), body.clone()))
            .await
    }

    async fn each(
        &self,
        count: u64,
        request: impl Fn(u64) -> (&'static str, String, String),
    ) -> Result<(), Error> {
        let client = async |first: u64| -> Result<(), Error> {
            let mut connection = Connection::open(self.address()).await?;
            for number in (first..count).step_by(PREPARING as usize) {
                let (method, path, body) = request(number);
                let head = format!(
                    "{method} {path} HTTP/1.1\r\nhost: proof\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
                    body.len()
                );
                let (status, answer) = connection.exchange(head.as_bytes()).await?;
                if status != 200 && status != 201 {
                    return Err(format!("{status} {}", String::from_utf8_lossy(answer)).into());
                }
            }
            Ok(())
        };
        futures_util::future::try_join_all((0..PREPARING.min(count)).map(client)).await.map(drop)
    }

    /// What the server says on `/metrics`: the samples without labels.
    pub(crate) async fn metrics(&self) -> Result<BTreeMap<String, f64>, Error> {
        let mut connection = Connection::open(self.address()).await?;
        let (_, body) = connection.exchange(b"GET /metrics HTTP/1.1\r\nhost: proof\r\n\r\n").await?;
        let text = std::str::from_utf8(body)?;
        let samples = text.lines().filter_map(|line| line.split_once(' '));
        Ok(samples.filter_map(|(name, value)| Some((name.to_owned(), value.parse().ok()?))).collect())
    }

    pub(crate) async fn sample(&self) -> Result<Sample, Error> {
        let metrics = self.metrics().await?;
        let value = |name: &str| metrics.get(name).copied().ok_or(format!("no {name}"));
        Ok(Sample {
            at: Instant::now(),
            cpu: cpu_time(self.process.pid())?,
            resident_bytes: self.resident_bytes()?,
            journal_bytes: value("fastpaca_journal_bytes_total")?,
            index_bytes: value("fastpaca_index_disk_bytes")?,
            appended: value("fastpaca_appended_events_total")?,
        })
    }
}

impl Sample {
    /// Messages appended since the start.
    pub(crate) fn appended(&self) -> f64 {
        self.appended
    }

    /// Bytes of the index on disk.
    pub(crate) fn index(&self) -> f64 {
        self.index_bytes
    }

    pub(crate) fn resident(&self) -> f64 {
        self.resident_bytes as f64
    }

    pub(crate) fn since(&self, before: &Sample) -> Taken {
        let seconds = (self.at - before.at).as_secs_f64();
        Taken {
            seconds,
            cores: (self.cpu - before.cpu).as_secs_f64() / seconds,
            resident_bytes: self.resident_bytes,
            journal_bytes: self.journal_bytes - before.journal_bytes,
            index_bytes: self.index_bytes - before.index_bytes,
            appended: self.appended - before.appended,
        }
    }
}
