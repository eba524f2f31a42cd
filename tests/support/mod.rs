//! What integration tests share: the server as a process, a client for it, and a record of what was promised to whom.

#![allow(dead_code)] // Every test is a crate of its own and uses a part of this.

pub(crate) mod client;
pub(crate) mod clock;
pub(crate) mod cluster;
pub(crate) mod faults;
pub(crate) mod ledger;
pub(crate) mod netns;
pub(crate) mod ports;
pub(crate) mod postgres;
pub(crate) mod process;
pub(crate) mod recording;
pub(crate) mod rich;
pub(crate) mod stream;

use process::Node;
use tempfile::TempDir;

/// A directory of its own for one test's servers, on the disk of the build rather than a tmpfs. `FASTPACA_TEST_KEEP=1` has
/// it stay.
pub(crate) fn test_dir() -> TempDir {
    tempfile::Builder::new()
        .prefix("test-")
        .disable_cleanup(std::env::var_os("FASTPACA_TEST_KEEP").is_some())
        .tempdir_in(env!("CARGO_TARGET_TMPDIR"))
        .expect("the build directory is writable")
}

/// A server in this directory with [`small_settings`].
pub(crate) fn small_node(dir: &TempDir) -> Node {
    small_settings(Node::in_dir(dir.path()))
}

/// Settings that keep files small, so that segments fill, checkpoints happen and starts are quick within one test.
pub(crate) fn small_settings(node: Node) -> Node {
    node.with_env("FASTPACA_BODY_MAX_BYTES", "256KiB")
        .with_env("FASTPACA_BATCH_BODY_MAX_BYTES", "256KiB")
        .with_env("FASTPACA_SEGMENT_BYTES", "1MiB")
        .with_env("FASTPACA_CHECKPOINT_BYTES", "1MiB")
        .with_env("FASTPACA_CHECKPOINT_INTERVAL_MS", "1000")
        .with_env("FASTPACA_DISK_RESERVE_BYTES", "1MiB")
        .with_env("FASTPACA_TOKEN_ESTIMATOR", "chars:4")
}

/// How long a loop test goes on: `FASTPACA_TEST_CYCLES`, which the long suite sets, or what CI has time for.
pub(crate) fn cycles(in_ci: u64) -> u64 {
    match std::env::var("FASTPACA_TEST_CYCLES") {
        Ok(cycles) => cycles.parse().expect("FASTPACA_TEST_CYCLES is a number"),
        Err(_) => in_ci,
    }
}

/// Creates conversations of these names, `name-0` and on.
pub(crate) async fn create_conversations(client: &client::Client, name: &str, count: usize) -> Vec<String> {
    let ids: Vec<String> = (0..count).map(|number| format!("{name}-{number}")).collect();
    for id in &ids {
        client.create(id).await;
    }
    ids
}
