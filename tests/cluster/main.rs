//! Clients at work on real servers while everything breaks, and a checker of all that they saw.
//!
//! `run` is the one way in: a seed, a shape of cluster, faults, a number of operations. `worker` and `follower` are the
//! clients, `history` is what they saw, `checker` says what is wrong with it, `fault` is what is done meanwhile. A failing run
//! prints its seed, which `FASTPACA_SEED` sets, and the file its history is in.

#![allow(clippy::unwrap_used, clippy::print_stderr)] // Tests fail by panics and say on standard error what they did.

mod bootstrap;
mod checker;
mod fault;
mod follower;
mod history;
mod hosts;
mod links;
mod restored;
mod rng;
mod run;
mod scenarios;
mod settings;
mod single;
#[path = "../support/mod.rs"]
mod support;
mod threads;
mod upgrade;
mod worker;

/// One run at a time: each wants the machine for itself, and a machine too busy to answer looks like a fault.
static ONE_AT_A_TIME: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());
