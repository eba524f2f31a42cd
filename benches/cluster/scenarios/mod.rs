//! What is measured, in the order in which it is printed.

mod faults;
mod replace;
mod steady;

use crate::Error;
use crate::load::{Conversations, Extent, Load, Order, Request};
use crate::nodes::Cluster;
use crate::report::Report;
use crate::run::measure_over;
use clap::ValueEnum;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;
use tempfile::TempDir;

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Scenario {
    /// Durable quorum appends over 1,000 conversations by 64 connections, beside the single node's
    Appends,
    /// Appends sent to the leader's node and to another one
    Forwarded,
    /// Linearizable reads at the leader's node and at another one
    Reads,
    /// CPU and heartbeats of nodes with nothing to do
    Idle,
    /// kill -9 of one node after the other under load, and their return
    Kill,
    /// SIGTERM of one node after the other under load
    Stop,
    /// A node that lost its 1 GB of data
    Replace,
}

pub(crate) struct Settings {
    /// None named means all.
    pub(crate) chosen: Vec<Scenario>,
    pub(crate) quick: bool,
    pub(crate) seconds: f64,
    pub(crate) rounds: usize,
    /// Between an answer and the next request of the clients of the faults.
    pub(crate) pause: Duration,
    pub(crate) dir: PathBuf,
    pub(crate) keep: bool,
}

/// Sizes of everything, in full and for a smoke test.
struct Scale {
    warmup: Duration,
    measure: Duration,
    rounds: usize,
    conversations: u64,
    connections: usize,
    idle: Duration,
    /// Load before a fault, from which the cluster's own gaps and rates are taken.
    before_fault: Duration,
    /// Load after one.
    after_fault: Duration,
    replaced_bytes: u64,
    /// Load before a replacement and after it. Checkpoints of every node are to be in both.
    around_replacement: Duration,
}

/// Bytes of one message's JSON.
const MESSAGE_BYTES: usize = 600;

/// Connections that prepare data; more would only queue.
const PREPARING_CONNECTIONS: usize = 32;

struct Bench {
    scale: Scale,
    settings: Settings,
    report: Report,
}

pub(crate) fn run(settings: Settings) -> Result<(), Error> {
    std::fs::create_dir_all(&settings.dir)?;
    let mut bench = Bench { scale: Scale::of(&settings), settings, report: Report::default() };
    bench.print_settings()?;
    for scenario in Scenario::value_variants() {
        if bench.settings.chosen.is_empty() || bench.settings.chosen.contains(scenario) {
            bench.run(*scenario)?;
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
                before_fault: Duration::from_secs(2),
                after_fault: Duration::from_secs(4),
                replaced_bytes: 20_000_000,
                around_replacement: Duration::from_secs(2),
            };
        }
        Scale {
            warmup: Duration::from_secs(2),
            measure: Duration::from_secs_f64(settings.seconds),
            rounds: settings.rounds,
            conversations: 1_000,
            connections: 64,
            idle: Duration::from_secs(10),
            before_fault: Duration::from_secs_f64(settings.seconds),
            after_fault: Duration::from_secs(10),
            replaced_bytes: 1_000_000_000,
            around_replacement: Duration::from_secs(60),
        }
    }
}

impl Bench {
    fn run(&mut self, scenario: Scenario) -> Result<(), Error> {
        match scenario {
            Scenario::Appends => self.appends(),
            Scenario::Forwarded => self.forwarded(),
            Scenario::Reads => self.reads(),
            Scenario::Idle => self.idle(),
            Scenario::Kill => self.kill(),
            Scenario::Stop => self.stop(),
            Scenario::Replace => self.replace(),
        }
    }

    fn print_settings(&self) -> Result<(), Error> {
        let Settings { dir, quick, pause, .. } = &self.settings;
        let Scale { warmup, measure, rounds, conversations, connections, .. } = self.scale;
        println!("data in {}, {} cores", dir.display(), std::thread::available_parallelism()?);
        println!(
            "3 nodes with FASTPACA_CLUSTER_SEED, _SECRET, _NODE_NAME and _LISTEN set, all else by default; messages of {MESSAGE_BYTES} bytes with their own token counts, texts from seeds 0 to 63"
        );
        println!(
            "{conversations} conversations, {connections} connections, {measure:?} after a warm-up of {warmup:?}, {rounds} rounds; in faults one client for each group, {pause:?} between an answer and the next request"
        );
        if *quick {
            println!(
                "--quick: that everything runs is all this shows; neither the figures nor the verdicts mean anything"
            );
        }
        Ok(())
    }

    fn temp_dir(&self) -> Result<TempDir, Error> {
        let mut builder = tempfile::Builder::new();
        builder.prefix("bench-").disable_cleanup(self.settings.keep);
        Ok(builder.tempdir_in(&self.settings.dir)?)
    }

    /// Three nodes with the first `count` conversations and nothing in them.
    fn cluster_with(&self, count: u64) -> Result<Cluster, Error> {
        let cluster = Cluster::start(self.temp_dir()?)?;
        self.create(cluster.addresses(), &cluster.pids(), Conversations::first(count), count)?;
        Ok(cluster)
    }

    fn create(
        &self,
        addresses: &[SocketAddr],
        pids: &[u32],
        conversations: Conversations,
        count: u64,
    ) -> Result<(), Error> {
        let load = Load {
            addresses: addresses.to_vec(),
            connections: PREPARING_CONNECTIONS,
            extent: Extent::Requests(count),
            request: Request::Create { window: 50 },
            conversations,
            order: Order::InTurn,
        };
        measure_over(&load, pids).map(drop)
    }

    /// A load for the length of a measurement.
    fn timed(
        &self,
        addresses: &[SocketAddr],
        request: Request,
        conversations: Conversations,
        connections: usize,
    ) -> Load {
        let extent = Extent::Time { warmup: self.scale.warmup, measure: self.scale.measure };
        let addresses = addresses.to_vec();
        Load { addresses, connections, extent, request, conversations, order: Order::Scattered }
    }
}

fn milliseconds(duration: Duration) -> String {
    format!("{:.0} ms", duration.as_secs_f64() * 1e3)
}
