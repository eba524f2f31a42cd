//! The command line against real servers: what it prints, what it exits with, what it does when the server goes away.

#![allow(clippy::unwrap_used, clippy::print_stderr)] // Tests fail by panics and say on standard error what they did.

mod backup;
mod commands;
mod health;
mod run;
mod run_as;
#[path = "../support/mod.rs"]
mod support;
mod volumes;
