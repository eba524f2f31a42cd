//! Nodes whose settings differ, as while a setting is changed on one after the other.

use crate::ONE_AT_A_TIME;
use crate::run::group_of;
use crate::support::client::message;
use crate::support::cluster::{Cluster, Shape};
use serde_json::{Value, json};

/// More than the others take of each other with the small settings of tests, in messages that a node takes.
const MESSAGES: usize = 45;
const MESSAGE_BYTES: usize = 200 << 10;

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_some_node_does_not_take_stops_no_group() {
    let _alone = ONE_AT_A_TIME.lock().await;
    let prepared = tokio::task::block_in_place(|| Cluster::prepare(Shape::of(3), 0));
    let mut cluster = prepared.expect("loopback needs nothing special");
    cluster.set(0, "FASTPACA_BATCH_BODY_MAX_BYTES", "16MiB");
    cluster.set(0, "FASTPACA_SEGMENT_BYTES", "64MiB");
    cluster.start_all();
    tokio::task::block_in_place(|| cluster.wait_ready());
    let mut id = None;
    for number in 0.. {
        let candidate = format!("batches-{number}");
        if cluster.leader_of(group_of(&candidate)).await == Some(0) {
            id = Some(candidate);
            break;
        }
    }
    let (id, client) = (id.expect("it leads a third of all groups"), cluster.client(0));
    client.create(&id).await;
    let events: Vec<Value> = (0..MESSAGES).map(|_| message(&"x".repeat(MESSAGE_BYTES))).collect();
    let refused = client.post(&format!("/v1/conversations/{id}/events"), &json!({"events": events})).await;
    assert_eq!((refused.status, refused.error()), (503, "unavailable"), "{}", refused.body);
    assert!(refused.body.to_string().contains("FASTPACA_BATCH_BODY_MAX_BYTES"), "{}", refused.body);
    client.append(&id, "the next one").await.expect(201);
}
