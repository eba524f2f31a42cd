//! Trimming, and reading what was trimmed: whatever a client asks for, it is answered as before, and without Postgres
//! exactly the trimmed part is not.

use crate::support::client::{Answer, Client, message};
use crate::support::create_conversations;
use crate::support::postgres::{PgBouncer, Postgres, ROLE};
use crate::support::stream::{Next, Stream};
use crate::world::{ANSWER_MAX, World, archiving_cluster, failures, text, until};
use serde_json::{Value, json};

const EVENTS: usize = 700;
const EVENT_RUN: usize = 128;

/// A policy whose window is small.
fn narrow() -> Value {
    json!({"strategy": "last_n", "config": {"limit": 20}})
}

/// A conversation of [`EVENTS`] events, the 100th of which begins a summary, with what `settings` say.
async fn fill(client: &Client, id: &str, settings: &Value) {
    let path = format!("/v1/conversations/{id}");
    client.put(&path, settings).await.expect(201);
    for batch in 0..EVENTS / 100 {
        let text = |n: usize| format!("{}: {}\u{e9} \\u0000", batch * 100 + n, "x".repeat(n % 17));
        let mut events: Vec<Value> = (0..100).map(|n| message(&text(n))).collect();
        let call =
            json!({"type": "tool_call", "id": format!("t{batch}"), "name": "lookup", "payload": {"n": 1.50}});
        let result = json!({"type": "tool_result", "id": format!("t{batch}"), "payload": {"stock": 7}});
        events[40] = json!({"role": "assistant", "parts": [call]});
        events[45] = json!({"role": "tool", "parts": [result], "metadata": {"took_ms": 3}});
        let body = json!({"events": events, "idempotency_key": format!("key-{batch}")});
        client.post(&format!("{path}/events"), &body).await.expect(201);
        if batch == 1 {
            let summary = json!({"from_seq": 100, "to_seq": 120, "replacement": [message("a summary")]});
            client.post(&format!("{path}/compact"), &summary).await.expect(200);
        }
    }
}

/// Everything there is to read of a conversation, in every way there is.
async fn seen(world: &World, id: &str) -> Vec<Value> {
    let client = &world.client;
    let mut seen = vec![client.everything(id).await];
    for query in [
        "events?order=desc&limit=1000",
        "events?from_seq=-650&limit=1000",
        "events?from_seq=-690&to_seq=30",
        "events?cursor=250&order=desc&limit=200",
        "events?cursor=3&wait=1",
        "events?from_seq=120&to_seq=140&consistency=local",
        "tail?offset=60&limit=100",
        "tail?offset=500&limit=300",
        "window?at_version=90",
        "window?at_version=300&explain=true",
        "window?at_version=300&budget_tokens=200",
    ] {
        seen.push(client.get(&format!("/v1/conversations/{id}/{query}")).await.expect(200));
    }
    seen.push(export(world, id).await.expect("the export is whole"));
    seen.push(replay(world, id).await);
    seen
}

/// The export as one string, or the status.
async fn export(world: &World, id: &str) -> Result<Value, u16> {
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let url = world.process.url(&format!("/v1/conversations/{id}/events?from_seq=1"));
    let answer = http.get(url).header("accept", "application/x-ndjson").send().await.unwrap();
    match answer.status().as_u16() {
        200 => Ok(answer.text().await.unwrap().into()),
        status => Err(status),
    }
}

/// The frames of a stream from the beginning up to the newest version.
async fn replay(world: &World, id: &str) -> Value {
    let version = world.client.get(&format!("/v1/conversations/{id}")).await.expect(200)["version"].clone();
    let mut stream = Stream::open(&world.process, id, 0).await.unwrap();
    let mut frames = Vec::new();
    loop {
        match stream.next().await {
            Next::Frame(frame) => {
                let last = frame["version"] == version;
                frames.push(frame);
                if last {
                    return frames.into();
                }
            }
            end => panic!("the stream ends with {end:?} after {} frames", frames.len()),
        }
    }
}

