//! The `fastpaca` binary: parses the command line and calls the library.

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    fastpaca::cli::run(fastpaca::cli::Cli::parse())
}
