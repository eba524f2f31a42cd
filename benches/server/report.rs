//! What the bench prints: one line a measurement as it is made, and all bars once more at the end.

use crate::run::Measured;
use std::time::Duration;

/// Collects the bars; prints as it goes.
#[derive(Default)]
pub(crate) struct Report {
    bars: Vec<(String, Verdict)>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    Pass,
    Miss,
    /// The floor itself is too slow for anything to be said.
    Void,
}

impl Verdict {
    pub(crate) fn of(met: bool) -> Verdict {
        if met { Verdict::Pass } else { Verdict::Miss }
    }

    fn name(self) -> &'static str {
        match self {
            Verdict::Pass => "PASS",
            Verdict::Miss => "MISS",
            Verdict::Void => "VOID",
        }
    }
}

impl Report {
    /// Opens a block of figures and bars.
    pub(crate) fn title(&mut self, title: &str) {
        println!("\n{title}");
    }

    /// Opens a block of measurements, and names the columns.
    pub(crate) fn heading(&mut self, title: &str) {
        self.title(title);
        println!(
            "  {:34} {:>10} {:>9} {:>9} {:>9} {:>11} {:>10} {:>9}",
            "", "per second", "p50", "p99", "max", "CPU/request", "load's CPU", "× first"
        );
    }

    /// One measurement; `per_request` is how many of what is counted one request carries, `first` what to compare with.
    pub(crate) fn row(&mut self, label: &str, measured: &Measured, per_request: u64, first: &Measured) {
        let outcome = &measured.outcome;
        println!(
            "  {label:34} {:>10.0} {:>9} {:>9} {:>9} {:>8.1} µs {:>9.0}% {:>9.2}",
            measured.rate() * per_request as f64,
            time(outcome.p50_us),
            time(outcome.p99_us),
            time(outcome.max_us),
            measured.server_cpu.as_secs_f64() * 1e6 / outcome.requests as f64,
            measured.load_cpu.as_secs_f64() * 100.0 / outcome.seconds,
            measured.rate() / first.rate(),
        );
    }

    /// A figure without a distribution.
    pub(crate) fn figure(&mut self, label: &str, value: impl std::fmt::Display) {
        println!("  {label:48} {value}");
    }

    /// A figure with its bar.
    pub(crate) fn bar(
        &mut self,
        what: &str,
        value: impl std::fmt::Display,
        limit: impl std::fmt::Display,
        verdict: Verdict,
    ) {
        let line = format!("{what:48} {:>14}   bar {:14}", value.to_string(), limit.to_string());
        println!("  {line} {}", verdict.name());
        self.bars.push((line, verdict));
    }

    /// A ratio that should be at least `least`.
    pub(crate) fn at_least(&mut self, what: &str, ratio: f64, least: f64) {
        self.bar(what, format!("{ratio:.2} ×"), format!(">= {least} ×"), Verdict::of(ratio >= least));
    }

    /// A ratio that should be at most `most`.
    pub(crate) fn at_most(&mut self, what: &str, ratio: f64, most: f64) {
        self.bar(what, format!("{ratio:.2} ×"), format!("<= {most} ×"), Verdict::of(ratio <= most));
    }

    pub(crate) fn summary(&self) {
        println!("\nAll bars");
        for (line, verdict) in &self.bars {
            println!("  {line} {}", verdict.name());
        }
    }
}

fn time(us: u64) -> String {
    match us {
        0..1_000 => format!("{us} µs"),
        1_000..1_000_000 => format!("{:.2} ms", us as f64 / 1e3),
        _ => format!("{:.2} s", us as f64 / 1e6),
    }
}

pub(crate) fn seconds(duration: Duration) -> String {
    format!("{:.2} s", duration.as_secs_f64())
}

pub(crate) fn megabytes(bytes: u64) -> String {
    format!("{:.0} MB", bytes as f64 / 1e6)
}
