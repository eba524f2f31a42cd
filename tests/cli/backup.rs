//! Backups: taken under load, interrupted, damaged, and made into clusters again.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::run::{asking, command, fails, succeeds};
use crate::support::client::{Client, message};
use crate::support::cluster::{Cluster, Shape};
use crate::support::process::Process;
use crate::support::rich::{encoded, fill};
use crate::support::{create_conversations, small_node, test_dir};

fn back_up(server: &Process, path: &Path) -> Command {
    let mut command = asking(server, &["backup"]);
    command.arg(path);
    command
}

fn restore(server: &Process, path: &Path) -> Command {
    let mut command = asking(server, &["restore", "--from-backup"]);
    command.arg(path);
    command
}

fn verify(path: &Path) -> Command {
    let mut command = command(&["backup", "verify"]);
    command.arg(path);
    command
}

/// The body of an answer, byte by byte.
async fn bytes(server: &Process, path: &str, accept: &str) -> Vec<u8> {
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let answer = http.get(server.url(path)).header("accept", accept).send().await.unwrap();
    assert_eq!(answer.status(), 200, "{path}");
    answer.bytes().await.unwrap().to_vec()
}

/// The first frame of every version up to one, as a stream from the beginning brings them.
async fn replay(server: &Process, id: &str, upto: u64) -> Vec<Value> {
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let url = server.url(&format!("/v1/conversations/{}/stream?cursor=0", encoded(id)));
    let mut answer = http.get(url).header("accept", "text/event-stream").send().await.unwrap();
    let (mut text, mut frames): (String, Vec<Value>) = Default::default();
    while frames.len() < upto as usize {
        let chunk = answer.chunk().await.unwrap().expect("the stream goes on");
        text.push_str(std::str::from_utf8(&chunk).unwrap());
        while let Some((line, rest)) = text.split_once('\n') {
            let frame: Option<Value> =
                line.strip_prefix("data:").map(|data| serde_json::from_str(data).unwrap());
            text = rest.to_owned();
            frames.extend(frame.filter(|frame| frame["version"] == frames.len() as u64 + 1));
        }
    }
    frames.truncate(upto as usize);
    frames
}

