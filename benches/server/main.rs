//! The server's speed and memory, each figure beside its floor, in one run on one machine.
//!
//! `cargo bench --bench server` runs every scenario; `-- appends window` runs the named ones, `-- --quick` scales all of them
//! down to a smoke test. Everything measured is a process of its own: the release server, the *no-op* server (what axum can
//! answer at best), the *floor* server (what parsing and a group-committed `fdatasync` cost at least), and the load
//! generator. This executable is all but the first of them, started again with a hidden `--role`.
//!
//! What it deliberately lacks: open-loop load. All clients wait for their answer before they send again, so a latency here
//! is that of a server kept busy by that many clients, not of a given arrival rate.

#![allow(clippy::print_stdout, clippy::print_stderr)] // A bench reports on its standard output.

mod group_commit;
mod http;
mod load;
mod reference;
mod report;
mod run;
mod scenarios;
mod text;
// The process harness of the integration tests: the server is started and stopped here as it is there.
#[allow(dead_code)] // Tests use all of it.
#[path = "../../tests/support/process.rs"]
mod process;

use clap::{Parser, ValueEnum};
use std::path::PathBuf;
use std::process::ExitCode;

/// Anything that stops the bench; it is only ever printed.
pub(crate) type Error = Box<dyn std::error::Error + Send + Sync>;

#[derive(Parser)]
#[command(about = "Fastpaca's figures beside their floors")]
struct Arguments {
    /// Scenarios to run; all of them when none is named
    scenarios: Vec<scenarios::Scenario>,
    /// Scale everything down to a smoke test of well under a minute: the figures mean nothing
    #[arg(long)]
    quick: bool,
    /// Seconds of each measurement, after a warm-up
    #[arg(long, default_value_t = 6.0)]
    seconds: f64,
    /// How often a comparison is repeated, taking turns; the median by rate is reported
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Where data goes while the bench runs; should be a real disk, not a tmpfs
    #[arg(long, default_value = env!("CARGO_TARGET_TMPDIR"))]
    dir: PathBuf,
    /// Passed by `cargo bench`
    #[arg(long, hide = true)]
    bench: bool,
    #[arg(long, hide = true)]
    role: Option<Role>,
    /// Size of the no-op server's answer
    #[arg(long, hide = true)]
    answer_bytes: Option<usize>,
}

/// What this process is, besides the bench itself.
#[derive(Clone, Copy, ValueEnum)]
enum Role {
    Noop,
    Floor,
    Load,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let outcome = match arguments.role {
        Some(Role::Noop) => reference::serve_noop(arguments.answer_bytes),
        Some(Role::Floor) => reference::serve_floor(&arguments.dir),
        Some(Role::Load) => load::run_from_stdin(),
        // `cargo test --all-targets` starts benches too; only `cargo bench` passes this.
        None if !arguments.bench => {
            println!("this is a benchmark: run it with `cargo bench --bench server`");
            Ok(())
        }
        None => scenarios::run(&scenarios::Settings {
            chosen: arguments.scenarios,
            quick: arguments.quick,
            seconds: arguments.seconds,
            rounds: arguments.rounds,
            dir: arguments.dir,
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
