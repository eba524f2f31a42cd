//! Writes: forwarded once, tried again only without effect, never applied twice.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::fake::{CallFault, Cluster, FRESH, WriteFault, id, put, say};
use crate::conversation::{Command, FrameLocation, Reply};
use crate::shards::links::Method;
use crate::shards::placement::group_of;
use crate::shards::remote::codec::{Outcome, forward_write};
use crate::shards::{WriteError, now_ms};

fn is_appended(reply: &Result<Reply, WriteError>) -> bool {
    matches!(reply, Ok(Reply::Appended { .. }))
}

#[tokio::test(start_paused = true)]
async fn a_follower_sends_writes_to_the_leader() {
    let (cluster, id) = (Cluster::of_three(), id("chat"));
    assert!(matches!(cluster.node(2).propose(&id, put()).await, Ok(Reply::Settled { created: true, .. })));
    assert!(is_appended(&cluster.say(3, &id, "hello").await));
    assert_eq!(cluster.group(&id).commands(), 2);
    assert_eq!(cluster.metrics(2).forwarded_requests_total.get(), 1);
    assert_eq!(cluster.metrics(1).served_for_peers_total.get(), 2);
    assert_eq!(cluster.metrics(2).routing_retries_total.get(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_node_that_hosts_nothing_finds_the_leader() {
    let cluster = Cluster::new(4, |_| vec![1, 2, 3]);
    let id = id("chat");
    cluster.group(&id).is_led_by(3);
    cluster.node(4).propose(&id, put()).await.unwrap();
    let calls = cluster.net.calls(Method::ForwardWrite);
    assert_eq!(calls, 2, "a host that knew, and the leader");
    cluster.node(4).propose(&id, say("again")).await.unwrap();
    assert_eq!(cluster.net.calls(Method::ForwardWrite), calls + 1, "the leader is remembered");
    cluster.group(&id).is_led_by(2);
    cluster.node(4).propose(&id, say("moved")).await.unwrap();
    assert_eq!(cluster.group(&id).commands(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_stale_belief_is_corrected_by_the_node_asked() {
    let (cluster, id) = (Cluster::of_three(), id("chat"));
    cluster.create(&id).await;
    cluster.group(&id).is_led_by(3);
    *cluster.replica(2, &id).belief.write() = Some(Some(1));
    assert!(is_appended(&cluster.say(2, &id, "hello").await));
    assert_eq!(cluster.metrics(2).routing_retries_total.get(), 1);
}

#[tokio::test(start_paused = true)]
async fn what_was_not_sent_is_sent_again() {
    let (cluster, id) = (Cluster::of_three(), id("chat"));
    cluster.create(&id).await;
    for fault in [CallFault::NotSent, CallFault::Refused, CallFault::NotSent] {
        cluster.net.faults.lock().push_back((Method::ForwardWrite, fault));
    }
    assert!(is_appended(&cluster.say(2, &id, "hello").await));
    assert_eq!(cluster.group(&id).commands(), 2);
    assert_eq!(cluster.metrics(2).forward_failures_total.get(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_lost_answer_is_an_unknown_outcome_at_once() {
    let (cluster, id) = (Cluster::of_three(), id("chat"));
    cluster.create(&id).await;
    cluster.net.faults.lock().push_back((Method::ForwardWrite, CallFault::Lost));
    let reply = cluster.say(2, &id, "hello").await;
    assert!(matches!(reply, Err(WriteError::UnknownOutcome(_))), "{reply:?}");
    assert_eq!(cluster.net.calls(Method::ForwardWrite), 1);
    assert_eq!(cluster.group(&id).commands(), 2, "it was applied, once");
    assert_eq!(cluster.metrics(2).unknown_outcomes_total.get(), 1);
}

#[tokio::test(start_paused = true)]
async fn an_unknown_outcome_at_the_leader_stays_one() {
    let (cluster, id) = (Cluster::of_three(), id("chat"));
    cluster.create(&id).await;
    for node in [1, 2] {
        cluster.group(&id).faults.lock().push_back(WriteFault::Unknown);
        let reply = cluster.say(node, &id, "hello").await;
        assert!(matches!(reply, Err(WriteError::UnknownOutcome(_))), "{reply:?}");
    }
    assert_eq!(cluster.group(&id).commands(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_steps_down_hands_the_write_on() {
    let (cluster, id) = (Cluster::of_three(), id("chat"));
    cluster.create(&id).await;
    cluster.group(&id).faults.lock().extend([WriteFault::NotLeader, WriteFault::NotLeader]);
    assert!(is_appended(&cluster.say(1, &id, "hello").await));
    assert_eq!(cluster.group(&id).commands(), 2);
}

#[tokio::test(start_paused = true)]
async fn two_nodes_that_each_believe_in_the_other_do_not_spin() {
    let (cluster, id) = (Cluster::of_three(), id("chat"));
    cluster.create(&id).await;
    cluster.group(&id).is_led_by(None);
    *cluster.replica(2, &id).belief.write() = Some(Some(3));
    *cluster.replica(3, &id).belief.write() = Some(Some(2));
    let reply = cluster.say(2, &id, "hello").await;
    assert!(matches!(reply, Err(WriteError::NotApplied(_))), "{reply:?}");
    let calls = cluster.net.calls(Method::ForwardWrite);
    assert!((40..120).contains(&calls), "{calls} calls in ten seconds");
    assert_eq!(cluster.group(&id).commands(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_write_waits_for_a_leader() {
    let (cluster, id) = (Cluster::of_three(), id("chat"));
    cluster.create(&id).await;
    cluster.group(&id).is_led_by(None);
    let group = cluster.group(&id).clone();
    let elect = async {
        sleep(Duration::from_secs(3)).await;
        group.is_led_by(3);
    };
    let (reply, ()) = tokio::join!(cluster.say(2, &id, "hello"), elect);
    assert!(is_appended(&reply), "{reply:?}");
}

#[tokio::test(start_paused = true)]
async fn a_leader_elected_during_an_attempt_is_asked_at_once() {
    let (cluster, id) = (Cluster::of_three(), id("chat"));
    cluster.create(&id).await;
    // By the seventh attempt the pauses have grown to 200 ms.
    cluster.net.faults.lock().extend([(Method::ForwardWrite, CallFault::NotSent); 7]);
    let attempt = async |number| {
        while cluster.net.calls(Method::ForwardWrite) < number {
            sleep(Duration::from_millis(1)).await;
        }
    };
    let elect = async {
        attempt(6).await;
        cluster.net.held.send_replace(Some(Method::ForwardWrite));
        attempt(7).await;
        cluster.group(&id).is_led_by(3);
        cluster.net.held.send_replace(None);
        Instant::now()
    };
    let (reply, elected) = tokio::join!(cluster.say(2, &id, "hello"), elect);
    assert!(is_appended(&reply), "{reply:?}");
    assert!(elected.elapsed() < Duration::from_millis(50), "{:?}", elected.elapsed());
}

#[tokio::test(start_paused = true)]
async fn without_a_leader_nothing_is_applied() {
    let (cluster, id) = (Cluster::of_three(), id("chat"));
    cluster.create(&id).await;
    cluster.group(&id).is_led_by(None);
    let reply = cluster.say(2, &id, "hello").await;
    assert!(matches!(reply, Err(WriteError::NotApplied(_))), "{reply:?}");
    cluster.group(&id).is_led_by(1);
    cluster.net.down.write().insert(1);
    let reply = cluster.say(2, &id, "hello").await;
    assert!(matches!(reply, Err(WriteError::NotApplied(_))), "{reply:?}");
    assert_eq!(cluster.group(&id).commands(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_write_that_is_never_answered_has_an_unknown_outcome() {
    let (cluster, id) = (Cluster::of_three(), id("chat"));
    cluster.create(&id).await;
    for node in [1, 2] {
        cluster.group(&id).faults.lock().push_back(WriteFault::Hangs);
        let reply = cluster.say(node, &id, "hello").await;
        assert!(matches!(reply, Err(WriteError::UnknownOutcome(_))), "{reply:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_full_leader_is_not_asked_again() {
    let (cluster, id) = (Cluster::of_three(), id("chat"));
    cluster.create(&id).await;
    *cluster.local(1).full.write() = true;
    for node in [1, 2] {
        let reply = cluster.say(node, &id, "hello").await;
        assert!(matches!(reply, Err(WriteError::Full)), "{reply:?}");
    }
    assert_eq!(cluster.net.calls(Method::ForwardWrite), 1);
    // A full follower still takes requests.
    *cluster.local(1).full.write() = false;
    *cluster.local(2).full.write() = true;
    assert!(is_appended(&cluster.say(2, &id, "hello").await));
}

#[tokio::test(start_paused = true)]
async fn draining_refuses_clients_but_serves_nodes() {
    let (cluster, id) = (Cluster::of_three(), id("chat"));
    cluster.create(&id).await;
    cluster.node(1).refuse_writes(true);
    assert!(matches!(cluster.say(1, &id, "hello").await, Err(WriteError::Draining)));
    assert!(is_appended(&cluster.say(2, &id, "hello").await));
    assert!(cluster.node(1).version(&id, FRESH).await.unwrap().is_some());
}

/// Whoever forwards, the node asked only looks at itself.
#[tokio::test(start_paused = true)]
async fn nothing_is_forwarded_twice() {
    let (cluster, id) = (Cluster::of_three(), id("chat"));
    let command = Command { id: id.clone(), now_ms: now_ms(), action: put() }.encode();
    let body = forward_write(group_of(&id), &command).concat();
    let answer = cluster.node(2).serve(Method::ForwardWrite as u16, body.into()).await.unwrap();
    assert_eq!(Outcome::decode(answer), Ok(Outcome::NotLeader(Some(1))));
    assert_eq!(cluster.net.calls(Method::ForwardWrite), 0);
}

#[tokio::test(start_paused = true)]
async fn commands_that_replicas_could_not_apply_stay_out_of_the_log() {
    let (cluster, id) = (Cluster::of_three(), id("chat"));
    let command = Command { id: id.clone(), now_ms: now_ms(), action: put() }.encode();
    let group = group_of(&id);
    let serve = async |group, command: &[u8]| {
        let body = forward_write(group, &command.to_vec().into()).concat();
        cluster.node(1).serve(Method::ForwardWrite as u16, body.into()).await
    };
    assert!(serve(group, &command[..command.len() - 1]).await.is_err());
    assert!(serve((group + 1) % 256, &command).await.is_err());
    assert!(cluster.node(1).serve(31, command.clone()).await.is_err());
    assert_eq!(cluster.group(&id).commands(), 0);
    assert!(Command::decode(command.clone(), FrameLocation::default()).is_ok());
    assert!(serve(group, &command).await.is_ok());
}
