//! Reads: fresh wherever they are asked for, and the same wherever they are answered.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::{Instant, timeout};

use super::fake::{CallFault, Cluster, FRESH, LOCAL, id};
use crate::conversation::{Action, MAX_METADATA_BYTES, Put, Status, WindowQuery};
use crate::shards::links::Method;
use crate::shards::placement::{Placement, group_of};
use crate::shards::read::MIN_VERSION_WAIT;
use crate::shards::remote::wire::{self, Question, ReadCall};
use crate::shards::{EventsQuery, ReadError, ReadOptions, Readiness};

fn page() -> EventsQuery {
    EventsQuery { limit: 100, limit_bytes: 1 << 20, ..EventsQuery::default() }
}

#[tokio::test(start_paused = true)]
async fn a_follower_answers_as_fresh_as_asked_for() {
    let (cluster, id) = (Cluster::of_three(), id("chat"));
    cluster.create(&id).await;
    cluster.ready(2).await;
    cluster.say(1, &id, "hello").await.unwrap();
    assert_eq!(cluster.node(2).version(&id, LOCAL).await.unwrap(), Some(0));
    assert_eq!(cluster.node(2).version(&id, FRESH).await.unwrap(), Some(1));
    assert_eq!(cluster.net.calls(Method::Read), 0, "what is hosted here is read here");
}

#[tokio::test(start_paused = true)]
async fn reads_are_tried_again_whatever_happened() {
    for (node, method) in [(2, Method::ReadIndex), (4, Method::Read)] {
        let (cluster, id) = (Cluster::new(4, |_| vec![1, 2, 3]), id("chat"));
        cluster.create(&id).await;
        cluster.ready(2).await;
        cluster.say(1, &id, "hello").await.unwrap();
        for fault in [CallFault::Lost, CallFault::NotSent, CallFault::Refused] {
            cluster.net.faults.lock().push_back((method, fault));
        }
        assert_eq!(cluster.node(node).version(&id, FRESH).await.unwrap(), Some(1));
        assert!(cluster.net.faults.lock().is_empty());
    }
}

#[tokio::test(start_paused = true)]
async fn without_a_leader_only_local_reads_are_answered() {
    let (cluster, id) = (Cluster::of_three(), id("chat"));
    cluster.create(&id).await;
    cluster.ready(2).await;
    cluster.group(&id).is_led_by(None);
    let fresh = cluster.node(2).version(&id, FRESH).await;
    assert!(matches!(fresh, Err(ReadError::Unavailable(_))), "{fresh:?}");
    cluster.net.down.write().extend([1, 3]);
    assert_eq!(cluster.node(2).version(&id, LOCAL).await.unwrap(), Some(0));
}

#[tokio::test(start_paused = true)]
async fn concurrent_reads_share_their_read_indexes() {
    let (cluster, id) = (Cluster::of_three(), id("chat"));
    cluster.create(&id).await;
    cluster.ready(2).await;
    let before = cluster.net.calls(Method::ReadIndex);
    cluster.net.held.send_replace(Some(Method::ReadIndex));
    let reads = join_all((0..100).map(|_| cluster.node(2).version(&id, FRESH)));
    let release = async {
        // One call is on its way, held up; the write comes after it and before the others' call.
        while cluster.net.calls(Method::ReadIndex) == before {
            tokio::task::yield_now().await;
        }
        cluster.say(1, &id, "hello").await.unwrap();
        cluster.net.held.send_replace(None);
    };
    let (versions, ()) = tokio::join!(reads, release);
    assert!(versions.into_iter().all(|version| matches!(version, Ok(Some(1)))));
    assert_eq!(cluster.net.calls(Method::ReadIndex) - before, 2);
}

#[tokio::test(start_paused = true)]
async fn a_node_that_hosts_nothing_gives_the_same_answers() {
    let (cluster, id) = (Cluster::new(4, |_| vec![1, 2, 3]), id("chat"));
    cluster.create(&id).await;
    for text in ["one", "two", "three"] {
        cluster.say(4, &id, text).await.unwrap();
    }
    let (near, far) = (cluster.node(1), cluster.node(4));
    assert_eq!(
        far.describe(&id, FRESH).await.unwrap().unwrap(),
        near.describe(&id, FRESH).await.unwrap().unwrap()
    );
    let text = |value: &dyn std::fmt::Debug| format!("{value:?}");
    let query = WindowQuery { explain: true, budget_tokens: Some(15), at_version: None };
    let windows = (far.window(&id, query, FRESH).await, near.window(&id, query, FRESH).await);
    assert_eq!(text(&windows.0.unwrap().unwrap()), text(&windows.1.unwrap().unwrap()));
    let pages = (far.events(&id, page(), FRESH).await, near.events(&id, page(), FRESH).await);
    assert_eq!(text(&pages.0.unwrap().unwrap()), text(&pages.1.unwrap().unwrap()));
    let changes = (far.changes(&id, 1, 1 << 20).await, near.changes(&id, 1, 1 << 20).await);
    assert_eq!(text(&changes.0.unwrap().unwrap()), text(&changes.1.unwrap().unwrap()));
    assert_eq!(far.usage(&id, 2).await.unwrap(), near.usage(&id, 2).await.unwrap());
}

