//! Holds a history against what the interface promises. Knows no server: histories in, findings out.

mod invariants;
pub(crate) mod linear;
pub(crate) mod log_model;
#[cfg(test)]
mod tests;

use crate::history::{Operation, Time};
use log_model::State;
use std::collections::HashMap;

/// One broken promise, in words.
pub(crate) type Finding = String;

/// A conversation after everything, as a linearizable read had it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Final {
    pub(crate) read_at: Time,
    pub(crate) version: u64,
    pub(crate) last_seq: u64,
    /// Sequence number and text of every event.
    pub(crate) events: Vec<(u64, String)>,
    places: HashMap<String, u64>,
}

impl Final {
    pub(crate) fn new(read_at: Time, version: u64, last_seq: u64, events: Vec<(u64, String)>) -> Final {
        let places = events.iter().map(|(seq, text)| (text.clone(), *seq)).collect();
        Final { read_at, version, last_seq, events, places }
    }

    pub(crate) fn place_of(&self, text: &str) -> Option<u64> {
        self.places.get(text).copied()
    }

    pub(crate) fn state(&self) -> State {
        State { version: self.version, last_seq: self.last_seq }
    }
}

/// Everything that is wrong with a history whose conversations ended like this.
pub(crate) fn check(operations: &[Operation], ends: &[Final]) -> Vec<Finding> {
    let mut operations = operations.to_vec();
    operations.sort_by_key(|operation| (operation.called, operation.client));
    let mut findings = Vec::new();
    for (conversation, end) in ends.iter().enumerate() {
        findings.extend(invariants::log_is_whole(conversation, &operations, end));
        findings.extend(invariants::appends_are_as_answered(conversation, &operations, end));
        findings.extend(invariants::versions_rise(conversation, &operations, end));
        findings.extend(invariants::versions_agree(conversation, &operations, end));
        findings.extend(invariants::pages_agree(conversation, &operations, end));
        findings.extend(log_model::linearizable(conversation, &operations, end));
    }
    findings
}
