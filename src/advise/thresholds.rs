//! When to act: the one table of thresholds. `advise check`, `advise alerts` and the documentation are made from it.
//!
//! A threshold watches one figure of a node (or of the cluster) and has two levels: *soon*, when to plan a change, and
//! *now*, when to make it. How a figure is computed is said once for people and Prometheus (`expr`) and once, as a
//! [`Signal`], for a check that has nothing but two looks at `/metrics`.

use super::rule::Rule;

/// What is watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Signal {
    Memory,
    Cpu,
    AppendLatencyP95,
    WindowLatencyP95,
    FsyncP99,
    DiskUsed,
    DiskFull,
    Streams,
    Connections,
    ArchiveBacklog,
    ArchiveStopped,
    TrimsRefused,
    LeaderImbalance,
    GroupsWithoutLeader,
    LinksMissing,
    RoundTrip,
    Errors,
    Overload,
}

/// Of what a figure is one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    Node,
    Cluster,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    Share,
    Milliseconds,
    Messages,
    Ratio,
    Count,
    PerSecond,
}

/// One row of the table. A figure is wrong when it is *above* a level.
#[derive(Debug, Clone, Copy)]
pub struct Threshold {
    pub signal: Signal,
    /// Snake case; the alert's name is made of it.
    pub id: &'static str,
    pub title: &'static str,
    pub scope: Scope,
    pub unit: Unit,
    /// PromQL for the figure, one value an instance, or one for the cluster. None: only a check can see it, in `/v1/cluster`.
    pub expr: Option<&'static str>,
    /// None: there is nothing to plan, only to do.
    pub soon: Option<f64>,
    pub now: Option<f64>,
    /// How long it must last. 0: at once.
    pub minutes: u64,
    /// A check that cannot see this figure cannot say that all is well.
    pub essential: bool,
    /// What to do, vertical first.
    pub action: &'static str,
    pub source: &'static str,
}

/// Histogram quantiles and rates look this far back.
pub const WINDOW: &str = "5m";