#[tokio::test(start_paused = true)]
async fn a_window_that_is_too_large_is_refused_alike_everywhere() {
    let (cluster, id) = (Cluster::new(4, |_| vec![1, 2, 3]), id("chat"));
    cluster.create(&id).await;
    for _ in 0..4 {
        cluster.say(1, &id, &"x".repeat(1_000)).await.unwrap();
    }
    (1..=4).for_each(|node| cluster.node(node).bound_windows(4_000));
    for node in [1, 4] {
        let calls = cluster.net.calls(Method::Read);
        let window = cluster.node(node).window(&id, WindowQuery::default(), FRESH).await;
        assert!(matches!(window, Err(ReadError::WindowTooLarge { bytes_max: 4_000 })), "{window:?}");
        assert!(cluster.net.calls(Method::Read) - calls <= 1, "it is not asked for again");
        // A message has seven tokens.
        let query = WindowQuery { budget_tokens: Some(21), ..WindowQuery::default() };
        let window = cluster.node(node).window(&id, query, FRESH).await.unwrap().unwrap();
        assert_eq!(window.messages.len(), 3);
    }
}

#[tokio::test(start_paused = true)]
async fn what_does_not_exist_does_not_exist_elsewhere_either() {
    let cluster = Cluster::new(4, |_| vec![1, 2, 3]);
    assert_eq!(cluster.node(4).describe(&id("nobody"), FRESH).await.unwrap(), None);
    let chat = id("chat");
    cluster.create(&chat).await;
    let query = WindowQuery { at_version: Some(9), ..WindowQuery::default() };
    let window = cluster.node(4).window(&chat, query, FRESH).await;
    assert!(matches!(window, Err(ReadError::VersionInFuture { requested: 9, current: 0 })), "{window:?}");
    assert_eq!(cluster.net.calls(Method::Read), 2);
    let behind = ReadOptions { min_version: Some(9), ..LOCAL };
    let asked = Instant::now();
    let version = cluster.node(4).version(&chat, behind).await;
    assert!(matches!(version, Err(ReadError::Unavailable(_))), "{version:?}");
    assert!(asked.elapsed() < MIN_VERSION_WAIT + Duration::from_millis(500), "{:?}", asked.elapsed());
    assert!(cluster.net.calls(Method::Read) <= 2 + 6, "each host has a second");
}

/// A host that is back after a while, or merely slow, is no reason to fail: the leader has what was acknowledged.
#[tokio::test(start_paused = true)]
async fn what_a_host_lacks_another_one_has() {
    let (cluster, id) = (Cluster::new(4, |_| vec![1, 2, 3]), id("chat"));
    // The preferred host has applied nothing of it.
    cluster.group(&id).is_led_by(2);
    cluster.create(&id).await;
    cluster.say(2, &id, "hello").await.unwrap();
    let far = cluster.node(4);
    let at_1 = ReadOptions { min_version: Some(1), ..LOCAL };
    let asked = Instant::now();
    let changes = far.changes(&id, 0, 1 << 20).await.unwrap().unwrap();
    assert_eq!((changes.changes.len(), changes.version), (1, 1));
    assert!(far.usage(&id, 1).await.unwrap().is_some());
    let events = far.events(&id, page(), at_1).await.unwrap().unwrap();
    assert_eq!(events.events.len(), 1);
    assert!(
        asked.elapsed() < Duration::from_secs(2),
        "{:?}: what was found out is remembered",
        asked.elapsed()
    );
    // Nor is the lagging host asked once it is known who leads.
    far.describe(&id, FRESH).await.unwrap().unwrap();
    let calls = cluster.net.calls(Method::Read);
    far.changes(&id, 1, 1 << 20).await.unwrap().unwrap();
    assert_eq!(cluster.net.calls(Method::Read) - calls, 1);
}

#[tokio::test(start_paused = true)]
async fn a_version_of_what_does_not_exist_is_not_waited_for() {
    let (cluster, chat) = (Cluster::new(4, |_| vec![1, 2, 3]), id("chat"));
    cluster.create(&chat).await;
    cluster.ready(2).await;
    let behind = ReadOptions { min_version: Some(1), ..FRESH };
    for node in [1, 2, 4] {
        let asked = Instant::now();
        assert_eq!(cluster.node(node).version(&id("nobody"), behind).await.unwrap(), None, "on node {node}");
        assert!(asked.elapsed() < Duration::from_secs(1), "{:?} on node {node}", asked.elapsed());
        let version = cluster.node(node).version(&chat, behind).await;
        assert!(matches!(version, Err(ReadError::Unavailable(_))), "{version:?} on node {node}");
    }
}

