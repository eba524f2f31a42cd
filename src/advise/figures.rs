//! What work costs on a machine: the figures that turn a load into cores and bytes.
//!
//! Most of the built-in ones were measured with this project's benches on one machine; those that are estimates are
//! marked where they stand, and by the rules that use them. A calibration (`fastpaca advise calibrate`) replaces those that
//! depend on the machine most.

use serde::{Deserialize, Serialize};

use super::rule::Rule;
use super::units::MIB;
use super::workload::BadInput;

/// How fast appends come to share batches as more arrive: between one each, and all that arrive in a batch's time.
const BATCH_POWER: f64 = 1.4;

/// Times are CPU time of one core, in microseconds.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Figures {
    pub measured_on: String,
    pub measured_at: String,
    /// An append among many.
    pub append_busy_us: f64,
    /// More, for one whose batch and wake-ups nobody shares ...
    pub append_wake_us: f64,
    /// ... which others do who arrive within this time of it.
    pub append_wake_seconds: f64,
    /// More, for one that finds threads and caches gone cold ...
    pub append_cold_us: f64,
    /// ... which they do after about this time.
    pub append_cold_seconds: f64,
    pub append_us_per_kib: f64,
    pub tokens_per_core_second: f64,
    /// The first read of a version.
    pub window_us: f64,
    pub window_us_per_kib: f64,
    pub window_cold_us: f64,
    pub window_cold_seconds: f64,
    pub window_repeat_us: f64,
    pub frame_us: f64,
    pub idle_cores: f64,
    pub cluster_idle_cores: f64,
    /// CPU of an append on all nodes of a cluster of three, of that on one alone.
    pub cluster_append_factor: f64,
    /// More, for a read that a quorum confirms, on all nodes.
    pub cluster_read_us: f64,

    /// In the journal beside a message's own bytes.
    pub frame_bytes: f64,
    /// A batch begins on a block of this.
    pub block_bytes: f64,
    /// Appends that arrive within this time of one another share a batch.
    pub batch_seconds: f64,
    /// After so long without another append, its commit is noted in a block of its own.
    pub quiet_seconds: f64,
    pub index_bytes_per_conversation: f64,
    pub index_bytes_per_message: f64,
    pub fsync_p50_ms: f64,
    pub fsync_p99_ms: f64,

    pub base_bytes: f64,
    pub vocabulary_bytes: f64,
    pub ring_bytes_max: f64,
    pub ring_bytes_per_append: f64,
    pub record_bytes_per_conversation: f64,
    /// Resident bytes for every byte that a cache counts.
    pub heap_factor: f64,
    pub stream_bytes: f64,
    pub connection_bytes: f64,
    pub work_bytes: f64,
    pub checkpoint_bytes_per_append_second: f64,

    /// Of an append's request beside the message: head and JSON around it.
    pub request_bytes: f64,
    pub read_request_bytes: f64,
    /// Of an append's answer.
    pub answer_bytes: f64,
    /// Of the head of an answer.
    pub head_bytes: f64,
    /// Of a frame on a stream beside the message.
    pub frame_head_bytes: f64,
}

pub const FIGURES: Rule = Rule {
    id: "figures",
    title: "what work costs on a machine",
    formula: "most are measured, some are estimates (see below); `fastpaca advise plan --format json` shows all of them, `fastpaca advise calibrate` measures those that depend on the machine",
    inputs: "--calibration",
    source: "`cargo bench --bench advise -- points` as of 976f24c, held to the server by `make advise-proof` (docs/advise.md), of 21 November 2026 on two cores of an AMD EPYC. \
             Of a cluster: docs/benchmarks.md, \"A cluster of three\" at d7632a9, of 22 November 2026 on two cores of an Intel Xeon; its reads: docs/decisions/007 at \
             023cd5d, brought to that machine by what an append took on either. Estimates, not measured: stream_bytes, connection_bytes, work_bytes, \
             checkpoint_bytes_per_append_second, and fsync_p50_ms and fsync_p99_ms until a calibration.",
    departs: "an append at 20 a second costs ten times what it costs at 20,000: figures of a server under full load, which is what benchmarks usually give, \
              are too small for a calm one. How a cluster's costs fall with its rate has not been measured; they are taken to fall as one node's do.",
};

