//! The settings of a plan: every `FASTPACA_*` variable whose value shall differ from its default, and why.
//!
//! Which variables there are is told by [`crate::config`]: a setting that this build does not know is never advised.

use serde::Serialize;

use super::load::Load;
use super::rule::Rule;
use super::units::{MIB, doubling, setting_size};
use super::workload::Workload;

/// The value of what every installation says for itself.
pub const PER_SITE: &str = "(your own)";

/// What this build can be told: variables and their defaults.
#[derive(Debug, Clone)]
pub struct Known(Vec<(String, Option<&'static str>)>);

impl Known {
    /// Those of this build.
    pub fn this_build() -> Known {
        Known(crate::config::variables())
    }

    pub fn knows(&self, name: &str) -> bool {
        self.0.iter().any(|(known, _)| known == name)
    }

    fn default(&self, name: &str) -> Option<&'static str> {
        self.0.iter().find(|(known, _)| known == name).and_then(|(_, default)| *default)
    }
}

/// A setting that differs from its default.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Setting {
    pub name: &'static str,
    pub value: String,
    pub default: String,
    pub why: String,
}

/// The limits of a node, defaults or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct NodeLimits {
    pub streams: u64,
    pub max_connections: u64,
    pub record_cache_bytes: u64,
    pub message_cache_bytes: u64,
    pub window_cache_bytes: u64,
    pub index_cache_bytes: u64,
}

pub const STREAM_LIMIT: Rule = Rule {
    id: "settings.streams",
    title: "FASTPACA_STREAM_MAX_CONNECTIONS",
    formula: "streams of a node, one of several being lost, / 0.8; 512 or the next doubling of it",
    inputs: "load.streams, nodes",
    source: "Fastpaca: 512 a node; the share is that of the threshold `streams`",
    departs: "",
};

pub const CONNECTION_LIMIT: Rule = Rule {
    id: "settings.connections",
    title: "FASTPACA_MAX_CONNECTIONS and ..._PER_ADDRESS",
    formula: "(streams of a node, one being lost, + one connection an active user) / 0.8; 4,096 or the next doubling; all of them from one address \
              behind a load balancer",
    inputs: "load.streams, load.active_users, nodes",
    source: "docs/configuration.md; StudyGuru: at most 80 % of a pool",
    departs: "a backend usually keeps far fewer connections than it has users: this is the bound if each had one",
};

pub const MESSAGE_CACHE: Rule = Rule {
    id: "settings.message_cache",
    title: "FASTPACA_MESSAGE_CACHE_BYTES",
    formula: "active conversations × the smaller of window_messages and messages_per_conversation × (message_bytes + 160); 48 MiB or the next doubling, at \
              most 4 GiB",
    inputs: "load.active_users, --window-messages, --messages-per-conversation, --message-bytes",
    source: "this server: 160 bytes are what the cache keeps beside a body; a window that is cached is planned without reading the disk \
             (docs/benchmarks.md: 19 µs beside 160 µs)",
    departs: "StudyGuru gives caches 1 to 2 GB whatever the load",
};

pub const WINDOW_CACHE: Rule = Rule {
    id: "settings.window_cache",
    title: "FASTPACA_WINDOW_CACHE_BYTES",
    formula: "48 MiB, unless windows are read more than once a message: then active conversations × window bytes, the next doubling, at most 4 GiB",
    inputs: "load.active_users, --windows-per-message, --window-messages, --message-bytes",
    source: "this server: an answer is kept until the conversation changes, so a second read of the same version is a look-up",
    departs: "",
};

pub const RECORD_CACHE: Rule = Rule {
    id: "settings.record_cache",
    title: "FASTPACA_RECORD_CACHE_BYTES",
    formula: "active conversations × 2 KiB; 48 MiB or the next doubling, at most 4 GiB",
    inputs: "load.active_users",
    source: "this server: a record holds settings, the last idempotency keys and the open run of up to 128 message locations",
    departs: "",
};

/// The largest cache that is advised; beyond it the page cache serves as well.
const CACHE_MAX: u64 = 4 << 30;
const RECORD_BYTES: f64 = 2_048.0;
/// What the message cache keeps beside a body.
pub const BODY_OVERHEAD_BYTES: f64 = 160.0;
/// What the answer of a window has for each message beside its bytes.
pub const WINDOW_MESSAGE_OVERHEAD_BYTES: f64 = 90.0;
/// Of a limit, what the load may take.
const SHARE_MAX: f64 = 0.8;

impl NodeLimits {
    /// What a node of so many must allow.
    pub fn of(workload: &Workload, load: &Load, nodes: u64) -> NodeLimits {
        let left = nodes.saturating_sub(1).max(1) as f64;
        let streams = load.open_streams / left;
        let connections = (load.open_streams + load.active_users) / left;
        let cached = workload.window_messages.min(workload.messages_per_conversation) as f64;
        let bodies =
            load.conversations_active * cached * (workload.message_bytes as f64 + BODY_OVERHEAD_BYTES);
        let repeats = workload.windows_per_message > 1.0;
        let windows = if repeats { load.conversations_active * window_bytes(workload) } else { 0.0 };
        let cache = |needed: f64, default_mib: u64| {
            (doubling(needed.min(CACHE_MAX as f64), (default_mib * MIB) as f64) as u64).min(CACHE_MAX)
        };
        NodeLimits {
            streams: (doubling(streams / SHARE_MAX, 512.0) as u64).min(1_000_000),
            max_connections: (doubling(connections / SHARE_MAX, 4_096.0) as u64).min(1_000_000),
            record_cache_bytes: cache(load.conversations_active * RECORD_BYTES, 48),
            message_cache_bytes: cache(bodies, 48),
            window_cache_bytes: cache(windows, 48),
            index_cache_bytes: 32 * MIB,
        }
    }
}

