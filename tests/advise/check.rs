//! `fastpaca advise check` against real servers: one that is fine, some that are not, and one with its history in a real
//! Prometheus.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Output;
use std::time::{Duration, Instant, SystemTime};

use serde_json::{Value, json};

use super::prometheus::Prometheus;
use super::support::process::{Process, START_MAX, get};
use super::support::{small_node, small_settings, test_dir};
use super::{advise_with, has};

fn check(server: &Process, arguments: &[&str], environment: &[(&str, &str)]) -> Output {
    let url = server.url("");
    advise_with(&[&["check", "--interval", "1", "--node", &url], arguments].concat(), environment)
}

#[track_caller]
fn verdict(output: &Output, code: i32) -> Value {
    let (text, said) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(code), "{text}{said}");
    serde_json::from_str::<Value>(&text).unwrap()["verdict"].clone()
}

fn finding<'a>(verdict: &'a Value, threshold: &str) -> &'a Value {
    let found =
        verdict["findings"].as_array().unwrap().iter().find(|finding| finding["threshold"] == threshold);
    found.unwrap_or_else(|| panic!("no {threshold} in {verdict}"))
}

fn request(server: &Process, request: &str) -> TcpStream {
    let mut stream = TcpStream::connect(server.address()).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    stream
}

/// Sends JSON and answers the status line.
fn send(server: &Process, method: &str, path: &str, body: &Value) -> String {
    let body = body.to_string();
    let mut stream = request(
        server,
        &format!(
            "{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        ),
    );
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer.lines().next().unwrap().to_owned()
}

/// Thresholds that a neighbour on the same machine can cross for a moment.
const MACHINE: [&str; 4] = ["fsync", "append_latency", "window_latency", "cpu"];

#[test]
fn a_healthy_server_needs_no_scaling() {
    let dir = test_dir();
    let server = small_node(&dir).with_env("FASTPACA_API_KEY", "sesame").start().unwrap();
    let key = [("FASTPACA_API_KEY", "sesame")];
    let output = check(&server, &["--format", "json"], &key);
    let seen = serde_json::from_slice::<Value>(&output.stdout).unwrap()["verdict"].clone();
    assert_eq!(seen["unknown"], json!([]));
    // How busy this machine and its disk are at the moment is not the server's doing.
    let of_the_machine = |finding: &Value| MACHINE.contains(&finding["threshold"].as_str().unwrap());
    let findings = seen["findings"].as_array().unwrap();
    assert!(findings.iter().all(of_the_machine), "{seen}");
    let dimensions = seen["headroom"].as_array().unwrap();
    assert_eq!(dimensions.len() + findings.len(), fastpaca::advise::thresholds::THRESHOLDS.len(), "{seen}");
    assert_eq!(output.status.code(), Some(i32::from(!findings.is_empty())));
    assert_eq!(seen["level"], if findings.is_empty() { "fine" } else { "soon" });
    let text = String::from_utf8(check(&server, &[], &key).stdout).unwrap();
    let begin = if text.starts_with("Act soon") { "Act soon\n" } else { "No scaling needed\n" };
    assert!(text.starts_with(begin) && text.contains("Headroom"), "{text}");
    // Without the key the cluster does not answer, which is no proof that it is fine.
    let output = check(&server, &["--format", "json"], &[]);
    let blind = serde_json::from_slice::<Value>(&output.stdout).unwrap()["verdict"].clone();
    assert!(blind["unknown"].to_string().contains("groups_without_leader"), "{blind}");
    let findings = blind["findings"].as_array().unwrap();
    assert!(findings.iter().all(of_the_machine), "{blind}");
    assert_eq!(output.status.code(), Some(if findings.is_empty() { 3 } else { 1 }));
}

#[test]
fn streams_near_their_limit_are_to_be_acted_on_soon() {
    let dir = test_dir();
    let server = small_node(&dir).with_env("FASTPACA_STREAM_MAX_CONNECTIONS", "10").start().unwrap();
    assert!(send(&server, "PUT", "/v1/conversations/a", &json!({})).contains("201"));
    let open = |_| {
        let head = "GET /v1/conversations/a/stream HTTP/1.1\r\nhost: x\r\naccept: text/event-stream\r\n\r\n";
        let mut stream = request(&server, head);
        let mut first = [0; 12];
        stream.read_exact(&mut first).unwrap();
        assert_eq!(&first, b"HTTP/1.1 200");
        stream
    };
    let streams: Vec<TcpStream> = (0..9).map(open).collect();
    let seen = verdict(&check(&server, &["--format", "json"], &[]), 1);
    let streams_finding = finding(&seen, "streams");
    assert_eq!((&streams_finding["value"], &streams_finding["limit"]), (&json!(0.9), &json!(0.8)));
    assert!(streams_finding["action"].as_str().unwrap().contains("FASTPACA_STREAM_MAX_CONNECTIONS"));
    drop(streams);
}

#[test]
fn a_disk_without_space_is_to_be_acted_on_now() {
    let dir = test_dir();
    let mut first = small_node(&dir).start().unwrap();
    first.terminate();
    assert!(first.wait_exit(Duration::from_secs(30)).unwrap().success());
    // More than the disk has free: appends are refused from now on, also those by which a node becomes ready.
    let mut server = small_node(&dir).with_env("FASTPACA_DISK_RESERVE_BYTES", "1TiB").spawn().unwrap();
    server.wait_listening(START_MAX).unwrap();
    let deadline = Instant::now() + START_MAX;
    while !get(server.address(), "/metrics", START_MAX).unwrap().1.contains("\nfastpaca_disk_full 1\n") {
        assert!(Instant::now() < deadline, "{}", server.log_end());
        std::thread::sleep(Duration::from_millis(20));
    }
    let seen = verdict(&check(&server, &["--format", "json"], &[]), 2);
    assert_eq!(finding(&seen, "disk_full")["level"], "now");
    let text = String::from_utf8(check(&server, &[], &[]).stdout).unwrap();
    assert!(text.starts_with("Act now\n"), "{text}");
}

#[test]
fn connections_near_their_limit_are_to_be_acted_on_soon() {
    let dir = test_dir();
    let server = small_node(&dir)
        .with_env("FASTPACA_MAX_CONNECTIONS", "20")
        .with_env("FASTPACA_MAX_CONNECTIONS_PER_ADDRESS", "20")
        .start()
        .unwrap();
    let open: Vec<TcpStream> = (0..17).map(|_| TcpStream::connect(server.address()).unwrap()).collect();
    let seen = verdict(&check(&server, &["--format", "json"], &[]), 1);
    assert!(finding(&seen, "connections")["value"].as_f64().unwrap() > 0.8, "{seen}");
    drop(open);
}

#[test]
fn a_node_that_is_gone_cannot_be_judged() {
    let output = advise_with(&["check", "--node", "http://127.0.0.1:1", "--format", "json"], &[]);
    let seen = verdict(&output, 3);
    assert!(seen["unknown"][0]["why"].as_str().unwrap().contains("cannot be reached"), "{seen}");
    assert_eq!(seen["level"], Value::Null);
}

/// Twenty minutes of a node that used `cores` of its two.
fn history(instance: &str, cores: f64, minutes: u64) -> String {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    let labels = format!("{{instance=\"{instance}\",job=\"fastpaca\"}}");
    let times: Vec<u64> = (0..=minutes * 4).map(|step| now - minutes * 60 + step * 15).collect();
    let mut text = String::from("# TYPE process_cpu_seconds counter\n");
    for (step, time) in times.iter().enumerate() {
        text.push_str(&format!("process_cpu_seconds_total{labels} {} {time}\n", step as f64 * 15.0 * cores));
    }
    text.push_str("# TYPE fastpaca_available_cores gauge\n");
    times.iter().for_each(|time| text.push_str(&format!("fastpaca_available_cores{labels} 2 {time}\n")));
    text.push_str("# EOF\n");
    text
}

#[test]
fn prometheus_knows_what_lasts() {
    if !(has("promtool") && has("prometheus")) {
        return;
    }
    let dir = test_dir();
    let server = small_settings(super::support::process::Node::in_dir(dir.path())).start().unwrap();
    let instance = server.address().to_string();
    let cpu = |name: &str, cores: f64, minutes: u64| {
        let home = dir.path().join(name);
        fs::create_dir_all(&home).unwrap();
        let config = "global:\n  scrape_interval: 15s\n";
        let prometheus = Prometheus::start(&home, config, Some(&history(&instance, cores, minutes)));
        let url = prometheus.url("");
        let output = check(&server, &["--format", "json", "--prometheus", &url], &[]);
        (output.status.code(), serde_json::from_slice::<Value>(&output.stdout).unwrap()["verdict"].clone())
    };
    let (code, busy) = cpu("busy", 1.8, 20);
    assert_eq!(code, Some(2));
    let found = finding(&busy, "cpu");
    assert_eq!((&found["sustained"], &found["level"]), (&json!(true), &json!("now")));
    assert!((found["value"].as_f64().unwrap() - 0.9).abs() < 0.01, "{found}");
    // What else is found is of this machine and this moment.
    let finds_only = |verdict: &Value, allowed: &[&str]| {
        let momentary = |found: &Value| {
            found["sustained"] == false && allowed.contains(&found["threshold"].as_str().unwrap())
        };
        assert!(verdict["findings"].as_array().unwrap().iter().all(momentary), "{verdict}");
    };
    finds_only(&cpu("calm", 0.2, 20).1, &["fsync", "append_latency", "window_latency"]);
    // Two minutes of history are too few to call it lasting: what the node itself shows counts.
    finds_only(&cpu("short", 1.9, 2).1, &MACHINE);
}
