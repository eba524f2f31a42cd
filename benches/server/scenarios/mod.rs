//! What is measured, in the order in which it is printed.

mod scale;
mod serving;

use crate::Error;
use crate::load::{Conversations, Extent, Load, Order, Request};
use crate::process::{Node, Process};
use crate::report::Report;
use crate::run::measure;
use clap::ValueEnum;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;
use tempfile::TempDir;

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Scenario {
    /// Durable single appends over 1,000 conversations, by 64 connections and by one
    Appends,
    /// Durable appends of 100 events a request
    Batch,
    /// One conversation written by 64 connections
    Hot,
    /// The window of the newest 50 of 200 messages, hot and after a restart
    Window,
    /// CPU of a server with nothing to do
    Idle,
    /// Resident memory and disk with 1,000,000 conversations, and 5 GB later
    Memory,
    /// Time to readiness after kill -9, with the data of `memory`
    Restart,
}

pub(crate) struct Settings {
    /// None named means all.
    pub(crate) chosen: Vec<Scenario>,
    pub(crate) quick: bool,
    pub(crate) seconds: f64,
    pub(crate) rounds: usize,
    pub(crate) dir: PathBuf,
}

/// Sizes of everything, in full and for a smoke test.
struct Scale {
    warmup: Duration,
    measure: Duration,
    rounds: usize,
    conversations: u64,
    connections: usize,
    idle: Duration,
    memory_conversations: u64,
    memory_growth_bytes: u64,
}

/// Bytes of one message's JSON wherever nothing else is said.
const MESSAGE_BYTES: usize = 600;
/// Events of one batch request.
const BATCH: usize = 100;

/// Connections that prepare data; more would only queue.
const PREPARING_CONNECTIONS: usize = 32;

struct Bench {
    scale: Scale,
    report: Report,
    dir: PathBuf,
}

pub(crate) fn run(settings: &Settings) -> Result<(), Error> {
    std::fs::create_dir_all(&settings.dir)?;
    let mut bench =
        Bench { scale: Scale::of(settings), report: Report::default(), dir: settings.dir.clone() };
    let wanted = |scenario| settings.chosen.is_empty() || settings.chosen.contains(&scenario);
    println!("data in {}, {} cores", bench.dir.display(), std::thread::available_parallelism()?);
    if settings.quick {
        println!(
            "--quick: that everything runs is all this shows; neither the figures nor the verdicts mean anything"
        );
    }
    if wanted(Scenario::Appends) {
        bench.appends()?;
    }
    if wanted(Scenario::Batch) {
        bench.batch()?;
    }
    if wanted(Scenario::Hot) {
        bench.hot()?;
    }
    if wanted(Scenario::Window) {
        bench.window()?;
    }
    if wanted(Scenario::Idle) {
        bench.idle()?;
    }
    if wanted(Scenario::Memory) || wanted(Scenario::Restart) {
        let data = bench.memory()?;
        if wanted(Scenario::Restart) {
            bench.restart(data)?;
        }
    }
    bench.report.summary();
    Ok(())
}

impl Scale {
    fn of(settings: &Settings) -> Scale {
        if settings.quick {
            return Scale {
                warmup: Duration::from_millis(200),
                measure: Duration::from_millis(800),
                rounds: 1,
                conversations: 100,
                connections: 64,
                idle: Duration::from_secs(2),
                memory_conversations: 2_000,
                memory_growth_bytes: 20_000_000,
            };
        }
        Scale {
            warmup: Duration::from_secs(2),
            measure: Duration::from_secs_f64(settings.seconds),
            rounds: settings.rounds,
            conversations: 1_000,
            connections: 64,
            idle: Duration::from_secs(10),
            memory_conversations: 1_000_000,
            memory_growth_bytes: 5_000_000_000,
        }
    }
}

/// A server with a directory of its own, which goes when it does.
struct Fresh {
    process: Process,
    node: Node,
    /// Last, so that the server has ended when the directory is removed.
    _dir: TempDir,
}

impl Bench {
    fn temp_dir(&self) -> Result<TempDir, Error> {
        Ok(tempfile::Builder::new().prefix("bench-").tempdir_in(&self.dir)?)
    }

    fn fresh_server(&self) -> Result<Fresh, Error> {
        let dir = self.temp_dir()?;
        let node = Node::in_dir(dir.path());
        Ok(Fresh { process: node.start()?, node, _dir: dir })
    }

    /// A load for the length of a measurement over `count` conversations.
    fn timed(&self, address: SocketAddr, request: Request, count: u64, connections: usize) -> Load {
        let extent = Extent::Time { warmup: self.scale.warmup, measure: self.scale.measure };
        let conversations = Conversations::first(count);
        Load {
            addresses: vec![address],
            connections,
            extent,
            request,
            conversations,
            order: Order::Scattered,
        }
    }

    /// Sends a number of requests to conversations `0..count` in turn, as fast as they are answered.
    fn prepare(&self, process: &Process, request: Request, count: u64, requests: u64) -> Result<(), Error> {
        let extent = Extent::Requests(requests);
        let connections = PREPARING_CONNECTIONS;
        let load = Load {
            addresses: vec![process.address()],
            connections,
            extent,
            request,
            conversations: Conversations::first(count),
            order: Order::InTurn,
        };
        measure(&load, process.pid()).map(drop)
    }

    fn create_conversations(&self, process: &Process, count: u64) -> Result<(), Error> {
        self.prepare(process, Request::Create { window: 50 }, count, count)
    }
}
