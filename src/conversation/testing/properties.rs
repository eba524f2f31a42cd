//! Random histories, applied to the real thing and to the naive model, which must agree on every reply and every read.

use std::collections::BTreeMap;

use bytes::Bytes;
use proptest::prelude::{ProptestConfig, proptest};

use super::super::*;
use super::generate::{Op, history};
use super::model::{Model, ModelEvent, ModelItem, ModelWindow, PartAt, Shown, kept_pairs};
use super::{Harness, text};

/// The real conversation and the model side by side.
struct Pair {
    real: Harness,
    model: Model,
    keys: BTreeMap<u8, (u8, Reply)>,
    tombstoned: bool,
    metadata: serde_json::Map<String, serde_json::Value>,
    /// The window that was planned while each version was current.
    windows: Vec<WindowPlan>,
}

impl Pair {
    fn new() -> Pair {
        let mut pair = Pair {
            real: Harness::new(),
            model: Model::default(),
            keys: BTreeMap::new(),
            tombstoned: false,
            metadata: serde_json::Map::new(),
            windows: Vec::new(),
        };
        assert_eq!(pair.real.apply(super::append(vec![text(1)])), Reply::Refused(Refusal::NotFound));
        let created = pair.real.apply(super::put());
        assert!(matches!(created, Reply::Settled { created: true, changed: true, .. }));
        pair.model.items.push(ModelItem::Created(Settings::default()));
        pair.remember_window();
        pair
    }

    fn remember_window(&mut self) {
        let plan = self.real.window(&WindowQuery { explain: true, ..WindowQuery::default() }).unwrap();
        let plan = nowhere(plan);
        // Versions in the middle of a batch were never current.
        self.windows.resize(self.model.version() as usize, plan.clone());
        self.windows.push(plan);
    }

    fn run(&mut self, op: Op) {
        match op {
            Op::Wait { ms } => self.real.now_ms = self.real.now_ms.saturating_add_signed(ms),
            Op::Put { budget, ratio, policy, metadata } => self.put(budget, ratio, policy, metadata),
            Op::Patch(patch) => self.patch(patch),
            Op::Append { messages, key, version_off_by } => self.append(messages, key, version_off_by),
            Op::Compact { from, to, replacement } => self.compact(from, to, replacement),
            Op::Trim { archived, keep, upto } => self.trim(archived, keep, upto),
            Op::Tombstone => {
                let expected = Reply::Tombstoned { changed: !self.tombstoned };
                assert_eq!(self.real.apply(Action::Tombstone), expected);
                if !self.tombstoned {
                    self.model.items.push(ModelItem::Tombstoned);
                }
                self.tombstoned = true;
            }
        }
        self.check_current();
    }

    fn put(
        &mut self,
        token_budget: Option<u64>,
        trigger_ratio: Option<f64>,
        policy: Option<&'static str>,
        metadata: Option<&'static str>,
    ) {
        let policy = policy.map(|json| Policy::parse(Bytes::from_static(json.as_bytes())).unwrap());
        let action = Action::Put(Put {
            token_budget,
            trigger_ratio,
            policy: policy.clone(),
            metadata: metadata.map(Bytes::from_static_str),
        });
        let reply = self.real.apply(action);
        if self.tombstoned {
            return assert_eq!(reply, Reply::Refused(Refusal::Tombstoned));
        }
        let current = self.model.settings_at(self.model.version());
        let settings = Settings {
            token_budget: token_budget.unwrap_or(current.token_budget),
            trigger_ratio: trigger_ratio.unwrap_or(current.trigger_ratio),
            policy: policy.unwrap_or(current.policy.clone()),
        };
        let metadata = metadata.map(|json| serde_json::from_str(json).unwrap());
        let metadata = metadata.unwrap_or(self.metadata.clone());
        if settings != *current {
            self.model.items.push(ModelItem::Settings(settings));
        } else if metadata != self.metadata {
            self.model.items.push(ModelItem::Metadata);
        }
        self.metadata = metadata;
        assert!(matches!(reply, Reply::Settled { created: false, .. }));
    }

