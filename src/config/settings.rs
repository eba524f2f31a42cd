//! Every setting, once: its key, default, meaning, and the field it sets (whose type carries the parser
//! and the range). The environment variable, the sample file and the documentation follow from this table.

use std::ops::RangeInclusive;

use super::Config;
use super::field::Field;

/// What every environment variable begins with.
pub(super) const PREFIX: &str = "FASTPACA_";

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const TIB: u64 = 1 << 40;

/// Largest request body that any setting allows.
pub(crate) const BODY_BYTES_MAX: u64 = 64 * MIB;

const COUNT: RangeInclusive<u64> = 1..=1_000_000;
const CACHE: RangeInclusive<u64> = MIB..=TIB;
const TIMEOUT: RangeInclusive<u64> = 100..=3_600_000;

/// One setting.
pub(super) struct Setting {
    pub(super) section: &'static str,
    /// The key in the file; upper-cased behind [`PREFIX`] it is the environment variable.
    pub(super) key: &'static str,
    /// `None`: nothing, and the documentation says what that means.
    pub(super) default: Option<&'static str>,
    /// What the sample shows where there is no default.
    pub(super) example: &'static str,
    pub(super) doc: &'static str,
    pub(super) field: fn(&mut Config) -> Field<'_>,
}

impl Setting {
    pub(super) fn env_name(&self) -> String {
        env_name(self.key)
    }

    pub(super) fn accepts(&self) -> String {
        (self.field)(&mut Config::unset()).accepts()
    }

    pub(super) fn is_secret(&self) -> bool {
        (self.field)(&mut Config::unset()).is_secret()
    }
}

/// The environment variable of a key.
pub(super) fn env_name(key: &str) -> String {
    format!("{PREFIX}{}", key.to_uppercase())
}

/// The setting with this key.
pub(super) fn find(key: &str) -> Option<&'static Setting> {
    SETTINGS.iter().find(|setting| setting.key == key)
}

/// Where this key stands in the table.
pub(super) fn position(key: &str) -> usize {
    SETTINGS.iter().position(|setting| setting.key == key).expect("asked for a key of the table")
}

const NODE: &str = "Node";
const ACCESS: &str = "Access";
const LOGS: &str = "Logs and traces";
const CLUSTER: &str = "Cluster";
const LIMITS: &str = "Limits";
const STORAGE: &str = "Storage";
const ARCHIVE: &str = "Archive";
const COMMANDS: &str = "Commands";

