//! Keys, health, metrics, the API document, the cluster, the rate limit.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use fastpaca::api::App;
use fastpaca::config::{Config, Secret};
use fastpaca::metrics::Metrics;
use fastpaca::shards::Shards;
use fastpaca::store::Failure;
use fastpaca::tokens::Estimator;
use reqwest::Method;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::support::{Answer, CONTEXTS, CONVERSATIONS, Client, DIALECTS, TestServer, fresh};

#[tokio::test]
async fn keys_are_wanted_everywhere_but_for_health() {
    let server = TestServer::start(|config| {
        config.api_keys = vec![Secret::new("old"), Secret::new("new")];
        config.metrics_public = false;
    });
    for words in DIALECTS {
        let client = Client::new(words, server.address);
        for path in
            ["/v1/conversations/a", "/v1/contexts/a", "/v1/cluster", "/openapi.json", "/metrics", "/nowhere"]
        {
            let refused = Answer::of(client.raw(Method::GET, path)).await;
            refused.fails(401, "unauthorized");
            assert_eq!(refused.header("www-authenticate"), "Bearer");
        }
        let wrong = client.clone().with_key("older");
        wrong.put("a", json!({})).await.fails(401, "unauthorized");
        for path in ["/health/live", "/health/ready"] {
            Answer::of(client.raw(Method::GET, path)).await.expect(200);
        }
        for key in ["old", "new"] {
            let client = client.clone().with_key(key);
            client.create(&fresh("keyed")).await;
            Answer::of(client.raw(Method::GET, "/metrics")).await.expect(200);
        }
    }
}

#[tokio::test]
async fn metrics_are_public_by_default() {
    let server = TestServer::start(|config| config.api_keys = vec![Secret::new("k")]);
    let client = Client::new(CONVERSATIONS, server.address);
    Answer::of(client.raw(Method::GET, "/metrics")).await.expect(200);
}

#[tokio::test]
async fn health_and_the_cluster_are_described() {
    let server = TestServer::start(|_| {});
    let client = Client::new(CONTEXTS, server.address);
    let get = async |path: &str| Answer::of(client.raw(Method::GET, path)).await;
    assert_eq!(get("/health/live").await.expect(200).json, json!({"status": "ok"}));
    assert_eq!(get("/health/ready").await.expect(200).json, json!({"status": "ok"}));
    let cluster = get("/v1/cluster").await.expect(200).json;
    assert_eq!(cluster["cluster_id"].as_str().map(str::len), Some(32));
    assert_eq!(
        (&cluster["groups"], &cluster["groups_without_leader"], &cluster["moving"]),
        (&json!(256), &json!(0), &json!(0))
    );
    assert_eq!(cluster["leaders_by_group"]["17"], "test");
    let node = &cluster["nodes"][0];
    assert_eq!(
        (&node["name"], &node["state"], &node["link"]),
        (&json!("test"), &json!("active"), &json!("up"))
    );
    assert_eq!(node["address"], json!(server.address));
    assert_eq!((&node["groups"], &node["leaders"], &node["lag"]), (&json!(256), &json!(256), &json!(0)));
    assert_eq!(cluster["nodes"].as_array().map(Vec::len), Some(1));
}

#[tokio::test]
async fn a_node_alone_is_drained_by_refusing_writes() {
    let server = TestServer::start(|_| {});
    let client = Client::new(CONTEXTS, server.address);
    let get = async |path: &str| Answer::of(client.raw(Method::GET, path)).await;
    let post = async |path: &str| Answer::of(client.raw(Method::POST, path)).await;
    client.create("a").await;
    for path in ["/v1/cluster/drain", "/v1/cluster/drain?name=test"] {
        assert_eq!(post(path).await.expect(200).json["nodes"][0]["state"], "draining");
    }
    let unready = get("/health/ready").await.expect(503).json;
    assert_eq!(unready["status"], "draining");
    assert!(unready["reason"].is_string());
    let refused = client.post("a", json!({"message": {"role": "user", "content": "x"}})).await;
    refused.fails(503, "draining");
    assert_eq!(refused.header("retry-after"), "1");
    client.get("a").await.expect(200);
    let undrain = client.raw(Method::POST, "/v1/cluster/undrain").json(&json!({"name": "test"}));
    assert_eq!(Answer::of(undrain).await.expect(200).json["nodes"][0]["state"], "active");
    client.say("a", "x", 1).await;
    get("/health/ready").await.expect(200);
}

