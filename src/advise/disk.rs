//! What lies on a node's disk: the journal, which is the history, and the index over it.

use serde::Serialize;

use super::figures::Figures;
use super::load::Load;
use super::rule::Rule;
use super::units::MIB;
use super::workload::Workload;
use crate::conversation::EVENT_RUN;

/// Bytes on one node's disk, by what they are.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Disk {
    /// On disk for each message, in the journal.
    pub journal_bytes_per_message: f64,
    pub journal_bytes: f64,
    pub index_bytes: f64,
    /// Segments prepared ahead, and the reserve below which appends are refused.
    pub reserve_bytes: f64,
    pub bytes_per_day: f64,
    pub writes_per_second_peak: f64,
    pub fsyncs_per_second_peak: f64,
    pub write_bytes_per_second_peak: f64,
}

pub const JOURNAL: Rule = Rule {
    id: "disk.journal",
    title: "journal bytes of a message",
    formula: "of messages kept, with --tail-keep those that are not trimmed: of a conversation of n, n - (n - the larger of tail_keep and window_messages) in whole 128s; \
              frames = message_bytes + frame_bytes; + what is missing to whole blocks of 4,096, for each batch: batches a message = 1 / (1 + (appends/s of the node × \
              batch_seconds)^1.4); + a block for noting the commit, for those after which nothing comes for 0.2 s: exp(-appends/s × 0.2)",
    inputs: "--message-bytes, --tail-keep, --window-messages, load.appends, figures.frame_bytes, figures.batch_seconds",
    source: "this server: a batch begins on a block of 4 KiB, so a lone append writes whole blocks; measured by `cargo bench --bench advise -- points`",
    departs: "no guide has a log like this. At a low rate the padding is most of it: 600 bytes take more than 4 KiB.",
};

pub const INDEX: Rule = Rule {
    id: "disk.index",
    title: "index bytes",
    formula: "conversations × index_bytes_per_conversation + messages × index_bytes_per_message",
    inputs: "load.kept, figures.*",
    source: "docs/benchmarks.md: 1,000,000 conversations of 3 messages, then 5 GB more",
    departs: "",
};

pub const PROJECTION: Rule = Rule {
    id: "disk.projection",
    title: "disk of the days that it is sized for",
    formula: "journal + index of what is kept + 2 segments of 64 MiB prepared ahead + FASTPACA_DISK_RESERVE_BYTES (256 MiB); in a cluster of N nodes a node holds \
              3 / N of it",
    inputs: "disk.journal, disk.index, --retention-days, nodes",
    source: "this server: every group has three replicas, and nothing is deleted from a disk for its age; FASTPACA_TAIL_KEEP trims by count, and what it frees is reclaimed",
    departs: "the guides give 40 to 500 GB by size of machine (Orion, StudyGuru, LoonFlow), not by what is stored; when the disk is full, growth.timeline says",
};

/// What is prepared ahead and kept free.
const RESERVE_BYTES: f64 = (2 * 64 * MIB + 256 * MIB) as f64;

impl Disk {
    /// Of one of `nodes`, which hold `share` of everything.
    pub fn of(workload: &Workload, load: &Load, figures: &Figures, nodes: u64) -> Disk {
        let share = replica_share(nodes);
        // The day's volume comes at the mean rate; a busy node pads less.
        let mean = load.appends_per_second_mean * share;
        let peak = load.appends_per_second_peak * share;
        let per_message = figures.journal_bytes(workload.message_bytes as f64, mean);
        let index = load.conversations_kept * figures.index_bytes_per_conversation
            + load.messages_kept * figures.index_bytes_per_message;
        let fsyncs = peak * figures.batches_per_append(peak);
        Disk {
            journal_bytes_per_message: per_message,
            journal_bytes: load.messages_kept * untrimmed_share(workload) * per_message * share,
            index_bytes: index * share,
            reserve_bytes: RESERVE_BYTES,
            bytes_per_day: load.messages_per_day * share * (per_message + figures.index_bytes_per_message)
                + load.messages_per_day * share / workload.messages_per_conversation as f64
                    * figures.index_bytes_per_conversation,
            writes_per_second_peak: fsyncs,
            fsyncs_per_second_peak: fsyncs,
            write_bytes_per_second_peak: peak * figures.journal_bytes(workload.message_bytes as f64, peak),
        }
    }

    pub fn total_bytes(&self) -> f64 {
        self.journal_bytes + self.index_bytes + self.reserve_bytes
    }
}

/// Of the messages of a conversation, what trimming leaves. It goes by runs of 128 and never takes what a window shows.
fn untrimmed_share(workload: &Workload) -> f64 {
    let Some(keep) = workload.tail_keep else { return 1.0 };
    let messages = workload.messages_per_conversation;
    let trimmed = messages.saturating_sub(keep.max(workload.window_messages)) / EVENT_RUN * EVENT_RUN;
    (messages - trimmed) as f64 / messages as f64
}

/// Whether a smaller FASTPACA_TAIL_KEEP, or one at all, would take anything from the disks.
pub fn could_trim_more(workload: &Workload) -> bool {
    untrimmed_share(&Workload { tail_keep: Some(0), ..workload.clone() }) < untrimmed_share(workload)
}

/// Of everything, what one of `nodes` holds: all of it up to three.
pub fn replica_share(nodes: u64) -> f64 {
    (3.0 / nodes as f64).min(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trimming_leaves_whole_runs() {
        let share = |messages_per_conversation, window_messages, tail_keep| {
            let preset = Workload::preset("1k-users").expect("there is such a preset");
            untrimmed_share(&Workload { messages_per_conversation, window_messages, tail_keep, ..preset })
        };
        assert_eq!(share(512, 50, None), 1.0);
        assert_eq!(share(512, 50, Some(128)), 0.25);
        assert_eq!(share(512, 300, Some(128)), 0.75, "the window stays");
        assert_eq!(share(127, 1, Some(0)), 1.0, "short conversations are never trimmed");
        let could = |messages_per_conversation, tail_keep| {
            let preset = Workload::preset("1k-users").expect("there is such a preset");
            could_trim_more(&Workload { messages_per_conversation, tail_keep, ..preset })
        };
        // The window shows 50 messages.
        assert_eq!(
            [(177, None), (178, None), (512, Some(256)), (512, Some(50))].map(|(n, keep)| could(n, keep)),
            [false, true, true, false]
        );
    }
}
