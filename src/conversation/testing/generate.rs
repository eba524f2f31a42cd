//! Random commands: short logs and long ones, few ids and few tokens, so that everything meets everything.

use bytes::Bytes;
use proptest::collection::vec;
use proptest::prelude::{Just, prop_oneof};
use proptest::sample::select;
use proptest::strategy::Strategy;

use super::super::*;
use super::text;

#[derive(Clone, Debug)]
pub(super) enum Op {
    Put {
        budget: Option<u64>,
        ratio: Option<f64>,
        policy: Option<&'static str>,
        metadata: Option<&'static str>,
    },
    Patch(&'static str),
    Append {
        messages: Vec<NewMessage>,
        key: Option<(u8, u8)>,
        version_off_by: Option<u64>,
    },
    /// Bounds in thousandths of the log, so that they mean something at any length.
    Compact {
        from: Option<u64>,
        to: Option<u64>,
        replacement: Vec<NewMessage>,
    },
    Tombstone,
    /// Archived and trimmed up to so many thousandths of the log.
    Trim {
        archived: u64,
        keep: u64,
        upto: u64,
    },
    Wait {
        ms: i64,
    },
}

const POLICIES: [&str; 10] = [
    r#"{"strategy":"last_n","config":{"limit":400}}"#,
    r#"{"strategy":"last_n","config":{"limit":7}}"#,
    r#"{"strategy":"last_n","config":{"limit":30,"max_tokens":200}}"#,
    r#"{"strategy":"last_n","config":{"limit":9,"pairing":"off"}}"#,
    r#"{"strategy":"skip_parts"}"#,
    r#"{"strategy":"skip_parts","config":{"skip_kinds":["tool_result"],"limit":20}}"#,
    r#"{"strategy":"skip_parts","config":{"skip_kinds":["tool_call","te"]}}"#,
    r#"{"strategy":"strip_tool_results","config":{"limit":15}}"#,
    r#"{"strategy":"manual"}"#,
    r#"{"strategy":"budget","config":{"x":1}}"#,
];

const METADATA: [&str; 3] = ["{}", r#"{"a":1,"b":[1, 2]}"#, r#"{"b":[1,2],"a":1}"#];
const PATCHES: [&str; 4] = [r#"{"a":2}"#, r#"{"a":null}"#, r#"{"c":"x","a":1}"#, "{}"];

fn part() -> impl Strategy<Value = PartMeta> {
    let plain = |kind| PartMeta { kind, tokens: 0, marker_tokens: 0, tool: ToolRef::None };
    let kind = |kind: &str| PartKind::new(kind).expect("short");
    // Few ids, so that they are used again; none half of the time.
    let id = prop_oneof![Just(None), (0..3u64).prop_map(Some)];
    let tool = (id, 0..9u8).prop_map(move |(id, which)| match which {
        0..4 => PartMeta { marker_tokens: 3, tool: ToolRef::Call(id), ..plain(kind("tool_call")) },
        4..8 => PartMeta { tool: ToolRef::Result(id), ..plain(kind("tool_result")) },
        _ => PartMeta { marker_tokens: 3, tool: ToolRef::Exchange(id), ..plain(kind("tool-search")) },
    });
    let other = select(vec![PartKind::TEXT, kind("reasoning"), kind("x-custom")]).prop_map(plain);
    (prop_oneof![3 => tool, 2 => other], 0..30u32).prop_map(|(part, tokens)| PartMeta { tokens, ..part })
}

pub(super) fn message() -> impl Strategy<Value = NewMessage> {
    let role = select(vec![RoleKind::System, RoleKind::User, RoleKind::Other, RoleKind::Other]);
    let listed = (vec(part(), 0..4), 0..9u32).prop_map(|(parts, overhead)| NewMessage {
        token_count: overhead + parts.iter().map(|part| part.tokens).sum::<u32>(),
        parts,
        ..text(0)
    });
    let message = prop_oneof![5 => (0..60u32).prop_map(text), 4 => listed];
    (role, message, "[a-z]{0,9}").prop_map(|(role, message, body)| NewMessage {
        role,
        body: Bytes::from(body),
        ..message
    })
}

fn op() -> impl Strategy<Value = Op> {
    let budget = proptest::option::of(select(vec![40u64, 300, 2_000, 8_000]));
    let ratio = proptest::option::of(select(vec![0.1, 0.7, 1.0]));
    let policy = proptest::option::of(select(&POLICIES[..]));
    let metadata = proptest::option::of(select(&METADATA[..]));
    let key = proptest::option::weighted(0.3, (0..4u8, 0..2u8));
    let version_off_by = proptest::option::weighted(0.2, 0..2u64);
    let bound = || proptest::option::weighted(0.9, 0..1_050u64);
    prop_oneof![
        3 => (budget, ratio, policy, metadata)
            .prop_map(|(budget, ratio, policy, metadata)| Op::Put { budget, ratio, policy, metadata }),
        1 => select(&PATCHES[..]).prop_map(Op::Patch),
        12 => (prop_oneof![4 => vec(message(), 1..8), 1 => vec(message(), 1..150)], key, version_off_by)
            .prop_map(|(messages, key, version_off_by)| Op::Append { messages, key, version_off_by }),
        4 => (bound(), bound(), vec(message(), 0..3))
            .prop_map(|(from, to, replacement)| Op::Compact { from, to, replacement }),
        3 => (500..1_050u64, 0..40u64, 500..2_000u64)
            .prop_map(|(archived, keep, upto)| Op::Trim { archived, keep, upto }),
        1 => (-2_000..400_000i64).prop_map(|ms| Op::Wait { ms }),
    ]
}

pub(super) fn history() -> impl Strategy<Value = Vec<Op>> {
    let tombstone = proptest::option::weighted(0.1, Just(Op::Tombstone));
    (vec(op(), 1..30), tombstone, vec(op(), 0..4))
        .prop_map(|(ops, tombstone, rest)| ops.into_iter().chain(tombstone).chain(rest).collect())
}
