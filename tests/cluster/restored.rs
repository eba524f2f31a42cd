//! A node whose volume was restored from a copy, while the others went on.

use crate::ONE_AT_A_TIME;
use crate::fault::node_of;
use crate::support::cluster::{Cluster, Shape};
use crate::support::process::START_MAX;
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
    cluster.wait_view("told of the second start", |view| incarnation(view) == Some(2)).await;
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

/// How often the last node was started, as far as the cluster knows.
fn incarnation(view: &Value) -> Option<u64> {
    node_of(view, "node-3")?["incarnation"].as_u64()
}
