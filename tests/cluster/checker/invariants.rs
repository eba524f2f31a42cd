//! What must hold of a history beside linearizability, each in time linear in its length.

use super::{Final, Finding};
use crate::history::{Operation, Outcome, Request};
use crate::worker::TAIL;
use std::collections::{HashMap, HashSet};

/// Sequence numbers without holes; nothing twice; nothing that nobody sent.
pub(super) fn log_is_whole(conversation: usize, operations: &[Operation], end: &Final) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut texts = HashSet::new();
    let sent: HashSet<&str> = of(operations, conversation).flat_map(texts_of).map(String::as_str).collect();
    for (index, (seq, text)) in end.events.iter().enumerate() {
        if *seq != index as u64 + 1 {
            findings.push(format!("conversation {conversation} has {seq} where {} belongs", index + 1));
        }
        if !texts.insert(text) {
            findings.push(format!("conversation {conversation} has {text:?} twice"));
        }
        if !sent.contains(text.as_str()) {
            findings.push(format!("conversation {conversation} holds {text:?}, which nobody sent"));
        }
    }
    if end.last_seq != end.events.len() as u64 {
        findings.push(format!(
            "conversation {conversation} says that it ends with {}, and its log has {} events",
            end.last_seq,
            end.events.len()
        ));
    }
    findings
}

/// What was acknowledged is where the answer said; what was refused is nowhere; what is unknown is whole or absent.
pub(super) fn appends_are_as_answered(
    conversation: usize,
    operations: &[Operation],
    end: &Final,
) -> Vec<Finding> {
    let mut findings = Vec::new();
    for operation in of(operations, conversation) {
        let places: Vec<Option<u64>> = texts_of(operation).map(|text| end.place_of(text)).collect();
        let Some(first) = places.first() else { continue };
        let from = |seq: u64| places.iter().copied().eq((seq..).take(places.len()).map(Some));
        let absent = places.iter().all(Option::is_none);
        let kept = match operation.outcome {
            Outcome::Appended { first_seq, .. } => from(first_seq),
            Outcome::NotApplied => absent,
            _ => absent || first.is_some_and(from),
        };
        if !kept {
            findings.push(format!("{operation:?} is at {places:?}"));
        }
    }
    findings
}

/// No client sees a version older than one it saw before, nor than one it asked for, nor one beyond the end.
pub(super) fn versions_rise(conversation: usize, operations: &[Operation], end: &Final) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut newest: HashMap<usize, u64> = HashMap::new();
    for operation in of(operations, conversation) {
        let Some(version) = version_of(operation) else { continue };
        let newest = newest.entry(operation.client).or_default();
        let floor = match operation.request {
            Request::ReadLocal { min_version } => min_version.unwrap_or(0),
            _ => *newest,
        };
        if version < floor || version > end.version {
            findings.push(format!("{operation:?} is not between {floor} and {}", end.version));
        }
        *newest = version.max(*newest);
    }
    findings
}

/// A version is of one state: whoever sees it sees the same number of events.
pub(super) fn versions_agree(conversation: usize, operations: &[Operation], end: &Final) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut known = HashMap::from([(end.version, end.last_seq)]);
    for operation in of(operations, conversation) {
        let Outcome::Saw { version, last_seq } = operation.outcome else { continue };
        let first = *known.entry(version).or_insert(last_seq);
        if first != last_seq {
            findings.push(format!("{operation:?} saw {last_seq} events where others saw {first}"));
        }
    }
    findings
}

/// Every event that anybody read is the one at that place in the end.
pub(super) fn pages_agree(conversation: usize, operations: &[Operation], end: &Final) -> Vec<Finding> {
    let mut findings = Vec::new();
    for operation in of(operations, conversation) {
        let Outcome::SawTail(events) = &operation.outcome else { continue };
        if let Some((seq, text)) = events.iter().find(|(seq, text)| end.place_of(text) != Some(*seq)) {
            findings.push(format!("client {} read {text:?} at {seq}, where it is not", operation.client));
        }
        if events.len() != events.last().map_or(0, |(seq, _)| TAIL.min(*seq as usize)) {
            findings.push(format!("{operation:?} read a tail of another length"));
        }
        if events.windows(2).any(|pair| pair[1].0 != pair[0].0 + 1) {
            findings.push(format!("{operation:?} read a page with a hole"));
        }
    }
    findings
}

fn of(operations: &[Operation], conversation: usize) -> impl Iterator<Item = &Operation> {
    operations.iter().filter(move |operation| operation.conversation == conversation)
}

fn texts_of(operation: &Operation) -> impl Iterator<Item = &String> {
    match &operation.request {
        Request::Append { texts, .. } => texts.iter(),
        _ => [].iter(),
    }
}

/// The version an answer told. An append that was sent again is told the version of its first answer, which may be old.
fn version_of(operation: &Operation) -> Option<u64> {
    match operation.outcome {
        Outcome::Appended { version, .. } if operation.attempts == 1 => version,
        Outcome::Compacted { version } | Outcome::Conflict { version } | Outcome::Saw { version, .. } => {
            Some(version)
        }
        _ => None,
    }
}
