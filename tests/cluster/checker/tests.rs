//! The checker itself: what it must reject, what it must accept, and that it ends.

use super::linear::{Interval, check as check_order};
use super::log_model::{Log, State, Step};
use super::{Final, check};
use crate::history::{Operation, Outcome, Request, Time};
use crate::rng::Rng;

fn at(called: Time, returned: Time, operation: Step) -> Interval<Step> {
    Interval { called, returned: Some(returned), operation }
}

fn open(called: Time, operation: Step) -> Interval<Step> {
    Interval { called, returned: None, operation }
}

fn append(first_seq: u64) -> Step {
    Step::Append { count: 1, first_seq: Some(first_seq), version: None }
}

fn unanswered() -> Step {
    Step::Append { count: 1, first_seq: None, version: None }
}

fn read(version: u64) -> Step {
    Step::Read(State { version, last_seq: version })
}

fn is_linearizable(intervals: &[Interval<Step>]) -> bool {
    check_order(&Log, intervals).is_ok()
}

#[test]
fn orders_in_sequence_and_overlapping_are_found() {
    assert!(is_linearizable(&[]));
    assert!(is_linearizable(&[at(0, 1, append(1)), at(2, 3, append(2)), at(4, 5, read(2))]));
    // Overlapping: the later call took effect first, and a read saw the moment between.
    assert!(is_linearizable(&[at(0, 9, append(2)), at(1, 8, append(1)), at(2, 7, read(1))]));
}

#[test]
fn a_stale_read_is_rejected() {
    let stale = [at(0, 1, append(1)), at(2, 3, append(2)), at(4, 5, read(1))];
    let stuck = check_order(&Log, &stale).unwrap_err();
    assert_eq!((stuck.linearized, stuck.candidates), (2, vec![2]));
}

#[test]
fn a_read_that_goes_back_is_rejected() {
    // Either answer would do while the append is under way, but not in this order.
    assert!(!is_linearizable(&[at(0, 9, append(1)), at(1, 2, read(1)), at(3, 4, read(0))]));
    assert!(is_linearizable(&[at(0, 9, append(1)), at(1, 2, read(0)), at(3, 4, read(1))]));
}

#[test]
fn a_lost_append_is_rejected() {
    assert!(!is_linearizable(&[at(0, 1, append(1)), at(2, 3, read(0))]));
    assert!(!is_linearizable(&[at(0, 1, append(1)), at(2, 3, append(1))]));
}

#[test]
fn a_place_given_twice_is_rejected() {
    assert!(!is_linearizable(&[at(0, 9, append(1)), at(1, 8, append(1))]));
}

#[test]
fn an_unanswered_append_may_happen_at_any_time_after_its_call() {
    assert!(is_linearizable(&[open(0, unanswered()), at(5, 6, read(0))]));
    assert!(is_linearizable(&[open(0, unanswered()), at(5, 6, read(1)), at(7, 8, append(2))]));
    assert!(is_linearizable(&[open(0, unanswered()), at(1, 2, read(0)), at(5, 6, read(1))]));
    // But not before it, and once only.
    assert!(!is_linearizable(&[at(0, 1, read(1)), open(2, unanswered())]));
    assert!(!is_linearizable(&[open(0, unanswered()), at(1, 2, read(2))]));
}

#[test]
fn compactions_compare_and_set() {
    let compact = |if_version, version| Step::Compact { if_version, version };
    assert!(is_linearizable(&[
        at(0, 1, compact(0, Some(1))),
        at(2, 3, Step::Conflict { if_version: 0, version: 1 })
    ]));
    assert!(!is_linearizable(&[at(0, 1, compact(0, Some(1))), at(2, 3, compact(0, Some(1)))]));
    assert!(!is_linearizable(&[at(0, 1, Step::Conflict { if_version: 0, version: 0 })]));
    // Without an answer it bumps the version or does nothing, by what the version was.
    let bumped = Step::Read(State { version: 1, last_seq: 0 });
    assert!(is_linearizable(&[open(0, compact(0, None)), at(1, 2, bumped)]));
    assert!(is_linearizable(&[open(0, compact(0, None)), at(1, 2, append(1)), at(3, 4, read(1))]));
}

