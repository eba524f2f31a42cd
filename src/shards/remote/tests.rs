//! Encodings between nodes: golden bytes, round trips, and hostile input.

use std::fmt::Debug;

use bytes::Bytes;
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::codec::{self, Outcome, ReadIndex};
use super::wire::*;
use crate::conversation::{self, Refusal, Reply};
use crate::shards::links::Method;
use crate::testing::hex;
use crate::trace::Context;

/// Nodes of adjacent versions talk to each other: these bytes and numbers cannot change.
#[test]
fn encodings_are_what_they_were() {
    let command = Bytes::from_static(b"command");
    assert_eq!(hex(&codec::forward_write(0x0102, &command).concat()), "010201636f6d6d616e64");
    let caller = Context { trace: 0x0f, span: 0x07 };
    let traced = codec::forward_traced_write(0x0102, caller, &command).concat();
    assert_eq!(hex(&traced), format!("020201{:0<32}{:0<16}636f6d6d616e64", "0f", "07"));
    assert_eq!(codec::read_forward_write(traced.into()).unwrap(), (0x0102, command.clone(), Some(caller)));
    let appended = Reply::Appended {
        first_seq: 300,
        last_seq: 301,
        version: 305,
        token_counts: vec![7, 200],
        deduped: true,
    };
    let outcomes = [
        (Outcome::Reply(appended), "01000101ac02ad02b102010207c801"),
        (Outcome::Reply(Reply::Refused(Refusal::Conflict { expected: 1, current: 2 })), "01000104010102"),
        (Outcome::Reply(Reply::Marked { moved: 300 }), "01000105ac02"),
        (Outcome::Reply(Reply::Trimmed { events: 300 }), "01000107ac02"),
        (Outcome::Reply(Reply::Restored { version: 300 }), "01000106ac02"),
        (Outcome::NotLeader(Some(5)), "010105000000000000000000000000000000"),
        (Outcome::NotApplied("no".into()), "010202006e6f"),
        (Outcome::Unknown("?".into()), "010301003f"),
        (Outcome::Full, "0104"),
    ];
    for (outcome, bytes) in outcomes {
        assert_eq!(hex(&outcome.encode()), bytes, "{outcome:?}");
        assert_eq!(Outcome::decode(outcome.encode()), Ok(outcome));
    }
    assert_eq!(hex(&codec::groups(&[1, 258])), "01020001000201");
    let indexes = [ReadIndex::At(258), ReadIndex::NotLeader(None), ReadIndex::Failed("no".into())];
    let bytes =
        format!("010300{}{}{}", "000201000000000000", format_args!("01{}", "00".repeat(16)), "0202006e6f");
    assert_eq!(hex(&codec::indexes(&indexes)), bytes);
    let numbers = [Method::ForwardWrite, Method::ReadIndex, Method::Read, Method::WaitBeyond, Method::List];
    assert_eq!(numbers.map(|method| method as u16), [16, 17, 18, 19, 20]);
    let call = ReadCall {
        id: "a".into(),
        linearizable: true,
        min_version: None,
        wait_ms: None,
        question: Question::Version,
    };
    let map = "84a26964a161ac6c696e656172697a61626c65c3ab6d696e5f76657273696f6ec0a87175657374696f6ea756657273696f6e";
    assert_eq!(hex(&encode(&call)), map);
    assert_eq!(hex(&encode(&Node::from(1u128 << 64 | 2))), "920102");
}

/// What the next version of a call may look like.
#[derive(Serialize)]
struct NewerReadCall {
    hint: Vec<u8>,
    id: String,
    linearizable: bool,
    min_version: Option<u64>,
    question: NewerQuestion,
}

#[derive(Serialize)]
enum NewerQuestion {
    Usage { at_version: u64, in_detail: bool },
    Summary,
}