impl Figures {
    /// This project's own.
    pub fn built_in() -> Figures {
        Figures {
            measured_on: "2 cores of an AMD EPYC, ext4 on a virtio disk, Linux 6.18 (this project's benches)"
                .to_owned(),
            measured_at: "21 November 2026".to_owned(),
            append_busy_us: 40.0,
            append_wake_us: 600.0,
            append_wake_seconds: 1.0 / 600.0,
            append_cold_us: 800.0,
            append_cold_seconds: 1.0 / 15.0,
            append_us_per_kib: 5.0,
            tokens_per_core_second: 7_500_000.0,
            window_us: 60.0,
            window_us_per_kib: 1.1,
            window_cold_us: 173.0,
            window_cold_seconds: 0.01,
            window_repeat_us: 22.0,
            frame_us: 100.0,
            idle_cores: 0.007,
            cluster_idle_cores: 0.007,
            cluster_append_factor: 174.0 / 44.0,
            // 86 µs where a cluster's append took 307; 174 / 307 of it, without the 10 of a read of one node alone, is 39.
            cluster_read_us: 40.0,
            frame_bytes: 250.0,
            block_bytes: 4_096.0,
            batch_seconds: 0.000_5,
            quiet_seconds: 0.2,
            index_bytes_per_conversation: 800.0,
            index_bytes_per_message: 35.0,
            // Estimates, until a calibration.
            fsync_p50_ms: 0.15,
            fsync_p99_ms: 0.5,
            base_bytes: 104.4e6,
            vocabulary_bytes: 33.3e6,
            ring_bytes_max: 300e6,
            ring_bytes_per_append: 1_200.0,
            record_bytes_per_conversation: 600.0,
            heap_factor: 1.3,
            // Estimates, these four.
            stream_bytes: 30e3,
            connection_bytes: 20e3,
            work_bytes: (16 * MIB) as f64,
            checkpoint_bytes_per_append_second: 2_000.0,
            request_bytes: 145.0,
            read_request_bytes: 63.0,
            answer_bytes: 190.0,
            head_bytes: 200.0,
            frame_head_bytes: 232.0,
        }
    }

    /// CPU of an append at this rate.
    pub fn append_us(&self, per_second: f64, kib: f64) -> f64 {
        let wake = self.append_wake_us / (1.0 + per_second * self.append_wake_seconds);
        let cold = self.append_cold_us / (1.0 + per_second * self.append_cold_seconds);
        self.append_busy_us + wake + cold + self.append_us_per_kib * kib
    }

    /// CPU of the first read of a version, while so many appends arrive.
    pub fn window_us(&self, per_second: f64, kib: f64) -> f64 {
        let cold = self.window_cold_us / (1.0 + per_second * self.window_cold_seconds);
        self.window_us + cold + self.window_us_per_kib * kib
    }

    /// Batches of the journal for each append.
    pub fn batches_per_append(&self, per_second: f64) -> f64 {
        1.0 / (1.0 + (per_second * self.batch_seconds).powf(BATCH_POWER))
    }

    /// Bytes of the journal for each message.
    pub fn journal_bytes(&self, message_bytes: f64, per_second: f64) -> f64 {
        let frames = message_bytes + self.frame_bytes;
        let padding = (frames / self.block_bytes).ceil() * self.block_bytes - frames;
        let noted_alone = (-per_second * self.quiet_seconds).exp();
        frames + padding * self.batches_per_append(per_second) + self.block_bytes * noted_alone
    }

    /// These, with what was measured on the machine in question.
    #[must_use]
    pub fn calibrated(mut self, by: &Calibration) -> Figures {
        self.measured_on.clone_from(&by.measured_on);
        self.measured_at.clone_from(&by.measured_at);
        let kib = by.message_bytes / 1_024.0;
        // What the machine takes for an append, alone and among many, beside what this model says of the built-in one.
        let alone = by.append_alone_us / self.append_us(by.append_alone_per_second, kib);
        self.append_busy_us = (1e6 / by.appends_per_core_second - self.append_us_per_kib * kib).max(1.0);
        self.append_wake_us *= alone;
        self.append_cold_us *= alone;
        self.window_us = (1e6 / by.windows_per_core_second - self.window_us_per_kib * by.window_kib).max(1.0);
        self.window_cold_us *= alone;
        self.window_repeat_us = 1e6 / by.repeated_windows_per_core_second;
        self.tokens_per_core_second = by.tokens_per_core_second;
        self.frame_bytes = (by.stored_bytes_per_message_busy - by.message_bytes).max(0.0);
        (self.fsync_p50_ms, self.fsync_p99_ms) = (by.fsync_p50_ms, by.fsync_p99_ms);
        self
    }
}

