//! Three servers on one machine as one cluster: what replication costs, and what clients notice when a node dies, stops
//! or is replaced. Each figure beside its bar, or beside the single node's of the same run.
//!
//! `cargo bench --bench cluster` runs every scenario; `-- appends kill` runs the named ones, `-- --quick` scales all of them
//! down to a smoke test. Servers, load generator and the clients of the faults are processes of their own; the latter two
//! are this executable, started again with a hidden `--role`. Pieces shared with the bench of the single node are its files.
//!
//! What it deliberately lacks: a network. All nodes share one machine's cores, disk and loopback interface, so that rates
//! are those of a third of a machine, and latencies have no wire in them.

#![allow(clippy::print_stdout, clippy::print_stderr)] // A bench reports on its standard output.

mod ask;
mod clients;
mod nodes;
mod scenarios;
mod watch;

#[path = "../server/http.rs"]
mod http;
#[path = "../server/load.rs"]
mod load;
// The process harness of the integration tests: servers are started and stopped here as they are there.
#[allow(dead_code)] // Tests use all of it.
#[path = "../../tests/support/process.rs"]
mod process;
#[allow(dead_code)] // The bench of the single node uses all of it.
#[path = "../server/report.rs"]
mod report;
#[allow(dead_code)] // So does it of this.
#[path = "../server/run.rs"]
mod run;
#[path = "../server/text.rs"]
mod text;

use clap::{Parser, ValueEnum};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// Anything that stops the bench; it is only ever printed.
pub(crate) type Error = Box<dyn std::error::Error + Send + Sync>;

#[derive(Parser)]
#[command(about = "What three nodes cost and survive, beside one")]
struct Arguments {
    /// Scenarios to run; all of them when none is named
    scenarios: Vec<scenarios::Scenario>,
    /// Scale everything down to a smoke test of about a minute: the figures mean nothing
    #[arg(long)]
    quick: bool,
    /// Seconds of each measurement, after a warm-up
    #[arg(long, default_value_t = 6.0)]
    seconds: f64,
    /// How often a comparison is repeated, taking turns (the median by rate is reported), and how many nodes are killed and
    /// stopped, one after the other
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Milliseconds between an answer and the next request of each client while nodes are killed and stopped
    #[arg(long, default_value_t = 20)]
    pause_ms: u64,
    /// Where data goes while the bench runs; should be a real disk, not a tmpfs
    #[arg(long, default_value = env!("CARGO_TARGET_TMPDIR"))]
    dir: PathBuf,
    /// Keep data and logs of all nodes
    #[arg(long)]
    keep: bool,
    /// Passed by `cargo bench`
    #[arg(long, hide = true)]
    bench: bool,
    #[arg(long, hide = true)]
    role: Option<Role>,
}

/// What this process is, besides the bench itself.
#[derive(Clone, Copy, ValueEnum)]
enum Role {
    Load,
    Clients,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let outcome = match arguments.role {
        Some(Role::Load) => load::run_from_stdin(),
        Some(Role::Clients) => clients::run_from_stdin(),
        // `cargo test --all-targets` starts benches too; only `cargo bench` passes this.
        None if !arguments.bench => {
            println!("this is a benchmark: run it with `cargo bench --bench cluster`");
            Ok(())
        }
        None => scenarios::run(scenarios::Settings {
            chosen: arguments.scenarios,
            quick: arguments.quick,
            seconds: arguments.seconds,
            rounds: arguments.rounds,
            pause: Duration::from_millis(arguments.pause_ms),
            dir: arguments.dir,
            keep: arguments.keep,
        }),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error}");
            ExitCode::FAILURE
        }
    }
}