#[test]
fn members_from_the_future_are_ignored_and_questions_refused() {
    let newer = |question| NewerReadCall {
        hint: vec![1, 2],
        id: "chat".into(),
        linearizable: false,
        min_version: Some(3),
        question,
    };
    let known: ReadCall =
        decode(&encode(&newer(NewerQuestion::Usage { at_version: 3, in_detail: true }))).unwrap();
    assert_eq!(known.question, Question::Usage { at_version: 3 });
    assert_eq!((known.id.as_str(), known.min_version), ("chat", Some(3)));
    assert!(decode::<ReadCall>(&encode(&newer(NewerQuestion::Summary))).is_err());
}

#[test]
fn bodies_travel_as_bytes() {
    let event = Event { seq: 1, body: Bytes::from(vec![0xff; 100]), token_count: 2, inserted_at_ms: 3 };
    assert!(encode(&event).len() < 160);
}

fn bytes() -> impl Strategy<Value = Bytes> {
    vec(any::<u8>(), 0..40).prop_map(Bytes::from)
}

fn status() -> impl Strategy<Value = Status> {
    prop_oneof![Just(Status::Active), Just(Status::Tombstoned)]
}

prop_compose! {
    fn description()(
        numbers in any::<[u64; 5]>(), trigger_ratio in 0.0..1.0, policy in bytes(), metadata in bytes(),
        status in status(),
    ) -> Description {
        let [token_budget, version, last_seq, created_at_ms, updated_at_ms] = numbers;
        Description {
            token_budget, trigger_ratio, policy, metadata, status, version, last_seq, created_at_ms,
            updated_at_ms,
        }
    }
}

prop_compose! {
    fn event()(seq: u64, body in bytes(), token_count: u32, inserted_at_ms: u64) -> Event {
        Event { seq, body, token_count, inserted_at_ms }
    }
}

fn question() -> impl Strategy<Value = Question> {
    prop_oneof![
        Just(Question::Describe),
        Just(Question::Version),
        any::<(Option<u64>, Option<u64>, bool)>().prop_map(|(budget_tokens, at_version, explain)| {
            Question::Window(WindowAsked { budget_tokens, at_version, explain })
        }),
        any::<u64>().prop_map(|at_version| Question::Usage { at_version }),
        any::<(Option<i64>, Option<u64>, Option<u64>, bool, Option<u64>, u64, u64)>().prop_map(
            |(from_seq, to_seq, cursor, descending, tail_offset, limit, limit_bytes)| {
                Question::Events(EventsAsked {
                    from_seq,
                    to_seq,
                    cursor,
                    descending,
                    tail_offset,
                    limit,
                    limit_bytes,
                })
            }
        ),
        any::<(u64, u64)>()
            .prop_map(|(after_version, limit_bytes)| { Question::Changes { after_version, limit_bytes } }),
        any::<(u64, u64)>().prop_map(|(first, limit)| Question::Digests { first, limit }),
    ]
}

fn reason() -> impl Strategy<Value = Reason> {
    proptest::sample::select(vec![
        Reason::OverLimit,
        Reason::OverMaxTokens,
        Reason::OverBudget,
        Reason::ExceedsBudget,
        Reason::MessageSkipped,
        Reason::PartsSkipped,
        Reason::CallCompacted,
        Reason::ResultCompacted,
    ])
}

prop_compose! {
    fn window()(
        (version, used_tokens, needs_compaction) in any::<(u64, u64, bool)>(),
        segments in vec(any::<(bool, u64, u64)>(), 0..3),
        messages in vec((event(), any::<Option<u64>>()), 0..3),
        left_out in vec((any::<u64>(), any::<u64>(), reason()), 0..3),
    ) -> Window {
        let segment = |(is_summary, from_seq, to_seq)| Segment { is_summary, from_seq, to_seq };
        let message = |(event, to_seq): (Event, _)| WindowMessage {
            seq: event.seq, to_seq, body: event.body, token_count: event.token_count,
            inserted_at_ms: event.inserted_at_ms,
        };
        let left = |(from_seq, to_seq, reason)| LeftOut { from_seq, to_seq, reason };
        Window {
            version, used_tokens, needs_compaction,
            segments: segments.into_iter().map(segment).collect(),
            messages: messages.into_iter().map(message).collect(),
            left_out: left_out.into_iter().map(left).collect(),
        }
    }
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        (any::<u64>(), event()).prop_map(|(version, event)| Change::Event { version, event }),
        any::<(u64, u64, u64)>().prop_map(|(version, from_seq, to_seq)| Change::Compaction {
            version,
            from_seq,
            to_seq
        }),
        any::<u64>().prop_map(|version| Change::Settings { version }),
        any::<u64>().prop_map(|version| Change::Tombstoned { version }),
    ]
}

