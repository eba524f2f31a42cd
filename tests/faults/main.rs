//! The server as a process, and everything that can happen to it: kills, broken and full disks, lost files, restarts.
//!
//! One crate, so that all of it is linked once. Loops are as long as CI has time for, or as `FASTPACA_TEST_CYCLES` says.

#![allow(clippy::unwrap_used, clippy::print_stderr)] // Tests fail by panics and say on standard error what they did.

mod bit_flip;
mod disk_full;
mod index;
mod io_error;
mod kill;
mod kill_points;
mod power_loss;
mod reclaim;
mod shutdown;
mod soak;
mod stream_restart;
#[path = "../support/mod.rs"]
mod support;
