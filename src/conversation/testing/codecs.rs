//! Encodings: golden bytes, round trips, and hostile input. Records and runs also make a round trip after every command
//! of the other tests.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use proptest::collection::vec;
use proptest::prelude::*;

use super::super::*;
use super::generate::message;
use super::{Harness, MemoryStore, append, put, text};
use crate::testing::hex;

fn unhex(text: &str) -> Bytes {
    let digit = |at: usize| u8::from_str_radix(&text[at..at + 2], 16).unwrap();
    (0..text.len()).step_by(2).map(digit).collect()
}

fn id() -> ConversationId {
    ConversationId::parse("chat:1").unwrap()
}

fn command(action: Action) -> Command {
    Command { id: id(), now_ms: 1_700_000_000_123, action }
}

fn tool_message() -> NewMessage {
    let part = |kind: &str, tool| PartMeta {
        kind: PartKind::new(kind).unwrap(),
        tokens: 200,
        marker_tokens: 6,
        tool,
    };
    NewMessage {
        body: Bytes::from_static(br#""role":"assistant","parts":[],"metadata":{}"#),
        token_count: 70_000,
        role: RoleKind::User,
        parts: vec![
            part("tool_call", ToolRef::Call(Some(0x0123_4567_89ab_cdef))),
            part("x-thing", ToolRef::Result(None)),
            part("tool-a", ToolRef::Exchange(Some(2))),
        ],
    }
}

fn commands() -> Vec<(&'static str, Command)> {
    let policy = Policy::parse(Bytes::from_static(br#"{"strategy":"manual"}"#)).unwrap();
    let metadata = Some(Bytes::from_static(br#"{"a":1}"#));
    let idempotency = Some(Idempotency { key: [1; 16], body: [2; 16] });
    let range = CompactRange { from: Some(300), to: None };
    vec![
        ("put_nothing", command(put())),
        (
            "put",
            command(Action::Put(Put {
                token_budget: Some(1_000_000),
                trigger_ratio: Some(0.5),
                policy: Some(policy),
                metadata,
            })),
        ),
        ("patch", command(Action::PatchMetadata { patch: Bytes::from_static(br#"{"a":null}"#) })),
        (
            "append",
            command(Action::Append {
                messages: vec![tool_message(), text(5)],
                idempotency,
                if_version: Some(u64::MAX - 1),
            }),
        ),
        ("compact", command(Action::Compact { range, replacement: vec![text(9)], if_version: Some(0) })),
        ("tombstone", command(Action::Tombstone)),
        ("restore", command(Action::Restore(restored()))),
        (
            "restore with keys",
            command(Action::Restore(Restore { keys: Some(restored_keys()), ..restored() })),
        ),
    ]
}

fn restored() -> Restore {
    let settings = Arc::new(Settings::default());
    let versions = vec![
        RestoredVersion::Created(settings.clone()),
        RestoredVersion::Events {
            inserted_at_ms: 1_700_000_000_200,
            messages: vec![tool_message(), text(5)],
        },
        RestoredVersion::Settings(settings),
        RestoredVersion::Metadata,
        RestoredVersion::Compaction {
            from_seq: 1,
            to_seq: 2,
            inserted_at_ms: 1_700_000_000_300,
            replacement: vec![text(9)],
        },
        RestoredVersion::Tombstoned,
    ];
    let end = RestoreEnd { metadata: Bytes::from_static(br#"{"a":1}"#), updated_at_ms: 1_700_000_000_400 };
    Restore { after: None, versions, keys: None, end: Some(end) }
}

fn restored_keys() -> RestoredKeys {
    let record =
        IdempotencyRecord { first_seq: 1, count: 2, version: 2, body: [6; 16], at_ms: 1_700_000_000_200 };
    RestoredKeys { after: 0, keys: vec![([5; 16], record)] }
}

/// A conversation that has a bit of everything, and more than one run of each kind.
fn rich() -> Harness {
    let mut real = Harness::new();
    real.apply(put());
    let system = NewMessage { role: RoleKind::System, ..text(3) };
    real.apply(append(vec![system, tool_message()]));
    real.apply(append((0..140).map(text).collect()));
    let idempotency = Some(Idempotency { key: [3; 16], body: [4; 16] });
    real.apply(Action::Append { messages: vec![text(8), tool_message()], idempotency, if_version: None });
    for n in 0..140 {
        let patch = Bytes::from(format!(r#"{{"n":{n}}}"#));
        real.apply(Action::PatchMetadata { patch });
    }
    let range = |from, to| CompactRange { from: Some(from), to: Some(to) };
    let compact = |range, replacement| Action::Compact { range, replacement, if_version: None };
    real.apply(compact(range(3, 90), vec![text(2), tool_message()]));
    let (name, settings) = commands().remove(1);
    assert_eq!(name, "put");
    real.apply(settings.action);
    real
}

/// As [`rich`], and archived up to somewhere.
fn archived() -> Conversation {
    let mut conversation = rich().current().clone();
    assert!(conversation.mark_archived(1_000, 200));
    conversation
}

/// As [`rich`], and trimmed as far as its window allows.
fn trimmed() -> Harness {
    let mut real = rich();
    let range = CompactRange { from: Some(2), to: Some(142) };
    real.apply(Action::Compact { range, replacement: vec![text(2)], if_version: None });
    let version = real.current().version();
    assert!(real.conversation.as_mut().unwrap().mark_archived(1_000, version));
    assert_eq!(real.trim(0, u64::MAX), EVENT_RUN);
    real
}

/// `golden_bytes.txt` holds what this version writes. When it changes, data on disk is written differently: that takes a
/// new format version, and the old bytes must still be read. `UPDATE_GOLDEN=1` writes the file anew.
#[test]
fn encodings_are_what_they_were() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/conversation/testing/golden_bytes.txt");
    let real = rich();
    let record =
        IdempotencyRecord { first_seq: 300, count: 2, version: 305, body: [5; 16], at_ms: 1_700_000_000_000 };
    let mut encodings: Vec<(&str, Bytes)> =
        commands().into_iter().map(|(name, command)| (name, command.encode())).collect();
    encodings.push(("conversation", archived().encode()));
    encodings.push(("event_run", real.store.event_run(&real.id, 1).unwrap().encode()));
    encodings.push(("change_run", real.store.change_run(&real.id, 0).unwrap().encode()));
    encodings.push(("idempotency", record.encode()));
    let shortened = trimmed();
    encodings.push(("trimmed_conversation", shortened.current().encode()));
    encodings.push(("trimmed_run", shortened.store.event_run(&real.id, 1).unwrap().encode()));
    let found: String = encodings.iter().map(|(name, bytes)| format!("{name} {}\n", hex(bytes))).collect();
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, &found).unwrap();
    }
    let golden = std::fs::read_to_string(&path).unwrap();
    assert_eq!(found, golden);

    let read = |name: &str| {
        unhex(golden.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')).unwrap())
    };
    for (name, command) in commands() {
        assert_eq!(Command::decode(read(name), FrameLocation::default()).unwrap().0, command);
    }
    assert_eq!(Conversation::decode(read("conversation")), Ok(archived()));
    assert_eq!(
        EventRun::decode(read("event_run")).map(Arc::new),
        Ok(real.store.event_run(&real.id, 1).unwrap())
    );
    assert_eq!(
        ChangeRun::decode(read("change_run")).map(Arc::new),
        Ok(real.store.change_run(&real.id, 0).unwrap())
    );
    assert_eq!(IdempotencyRecord::decode(read("idempotency")), Ok(record));
    assert_eq!(Conversation::decode(read("trimmed_conversation")).as_ref(), Ok(shortened.current()));
    assert_eq!(
        EventRun::decode(read("trimmed_run")).map(Arc::new),
        Ok(shortened.store.event_run(&real.id, 1).unwrap())
    );
}

/// What earlier versions wrote, one file for each format that is no longer written.
#[test]
fn records_of_older_formats_are_read() {
    let format_1 = include_str!("record_format_1.txt");
    assert_eq!(Conversation::decode(unhex(format_1.trim())).as_ref(), Ok(rich().current()));
}

#[test]
fn a_text_message_is_small() {
    assert!(size_of::<MessageMeta>() <= 48);
    let mut real = Harness::new();
    real.apply(put());
    let empty = real.current().encode().len();
    for n in 0..127 {
        real.now_ms += 2_000;
        real.apply(append(vec![text(100 + n)]));
    }
    let metas = real.current().encode().len() - empty;
    assert!(metas <= 20 * 127, "{metas}");
    let heap = real.current().heap_bytes();
    assert!((48 * 127..48 * 127 + 4_096).contains(&heap), "{heap}");
}

#[test]
fn commands_come_back_with_the_places_of_their_bodies() {
    for (_, command) in commands() {
        let encoded = command.encode();
        let base = FrameLocation { segment: 7, offset: 1_000 };
        let (decoded, locations) = Command::decode(encoded.clone(), base).unwrap();
        assert_eq!(decoded, command);
        let messages = super::messages_of(&command);
        assert_eq!(locations.len(), messages.len());
        for (message, location) in messages.iter().zip(locations) {
            let start = (location.offset - base.offset) as usize;
            assert_eq!(encoded[start..start + location.len as usize], message.body);
            assert_eq!((location.segment, location.crc), (7, crc32c::crc32c(&message.body)));
        }
        let beyond = FrameLocation { segment: 7, offset: u32::MAX - 3 };
        assert_eq!(Command::decode(encoded, beyond).is_err(), !messages.is_empty());
    }
}

#[test]
fn versions_and_ordinals_from_the_future_are_refused() {
    let mut encoded = command(Action::Tombstone).encode().to_vec();
    encoded[0] = 2;
    let decoded = Command::decode(encoded.clone().into(), FrameLocation::default());
    assert_eq!(decoded, Err(CodecError::UnknownVersion(2)));
    encoded[0] = 1;
    *encoded.last_mut().unwrap() = 9;
    let decoded = Command::decode(encoded.into(), FrameLocation::default());
    assert_eq!(decoded, Err(CodecError::UnknownOrdinal { what: "action", value: 9 }));
}

#[test]
fn digests_tell_states_apart_but_not_places() {
    let real = rich();
    let mut elsewhere = real.current().clone();
    elsewhere.visit_locations(&mut |location| location.offset += 77);
    assert_ne!(&elsewhere, real.current());
    assert_eq!(elsewhere.logical_digest(), real.current().logical_digest());
    elsewhere.visit_locations(&mut |location| location.crc += 1);
    assert_ne!(elsewhere.logical_digest(), real.current().logical_digest());
    let mut run = EventRun::clone(&real.store.event_run(&real.id, 1).unwrap());
    let digest = run.logical_digest();
    run.visit_locations(&mut |location| location.segment += 1);
    assert_eq!(run.logical_digest(), digest);
}

#[test]
fn every_cut_of_an_encoding_is_refused() {
    let real = rich();
    for encoded in [real.current().encode(), trimmed().current().encode()] {
        for len in 0..encoded.len() {
            assert!(Conversation::decode(encoded.slice(..len)).is_err(), "{len}");
        }
    }
    for (_, command) in commands() {
        let encoded = command.encode();
        for len in 0..encoded.len() {
            assert!(Command::decode(encoded.slice(..len), FrameLocation::default()).is_err(), "{len}");
        }
    }
}

/// A store whose runs are what hostile bytes decoded to.
struct Hostile {
    events: Option<Arc<EventRun>>,
    changes: Option<Arc<ChangeRun>>,
}

impl History for Hostile {
    fn event_run(&self, id: &ConversationId, first_seq: u64) -> Result<Arc<EventRun>, HistoryError> {
        self.events.clone().ok_or(HistoryError::Missing { what: "event run", key: first_seq, id: id.clone() })
    }

    fn change_run(&self, id: &ConversationId, number: u64) -> Result<Arc<ChangeRun>, HistoryError> {
        self.changes.clone().ok_or(HistoryError::Missing { what: "change run", key: number, id: id.clone() })
    }
}

/// Decodes whatever it is, and uses what comes out. The one thing asked for is no panic.
fn survive(bytes: &Bytes) {
    let _ = Entry::decode(bytes.clone(), FrameLocation::default());
    let _ = IdempotencyRecord::decode(bytes.clone());
    let events = EventRun::decode(bytes.clone()).ok().map(Arc::new);
    let changes = ChangeRun::decode(bytes.clone()).ok().map(Arc::new);
    let Ok(conversation) = Conversation::decode(bytes.clone()) else { return };
    let history = Hostile { events, changes };
    for at_version in [None, Some(0), Some(conversation.version() / 2)] {
        let query = WindowQuery { at_version, explain: true, ..WindowQuery::default() };
        let _ = plan_window(&conversation, &id(), &history, &query, u64::MAX);
    }
    let _ = changes_after(&conversation, &id(), &history, 0, 500, u64::MAX);
    let _ = (conversation.describe(), conversation.heap_bytes(), conversation.encode());
    let _ = conversation.clone().trim(1, &id(), &history, 0, u64::MAX);
    let mut changed = conversation;
    for (_, command) in commands() {
        let locations = vec![Location::default(); super::messages_of(&command).len()];
        let _ = apply(Some(&mut changed), 1, &command, &locations, &MemoryStore::default());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes_are_decoded_or_refused(mut bytes in vec(any::<u8>(), 0..300), versioned: bool) {
        if let Some(first) = bytes.first_mut().filter(|_| versioned) {
            *first = [1, 2, 3, 0x81, 0x82][usize::from(*first) % 5];
        }
        survive(&Bytes::from(bytes));
    }

    /// Changes are sealed by what they are said to take.
    #[test]
    fn changes_know_what_they_take(replacement in vec(message(), 0..20)) {
        let mut real = Harness::new();
        real.apply(put());
        real.apply(append(vec![text(1)]));
        real.apply(Action::Compact { range: CompactRange::default(), replacement, if_version: None });
        let summary = real.current().summaries()[0].clone();
        let plain = summary.replacement.iter().map(|meta| MessageMeta { parts: Parts::TEXT, ..meta.clone() });
        let plain = Summary { replacement: plain.collect(), ..summary.clone() };
        let messages = plain.replacement.len();
        let change = |summary| Change { version: 2, kind: ChangeKind::Compaction(summary) };
        let [listed, plain] = [summary, plain].map(change);
        let said = [&listed, &plain].map(Change::encoded_len);
        let taken = [listed, plain].map(|change| ChangeRun::new(0, 0, vec![change]).encode().len());
        prop_assert_eq!(said[0] - said[1], taken[0] - taken[1]);
        prop_assert!(said[1].abs_diff(taken[1]) <= 16 + 14 * messages, "{said:?} {taken:?}");
    }
}

#[test]
fn damaged_records_are_decoded_or_refused() {
    let real = rich();
    let encoded = real.current().encode();
    for position in 0..encoded.len() {
        for damage in [0x01, 0x80, 0xff] {
            let mut damaged = encoded.to_vec();
            damaged[position] ^= damage;
            survive(&Bytes::from(damaged));
        }
    }
}

/// A count that promises more than the input holds must not reserve memory for it.
#[test]
fn lying_counts_are_refused() {
    let mut run = vec![1, 1];
    run.extend([0xff; 9]);
    run.push(1);
    assert_eq!(EventRun::decode(run.into()), Err(CodecError::Truncated));
}
