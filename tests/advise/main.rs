//! `fastpaca advise`, run as operators run it: its answers, its files, its alerts, and its look at real servers. With it
//! the files of `docker/` that are made from it, and the dashboard that goes with the alerts.
//!
//! Golden outputs and the generated page are written anew by `BLESS=1 cargo test --test advise`.

#![allow(clippy::unwrap_used, clippy::print_stderr)] // Tests fail by panics and say on standard error what they did.

mod alerts;
mod calibration;
mod check;
mod dashboard;
mod files;
mod golden;
mod prometheus;
mod refusals;
mod samples;
#[path = "../support/mod.rs"]
mod support;

use std::process::{Command, Output};

/// Runs `fastpaca advise` with nothing of the tests' own settings in its environment.
fn advise(arguments: &[&str]) -> Output {
    advise_with(arguments, &[])
}

fn advise_with(arguments: &[&str], environment: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fastpaca"));
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("FASTPACA_")) {
        command.env_remove(name);
    }
    command.arg("advise").args(arguments).envs(environment.iter().copied());
    command.output().unwrap()
}

/// What a successful run prints.
#[track_caller]
fn said(arguments: &[&str]) -> String {
    let output = advise(arguments);
    assert_eq!(output.status.code(), Some(0), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Where tools are looked for: not every user has the system's own in their path.
fn path() -> String {
    format!("{}:/usr/sbin", std::env::var("PATH").unwrap_or_default())
}

/// Whether a tool is here. A test that needs it says so and passes when it is not, but in CI.
fn has(tool: &str) -> bool {
    let found = Command::new("sh").args(["-c", &format!("command -v {tool}")]).env("PATH", path()).output();
    let found = found.is_ok_and(|output| output.status.success());
    if !found {
        support::faults::skip(&format!("{tool} is not installed"));
    }
    found
}

/// Runs a tool that must be content.
#[track_caller]
fn passes(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    assert!(output.status.success(), "{command:?}: {text}");
    text
}