/// A history made by really running the model: every operation takes effect at a moment within its interval.
fn lawful(seed: u64, operations: u64, overlap: u64) -> Vec<Interval<Step>> {
    let mut rng = Rng::new(seed);
    let mut state = State::default();
    let mut intervals = Vec::new();
    for moment in 1..=operations {
        let (version, last_seq) = (state.version, state.last_seq);
        let before = (moment * 1000).saturating_sub(rng.next() % (overlap * 1000));
        let after = moment * 1000 + rng.next() % (overlap * 1000);
        let step = match rng.below(5) {
            0 | 1 => Step::Append { count: 1, first_seq: Some(last_seq + 1), version: Some(version + 1) },
            2 => Step::Append { count: 3, first_seq: Some(last_seq + 1), version: None },
            3 => Step::Compact { if_version: version, version: Some(version + 1) },
            _ => Step::Read(state),
        };
        match step {
            Step::Append { count, .. } => {
                state = State { version: version + count, last_seq: last_seq + count };
            }
            Step::Compact { .. } => state.version += 1,
            _ => {}
        }
        intervals.push(at(before, after, step));
    }
    intervals
}

#[test]
fn long_lawful_histories_pass() {
    for seed in 0..20 {
        assert!(is_linearizable(&lawful(seed, 2_000, 16)), "seed {seed}");
    }
    assert!(is_linearizable(&lawful(99, 50_000, 12)));
}

#[test]
fn one_wrong_answer_in_a_long_history_is_found() {
    for seed in 0..20 {
        let mut intervals = lawful(seed, 2_000, 8);
        let mut rng = Rng::new(seed);
        let victim = loop {
            let index = 100 + rng.below(1_800);
            if matches!(intervals[index].operation, Step::Read(_)) {
                break index;
            }
        };
        // It claims to have seen what was true long before.
        intervals[victim].operation = Step::Read(State { version: 1, last_seq: 1 });
        assert!(!is_linearizable(&intervals), "seed {seed}");
    }
}

fn operation(called: Time, request: Request, outcome: Outcome) -> Operation {
    Operation {
        client: 0,
        conversation: 0,
        node: 0,
        called,
        returned: called + 1,
        request,
        outcome,
        attempts: 1,
    }
}

fn sent(called: Time, text: &str, outcome: Outcome) -> Operation {
    operation(called, Request::Append { key: text.into(), texts: vec![text.into()] }, outcome)
}

fn end(texts: &[&str]) -> Final {
    let events: Vec<_> = (1..).zip(texts.iter().map(|text| (*text).to_owned())).collect();
    Final::new(1_000, events.len() as u64, events.len() as u64, events)
}

fn acknowledged(seq: u64) -> Outcome {
    Outcome::Appended { first_seq: seq, version: Some(seq) }
}

#[test]
fn a_sound_history_has_no_findings() {
    let history = [
        sent(0, "a", acknowledged(1)),
        sent(2, "b", Outcome::Unknown),
        sent(4, "c", Outcome::NotApplied),
        sent(6, "d", Outcome::Unknown),
        operation(8, Request::ReadTail, Outcome::SawTail(vec![(1, "a".into()), (2, "b".into())])),
        operation(10, Request::ReadLocal { min_version: None }, Outcome::Saw { version: 1, last_seq: 1 }),
    ];
    assert_eq!(check(&history, &[end(&["a", "b"])]), Vec::<String>::new());
}

#[test]
fn every_broken_promise_is_found() {
    let found = |history: &[Operation], texts: &[&str], word: &str| {
        let findings = check(history, &[end(texts)]);
        assert!(findings.iter().any(|finding| finding.contains(word)), "no {word:?} in {findings:?}");
    };
    let a = sent(0, "a", acknowledged(1));
    found(std::slice::from_ref(&a), &[], "is at [None]");
    found(std::slice::from_ref(&a), &["a", "a"], "twice");
    found(std::slice::from_ref(&a), &["a", "x"], "nobody sent");
    found(&[a.clone(), sent(2, "b", Outcome::NotApplied)], &["a", "b"], "is at [Some(2)]");
    let batch = Request::Append { key: "k".into(), texts: vec!["a".into(), "b".into()] };
    found(&[operation(0, batch, Outcome::Unknown)], &["a"], "is at [Some(1), None]");
    let tail = operation(2, Request::ReadTail, Outcome::SawTail(vec![(1, "b".into())]));
    found(&[a.clone(), tail], &["a"], "where it is not");
    let old = operation(2, Request::Read, Outcome::Saw { version: 0, last_seq: 0 });
    found(&[a.clone(), old.clone()], &["a"], "is not between 1 and 1");
    found(&[a.clone(), old], &["a"], "not linearizable");
    let early = Request::ReadLocal { min_version: Some(1) };
    found(
        &[a, operation(2, early, Outcome::Saw { version: 0, last_seq: 0 })],
        &["a"],
        "is not between 1 and 1",
    );
    let mut hole = end(&["a"]);
    hole.events[0].0 = 2;
    assert!(check(&[], &[hole])[0].contains("where 1 belongs"));
}