/// In the order in which a check walks them: what is checked first explains what comes after.
pub static THRESHOLDS: &[Threshold] = &[
    Threshold {
        signal: Signal::Memory,
        id: "memory",
        title: "resident memory, of what the node may use",
        scope: Scope::Node,
        unit: Unit::Share,
        expr: Some("process_resident_memory_bytes / on(instance, job) fastpaca_available_memory_bytes"),
        soon: Some(0.80),
        now: Some(0.85),
        minutes: 5,
        essential: true,
        action: "move to a machine with more memory, or make the FASTPACA_*_CACHE_BYTES smaller",
        source: "Orion: scale at a sustained 80 %, alert above 85 %; StudyGuru: below 80 %",
    },
    Threshold {
        signal: Signal::AppendLatencyP95,
        id: "append_latency",
        title: "append latency, 95th percentile",
        scope: Scope::Node,
        unit: Unit::Milliseconds,
        expr: Some("histogram_quantile(0.95, rate(fastpaca_append_latency_ms_bucket[5m]))"),
        soon: Some(100.0),
        now: Some(1_000.0),
        minutes: 5,
        essential: false,
        action: "look for the cause: a slow disk, a busy CPU, or too many requests at once",
        source: "StudyGuru and Orion: 1 s; soon: ten times what this server takes with both cores busy (docs/benchmarks.md: p99 of 8.5 ms)",
    },
    Threshold {
        signal: Signal::WindowLatencyP95,
        id: "window_latency",
        title: "window latency, 95th percentile",
        scope: Scope::Node,
        unit: Unit::Milliseconds,
        expr: Some("histogram_quantile(0.95, rate(fastpaca_window_latency_ms_bucket[5m]))"),
        soon: Some(100.0),
        now: Some(1_000.0),
        minutes: 5,
        essential: false,
        action: "raise FASTPACA_MESSAGE_CACHE_BYTES if reads miss it, then more CPU",
        source: "as append_latency (docs/benchmarks.md: p99 of 13.7 ms with nothing cached)",
    },
    Threshold {
        signal: Signal::FsyncP99,
        id: "fsync",
        title: "journal fsync, 99th percentile",
        scope: Scope::Node,
        unit: Unit::Milliseconds,
        expr: Some("1000 * histogram_quantile(0.99, rate(fastpaca_journal_fsync_seconds_bucket[5m]))"),
        soon: Some(10.0),
        now: Some(100.0),
        minutes: 5,
        essential: false,
        action: "give the journal a faster disk (NVMe), of its own; look for neighbours that write",
        source: "Fastpaca: fast SSD or NVMe on dedicated storage; 10 ms is what etcd asks of its log's disk",
    },
    Threshold {
        signal: Signal::Cpu,
        id: "cpu",
        title: "CPU, of the cores the node may use",
        scope: Scope::Node,
        unit: Unit::Share,
        expr: Some("rate(process_cpu_seconds_total[5m]) / on(instance, job) fastpaca_available_cores"),
        soon: Some(0.70),
        now: Some(0.80),
        minutes: 5,
        essential: true,
        action: "move to a machine with more cores; at the largest, add nodes",
        source: "StudyGuru: below 70 %, for 5 minutes; Orion: scale at a sustained 70 %, alert above 80 % for 5 minutes",
    },
    Threshold {
        signal: Signal::Overload,
        id: "overload",
        title: "requests and connections turned away",
        scope: Scope::Node,
        unit: Unit::PerSecond,
        expr: Some(
            "rate(fastpaca_overloaded_total[5m]) + rate(fastpaca_rate_limited_total[5m]) + rate(fastpaca_connections_refused_total[5m])",
        ),
        soon: Some(0.0),
        now: Some(10.0),
        minutes: 5,
        essential: false,
        action: "raise FASTPACA_MAX_INFLIGHT_REQUESTS, FASTPACA_MAX_CONNECTIONS or the rate limit if CPU and memory allow; else more CPU",
        source: "this server counts what it refuses; any of it for 5 minutes means a limit that is too low or a node that is too small",
    },
    Threshold {
        signal: Signal::Errors,
        id: "errors",
        title: "answers that are errors of the server",
        scope: Scope::Node,
        unit: Unit::Share,
        expr: Some(
            "sum by (instance, job) (rate(fastpaca_http_requests_total{status=\"5xx\"}[5m])) / sum by (instance, job) (rate(fastpaca_http_requests_total[5m]))",
        ),
        soon: Some(0.01),
        now: Some(0.05),
        minutes: 5,
        essential: false,
        action: "read the logs for what fails; with overload above, it is that",
        source: "StudyGuru: below 1 %",
    },
    Threshold {
        signal: Signal::DiskUsed,
        id: "disk",
        title: "disk used, of the data directory's disk",
        scope: Scope::Node,
        unit: Unit::Share,
        expr: Some("1 - fastpaca_disk_free_bytes / on(instance, job) fastpaca_disk_size_bytes"),
        soon: Some(0.80),
        now: Some(0.90),
        minutes: 0,
        essential: true,
        action: "make the disk larger, or move the node to one that is",
        source: "Orion: alert above 80 %, critical above 90 %; a young system moves on at 70 % there (advise explain growth.timeline)",
    },
    Threshold {
        signal: Signal::DiskFull,
        id: "disk_full",
        title: "appends refused for lack of disk space",
        scope: Scope::Node,
        unit: Unit::Count,
        expr: Some("fastpaca_disk_full"),
        soon: None,
        now: Some(0.0),
        minutes: 0,
        essential: true,
        action: "free space below FASTPACA_DATA_DIR now; appends go on by themselves once there is some",
        source: "this server refuses appends below FASTPACA_DISK_RESERVE_BYTES",
    },
    Threshold {
        signal: Signal::Streams,
        id: "streams",
        title: "open streams, of FASTPACA_STREAM_MAX_CONNECTIONS",
        scope: Scope::Node,
        unit: Unit::Share,
        expr: Some("fastpaca_streams / on(instance, job) fastpaca_stream_limit"),
        soon: Some(0.80),
        now: Some(0.95),
        minutes: 5,
        essential: true,
        action: "raise FASTPACA_STREAM_MAX_CONNECTIONS; a stream takes little memory (advise explain memory.streams)",
        source: "Fastpaca: 512 a node; the share is that of Orion and StudyGuru for other pools (80 %)",
    },
    Threshold {
        signal: Signal::Connections,
        id: "connections",
        title: "open connections, of FASTPACA_MAX_CONNECTIONS",
        scope: Scope::Node,
        unit: Unit::Share,
        expr: Some("fastpaca_connections / on(instance, job) fastpaca_connection_limit"),
        soon: Some(0.80),
        now: Some(0.95),
        minutes: 5,
        essential: true,
        action: "raise FASTPACA_MAX_CONNECTIONS, or have clients keep fewer",
        source: "StudyGuru: connections above 80 % of a pool",
    },
    Threshold {
        signal: Signal::ArchiveBacklog,
        id: "archive_backlog",
        title: "messages not yet in Postgres",
        scope: Scope::Node,
        unit: Unit::Messages,
        expr: Some("fastpaca_raft_pending_flush_messages"),
        soon: Some(50_000.0),
        now: Some(500_000.0),
        minutes: 10,
        essential: false,
        action: "look at Postgres: is it up, are its connections used up, is its disk slow? docs/archive.md says what may stop it",
        source: "ten batches of 5,000 (Fastpaca) for 10 minutes, as Orion's queue of tasks for more than 10 minutes",
    },
    Threshold {
        signal: Signal::ArchiveStopped,
        id: "archive_stopped",
        title: "conversations that are no longer archived",
        scope: Scope::Node,
        unit: Unit::Count,
        // One that is being tried again is not counted for that moment.
        expr: Some("max_over_time(fastpaca_archive_stopped_conversations[10m])"),
        soon: Some(0.0),
        now: None,
        minutes: 0,
        essential: false,
        action: "the archive holds something else for them (archive_conflict in the log): `fastpaca archive verify --conversation ID` names what differs",
        source: "this server stops a conversation that conflicts, and tries it again every five minutes (docs/archive.md)",
    },
    Threshold {
        signal: Signal::TrimsRefused,
        id: "trims_refused",
        title: "trims refused in an hour, since Postgres lacks events that were archived",
        scope: Scope::Node,
        unit: Unit::Count,
        // Looks at the records are minutes apart, or more, where the flush interval is long.
        expr: Some("increase(fastpaca_trims_refused_total[1h])"),
        soon: Some(0.0),
        now: None,
        minutes: 0,
        essential: false,
        action: "Postgres has lost rows (a standby promoted too early, an older restore, another database): `fastpaca archive verify` names them; the nodes keep what they have and send it again",
        source: "this server trims nothing that Postgres does not hold (docs/archive.md)",
    },
    Threshold {
        signal: Signal::GroupsWithoutLeader,
        id: "groups_without_leader",
        title: "Raft groups that nobody leads",
        scope: Scope::Cluster,
        unit: Unit::Count,
        expr: Some("257 - sum by (job) (fastpaca_group_leaders)"),
        soon: None,
        now: Some(0.0),
        minutes: 1,
        essential: true,
        action: "bring lost nodes back: a group without a majority takes no writes",
        source: "this server: 256 groups and that of the cluster state; an election takes seconds. The leaders of a node that is not scraped are missing here",
    },
    Threshold {
        signal: Signal::LinksMissing,
        id: "links",
        title: "other nodes that a node has no link to",
        scope: Scope::Node,
        unit: Unit::Count,
        expr: Some(
            "count by (job) (fastpaca_peer_links_up) - 1 - on(job) group_right fastpaca_peer_links_up",
        ),
        soon: Some(0.0),
        now: None,
        minutes: 5,
        essential: false,
        action: "look at `fastpaca cluster status`: a node is down, or the network between two of them",
        source: "docs/cluster.md",
    },
    Threshold {
        signal: Signal::RoundTrip,
        id: "rtt",
        title: "round trip of the last ping to another node",
        scope: Scope::Cluster,
        unit: Unit::Milliseconds,
        expr: None,
        soon: Some(5.0),
        now: None,
        minutes: 0,
        essential: false,
        action: "every write waits for it: keep the nodes in one zone or region; look at the network between them, and at the CPU of the one that answers late",
        source: "Fastpaca: replicas within one zone or region, below 5 ms",
    },
    Threshold {
        signal: Signal::LeaderImbalance,
        id: "leader_balance",
        title: "leaders on the node with most of them, of an even share",
        scope: Scope::Cluster,
        unit: Unit::Ratio,
        expr: Some("max by (job) (fastpaca_group_leaders) / avg by (job) (fastpaca_group_leaders)"),
        soon: Some(1.5),
        now: None,
        minutes: 15,
        essential: false,
        action: "the cluster evens leaders out by itself over the nodes that are up and active: look for one that is draining, undrain or remove it",
        source: "this server: leaders move a few at a time; with one of three nodes drained it is 1.5 or more for good, one that is down is not counted",
    },
];

