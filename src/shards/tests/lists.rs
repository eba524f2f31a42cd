//! Listing: every conversation once, in order, whoever hosts it.

use super::fake::{CallFault, Cluster, id};
use crate::shards::links::Method;
use crate::shards::{Consistency, ListQuery, ReadError, Shards};

async fn all(shards: &Shards, query: &ListQuery) -> Vec<String> {
    let (mut query, mut ids) = (query.clone(), Vec::new());
    loop {
        let page = shards.list(query.clone()).await.unwrap();
        assert!(page.conversations.len() <= query.limit);
        ids.extend(page.conversations.iter().map(|(id, _)| id.as_str().to_owned()));
        match page.next_cursor {
            Some(cursor) => query.cursor = Some(cursor),
            None => return ids,
        }
    }
}

/// Four nodes, each group on two of them.
async fn filled() -> (Cluster, Vec<String>) {
    let hosts = |group: u16| {
        let first = u128::from(group % 4);
        vec![first + 1, (first + 1) % 4 + 1]
    };
    let cluster = Cluster::new(4, hosts);
    let mut names: Vec<String> = (0..300).map(|n| format!("chat-{n}")).collect();
    for name in &names {
        cluster.create(&id(name)).await;
    }
    names.sort();
    (cluster, names)
}

#[tokio::test(start_paused = true)]
async fn every_node_lists_everything() {
    let (cluster, names) = filled().await;
    for limit in [7, 100, 1_000] {
        for node in [1, 3] {
            let query = ListQuery { limit, ..ListQuery::default() };
            assert_eq!(all(cluster.node(node), &query).await, names, "node {node}, limit {limit}");
        }
    }
    let some = ListQuery { limit: 5, prefix: Some("chat-1".into()), ..ListQuery::default() };
    let expected: Vec<&String> = names.iter().filter(|name| name.starts_with("chat-1")).collect();
    assert_eq!(all(cluster.node(2), &some).await.iter().collect::<Vec<_>>(), expected);
}

#[tokio::test(start_paused = true)]
async fn a_listing_is_fresh() {
    let (cluster, names) = filled().await;
    let query = ListQuery { limit: 1_000, ..ListQuery::default() };
    let before = cluster.net.calls(Method::ReadIndex);
    assert_eq!(all(cluster.node(1), &query).await.len(), names.len());
    assert!(cluster.net.calls(Method::ReadIndex) - before <= 4, "one for each leader's node");
    cluster.create(&id("chat-new")).await;
    for node in 1..=4 {
        assert!(all(cluster.node(node), &query).await.contains(&"chat-new".to_owned()));
    }
    let local = ListQuery { consistency: Consistency::Local, ..query };
    assert!(all(cluster.node(1), &local).await.len() >= names.len());
}

#[tokio::test(start_paused = true)]
async fn other_hosts_stand_in() {
    let (cluster, names) = filled().await;
    for fault in [CallFault::Lost, CallFault::NotSent, CallFault::Refused] {
        cluster.net.faults.lock().push_back((Method::List, fault));
    }
    let query = ListQuery { limit: 1_000, ..ListQuery::default() };
    assert_eq!(all(cluster.node(1), &query).await, names);
    cluster.net.down.write().extend([2, 3, 4]);
    let cut_off = cluster.node(1).list(query).await;
    assert!(matches!(cut_off, Err(ReadError::Unavailable(_))), "{cut_off:?}");
}