/// An empty replica that is being filled must not claim that a conversation does not exist.
#[tokio::test(start_paused = true)]
async fn a_replica_that_is_being_filled_is_not_read() {
    let (cluster, id) = (Cluster::new(4, |_| vec![1, 2, 3]), id("chat"));
    cluster.create(&id).await;
    cluster.say(1, &id, "hello").await.unwrap();
    let group = group_of(&id);
    cluster.placement.send_replace(Placement::new([(group, vec![1, 2, 4])]).into());
    let far = cluster.node(4);
    cluster.host(4, group);
    *cluster.replica(4, &id).belief.write() = Some(None);
    assert_eq!(far.version(&id, LOCAL).await.unwrap(), Some(1), "asked elsewhere");
    *cluster.replica(4, &id).belief.write() = None;
    cluster.ready(4).await;
    cluster.net.down.write().extend([1, 2, 3]);
    assert_eq!(far.version(&id, LOCAL).await.unwrap(), Some(1), "answered here");
}

#[tokio::test(start_paused = true)]
async fn a_node_is_ready_once_its_replicas_are() {
    let cluster = Cluster::new(4, |_| vec![1, 2, 3]);
    assert!(matches!(cluster.node(4).readiness(), Readiness::Starting(_)), "hosts nothing");
    assert!(matches!(cluster.node(2).readiness(), Readiness::Starting(_)), "has not caught up");
    cluster.ready(2).await;
    cluster.node(2).set_moving_out(true);
    assert_eq!(cluster.node(2).readiness(), Readiness::Draining);
    cluster.create(&id("chat")).await;
    cluster.say(2, &id("chat"), "served on").await.unwrap();
    cluster.node(2).set_moving_out(false);
    assert_eq!(cluster.node(2).readiness(), Readiness::Ready);
    cluster.group(&id("chat")).is_led_by(None);
    assert!(matches!(cluster.node(2).readiness(), Readiness::Degraded(_)));
    cluster.node(2).refuse_writes(true);
    assert_eq!(cluster.node(2).readiness(), Readiness::Draining);
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_most_cannot_hear_is_not_ready() {
    let (cluster, id) = (Cluster::new(3, |_| vec![1, 2, 3]), id("chat"));
    cluster.create(&id).await;
    cluster.ready(1).await;
    cluster.group(&id).is_led_by(1);
    cluster.replica(1, &id).cut_off.store(true, Ordering::Relaxed);
    assert!(matches!(cluster.node(1).readiness(), Readiness::Degraded(_)));
    cluster.replica(1, &id).cut_off.store(false, Ordering::Relaxed);
    assert_eq!(cluster.node(1).readiness(), Readiness::Ready);
}

/// Otherwise the next node of a rolling restart would take the majority of what is yet to be brought here.
#[tokio::test(start_paused = true)]
async fn a_node_that_is_taken_back_in_is_ready_once_it_has_its_share() {
    let cluster = Cluster::new(3, |_| vec![1, 2, 3]);
    let lacks = Arc::new(AtomicBool::new(false));
    cluster.node(2).on_share({
        let lacks = lacks.clone();
        move || lacks.load(Ordering::Relaxed).then(|| "a group".to_owned())
    });
    cluster.ready(2).await;
    lacks.store(true, Ordering::Relaxed);
    assert_eq!(cluster.node(2).readiness(), Readiness::Ready, "it had it once");
    cluster.node(2).set_moving_out(true);
    cluster.node(2).set_moving_out(false);
    assert!(matches!(cluster.node(2).readiness(), Readiness::Starting(_)));
    lacks.store(false, Ordering::Relaxed);
    assert_eq!(cluster.node(2).readiness(), Readiness::Ready);
}

#[tokio::test(start_paused = true)]
async fn descriptions_travel_whole() {
    let (cluster, id) = (Cluster::new(4, |_| vec![1, 2, 3]), id("chat"));
    cluster.create(&id).await;
    let description = cluster.node(4).describe(&id, FRESH).await.unwrap().unwrap();
    assert_eq!((description.status, description.version), (Status::Active, 0));
    assert_eq!(&*description.metadata, b"{}");
}

/// An answer that its link has not taken yet is in memory as well.
#[tokio::test(start_paused = true)]
async fn answers_to_other_nodes_have_their_places_until_they_are_sent() {
    let (cluster, id) = (Cluster::of_three(), id("chat"));
    let metadata = format!(r#"{{"x":"{}"}}"#, "y".repeat(MAX_METADATA_BYTES - 8));
    let put = Action::Put(Put { metadata: Some(metadata.into()), ..Put::default() });
    cluster.node(1).propose(&id, put).await.unwrap();
    let question = Question::Describe;
    let id = id.as_str().to_owned();
    let call = ReadCall { id, linearizable: false, min_version: None, wait_ms: None, question };
    let read = || cluster.node(1).serve(Method::Read as u16, wire::encode(&call));
    let mut unsent = join_all((0..64).map(|_| read())).await;
    assert!(unsent.iter().flatten().all(|answer| answer.len() > 64 << 10), "more than a small one");
    assert!(timeout(Duration::from_secs(1), read()).await.is_err(), "64 are on their way");
    unsent.pop();
    assert!(timeout(Duration::from_secs(1), read()).await.is_ok());
}