/// The threshold of a signal.
pub fn of(signal: Signal) -> &'static Threshold {
    THRESHOLDS.iter().find(|threshold| threshold.signal == signal).expect("a test finds all of them")
}

pub const THRESHOLD: Rule = Rule {
    id: "check.thresholds",
    title: "when to act, and how soon",
    formula: "a figure above `soon` or `now` for as long as the table says",
    inputs: "/metrics, /v1/cluster, /proc of a local node's machine, Prometheus",
    source: "the table of thresholds in docs/advise.md, each with its source",
    departs: "Orion alerts on memory at 85 % but scales at 80 %, StudyGuru only knows 80 %: both are kept, as `now` and `soon`. \
              Orion investigates a p95 of 1 s and alerts at 2 s, StudyGuru acts at 1 s: a request here is not a model call, so \
              `now` is the stricter one and `soon` follows from this server's own figures. Workers, Celery queues and Redis \
              memory have no counterpart in a node.",
};

impl Threshold {
    /// Where `value` stands.
    pub fn level(&self, value: f64) -> Level {
        match value {
            _ if self.now.is_some_and(|limit| value > limit) => Level::Now,
            _ if self.soon.is_some_and(|limit| value > limit) => Level::Soon,
            _ => Level::Fine,
        }
    }

    /// The limit that counts first.
    pub fn first_limit(&self) -> f64 {
        self.soon.or(self.now).expect("a test sees that every row has one")
    }

