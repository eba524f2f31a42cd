//! The `fastpaca` binary: parses the command line and calls the library.

use std::process::ExitCode;

use clap::Parser;

/// A node makes and drops many small buffers on several threads: that costs less here than in the C library, and what
/// was dropped goes back to the system (`docs/benchmarks.md`).
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    fastpaca::cli::run(fastpaca::cli::Cli::parse())
}
