//! Running the binary and judging what came of it.

use std::ffi::OsStr;
use std::process::{Command, Output, Stdio};

use crate::support::process::Process;

/// A command line, prepared and not started.
pub(crate) fn command<A: AsRef<OsStr>>(arguments: &[A]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fastpaca"));
    // The tests' own switches would be unknown settings to it.
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("FASTPACA_")) {
        command.env_remove(name);
    }
    command.args(arguments).stdin(Stdio::null());
    command
}

/// The same, which asks this server.
pub(crate) fn asking<A: AsRef<OsStr>>(server: &Process, arguments: &[A]) -> Command {
    let mut command = command(arguments);
    command.env("FASTPACA_URL", server.url(""));
    command
}

/// What a command that succeeded printed.
#[track_caller]
pub(crate) fn succeeds(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{command:?}: {}", text(&output.stderr));
    text(&output.stdout)
}

/// The one line that a command said which ended with this code.
#[track_caller]
pub(crate) fn fails(command: &mut Command, code: i32) -> String {
    let Output { status, stdout, stderr } = command.output().unwrap();
    let said = text(&stderr);
    assert_eq!((status.code(), text(&stdout)), (Some(code), String::new()), "{command:?}: {said}");
    assert!(said.starts_with("fastpaca: ") && said.lines().count() == 1, "{said}");
    said
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}
