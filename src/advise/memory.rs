//! Resident memory of a node, component by component.

use serde::Serialize;

use super::figures::Figures;
use super::load::Load;
use super::rule::Rule;
use super::settings::{BODY_OVERHEAD_BYTES, NodeLimits, window_bytes};
use super::units::MIB;
use super::workload::Workload;

/// A component and what it takes at most once everything is warm.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Component {
    pub name: &'static str,
    pub bytes: f64,
    pub rule: &'static str,
}

/// What a node takes, and what the rest of its machine does.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Memory {
    pub components: Vec<Component>,
    /// The kernel, an agent that watches, page cache for the index and the newest segments.
    pub system_bytes: f64,
}

pub const BASE: Rule = Rule {
    id: "memory.base",
    title: "the process with all groups and nothing in them, and the tokenizer's vocabulary",
    formula: "base_bytes + vocabulary_bytes (unless no tokens are counted here: FASTPACA_TOKEN_ESTIMATOR=chars:4)",
    inputs: "figures.base_bytes, figures.vocabulary_bytes",
    source: "`cargo bench --bench advise -- points`",
    departs: "StudyGuru has 2 to 3 GB for an application without load, Orion 512 MB; Fastpaca's own guide asks for 4 GB a node, which is the floor of the \
              recommended tier all the same: it leaves the rest to the page cache.",
};

pub const RAFT: Rule = Rule {
    id: "memory.raft",
    title: "Raft's rings",
    formula: "the smaller of ring_bytes_max and messages × ring_bytes_per_append; in a cluster, 3 / nodes of the groups beyond three nodes",
    inputs: "load.kept, figures.ring_*",
    source: "docs/decisions/003: every group keeps 4,096 commands and 8,192 responders, which fill by use and never beyond",
    departs: "",
};

pub const CACHES: Rule = Rule {
    id: "memory.caches",
    title: "caches of records, messages, windows and the index",
    formula: "each the smaller of its setting and what there is to keep: active conversations × 2 KiB, messages kept × (message_bytes + 160), active \
              conversations × window bytes; × heap_factor for the allocator's own",
    inputs: "settings.*_cache, load.*, figures.heap_factor",
    source: "this server's settings are bounds of bytes; heap_factor by `cargo bench --bench advise -- points`",
    departs: "StudyGuru: 1 to 2 GB",
};

pub const STREAMS: Rule = Rule {
    id: "memory.streams",
    title: "connections and streams",
    formula: "streams × stream_bytes + active users × connection_bytes, one node of several being lost",
    inputs: "load.streams, load.active_users, figures.stream_bytes, figures.connection_bytes",
    source: "estimates, not measured: 30 kB a stream, 20 kB a connection; `fastpaca advise check` shows what a running node takes",
    departs: "StudyGuru counts 50 to 100 MB for 100 connections, for Python objects and model state; here tens of kilobytes each are assumed",
};

pub const WORK: Rule = Rule {
    id: "memory.work",
    title: "requests under way, the journal's queue, a checkpoint",
    formula: "peak appends × checkpoint_bytes_per_append_second + work_bytes (16 MiB, for bodies of requests and the journal's buffers)",
    inputs: "load.appends, figures.checkpoint_bytes_per_append_second, figures.work_bytes",
    source: "this server: the queue of the journal is bounded by 32 MiB and mostly empty. Estimates, not measured: 2,000 bytes for each append a second, 16 MiB of \
             buffers.",
    departs: "StudyGuru has 4 to 8 GB for each model request, which does not run here",
};

pub const SYSTEM: Rule = Rule {
    id: "memory.system",
    title: "the rest of the machine",
    formula: "300 MiB for the kernel and an agent that watches, + 10 % of the index's bytes on disk up to 2 GiB, for the page cache",
    inputs: "disk.index",
    source: "Orion: node-exporter 64 MB; the rest is an estimate, to be checked with `fastpaca advise check`",
    departs: "Orion has 1,150 MB for the system, a proxy, a forge and CI, and 672 MB for monitoring on the same machine: run those elsewhere",
};

/// What has been written by the time that memory is looked at.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Written {
    pub messages: f64,
    /// Entries of Raft's log: a batch is one.
    pub entries: f64,
    pub conversations: f64,
}

impl Memory {
    /// Of one of `nodes`, once the days that its disk is sized for are over.
    pub fn of(workload: &Workload, load: &Load, figures: &Figures, nodes: u64, index_bytes: f64) -> Memory {
        let limits = NodeLimits::of(workload, load, nodes);
        let written = Written {
            messages: load.messages_kept,
            entries: load.messages_kept,
            conversations: load.conversations_kept,
        };
        Memory::after(workload, load, figures, (nodes, &limits), written, index_bytes)
    }

    /// The same after so much was written.
    pub fn after(
        workload: &Workload,
        load: &Load,
        figures: &Figures,
        (nodes, limits): (u64, &NodeLimits),
        written: Written,
        index_bytes: f64,
    ) -> Memory {
        let left = nodes.saturating_sub(1).max(1) as f64;
        let share = super::disk::replica_share(nodes);
        let messages = written.messages * share;
        let bodies = messages * (workload.message_bytes as f64 + BODY_OVERHEAD_BYTES);
        let windows = load.conversations_active / left * window_bytes(workload);
        let windows = if workload.windows_per_message > 0.0 { windows } else { 0.0 };
        let records = written.conversations * share * figures.record_bytes_per_conversation;
        let cache = |limit: u64, kept: f64| kept.min(limit as f64) * figures.heap_factor;
        let counts_tokens = workload.tokens_per_message > 0;
        let streams = load.open_streams / left * figures.stream_bytes;
        let connections = load.active_users / left * figures.connection_bytes;
        let component = |name, bytes, rule: &Rule| Component { name, bytes, rule: rule.id };
        let components = vec![
            component("process and its groups", figures.base_bytes, &BASE),
            component(
                "tokenizer's vocabulary",
                if counts_tokens { figures.vocabulary_bytes } else { 0.0 },
                &BASE,
            ),
            component(
                "Raft's rings",
                (written.entries * share * figures.ring_bytes_per_append).min(figures.ring_bytes_max * share),
                &RAFT,
            ),
            component("conversation records", cache(limits.record_cache_bytes, records), &CACHES),
            component("message bodies", cache(limits.message_cache_bytes, bodies), &CACHES),
            component("windows", cache(limits.window_cache_bytes, windows), &CACHES),
            component("pages of the index", cache(limits.index_cache_bytes, index_bytes), &CACHES),
            component("streams", streams, &STREAMS),
            component("connections", connections, &STREAMS),
            component(
                "work under way",
                load.appends_per_second_peak / left * figures.checkpoint_bytes_per_append_second
                    + figures.work_bytes,
                &WORK,
            ),
        ];
        Memory {
            components,
            system_bytes: (300 * MIB) as f64 + (index_bytes / 10.0).min((2048 * MIB) as f64),
        }
    }

    /// Resident memory of the process.
    pub fn resident_bytes(&self) -> f64 {
        self.components.iter().map(|component| component.bytes).sum()
    }

    pub fn total_bytes(&self) -> f64 {
        self.resident_bytes() + self.system_bytes
    }
}