    fn patch(&mut self, patch: &'static str) {
        let reply = self.real.apply(Action::PatchMetadata { patch: Bytes::from_static_str(patch) });
        if self.tombstoned {
            return assert_eq!(reply, Reply::Refused(Refusal::Tombstoned));
        }
        let before = self.metadata.clone();
        let patch: serde_json::Map<String, serde_json::Value> = serde_json::from_str(patch).unwrap();
        for (key, value) in patch {
            if value.is_null() {
                self.metadata.remove(&key);
            } else {
                self.metadata.insert(key, value);
            }
        }
        if before != self.metadata {
            self.model.items.push(ModelItem::Metadata);
        }
    }

    fn append(&mut self, messages: Vec<NewMessage>, key: Option<(u8, u8)>, version_off_by: Option<u64>) {
        let version = self.model.version();
        let if_version = version_off_by.map(|off_by| version + off_by);
        let idempotency = key.map(|(key, body)| Idempotency { key: [key; 16], body: [body; 16] });
        let reply = self.real.apply(Action::Append { messages: messages.clone(), idempotency, if_version });
        if let Some((key, body)) = key
            && let Some((first_body, first)) = self.keys.get(&key)
        {
            let expected = match first {
                Reply::Appended { first_seq, last_seq, version, token_counts, .. } if *first_body == body => {
                    Reply::Appended {
                        first_seq: *first_seq,
                        last_seq: *last_seq,
                        version: *version,
                        token_counts: token_counts.clone(),
                        deduped: true,
                    }
                }
                _ => Reply::Refused(Refusal::IdempotencyConflict),
            };
            return assert_eq!(reply, expected);
        }
        if self.tombstoned {
            return assert_eq!(reply, Reply::Refused(Refusal::Tombstoned));
        }
        if let Some(expected) = if_version.filter(|expected| *expected != version) {
            return assert_eq!(reply, Reply::Refused(Refusal::Conflict { expected, current: version }));
        }
        let before = self.model.events.len() as u64;
        let last_ms = self.model.events.last().map_or(0, |event| event.at_ms);
        let at_ms = self.real.current().updated_at_ms();
        assert!(at_ms >= last_ms && at_ms >= self.real.now_ms, "time never goes back");
        for message in &messages {
            self.model.events.push(ModelEvent { message: message.clone(), at_ms });
            self.model.items.push(ModelItem::Event(self.model.events.len() as u64));
        }
        let expected = Reply::Appended {
            first_seq: before + 1,
            last_seq: before + messages.len() as u64,
            version: version + messages.len() as u64,
            token_counts: messages.iter().map(|message| message.token_count).collect(),
            deduped: false,
        };
        assert_eq!(reply, expected);
        if let Some((key, body)) = key {
            self.keys.insert(key, (body, reply));
        }
    }

    fn compact(&mut self, from: Option<u64>, to: Option<u64>, replacement: Vec<NewMessage>) {
        let last_seq = self.model.events.len() as u64;
        let scaled = |bound: Option<u64>| bound.map(|bound| (bound * (last_seq + 1)).div_ceil(1_000));
        let range = CompactRange { from: scaled(from), to: scaled(to) };
        let action = Action::Compact { range, replacement: replacement.clone(), if_version: None };
        let reply = self.real.apply(action);
        let (from, to) = (range.from.unwrap_or(1), range.to.unwrap_or(last_seq));
        let summaries = self.model.summaries_at(self.model.version());
        let cut = summaries.iter().find(|(f, t, _)| *f <= to && from <= *t && (*f < from || to < *t));
        if self.tombstoned {
            assert_eq!(reply, Reply::Refused(Refusal::Tombstoned));
        } else if from == 0 || from > to || to > last_seq {
            assert!(
                matches!(reply, Reply::Refused(Refusal::InvalidRange { covering: None, .. })),
                "{reply:?}"
            );
        } else if let Some((f, t, _)) = cut {
            let Reply::Refused(Refusal::InvalidRange { covering, .. }) = reply else { panic!("{reply:?}") };
            assert_eq!(covering, Some((*f, *t)));
        } else {
            self.model.items.push(ModelItem::Compaction { from, to, replacement });
            assert_eq!(reply, Reply::Compacted { version: self.model.version() });
        }
    }

