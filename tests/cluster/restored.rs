//! A node whose volume was restored from a copy, while the others went on.

use crate::ONE_AT_A_TIME;
use crate::fault::node_of;
use crate::support::cluster::{Cluster, Shape};
use crate::support::process::START_MAX;
use reqwest::Method;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

const NODES: usize = 3;

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_from_the_past_is_refused_until_it_is_replaced() {
    let _alone = ONE_AT_A_TIME.lock().await;
    let started = tokio::task::block_in_place(|| Cluster::start(Shape::of(NODES)));
    let mut cluster = started.expect("loopback needs nothing special");
    let client = cluster.client(0);
    client.create("kept").await;
    client.append("kept", "before the copy").await.expect(201);

    tokio::task::block_in_place(|| cluster.terminate(2));
    cluster.back_up(2);
    cluster.spawn(2);
    tokio::task::block_in_place(|| cluster.wait_ready());
    cluster.wait_view("told of the second start", |view| starts(view, "node-3") == Some(2)).await;
    client.append("kept", "after the copy").await.expect(201);

    cluster.kill(2);
    cluster.restore(2);
    // As often as it is started.
    for _ in 0..3 {
        cluster.spawn(2);
        tokio::task::block_in_place(|| cluster.wait_listening(2));
        cluster.wait_logged(2, &["peer_unreachable", "outdated_data", "FASTPACA_REPLACE=true"]).await;
        assert_eq!(cluster.client(2).get("/health/ready").await.status, 503);
        cluster.kill(2);
    }
    for node in [0, 1] {
        let words = ["peer_refused", "outdated_data", "node-3", "FASTPACA_REPLACE=true"];
        cluster.wait_logged(node, &words).await;
    }
    client.append("kept", "without it").await.expect(201);
    lag_becomes(&cluster, &[0, 1], |lag| lag > 0.0).await;

    cluster.wipe(2);
    cluster.set(2, "FASTPACA_REPLACE", "true");
    cluster.spawn(2);
    tokio::task::block_in_place(|| cluster.wait_ready());
    // Ready means that another node may be stopped.
    let status = cluster.client(2).get("/v1/cluster").await.expect(200);
    let replaced = node_of(&status, "node-3").unwrap_or_else(|| panic!("no node-3 in {status}"));
    assert_eq!((&replaced["state"], &replaced["groups"]), (&json!("active"), &json!(256)), "{status}");
    let log = cluster.client(2).get("/v1/conversations/kept/events?consistency=local&min_version=3").await;
    assert_eq!(log.expect(200)["events"].as_array().unwrap().len(), 3);
    assert_eq!(cluster.compare_digests().await, Vec::<String>::new());
    lag_becomes(&cluster, &[0, 1, 2], |lag| lag == 0.0).await;
}

/// It was told by nobody, and nobody's log reaches it any more.
#[tokio::test(flavor = "multi_thread")]
async fn one_that_was_removed_while_it_was_away_stops() {
    let _alone = ONE_AT_A_TIME.lock().await;
    let started = tokio::task::block_in_place(|| Cluster::start(Shape::of(NODES + 1)));
    let mut cluster = started.expect("loopback needs nothing special");
    cluster.kill(3);
    let client = cluster.client(0);
    let deadline = Instant::now() + START_MAX;
    loop {
        let path = "/v1/cluster/nodes/node-4";
        let removed = client.request(Method::DELETE, path, None).await.expect("the node runs");
        if removed.status == 204 {
            break;
        }
        assert!(Instant::now() < deadline, "{removed:?}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    cluster.spawn(3);
    cluster.wait_logged(3, &["stopped_by_failure", "this node was removed from the cluster"]).await;
}

/// What it knows of the others is older than all they have on their disks.
#[tokio::test(flavor = "multi_thread")]
async fn one_that_was_away_comes_back_though_the_others_were_restarted() {
    let _alone = ONE_AT_A_TIME.lock().await;
    let started = tokio::task::block_in_place(|| Cluster::start(Shape::of(NODES)));
    let mut cluster = started.expect("loopback needs nothing special");
    cluster.client(0).create("kept").await;
    cluster.kill(2);
    for life in 2..=4 {
        for node in [0, 1] {
            tokio::task::block_in_place(|| {
                cluster.terminate(node);
                cluster.spawn(node);
                cluster.wait_ready_of(|node| node != 2);
            });
            let name = cluster.members[node].name.clone();
            let is_told = |view: &Value| starts(view, &name) == Some(life);
            cluster.wait_view("told of the start", is_told).await;
        }
    }
    cluster.client(0).append("kept", "without it").await.expect(201);
    cluster.spawn(2);
    tokio::task::block_in_place(|| cluster.wait_ready());
    let log = cluster.client(2).get("/v1/conversations/kept/events?consistency=local").await;
    assert_eq!(log.expect(200)["events"].as_array().unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_without_its_journal_does_not_start() {
    let _alone = ONE_AT_A_TIME.lock().await;
    let started = tokio::task::block_in_place(|| Cluster::start(Shape::of(NODES)));
    let mut cluster = started.expect("loopback needs nothing special");
    cluster.kill(2);
    let journal = cluster.members[2].node.data_dir().join("journal");
    let elsewhere = journal.with_extension("elsewhere");
    std::fs::rename(&journal, &elsewhere).unwrap();
    std::fs::create_dir(&journal).unwrap();
    cluster.spawn(2);
    cluster.wait_logged(2, &["start_failed", "there is no journal in", "FASTPACA_REPLACE=true"]).await;
    cluster.kill(2);
    std::fs::remove_dir_all(&journal).unwrap();
    std::fs::rename(&elsewhere, &journal).unwrap();
    cluster.spawn(2);
    tokio::task::block_in_place(|| cluster.wait_ready());
}

/// Waits until the replica furthest behind, of all groups that these nodes lead, is so far behind.
async fn lag_becomes(cluster: &Cluster, nodes: &[usize], wanted: impl Fn(f64) -> bool) {
    let deadline = Instant::now() + START_MAX;
    loop {
        let mut lag = 0.0_f64;
        for node in nodes {
            lag = lag.max(cluster.client(*node).metric("fastpaca_replica_lag_entries").await);
        }
        if wanted(lag) {
            return;
        }
        assert!(Instant::now() < deadline, "the furthest behind lacks {lag} entries");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// How often a node was started, as far as the cluster knows.
fn starts(view: &Value, name: &str) -> Option<u64> {
    node_of(view, name)?["incarnation"].as_u64()
}
