//! What lies in the archive: every kind of version, hostile content, through a pooler, and the questions the
//! documentation shows.

use crate::support::client::message;
use crate::support::create_conversations;
use crate::support::postgres::{PgBouncer, Postgres};
use crate::world::{World, fill};
use serde_json::{Value, json};

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_of_version_arrives() {
    let Some(world) = World::start() else { return };
    let ids = fill(&world.client, "a").await;
    world.archive_is_the_log().await;
    let count = |table: &str| world.postgres.sql(&format!("SELECT count(*) FROM fastpaca.{table}"));
    assert_eq!((count("conversations"), count("events")), ("2".into(), "366".into()));
    let kinds = "SELECT string_agg(kind, ' ' ORDER BY version) FROM fastpaca.changes WHERE conversation_id = 'a-gone'";
    assert_eq!(world.postgres.sql(kinds), "created compaction settings metadata tombstoned");
    let row = "SELECT status, version, archived_version, last_seq, token_budget, metadata
        FROM fastpaca.conversations WHERE id = 'a-gone'";
    assert_eq!(world.postgres.sql(row), r#"tombstoned|187|187|183|6000|{"n": 2, "project": "support"}"#);
    let event = "SELECT role, parts -> 0 ->> 'name', token_count, cardinality(part_tokens), escaped
        FROM fastpaca.events WHERE conversation_id = 'a-rich' AND seq = 181";
    assert_eq!(world.postgres.sql(event), "assistant|lookup|99|2|f");
    // What is written later goes the same way.
    world.append(&ids[..1], "later").await;
    world.archive_is_the_log().await;
    assert_eq!(count("events"), "367");
    assert_eq!(world.client.metric("fastpaca_archive_lag_seconds").await, 0.0);
    assert!(world.client.metric("fastpaca_archive_rows_inserted_total").await >= 376.0);
    assert!(!world.process.log().contains("not-logged-anywhere"));
}

/// Bodies that `jsonb` changes or does not take; each is a whole event as the client spells it.
fn hostile() -> Vec<String> {
    let text = |text: &str| format!(r#"{{"role":"user","parts":[{{"type":"text","text":"{text}"}}]}}"#);
    let part = |member: &str| format!(r#"{{"role":"user","parts":[{{"type":"x",{member}}}]}}"#);
    vec![
        text(r"a NUL \u0000 and an escaped one \\u0000"),
        r#"{"role":"r\u0000le","parts":[],"metadata":{"\u0000":"\u0000"}}"#.to_owned(),
        part(r#""n":1e400,"m":-1E-400,"digits":123456789012345678901234567890.000"#),
        part(r#""n":1e999999,"m":1e-99999"#),
        part(r#""key":1,"KEY":2,"Key":3"#),
        part(r#""twice":1,"twice":2, "z":1, "a":2"#),
        part(&format!(r#""deep":{}{}"#, "[".repeat(100), "]".repeat(100))),
        text(r"😀 \ud83d\ude00 \u2028 \ufffe"),
        text(&"x".repeat(1_000_000)),
        part("\"spaced\" : [ 1 ,\\u0020 2 ]").replace("\\u0020", " "),
        text("'; DROP TABLE fastpaca.events; -- {\\\"\\\\,}"),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_content_is_kept_byte_for_byte() {
    let Some(postgres) = Postgres::start() else { return };
    let url = postgres.url();
    // As large as they may be by default.
    let large = ["FASTPACA_BODY_MAX_BYTES", "FASTPACA_BATCH_BODY_MAX_BYTES"];
    let world = World::over(postgres, url, |node| {
        let node = node.with_env("FASTPACA_SEGMENT_BYTES", "8MiB");
        large.into_iter().fold(node, |node, name| node.with_env(name, "1MiB"))
    });
    let ids = create_conversations(&world.client, "hostile", 3).await;
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let events = hostile();
    for event in &events {
        let url = world.process.url(&format!("/v1/conversations/{}/events", ids[0]));
        let request = http.post(url).header("content-type", "application/json");
        let answer = request.body(format!(r#"{{"event":{event}}}"#)).send().await.unwrap();
        assert_eq!(answer.status(), 201, "{event:.80}");
        world.append(&ids[1..], "beside it").await;
    }
    world.archive_is_the_log().await;
    let escaped = "SELECT string_agg(seq::text, ' ' ORDER BY seq) FROM fastpaca.events WHERE escaped";
    assert_eq!(world.postgres.sql(escaped), "1 2 4");
    let sql = |sql: &str| world.postgres.sql(sql);
    let of = "FROM fastpaca.events WHERE conversation_id = 'hostile-0' AND seq =";
    assert_eq!(sql(&format!("SELECT role, metadata {of} 2")), "r\u{fffd}le|{\"\u{fffd}\": \"\u{fffd}\"}");
    assert_eq!(sql(&format!("SELECT parts -> 0 ->> 'n', (parts -> 0 ->> 'm') {of} 4")), "1e999999|1e-99999");
    assert_eq!(sql(&format!("SELECT length(parts -> 0 ->> 'n') {of} 3")), "401");
    assert_eq!(sql(&format!("SELECT body LIKE '%\"twice\":1,\"twice\":2, \"z\":1%' {of} 6")), "t");
    assert_eq!(world.client.metric("fastpaca_archive_stopped_conversations").await, 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pooler_may_give_each_transaction_another_session() {
    let Some(postgres) = Postgres::start() else { return };
    let Some(bouncer) = PgBouncer::start(&postgres) else { return };
    let world = World::over(postgres, bouncer.url(), |node| node);
    let ids = fill(&world.client, "pooled").await;
    for round in 0..20 {
        world.append(&ids[..1], &format!("round {round}")).await;
    }
    world.archive_is_the_log().await;
    assert_eq!(world.postgres.sql("SELECT count(*) FROM pg_prepared_statements"), "0");
}

/// The questions of docs/archive.md, as they stand there.
#[tokio::test(flavor = "multi_thread")]
async fn the_documented_questions_have_answers() {
    let Some(world) = World::start() else { return };
    fill(&world.client, "a").await;
    world.archive_is_the_log().await;
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/archive.md")).unwrap();
    let questions: Vec<&str> =
        page.split("```sql\n").skip(1).map(|rest| rest.split("```").next().unwrap()).collect();
    assert!(questions.len() >= 4, "the questions were looked for in the wrong place");
    for question in questions {
        let answer = world.postgres.sql(question);
        eprintln!("{question}{answer}\n");
        assert!(!answer.is_empty(), "{question}");
    }
}

/// Many conversations at once, each with more than fits a batch.
#[tokio::test(flavor = "multi_thread")]
async fn a_backlog_larger_than_batches_arrives_in_order() {
    let Some(postgres) = Postgres::start() else { return };
    let url = postgres.url();
    let mut world = World::over(postgres, url, |node| node);
    world.postgres.kill();
    let ids = create_conversations(&world.client, "many", 30).await;
    for id in &ids {
        let events: Vec<Value> = (0..130).map(|n| message(&n.to_string())).collect();
        let path = format!("/v1/conversations/{id}/events");
        world.client.post(&path, &json!({"events": events})).await.expect(201);
    }
    world.postgres.run();
    world.archive_is_the_log().await;
    let rows = "SELECT count(*), min(n), max(n) FROM
        (SELECT count(*) AS n FROM fastpaca.events GROUP BY conversation_id) AS counts";
    assert_eq!(world.postgres.sql(rows), "30|130|130");
}