    /// Whatever is asked for, the rules of trimming hold; and the model, which knows nothing of it, stays right.
    fn trim(&mut self, archived: u64, keep: u64, upto: u64) {
        let (version, last_seq) = (self.model.version(), self.model.events.len() as u64);
        let conversation = self.real.conversation.as_mut().unwrap();
        self.real.index += 1;
        conversation.mark_archived(self.real.index, version * archived / 1_000);
        let archived_seq = self.model.last_seq_at(conversation.archived_version().unwrap());
        let before = conversation.trimmed_seq();
        let upto = last_seq * upto / 1_000;
        let trimmed = self.real.trim(keep, upto);
        let frontier = self.real.current().trimmed_seq();
        assert_eq!(frontier, before + trimmed);
        if trimmed == 0 {
            return;
        }
        assert!(frontier <= upto.min(archived_seq).min(last_seq.saturating_sub(keep)));
        let window = self.check_window(version, None);
        let shown = |message: &&PlannedMessage| message.to_seq.is_some() || message.seq > before;
        assert!(window.messages.iter().filter(shown).all(|message| message.location.is_placed()));
    }

    /// What every read says now.
    fn check_current(&mut self) {
        let conversation = self.real.current();
        assert_eq!(conversation.version(), self.model.version());
        assert_eq!(conversation.last_seq(), self.model.events.len() as u64);
        assert_eq!(conversation.status() == Status::Tombstoned, self.tombstoned);
        let metadata: serde_json::Value = serde_json::from_slice(conversation.metadata()).unwrap();
        assert_eq!(metadata, serde_json::Value::Object(self.metadata.clone()));
        if self.windows.len() as u64 == self.model.version() + 1 {
            return;
        }
        self.check_window(self.model.version(), None);
        self.remember_window();
    }

    /// The window as of a version is what the model says, and what was said when the version was current.
    fn check_window(&self, version: u64, budget_tokens: Option<u64>) -> WindowPlan {
        let query = WindowQuery { budget_tokens, at_version: Some(version), explain: true };
        let plan = self.real.window(&query).unwrap();
        assert_eq!(plan.version, version);
        self.check_invariants(&plan, budget_tokens);
        let expected = self.model.window(version, budget_tokens);
        let shown = plan.messages.iter().map(shown).collect();
        let found = ModelWindow { used: plan.used_tokens, needs_compaction: plan.needs_compaction, shown };
        assert_eq!(found, normalised(expected), "version {version}, budget {budget_tokens:?}");
        let unexplained = self.real.window(&WindowQuery { explain: false, ..query }).unwrap();
        assert_eq!(unexplained, WindowPlan { left_out: Vec::new(), ..plan.clone() });
        let live = plan.messages.iter().filter(|message| message.to_seq.is_none()).count() as u64;
        assert_eq!(self.real.window_of(&query, live).as_ref(), Ok(&plan));
        if let Some(max) = live.checked_sub(1) {
            assert_eq!(self.real.window_of(&query, max), Err(PlanError::TooManyMessages { max }));
        }
        if budget_tokens.is_none() {
            let usage = plan_usage(self.real.current(), &self.real.id, &self.real.store, version);
            assert_eq!(usage, Ok((plan.used_tokens, plan.needs_compaction)));
        }
        plan
    }

    /// What holds for every window, whatever the model says.
    fn check_invariants(&self, plan: &WindowPlan, budget_tokens: Option<u64>) {
        let settings = self.model.settings_at(plan.version);
        let last_seq = self.model.last_seq_at(plan.version);
        let total: u64 = plan.messages.iter().map(|message| u64::from(message.token_count)).sum();
        assert_eq!(plan.used_tokens, total);
        assert!(total <= budget_tokens.unwrap_or(settings.token_budget));
        assert!(plan.messages.is_sorted_by_key(|message| message.seq));
        self.check_coverage(plan, last_seq);
        if settings.policy.pairing() {
            self.check_pairs(plan, last_seq);
        }
    }