/// In the order of the documentation.
pub(super) static SETTINGS: &[Setting] = &[
    Setting {
        section: NODE,
        key: "node_name",
        default: None,
        example: "node-1",
        doc: "Name of this node. Unset: a random UUID, made at the first start and kept in the data directory.",
        field: |c| Field::Name(&mut c.node_name),
    },
    Setting {
        section: NODE,
        key: "data_dir",
        default: Some("./data"),
        example: "",
        doc: "Where the node keeps everything it must not lose. The container image sets /data.",
        field: |c| Field::Path(&mut c.data_dir),
    },
    Setting {
        section: NODE,
        key: "run_as",
        default: None,
        example: "10001:10001",
        doc: "What a server that is started as root goes on as, after giving data_dir to it. Unset, or started \
              as anybody else: it stays who it is. The container image sets 10001:10001.",
        field: |c| Field::RunAs(&mut c.run_as),
    },
    Setting {
        section: NODE,
        key: "listen",
        default: Some("0.0.0.0:4000"),
        example: "",
        doc: "Address and port of the one listener: REST, streams, health and metrics.",
        field: |c| Field::Address(&mut c.listen),
    },
    Setting {
        section: NODE,
        key: "worker_threads",
        default: Some("0"),
        example: "",
        doc: "Threads that serve requests; 0 = one per core.",
        field: |c| Field::Count(&mut c.worker_threads, 0..=1024),
    },
    Setting {
        section: NODE,
        key: "pin_workers",
        default: Some("true"),
        example: "",
        doc: "Keep each thread that serves requests on a core of its own, if the process may use exactly as many \
              cores as it has of them; those of the links between nodes likewise. false = the system places them.",
        field: |c| Field::Flag(&mut c.pin_workers),
    },
    Setting {
        section: NODE,
        key: "token_estimator",
        default: Some("tiktoken:gpt-4o"),
        example: "",
        doc: "How tokens are counted for messages sent without token_count. It holds for messages \
              appended from now on; stored counts stay.",
        field: |c| Field::Estimator(&mut c.token_estimator),
    },
    Setting {
        section: ACCESS,
        key: "api_key",
        default: None,
        example: "key-in-use,key-coming-next",
        doc: "Keys that are accepted as `Authorization: Bearer KEY`, comma-separated so that they can be \
              rotated. Unset: no authentication. Prefer the environment to a file for secrets.",
        field: |c| Field::Secrets(&mut c.api_keys),
    },
    Setting {
        section: ACCESS,
        key: "metrics_public",
        default: Some("true"),
        example: "",
        doc: "Whether /metrics is answered without a key. Health always is.",
        field: |c| Field::Flag(&mut c.metrics_public),
    },
    Setting {
        section: ACCESS,
        key: "console",
        default: Some("true"),
        example: "",
        doc: "Whether /console serves the operator's page. The page needs no key, all that it shows does.",
        field: |c| Field::Flag(&mut c.console),
    },
    Setting {
        section: LOGS,
        key: "log",
        default: Some("info,openraft=error,sled=warn"),
        example: "",
        doc: "What is logged, as a level or per module (`warn,fastpaca::raft=info`). Release builds contain \
              info and above.",
        field: |c| Field::Filter(&mut c.log),
    },
    Setting {
        section: LOGS,
        key: "log_format",
        default: Some("json"),
        example: "",
        doc: "One JSON object a line, or text for people.",
        field: |c| Field::LogFormat(&mut c.log_format),
    },
    Setting {
        section: LOGS,
        key: "otlp_endpoint",
        default: None,
        example: "http://127.0.0.1:4318",
        doc: "Collector that traces are sent to, as OTLP over HTTP with JSON. Set it on all nodes. Unset: no traces.",
        field: |c| Field::Collector(&mut c.otlp_endpoint),
    },
    Setting {
        section: LOGS,
        key: "otlp_sample_one_in",
        default: Some("1"),
        example: "",
        doc: "Of the requests that bring no `traceparent` header, one in so many is traced. Those that bring one say \
              so themselves.",
        field: |c| Field::Rate(&mut c.otlp_sample_one_in, COUNT),
    },
    Setting {
        section: CLUSTER,
        key: "cluster_seed",
        default: None,
        example: "node-1:4000,node-2:4000,node-3:4000",
        doc: "Where other nodes may be found. A name that resolves to several addresses means all of them; it \
              is resolved again while the node runs, and may be the node itself. Unset: a cluster of one, which \
              others may join.",
        field: |c| Field::Hosts(&mut c.cluster_seeds),
    },
    Setting {
        section: CLUSTER,
        key: "cluster_secret",
        default: None,
        example: "secret-in-use,secret-coming-next",
        doc: "What the nodes prove to each other that they know, comma-separated so that it can be rotated: \
              two nodes need one in common. At most 16. Unset: derived from api_key (its first 16), and if that is \
              unset too, any node that reaches this one is let in.",
        field: |c| Field::Secrets(&mut c.cluster_secrets),
    },
    Setting {
        section: CLUSTER,
        key: "advertise_addr",
        default: None,
        example: "node-1.example.org:4000",
        doc: "Where other nodes dial this one. Unset: the address they see it under, with the port of listen.",
        field: |c| Field::Host(&mut c.advertise_addr),
    },
    Setting {
        section: CLUSTER,
        key: "cluster_size",
        default: Some("3"),
        example: "",
        doc: "How many nodes with seeds must meet before they found a cluster. Later ones join it.",
        field: |c| Field::Count(&mut c.cluster_size, 1..=64),
    },
    Setting {
        section: CLUSTER,
        key: "replace",
        default: Some("false"),
        example: "",
        doc: "Whether this node, empty, may take the place of the node of its name that the cluster knows and \
              that is gone for good.",
        field: |c| Field::Flag(&mut c.replace),
    },
    Setting {
        section: CLUSTER,
        key: "snapshot_bytes_per_second",
        default: Some("8MiB"),
        example: "",
        doc: "What this node sends a second of snapshots, to new, replaced and lagging nodes together. More lets them \
              catch up sooner and costs appends more meanwhile.",
        field: |c| Field::Size(&mut c.snapshot_bytes_per_second, MIB..=64 * GIB),
    },
    Setting {
        section: CLUSTER,
        key: "tls_cert",
        default: None,
        example: "/etc/fastpaca/tls.crt",
        doc: "PEM file with the certificate chain of this node. Set together with tls_key: the listener then \
              speaks TLS only, with clients and with nodes. Unset: no TLS.",
        field: |c| Field::File(&mut c.tls_cert),
    },
    Setting {
        section: CLUSTER,
        key: "tls_key",
        default: None,
        example: "/etc/fastpaca/tls.key",
        doc: "PEM file with the private key of tls_cert.",
        field: |c| Field::File(&mut c.tls_key),
    },
    Setting {
        section: CLUSTER,
        key: "tls_ca",
        default: None,
        example: "/etc/fastpaca/ca.crt",
        doc: "PEM file with the certificates that other nodes' certificates must be signed by. They must be \
              valid for the IP address that is dialled or for the host of a seed. A node that has it must have \
              tls_cert too. Unset: those in tls_cert.",
        field: |c| Field::File(&mut c.tls_ca),
    },
    Setting {
        section: LIMITS,
        key: "stream_max_connections",
        default: Some("512"),
        example: "",
        doc: "Open streams (websocket and SSE), exports and long polls on this node; beyond it 503 too_many_streams.",
        field: |c| Field::Count(&mut c.stream_max_connections, COUNT),
    },
    Setting {
        section: LIMITS,
        key: "body_max_bytes",
        default: Some("1MiB"),
        example: "",
        doc: "Largest request body; beyond it 413 too_large.",
        field: |c| Field::Size(&mut c.body_max_bytes, KIB..=BODY_BYTES_MAX),
    },
    Setting {
        section: LIMITS,
        key: "batch_body_max_bytes",
        default: Some("8MiB"),
        example: "",
        doc: "Largest body of a batch append or a compaction; beyond it 413 too_large. At least body_max_bytes. The same on all \
              nodes of a cluster: what a group's leader takes and another node does not is 503 unavailable.",
        field: |c| Field::Size(&mut c.batch_body_max_bytes, KIB..=256 * MIB),
    },
    Setting {
        section: LIMITS,
        key: "max_connections",
        default: Some("4096"),
        example: "",
        doc: "Open client connections; beyond it new ones are closed at once. At least max_connections_per_address.",
        field: |c| Field::Count(&mut c.max_connections, COUNT),
    },
    Setting {
        section: LIMITS,
        key: "max_connections_per_address",
        default: Some("2048"),
        example: "",
        doc: "Open client connections from one IP address. At most max_connections; raise it to that behind a load \
              balancer.",
        field: |c| Field::Count(&mut c.max_connections_per_address, COUNT),
    },
    Setting {
        section: LIMITS,
        key: "max_inflight_requests",
        default: Some("1024"),
        example: "",
        doc: "Requests being served at once, streams and requests of operators apart; beyond it 503 unavailable.",
        field: |c| Field::Count(&mut c.max_inflight_requests, COUNT),
    },
    Setting {
        section: LIMITS,
        key: "rate_limit_per_second",
        default: Some("0"),
        example: "",
        doc: "Requests a second this node takes, in all, those of operators apart; beyond it 429 rate_limited. 0 = no limit.",
        field: |c| Field::Rate(&mut c.rate_limit_per_second, 0..=10_000_000),
    },
    Setting {
        section: LIMITS,
        key: "rate_limit_burst",
        default: Some("0"),
        example: "",
        doc: "Requests taken at once after a quiet time; 0 = as many as one second allows.",
        field: |c| Field::Rate(&mut c.rate_limit_burst, 0..=10_000_000),
    },
    Setting {
        section: LIMITS,
        key: "header_timeout_ms",
        default: Some("10000"),
        example: "",
        doc: "Time for a client to send the headers of a request; then the connection is closed.",
        field: |c| Field::Millis(&mut c.header_timeout, TIMEOUT),
    },
    Setting {
        section: LIMITS,
        key: "body_timeout_ms",
        default: Some("30000"),
        example: "",
        doc: "Time for a client to send the body of a request; then 408 and the connection is closed.",
        field: |c| Field::Millis(&mut c.body_timeout, TIMEOUT),
    },
    Setting {
        section: LIMITS,
        key: "request_timeout_ms",
        default: Some("30000"),
        example: "",
        doc: "Time to serve a request once it has been read, streams, exports and long polls apart.",
        field: |c| Field::Millis(&mut c.request_timeout, TIMEOUT),
    },
    Setting {
        section: LIMITS,
        key: "shutdown_timeout_ms",
        default: Some("25000"),
        example: "",
        doc: "Time for a shutdown to finish requests, close streams and checkpoint; then the process exits \
              anyway. Keep it below the grace period of whatever stops the process.",
        field: |c| Field::Millis(&mut c.shutdown_timeout, TIMEOUT),
    },
    Setting {
        section: STORAGE,
        key: "segment_bytes",
        default: Some("64MiB"),
        example: "",
        doc: "Size of a journal segment, for new ones. At least twice batch_body_max_bytes, of every node of the cluster.",
        field: |c| Field::Size(&mut c.segment_bytes, MIB..=GIB),
    },
    Setting {
        section: STORAGE,
        key: "disk_reserve_bytes",
        default: Some("256MiB"),
        example: "",
        doc: "Free space below which appends are refused (503 unavailable) while reads go on; what is left \
              is for the node's own bookkeeping.",
        field: |c| Field::Size(&mut c.disk_reserve_bytes, MIB..=TIB),
    },
    Setting {
        section: STORAGE,
        key: "checkpoint_bytes",
        default: Some("64MiB"),
        example: "",
        doc: "Journal bytes after which a checkpoint is made; a restart replays at most about twice as much.",
        field: |c| Field::Size(&mut c.checkpoint_bytes, MIB..=64 * GIB),
    },
    Setting {
        section: STORAGE,
        key: "checkpoint_interval_ms",
        default: Some("30000"),
        example: "",
        doc: "Time after which a checkpoint is made if anything changed.",
        field: |c| Field::Millis(&mut c.checkpoint_interval, TIMEOUT),
    },
    Setting {
        section: STORAGE,
        key: "reclaim_interval_ms",
        default: Some("60000"),
        example: "",
        doc: "How often it is looked whether segments of the journal can be reclaimed, if anything was appended. A look \
              that takes long, since the index is large, is followed by a rest of nine times as long.",
        field: |c| Field::Millis(&mut c.reclaim_interval, 100..=86_400_000),
    },
    Setting {
        section: STORAGE,
        key: "reclaim_dead_percent",
        default: Some("50"),
        example: "",
        doc: "How much of their space, in percent, removing the oldest segments must gain. What they still hold of live \
              messages, and one copy of all records, is first written again at the end of the journal. 50: at least \
              half of the space must be gained. Lower keeps the disk smaller and writes more. 100 turns reclaiming off.",
        field: |c| Field::Count(&mut c.reclaim_dead_percent, 10..=100),
    },
    Setting {
        section: STORAGE,
        key: "reclaim_bytes_per_second",
        default: Some("32MiB"),
        example: "",
        doc: "What reclaiming reads of the index and writes to the journal in a second, at most.",
        field: |c| Field::Size(&mut c.reclaim_bytes_per_second, 64 * KIB..=64 * GIB),
    },
    Setting {
        section: STORAGE,
        key: "record_cache_bytes",
        default: Some("48MiB"),
        example: "",
        doc: "Memory for conversation records.",
        field: |c| Field::Size(&mut c.record_cache_bytes, CACHE),
    },
    Setting {
        section: STORAGE,
        key: "message_cache_bytes",
        default: Some("48MiB"),
        example: "",
        doc: "Memory for message bodies.",
        field: |c| Field::Size(&mut c.message_cache_bytes, CACHE),
    },
    Setting {
        section: STORAGE,
        key: "window_cache_bytes",
        default: Some("48MiB"),
        example: "",
        doc: "Memory for windows as they were last answered.",
        field: |c| Field::Size(&mut c.window_cache_bytes, CACHE),
    },
    Setting {
        section: STORAGE,
        key: "index_cache_bytes",
        default: Some("32MiB"),
        example: "",
        doc: "Memory for pages of the index (the cache of sled).",
        field: |c| Field::Size(&mut c.index_cache_bytes, CACHE),
    },
    Setting {
        section: ARCHIVE,
        key: "postgres_url",
        default: None,
        example: "postgres://fastpaca:password@db.example.org/fastpaca?sslmode=verify-full",
        doc: "Database that committed versions are archived in. Unset: no archive. Prefer the environment to a file for \
              secrets.",
        field: |c| Field::Url(&mut c.postgres_url),
    },
    Setting {
        section: ARCHIVE,
        key: "postgres_pool_size",
        default: Some("20"),
        example: "",
        doc: "Connections to the archive, at most. Writing takes up to four.",
        field: |c| Field::Count(&mut c.postgres_pool_size, 1..=1_000),
    },
    Setting {
        section: ARCHIVE,
        key: "flush_interval_ms",
        default: Some("5000"),
        example: "",
        doc: "Time between two looks at what the archive lacks.",
        field: |c| Field::Millis(&mut c.flush_interval, 10..=3_600_000),
    },
    Setting {
        section: ARCHIVE,
        key: "flush_batch_size",
        default: Some("5000"),
        example: "",
        doc: "Rows written to the archive in one transaction, at most.",
        field: |c| Field::Count(&mut c.flush_batch_size, 1..=100_000),
    },
    Setting {
        section: ARCHIVE,
        key: "tail_keep",
        default: None,
        example: "1000",
        doc: "Newest events of a conversation that stay in its log; older ones are trimmed once they are archived and no \
              window shows them, and are then read from the archive. Needs postgres_url. Unset: all stay.",
        field: |c| Field::Bound(&mut c.tail_keep, 0..=1_000_000_000),
    },
    Setting {
        section: ARCHIVE,
        key: "migrate",
        default: Some("true"),
        example: "",
        doc: "Whether the server brings the schema of the archive up to date when it starts. With false it only checks \
              it, and `fastpaca migrate` is what changes it.",
        field: |c| Field::Flag(&mut c.migrate),
    },
    Setting {
        section: COMMANDS,
        key: "url",
        default: None,
        example: "http://127.0.0.1:4000",
        doc: "The node that commands ask, unless `--url` names one. Unset: the one of `listen`, on this machine. The \
              server has no use for it.",
        field: |c| Field::NodeUrl(&mut c.url),
    },
];