/// Everything that a client can see of a conversation is the same here and there.
async fn is_the_same(id: &str, here: &Process, there: &Process) {
    let path = format!("/v1/conversations/{}", encoded(id));
    let described: Value = serde_json::from_slice(&bytes(here, &path, "application/json").await).unwrap();
    let version = described["version"].as_u64().unwrap();
    let mut paths = vec![path.clone(), format!("{path}/window?explain=true")];
    paths.extend(
        [0, version / 3, version / 2, version]
            .map(|at| format!("{path}/window?explain=true&at_version={at}")),
    );
    for path in paths {
        let [here, there] = [here, there].map(|server| bytes(server, &path, "application/json"));
        assert_eq!(here.await, there.await, "{path}");
    }
    let events = format!("{path}/events?from_seq=1");
    let [exported, again] = [here, there].map(|server| bytes(server, &events, "application/x-ndjson"));
    assert_eq!(exported.await, again.await, "{id}");
    assert_eq!(replay(here, id, version).await, replay(there, id, version).await, "{id}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_made_of_a_backup_is_the_same() {
    let dirs = [(); 2].map(|()| test_dir());
    let [old, new] = [0, 1].map(|at| small_node(&dirs[at]).start().unwrap());
    let client = Client::of(&old);
    let mut ids = fill(&client, "r").await;
    ids.extend(create_conversations(&client, "empty", 2).await);
    ids.push("ünïcode~1".to_owned());
    client.create(&encoded("ünïcode~1")).await;
    client.append(&encoded("ünïcode~1"), "äöü").await.expect(201);
    // More idempotency keys than are read at once.
    let keyed =
        |n: u32| json!({"event": message(&format!("keyed {n}")), "idempotency_key": format!("key-{n}")});
    ids.push("keyed".to_owned());
    client.create("keyed").await;
    for n in 0..1_030 {
        client.post("/v1/conversations/keyed/events", &keyed(n)).await.expect(201);
    }

    let path = dirs[0].path().join("backup");
    let said = succeeds(&mut back_up(&old, &path));
    let sum = "6 conversations with 1410 versions and 1030 idempotency keys";
    assert!(said.contains(sum), "{said}");
    assert!(fails(&mut back_up(&old, &path), 1).contains("exists already"));
    assert!(succeeds(&mut verify(&path)).contains(&format!("is whole: {sum}")));
    assert_eq!(succeeds(&mut restore(&new, &path)), format!("restored {sum}\n"));
    for id in &ids {
        is_the_same(id, &old, &new).await;
    }
    // Every key is known, and stands for the same answer.
    let restored = Client::of(&new);
    for n in [0, 500, 999, 1_000, 1_029] {
        let body = keyed(n);
        let [before, again] =
            [&client, &restored].map(|client| client.post("/v1/conversations/keyed/events", &body));
        let again = again.await.expect(200);
        assert_eq!((&again["deduped"], &again), (&json!(true), &before.await.expect(200)));
    }
    let other = json!({"event": message("another"), "idempotency_key": "key-7"});
    assert_eq!(restored.post("/v1/conversations/keyed/events", &other).await.error(), "idempotency_conflict");

    // Once more does no harm; what has gone on since is not touched.
    assert_eq!(succeeds(&mut restore(&new, &path)), format!("restored {sum}\n"));
    is_the_same("keyed", &old, &new).await;
    restored.append("r-rich", "goes on").await.expect(201);
    assert!(
        fails(&mut restore(&new, &path), 1)
            .contains("r-rich: it is at version 187 in the cluster, with other versions")
    );
    restored.create("stranger").await;
    assert!(
        fails(&mut restore(&new, &path), 1).contains("the cluster holds stranger, which the backup does not")
    );
    // Whatever the cluster holds is compared before anything is written.
    let another = test_dir();
    let mine = small_node(&another).start().unwrap();
    Client::of(&mine).create("keyed").await;
    Client::of(&mine).append("keyed", "my own").await.expect(201);
    assert!(
        fails(&mut restore(&mine, &path), 1).contains("keyed: it is at version 1 in the cluster, with other")
    );
    let there = Client::of(&mine).get("/v1/conversations").await.expect(200);
    assert_eq!(there["conversations"].as_array().unwrap().len(), 1, "{there}");
    // Keys are forgotten as ever: the numbers of those that were restored are in order.
    for n in 2_000..2_200 {
        restored.post("/v1/conversations/keyed/events", &keyed(n)).await.expect(201);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_settings_let_become_large_is_restored() {
    const LARGE: usize = 17 << 20;
    let dirs = [(); 3].map(|()| test_dir());
    let large = |dir| {
        let node = small_node(dir).with_env("FASTPACA_BODY_MAX_BYTES", "18MiB");
        let node = node.with_env("FASTPACA_BATCH_BODY_MAX_BYTES", "18MiB");
        node.with_env("FASTPACA_SEGMENT_BYTES", "64MiB").start().unwrap()
    };
    let [old, new] = [0, 1].map(|at| large(&dirs[at]));
    let client = Client::of(&old);
    client.create("large").await;
    let large = |letter: &str| json!({"role": "user", "content": letter.repeat(LARGE), "token_count": 1});
    client.post("/v1/conversations/large/events", &json!({"event": large("a")})).await.expect(201);
    client.append("large", "small").await.expect(201);
    let summary = json!({"from_seq": 1, "to_seq": 1, "replacement": [large("b")]});
    client.post("/v1/conversations/large/compact", &summary).await.expect(200);

    let path = dirs[0].path().join("backup");
    succeeds(&mut back_up(&old, &path));
    succeeds(&mut restore(&new, &path));
    is_the_same("large", &old, &new).await;
    // What no segment there could hold is refused before it does harm.
    let small = small_node(&dirs[2]).start().unwrap();
    assert!(
        fails(&mut restore(&small, &path), 1).contains("large: The request body is larger than 983040 bytes")
    );
    Client::of(&small).append("large", "goes on").await.expect(201);
}

/// Appends with keys to every one of `ids` in turn, and compacts now and then, until it is told to stop.
async fn load(client: Client, ids: Vec<String>, stop: Arc<AtomicBool>) {
    for n in 0.. {
        let id = &ids[n % ids.len()];
        let event = json!({"event": message(&format!("load {n}")), "idempotency_key": format!("load-{n}")});
        client.post(&format!("/v1/conversations/{id}/events"), &event).await.expect(201);
        if n % 50 == 49 {
            let summary = json!({"replacement": [message("so far")]});
            client.post(&format!("/v1/conversations/{id}/compact"), &summary).await.expect(200);
        }
        if stop.load(Ordering::Relaxed) {
            return;
        }
    }
}

/// Every conversation of the restored cluster is one of the other as it was at some version.
async fn is_of_prefixes(ids: &[String], restored: &Process, original: &Process) {
    for id in ids {
        let path = format!("/v1/conversations/{id}");
        let described: Value =
            serde_json::from_slice(&bytes(restored, &path, "application/json").await).unwrap();
        let [version, last_seq] = ["version", "last_seq"].map(|member| described[member].as_u64().unwrap());
        let window = format!("{path}/window?explain=true&at_version={version}");
        let events = format!("{path}/events?from_seq=1&to_seq={last_seq}");
        for (path, accept) in [(window, "application/json"), (events, "application/x-ndjson")] {
            let [prefix, whole] = [restored, original].map(|server| bytes(server, &path, accept));
            assert_eq!(prefix.await, whole.await, "{path}");
        }
        assert_eq!(replay(restored, id, version).await, replay(original, id, version).await, "{id}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn under_load_every_conversation_is_a_prefix_of_itself() {
    let dirs = [(); 2].map(|()| test_dir());
    let [old, new] = [0, 1].map(|at| small_node(&dirs[at]).start().unwrap());
    let client = Client::of(&old);
    let ids = create_conversations(&client, "busy", 12).await;
    let stop = Arc::new(AtomicBool::new(false));
    let loads: Vec<_> =
        ids.chunks(4).map(|ids| tokio::spawn(load(client.clone(), ids.to_vec(), stop.clone()))).collect();
    while client.log(&ids[0]).await.len() < 40 {}
    let paths: Vec<PathBuf> = (0..3).map(|n| dirs[0].path().join(format!("{n}.backup"))).collect();
    for path in &paths {
        succeeds(&mut back_up(&old, path));
    }
    stop.store(true, Ordering::Relaxed);
    for load in loads {
        load.await.unwrap();
    }
    succeeds(&mut restore(&new, &paths[2]));
    is_of_prefixes(&ids, &new, &old).await;
    // A key of the restored prefix is known there.
    let log = Client::of(&new).log(&ids[0]).await;
    let last = crate::support::client::text_of(log.last().unwrap()).to_owned();
    let key = last.replace(' ', "-");
    let again = json!({"event": message(&last), "idempotency_key": key});
    let answer =
        Client::of(&new).post(&format!("/v1/conversations/{}/events", ids[0]), &again).await.expect(200);
    assert_eq!(answer["deduped"], true);
}

/// Conversations of text that does not compress, so that there are several blocks.
async fn fill_much(client: &Client, conversations: usize) -> Vec<String> {
    let ids = create_conversations(client, "much", conversations).await;
    let mut state = 7_u64;
    for id in &ids {
        let text: String = std::iter::repeat_with(|| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            char::from(b'0' + ((state >> 33) % 64) as u8).escape_default().last().unwrap()
        })
        .take(200_000)
        .collect();
        for _ in 0..3 {
            client.append(id, &text).await.expect(201);
        }
    }
    ids
}

/// Until this is so of the command's work, or it has ended.
fn wait_until(child: &mut std::process::Child, is_so: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !is_so() && child.try_wait().unwrap().is_none() {
        assert!(Instant::now() < deadline);
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_interrupted_goes_on() {
    let dirs = [(); 2].map(|()| test_dir());
    let [old, new] = [0, 1].map(|at| small_node(&dirs[at]).start().unwrap());
    let ids = fill_much(&Client::of(&old), 40).await;
    let (path, partial) = (dirs[0].path().join("b"), dirs[0].path().join("b.partial"));
    let size = || fs::metadata(&partial).map_or(0, |metadata| metadata.len());

    // The backup is killed with some blocks written, and what it was writing torn.
    let mut child = back_up(&old, &path).spawn().unwrap();
    wait_until(&mut child, || size() > 5 << 20);
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(!path.exists(), "it was killed too late to show anything");
    let said = fails(&mut verify(&partial), 1);
    assert!(said.contains("b.partial: at offset ") && said.contains("the file ends"), "{said}");
    assert!(fails(&mut restore(&new, &partial), 1).contains("b.partial: at offset "));
    let torn = fs::OpenOptions::new().write(true).open(&partial).unwrap();
    torn.set_len(size() - 100).unwrap();
    let said = succeeds(&mut back_up(&old, &path));
    assert!(
        said.contains("40 conversations with 160 versions") && said.contains("going on with what was there"),
        "{said}"
    );
    assert!(!partial.exists());

    // The restore is killed with some conversations written.
    let mut child = restore(&new, &path).spawn().unwrap();
    let begun = || new.probe(&format!("/v1/conversations/{}", ids[5])) == Some(200);
    wait_until(&mut child, begun);
    child.kill().unwrap();
    child.wait().unwrap();
    succeeds(&mut restore(&new, &path));
    for id in [&ids[0], &ids[5], &ids[39]] {
        is_the_same(id, &old, &new).await;
    }
    for id in &ids {
        let path = format!("/internal/versions?id={id}");
        let [here, there] = [&old, &new].map(|server| bytes(server, &path, "*/*"));
        assert_eq!(here.await, there.await);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_backup_is_refused() {
    let dirs = [(); 2].map(|()| test_dir());
    let [old, new] = [0, 1].map(|at| small_node(&dirs[at]).start().unwrap());
    let client = Client::of(&old);
    fill(&client, "d").await;
    let path = dirs[0].path().join("whole");
    succeeds(&mut back_up(&old, &path));
    let whole = fs::read(&path).unwrap();
    let damaged = dirs[0].path().join("damaged");
    let refused = |bytes: &[u8], what: &str| {
        fs::write(&damaged, bytes).unwrap();
        let said = fails(&mut verify(&damaged), 1);
        assert!(
            said.contains("damaged: at offset ") || said.contains("damaged: this is no backup"),
            "{what}: {said}"
        );
    };
    for at in (0..whole.len()).step_by(whole.len() / 24).chain([17, 20, 40, whole.len() - 1]) {
        let mut bytes = whole.clone();
        bytes[at] ^= 1 << (at % 8);
        refused(&bytes, &format!("bit flipped at {at}"));
    }
    for len in (0..whole.len()).step_by(whole.len() / 12).chain([whole.len() - 1]) {
        refused(&whole[..len], &format!("cut off at {len}"));
    }
    refused(&[whole.as_slice(), b"x"].concat(), "something behind the end");
    let said = fails(&mut restore(&new, &damaged), 1);
    assert!(said.contains("something follows the end of the backup"), "{said}");
    assert_eq!(Client::of(&new).get("/v1/conversations").await.body["conversations"], json!([]));
}

#[tokio::test(flavor = "multi_thread")]
async fn three_nodes_are_backed_up_by_way_of_one() {
    let Some(cluster) = Cluster::start(Shape::of(3)) else { return };
    let client = cluster.client(0);
    let mut ids = fill(&client, "three").await;
    ids.extend(create_conversations(&client, "more", 30).await);
    for id in &ids[2..] {
        client.append(id, "some words").await.expect(201);
    }
    let dir = test_dir();
    let path = dir.path().join("backup");
    let url = format!("http://{}", cluster.addresses().all()[1]);
    let said = succeeds(command(&["backup", "--url", &url]).arg(&path));
    assert!(said.contains("32 conversations with 435 versions"), "{said}");
    let new = small_node(&dir).start().unwrap();
    succeeds(&mut restore(&new, &path));
    let restored = Client::of(&new);
    for id in &ids {
        assert_eq!(restored.everything(id).await, client.everything(id).await);
    }
}

/// One that leads a third of what is asked for, and then the one that is asked.
#[tokio::test(flavor = "multi_thread")]
async fn a_backup_goes_on_while_nodes_die() {
    let Some(mut cluster) = Cluster::start(Shape::of(3)) else { return };
    let client = cluster.client(0);
    let ids = fill_much(&client, 40).await;
    let dir = test_dir();
    let (path, partial) = (dir.path().join("b"), dir.path().join("b.partial"));
    let url = format!("http://{}", cluster.addresses().all()[1]);
    let taken = || fs::metadata(&partial).map_or(0, |metadata| metadata.len());

    let mut child = command(&["backup", "--url", &url]).arg(&path).spawn().unwrap();
    wait_until(&mut child, || taken() > 1 << 20);
    cluster.kill(2);
    wait_until(&mut child, || taken() > 3 << 20);
    cluster.kill(1);
    assert!(child.try_wait().unwrap().is_none(), "the nodes died too late to show anything");
    cluster.spawn(1);
    let ended = tokio::task::spawn_blocking(move || child.wait().unwrap()).await.unwrap();
    assert!(ended.success());

    let new = small_node(&dir).start().unwrap();
    succeeds(&mut restore(&new, &path));
    let restored = Client::of(&new);
    for id in &ids {
        assert_eq!(restored.everything(id).await, client.everything(id).await);
    }
}

/// What this version wrote once must be read for ever.
#[test]
fn a_backup_of_the_first_format_is_read() {
    let dir = test_dir();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cli/golden/format-1.backup");
    assert!(
        succeeds(&mut verify(&path))
            .contains("is whole: 3 conversations with 377 versions and 1 idempotency keys")
    );
    let server = small_node(&dir).start().unwrap();
    succeeds(&mut restore(&server, &path));
    let found = succeeds(&mut asking(&server, &["window", "golden-rich", "--json"]));
    assert_eq!(serde_json::from_str::<Value>(&found).unwrap()["version"], 186);
}
