//! The sizing model beside the server it speaks of.
//!
//! `cargo bench --bench advise` (or `make advise-proof`) runs the release server under presets of `fastpaca advise plan`,
//! scaled to one machine, and prints what was predicted beside what was measured. `-- points` measures the figures that the
//! model is built on, one by one.
//!
//! What it deliberately lacks: several nodes, and a network; what three nodes cost is `--bench cluster`'s.

#![allow(clippy::print_stdout, clippy::print_stderr)] // A bench reports on its standard output.

mod drive;
mod points;
mod proof;
mod server;

#[path = "../server/http.rs"]
mod http;
// The process harness of the integration tests: servers are started and stopped here as they are there.
#[allow(dead_code)] // Tests use all of it.
#[path = "../../tests/support/process.rs"]
mod process;
#[path = "../server/text.rs"]
mod text;

use clap::{Parser, Subcommand};
use std::path::PathBuf;
use std::process::ExitCode;

/// Anything that stops the bench; it is only ever printed.
pub(crate) type Error = Box<dyn std::error::Error + Send + Sync>;

#[derive(Parser)]
#[command(about = "The sizing model beside the server it speaks of")]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    /// Seconds of each measurement, after a warm-up
    #[arg(long, global = true, default_value_t = 40.0)]
    seconds: f64,
    /// Where data goes while the bench runs; should be a real disk, not a tmpfs
    #[arg(long, global = true, default_value = env!("CARGO_TARGET_TMPDIR"))]
    dir: PathBuf,
    /// Passed by `cargo bench`
    #[arg(long, global = true, hide = true)]
    bench: bool,
}

#[derive(Subcommand)]
enum Command {
    /// What a request costs, by rate, size and kind
    Points,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let outcome = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Error::from);
    let outcome = outcome.and_then(|runtime| match arguments.command {
        None => runtime.block_on(proof::run(&arguments.dir, arguments.seconds)),
        Some(Command::Points) => runtime.block_on(points::run(&arguments.dir, arguments.seconds)),
    });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("advise bench: {error}");
            ExitCode::FAILURE
        }
    }
}