/// Bytes of the answer to a window.
pub fn window_bytes(workload: &Workload) -> f64 {
    let messages = workload.window_messages.min(workload.messages_per_conversation) as f64;
    messages * (workload.message_bytes as f64 + WINDOW_MESSAGE_OVERHEAD_BYTES) + 200.0
}

/// All that differ from their defaults.
pub fn settings(workload: &Workload, nodes: u64, limits: &NodeLimits, known: &Known) -> Vec<Setting> {
    let mut all = Advised { known, settings: Vec::new() };
    let own = || PER_SITE.to_owned();
    all.add(
        "FASTPACA_API_KEY",
        own(),
        "without it whoever reaches the port reads and writes everything".into(),
    );
    all.add(
        "FASTPACA_NODE_NAME",
        own(),
        "names in logs, metrics and `fastpaca cluster` that people know; one for each node".into(),
    );
    all.add(
        "FASTPACA_DATA_DIR",
        own(),
        "a disk of its own: /data in a container, /var/lib/fastpaca under systemd".into(),
    );
    if nodes > 1 {
        all.add(
            "FASTPACA_CLUSTER_SEED",
            own(),
            "where the nodes find each other: the same list on all of them".into(),
        );
        all.add(
            "FASTPACA_CLUSTER_SECRET",
            own(),
            "otherwise it is derived from the API key, and changes with it".into(),
        );
    }
    if nodes > 3 {
        let size = (nodes / 2 + 1).max(3);
        all.add(
            "FASTPACA_CLUSTER_SIZE",
            size.to_string(),
            format!("more than half of {nodes} nodes must meet to found the cluster"),
        );
    }
    limit_settings(&mut all, workload, nodes, limits);
    if workload.postgres {
        all.add("FASTPACA_POSTGRES_URL", own(), "the archive's database, or PgBouncer in front of it".into());
    }
    if let Some(keep) = workload.tail_keep {
        all.add(
            "FASTPACA_TAIL_KEEP",
            keep.to_string(),
            "--tail-keep: the disks are sized for what stays of each conversation".into(),
        );
    }
    all.settings
}

fn limit_settings(all: &mut Advised<'_>, workload: &Workload, nodes: u64, limits: &NodeLimits) {
    let lost = if nodes > 1 { ", one of the nodes being lost" } else { "" };
    all.add(
        "FASTPACA_STREAM_MAX_CONNECTIONS",
        limits.streams.to_string(),
        format!("open streams stay below 80 % of it{lost}"),
    );
    all.add(
        "FASTPACA_MAX_CONNECTIONS",
        limits.max_connections.to_string(),
        format!("streams and clients stay below 80 % of it{lost}"),
    );
    let from_one_address = if nodes > 1 {
        limits.max_connections
    } else {
        limits.max_connections.min(2_048).max(limits.max_connections / 2)
    };
    let why = if nodes > 1 {
        "all connections come from the load balancer"
    } else {
        "half of FASTPACA_MAX_CONNECTIONS from one backend"
    };
    all.add("FASTPACA_MAX_CONNECTIONS_PER_ADDRESS", from_one_address.to_string(), why.into());
    let caches = [
        (
            "FASTPACA_RECORD_CACHE_BYTES",
            limits.record_cache_bytes,
            "records of all active conversations stay in memory",
        ),
        (
            "FASTPACA_MESSAGE_CACHE_BYTES",
            limits.message_cache_bytes,
            "messages of all active windows stay in memory",
        ),
        (
            "FASTPACA_WINDOW_CACHE_BYTES",
            limits.window_cache_bytes,
            "windows are read more than once a message: the answers stay in memory",
        ),
    ];
    for (name, bytes, why) in caches {
        all.add(name, setting_size(bytes), why.into());
    }
    // A request is a little more than its message.
    let body = doubling(1.25 * workload.message_bytes as f64 + 1_024.0, (1u64 << 20) as f64) as u64;
    let (body, batch) = (body.min(64 << 20), body.clamp(8 << 20, 64 << 20));
    all.add("FASTPACA_BODY_MAX_BYTES", setting_size(body), "a request with one message must fit".into());
    all.add("FASTPACA_BATCH_BODY_MAX_BYTES", setting_size(batch), "at least FASTPACA_BODY_MAX_BYTES".into());
    all.add(
        "FASTPACA_SEGMENT_BYTES",
        setting_size((64 << 20).max(2 * batch)),
        "at least twice FASTPACA_BATCH_BODY_MAX_BYTES".into(),
    );
}

struct Advised<'a> {
    known: &'a Known,
    settings: Vec<Setting>,
}

impl Advised<'_> {
    /// Unless it is the default, or this build has no such setting.
    fn add(&mut self, name: &'static str, value: String, why: String) {
        let default = self.known.default(name);
        if self.known.knows(name) && default != Some(value.as_str()) {
            let default = default.unwrap_or("unset").to_owned();
            self.settings.push(Setting { name, value, default, why });
        }
    }
}
