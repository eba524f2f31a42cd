//! One cluster comes out, whatever the order of starts; and who does not belong is refused.

use crate::ONE_AT_A_TIME;
use crate::support::cluster::{Cluster, Shape};
use crate::support::process::StartError;
use serde_json::Value;

const NODES: usize = 3;

/// Three nodes of which none is started. `None` when there can be no cluster.
fn prepared(hosts: bool) -> Option<Cluster> {
    tokio::task::block_in_place(|| Cluster::prepare(Shape { hosts, ..Shape::of(NODES) }, 0))
}

/// Every node is ready, and all of them see the same nodes in the same cluster.
async fn is_one_cluster(cluster: &mut Cluster) {
    tokio::task::block_in_place(|| cluster.wait_ready());
    cluster.wait_view("complete", |view| names(view).len() == NODES).await;
    let mut seen = Vec::new();
    for node in 0..NODES {
        let view = cluster.client(node).get("/v1/cluster").await.expect(200);
        assert!(view["cluster_id"].is_string(), "node {} does not tell its cluster: {view}", node + 1);
        seen.push((view["cluster_id"].clone(), names(&view)));
    }
    assert!(seen.iter().all(|view| *view == seen[0]), "more than one cluster: {seen:?}");
}

fn names(view: &Value) -> Vec<String> {
    let nodes = view["nodes"].as_array().into_iter().flatten();
    let mut names: Vec<String> = nodes.filter_map(|node| Some(node["name"].as_str()?.to_owned())).collect();
    names.sort();
    names
}

#[tokio::test(flavor = "multi_thread")]
async fn any_order_of_starts() {
    let _alone = ONE_AT_A_TIME.lock().await;
    for order in [[0, 1, 2], [2, 0, 1], [1, 2, 0]] {
        let Some(mut cluster) = prepared(false) else { return };
        for node in order {
            cluster.spawn(node);
            // The next one starts when this one is there, as far as it can be alone.
            tokio::task::block_in_place(|| cluster.wait_listening(node));
        }
        is_one_cluster(&mut cluster).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn starts_again_and_again_before_there_is_a_cluster() {
    let _alone = ONE_AT_A_TIME.lock().await;
    let Some(mut cluster) = prepared(false) else { return };
    for round in 0..6 {
        cluster.start_all();
        tokio::task::block_in_place(|| cluster.wait_listening(round % NODES));
        cluster.kill(round % NODES);
        if round % 2 == 1 {
            cluster.kill((round + 1) % NODES);
        }
    }
    cluster.start_all();
    is_one_cluster(&mut cluster).await;
}

/// Nothing is founded without the third, however long it takes.
#[tokio::test(flavor = "multi_thread")]
async fn a_seed_is_down_at_first() {
    let _alone = ONE_AT_A_TIME.lock().await;
    let Some(mut cluster) = prepared(false) else { return };
    for node in [0, 1] {
        cluster.spawn(node);
        tokio::task::block_in_place(|| cluster.wait_listening(node));
    }
    for node in [0, 1] {
        cluster.wait_logged(node, &["founding_waits", "not every seed answers"]).await;
        assert_eq!(cluster.client(node).get("/health/ready").await.status, 503, "two nodes do not found");
    }
    cluster.spawn(2);
    is_one_cluster(&mut cluster).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn hosts_that_know_one_name_only() {
    let _alone = ONE_AT_A_TIME.lock().await;
    let Some(mut cluster) = prepared(true) else { return };
    cluster.start_all();
    is_one_cluster(&mut cluster).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wiped_node_is_refused_unless_it_replaces_itself() {
    let _alone = ONE_AT_A_TIME.lock().await;
    let Some(mut cluster) = prepared(false) else { return };
    cluster.start_all();
    is_one_cluster(&mut cluster).await;
    let client = cluster.client(0);
    client.create("kept").await;
    client.append("kept", "before").await.expect(201);

    cluster.kill(2);
    cluster.wipe(2);
    match tokio::task::block_in_place(|| cluster.start_refused(2)) {
        StartError::Exited(status, log) => {
            assert!(!status.success() && log.contains("FASTPACA_REPLACE"), "{status}: {log}");
        }
        StartError::TimedOut(_, log) => assert!(log.contains("FASTPACA_REPLACE"), "{log}"),
        StartError::Io(error) => panic!("{error}"),
    }
    cluster.set(2, "FASTPACA_REPLACE", "true");
    cluster.spawn(2);
    is_one_cluster(&mut cluster).await;
    let log = cluster.client(2).get("/v1/conversations/kept/events?consistency=local&min_version=1").await;
    assert_eq!(log.expect(200)["events"].as_array().unwrap().len(), 1);
}