async fn trimmed_to(world: &World, events: usize) {
    let trimmed = async || world.client.metric("fastpaca_trimmed_events_total").await as usize;
    world.until("it is trimmed", async || trimmed().await >= events).await;
    assert_eq!(trimmed().await, events);
}

/// Waits for some more looks at what could be trimmed, in vain; `events` were trimmed before.
async fn refused_beyond(world: &World, events: usize) {
    let refused = async || world.client.metric("fastpaca_trims_refused_total").await;
    trimmed_to(world, events).await;
    let before = refused().await;
    world.until("trimming is refused", async || refused().await >= before + 3.0).await;
    trimmed_to(world, events).await;
    assert!(world.process.log().contains("trim_refused"));
}

fn unavailable(answer: &Answer) {
    assert_eq!((answer.status, answer.error()), (503, "archive_unavailable"), "{answer:?}");
}

fn settings(node: crate::support::process::Node) -> crate::support::process::Node {
    node.with_env("FASTPACA_CHECKPOINT_INTERVAL_MS", "100")
}

/// Stops the server, and starts it with a tail that is kept.
fn restart_trimming(world: &mut World) {
    world.process.terminate();
    world.process.wait_exit(ANSWER_MAX).expect("it stops");
    world.node = world.node.clone().with_env("FASTPACA_TAIL_KEEP", "50");
    world.restart();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_trimmed_is_read_as_before() {
    let Some(postgres) = Postgres::start() else { return };
    let url = postgres.url();
    let mut world = World::over(postgres, url, settings);
    let ids = ["narrow", "wide"];
    fill(&world.client, "narrow", &json!({"policy": narrow()})).await;
    fill(&world.client, "wide", &json!({})).await;
    world.archive_is_the_log().await;
    let mut before = Vec::new();
    for id in ids {
        before.push(seen(&world, id).await);
    }

    restart_trimming(&mut world);
    // Of the wide one, the window shows 400 messages, the summary's apart.
    trimmed_to(&world, 5 * EVENT_RUN + 2 * EVENT_RUN).await;
    for (id, before) in ids.iter().zip(&before) {
        assert_eq!(seen(&world, id).await, *before, "{id}");
    }
    assert!(world.client.metric("fastpaca_archive_read_events_total").await > 0.0);
    world.archive_is_the_log().await;
    let again: Vec<Value> = (0..100).map(|n| before[0][0]["log"][n].clone()).collect();
    let parts = again.iter().map(|event| {
        let mut event =
            json!({"role": event["role"], "parts": event["parts"], "metadata": event["metadata"]});
        if event["metadata"] == json!({}) {
            event.as_object_mut().unwrap().remove("metadata");
        }
        event
    });
    let body = json!({"events": parts.collect::<Vec<_>>(), "idempotency_key": "key-0"});
    let answer = world.client.post("/v1/conversations/narrow/events", &body).await.expect(200);
    assert_eq!((&answer["first_seq"], &answer["deduped"]), (&json!(1), &json!(true)));

    // The frontier is in the journal: a crash and a lost index leave it where it was.
    world.process.kill();
    std::fs::remove_dir_all(world.node.data_dir().join("index")).unwrap();
    world.restart();
    for (id, before) in ids.iter().zip(&before) {
        assert_eq!(seen(&world, id).await, *before, "{id}");
    }
    world.archive_is_the_log().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_trimmed_is_read_by_way_of_a_pooler() {
    let Some(postgres) = Postgres::start() else { return };
    let Some(bouncer) = PgBouncer::start(&postgres) else { return };
    let mut world = World::over(postgres, bouncer.url(), settings);
    fill(&world.client, "narrow", &json!({"policy": narrow()})).await;
    world.archive_is_the_log().await;
    let before = seen(&world, "narrow").await;

    restart_trimming(&mut world);
    trimmed_to(&world, 5 * EVENT_RUN).await;
    assert_eq!(seen(&world, "narrow").await, before);
    assert!(world.client.metric("fastpaca_archive_read_events_total").await > 0.0);
}

/// What was trimmed is given back by the disk, and is still there: also when the index is made anew.
#[tokio::test(flavor = "multi_thread")]
async fn the_disk_of_what_was_trimmed_comes_back() {
    const RECLAIMED_MIN: f64 = 6.0 * 1_048_576.0;
    let Some(postgres) = Postgres::start() else { return };
    let url = postgres.url();
    let mut world = World::over(postgres, url, |node| {
        settings(node).with_env("FASTPACA_TAIL_KEEP", "50").with_env("FASTPACA_RECLAIM_INTERVAL_MS", "100")
    });
    world.client.put("/v1/conversations/long", &json!({"policy": narrow()})).await.expect(201);
    let event = |n: usize| message(&format!("{n}: {}", "x".repeat(8_000)));
    for batch in 0..60 {
        let events: Vec<Value> = (0..20).map(|n| event(batch * 20 + n)).collect();
        world.client.post("/v1/conversations/long/events", &json!({"events": events})).await.expect(201);
    }
    // Nothing is looked for while nothing is appended.
    let ids = create_conversations(&world.client, "short", 1).await;
    world
        .until("segments are reclaimed", async || {
            world.append(&ids, "time goes on").await;
            world.client.metric("fastpaca_reclaimed_bytes_total").await >= RECLAIMED_MIN
        })
        .await;
    for again in [false, true] {
        if again {
            world.process.kill();
            std::fs::remove_dir_all(world.node.data_dir().join("index")).unwrap();
            world.restart();
        }
        let lines = export(&world, "long").await.expect("the export is whole");
        let events = lines.as_str().unwrap().lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        let texts: Vec<Value> = events.map(|mut event| event["parts"].take()).collect();
        let sent: Vec<Value> = (0..1_200).map(|n| event(n)["parts"].take()).collect();
        assert!(texts == sent, "the export differs after {} events", texts.len());
        world.archive_is_the_log().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_postgres_exactly_the_trimmed_part_is_unavailable() {
    let Some(postgres) = Postgres::start() else { return };
    let url = postgres.url();
    let mut world = World::over(postgres, url, |node| settings(node).with_env("FASTPACA_TAIL_KEEP", "50"));
    fill(&world.client, "narrow", &json!({"policy": narrow()})).await;
    trimmed_to(&world, 5 * EVENT_RUN).await;
    world.archive_is_the_log().await;
    let path = "/v1/conversations/narrow";
    let first = world.client.get(&format!("{path}/events?limit=10")).await.expect(200);

    // A row that is not what was appended is not served, and verifying tells.
    let damage = |from: &str, to: &str| {
        world
            .postgres
            .sql(&format!("UPDATE fastpaca.events SET body = replace(body, '{from}', '{to}') WHERE seq = 7"))
    };
    damage("6: ", "six: ");
    unavailable(&world.client.get(&format!("{path}/events?from_seq=7&to_seq=7")).await);
    assert!(world.process.log().contains("archive_differs"));
    let verified = world.verify(&[]);
    assert!(text(&verified.stderr).contains("narrow: version 7 is another"), "{verified:?}");
    damage("six: ", "6: ");
    world.archive_is_the_log().await;

    world.postgres.kill();
    for query in [
        "events",
        "events?from_seq=-400",
        "tail?offset=200",
        "window?at_version=90",
        "events?cursor=1&wait=1",
    ] {
        unavailable(&world.client.get(&format!("{path}/{query}")).await);
    }
    assert_eq!(export(&world, "narrow").await, Err(503));
    let mut stream = Stream::open(&world.process, "narrow", 3).await.unwrap();
    assert_eq!(stream.next().await, Next::Closed(1013));
    for query in
        ["events?from_seq=-50", "events?from_seq=641", "tail?limit=50", "window", "window?at_version=690"]
    {
        world.client.get(&format!("{path}/{query}")).await.expect(200);
    }
    let mut stream = Stream::open(&world.process, "narrow", 690).await.unwrap();
    assert!(matches!(stream.next().await, Next::Frame(_)));
    world.client.append("narrow", "goes on").await.expect(201);
    // A policy that reaches further down does so once the archive is back, and so do summaries of what was trimmed.
    let wide = json!({"policy": {"strategy": "manual"}});
    world.client.put(path, &wide).await.expect(200);
    unavailable(&world.client.get(&format!("{path}/window")).await);
    let summary = json!({"from_seq": 1, "to_seq": 650, "replacement": [message("all of it")]});
    world.client.post(&format!("{path}/compact"), &summary).await.expect(200);
    world.client.get(&format!("{path}/window")).await.expect(200);
    assert!(world.client.metric("fastpaca_archive_read_failures_total").await > 0.0);

    world.postgres.run();
    world
        .until("the archive is back", async || {
            world.client.get(&format!("{path}/events?limit=10")).await.status == 200
        })
        .await;
    let again = world.client.get(&format!("{path}/events?limit=10")).await.expect(200);
    assert_eq!(again["events"], first["events"]);
    world.archive_is_the_log().await;
}

/// A conversation that the archive has whole and that is not trimmed yet, and what clients see of it.
async fn archived_narrow() -> Option<(World, Vec<Value>)> {
    let postgres = Postgres::start()?;
    let url = postgres.url();
    let world = World::over(postgres, url, settings);
    fill(&world.client, "narrow", &json!({"policy": narrow()})).await;
    world.archive_is_the_log().await;
    let before = seen(&world, "narrow").await;
    Some((world, before))
}

/// As after the failover to a standby that lacks some commits: the marks say that they were made.
#[tokio::test(flavor = "multi_thread")]
async fn what_the_archive_has_lost_stays_until_it_has_it_again() {
    let Some((mut world, before)) = archived_narrow().await else { return };
    world.postgres.sql("DELETE FROM fastpaca.events WHERE version BETWEEN 150 AND 600");
    world.postgres.sql("DELETE FROM fastpaca.changes WHERE version BETWEEN 150 AND 600");
    world.postgres.sql(&format!("REVOKE INSERT ON fastpaca.events FROM {ROLE}"));

    world.postgres.kill();
    restart_trimming(&mut world);
    world
        .until("the archive is asked in vain", async || world.process.log().contains("trim_check_failed"))
        .await;
    trimmed_to(&world, 0).await;
    world.postgres.run();
    refused_beyond(&world, EVENT_RUN).await;
    assert!(failures(&world.client, "denied").await > 0.0, "it is not sent again yet");
    assert_eq!(seen(&world, "narrow").await, before);

    world.postgres.sql(&format!("GRANT INSERT ON fastpaca.events TO {ROLE}"));
    trimmed_to(&world, 5 * EVENT_RUN).await;
    world.archive_is_the_log().await;
    assert_eq!(seen(&world, "narrow").await, before);
}

/// As with a row that somebody changed, which is not written over.
#[tokio::test(flavor = "multi_thread")]
async fn what_the_archive_has_otherwise_is_not_trimmed() {
    let Some((mut world, before)) = archived_narrow().await else { return };
    let damage = |world: &World, from: &str, to: &str| {
        let body = format!("replace(body, '{from}', '{to}')");
        world.postgres.sql(&format!("UPDATE fastpaca.events SET body = {body} WHERE seq = 300"))
    };
    damage(&world, "299: ", "two hundred and ninety-nine: ");
    restart_trimming(&mut world);
    refused_beyond(&world, 2 * EVENT_RUN).await;
    assert_eq!(seen(&world, "narrow").await, before);
    damage(&world, "two hundred and ninety-nine: ", "299: ");
    trimmed_to(&world, 5 * EVENT_RUN).await;
    world.archive_is_the_log().await;
    assert_eq!(seen(&world, "narrow").await, before);
}

/// As with another database under the old marks.
#[tokio::test(flavor = "multi_thread")]
async fn another_database_is_given_what_would_be_trimmed() {
    let Some((mut world, before)) = archived_narrow().await else { return };
    world.postgres.sql("TRUNCATE fastpaca.events, fastpaca.changes, fastpaca.conversations");
    restart_trimming(&mut world);
    trimmed_to(&world, 5 * EVENT_RUN).await;
    assert_eq!(seen(&world, "narrow").await, before);

    // Once it lacks what was trimmed before, it gets no more to keep.
    world.postgres.sql("CREATE TABLE public.saved AS SELECT * FROM fastpaca.events WHERE seq = 640");
    world.postgres.sql("DELETE FROM fastpaca.events WHERE seq = 640");
    let path = "/v1/conversations/narrow/events";
    let more: Vec<Value> = (0..100).map(|n| message(&format!("{n} more"))).collect();
    for _ in 0..3 {
        world.client.post(path, &json!({"events": more})).await.expect(201);
    }
    refused_beyond(&world, 5 * EVENT_RUN).await;
    unavailable(&world.client.get(&format!("{path}?from_seq=640&to_seq=640")).await);
    world.client.get(&format!("{path}?from_seq=641&to_seq=1000&limit=500")).await.expect(200);
    world.postgres.sql("INSERT INTO fastpaca.events SELECT * FROM public.saved");
    trimmed_to(&world, 7 * EVENT_RUN).await;
    world.archive_is_the_log().await;
}

/// Four nodes, so that some host no replica of what they are asked for.
#[tokio::test(flavor = "multi_thread")]
async fn leaders_change_while_they_trim() {
    let Some(postgres) = Postgres::start() else { return };
    let settings = [("FASTPACA_TAIL_KEEP", "20"), ("FASTPACA_CHECKPOINT_INTERVAL_MS", "200")];
    let Some((mut cluster, clients)) = archiving_cluster(&postgres, 4, &settings) else { return };
    let ids = create_conversations(&clients[0], "trimmed", 12).await;
    for id in &ids {
        let path = format!("/v1/conversations/{id}");
        until("a policy is taken", async || {
            clients[0].put(&path, &json!({"policy": narrow()})).await.status == 200
        })
        .await;
        for (batch, client) in clients[..3].iter().enumerate() {
            let events: Vec<Value> = (0..100).map(|n| message(&format!("{}", batch * 100 + n))).collect();
            let body = json!({"events": events, "idempotency_key": format!("batch-{batch}")});
            until("an append is taken", async || {
                matches!(client.post(&format!("{path}/events"), &body).await.status, 200 | 201)
            })
            .await;
        }
    }
    until("a node trims", async || {
        let mut trimmed = 0.0;
        for client in &clients {
            trimmed += client.metric("fastpaca_trimmed_events_total").await;
        }
        trimmed > 0.0
    })
    .await;
    cluster.kill(1);
    cluster.spawn(1);
    cluster.wait_ready();
    for id in &ids {
        until(&format!("every replica of {id} is trimmed"), async || {
            for client in &clients {
                if !reads_the_archive(&clients, client, id).await {
                    return false;
                }
            }
            true
        })
        .await;
        for client in &clients {
            let log = client.log(id).await;
            let texts: Vec<&str> = log.iter().map(crate::support::client::text_of).collect();
            let expected: Vec<String> = (0..300).map(|n| n.to_string()).collect();
            assert_eq!(texts, expected);
        }
    }
    assert_eq!(cluster.compare_digests().await, Vec::<String>::new());
}

/// Whether the first event, as this node gets to it, comes from the archive.
async fn reads_the_archive(all: &[Client], client: &Client, id: &str) -> bool {
    let read = async || {
        let mut read = 0.0;
        for client in all {
            read += client.metric("fastpaca_archive_read_events_total").await;
        }
        read
    };
    let before = read().await;
    let path = format!("/v1/conversations/{id}/events?limit=1&consistency=local");
    client.get(&path).await.status == 200 && read().await > before
}
