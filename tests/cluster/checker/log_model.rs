//! A conversation as the sequential object clients see: an append-only log whose append returns its place, and a version.

use super::linear::{Interval, Model, Stuck, check};
use super::{Final, Finding};
use crate::history::{Operation, Outcome, Request};

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct State {
    pub(crate) version: u64,
    pub(crate) last_seq: u64,
}

/// An operation and what is known of its outcome.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    Append {
        count: u64,
        first_seq: Option<u64>,
        version: Option<u64>,
    },
    /// Whether it was the right version is known (`Some`) or follows from the state.
    Compact {
        if_version: u64,
        version: Option<u64>,
    },
    Conflict {
        if_version: u64,
        version: u64,
    },
    Read(State),
    ReadTail {
        last_seq: u64,
    },
}

/// An empty conversation to begin with.
pub(crate) struct Log;

impl Model for Log {
    type State = State;
    type Operation = Step;

    fn initial(&self) -> State {
        State::default()
    }

    fn step(&self, state: &State, step: &Step) -> Option<State> {
        let is = |known: Option<u64>, actual: u64| known.is_none_or(|known| known == actual);
        let bumped = State { version: state.version + 1, ..*state };
        match *step {
            Step::Append { count, first_seq, version } => {
                let after = State { version: state.version + count, last_seq: state.last_seq + count };
                (is(first_seq, state.last_seq + 1) && is(version, after.version)).then_some(after)
            }
            Step::Compact { if_version, version: Some(version) } => {
                (state.version == if_version && version == bumped.version).then_some(bumped)
            }
            Step::Compact { if_version, version: None } => {
                Some(if state.version == if_version { bumped } else { *state })
            }
            Step::Conflict { if_version, version } => {
                (state.version == version && version != if_version).then_some(*state)
            }
            Step::Read(seen) => (seen == *state).then_some(*state),
            Step::ReadTail { last_seq } => (last_seq == state.last_seq).then_some(*state),
        }
    }
}

/// The operations of one conversation, and the reading of its end, must have an order.
///
/// The end tells what became of appends without an answer: those in the log took effect at some time after their call, those
/// that are not never did. That is no more than the search would find out, but it need not search for it.
pub(crate) fn linearizable(conversation: usize, operations: &[Operation], end: &Final) -> Option<Finding> {
    let (sources, mut intervals): (Vec<&Operation>, Vec<_>) = operations
        .iter()
        .filter(|operation| operation.conversation == conversation)
        .filter_map(|operation| Some((operation, interval(operation, end)?)))
        .unzip();
    intervals.push(Interval {
        called: end.read_at,
        returned: Some(end.read_at + 1),
        operation: Step::Read(end.state()),
    });
    let Err(Stuck { linearized, candidates }) = check(&Log, &intervals) else { return None };
    let described = candidates.iter().map(|&index| match sources.get(index) {
        Some(operation) => format!("  {operation:?}"),
        None => format!("  the end: {:?}", end.state()),
    });
    let described: Vec<String> = described.collect();
    Some(format!(
        "conversation {conversation} is not linearizable: after {linearized} of {} operations none of these can be next:\n{}",
        intervals.len(),
        described.join("\n")
    ))
}

/// `None` for what says nothing about the order.
fn interval(operation: &Operation, end: &Final) -> Option<Interval<Step>> {
    let returned = (operation.outcome != Outcome::Unknown).then_some(operation.returned);
    let step = match (&operation.request, &operation.outcome) {
        (Request::Append { texts, .. }, Outcome::Appended { first_seq, version }) => {
            Step::Append { count: texts.len() as u64, first_seq: Some(*first_seq), version: *version }
        }
        (Request::Append { texts, .. }, Outcome::Unknown) => Step::Append {
            count: texts.len() as u64,
            first_seq: Some(end.place_of(&texts[0])?),
            version: None,
        },
        (Request::Compact { if_version }, Outcome::Compacted { version }) => {
            Step::Compact { if_version: *if_version, version: Some(*version) }
        }
        (Request::Compact { if_version }, Outcome::Unknown) => {
            Step::Compact { if_version: *if_version, version: None }
        }
        (Request::Compact { if_version }, Outcome::Conflict { version }) => {
            Step::Conflict { if_version: *if_version, version: *version }
        }
        (Request::Read, Outcome::Saw { version, last_seq }) => {
            Step::Read(State { version: *version, last_seq: *last_seq })
        }
        (Request::ReadTail, Outcome::SawTail(events)) => {
            Step::ReadTail { last_seq: events.last().map_or(0, |(seq, _)| *seq) }
        }
        _ => return None,
    };
    Some(Interval { called: operation.called, returned, operation: step })
}