fn answer() -> impl Strategy<Value = ReadAnswer> {
    prop_oneof![
        Just(ReadAnswer::Absent),
        description().prop_map(ReadAnswer::Description),
        any::<u64>().prop_map(ReadAnswer::Version),
        window().prop_map(ReadAnswer::Window),
        any::<(u64, bool)>().prop_map(|(used_tokens, needs_compaction)| {
            ReadAnswer::Usage { used_tokens, needs_compaction }
        }),
        (vec(event(), 0..3), any::<(bool, u64, u64)>(), status()).prop_map(
            |(events, (has_more, version, last_seq), status)| {
                ReadAnswer::Events(EventPage { events, has_more, version, last_seq, status })
            }
        ),
        (vec(change(), 0..3), any::<u64>(), status()).prop_map(|(changes, version, status)| {
            ReadAnswer::Changes(ChangePage { changes, version, status })
        }),
        option::of(any::<u128>()).prop_map(|leader| ReadAnswer::NotLeader { leader: leader.map(Node::from) }),
        ".{0,20}".prop_map(ReadAnswer::Unavailable),
        ".{0,20}".prop_map(ReadAnswer::Behind),
        ".{0,20}".prop_map(ReadAnswer::ArchiveUnavailable),
        any::<u64>().prop_map(|bytes_max| ReadAnswer::WindowTooLarge { bytes_max }),
        (any::<u64>(), option::of(any::<u64>()), vec(any::<(u64, u64)>(), 0..5)).prop_map(
            |(version, archived_version, digests)| ReadAnswer::Digests(DigestPage {
                version,
                archived_version,
                digests
            })
        ),
        any::<(u64, u64)>()
            .prop_map(|(requested, current)| { ReadAnswer::VersionInFuture { requested, current } }),
        ".{0,20}".prop_map(ReadAnswer::Internal),
    ]
}

fn reply() -> impl Strategy<Value = Reply> {
    prop_oneof![
        (any::<(bool, bool)>(), description()).prop_map(|((created, changed), description)| {
            Reply::Settled { created, changed, description: description.into() }
        }),
        (any::<(u64, u64, u64, bool)>(), vec(any::<u32>(), 0..9)).prop_map(
            |((first_seq, last_seq, version, deduped), token_counts)| {
                Reply::Appended { first_seq, last_seq, version, token_counts, deduped }
            }
        ),
        any::<u64>().prop_map(|version| Reply::Compacted { version }),
        any::<bool>().prop_map(|changed| Reply::Tombstoned { changed }),
        any::<u32>().prop_map(|moved| Reply::Marked { moved }),
        any::<u64>().prop_map(|events| Reply::Trimmed { events }),
        any::<u64>().prop_map(|version| Reply::Restored { version }),
        refusal().prop_map(Reply::Refused),
    ]
}

fn refusal() -> impl Strategy<Value = Refusal> {
    prop_oneof![
        Just(Refusal::NotFound),
        any::<(u64, u64)>().prop_map(|(expected, current)| Refusal::Conflict { expected, current }),
        Just(Refusal::Tombstoned),
        Just(Refusal::IdempotencyConflict),
        (".{0,20}", any::<Option<(u64, u64)>>())
            .prop_map(|(message, covering)| Refusal::InvalidRange { message, covering }),
        Just(Refusal::TooManySummaries),
        any::<u64>().prop_map(|retry_after_ms| Refusal::TooManyKeys { retry_after_ms }),
        ".{0,20}".prop_map(|message| Refusal::InvalidMetadata { message }),
    ]
}

