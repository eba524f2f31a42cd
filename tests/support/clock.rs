//! A server whose wall clock a test can move while it runs, by libfaketime. The monotonic clock stays what it is: on a
//! real machine nothing sets it, and a machine that stands still altogether is what SIGSTOP is for.

use super::faults::skip;
use super::process::Node;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Where Debian's packages have it, and where other distributions do.
const LIBRARIES: &[&str] = &[
    "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1",
    "/usr/lib/aarch64-linux-gnu/faketime/libfaketime.so.1",
    "/usr/lib64/faketime/libfaketime.so.1",
    "/usr/lib/faketime/libfaketime.so.1",
];

/// The clock of one server. Copies move the same clock.
#[derive(Clone, Debug)]
pub(crate) struct Clock(PathBuf);

impl Clock {
    /// A clock that is right, and the server that will go by it. `None`, with a word about it, where that cannot be.
    pub(crate) fn of(node: Node, dir: &Path) -> Option<(Clock, Node)> {
        let Some(library) = LIBRARIES.iter().find(|library| Path::new(library).exists()) else {
            skip("libfaketime is not installed");
            return None;
        };
        let clock = Clock(dir.join("clock"));
        clock.shift(0);
        let node = node
            .with_env("LD_PRELOAD", library)
            .with_env("FAKETIME_TIMESTAMP_FILE", &clock.0)
            // Each reading of the clock reads the file, so that a shift counts from the next one on.
            .with_env("FAKETIME_NO_CACHE", "1")
            .with_env("FAKETIME_DONT_FAKE_MONOTONIC", "1")
            .with_env("NO_FAKE_STAT", "1");
        Some((clock, node))
    }

    /// Moves the clock to this many seconds from the right time. The file is replaced, never half written.
    pub(crate) fn shift(&self, seconds: i64) {
        let next = self.0.with_extension("next");
        fs::write(&next, format!("{seconds:+}s\n")).expect("a test writes to its own directory");
        fs::rename(&next, &self.0).expect("a test writes to its own directory");
    }

    /// What a program started by this clock takes for the time, in seconds since 1970.
    pub(crate) fn read(&self) -> i64 {
        let library = LIBRARIES.iter().find(|library| Path::new(library).exists());
        let date = Command::new("date")
            .arg("+%s")
            .env("LD_PRELOAD", library.expect("there is one where a clock was made"))
            .env("FAKETIME_TIMESTAMP_FILE", &self.0)
            .output()
            .expect("every machine has date");
        String::from_utf8_lossy(&date.stdout).trim().parse().expect("date +%s prints a number")
    }
}
