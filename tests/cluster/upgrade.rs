//! Versions that have a protocol in common, and versions that have none.

use crate::ONE_AT_A_TIME;
use crate::fault::{PROTOCOLS, protocol_of};
use crate::support::cluster::{Cluster, Shape};

const NODES: usize = 3;

#[tokio::test(flavor = "multi_thread")]
async fn links_speak_the_newest_version_that_both_ends_know() {
    let _alone = ONE_AT_A_TIME.lock().await;
    let mut cluster = prepared();
    for (node, versions) in ["1-1", "1-2", "1-3"].into_iter().enumerate() {
        cluster.set(node, PROTOCOLS, versions);
    }
    cluster.start_all();
    tokio::task::block_in_place(|| cluster.wait_ready());
    for (node, other, version) in [(0, 1, 1), (1, 0, 1), (0, 2, 1), (2, 0, 1), (1, 2, 2), (2, 1, 2)] {
        let (other, version) = (format!("\"node-{}\"", other + 1), format!("\"protocol\":{version}"));
        cluster.wait_logged(node, &["peer_link_up", &other, &version]).await;
    }
    for (name, versions) in [("node-1", (1, 1)), ("node-2", (1, 2)), ("node-3", (1, 3))] {
        cluster.wait_view("known", |view| protocol_of(view, name) == Some(versions)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_version_too_new_is_refused_and_comes_back_by_way_of_one_between() {
    let _alone = ONE_AT_A_TIME.lock().await;
    let mut cluster = prepared();
    cluster.start_all();
    tokio::task::block_in_place(|| cluster.wait_ready());
    let client = cluster.client(0);
    client.create("kept").await;

    tokio::task::block_in_place(|| cluster.terminate(2));
    cluster.set(2, PROTOCOLS, "3-4");
    cluster.spawn(2);
    tokio::task::block_in_place(|| cluster.wait_listening(2));
    let reason = ["no_common_protocol", "versions 1 to 2", "versions 3 to 4", "node-1", "node-3"];
    for node in [0, 2] {
        cluster.wait_logged(node, &reason).await;
    }
    assert_eq!(cluster.client(2).get("/health/ready").await.status, 503);
    client.append("kept", "without it").await.expect(201);

    tokio::task::block_in_place(|| cluster.terminate(2));
    for (node, versions) in [(0, "2-3"), (1, "2-3"), (2, "2-3")] {
        if node != 2 {
            tokio::task::block_in_place(|| cluster.terminate(node));
        }
        cluster.set(node, PROTOCOLS, versions);
        cluster.spawn(node);
        tokio::task::block_in_place(|| cluster.wait_ready());
    }
    let log = cluster.client(2).get("/v1/conversations/kept/events").await;
    assert_eq!(log.expect(200)["events"].as_array().unwrap().len(), 1);
}

fn prepared() -> Cluster {
    let cluster = tokio::task::block_in_place(|| Cluster::prepare(Shape::of(NODES), 0));
    cluster.expect("loopback needs nothing special")
}
