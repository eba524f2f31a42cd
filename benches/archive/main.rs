//! What the archive costs appends, and how fast a backlog drains, on a Postgres of the bench's own.
//!
//! `cargo bench --bench archive` runs both; `-- --quick` is a smoke test. Server, load generator and Postgres share the
//! machine, and all figures are ratios within one run. Postgres writes with `fsync` on, as in production.

#![allow(clippy::print_stdout, clippy::print_stderr)] // A bench reports on its standard output.

#[allow(dead_code)] // Tests use all of it.
#[path = "../../tests/support/faults.rs"]
mod faults;
#[path = "../server/http.rs"]
mod http;
mod layouts;
#[path = "../server/load.rs"]
mod load;
#[path = "../../tests/support/ports.rs"]
mod ports;
#[allow(dead_code)] // Tests use all of it.
#[path = "../../tests/support/postgres.rs"]
mod postgres;
#[allow(dead_code)] // Tests use all of it.
#[path = "../../tests/support/process.rs"]
mod process;
#[allow(dead_code)] // Other benches use all of it.
#[path = "../server/report.rs"]
mod report;
#[allow(dead_code)] // Other benches use all of it.
#[path = "../server/run.rs"]
mod run;
mod scenarios;
#[path = "../server/text.rs"]
mod text;

use clap::{Parser, ValueEnum};
use std::path::PathBuf;
use std::process::ExitCode;

/// Anything that stops the bench; it is only ever printed.
pub(crate) type Error = Box<dyn std::error::Error + Send + Sync>;

#[derive(Parser)]
#[command(about = "What the archive costs, and how fast it is")]
struct Arguments {
    /// Scale everything down to a smoke test: the figures mean nothing
    #[arg(long)]
    quick: bool,
    /// Seconds of each measurement of appends, after a warm-up
    #[arg(long, default_value_t = 8.0)]
    seconds: f64,
    /// How often that is done, the kinds taking turns
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..))]
    rounds: u16,
    /// Messages of the backlog
    #[arg(long, default_value_t = 500_000)]
    backlog: u64,
    /// Where data goes while the bench runs; should be a real disk, not a tmpfs
    #[arg(long, default_value = env!("CARGO_TARGET_TMPDIR"))]
    dir: PathBuf,
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
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let outcome = match arguments.role {
        Some(Role::Load) => load::run_from_stdin(),
        // `cargo test --all-targets` starts benches too; only `cargo bench` passes this.
        None if !arguments.bench => {
            println!("this is a benchmark: run it with `cargo bench --bench archive`");
            Ok(())
        }
        None => scenarios::run(&match arguments.quick {
            true => scenarios::Settings { seconds: 1.0, rounds: 1, backlog: 20_000, dir: arguments.dir },
            false => scenarios::Settings {
                seconds: arguments.seconds,
                rounds: arguments.rounds.into(),
                backlog: arguments.backlog,
                dir: arguments.dir,
            },
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
