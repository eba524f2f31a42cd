//! The composition root: opens the parts, wires them, serves, and shuts down in order.

use std::process::ExitCode;

use crate::config::Config;

/// Serves until a signal says otherwise.
pub fn run(config: Config) -> ExitCode {
    tracing::error!(event = "not_wired", node = config.node_name, "the server is not wired up yet");
    ExitCode::FAILURE
}