    /// Every seq is in a summary, in the window or explained, once; segments are in order and hold what is shown.
    fn check_coverage(&self, plan: &WindowPlan, last_seq: u64) {
        let mut times = vec![0; last_seq as usize + 1];
        for segment in &plan.segments {
            if let Segment::Summary { from_seq, to_seq } = segment {
                (*from_seq..=*to_seq).for_each(|seq| times[seq as usize] += 1);
            }
        }
        let live: Vec<u64> = plan
            .messages
            .iter()
            .filter(|message| message.to_seq.is_none())
            .map(|message| message.seq)
            .collect();
        live.iter().for_each(|seq| times[*seq as usize] += 1);
        for left_out in &plan.left_out {
            for seq in left_out.from_seq..=left_out.to_seq {
                // What is left out in part is shown all the same.
                times[seq as usize] += i32::from(!live.contains(&seq));
            }
        }
        assert!(times[1..].iter().all(|times| *times == 1), "{plan:#?}");
        let mut end = 0;
        for segment in &plan.segments {
            let (Segment::Summary { from_seq, to_seq } | Segment::Live { from_seq, to_seq }) = segment;
            assert!(end < *from_seq && from_seq <= to_seq);
            end = *to_seq;
        }
        for seq in live {
            let holds = |segment: &Segment| matches!(segment, Segment::Live { from_seq, to_seq } if (*from_seq..=*to_seq).contains(&seq));
            assert!(plan.segments.iter().any(holds));
        }
        let needless = |segment: &Segment| match segment {
            Segment::Live { from_seq, to_seq } => ![from_seq, to_seq].iter().all(|end| {
                plan.messages.iter().any(|message| message.to_seq.is_none() && message.seq == **end)
            }),
            Segment::Summary { .. } => false,
        };
        assert!(!plan.segments.iter().any(needless), "{:?}", plan.segments);
    }

    /// A call is shown with its result, and a result with its call.
    fn check_pairs(&self, plan: &WindowPlan, last_seq: u64) {
        let log: Vec<NewMessage> =
            self.model.events[..last_seq as usize].iter().map(|event| event.message.clone()).collect();
        let shown: Vec<Shown> =
            plan.messages.iter().filter(|message| message.to_seq.is_none()).map(shown).collect();
        let present = |(seq, part): PartAt| {
            let message = shown.iter().find(|shown| shown.seq == seq);
            message.is_some_and(|shown| shown.parts.get(part).is_none_or(|edit| *edit == PartEdit::Keep))
        };
        let pairs = super::model::pairs(&log);
        for (result, call) in &pairs {
            if present(*result) {
                assert!(present(*call), "result {result:?} without its call {call:?}");
            }
            let others = pairs.iter().filter(|(_, of)| of == call);
            if present(*call) {
                assert!(
                    others.into_iter().any(|(result, _)| present(*result)),
                    "call {call:?} without a result"
                );
            }
        }
        let whole: Vec<Shown> = log
            .iter()
            .zip(1..)
            .map(|(message, seq)| Shown {
                seq,
                to_seq: None,
                parts: vec![PartEdit::Keep; message.parts.len()],
                tokens: 0,
            })
            .collect();
        debug_assert_eq!(kept_pairs(&log, &whole).len(), pairs.len());
    }

    /// Reads of the whole past.
    fn check_history(&self) {
        let version = self.model.version();
        for at in 0..=version {
            let query = WindowQuery { at_version: Some(at), explain: true, ..WindowQuery::default() };
            let plan = self.real.window(&query).unwrap();
            if self.windows[at as usize].version == at {
                assert_eq!(nowhere(plan), self.windows[at as usize]);
            }
        }
        let future = WindowQuery { at_version: Some(version + 1), ..WindowQuery::default() };
        let error = PlanError::VersionInFuture { requested: version + 1, current: version };
        assert_eq!(self.real.window(&future), Err(error));
        for budget in [0, 35, 150, 900, 100_000] {
            self.check_window(version, Some(budget));
            self.check_window(version / 2, Some(budget));
        }
        self.check_changes();
        self.check_pages();
    }

    fn check_changes(&self) {
        let (conversation, id, store) = (self.real.current(), &self.real.id, &self.real.store);
        let version = self.model.version();
        for (after, limit) in [(0, 1_000_000), (0, 7), (version / 2, 50), (version, 5), (version + 9, 5)] {
            let items = changes_after(conversation, id, store, after, limit, u64::MAX).unwrap();
            assert_eq!(items.len() as u64, version.saturating_sub(after).min(limit as u64));
            for (item, expected) in items.iter().zip(after + 1..) {
                assert_eq!(item.version, expected);
                let same = match (&self.model.items[expected as usize], item.kind) {
                    (ModelItem::Event(seq), StreamKind::Event(event)) => self.same_event(*seq, &event),
                    (ModelItem::Compaction { from, to, .. }, StreamKind::Compaction { from_seq, to_seq }) => {
                        (*from, *to) == (from_seq, to_seq)
                    }
                    (ModelItem::Settings(_), StreamKind::Settings)
                    | (ModelItem::Metadata, StreamKind::Metadata)
                    | (ModelItem::Tombstoned, StreamKind::Tombstoned) => true,
                    _ => false,
                };
                assert!(same, "{item:?}");
            }
        }
    }

