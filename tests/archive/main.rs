//! The archive on a real Postgres: what arrives there, under faults of either side, and what can be made of it again.

#![allow(clippy::unwrap_used, clippy::print_stderr)] // Tests fail by panics and say on standard error what they did.

mod commands;
mod contents;
mod faults;
mod leaders;
mod secure;
#[path = "../support/mod.rs"]
mod support;
mod trimming;
mod world;
