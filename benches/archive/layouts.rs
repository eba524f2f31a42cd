//! What an index over time, or partitions by it, would cost and bring: the same rows into tables of several layouts. And what a
//! `COPY` costs that may meet rows which are there already.

use crate::Error;
use crate::postgres::Postgres;
use crate::report::Report;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

/// A table like that of events, but for what finds rows by their time.
struct Layout {
    name: &'static str,
    sql: &'static str,
}

const LAYOUTS: [Layout; 4] = [
    Layout {
        name: "primary key only",
        sql: "CREATE TABLE layout (LIKE fastpaca.events, PRIMARY KEY (cluster_id, conversation_id, seq))",
    },
    Layout {
        name: "brin over inserted_at (as it is)",
        sql: "CREATE TABLE layout (LIKE fastpaca.events, PRIMARY KEY (cluster_id, conversation_id, seq));
              CREATE INDEX ON layout USING brin (inserted_at) WITH (pages_per_range = 32)",
    },
    Layout {
        name: "btree over inserted_at",
        sql: "CREATE TABLE layout (LIKE fastpaca.events, PRIMARY KEY (cluster_id, conversation_id, seq));
              CREATE INDEX ON layout (inserted_at)",
    },
    Layout {
        name: "32 partitions by inserted_at, which joins the key",
        sql: "CREATE TABLE layout (LIKE fastpaca.events, PRIMARY KEY (cluster_id, conversation_id, seq, inserted_at))
                  PARTITION BY RANGE (inserted_at);
              DO $$
              DECLARE first timestamptz; step interval;
              BEGIN
                  SELECT min(inserted_at), (max(inserted_at) - min(inserted_at)) / 31 INTO first, step FROM timed;
                  FOR n IN 0..31 LOOP
                      EXECUTE format('CREATE TABLE layout_%s PARTITION OF layout FOR VALUES FROM (%L) TO (%L)',
                          n, first + n * step, first + (n + 1) * step);
                  END LOOP;
              END $$",
    },
];

/// Rows arrive in flushes of this many, five seconds apart.
const TIMED: &str = "CREATE UNLOGGED TABLE timed AS
    SELECT cluster_id, conversation_id, seq, version,
        timestamptz '2026-01-01' + n / 5000 * interval '5 s' + random() * interval '5 s' AS inserted_at,
        token_count, escaped, role, parts, metadata, part_tokens, marker_tokens, body, digest
    FROM (SELECT *, row_number() OVER () AS n FROM fastpaca.events) AS events
    ORDER BY n / 5000, conversation_id, seq";

/// A condition that holds for a hundredth of all the time there is.
const RANGE: &str =
    "SELECT format('inserted_at >= %L AND inserted_at < %L', first + 0.50 * whole, first + 0.51 * whole)
    FROM (SELECT min(inserted_at) AS first, max(inserted_at) - min(inserted_at) AS whole FROM fastpaca.timed) AS time";

/// Into `report`, for the rows that `fastpaca.events` holds.
pub(crate) fn run(postgres: &Postgres, dir: &Path, report: &mut Report) -> Result<(), Error> {
    report.title("The same rows, in flushes of 5,000, into tables of several layouts");
    let file = dir.join("timed.copy");
    psql(postgres, TIMED)?;
    psql(postgres, &format!("\\copy timed TO '{}'", file.display()))?;
    let copy = format!("\\copy layout FROM '{}'", file.display());
    let range = postgres.sql(RANGE);
    let question = format!(
        "EXPLAIN (ANALYZE, TIMING OFF) SELECT count(*), sum(token_count) FROM fastpaca.layout WHERE {range}"
    );
    let mut plain = Duration::ZERO;
    for layout in &LAYOUTS {
        psql(postgres, layout.sql)?;
        let took = timed(|| psql(postgres, &copy))?;
        if plain.is_zero() {
            plain = took;
        }
        // A brin index says nothing of pages that came since the last vacuum.
        psql(postgres, "VACUUM ANALYZE layout")?;
        let indexes = postgres.sql(
            "SELECT pg_size_pretty(sum(pg_indexes_size(relation))) FROM
                (SELECT 'fastpaca.layout'::regclass UNION SELECT relid FROM pg_partition_tree('fastpaca.layout'))
                AS tables (relation)",
        );
        let ratio = took.as_secs_f64() / plain.as_secs_f64();
        let asked = execution(postgres, &question)?;
        report.figure(
            layout.name,
            format!("COPY {ratio:.2} × the first, indexes {indexes}, a hundredth of the time {asked}"),
        );
        psql(postgres, "DROP TABLE layout")?;
    }
    psql(postgres, LAYOUTS[1].sql)?;
    let took = timed(|| {
        psql(postgres, "CREATE UNLOGGED TABLE staged (LIKE fastpaca.events)")?;
        psql(postgres, &format!("\\copy staged FROM '{}'", file.display()))?;
        psql(postgres, "INSERT INTO layout SELECT * FROM staged ON CONFLICT DO NOTHING")
    })?;
    let ratio = took.as_secs_f64() / plain.as_secs_f64();
    report
        .figure("COPY into a staging table, then ON CONFLICT DO NOTHING", format!("{ratio:.2} × the first"));
    psql(postgres, "DROP TABLE layout, staged, timed")
}

fn timed(work: impl FnOnce() -> Result<(), Error>) -> Result<Duration, Error> {
    let begun = Instant::now();
    work()?;
    Ok(begun.elapsed())
}

/// How long the database was at a query, the second time.
fn execution(postgres: &Postgres, explain: &str) -> Result<String, Error> {
    postgres.sql(explain);
    let said = postgres.sql(explain);
    let time = said.lines().find_map(|line| line.strip_prefix("Execution Time: "));
    time.map(str::to_owned).ok_or_else(|| format!("no time in {said}").into())
}

/// Runs SQL, or a command of `psql`, in the schema of the archive.
pub(crate) fn psql(postgres: &Postgres, sql: &str) -> Result<(), Error> {
    let done = Command::new("psql")
        .args([&postgres.url(), "-X", "-q", "-v", "ON_ERROR_STOP=1", "-c", sql])
        .env("PGOPTIONS", "-c search_path=fastpaca")
        .status()?;
    if done.success() { Ok(()) } else { Err(Error::from("psql failed")) }
}
