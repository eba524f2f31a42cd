//! Linearizability of a history: whether its operations could have happened one after another, each at some moment between
//! its call and its return, such that a sequential model gives the answers that were given.
//!
//! Wing and Gong's search with Lowe's cache of configurations, as in Porcupine (<https://github.com/anishathalye/porcupine>):
//! walk the calls and returns in order of time; linearize a call that the model agrees to and begin again from the front; at
//! a return whose call is not linearized yet, take back the last choice. A configuration (which calls are linearized, and the
//! state) that was reached before need not be tried again. The set of calls is kept as a hash of 128 bits, so that a
//! configuration takes the same memory however long the history.
//!
//! An operation without an answer returns at the end of time: it may take effect at any moment after its call, or after
//! everything anybody saw.

use crate::history::Time;
use crate::rng::mix;
use std::collections::HashSet;
use std::hash::Hash;

/// A sequential object: what an operation with its outcome does to a state, or that it cannot have happened in it.
pub(crate) trait Model {
    type State: Clone + Eq + Hash;
    type Operation;
    fn initial(&self) -> Self::State;
    fn step(&self, state: &Self::State, operation: &Self::Operation) -> Option<Self::State>;
}

/// An operation with its interval. Without a return it is open to the end.
#[derive(Clone, Debug)]
pub(crate) struct Interval<O> {
    pub(crate) called: Time,
    pub(crate) returned: Option<Time>,
    pub(crate) operation: O,
}

/// Why a history is not linearizable.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Stuck {
    /// How many operations the longest order found holds.
    pub(crate) linearized: usize,
    /// Those, by index, one of which had to come next and none of which could.
    pub(crate) candidates: Vec<usize>,
}

/// End of the list of events.
const NIL: usize = usize::MAX;

/// Calls and returns in order of time, as a list that events are taken from and put back into. Event `2 * i` is the call of
/// operation `i`, `2 * i + 1` its return.
struct Events {
    next: Vec<usize>,
    previous: Vec<usize>,
    head: usize,
}

impl Events {
    fn of<O>(intervals: &[Interval<O>]) -> Events {
        let mut order: Vec<usize> = (0..intervals.len() * 2).collect();
        // At the same moment calls come first: the intervals overlap.
        order.sort_by_key(|&event| {
            let interval = &intervals[event / 2];
            let time = if is_call(event) { interval.called } else { interval.returned.unwrap_or(Time::MAX) };
            (time, !is_call(event), event)
        });
        let (mut next, mut previous) = (vec![NIL; order.len()], vec![NIL; order.len()]);
        for pair in order.windows(2) {
            next[pair[0]] = pair[1];
            previous[pair[1]] = pair[0];
        }
        Events { next, previous, head: order.first().copied().unwrap_or(NIL) }
    }

    /// Takes the call and the return of an operation out.
    fn lift(&mut self, operation: usize) {
        self.unlink(2 * operation);
        self.unlink(2 * operation + 1);
    }

    /// Puts them back, in the opposite order of being taken out.
    fn unlift(&mut self, operation: usize) {
        self.relink(2 * operation + 1);
        self.relink(2 * operation);
    }

    fn unlink(&mut self, event: usize) {
        let (previous, next) = (self.previous[event], self.next[event]);
        if previous == NIL {
            self.head = next
        } else {
            self.next[previous] = next
        }
        if next != NIL {
            self.previous[next] = previous;
        }
    }

    fn relink(&mut self, event: usize) {
        let (previous, next) = (self.previous[event], self.next[event]);
        if previous == NIL {
            self.head = event
        } else {
            self.next[previous] = event
        }
        if next != NIL {
            self.previous[next] = event;
        }
    }

    /// The calls before the first return: one of them comes next.
    fn candidates(&self) -> Vec<usize> {
        let existing = |event: usize| (event != NIL).then_some(event);
        let events = std::iter::successors(existing(self.head), |&event| existing(self.next[event]));
        events.take_while(|&event| is_call(event)).map(|event| event / 2).collect()
    }
}

fn is_call(event: usize) -> bool {
    event.is_multiple_of(2)
}

/// The contribution of one operation to the hash of a set.
fn mark(operation: usize) -> u128 {
    let low = mix(operation as u64 + 1);
    (u128::from(mix(low ^ 0x5851_f42d_4c95_7f2d)) << 64) | u128::from(low)
}

/// Whether an order exists.
pub(crate) fn check<M: Model>(model: &M, intervals: &[Interval<M::Operation>]) -> Result<(), Stuck> {
    let mut events = Events::of(intervals);
    let mut state = model.initial();
    let mut linearized: u128 = 0;
    let mut seen: HashSet<(u128, M::State)> = HashSet::new();
    let mut choices: Vec<(usize, M::State)> = Vec::new();
    let mut worst = Stuck { linearized: 0, candidates: events.candidates() };
    let mut event = events.head;
    while events.head != NIL {
        let operation = event / 2;
        if event != NIL && is_call(event) {
            let with = linearized ^ mark(operation);
            let after = model.step(&state, &intervals[operation].operation);
            match after.filter(|after| seen.insert((with, after.clone()))) {
                Some(after) => {
                    choices.push((operation, std::mem::replace(&mut state, after)));
                    linearized = with;
                    events.lift(operation);
                    event = events.head;
                }
                None => event = events.next[event],
            }
            continue;
        }
        if choices.len() >= worst.linearized {
            worst = Stuck { linearized: choices.len(), candidates: events.candidates() };
        }
        let Some((operation, before)) = choices.pop() else { return Err(worst) };
        state = before;
        linearized ^= mark(operation);
        events.unlift(operation);
        event = events.next[2 * operation];
    }
    Ok(())
}
