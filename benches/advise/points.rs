//! The figures of the model, one by one: CPU for a request by rate, size and kind, memory and disk for what is kept.

use crate::Error;
use crate::drive::Traffic;
use crate::proof::watched;
use crate::server::Server;
use crate::text::{Random, append_body};
use std::path::Path;
use std::time::Duration;

const CONVERSATIONS: u64 = 1_000;
const WINDOW_MESSAGES: u64 = 50;
const WARMUP: Duration = Duration::from_secs(2);
const BASE: Traffic = Traffic {
    appends_per_second: 1_000.0,
    windows_per_append: 0.0,
    message_bytes: 600,
    own_token_count: true,
    conversations: CONVERSATIONS,
    streams: 0,
};

pub(crate) async fn run(dir: &Path, seconds: f64) -> Result<(), Error> {
    let measure = Duration::from_secs_f64(seconds);
    println!(
        "| case | appends/s | windows/s | cores | µs/append | MB before | MB after | journal B/append | index B/append | sent B/append | received B/append |"
    );
    println!("|{}", " --- |".repeat(11));
    for (name, traffic) in cases() {
        let server =
            Server::start(dir, &[("FASTPACA_STREAM_MAX_CONNECTIONS".to_owned(), "1000".to_owned())])?;
        server.create(CONVERSATIONS, WINDOW_MESSAGES).await?;
        if traffic.windows_per_append > 0.0 {
            let batch =
                append_body(&mut Random::new(1), WINDOW_MESSAGES as usize, traffic.message_bytes, true);
            server.fill(CONVERSATIONS, &batch).await?;
        }
        one(&server, &name, traffic, measure).await?;
    }
    memory(dir, measure).await
}

fn cases() -> Vec<(String, Traffic)> {
    let named = |name: &str, traffic| (name.to_owned(), traffic);
    let rates = [10.0, 50.0, 200.0, 1_000.0, 3_000.0, 6_000.0];
    let rate = |rate: f64| (format!("{rate} appends a second"), Traffic { appends_per_second: rate, ..BASE });
    let mut cases: Vec<(String, Traffic)> = rates.into_iter().map(rate).collect();
    cases.push(named("2,400 bytes", Traffic { message_bytes: 2_400, ..BASE }));
    cases.push(named(
        "2,400 bytes, counted here",
        Traffic { message_bytes: 2_400, own_token_count: false, ..BASE },
    ));
    cases
        .push(named("a window each", Traffic { windows_per_append: 1.0, appends_per_second: 500.0, ..BASE }));
    cases.push(named(
        "three windows each",
        Traffic { windows_per_append: 3.0, appends_per_second: 500.0, ..BASE },
    ));
    cases.push(named(
        "a window each, calm",
        Traffic { windows_per_append: 1.0, appends_per_second: 20.0, ..BASE },
    ));
    cases.push(named("a stream on half of them", Traffic { streams: CONVERSATIONS / 2, ..BASE }));
    cases
}

async fn one(server: &Server, name: &str, traffic: Traffic, measure: Duration) -> Result<(), Error> {
    let (seen, before, after) = watched(server, traffic, (WARMUP, measure)).await?;
    let taken = after.since(&before);
    let per = |value: f64| value / seen.appends as f64;
    println!(
        "| {name} | {:.0} | {:.0} | {:.4} | {:.1} | {:.1} | {:.1} | {:.0} | {:.0} | {:.0} | {:.0} |",
        seen.appends as f64 / taken.seconds,
        seen.windows as f64 / taken.seconds,
        taken.cores,
        taken.cores * taken.seconds * 1e6 / taken.appended,
        before.resident() / 1e6,
        taken.resident_bytes as f64 / 1e6,
        taken.journal_bytes / taken.appended,
        taken.index_bytes / taken.appended,
        per(seen.sent_bytes as f64),
        per(seen.received_bytes as f64),
    );
    Ok(())
}

/// An idle server, and one that is filled.
async fn memory(dir: &Path, measure: Duration) -> Result<(), Error> {
    /// Time for a start's own work to end.
    const SETTLE: Duration = Duration::from_secs(5);
    let server = Server::start(dir, &[])?;
    tokio::time::sleep(SETTLE).await;
    let before = server.sample().await?;
    tokio::time::sleep(measure).await;
    let taken = server.sample().await?.since(&before);
    println!("\nidle: {:.4} cores, {:.1} MB resident", taken.cores, taken.resident_bytes as f64 / 1e6);
    let server = Server::start(dir, &[("FASTPACA_TOKEN_ESTIMATOR".to_owned(), "chars:4".to_owned())])?;
    println!("without a vocabulary: {:.1} MB resident", server.resident_bytes()? as f64 / 1e6);
    for (conversations, each) in
        [(1_000, 1), (20_000, 1), (20_000, 10), (20_000, 10), (20_000, 20), (20_000, 40)]
    {
        server.create(conversations, WINDOW_MESSAGES).await?;
        server.fill(conversations, &append_body(&mut Random::new(3), each, 600, true)).await?;
        let sample = server.sample().await?;
        println!(
            "{conversations} conversations, {each} messages more each: {:.0} messages, {:.1} MB resident, {:.1} MB of index",
            sample.appended(),
            sample.resident() / 1e6,
            sample.index() / 1e6
        );
    }
    Ok(())
}
