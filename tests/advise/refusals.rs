//! What is asked wrongly gets one line that names the option, and exit code 2.

use std::fs;

use super::advise;

#[track_caller]
fn refused(arguments: &[&str], named: &str) {
    let output = advise(arguments);
    let line = String::from_utf8(output.stderr).unwrap();
    assert_eq!((output.status.code(), output.stdout.len()), (Some(2), 0), "{arguments:?}: {line}");
    assert!(line.lines().count() == 1 && line.contains(named), "{arguments:?}: {line}");
}

#[test]
fn absurd_workloads() {
    for (option, value) in [
        ("--users", "0"),
        ("--users", "-5"),
        ("--users", "1e3"),
        ("--users", "340282366920938463463374607431768211456"),
        ("--peak-share", "1.5"),
        ("--peak-share", "NaN"),
        ("--peak-factor", "0"),
        ("--messages-per-user-minute", "inf"),
        ("--busy-hours-per-day", "25"),
        ("--message-bytes", "0"),
        ("--tokens-per-message", "100000"),
        ("--streams-share", "-0.5"),
        ("--retention-days", "0"),
        ("--nodes", "2"),
        ("--growth-per-month", "-0.1"),
        ("--provider", "nobody"),
        ("--preset", "gigantic"),
        ("--postgres", "perhaps"),
    ] {
        refused(&["plan", option, value], option);
    }
    let whole_world =
        ["plan", "--users", "1000000000", "--peak-share", "1", "--messages-per-user-minute", "10000"];
    refused(&whole_world, "--users");
}

#[test]
fn files_that_are_not_what_they_should_be() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file.toml");
    let path = file.to_str().unwrap();
    for (option, text, named) in [
        ("--from", "users = 0", "--users 0"),
        ("--from", "user = 10", "user"),
        ("--from", "users 10", path),
        ("--catalog", "version = 9\nprovider = []", "version 9"),
        ("--calibration", "version = 1", "missing field"),
    ] {
        fs::write(&file, text).unwrap();
        refused(&["plan", option, path], named);
    }
    refused(&["plan", "--from", "/nowhere.toml"], "/nowhere.toml");
}

#[test]
fn files_to_be_written_for_the_wrong_hosts() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("new");
    let write = |hosts: &str| {
        refused(&["plan", "--nodes", "3", "--write", path.to_str().unwrap(), "--hosts", hosts], "--hosts");
        assert!(!path.exists());
    };
    write("a,b");
    write("a,b,c;rm");
}

#[test]
fn rules_and_nodes_that_do_not_exist() {
    refused(&["explain", "nonsense"], "nonsense");
    refused(&["check", "--node", "127.0.0.1:1"], "--node");
    refused(&["check", "--node", "http://127.0.0.1:1", "--prometheus", "ftp://x"], "--prometheus");
}
