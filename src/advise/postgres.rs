//! The archive's database: connections over all nodes, what Postgres must allow, and when PgBouncer is needed.

use serde::Serialize;

use super::load::Load;
use super::rule::Rule;
use super::units::{GIB, MIB};

/// Connections of a node's archive (the default of FASTPACA_POSTGRES_POOL_SIZE).
pub const POOL_SIZE: u64 = 20;
/// Milliseconds between flushes (the default of FASTPACA_FLUSH_INTERVAL_MS).
pub const FLUSH_INTERVAL_MS: u64 = 5_000;
/// Messages of a batch (the default of FASTPACA_FLUSH_BATCH_SIZE).
pub const FLUSH_BATCH_SIZE: u64 = 5_000;

/// Postgres' default.
const MAX_CONNECTIONS_DEFAULT: u64 = 100;
/// The most a Postgres of a guide is given; beyond it connections are pooled in front.
const MAX_CONNECTIONS_DIRECT: u64 = 200;
/// For administrators, backups, monitoring and analytics.
const OTHER_CONNECTIONS: u64 = 15;
/// Share of `max_connections` that the nodes may take together.
const SHARE_MAX: f64 = 0.8;

/// What the archive needs of its database.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Postgres {
    pub pool_per_node: u64,
    pub connections_of_all_nodes: u64,
    pub max_connections: u64,
    pub pgbouncer: Option<PgBouncer>,
    pub vcpu: u64,
    pub memory_gib: u64,
    pub disk_gb: u64,
    pub shared_buffers_bytes: u64,
    /// Messages that arrive at one node in a flush interval, at the peak.
    pub messages_per_flush_peak: f64,
    /// Those of FASTPACA_FLUSH_BATCH_SIZE that they fill.
    pub batches_per_flush_peak: f64,
}

/// A pooler between the nodes and Postgres.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PgBouncer {
    pub max_client_conn: u64,
    pub default_pool_size: u64,
    pub memory_bytes: u64,
}

pub const POOL: Rule = Rule {
    id: "postgres.pool",
    title: "connections of all nodes, and max_connections",
    formula: "nodes × pool, + 15 for administrators and backups; max_connections = 100, or the next 100 that keeps the nodes below 80 %",
    inputs: "nodes, FASTPACA_POSTGRES_POOL_SIZE (20)",
    source: "Fastpaca: a pool of 20; Flow-Like: max_connections=200; StudyGuru: act at 80 % of the connections; \
             as Flow-Like's 3 instances × 10 = 30",
    departs: "StudyGuru has a pool of 50 + 20 overflow for each process, Orion 10 + 20 = 30 and alerts above 20, Fastpaca 20. \
              There are no worker processes here that each bring a pool: a node has one, and writing takes up to four of its connections, so this is the most \
              there can be.",
};

pub const PGBOUNCER: Rule = Rule {
    id: "postgres.pgbouncer",
    title: "when PgBouncer is needed, and its sizes",
    formula: "needed when max_connections would exceed 200; max_client_conn = 2 × the connections of all nodes, default_pool_size = 20, 64 MiB",
    inputs: "postgres.pool",
    source: "Orion: POOL_MODE transaction, MAX_CLIENT_CONN 100, DEFAULT_POOL_SIZE 20, 64 MB; Flow-Like: max_connections=200",
    departs: "Orion adds it above 20 active connections of a pool of 30; a write-behind that waits a moment for a connection delays nobody",
};

pub const DATABASE: Rule = Rule {
    id: "postgres.database",
    title: "the database's machine and shared_buffers",
    formula: "4 vCPU and 8 GiB, doubled for each doubling of 2,000 appends/s at the peak; shared_buffers = a quarter of the memory; disk = 3 × the \
              message bytes kept, for rows, indexes and its log",
    inputs: "load.appends, load.kept",
    source: "StudyGuru: a database of 4 CPU and 8 GB beside 1,000 users; PostgreSQL's manual: a quarter of the memory is a reasonable start",
    departs: "Flow-Like sets shared_buffers=256MB, StudyGuru 4 GB of 8 (for MySQL). The step of 2,000 appends/s and the factor of 3 are \
              estimates, not measured.",
};

pub const FLUSH: Rule = Rule {
    id: "postgres.flush",
    title: "messages that arrive between two looks, and the batches they fill",
    formula: "peak appends / nodes × interval; / batch size",
    inputs: "load.appends, FASTPACA_FLUSH_INTERVAL_MS (5,000), FASTPACA_FLUSH_BATCH_SIZE (5,000)",
    source: "Fastpaca: interval and batch size, which are this server's defaults; docs/archive.md",
    departs: "neither setting needs to grow with the load: up to four batches are written at once, the next ones follow without a wait, and a batch reads \
              about 4 MiB of messages whatever its rows",
};

impl Postgres {
    pub fn of(load: &Load, nodes: u64) -> Postgres {
        let all = nodes * POOL_SIZE;
        let needed = all as f64 / SHARE_MAX;
        let hundreds = (needed.max((all + OTHER_CONNECTIONS) as f64) / 100.0).ceil() as u64 * 100;
        let direct = hundreds.max(MAX_CONNECTIONS_DEFAULT);
        let pgbouncer = (direct > MAX_CONNECTIONS_DIRECT).then_some(PgBouncer {
            max_client_conn: 2 * all,
            default_pool_size: POOL_SIZE,
            memory_bytes: 64 * MIB,
        });
        let doublings = (load.appends_per_second_peak / 2_000.0).max(1.0).log2().ceil().min(16.0) as u32;
        let memory_gib = 8 << doublings;
        let per_flush = load.appends_per_second_peak / nodes as f64 * FLUSH_INTERVAL_MS as f64 / 1_000.0;
        Postgres {
            pool_per_node: POOL_SIZE,
            connections_of_all_nodes: all,
            max_connections: if pgbouncer.is_some() { MAX_CONNECTIONS_DEFAULT } else { direct },
            pgbouncer,
            vcpu: 4 << doublings,
            memory_gib,
            disk_gb: super::tiers::disk_gb(
                3.0 * load.message_bytes_per_day / load.messages_per_day * load.messages_kept,
            ),
            shared_buffers_bytes: memory_gib * (GIB / 4),
            messages_per_flush_peak: per_flush,
            batches_per_flush_peak: per_flush / FLUSH_BATCH_SIZE as f64,
        }
    }
}