/// What `fastpaca advise calibrate` writes. All of one core, where a core matters.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Calibration {
    pub version: u64,
    /// The machine, in words.
    pub measured_on: String,
    pub measured_at: String,
    pub message_bytes: f64,
    pub fsync_p50_ms: f64,
    pub fsync_p99_ms: f64,
    pub tokens_per_core_second: f64,
    pub appends_per_core_second: f64,
    /// One append after the other, at this rate.
    pub append_alone_per_second: f64,
    pub append_alone_us: f64,
    pub window_kib: f64,
    pub windows_per_core_second: f64,
    pub repeated_windows_per_core_second: f64,
    pub stored_bytes_per_message_busy: f64,
    pub stored_bytes_per_message_alone: f64,
}

impl Calibration {
    /// The form of file that is written and understood.
    pub const VERSION: u64 = 1;

    pub fn parse(file: &str, text: &str) -> Result<Calibration, BadInput> {
        let refuse = |why: String| BadInput::File { file: file.to_owned(), why };
        let calibration: Calibration = toml::from_str(text)
            .map_err(|error| refuse(error.message().lines().collect::<Vec<_>>().join(" ")))?;
        if calibration.version != Calibration::VERSION {
            return Err(refuse(format!(
                "version {}: expected {}",
                calibration.version,
                Calibration::VERSION
            )));
        }
        match calibration.figures().iter().find(|(_, value)| !(value.is_finite() && *value > 0.0)) {
            Some((name, value)) => Err(refuse(format!("{name} = {value}: expected a number above 0"))),
            None => Ok(calibration),
        }
    }

    pub fn to_toml(&self) -> String {
        let body = toml::to_string(self).expect("numbers and words are TOML");
        format!(
            "# Made by `fastpaca advise calibrate`; for `fastpaca advise plan --calibration FILE`.\n{body}"
        )
    }

    fn figures(&self) -> [(&'static str, f64); 12] {
        [
            ("message_bytes", self.message_bytes),
            ("fsync_p50_ms", self.fsync_p50_ms),
            ("fsync_p99_ms", self.fsync_p99_ms),
            ("tokens_per_core_second", self.tokens_per_core_second),
            ("appends_per_core_second", self.appends_per_core_second),
            ("append_alone_per_second", self.append_alone_per_second),
            ("append_alone_us", self.append_alone_us),
            ("window_kib", self.window_kib),
            ("windows_per_core_second", self.windows_per_core_second),
            ("repeated_windows_per_core_second", self.repeated_windows_per_core_second),
            ("stored_bytes_per_message_busy", self.stored_bytes_per_message_busy),
            ("stored_bytes_per_message_alone", self.stored_bytes_per_message_alone),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_calibration_comes_back_as_it_was_written() {
        let written = Calibration {
            version: Calibration::VERSION,
            measured_on: "a machine".into(),
            measured_at: "2026-11-21".into(),
            message_bytes: 600.0,
            fsync_p50_ms: 0.2,
            fsync_p99_ms: 1.0,
            tokens_per_core_second: 5e6,
            appends_per_core_second: 10_000.0,
            append_alone_per_second: 3_000.0,
            append_alone_us: 300.0,
            window_kib: 33.6,
            windows_per_core_second: 8_000.0,
            repeated_windows_per_core_second: 40_000.0,
            stored_bytes_per_message_busy: 800.0,
            stored_bytes_per_message_alone: 4_096.0,
        };
        assert_eq!(Calibration::parse("c.toml", &written.to_toml()).unwrap(), written);
        let figures = Figures::built_in().calibrated(&written);
        assert_eq!(figures.frame_bytes, 200.0);
        let busy = figures.append_us(1e12, 600.0 / 1_024.0);
        assert!((busy - 100.0).abs() < 0.1, "{busy}");
        for (from, to) in [
            ("version = 1", "version = 2"),
            ("5000000", "nan"),
            ("200.0", "oops"),
            ("fsync_p99_ms = 1.0", "fsync_p99_ms = -1.0"),
        ] {
            let text = written.to_toml().replace(from, to);
            if text != written.to_toml() {
                assert!(
                    Calibration::parse("c.toml", &text).unwrap_err().to_string().starts_with("c.toml: "),
                    "{text}"
                );
            }
        }
    }

    #[test]
    fn a_calm_append_costs_more_than_a_busy_one_and_all_of_them_still_more() {
        let figures = Figures::built_in();
        let mut before = (f64::MAX, 0.0);
        for rate in [0.1, 1.0, 10.0, 100.0, 1_000.0, 10_000.0, 100_000.0] {
            let us = figures.append_us(rate, 0.6);
            assert!(us < before.0 && us * rate > before.1);
            before = (us, us * rate);
        }
    }
}
