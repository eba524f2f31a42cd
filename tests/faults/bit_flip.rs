//! One flipped bit, anywhere in journal and index: every answer is what it was, or an error with a log line that names the file.
//! Never another answer.

use super::index::{all_requests, files, fill};
use crate::support::client::{Answer, Client};
use crate::support::process::{Node, START_MAX, StartError};
use crate::support::{cycles, small_node, test_dir};
use std::fs;
use std::path::Path;

/// Flips per file in CI.
const FLIPS_IN_CI: u64 = 10;

/// What a start on damaged files came to.
#[derive(Debug, PartialEq)]
enum Found {
    /// Every answer was the same.
    Nothing,
    /// Some answers were errors, or there was no start; and the log says where the damage is.
    Named,
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flipped_bit_changes_no_answer_silently() {
    let dir = test_dir();
    let node = small_node(&dir);
    let mut process = node.start().unwrap();
    fill(&Client::of(&process)).await;
    let before = answers(&Client::of(&process)).await;
    process.terminate();
    assert!(process.wait_exit(START_MAX).unwrap().success());

    let mut named = 0;
    let damaged = ["journal", "index"].map(|part| files(&node.data_dir().join(part)));
    for file in damaged.iter().flatten() {
        let name = file.strip_prefix(node.data_dir()).unwrap();
        // Behind the last byte that is not zero lies space nobody has used.
        let used = fs::read(file).unwrap().iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        let flips = cycles(FLIPS_IN_CI) as usize;
        for flip in (0..flips.min(used)).map(|flip| used * (2 * flip + 1) / (2 * flips.min(used))) {
            let found = start_flipped(node.data_dir(), name, flip, &before).await;
            eprintln!("{} at {flip} of {used}: {found:?}", name.display());
            assert!(found == Found::Nothing || !name.starts_with("index"), "the index is not worth an error");
            named += usize::from(found == Found::Named);
        }
    }
    assert!(named > 0, "no flip was noticed at all");
}

/// Starts a server on a copy of the files with one bit of one of them flipped.
async fn start_flipped(data_dir: &Path, name: &Path, byte: usize, before: &[Answer]) -> Found {
    let dir = test_dir();
    let node: Node = small_node(&dir);
    copy(data_dir, node.data_dir());
    let damaged = node.data_dir().join(name);
    let mut bytes = fs::read(&damaged).unwrap();
    bytes[byte] ^= 1 << (byte % 8);
    fs::write(&damaged, bytes).unwrap();

    let mut process = node.spawn().unwrap();
    let file = name.file_name().unwrap().to_string_lossy();
    match process.wait_ready(START_MAX) {
        Ok(()) => {}
        Err(StartError::Exited(status, log)) => {
            assert!(
                !status.success() && log.contains(&*file),
                "it ended without a word about {file}:\n{log}"
            );
            return Found::Named;
        }
        Err(error) => panic!("{error}"),
    }
    let after = answers(&Client::of(&process)).await;
    let differing: Vec<_> = before.iter().zip(&after).filter(|(before, after)| before != after).collect();
    for (before, after) in &differing {
        assert!(
            after.status == 500,
            "with a bit of {file} at {byte} flipped, {after:?} rather than {before:?}"
        );
    }
    if differing.is_empty() {
        return Found::Nothing;
    }
    assert!(process.log().contains(&*file), "errors, and not a word about {file}:\n{}", process.log_end());
    Found::Named
}

async fn answers(client: &Client) -> Vec<Answer> {
    let mut answers = Vec::new();
    for path in all_requests() {
        answers.push(client.get(&path).await);
    }
    answers
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let (from, to) = (entry.as_ref().unwrap().path(), to.join(entry.unwrap().file_name()));
        if from.is_dir() {
            copy(&from, &to);
        } else {
            fs::copy(from, to).unwrap();
        }
    }
}
