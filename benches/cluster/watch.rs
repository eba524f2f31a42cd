//! A running crowd of clients as the bench sees it, and what follows from what they saw.

use crate::Error;
use crate::clients::{Crowd, Failure, History, Seen};
use crate::run::{LineReader, this_executable};
use std::collections::BTreeMap;
use std::io::Write;
use std::process::{Child, ChildStdin, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A crowd at work; ends with this value.
pub(crate) struct Watch {
    child: Child,
    input: Option<ChildStdin>,
    lines: LineReader,
    began_us: u64,
}

/// A moment of a watch, in the unit of [`History`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Moment(pub(crate) u32);

impl Moment {
    pub(crate) fn seconds_since(self, earlier: Moment) -> f64 {
        f64::from(self.0.saturating_sub(earlier.0)) / 1e4
    }
}

impl Watch {
    pub(crate) fn start(crowd: &Crowd) -> Result<Watch, Error> {
        let mut child = this_executable("clients")?.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let lines = LineReader::of(&mut child)?;
        let input = child.stdin.take();
        // Held from here on, so that a crowd that says nothing sensible is still ended.
        let mut watch = Watch { child, input, lines, began_us: 0 };
        let input = watch.input.as_mut().ok_or("the clients have no input")?;
        writeln!(input, "{}", serde_json::to_string(crowd)?)?;
        input.flush()?;
        watch.began_us = watch.lines.next()?.parse()?;
        Ok(watch)
    }

    pub(crate) fn now(&self) -> Moment {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Moment(((now.as_micros() as u64).saturating_sub(self.began_us) / 100) as u32)
    }

    /// Ends the crowd.
    pub(crate) fn stop(mut self) -> Result<Seen, Error> {
        drop(self.input.take());
        Ok(serde_json::from_str(&self.lines.next()?)?)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        // It may have ended by itself; either way it is gone afterwards.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

impl History {
    /// The longest time without an acknowledgement that ended, or was still going on, between two moments.
    pub(crate) fn longest_gap(&self, from: Moment, to: Moment) -> Duration {
        let before = self.acknowledged.iter().rev().find(|at| **at < from.0).copied().unwrap_or(from.0);
        let within = self.acknowledged.iter().copied().filter(|at| (from.0..to.0).contains(at));
        let mut last = before;
        let mut longest = 0;
        for at in within.chain([to.0]) {
            longest = longest.max(at.saturating_sub(last));
            last = at;
        }
        Duration::from_micros(u64::from(longest) * 100)
    }

    fn failures(&self, from: Moment, to: Moment) -> impl Iterator<Item = &Failure> {
        self.failed.iter().filter(move |(at, _)| (from.0..to.0).contains(at)).map(|(_, failure)| failure)
    }
}

/// Acknowledgements a second between two moments.
pub(crate) fn rate(clients: &[History], from: Moment, to: Moment) -> f64 {
    let within =
        |history: &History| history.acknowledged.iter().filter(|at| (from.0..to.0).contains(at)).count();
    clients.iter().map(within).sum::<usize>() as f64 / to.seconds_since(from)
}

/// How often each kind of failure was seen between two moments.
pub(crate) fn failures(clients: &[History], from: Moment, to: Moment) -> BTreeMap<Failure, u64> {
    let mut counts = BTreeMap::new();
    for failure in clients.iter().flat_map(|history| history.failures(from, to)) {
        *counts.entry(failure.clone()).or_default() += 1;
    }
    counts
}

/// Those in words.
pub(crate) fn in_words(failures: &BTreeMap<Failure, u64>) -> String {
    let word = |(failure, count): (&Failure, &u64)| match failure {
        Failure::Refused => format!("{count} refused connections"),
        Failure::Broken => format!("{count} broken connections"),
        Failure::Answer(answer) => format!("{count} × {answer}"),
    };
    let words: Vec<String> = failures.iter().map(word).collect();
    if words.is_empty() { "none".into() } else { words.join(", ") }
}

/// Longest gaps, sorted.
pub(crate) struct Gaps(Vec<Duration>);

impl Gaps {
    pub(crate) fn new(gaps: impl IntoIterator<Item = Duration>) -> Gaps {
        let mut gaps: Vec<Duration> = gaps.into_iter().collect();
        gaps.sort();
        Gaps(gaps)
    }

    pub(crate) fn max(&self) -> Duration {
        self.0.last().copied().unwrap_or_default()
    }

    pub(crate) fn median(&self) -> Duration {
        self.0.get(self.0.len() / 2).copied().unwrap_or_default()
    }

    pub(crate) fn add(&mut self, other: Gaps) {
        self.0.extend(other.0);
        self.0.sort();
    }
}

impl std::fmt::Display for Gaps {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let milliseconds = |gap: Duration| gap.as_millis();
        let (count, median, max) = (self.0.len(), milliseconds(self.median()), milliseconds(self.max()));
        write!(f, "median {median} ms, longest {max} ms, of {count} groups")
    }
}
