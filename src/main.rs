//! The `fastpaca` binary: parses the command line and calls the library.

use std::process::ExitCode;

use clap::Parser;

/// Many small allocations cross threads here: bodies are made by one and freed by another.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    fastpaca::cli::run(fastpaca::cli::Cli::parse())
}
