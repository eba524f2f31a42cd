//! The index is disposable: deleted, cut short or overwritten, it is rebuilt from the journal, and every answer is the same.

use crate::support::client::{Client, message};
use crate::support::{small_node, test_dir};
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};

const CONVERSATIONS: usize = 12;

/// Conversations with some of everything: settings, policies, compactions, metadata, tombstones, keys, many events.
pub(super) async fn fill(client: &Client) {
    for number in 0..CONVERSATIONS {
        let path = format!("/v1/conversations/index-{number}");
        let policy = match number % 3 {
            0 => json!({"strategy": "last_n", "config": {"limit": 40}}),
            1 => json!({"strategy": "skip_parts", "config": {"skip_kinds": ["tool"], "limit": 30}}),
            _ => json!({"strategy": "manual"}),
        };
        client.put(&path, &json!({"policy": policy, "metadata": {"number": number}})).await.expect(201);
        for batch in 0..4 {
            let events: Vec<Value> =
                (0..90).map(|event| message(&format!("{number} {batch} {event}"))).collect();
            let body = json!({"events": events, "idempotency_key": format!("batch-{batch}")});
            client.post(&format!("{path}/events"), &body).await.expect(201);
        }
        if number % 2 == 0 {
            let body = json!({"from_seq": 1, "to_seq": 100, "replacement": [message("a summary")]});
            client.post(&format!("{path}/compact"), &body).await.expect(200);
        }
        if number % 5 == 4 {
            client.request(reqwest::Method::DELETE, &path, None).await.unwrap();
        }
    }
}

/// All that the server says about all of it, and that its keys still answer.
async fn said(client: &Client) -> Value {
    let mut said = vec![client.get("/v1/conversations?limit=1000").await.expect(200)];
    for number in 0..CONVERSATIONS {
        said.push(client.everything(&format!("index-{number}")).await);
        if number % 5 != 4 {
            let events: Vec<Value> = (0..90).map(|event| message(&format!("{number} 2 {event}"))).collect();
            let body = json!({"events": events, "idempotency_key": "batch-2"});
            said.push(
                client.post(&format!("/v1/conversations/index-{number}/events"), &body).await.expect(200),
            );
        }
    }
    said.into()
}

/// Requests that read all of it.
pub(super) fn all_requests() -> Vec<String> {
    let mut paths = vec!["/v1/conversations?limit=1000".to_owned()];
    for number in 0..CONVERSATIONS {
        let path = format!("/v1/conversations/index-{number}");
        paths.push(format!("{path}/window?explain=true"));
        paths.push(format!("{path}/events?limit=1000"));
        paths.push(path);
    }
    paths
}

/// All files below a directory.
pub(super) fn files(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

fn cut_in_half(file: &Path) {
    let bytes = fs::read(file).unwrap();
    fs::write(file, &bytes[..bytes.len() / 2]).unwrap();
}

/// Reproducible noise of the same length.
fn overwrite(file: &Path) {
    let len = fs::metadata(file).unwrap().len();
    let noise: Vec<u8> = (0..len).map(|at| (at.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56) as u8).collect();
    fs::write(file, noise).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_happens_to_the_index_every_answer_stays() {
    let dir = test_dir();
    let node = small_node(&dir);
    let mut process = node.start().unwrap();
    fill(&Client::of(&process)).await;
    let before = said(&Client::of(&process)).await;
    // An orderly end writes a checkpoint, so that there is an index to damage and a temptation to trust it.
    process.terminate();
    assert!(process.wait_exit(crate::support::process::START_MAX).unwrap().success());
    let index = node.data_dir().join("index");
    assert!(!files(&index).is_empty(), "no index at {}", index.display());

    let damages: [(&str, &dyn Fn()); 6] = [
        ("untouched", &|| ()),
        ("deleted", &|| fs::remove_dir_all(&index).unwrap()),
        ("emptied", &|| files(&index).iter().for_each(|file| fs::write(file, b"").unwrap())),
        ("cut in half", &|| files(&index).iter().for_each(|file| cut_in_half(file))),
        ("garbage", &|| files(&index).iter().for_each(|file| overwrite(file))),
        ("a file in its place", &|| {
            fs::remove_dir_all(&index).unwrap();
            fs::write(&index, b"not a directory").unwrap();
        }),
    ];
    for (name, damage) in damages {
        damage();
        let mut process = node.start().unwrap_or_else(|error| panic!("index {name}: {error}"));
        let client = Client::of(&process);
        let rebuilt = client.metric("fastpaca_index_rebuilds_total").await;
        assert_eq!(
            rebuilt > 0.0,
            name != "untouched",
            "with the index {name}, it was rebuilt {rebuilt} times"
        );
        let after = said(&client).await;
        assert!(
            after == before,
            "with the index {name}, the answers are others:\n{after}\nrather than\n{before}"
        );
        process.terminate();
        assert!(process.wait_exit(crate::support::process::START_MAX).unwrap().success());
    }
}
