//! How much of a history a window takes to plan.

use std::cell::Cell;
use std::sync::Arc;

use bytes::Bytes;

use super::super::*;
use super::{Harness, append, put, text};

/// A history that counts the runs of messages read of it.
struct Counting<'a> {
    history: &'a dyn History,
    event_runs: Cell<u64>,
}

impl History for Counting<'_> {
    fn event_run(&self, id: &ConversationId, first_seq: u64) -> Result<Arc<EventRun>, HistoryError> {
        self.event_runs.set(self.event_runs.get() + 1);
        self.history.event_run(id, first_seq)
    }

    fn change_run(&self, id: &ConversationId, number: u64) -> Result<Arc<ChangeRun>, HistoryError> {
        self.history.change_run(id, number)
    }
}

/// A conversation of `events` messages of one token whose policy keeps them all.
fn long_conversation(events: u64) -> Harness {
    let mut harness = Harness::new();
    harness.apply(put());
    let policy = Policy::parse(Bytes::from_static(br#"{"strategy":"manual"}"#)).unwrap();
    let token_budget = Some(1 << 53);
    harness.apply(Action::Put(Put { token_budget, policy: Some(policy), ..Put::default() }));
    for _ in 0..events / 1_000 {
        harness.apply(append(vec![text(1); 1_000]));
    }
    harness
}

fn runs_read(harness: &Harness, query: &WindowQuery, max: u64) -> (Result<WindowPlan, PlanError>, u64) {
    let counting = Counting { history: &harness.store, event_runs: Cell::new(0) };
    let plan = plan_window(harness.current(), &harness.id, &counting, query, max);
    (plan, counting.event_runs.get())
}

#[test]
fn a_window_of_too_many_messages_is_refused_before_they_are_read() {
    let harness = long_conversation(20_000);
    let max = 1_280;
    let (plan, runs) = runs_read(&harness, &WindowQuery::default(), max);
    assert_eq!(plan, Err(PlanError::TooManyMessages { max }));
    assert!(runs <= max / EVENT_RUN + 1, "{runs} runs");
    let (plan, _) = runs_read(&harness, &WindowQuery::default(), 20_000);
    assert_eq!(plan.unwrap().used_tokens, 20_000);
}

/// Whether it needs compaction is known as soon as the budget does not suffice, however far the trigger is.
#[test]
fn a_small_budget_takes_few_messages_to_fill() {
    let harness = long_conversation(20_000);
    let query = WindowQuery { budget_tokens: Some(1_000), ..WindowQuery::default() };
    let (plan, runs) = runs_read(&harness, &query, 1_280);
    let plan = plan.unwrap();
    assert_eq!((plan.messages.len(), plan.needs_compaction), (1_000, true));
    // Looked through once, and read again for what is shown.
    assert!(runs <= 2 * (1_000 / EVENT_RUN + 2), "{runs} runs");
}
