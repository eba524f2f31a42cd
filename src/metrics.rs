//! Every metric of the server, once: name, help text and the field that sets it.
//!
//! Exposed as Prometheus text on `/metrics`. No metric carries an id as a label. Children of labelled metrics are
//! resolved when the registry is built, so that the hot path never looks a label up.

use std::path::Path;
use std::sync::Arc;

use prometheus::core::{Collector, Desc, MetricVec, MetricVecBuilder};
use prometheus::proto::MetricFamily;
use prometheus::{
    Encoder, Gauge, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, Opts,
    Registry, TextEncoder,
};

mod process;
mod room;

pub(crate) use self::room::{MEMINFO, meminfo_bytes};

/// 0.1 ms to 10 s.
const LATENCY_MS: &[f64] = &[
    0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1_000.0, 2_500.0, 5_000.0, 10_000.0,
];
const SYNC_SECONDS: &[f64] =
    &[0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.1, 0.5, 2.0];
const COUNT_SECONDS: &[f64] = &[0.000_01, 0.000_05, 0.000_1, 0.000_5, 0.001, 0.005, 0.025, 0.1, 0.5, 2.5];
const BATCH_BYTES: &[f64] = &[4_096.0, 16_384.0, 65_536.0, 262_144.0, 1_048_576.0, 4_194_304.0, 16_777_216.0];
const COUNTS: &[f64] = &[1.0, 4.0, 16.0, 64.0, 256.0, 1_024.0, 4_096.0];
const TOKENS: &[f64] =
    &[100.0, 500.0, 1_000.0, 4_000.0, 16_000.0, 64_000.0, 128_000.0, 256_000.0, 1_000_000.0];
const CALL_SECONDS: &[f64] =
    &[0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.1, 0.5, 2.5, 10.0];
/// The lanes of a link, by their numbers.
pub(crate) const LANES: [&str; 3] = ["control", "log", "bulk"];
/// Why a handshake was refused, by the reasons' numbers.
pub(crate) const REFUSALS: [&str; 10] = [
    "other",
    "malformed",
    "wrong_secret",
    "other_cluster",
    "no_common_protocol",
    "same_name",
    "same_id",
    "yourself",
    "full",
    "outdated_data",
];
/// Why the archive was not written, by the kinds' numbers.
const ARCHIVE_FAILURES: [&str; 12] = [
    "other",
    "connection",
    "denied",
    "schema",
    "read_only",
    "disk_full",
    "pool_exhausted",
    "timeout",
    "data",
    "conflict",
    "log",
    "mark",
];
const FLUSH_SECONDS: &[f64] = &[0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];
const CHECKPOINT_SECONDS: &[f64] = &[0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];

