//! A request's trace, from the node that took it to the one that led and applied it, as a collector gets it.

#![allow(clippy::unwrap_used, clippy::print_stderr)] // Tests fail by panics and say on standard error what they did.

#[path = "support/mod.rs"]
mod support;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use support::client::message;
use support::cluster::{Cluster, Shape};

/// Longest wait for spans to come in.
const SPANS_MAX: Duration = Duration::from_secs(30);

/// Takes spans as a collector does, each with the node that sent it as `node`.
#[derive(Clone)]
struct Collector {
    address: SocketAddr,
    spans: Arc<Mutex<Vec<Value>>>,
}

impl Collector {
    /// It listens as long as the process.
    fn start() -> Collector {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let collector = Collector { address: listener.local_addr().unwrap(), spans: Arc::default() };
        let taking = collector.clone();
        std::thread::spawn(move || listener.incoming().flatten().for_each(|stream| taking.take(stream)));
        collector
    }

    fn take(&self, mut stream: TcpStream) {
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        let (mut head, mut length) = (Vec::new(), 0);
        for line in reader.by_ref().lines().map_while(Result::ok).take_while(|line| !line.is_empty()) {
            if let Some(value) = line.strip_prefix("content-length: ") {
                length = value.parse().unwrap();
            }
            head.push(line);
        }
        assert_eq!(head[0], "POST /v1/traces HTTP/1.1");
        assert!(head.contains(&"content-type: application/json".to_owned()), "{head:?}");
        let mut body = vec![0; length];
        reader.read_exact(&mut body).unwrap();
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}").unwrap();
        let body: Value = serde_json::from_slice(&body).unwrap();
        let resource = &body["resourceSpans"][0];
        assert_eq!(attribute(&resource["resource"], "service.name"), "fastpaca");
        let node = attribute(&resource["resource"], "service.instance.id");
        for span in resource["scopeSpans"][0]["spans"].as_array().unwrap() {
            let mut span = span.clone();
            span["node"] = node.clone().into();
            self.spans.lock().unwrap().push(span);
        }
    }

    fn of(&self, trace: &str) -> Vec<Value> {
        let spans = self.spans.lock().unwrap();
        spans.iter().filter(|span| span["traceId"] == trace).cloned().collect()
    }

    async fn node_that_applied(&self, trace: &str) -> String {
        let deadline = Instant::now() + SPANS_MAX;
        loop {
            let spans = self.of(trace);
            if let Some(span) = spans.iter().find(|span| span["name"] == "apply") {
                return span["node"].as_str().unwrap().to_owned();
            }
            assert!(Instant::now() < deadline, "{spans:#?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// The spans of a trace by name, once there are these.
    async fn wait_for(&self, trace: &str, names: &[&str]) -> Vec<Value> {
        let deadline = Instant::now() + SPANS_MAX;
        loop {
            let spans = self.of(trace);
            let found: Option<Vec<Value>> =
                names.iter().map(|name| spans.iter().find(|span| span["name"] == *name).cloned()).collect();
            match found {
                Some(found) if spans.len() == names.len() => return found,
                _ => assert!(Instant::now() < deadline, "{names:?} expected: {spans:#?}"),
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

fn attribute(of: &Value, key: &str) -> String {
    let attributes = of["attributes"].as_array().unwrap();
    let found = attributes.iter().find(|attribute| attribute["key"] == key);
    found.unwrap_or_else(|| panic!("no {key} in {of}"))["value"]["stringValue"].as_str().unwrap().to_owned()
}

/// Each is the parent of the next, and lies within its time on its own node.
fn check_chain(spans: &[Value], caller: &str) {
    let nanos = |span: &Value, name: &str| span[name].as_str().unwrap().parse::<u64>().unwrap();
    let mut parent = json!(caller);
    for span in spans {
        assert_eq!(span["parentSpanId"], parent, "{span}");
        assert!(nanos(span, "startTimeUnixNano") <= nanos(span, "endTimeUnixNano"), "{span}");
        assert_eq!(span["status"]["code"], 0, "{span}");
        parent = span["spanId"].clone();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_is_followed_through_forward_raft_and_apply() {
    let collector = Collector::start();
    let mut cluster = Cluster::prepare(Shape::of(3), 0).expect("it asks for nothing special");
    for node in 0..3 {
        cluster.set(node, "FASTPACA_OTLP_ENDPOINT", &format!("http://{}", collector.address));
        // Nothing is traced by itself but the first request of a node.
        cluster.set(node, "FASTPACA_OTLP_SAMPLE_ONE_IN", "1000000");
    }
    cluster.start_all();
    cluster.wait_ready();
    let view = cluster.client(0).get("/v1/cluster").await.expect(200);
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let caller = "00f067aa0ba902b7";
    let append = async |id: &str, traceparent: String| {
        cluster.client(0).create(id).await;
        let url = format!("http://{}/v1/conversations/{id}/events", cluster.addresses().all()[0]);
        let request = http.post(url).header("traceparent", traceparent);
        let body = json!({"event": message("hello")}).to_string();
        let answer = request.header("content-type", "application/json").body(body).send().await.unwrap();
        assert_eq!(answer.status(), 201);
    };

    append("not-sampled", format!("00-{:032x}-{caller}-00", 77)).await;
    let traces: Vec<String> = (1..=12).map(|number| format!("{number:032x}")).collect();
    for trace in &traces {
        append(&format!("chat-{trace}"), format!("00-{trace}-{caller}-01")).await;
    }
    let after = cluster.client(0).get("/v1/cluster").await.expect(200);
    let (mut here, mut elsewhere) = (0, 0);
    for trace in &traces {
        if collector.node_that_applied(trace).await != "node-1" {
            let names = ["POST", "forward", "forwarded write", "raft", "apply"];
            let spans = collector.wait_for(trace, &names).await;
            check_chain(&spans, caller);
            assert!(spans[..2].iter().all(|span| span["node"] == "node-1"), "{spans:#?}");
            assert!(spans[2..].iter().all(|span| span["node"] == spans[2]["node"]), "{spans:#?}");
            let group = attribute(&spans[3], "fastpaca.group");
            let [leader, later] = [&view, &after].map(|view| &view["leaders_by_group"][&group]);
            // A leader that changed meanwhile tells nothing.
            assert!(leader != later || spans[3]["node"] == *leader, "{spans:#?}");
            elsewhere += 1;
        } else {
            let spans = collector.wait_for(trace, &["POST", "raft", "apply"]).await;
            check_chain(&spans, caller);
            assert_eq!(attribute(&spans[0], "http.response.status_code"), "201");
            here += 1;
        }
    }
    // Twelve of 256 groups, of which each node leads a third: one in a hundred thousand has all on one side.
    assert!(here > 0 && elsewhere > 0, "{here} here, {elsewhere} elsewhere");
    assert_eq!(collector.of(&format!("{:032x}", 77)), Vec::<Value>::new(), "its caller did not want it");
}