#[tokio::test]
async fn changes_of_the_cluster_are_refused_with_reasons() {
    let client = Client::shared(CONVERSATIONS);
    let ask = async |method: Method, path: &str| Answer::of(client.raw(method, path)).await;
    let last = ask(Method::DELETE, "/v1/cluster/nodes/test").await.fails(409, "conflict");
    assert!(last.contains("last active node"), "{last}");
    let unknown = ask(Method::DELETE, "/v1/cluster/nodes/other").await.fails(404, "not_found");
    assert!(unknown.contains("`other`"), "{unknown}");
    let not_utf8 = ask(Method::DELETE, "/v1/cluster/nodes/%ff").await.fails(400, "invalid_request");
    assert_eq!(not_utf8, "name must be UTF-8 once percent-decoded");
    for path in ["/v1/cluster/drain", "/v1/cluster/undrain"] {
        ask(Method::POST, &format!("{path}?name=other")).await.fails(404, "not_found");
        ask(Method::POST, &format!("{path}?trace=1&name=other")).await.fails(404, "not_found");
        for wrong in ["name=other&name=other", "name=%ff"] {
            ask(Method::POST, &format!("{path}?{wrong}")).await.fails(400, "invalid_request");
        }
        let body = async |body: &'static str| Answer::of(client.raw(Method::POST, path).body(body)).await;
        body(r#"{"name": "other"}"#).await.fails(404, "not_found");
        body(r#"{"name": "other", "more": [1]}"#).await.fails(404, "not_found");
        for (wrong, message) in [
            (r#"{"name": 1}"#, "name must be a string"),
            (r#"{"name": {"name": "other"}}"#, "name must be a string"),
            (r#"["other"]"#, "The body must be an object"),
            (r#"{"name": "a", "name": "b"}"#, "name is given twice"),
        ] {
            assert_eq!(body(wrong).await.fails(400, "invalid_request"), message);
        }
        body(r#"{"name": "#).await.fails(400, "invalid_json");
    }
}

#[tokio::test]
async fn digests_tell_states_apart() {
    let server = TestServer::start(|config| config.api_keys = vec![Secret::new("k")]);
    let client = Client::new(CONVERSATIONS, server.address);
    Answer::of(client.raw(Method::GET, "/internal/digests")).await.fails(401, "unauthorized");
    let client = client.with_key("k");
    let digests = async || {
        let answer = Answer::of(client.raw(Method::GET, "/internal/digests")).await.expect(200);
        answer.json["groups"].as_object().unwrap().clone()
    };
    let empty = digests().await;
    // The group of the conversation below, by its id.
    let mine = "230";
    assert_eq!((empty.len(), empty[mine]["digest"].as_str().map(str::len)), (257, Some(32)));
    client.create("a").await;
    client.say_all("a", (0..300).map(|n| n.to_string())).await;
    let full = digests().await;
    assert!(full[mine]["applied"].as_u64() > empty[mine]["applied"].as_u64());
    assert_ne!(full[mine]["digest"], empty[mine]["digest"]);
    let others = |all: &serde_json::Map<String, Value>| {
        // The group of the cluster state, 256, is written by the node itself.
        let of_clients = all.iter().filter(|(group, _)| *group != mine && *group != "256");
        of_clients.map(|(_, digest)| digest.clone()).collect::<Vec<_>>()
    };
    assert_eq!(others(&full), others(&empty));
    let again = digests().await;
    assert_eq!((others(&again), &again[mine]), (others(&full), &full[mine]));
}

#[tokio::test]
async fn metrics_count_what_was_done() {
    let server = TestServer::start(|_| {});
    let client = Client::new(CONVERSATIONS, server.address);
    client.create("a").await;
    client.say_all("a", (0..3).map(|n| n.to_string())).await;
    client.get("a/window").await.expect(200);
    client.get("absent").await.expect(404);
    let answer = Answer::of(client.raw(Method::GET, "/metrics")).await.expect(200);
    assert!(answer.header("content-type").starts_with("text/plain; version=0.0.4"));
    for line in [
        "fastpaca_append_latency_ms_count 1",
        "fastpaca_window_latency_ms_count 1",
        "fastpaca_snapshot_token_count_count 1",
        "fastpaca_appended_events_total 3",
        "fastpaca_http_requests_total{status=\"4xx\"} 1",
        "fastpaca_compaction_requests_total 0",
        "fastpaca_raft_pending_flush_messages 0",
        "fastpaca_http_requests_inflight 1",
        "fastpaca_streams 0",
    ] {
        assert!(answer.text.lines().any(|found| found == line), "{line} is not in\n{}", answer.text);
    }
    assert!(!answer.text.contains("\"a\""), "no id is a label");
}

#[tokio::test]
async fn the_rate_is_limited() {
    let server = TestServer::start(|config| {
        config.rate_limit_per_second = 1;
        config.rate_limit_burst = 5;
    });
    let client = Client::new(CONVERSATIONS, server.address);
    let (mut limited, began) = (0, std::time::Instant::now());
    for _ in 0..20 {
        let answer = client.get("absent").await;
        if answer.status == 429 {
            answer.fails(429, "rate_limited");
            assert_eq!(answer.header("retry-after"), "1");
            limited += 1;
        }
    }
    let refilled = began.elapsed().as_secs() + 1;
    assert!((15_u64.saturating_sub(refilled)..=15).contains(&limited), "{limited}");
    for path in ["/health/live", "/metrics", "/v1/cluster"] {
        for _ in 0..20 {
            assert_eq!(client.raw(Method::GET, path).send().await.unwrap().status(), 200, "{path}");
        }
    }
}

/// Calls every operation of the document, and every path with the methods it does not list.
#[tokio::test]
async fn the_document_and_the_routes_agree() {
    let client = Client::shared(CONVERSATIONS);
    let document = Answer::of(client.raw(Method::GET, "/openapi.json")).await.expect(200).json;
    assert!(document["openapi"].as_str().unwrap().starts_with("3."));
    let methods = [Method::GET, Method::PUT, Method::POST, Method::PATCH, Method::DELETE];
    let paths = document["paths"].as_object().unwrap();
    assert!(paths.len() >= 20);
    for (template, item) in paths {
        let path = template.replace("{id}", "documented").replace("{name}", "absent");
        for method in &methods {
            // The server is shared.
            let of_nobody = if path.ends_with("drain") { "?name=absent" } else { "" };
            let answer = Answer::of(client.raw(method.clone(), &format!("{path}{of_nobody}"))).await;
            let is_documented = item.get(method.as_str().to_lowercase()).is_some();
            assert_eq!(answer.status != 405, is_documented, "{method} {path}: {}", answer.text);
            if is_documented {
                let responses = item[method.as_str().to_lowercase()]["responses"].as_object().unwrap();
                let status = answer.status.as_u16().to_string();
                assert!(responses.contains_key(&status), "{method} {path} answers {status}, undocumented");
            }
        }
    }
}

/// Answers have exactly the members their schema names.
#[tokio::test]
async fn answers_have_the_documented_shape() {
    let client = Client::shared(CONVERSATIONS);
    let document = Answer::of(client.raw(Method::GET, "/openapi.json")).await.expect(200).json;
    for words in DIALECTS {
        let client = Client::shared(words);
        let id = fresh("shaped");
        client.create(&id).await;
        client.say(&id, "a", 1).await;
        let one = format!("/v1/{}/{{id}}", words.resources);
        for path in ["", "/tail", &format!("/{}", words.events), &format!("/{}", words.window)] {
            let schema = &document["paths"][format!("{one}{path}")]["get"]["responses"]["200"];
            let schema = schema["content"]["application/json"]["schema"]["$ref"].as_str().unwrap();
            let answer = client.get(&format!("{id}{path}")).await.expect(200).json;
            check_shape(&document, schema, &answer);
        }
        let listing =
            Answer::of(client.raw(Method::GET, &format!("/v1/{}?limit=3", words.resources))).await.json;
        let name = if words == CONTEXTS { "ContextList" } else { "ConversationList" };
        check_shape(&document, &format!("#/components/schemas/{name}"), &listing);
    }
    let cluster = Answer::of(client.raw(Method::GET, "/v1/cluster")).await.expect(200).json;
    check_shape(&document, "#/components/schemas/Cluster", &cluster);
    let error = client.get("absent").await.json;
    check_shape(&document, "#/components/schemas/Error", &error);
}

fn check_shape(document: &Value, reference: &str, value: &Value) {
    let name = reference.rsplit('/').next().unwrap();
    let schema = &document["components"]["schemas"][name];
    let Some(members) = schema["properties"].as_object() else { return };
    let found: BTreeSet<&String> =
        value.as_object().unwrap_or_else(|| panic!("{name}: {value}")).keys().collect();
    let known: BTreeSet<&String> = members.keys().collect();
    let extra: Vec<_> = found.difference(&known).collect();
    assert!(name == "Error" || name == "Part" || extra.is_empty(), "{name} has undocumented {extra:?}");
    for required in schema["required"].as_array().into_iter().flatten() {
        assert!(value.get(required.as_str().unwrap()).is_some(), "{name} lacks {required}: {value}");
    }
    for (member, schema) in members {
        let items = match (schema["items"]["$ref"].as_str(), &value[member]) {
            (Some(reference), Value::Array(items)) => (reference, items.as_slice()),
            _ => match schema["$ref"].as_str() {
                Some(reference) if !value[member].is_null() => {
                    (reference, std::slice::from_ref(&value[member]))
                }
                _ => continue,
            },
        };
        items.1.iter().for_each(|item| check_shape(document, items.0, item));
    }
}

#[tokio::test]
async fn a_node_that_is_about_to_stop_asks_clients_to_leave() {
    let shards = Shards::new(Failure::default(), Duration::from_secs(1));
    let config = Config::for_test("/nonexistent");
    let estimator = Estimator::new(&config.token_estimator).unwrap();
    let app = App::new(shards.clone(), estimator, Arc::new(config), Metrics::new());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/health/live", listener.local_addr().unwrap());
    let stop = CancellationToken::new();
    let serving = tokio::spawn(fastpaca::api::serve(listener, app, stop.clone()));
    let client = reqwest::Client::new();
    let asked_to_close = async || {
        let response = client.get(&url).send().await.unwrap();
        response.headers().get("connection").map(|value| value.to_str().unwrap().to_owned())
    };
    assert_eq!(asked_to_close().await, None);
    shards.leave();
    assert_eq!(asked_to_close().await.as_deref(), Some("close"));
    stop.cancel();
    serving.await.unwrap();
}
