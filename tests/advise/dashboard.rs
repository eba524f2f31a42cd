//! The dashboard of `docker/grafana`, every query of it run by a real Prometheus that scrapes a real cluster under load,
//! with an archive: each must bring figures. And its form, as far as it can be told without a Grafana.

use std::collections::BTreeSet;
use std::fs;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::golden::root;
use super::has;
use super::prometheus::Prometheus;
use super::support::client::{Client, message};
use super::support::cluster::{Cluster, Shape};
use super::support::postgres::Postgres;
use super::support::test_dir;

/// Until every query has brought something, on a busy machine.
const DATA_MAX: Duration = Duration::from_secs(300);

/// What Grafana puts in for its variables.
fn filled_in(query: &str) -> String {
    query.replace("$job", "fastpaca").replace("$instance", ".*").replace("$__rate_interval", "15s")
}

fn panels() -> Vec<Value> {
    let text = fs::read_to_string(root("docker/grafana/dashboards/fastpaca.json")).unwrap();
    let dashboard: Value = serde_json::from_str(&text).unwrap();
    dashboard["panels"].as_array().unwrap().clone()
}

/// A panel's title and a query of it.
fn queries() -> Vec<(String, String)> {
    let of = |panel: &Value| {
        let title = panel["title"].as_str().unwrap().to_owned();
        let targets = panel["targets"].as_array().cloned().unwrap_or_default();
        targets.into_iter().map(move |target| {
            assert_eq!(target["datasource"]["uid"], "${datasource}", "{title}");
            (title.clone(), target["expr"].as_str().unwrap().to_owned())
        })
    };
    panels().iter().flat_map(of).collect()
}

#[test]
fn panels_lie_beside_each_other_and_have_ids_of_their_own() {
    let (mut ids, mut cells) = (BTreeSet::new(), BTreeSet::new());
    for panel in panels() {
        assert!(ids.insert(panel["id"].as_u64().unwrap()), "{panel}");
        let at = |name: &str| panel["gridPos"][name].as_u64().unwrap();
        assert!(at("x") + at("w") <= 24, "{panel}");
        for (x, y) in
            (at("x")..at("x") + at("w")).flat_map(|x| (at("y")..at("y") + at("h")).map(move |y| (x, y)))
        {
            assert!(cells.insert((x, y)), "{} covers another panel", panel["title"]);
        }
    }
    assert!(queries().len() > 50);
}

/// Some of everything that the dashboard counts, again and again.
async fn use_it(client: Client, number: usize) {
    let id = format!("chat-{number}");
    let path = format!("/v1/conversations/{id}");
    client.create(&id).await;
    for round in 0.. {
        let body = json!({"event": message("How are you?"), "idempotency_key": format!("key-{round}")});
        for _ in 0..2 {
            client.post(&format!("{path}/events"), &body).await;
        }
        client.get(&format!("{path}/window")).await;
        client.get(&format!("{path}/events?limit=3")).await;
        client.post(&format!("{path}/compact"), &json!({"replacement": [message("Short.")]})).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Where something is wrong with the answer to a query: why.
async fn trouble(http: &reqwest::Client, prometheus: &Prometheus, query: &str) -> Option<String> {
    let query: String = form_urlencoded::Serializer::new(String::new()).append_pair("query", query).finish();
    let answer = http.get(prometheus.url(&format!("/api/v1/query?{query}"))).send().await.unwrap();
    let answer: Value = serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap();
    assert_eq!(answer["status"], "success", "{answer}");
    let series = answer["data"]["result"].as_array().unwrap();
    let number = |one: &Value| one["value"][1].as_str().unwrap().parse::<f64>().unwrap();
    let known = series.iter().filter(|one| number(one).is_finite()).count();
    (known == 0).then(|| answer["data"].to_string())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_query_of_the_dashboard_brings_data_from_a_cluster_under_load() {
    if !has("prometheus") {
        return;
    }
    let Some(postgres) = Postgres::start() else { return };
    let Some(mut cluster) = Cluster::prepare(Shape::of(3), 0) else { return };
    for node in 0..3 {
        cluster.set(node, "FASTPACA_POSTGRES_URL", &postgres.url());
        cluster.set(node, "FASTPACA_FLUSH_INTERVAL_MS", "200");
    }
    cluster.start_all();
    cluster.wait_ready();
    let dir = test_dir();
    let nodes: Vec<String> = cluster.addresses().all().iter().map(ToString::to_string).collect();
    let config = format!(
        "global: {{scrape_interval: 1s}}\nscrape_configs: [{{job_name: fastpaca, static_configs: [{{targets: {nodes:?}}}]}}]\n"
    );
    let prometheus = Prometheus::start(dir.path(), &config, None);
    let users: Vec<_> =
        (0..6).map(|number| tokio::spawn(use_it(cluster.client(number % 3), number))).collect();

    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let deadline = Instant::now() + DATA_MAX;
    for (title, query) in queries() {
        while let Some(why) = trouble(&http, &prometheus, &filled_in(&query)).await {
            assert!(Instant::now() < deadline, "{title}: no data for {query}: {why}");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
    users.into_iter().for_each(|user| user.abort());
}
