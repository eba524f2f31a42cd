//! Appends with and without an archive, and a backlog beside a bare `COPY` of the same rows.

use crate::Error;
use crate::layouts::{self, psql};
use crate::load::{Conversations, Extent, Load, Order, Request};
use crate::postgres::Postgres;
use crate::process::{Node, Process};
use crate::report::{Report, seconds};
use crate::run::{Measured, measure};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tempfile::TempDir;

const MESSAGE_BYTES: usize = 600;
const CONVERSATIONS: u64 = 1_000;
const CONNECTIONS: usize = 64;
/// Events of one request that builds the backlog.
const BATCH: usize = 100;
/// Longest wait for a backlog to drain.
const DRAIN_MAX: Duration = Duration::from_secs(600);

pub(crate) struct Settings {
    pub(crate) seconds: f64,
    pub(crate) rounds: usize,
    pub(crate) backlog: u64,
    pub(crate) dir: PathBuf,
}

pub(crate) fn run(settings: &Settings) -> Result<(), Error> {
    std::fs::create_dir_all(&settings.dir)?;
    println!("data in {}, {} cores", settings.dir.display(), std::thread::available_parallelism()?);
    let mut report = Report::default();
    appends(settings, &mut report)?;
    backlog(settings, &mut report)?;
    report.summary();
    Ok(())
}

/// What Postgres is while appends come in.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Archive {
    Off,
    On,
    Paused,
    Stopped,
}