    pub fn show(&self, value: f64) -> String {
        use super::units;
        match self.unit {
            Unit::Share => units::percent(value),
            Unit::Milliseconds => format!("{} ms", units::number(value)),
            Unit::Messages | Unit::Count => units::number(value),
            Unit::Ratio => format!("{} ×", units::number(value)),
            Unit::PerSecond => units::rate(value),
        }
    }
}

/// How urgent something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    Fine,
    Soon,
    Now,
}

/// The table of the documentation.
pub fn markdown_table() -> String {
    let mut text = String::from(
        "| id | what | soon | now | for | expression | what to do | source |\n| --- | --- | --- | --- | --- | --- | --- | --- |\n",
    );
    for row in THRESHOLDS {
        let limit =
            |limit: Option<f64>| limit.map_or("-".to_owned(), |limit| format!("> {}", row.show(limit)));
        let expr =
            row.expr.map_or("only `advise check`, by `/v1/cluster`".to_owned(), |expr| format!("`{expr}`"));
        let lasting = if row.minutes == 0 { "at once".to_owned() } else { format!("{} min", row.minutes) };
        text.push_str(&format!(
            "| `{}` | {} | {} | {} | {lasting} | {expr} | {} | {} |\n",
            row.id,
            row.title,
            limit(row.soon),
            limit(row.now),
            row.action,
            row.source
        ));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_can_be_crossed_and_told_from_the_others() {
        for row in THRESHOLDS {
            let limit = row.first_limit();
            assert_eq!(row.level(limit), Level::Fine, "{}", row.id);
            assert_ne!(row.level(limit + 1.0), Level::Fine, "{}", row.id);
            assert!(row.soon.zip(row.now).is_none_or(|(soon, now)| soon < now), "{}", row.id);
            assert_eq!(of(row.signal).id, row.id);
            assert_eq!(THRESHOLDS.iter().filter(|other| other.id == row.id).count(), 1);
        }
    }
}
