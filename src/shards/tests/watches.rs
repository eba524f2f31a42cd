//! Watching: no change is slept through, wherever the group is hosted and whatever becomes of the links.

use std::time::Duration;

use tokio::time::timeout;

use super::fake::{CallFault, Cluster, FRESH, id};
use crate::conversation::ConversationId;
use crate::shards::links::Method;
use crate::shards::placement::{Placement, group_of};
use crate::shards::{Change, Shards};

/// Reads on as a stream does, until it has seen a version.
async fn follow(shards: &Shards, id: &ConversationId, last: u64) -> Vec<u64> {
    let mut watcher = shards.watch(id).unwrap();
    let (mut position, mut seen) = (0, Vec::new());
    while position < last {
        let page = shards.changes(id, position, 1 << 20).await.unwrap().unwrap();
        if page.changes.is_empty() {
            watcher.beyond(position).await;
        }
        for change in page.changes {
            let Change::Event { version, .. } = change else { panic!("{change:?}") };
            seen.push(version);
            position = version;
        }
    }
    seen
}

#[tokio::test(start_paused = true)]
async fn every_node_sees_every_change_once() {
    let (cluster, id) = (Cluster::new(4, |_| vec![1, 2, 3]), id("chat"));
    cluster.create(&id).await;
    cluster.node(1).version(&id, FRESH).await.unwrap();
    let write = async {
        for n in 0..50 {
            cluster.say(4, &id, "hello").await.unwrap();
            if n % 7 == 0 {
                cluster.net.faults.lock().push_back((Method::WaitBeyond, CallFault::Lost));
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    };
    let all: Vec<u64> = (1..=50).collect();
    let (far, near, ()) =
        tokio::join!(follow(cluster.node(4), &id, 50), follow(cluster.node(1), &id, 50), write);
    assert_eq!((far, near), (all.clone(), all));
}

#[tokio::test(start_paused = true)]
async fn a_host_that_goes_away_is_replaced() {
    let (cluster, id) = (Cluster::new(4, |_| vec![1, 2, 3]), id("chat"));
    cluster.create(&id).await;
    cluster.say(1, &id, "one").await.unwrap();
    let write = async {
        tokio::time::sleep(Duration::from_secs(30)).await;
        cluster.net.down.write().insert(1);
        cluster.replica(2, &id).apply_all();
        cluster.group(&id).is_led_by(2);
        cluster.ready(2).await;
        cluster.say(2, &id, "two").await.unwrap();
    };
    let (seen, ()) = tokio::join!(follow(cluster.node(4), &id, 2), write);
    assert_eq!(seen, [1, 2]);
}

/// Neither a host that lags behind what is known already, nor one that is cut off from the leader.
#[tokio::test(start_paused = true)]
async fn no_single_host_keeps_a_watcher_in_the_dark() {
    for applied_by_1 in [0, 1] {
        let (cluster, id) = (Cluster::new(4, |_| vec![1, 2, 3]), id("chat"));
        cluster.group(&id).is_led_by(2);
        cluster.create(&id).await;
        if applied_by_1 == 1 {
            cluster.replica(1, &id).apply_all();
        }
        let write = async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            cluster.say(2, &id, "one").await.unwrap();
            cluster.say(2, &id, "two").await.unwrap();
        };
        let follow = timeout(Duration::from_secs(25), follow(cluster.node(4), &id, 2));
        let (seen, ()) = tokio::join!(follow, write);
        assert_eq!(seen.unwrap(), [1, 2], "{applied_by_1}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_watcher_follows_its_group() {
    let (cluster, id) = (Cluster::new(2, |_| vec![1, 2]), id("chat"));
    cluster.create(&id).await;
    cluster.ready(2).await;
    let group = group_of(&id);
    let moved = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        cluster.placement.send_replace(Placement::new([(group, vec![1])]).into());
        cluster.local(2).replicas.write().remove(&group);
        tokio::time::sleep(Duration::from_secs(1)).await;
        cluster.say(2, &id, "from afar").await.unwrap();
    };
    let (seen, ()) = tokio::join!(follow(cluster.node(2), &id, 1), moved);
    assert_eq!(seen, [1]);
}

#[tokio::test(start_paused = true)]
async fn without_news_a_watcher_sleeps() {
    let (cluster, id) = (Cluster::new(4, |_| vec![1, 2, 3]), id("chat"));
    cluster.create(&id).await;
    let mut watcher = cluster.node(4).watch(&id).unwrap();
    assert!(timeout(Duration::from_secs(60), watcher.beyond(0)).await.is_err());
    assert!(cluster.net.calls(Method::WaitBeyond) <= 7);
}