fn appends(settings: &Settings, report: &mut Report) -> Result<(), Error> {
    report.heading("Durable single appends, 600 bytes, 1,000 conversations, 64 connections");
    let first = appended(settings, Archive::Off)?;
    report.row("no archive", &first, 1, &first);
    let (mut rates, mut paused_p99s, mut stopped_p99s) = (Vec::new(), Vec::new(), Vec::new());
    let (mut rate_before, mut p99_before) = (first.rate(), first.outcome.p99_us);
    for _ in 0..settings.rounds {
        let mut measured = |label: &str, archive| {
            let measured = appended(settings, archive)?;
            report.row(label, &measured, 1, &first);
            Ok::<_, Error>(measured)
        };
        let on = measured("archive", Archive::On)?;
        let paused = measured("archive, Postgres paused (SIGSTOP)", Archive::Paused)?;
        let stopped = measured("archive, Postgres stopped", Archive::Stopped)?;
        let off = measured("no archive", Archive::Off)?;
        // Both ends of a round, so that a machine that gets slower is not taken for the archive's doing.
        let (rate, p99) = ((rate_before + off.rate()) / 2.0, (p99_before + off.outcome.p99_us) as f64 / 2.0);
        rates.push(on.rate() / rate);
        paused_p99s.push(paused.outcome.p99_us as f64 / p99);
        stopped_p99s.push(stopped.outcome.p99_us as f64 / p99);
        (rate_before, p99_before) = (off.rate(), off.outcome.p99_us);
    }
    println!("  medians of {} rounds:", settings.rounds);
    report.at_least("append rate with archive, × without", median(rates), 0.8);
    report.at_most("append p99, Postgres paused, × without", median(paused_p99s), 1.1);
    report.at_most("append p99, Postgres stopped, × without", median(stopped_p99s), 1.1);
    Ok(())
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn appended(settings: &Settings, archive: Archive) -> Result<Measured, Error> {
    let mut postgres = start_postgres()?;
    let dir = scratch(&settings.dir)?;
    let node = Node::in_dir(dir.path());
    let node =
        if archive == Archive::Off { node } else { node.with_env("FASTPACA_POSTGRES_URL", postgres.url()) };
    let server = node.start()?;
    prepare(&server)?;
    match archive {
        Archive::Off | Archive::On => {}
        Archive::Paused => postgres.pause(),
        Archive::Stopped => postgres.kill(),
    }
    let measure_for = Duration::from_secs_f64(settings.seconds);
    let load = Load {
        addresses: vec![server.address()],
        connections: CONNECTIONS,
        extent: Extent::Time { warmup: measure_for / 4, measure: measure_for },
        request: Request::Append { events: 1, message_bytes: MESSAGE_BYTES, own_token_count: true },
        conversations: Conversations::first(CONVERSATIONS),
        order: Order::Scattered,
    };
    measure(&load, server.pid())
}

fn backlog(settings: &Settings, report: &mut Report) -> Result<(), Error> {
    report.title("A backlog of messages of 600 bytes, 1,000 conversations");
    let postgres = start_postgres()?;
    let dir = scratch(&settings.dir)?;
    let node = Node::in_dir(dir.path());
    let mut server = node.start()?;
    prepare(&server)?;
    let requests = settings.backlog / BATCH as u64;
    let load = Load {
        addresses: vec![server.address()],
        connections: CONNECTIONS / 2,
        extent: Extent::Requests(requests),
        request: Request::Append { events: BATCH, message_bytes: MESSAGE_BYTES, own_token_count: true },
        conversations: Conversations::first(CONVERSATIONS),
        order: Order::InTurn,
    };
    measure(&load, server.pid())?;
    server.terminate();
    server.wait_exit(DRAIN_MAX).ok_or("the server does not stop")?;
    let node = node.with_env("FASTPACA_POSTGRES_URL", postgres.url());
    let server = node.start()?;
    let begun = Instant::now();
    let rows = requests * BATCH as u64;
    let mut first = None;
    while count(&postgres) < rows {
        first = first.or_else(|| (count(&postgres) > 0).then(|| (Instant::now(), count(&postgres))));
        if begun.elapsed() > DRAIN_MAX {
            return Err(format!("the backlog does not drain:\n{}", server.log_end()).into());
        }
        // Counting reads the whole table: seldom enough to cost the draining little.
        std::thread::sleep(Duration::from_secs(1));
    }
    // The first look at the groups, and making the schema, are no part of draining.
    let (at, there) = first.ok_or("the backlog drained at once")?;
    let drained = (rows - there) as f64 / at.elapsed().as_secs_f64();
    drop(server);
    report.figure("drained, rows a second", format!("{drained:.0}"));
    let (took, copied) = copy(&postgres, dir.path(), rows)?;
    report.figure("bare COPY, rows a second", format!("{copied:.0} (in {})", seconds(took)));
    report.at_least("drain rate, × bare COPY", drained / copied, 0.5);
    layouts::run(&postgres, dir.path(), report)
}

/// What `psql` needs for the same rows into a table of the same shape.
fn copy(postgres: &Postgres, dir: &Path, rows: u64) -> Result<(Duration, f64), Error> {
    let file = dir.join("events.copy");
    psql(postgres, &format!("\\copy fastpaca.events TO '{}'", file.display()))?;
    psql(postgres, "CREATE TABLE fastpaca.copied (LIKE fastpaca.events INCLUDING ALL)")?;
    let begun = Instant::now();
    psql(postgres, &format!("\\copy fastpaca.copied FROM '{}'", file.display()))?;
    let took = begun.elapsed();
    Ok((took, rows as f64 / took.as_secs_f64()))
}

fn count(postgres: &Postgres) -> u64 {
    let exists = postgres.sql("SELECT to_regclass('fastpaca.events') IS NOT NULL") == "t";
    if !exists {
        return 0;
    }
    postgres.sql("SELECT count(*) FROM fastpaca.events").parse().unwrap_or(0)
}

fn prepare(server: &Process) -> Result<(), Error> {
    let load = Load {
        addresses: vec![server.address()],
        connections: 32,
        extent: Extent::Requests(CONVERSATIONS),
        request: Request::Create { window: 50 },
        conversations: Conversations::first(CONVERSATIONS),
        order: Order::InTurn,
    };
    measure(&load, server.pid()).map(drop)
}

fn start_postgres() -> Result<Postgres, Error> {
    Postgres::start_with(&["shared_buffers=256MB", "max_wal_size=4GB"])
        .ok_or_else(|| "Postgres is not installed".into())
}

fn scratch(dir: &Path) -> Result<TempDir, Error> {
    Ok(tempfile::Builder::new().prefix("bench-").tempdir_in(dir)?)
}
