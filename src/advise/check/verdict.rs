//! The decision tree: findings in the order in which they explain one another, and one word for all of them.

use serde::Serialize;

use super::{Lasting, Seen};
use crate::advise::document::{Document, Section};
use crate::advise::thresholds::{Level, Scope, Signal, THRESHOLDS, Threshold, of};

/// What a check comes to.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Verdict {
    /// None: what was seen is fine, but not all that is essential was seen.
    pub level: Option<Level>,
    pub findings: Vec<Finding>,
    pub headroom: Vec<Headroom>,
    pub unknown: Vec<Unknown>,
}

/// Something to do.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Finding {
    pub threshold: &'static str,
    pub of: String,
    pub level: Level,
    pub value: f64,
    pub limit: f64,
    /// For as long as the threshold asks, which may be no time at all.
    pub sustained: bool,
    pub what: String,
    pub action: String,
}

/// A dimension that is fine, and how far from its first limit its worst node is.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Headroom {
    pub threshold: &'static str,
    pub of: String,
    pub value: f64,
    pub limit: f64,
    pub shown: String,
    pub shown_limit: String,
}

/// A figure that could not be had.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Unknown {
    pub threshold: &'static str,
    pub of: String,
    pub why: String,
    pub essential: bool,
}

/// Holds all figures against their thresholds.
pub fn judge(seen: &[Seen]) -> Verdict {
    let mut verdict =
        Verdict { level: None, findings: Vec::new(), headroom: Vec::new(), unknown: Vec::new() };
    for threshold in THRESHOLDS {
        let figures: Vec<&Seen> = seen.iter().filter(|figure| figure.signal == threshold.signal).collect();
        if figures.is_empty() {
            let of = if threshold.scope == Scope::Cluster { "cluster" } else { "every node" };
            verdict.unknown.push(unknown(threshold, of, "it was not looked at"));
        }
        for figure in &figures {
            match &figure.value {
                Ok(value) => verdict.findings.extend(finding(threshold, figure, *value, seen)),
                Err(why) => verdict.unknown.push(unknown(threshold, &figure.of, why)),
            }
        }
        let fine = figures.iter().filter_map(|figure| Some((figure, *figure.value.as_ref().ok()?)));
        let fine = fine.filter(|(_, value)| threshold.level(*value) == Level::Fine);
        if let Some((figure, value)) = fine.max_by(|one, other| one.1.total_cmp(&other.1)) {
            verdict.headroom.push(headroom(threshold, figure, value));
        }
    }
    let worst = verdict.findings.iter().map(|finding| finding.level).max();
    let blind = verdict.unknown.iter().any(|unknown| unknown.essential);
    verdict.level = worst.or(if blind { None } else { Some(Level::Fine) });
    verdict
}

fn unknown(threshold: &Threshold, of: &str, why: &str) -> Unknown {
    Unknown {
        threshold: threshold.id,
        of: of.to_owned(),
        why: why.to_owned(),
        essential: threshold.essential,
    }
}

fn headroom(threshold: &Threshold, figure: &Seen, value: f64) -> Headroom {
    let limit = threshold.first_limit();
    Headroom {
        threshold: threshold.id,
        of: figure.of.clone(),
        value,
        limit,
        shown: threshold.show(value),
        shown_limit: threshold.show(limit),
    }
}

fn finding(threshold: &Threshold, figure: &Seen, value: f64, seen: &[Seen]) -> Option<Finding> {
    let sustained = figure.lasting == Lasting::Sustained || threshold.minutes == 0;
    let level = match threshold.level(value) {
        Level::Fine => return None,
        // What must last has been seen only for a moment.
        Level::Now if !sustained && threshold.soon.is_some() => Level::Soon,
        level => level,
    };
    let limit = match threshold.level(value) {
        Level::Now => threshold.now.unwrap_or_default(),
        _ => threshold.soon.unwrap_or_default(),
    };
    Some(Finding {
        threshold: threshold.id,
        of: figure.of.clone(),
        level,
        value,
        limit,
        sustained,
        what: format!("{} is {}, above {}", threshold.title, threshold.show(value), threshold.show(limit)),
        action: cause(threshold.signal, &figure.of, seen).unwrap_or_else(|| threshold.action.to_owned()),
    })
}

/// For a slow node, what makes it slow: the first of these that is above its own limit.
fn cause(signal: Signal, node: &str, seen: &[Seen]) -> Option<String> {
    if !matches!(signal, Signal::AppendLatencyP95 | Signal::WindowLatencyP95) {
        return None;
    }
    let causes = [Signal::FsyncP99, Signal::Cpu, Signal::Memory, Signal::Overload];
    let above = causes.iter().find_map(|cause| {
        let figure = seen.iter().find(|figure| figure.signal == *cause && figure.of == node)?;
        let value = *figure.value.as_ref().ok()?;
        let threshold = of(*cause);
        (threshold.level(value) != Level::Fine).then_some((threshold, value))
    });
    Some(match above {
        Some((threshold, value)) => format!("because: {} is {}: {}", threshold.title, threshold.show(value), threshold.action),
        None => "neither disk, CPU, memory nor limits explain it: look at the requests (size of windows, budgets, batches) and at the links between nodes".to_owned(),
    })
}