macro_rules! metrics {
    ($( $(#[doc = $help:literal])+ $field:ident: $kind:ident $args:tt = $name:literal, )+) => {
        /// The registry and a handle to each metric. Clones share them.
        #[derive(Clone)]
        pub struct Metrics(Arc<Registered>);

        /// See [`Metrics`]; a field's documentation is the metric's help text.
        pub struct Registered {
            registry: Registry,
            $( $(#[doc = $help])+ pub $field: metrics!(@type $kind), )+
        }

        impl Metrics {
            /// A registry of its own, so that several servers can live in one process.
            pub fn new() -> Self {
                let registry = Registry::new();
                $( let $field = metrics!(@make $kind $args $name, concat!($($help),+).trim_start()); )+
                $( register(&registry, $field.clone()); )+
                process::register(&registry);
                Self(Arc::new(Registered { registry, $( $field: $field.into(), )+ }))
            }
        }
    };
    (@type Counter) => { IntCounter };
    (@type Gauge) => { IntGauge };
    (@type Float) => { Gauge };
    (@type Histogram) => { Histogram };
    (@type StatusClasses) => { StatusClasses };
    (@type LaneCounters) => { Children<IntCounter> };
    (@type LaneHistograms) => { Children<Histogram> };
    (@type ArchiveFailures) => { Children<IntCounter> };
    (@type RefusalCounters) => { Children<IntCounter> };
    (@make Counter () $name:literal, $help:expr) => { valid(IntCounter::new($name, $help)) };
    (@make Gauge () $name:literal, $help:expr) => { valid(IntGauge::new($name, $help)) };
    (@make Float () $name:literal, $help:expr) => { valid(Gauge::new($name, $help)) };
    (@make Histogram ($buckets:expr) $name:literal, $help:expr) => {
        valid(Histogram::with_opts(HistogramOpts::new($name, $help).buckets($buckets.to_vec())))
    };
    (@make StatusClasses () $name:literal, $help:expr) => {
        valid(IntCounterVec::new(Opts::new($name, $help), &["status"]))
    };
    (@make LaneCounters () $name:literal, $help:expr) => {
        Family::new(valid(IntCounterVec::new(Opts::new($name, $help), &["lane"])), &LANES)
    };
    (@make LaneHistograms ($buckets:expr) $name:literal, $help:expr) => {{
        let options = HistogramOpts::new($name, $help).buckets($buckets.to_vec());
        Family::new(valid(HistogramVec::new(options, &["lane"])), &LANES)
    }};
    (@make ArchiveFailures () $name:literal, $help:expr) => {
        Family::new(valid(IntCounterVec::new(Opts::new($name, $help), &["kind"])), &ARCHIVE_FAILURES)
    };
    (@make RefusalCounters () $name:literal, $help:expr) => {
        Family::new(valid(IntCounterVec::new(Opts::new($name, $help), &["reason"])), &REFUSALS)
    };
}

metrics! {
    /// Time to answer an append, from the parsed request to the reply, in milliseconds.
    append_latency_ms: Histogram(LATENCY_MS) = "fastpaca_append_latency_ms",
    /// Time to answer a window, in milliseconds.
    window_latency_ms: Histogram(LATENCY_MS) = "fastpaca_window_latency_ms",
    /// Tokens of the windows served, a distribution over conversations.
    snapshot_token_count: Histogram(TOKENS) = "fastpaca_snapshot_token_count",
    /// Compaction requests that were applied.
    compaction_requests_total: Counter() = "fastpaca_compaction_requests_total",
    /// Committed versions (messages, and other changes) of the groups led here that the archive lacks, as far as they
    /// were counted since this node came to lead; 0 while no archive is configured.
    raft_pending_flush_messages: Gauge() = "fastpaca_raft_pending_flush_messages",
    /// For how long the archive has lacked something of the groups led here, in seconds; 0 when it lacks nothing.
    archive_lag_seconds: Float() = "fastpaca_archive_lag_seconds",
    /// Time to write one batch to the archive, in seconds.
    archive_flush_seconds: Histogram(FLUSH_SECONDS) = "fastpaca_archive_flush_seconds",
    /// Rows in one batch written to the archive.
    archive_batch_rows: Histogram(COUNTS) = "fastpaca_archive_batch_rows",
    /// Rows sent to the archive in batches that were committed.
    archive_rows_attempted_total: Counter() = "fastpaca_archive_rows_attempted_total",
    /// Rows of those that the archive did not have yet.
    archive_rows_inserted_total: Counter() = "fastpaca_archive_rows_inserted_total",
    /// Failures to write the archive, by kind.
    archive_failures: ArchiveFailures() = "fastpaca_archive_failures_total",
    /// Conversations of the groups led here that are not archived, since the archive holds something else for them.
    archive_stopped_conversations: Gauge() = "fastpaca_archive_stopped_conversations",
    /// Events of the groups led here that were trimmed: the archive alone has their bytes from then on.
    trimmed_events_total: Counter() = "fastpaca_trimmed_events_total",
    /// Times that a conversation was not trimmed further, since the archive lacks events that it is marked to hold.
    trims_refused_total: Counter() = "fastpaca_trims_refused_total",
    /// Trimmed events that were read from the archive.
    archive_reads_total: Counter() = "fastpaca_archive_read_events_total",
    /// Failures to read trimmed events from the archive.
    archive_read_failures_total: Counter() = "fastpaca_archive_read_failures_total",
    /// Heartbeats sent to other nodes; one tells of all groups.
    heartbeats_total: Counter() = "fastpaca_heartbeats_total",
    /// Events appended.
    appended_events_total: Counter() = "fastpaca_appended_events_total",
    /// Bytes of message bodies appended.
    appended_bytes_total: Counter() = "fastpaca_appended_bytes_total",
    /// Appends answered from a remembered idempotency key.
    idempotent_replays_total: Counter() = "fastpaca_idempotent_replays_total",
    /// Time to count the tokens of one request, in seconds.
    token_count_seconds: Histogram(COUNT_SECONDS) = "fastpaca_token_count_seconds",
    /// HTTP requests answered, by class of status; those about health are not counted.
    http_requests: StatusClasses() = "fastpaca_http_requests_total",
    /// HTTP requests being served.
    http_inflight: Gauge() = "fastpaca_http_requests_inflight",
    /// Requests refused by the rate limit.
    rate_limited_total: Counter() = "fastpaca_rate_limited_total",
    /// Requests refused because too many, or too large answers, were being served.
    overloaded_total: Counter() = "fastpaca_overloaded_total",
    /// Open client connections that are allowed.
    connection_limit: Gauge() = "fastpaca_connection_limit",
    /// Open client connections.
    connections: Gauge() = "fastpaca_connections",
    /// Connections refused because there were too many.
    connections_refused_total: Counter() = "fastpaca_connections_refused_total",
    /// Open streams, exports and long polls that are allowed.
    stream_limit: Gauge() = "fastpaca_stream_limit",
    /// Open streams (websocket and server-sent events), exports and long polls.
    streams: Gauge() = "fastpaca_streams",
    /// Frames sent on streams.
    stream_frames_total: Counter() = "fastpaca_stream_frames_total",
    /// Streams closed because their reader took nothing for too long.
    slow_streams_closed_total: Counter() = "fastpaca_slow_streams_closed_total",
    /// Raft groups with a replica on this node, that of the cluster state (256) included.
    groups_hosted: Gauge() = "fastpaca_groups_hosted",
    /// Raft groups led by this node, that of the cluster state (256) included: 257 over all nodes.
    group_leaders: Gauge() = "fastpaca_group_leaders",
    /// Log entries that the replica furthest behind has yet to receive, of the groups led by this node.
    replica_lag_entries: Gauge() = "fastpaca_replica_lag_entries",
    /// Commands proposed and not yet answered.
    proposals_inflight: Gauge() = "fastpaca_proposals_inflight",
    /// Bytes of commands proposed and not yet answered.
    proposed_bytes: Gauge() = "fastpaca_proposed_bytes",
    /// Requests sent on to another node, since it leads or hosts their group.
    forwarded_requests_total: Counter() = "fastpaca_forwarded_requests_total",
    /// Requests sent on that came back without an answer: not sent, lost, or refused.
    forward_failures_total: Counter() = "fastpaca_forward_failures_total",
    /// Times a request was tried again, since no leader was known or the node asked was not the leader.
    routing_retries_total: Counter() = "fastpaca_routing_retries_total",
    /// Requests served for other nodes.
    served_for_peers_total: Counter() = "fastpaca_served_for_peers_total",
    /// Appends whose outcome was unknown when they were answered.
    unknown_outcomes_total: Counter() = "fastpaca_unknown_outcomes_total",
    /// Time of a journal fsync, in seconds.
    journal_fsync_seconds: Histogram(SYNC_SECONDS) = "fastpaca_journal_fsync_seconds",
    /// Bytes written per journal batch, with headers and padding.
    journal_batch_bytes: Histogram(BATCH_BYTES) = "fastpaca_journal_batch_bytes",
    /// Frames per journal batch.
    journal_batch_frames: Histogram(COUNTS) = "fastpaca_journal_batch_frames",
    /// Bytes queued for the journal and not yet on disk.
    journal_queue_bytes: Gauge() = "fastpaca_journal_queue_bytes",
    /// Bytes written to the journal, with headers and padding.
    journal_bytes_total: Counter() = "fastpaca_journal_bytes_total",
    /// Segment files of the journal.
    journal_segments: Gauge() = "fastpaca_journal_segments",
    /// Bytes of the journal's segment files, as of the last look at what can be reclaimed.
    journal_disk_bytes: Gauge() = "fastpaca_journal_disk_bytes",
    /// Bytes of messages and records that are still needed of the journal, as of the last look at what can be reclaimed.
    journal_live_bytes: Gauge() = "fastpaca_journal_live_bytes",
    /// Bytes of segment files that were removed, since what they held is no longer needed or was written anew.
    reclaimed_bytes_total: Counter() = "fastpaca_reclaimed_bytes_total",
    /// Bytes that were written anew so that segments could be removed.
    reclaim_written_bytes_total: Counter() = "fastpaca_reclaim_written_bytes_total",
    /// Times that reclaiming was given up for an error.
    reclaim_failures_total: Counter() = "fastpaca_reclaim_failures_total",
    /// Free bytes on the disk of the data directory.
    disk_free_bytes: Gauge() = "fastpaca_disk_free_bytes",
    /// 1 while appends are refused for lack of disk space.
    disk_full: Gauge() = "fastpaca_disk_full",
    /// Bytes the index occupies on disk.
    index_disk_bytes: Gauge() = "fastpaca_index_disk_bytes",
    /// Time of a checkpoint, in seconds.
    checkpoint_seconds: Histogram(CHECKPOINT_SECONDS) = "fastpaca_checkpoint_seconds",
    /// Unix time of the last checkpoint, in seconds.
    checkpoint_time_seconds: Float() = "fastpaca_checkpoint_time_seconds",
    /// Times the index was rebuilt from the journal.
    index_rebuilds: Counter() = "fastpaca_index_rebuilds_total",
    /// Bytes of conversation records in memory.
    record_bytes: Gauge() = "fastpaca_record_bytes",
    /// Conversation records found in memory.
    record_cache_hits: Counter() = "fastpaca_record_cache_hits_total",
    /// Conversation records looked up in the index.
    record_cache_misses: Counter() = "fastpaca_record_cache_misses_total",
    /// Message bodies found in memory.
    body_cache_hits: Counter() = "fastpaca_body_cache_hits_total",
    /// Message bodies read from the journal.
    body_cache_misses: Counter() = "fastpaca_body_cache_misses_total",
    /// Nodes this one has a link to.
    peer_links_up: Gauge() = "fastpaca_peer_links_up",
    /// Connections of other nodes that were let in and stand.
    peer_connections: Gauge() = "fastpaca_peer_connections",
    /// Connections to other nodes that broke and were dialled again.
    peer_reconnects_total: Counter() = "fastpaca_peer_reconnects_total",
    /// Frames sent to other nodes, by lane.
    peer_frames_sent: LaneCounters() = "fastpaca_peer_frames_sent_total",
    /// Bytes of frames sent to other nodes, by lane.
    peer_bytes_sent: LaneCounters() = "fastpaca_peer_bytes_sent_total",
    /// Time from a call of another node to its answer, in seconds, by lane.
    peer_call_seconds: LaneHistograms(CALL_SECONDS) = "fastpaca_peer_call_seconds",
    /// Connections between nodes that one of them refused, by reason.
    peer_refusals: RefusalCounters() = "fastpaca_peer_refusals_total",
}

impl Metrics {
    /// The exposition in Prometheus text format 0.0.4.
    pub fn render(&self) -> String {
        let mut out = Vec::with_capacity(16 * 1024);
        let encoded = TextEncoder::new().encode(&self.0.registry.gather(), &mut out);
        encoded.expect("writing to memory does not fail, and every family has a name and a type");
        String::from_utf8(out).expect("the text format is UTF-8")
    }

    /// From here on exposes, too, what this process may use of the machine and of the disk of its data directory.
    pub fn show_room(&self, data_dir: &Path) {
        room::register(&self.0.registry, data_dir);
    }

    /// Counts a request by its status code.
    pub fn requests(&self, status: u16) {
        if let Some(counter) = self.0.http_requests.0.get(usize::from(status / 100)) {
            counter.inc();
        }
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl std::ops::Deref for Metrics {
    type Target = Registered;

    fn deref(&self) -> &Registered {
        &self.0
    }
}

/// One counter per class of HTTP status, by its first digit.
pub struct StatusClasses([IntCounter; 6]);

impl From<IntCounterVec> for StatusClasses {
    fn from(family: IntCounterVec) -> Self {
        Self(["other", "1xx", "2xx", "3xx", "4xx", "5xx"].map(|class| family.with_label_values(&[class])))
    }
}

/// The members of a labelled metric, by number.
pub struct Children<T>(Vec<T>);

impl<T> Children<T> {
    /// The member of this number; an unknown number is that of the first.
    pub fn of(&self, number: usize) -> &T {
        self.0.get(number).unwrap_or(&self.0[0])
    }
}

/// A labelled metric while it is being registered.
#[derive(Clone)]
struct Family<V, T> {
    family: V,
    children: Vec<T>,
}

impl<B: MetricVecBuilder> Family<MetricVec<B>, B::M> {
    fn new(family: MetricVec<B>, labels: &[&str]) -> Self {
        let children = labels.iter().map(|label| family.with_label_values(&[*label])).collect();
        Family { family, children }
    }
}

impl<V: Collector, T: Send + Sync> Collector for Family<V, T> {
    fn desc(&self) -> Vec<&Desc> {
        self.family.desc()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        self.family.collect()
    }
}

impl<V, T> From<Family<V, T>> for Children<T> {
    fn from(family: Family<V, T>) -> Self {
        Children(family.children)
    }
}

fn valid<T>(metric: prometheus::Result<T>) -> T {
    metric.expect("names, help texts and buckets are constants of this file")
}

fn register(registry: &Registry, metric: impl Collector + 'static) {
    registry.register(Box::new(metric)).expect("every metric has a name of its own");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_is_exposed_with_help_and_type() {
        let metrics = Metrics::new();
        metrics.requests(201);
        metrics.append_latency_ms.observe(0.7);
        let text = metrics.render();
        assert!(text.contains("# HELP fastpaca_append_latency_ms Time to answer an append,"), "{text}");
        assert!(text.contains("# TYPE fastpaca_append_latency_ms histogram"));
        assert!(text.contains("fastpaca_append_latency_ms_bucket{le=\"1\"} 1"));
        assert!(text.contains("fastpaca_http_requests_total{status=\"2xx\"} 1"));
        assert!(text.contains("process_resident_memory_bytes "));
        let helps = text.lines().filter(|line| line.starts_with("# HELP")).count();
        let types = text.lines().filter(|line| line.starts_with("# TYPE")).count();
        assert_eq!(helps, types);
    }
}
