//! What a running system shows, held against the thresholds: the decision tree behind `fastpaca advise check`.
//!
//! The caller brings what it saw as [`Seen`] figures: each of a signal, of a node or of the cluster, with what is known of
//! how long it has lasted. Nothing is looked up here.

mod sample;
mod verdict;

pub use sample::{Look, NodeLook, cluster_figures, node_figures};
pub use verdict::{Verdict, judge, report};

use super::rule::Rule;
use super::thresholds::Signal;

/// One figure.
#[derive(Debug, Clone, PartialEq)]
pub struct Seen {
    pub signal: Signal,
    /// The node, or `cluster`.
    pub of: String,
    /// None: it could not be had, and why.
    pub value: Result<f64, String>,
    pub lasting: Lasting,
}

/// How long a figure has been at least what it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lasting {
    /// For as long as the threshold asks, by Prometheus.
    Sustained,
    /// Between two looks; nothing is known of the time before.
    Momentary,
}

pub const TREE: Rule = Rule {
    id: "check.tree",
    title: "what is looked at first, and what explains what",
    formula: "memory; latency, and its cause: fsync, then CPU, then what is turned away, else the requests themselves; errors; disk; streams and connections; the \
              archive's backlog, and what it does not take; leaders, links and the way between nodes",
    inputs: "check.thresholds",
    source: "Orion's tree: RAM above 80 %, then p95 above 2 s (database or not), then disk above 80 %, then queues, else nothing to do",
    departs: "Orion's database branch (PgBouncer or a larger pool) is the disk's here: a request waits for no database. Its workers are cores.",
};

pub const LASTING: Rule = Rule {
    id: "check.lasting",
    title: "what is said of a figure that was seen only once",
    formula: "with --prometheus, a figure counts if it was above its limit for all of the minutes of its threshold; without, between two looks, and what must last \
              then counts as \"act soon\" at most",
    inputs: "--prometheus, --interval, check.thresholds",
    source: "StudyGuru: for 5 minutes and more; Orion: sustained",
    departs: "",
};
