//! CPU of a node: what each kind of work costs, and how much of it a node gets.

use serde::Serialize;

use super::figures::Figures;
use super::load::Load;
use super::rule::Rule;
use super::workload::Workload;

/// Cores of one node, by what they are used for.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Cpu {
    pub idle_cores: f64,
    pub append_cores: f64,
    pub token_cores: f64,
    pub window_cores: f64,
    pub stream_cores: f64,
}

pub const APPEND: Rule = Rule {
    id: "cpu.append",
    title: "CPU of appends",
    formula: "appends/s × (busy + wake / (1 + appends/s × wake_seconds) + cold / (1 + appends/s × cold_seconds) + us_per_kib × message KiB); in a cluster × cluster_factor / nodes, and × \
              nodes / (nodes - 1) with one lost",
    inputs: "load.appends, --message-bytes, figures.append_*, nodes",
    source: "`cargo bench --bench advise -- points`: what arrives while a batch is written shares its fsync and its wake-ups, so a request costs less on a busy \
             node. docs/benchmarks.md, \"A cluster of three\" (d7632a9): 174 µs on all nodes, with clients at all of them, beside 44 µs of one alone, a factor of 4.0; 3.8 \
             to 5.3 on other machines",
    departs: "StudyGuru's and Orion's 2 × cores + 1 workers (17 for 8 cores, \"use 8 to 12\") are for Python processes that wait with a core idle. A node runs one \
              thread a core, whatever it waits for (FASTPACA_WORKER_THREADS).",
};

pub const TOKENS: Rule = Rule {
    id: "cpu.tokens",
    title: "CPU of counting tokens",
    formula: "appends/s × tokens_per_message / tokens_per_core_second",
    inputs: "load.appends, --tokens-per-message, figures.tokens_per_core_second",
    source: "`cargo bench --bench advise -- points`: the same appends with and without counts of their own",
    departs: "",
};

pub const WINDOWS: Rule = Rule {
    id: "cpu.windows",
    title: "CPU of windows",
    formula: "first reads of a version × (window_us + window_cold / (1 + appends/s × window_cold_seconds) + window_us_per_kib × window KiB) + repeated reads × \
              window_repeat_us; in a cluster + cluster_read_us each",
    inputs: "load.windows, --window-messages, --message-bytes, figures.window_*",
    source: "`cargo bench --bench advise -- points`; for the quorum's confirmation docs/decisions/007 (023cd5d): 86 µs for a read at any of three nodes, on a machine where \
             an append took 307 µs, and docs/benchmarks.md, \"A cluster of three\": 174 µs for an append, 10 µs for a read of one node alone",
    departs: "StudyGuru's \"AI processing is CPU-intensive\" happens elsewhere: no model runs here",
};

pub const STREAMS: Rule = Rule {
    id: "cpu.streams",
    title: "CPU of streams",
    formula: "frames/s × frame_us",
    inputs: "load.streams, figures.frame_us",
    source: "`cargo bench --bench advise -- points`: the same appends with a stream on half of their conversations",
    departs: "",
};

pub const IDLE: Rule = Rule {
    id: "cpu.idle",
    title: "CPU of a node with nothing to do",
    formula: "idle_cores alone; cluster_idle_cores with others",
    inputs: "figures.idle_cores, figures.cluster_idle_cores",
    source: "docs/benchmarks.md: 0.6 to 0.7 % of a core in a cluster of three (22 November 2026), 1.4 to 1.7 % on slower machines; 0.1 to 0.3 % alone, where 0.7 is taken as well",
    departs: "",
};

/// Which rates and how many nodes serve them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum At {
    Mean,
    Peak,
    /// The peak while one node of several is lost.
    PeakOneLost,
}

impl Cpu {
    /// Of one of `nodes`.
    pub fn of(workload: &Workload, load: &Load, figures: &Figures, nodes: u64, at: At) -> Cpu {
        let (appends, windows) = match at {
            At::Mean => (load.appends_per_second_mean, load.windows_per_second_mean),
            At::Peak | At::PeakOneLost => (load.appends_per_second_peak, load.windows_per_second_peak),
        };
        let serving = if at == At::PeakOneLost { nodes.saturating_sub(1).max(1) } else { nodes } as f64;
        let (factor, confirm_us) =
            if nodes > 1 { (figures.cluster_append_factor, figures.cluster_read_us) } else { (1.0, 0.0) };
        let kib = workload.message_bytes as f64 / 1_024.0;
        let append_us = figures.append_us(appends / serving, kib) * factor;
        let window_kib = super::settings::window_bytes(workload) / 1_024.0;
        let first = windows.min(appends);
        let first_us = figures.window_us(appends / serving, window_kib) + confirm_us;
        let repeat_us = figures.window_repeat_us + confirm_us;
        let cores = |per_second: f64, us: f64| per_second / serving * us / 1e6;
        let frames = load.stream_frames_per_second_peak * appends / load.appends_per_second_peak;
        Cpu {
            idle_cores: if nodes > 1 { figures.cluster_idle_cores } else { figures.idle_cores },
            append_cores: cores(appends, append_us),
            token_cores: appends * workload.tokens_per_message as f64
                / figures.tokens_per_core_second
                / serving,
            window_cores: cores(first, first_us) + cores(windows - first, repeat_us),
            stream_cores: cores(frames, figures.frame_us),
        }
    }

    pub fn total_cores(&self) -> f64 {
        self.idle_cores + self.append_cores + self.token_cores + self.window_cores + self.stream_cores
    }
}