/// The verdict for people.
pub fn report(verdict: &Verdict) -> Document {
    let title = match verdict.level {
        Some(Level::Fine) => "No scaling needed",
        Some(Level::Soon) => "Act soon",
        Some(Level::Now) => "Act now",
        None => "Could not tell",
    };
    let mut document = Document::new(title);
    if !verdict.findings.is_empty() {
        let rows = verdict.findings.iter().map(|finding| {
            let level = if finding.level == Level::Now { "now" } else { "soon" };
            let lasting = if finding.sustained {
                ""
            } else {
                " (between two looks: --prometheus knows whether it lasts)"
            };
            let what = format!("{}{lasting}. {}.", finding.what, finding.action);
            [level.to_owned(), finding.threshold.to_owned(), finding.of.clone(), what]
        });
        document.push(
            Section::new("What to do").table(["when", "threshold", "node", "why, and what"], rows.collect()),
        );
    }
    let rows = verdict.headroom.iter().map(|room| {
        [
            room.threshold.to_owned(),
            room.of.clone(),
            room.shown.clone(),
            room.shown_limit.clone(),
            share_left(room),
        ]
    });
    if !verdict.headroom.is_empty() {
        let head = ["threshold", "worst node", "is", "act soon above", "left"];
        document.push(Section::new("Headroom").table(head, rows.collect()));
    }
    if !verdict.unknown.is_empty() {
        let rows = verdict.unknown.iter().map(|unknown| {
            let weight = if unknown.essential { "essential" } else { "" };
            [unknown.threshold.to_owned(), unknown.of.clone(), weight.to_owned(), unknown.why.clone()]
        });
        document.push(Section::new("Not seen").table(["threshold", "node", "", "why"], rows.collect()));
    }
    document
}

fn share_left(room: &Headroom) -> String {
    if room.limit > 0.0 {
        crate::advise::units::percent(1.0 - room.value / room.limit)
    } else {
        "all".to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figure(signal: Signal, value: f64, lasting: Lasting) -> Seen {
        Seen { signal, of: "n1".into(), value: Ok(value), lasting }
    }

    fn all_fine() -> Vec<Seen> {
        THRESHOLDS
            .iter()
            .map(|row| figure(row.signal, row.first_limit().min(0.5), Lasting::Sustained))
            .collect()
    }

    fn with(signal: Signal, value: f64, lasting: Lasting) -> Verdict {
        let mut seen = all_fine();
        seen.retain(|figure| figure.signal != signal);
        seen.push(figure(signal, value, lasting));
        judge(&seen)
    }

    #[test]
    fn fine_is_fine_with_headroom_in_every_dimension() {
        let verdict = judge(&all_fine());
        assert_eq!(verdict.level, Some(Level::Fine), "{verdict:?}");
        assert_eq!((verdict.headroom.len(), verdict.findings.len()), (THRESHOLDS.len(), 0));
        assert!(report(&verdict).text(false).starts_with("No scaling needed\n"));
    }

    #[test]
    fn every_threshold_has_its_say() {
        for row in THRESHOLDS {
            for (limit, level) in [(row.soon, Level::Soon), (row.now, Level::Now)] {
                let Some(limit) = limit else { continue };
                let verdict = with(row.signal, limit + limit.max(1.0) / 1e6, Lasting::Sustained);
                assert_eq!(verdict.level, Some(level), "{}", row.id);
                assert_eq!(verdict.findings[0].threshold, row.id);
            }
        }
    }

    #[test]
    fn a_moment_is_no_reason_for_haste_but_a_full_disk_is() {
        assert_eq!(with(Signal::Cpu, 0.99, Lasting::Momentary).level, Some(Level::Soon));
        assert_eq!(with(Signal::Cpu, 0.99, Lasting::Sustained).level, Some(Level::Now));
        let disk = with(Signal::DiskUsed, 0.95, Lasting::Momentary);
        assert_eq!((disk.level, disk.findings[0].sustained), (Some(Level::Now), true));
        assert_eq!(with(Signal::GroupsWithoutLeader, 2.0, Lasting::Momentary).level, Some(Level::Now));
    }

    #[test]
    fn latency_names_its_cause() {
        let mut seen = all_fine();
        seen.retain(|figure| !matches!(figure.signal, Signal::AppendLatencyP95 | Signal::Cpu));
        seen.push(figure(Signal::AppendLatencyP95, 300.0, Lasting::Sustained));
        seen.push(figure(Signal::Cpu, 0.75, Lasting::Sustained));
        let action = judge(&seen).findings[0].action.clone();
        assert!(action.starts_with("because: CPU"), "{action}");
        seen.retain(|figure| figure.signal != Signal::FsyncP99);
        seen.push(figure(Signal::FsyncP99, 40.0, Lasting::Sustained));
        assert!(judge(&seen).findings[0].action.starts_with("because: journal fsync"));
        let alone = with(Signal::WindowLatencyP95, 300.0, Lasting::Sustained);
        assert!(alone.findings[0].action.contains("look at the requests"));
    }

    #[test]
    fn what_is_not_seen_is_not_fine() {
        let mut seen = all_fine();
        seen.retain(|figure| figure.signal != Signal::Memory);
        assert_eq!(judge(&seen).level, None);
        seen.push(Seen {
            value: Err("no such metric".into()),
            ..figure(Signal::Memory, 0.0, Lasting::Momentary)
        });
        let verdict = judge(&seen);
        assert_eq!(verdict.level, None);
        assert!(report(&verdict).text(false).contains("no such metric"));
        // Something to do is worth more than something unknown.
        seen.push(figure(Signal::DiskFull, 1.0, Lasting::Momentary));
        assert_eq!(judge(&seen).level, Some(Level::Now));
    }
}
