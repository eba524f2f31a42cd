//! One link of many is cut: every group goes on, and so do changes of the cluster.

use crate::ONE_AT_A_TIME;
use crate::fault::groups_of;
use crate::support::cluster::{Cluster, Shape};
use crate::support::process::START_MAX;
use reqwest::Method;
use serde_json::Value;
use std::time::{Duration, Instant};

const NODES: usize = 4;
const GROUPS: u64 = 256;
/// Groups in motion at once.
const MOVES_MAX: u64 = 8;
/// Leads the state of the cluster.
const META_GROUP: u16 = 256;

/// Who leads the state lacks the reports of the node it cannot reach, and hands the lead to one that reaches all.
#[tokio::test(flavor = "multi_thread")]
async fn the_cluster_is_planned_by_a_node_that_reaches_all() {
    let _alone = ONE_AT_A_TIME.lock().await;
    let shape = Shape { hosts: true, ..Shape::of(NODES) };
    let Some(cluster) = tokio::task::block_in_place(|| Cluster::start(shape)) else { return };
    let former = leader(&cluster).await;
    let unheard = (former + 1) % NODES;
    let network = cluster.network.as_ref().unwrap();
    network.cut(former, unheard);
    network.cut(unheard, former);
    let deadline = Instant::now() + START_MAX;
    let successor = loop {
        match leader(&cluster).await {
            node if node != former => break node,
            _ => assert!(Instant::now() < deadline, "{} leads the state on", cluster.members[former].name),
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    assert_ne!(successor, unheard, "it would reach no more than the one before");

    let drained = (0..NODES).find(|node| ![former, unheard].contains(node)).unwrap();
    let name = cluster.members[drained].name.clone();
    let asked = cluster.client(drained).request(Method::POST, "/v1/cluster/drain", None).await;
    asked.expect("the node runs").expect(200);
    // Not all: some are led at one end of the link, and could only move to the other.
    let share = GROUPS * 3 / NODES as u64;
    let moves = |view: &Value| groups_of(view, &name).is_some_and(|left| left < share - MOVES_MAX);
    cluster.wait_view("moving", moves).await;
    assert_eq!(leader(&cluster).await, successor, "nothing else has changed since");
    cluster.network.as_ref().unwrap().heal();
    cluster.wait_view("drained", |view| groups_of(view, &name) == Some(0)).await;
}

async fn leader(cluster: &Cluster) -> usize {
    let deadline = Instant::now() + START_MAX;
    loop {
        if let Some(leader) = cluster.leader_of(META_GROUP).await {
            return leader;
        }
        assert!(Instant::now() < deadline, "nobody leads the state");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