    fn same_event(&self, seq: u64, event: &EventRef) -> bool {
        let ModelEvent { message, at_ms } = &self.model.events[seq as usize - 1];
        event.seq == seq
            && event.location.crc == crc32c::crc32c(&message.body)
            && event.token_count == message.token_count
            && event.inserted_at_ms == *at_ms
    }

    fn check_pages(&self) {
        let last_seq = self.model.events.len() as u64;
        let middle = last_seq / 2;
        for (from_seq, to_seq) in [(0, u64::MAX), (middle, middle + 3), (last_seq + 1, u64::MAX), (5, 2)] {
            for newest_first in [false, true] {
                let range =
                    EventRange { from_seq, to_seq, newest_first, limit: 1_000_000, limit_bytes: u64::MAX };
                let mut expected: Vec<u64> =
                    (1..=last_seq).filter(|s| (from_seq..=to_seq).contains(s)).collect();
                if newest_first {
                    expected.reverse();
                }
                let page = plan_events(self.real.current(), &self.real.id, &self.real.store, &range).unwrap();
                assert_eq!(page.iter().map(|event| event.seq).collect::<Vec<_>>(), expected);
                assert!(page.iter().all(|event| self.same_event(event.seq, event)));
                let short = EventRange { limit: 3, ..range };
                let page = plan_events(self.real.current(), &self.real.id, &self.real.store, &short).unwrap();
                assert_eq!(page.len(), expected.len().min(3));
                let narrow = EventRange { limit_bytes: 0, ..range };
                let page =
                    plan_events(self.real.current(), &self.real.id, &self.real.store, &narrow).unwrap();
                assert!(
                    page.len() == expected.len() || page[1..].iter().all(|event| event.location.len == 0)
                );
            }
        }
    }
}

trait FromStaticStr {
    fn from_static_str(text: &'static str) -> Bytes;
}

impl FromStaticStr for Bytes {
    fn from_static_str(text: &'static str) -> Bytes {
        Bytes::from_static(text.as_bytes())
    }
}

/// The window wherever its messages lie.
fn nowhere(mut plan: WindowPlan) -> WindowPlan {
    plan.messages.iter_mut().for_each(|message| message.location.forget_place());
    plan
}

/// Whole messages show no edits.
fn shown(message: &PlannedMessage) -> Shown {
    let parts = match &message.edit {
        Edit::Whole => Vec::new(),
        Edit::Parts(edits) => edits.to_vec(),
    };
    Shown { seq: message.seq, to_seq: message.to_seq, parts, tokens: message.token_count.into() }
}

fn normalised(mut window: ModelWindow) -> ModelWindow {
    for shown in &mut window.shown {
        if shown.parts.iter().all(|edit| *edit == PartEdit::Keep) {
            shown.parts.clear();
        }
    }
    window
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn agrees_with_the_naive_model(ops in history()) {
        let mut pair = Pair::new();
        for op in ops {
            pair.run(op);
        }
        pair.check_history();
    }
}

/// More changes than random histories have: many sealed runs, found by version, with events in between.
#[test]
fn long_histories_of_changes_are_found_again() {
    let mut pair = Pair::new();
    for n in 0..900u64 {
        pair.run(match n % 9 {
            0 => Op::Append { messages: vec![text(5); 3], key: None, version_off_by: None },
            1 => Op::Put { budget: Some(100 + n), ratio: None, policy: None, metadata: None },
            2 if n > 500 => {
                Op::Compact { from: Some(n - 100), to: Some(n - 100), replacement: vec![text(2)] }
            }
            _ => Op::Patch(if n % 2 == 0 { r#"{"a":2}"# } else { r#"{"a":null}"# }),
        });
    }
    assert!(pair.real.current().sealed_change_runs() > 5);
    pair.check_history();
    for after in 0..pair.model.version() {
        let (conversation, id, store) = (pair.real.current(), &pair.real.id, &pair.real.store);
        let items = changes_after(conversation, id, store, after, 2, u64::MAX).unwrap();
        assert_eq!(items[0].version, after + 1);
        let event = matches!(items[0].kind, StreamKind::Event(_));
        assert_eq!(event, matches!(pair.model.items[after as usize + 1], ModelItem::Event(_)));
    }
}