fn outcome() -> impl Strategy<Value = Outcome> {
    prop_oneof![
        reply().prop_map(Outcome::Reply),
        option::of(1..u128::MAX).prop_map(Outcome::NotLeader),
        ".{0,20}".prop_map(Outcome::NotApplied),
        ".{0,20}".prop_map(Outcome::Unknown),
        Just(Outcome::Full),
    ]
}

fn index() -> impl Strategy<Value = ReadIndex> {
    prop_oneof![
        any::<u64>().prop_map(ReadIndex::At),
        option::of(1..u128::MAX).prop_map(ReadIndex::NotLeader),
        ".{0,20}".prop_map(ReadIndex::Failed),
    ]
}

fn survives<T: Serialize + DeserializeOwned + PartialEq + Debug>(value: &T) {
    assert_eq!(&decode::<T>(&encode(value)).unwrap(), value);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn reads_survive_the_way(
        id in ".{0,20}", linearizable: bool, min_version: Option<u64>, wait_ms: Option<u64>,
        question in question(), answer in answer(),
    ) {
        survives(&ReadCall { id, linearizable, min_version, wait_ms, question });
        survives(&answer);
    }

    #[test]
    fn lists_survive_the_way(
        groups: Vec<u16>, linearizable: bool, text: Option<String>, status in option::of(status()),
        metadata: Vec<(String, String)>, limit: u64, conversations in vec((".{0,9}", description()), 0..3),
    ) {
        let (prefix, cursor) = (text.clone(), text.clone());
        survives(&ListCall { groups, linearizable, prefix, status, metadata, cursor, limit });
        survives(&ListAnswer::Page { conversations, upto: text });
        survives(&WaitCall { id: "chat".into(), seen: limit, wait_ms: 1 });
    }

    #[test]
    fn outcomes_survive_the_way(outcome in outcome(), indexes in vec(index(), 0..9), groups: Vec<u16>) {
        prop_assert_eq!(Outcome::decode(outcome.encode()), Ok(outcome));
        prop_assert_eq!(codec::read_indexes(codec::indexes(&indexes)), Ok(indexes));
        prop_assert_eq!(codec::read_groups(codec::groups(&groups)), Ok(groups));
    }

    #[test]
    fn domain_values_survive_the_way(window in window(), description in description(), answer in answer()) {
        prop_assert_eq!(&Window::from(crate::shards::Window::from(window.clone())), &window);
        let there = conversation::Description::from(description.clone());
        prop_assert_eq!(&Description::from(there), &description);
        if let ReadAnswer::Changes(page) = answer {
            prop_assert_eq!(&ChangePage::from(crate::shards::ChangePage::from(page.clone())), &page);
        }
    }

    #[test]
    fn every_cut_is_refused(outcome in outcome(), indexes in vec(index(), 1..4)) {
        let (outcome, indexes) = (outcome.encode(), codec::indexes(&indexes));
        for len in 0..outcome.len() {
            prop_assert!(Outcome::decode(outcome.slice(..len)).is_err());
        }
        for len in 0..indexes.len() {
            prop_assert!(codec::read_indexes(indexes.slice(..len)).is_err());
        }
    }

    #[test]
    fn any_bytes_are_decoded_or_refused(mut bytes in vec(any::<u8>(), 0..300), versioned: bool) {
        let _ = (decode::<ReadCall>(&bytes), decode::<ReadAnswer>(&bytes), decode::<WaitCall>(&bytes));
        let _ = (decode::<ListCall>(&bytes), decode::<ListAnswer>(&bytes));
        if let Some(first) = bytes.first_mut().filter(|_| versioned) {
            *first = 1;
        }
        let bytes = Bytes::from(bytes);
        let _ = (Outcome::decode(bytes.clone()), codec::read_groups(bytes.clone()));
        let _ = (codec::read_indexes(bytes.clone()), codec::read_forward_write(bytes.clone()));
        let _ = Reply::decode(bytes);
    }

    #[test]
    fn damaged_answers_are_decoded_or_refused(answer in answer(), at: prop::sample::Index, damage in 1..=255u8) {
        let mut bytes = encode(&answer).to_vec();
        let at = at.index(bytes.len());
        bytes[at] ^= damage;
        let _ = decode::<ReadAnswer>(&bytes);
    }
}
