use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::conversation::{PartKind, ToolRef};

const LIMIT: usize = 1 << 20;

fn append(body: &Value) -> Result<Vec<String>, String> {
    append_bytes(body.to_string().as_bytes(), Dialect::Conversations)
}

/// The stored bodies, or the message of the refusal.
fn append_bytes(bytes: &[u8], dialect: Dialect) -> Result<Vec<String>, String> {
    let append = Append::parse(bytes, dialect, LIMIT).map_err(text)?;
    Ok(append
        .messages
        .iter()
        .map(|message| String::from_utf8(message.body().to_vec()).expect("UTF-8"))
        .collect())
}

fn text(error: ApiError) -> String {
    match error {
        ApiError::InvalidRequest(text) | ApiError::InvalidJson(text) => text,
        other => format!("{other:?}"),
    }
}

fn refused(body: Value) -> String {
    append(&body).expect_err("should be refused")
}

#[test]
fn received_bytes_are_spliced_verbatim() {
    let body = br#"{"event": {"role":"us\u0065r", "unknown": [1], "metadata" : {"a" :1e400},
        "parts":[ {"type":"text", "text":"h\u00e9"} ]}}"#;
    let stored = append_bytes(body, Dialect::Conversations).expect("accepted");
    let expected =
        r#""role":"us\u0065r","parts":[ {"type":"text", "text":"h\u00e9"} ],"metadata":{"a" :1e400}"#;
    assert_eq!(stored, [expected]);
}

#[test]
fn content_stands_for_one_text_and_parts_come_first() {
    let one = append(&json!({"event": {"role": "user", "content": "a\"b"}})).expect("accepted");
    assert_eq!(one, [r#""role":"user","parts":[{"type":"text","text":"a\"b"}],"metadata":{}"#]);
    let both = append(&json!({"event": {"role": "user", "content": "a", "parts": []}})).expect("accepted");
    assert_eq!(both, [r#""role":"user","parts":[],"metadata":{}"#]);
}

#[test]
fn each_dialect_has_its_keys() {
    let message = br#"{"message": {"role":"user","content":"a"}}"#;
    assert!(append_bytes(message, Dialect::Contexts).is_ok());
    assert_eq!(
        append_bytes(message, Dialect::Conversations),
        Err("either event or events is required".into())
    );
    let batch = br#"{"messages": [{"role":"user","content":1}]}"#;
    assert_eq!(append_bytes(batch, Dialect::Contexts), Err("messages[0].content must be a string".into()));
    assert_eq!(
        refused(json!({"event": {"role": "u", "content": ""}, "events": []})),
        "either event or events is required"
    );
}

#[test]
fn wrong_types_are_named() {
    let event = |member: &str, value: Value| {
        let mut event = json!({"role": "user", "parts": []});
        event[member] = value;
        refused(json!({"event": event}))
    };
    for wrong in [json!(1), json!(true), json!([]), json!({}), json!("")] {
        assert_eq!(event("role", wrong), "event.role must be a non-empty string");
    }
    for wrong in [json!(1), json!(true), json!("a"), json!({})] {
        assert_eq!(event("parts", wrong), "event.parts must be an array");
    }
    for wrong in [json!(1), json!(true), json!("a"), json!([])] {
        assert_eq!(event("metadata", wrong), "event.metadata must be an object");
    }
    for wrong in [json!(-1), json!(1.5), json!("1"), json!([]), json!(4_294_967_296_u64)] {
        assert_eq!(
            event("token_count", wrong),
            "event.token_count must be a whole number from 0 to 4294967295"
        );
    }
    for wrong in [json!(1), json!([]), json!({}), json!(false)] {
        assert_eq!(event("content", wrong), "event.content must be a string");
    }
    assert_eq!(event("parts", json!([1])), "event.parts[0] must be an object");
    assert_eq!(
        event("parts", json!([{"type": "text"}, {"type": 1}])),
        "event.parts[1] must have a string `type`"
    );
    assert_eq!(event("parts", json!([{}])), "event.parts[0] must have a string `type`");
    assert!(event("parts", json!([{"type": "x".repeat(65)}])).contains("parts[0] `type` must not be longer"));
    assert_eq!(refused(json!({"event": []})), "event must be an object");
    assert_eq!(refused(json!({"events": {}})), "events must be an array");
    assert_eq!(refused(json!({"events": [[]]})), "events[0] must be an object");
    assert_eq!(refused(json!({"events": []})), "events must be an array of 1 to 1000, not 0");
    assert_eq!(refused(json!({"events": vec![1; 1_001]})), "events must be an array of 1 to 1000, not 1001");
    assert_eq!(refused(json!({"events": vec![1; 1_000]})), "events[0] must be an object");
    assert_eq!(refused(json!([])), "The body must be an object");
    assert_eq!(refused(json!({"event": {"role": "user"}})), "event.parts must be an array of objects");
}

#[test]
fn guards_and_keys_are_checked() {
    let with = |member: &str, value: Value| {
        let mut body = json!({"event": {"role": "user", "content": "a"}});
        body[member] = value;
        append(&body).map(drop)
    };
    for wrong in [json!(-1), json!("1"), json!(1.5), json!({})] {
        assert_eq!(with("if_version", wrong), Err("if_version must be a whole number".into()));
    }
    for wrong in [json!(1), json!(""), json!("x".repeat(129)), json!([])] {
        assert_eq!(
            with("idempotency_key", wrong),
            Err("idempotency_key must be a string of 1 to 128 bytes".into())
        );
    }
    assert_eq!(with("idempotency_key", json!("x".repeat(128))), Ok(()));
    assert_eq!(with("if_version", json!(0)), Ok(()));
    assert_eq!(with("if_version", Value::Null), Ok(()), "null is absent");
}

#[test]
fn bad_texts_are_refused_as_such() {
    let refused = |text: &[u8]| Append::parse(text, Dialect::Conversations, LIMIT).err().expect("refused");
    for bad in ["", "{", "nul", "{\"event\":}", "{} x", "{\"event\":{\"role\":\"a\nb\"}}"] {
        assert!(matches!(refused(bad.as_bytes()), ApiError::InvalidJson(_)), "{bad}");
    }
    assert!(matches!(refused(b"\xff"), ApiError::InvalidJson(_)));
    let deep = |depth: usize| {
        format!(r#"{{"event":{{"role":"a","parts":[],"x":{}{}}}}}"#, "[".repeat(depth), "]".repeat(depth))
    };
    assert!(matches!(refused(deep(200).as_bytes()), ApiError::InvalidJson(text) if text.contains("nested")));
    assert!(matches!(refused(deep(100_000).as_bytes()), ApiError::InvalidJson(_)));
    assert!(Append::parse(deep(100).as_bytes(), Dialect::Conversations, LIMIT).is_ok());
    let nested = |opening: &str, depth: usize, closing: &str| {
        let value = format!("{}{}", "[".repeat(depth - 1), "]".repeat(depth - 1));
        format!(r#"{opening}{{"role":"a","parts":[],"x":{value}}}{closing}"#)
    };
    let reads = |text: &str| Append::parse(text.as_bytes(), Dialect::Conversations, LIMIT).is_ok();
    for (depth, is_taken) in [(KEPT_DEPTH_MAX, true), (KEPT_DEPTH_MAX + 1, false)] {
        assert_eq!(reads(&nested(r#"{"event":"#, depth, "}")), is_taken);
        assert_eq!(reads(&nested(r#"{"events":["#, depth, "]}")), is_taken);
        let replacement = nested(r#"{"replacement":["#, depth, "]}");
        assert_eq!(Compact::parse(replacement.as_bytes(), LIMIT).is_ok(), is_taken);
        let metadata = nested("", depth, "");
        assert_eq!(metadata_patch(metadata.as_bytes()).is_ok(), is_taken);
        assert_eq!(Settings::parse(format!(r#"{{"metadata":{metadata}}}"#).as_bytes()).is_ok(), is_taken);
    }
    let lone = br#"{"event":{"role":"a","parts":[{"type":"text","text":"\ud800"}]}}"#;
    assert!(matches!(refused(lone), ApiError::InvalidJson(text) if text.contains(r"\ud800")));
    let twice = br#"{"event":{"role":"a","role":"b","parts":[]}}"#;
    assert!(matches!(refused(twice), ApiError::InvalidRequest(text) if text.contains("role")));
}

#[test]
fn sizes_are_bounded() {
    let long = "x".repeat(100);
    let one = json!({"event": {"role": "user", "content": long}}).to_string();
    let many =
        json!({"events": [{"role": "user", "content": "a"}, {"role": "user", "content": long}]}).to_string();
    let parse = |text: &str, limit| Append::parse(text.as_bytes(), Dialect::Conversations, limit).map(drop);
    assert!(parse(&one, one.len()).is_ok());
    let too_large =
        |what: &str, limit_bytes| Err(ApiError::TooLarge { what: what.to_owned().into(), limit_bytes });
    assert_eq!(parse(&one, 99), too_large("The request body", 99));
    assert!(parse(&many, 200).is_ok());
    assert_eq!(parse(&many, 99), too_large("events[1]", 99));
}

#[test]
fn parts_are_bounded() {
    let message = |parts: usize| json!({"role": "user", "parts": vec![json!({"type": "text"}); parts]});
    let compact = |body: Value| Compact::parse(body.to_string().as_bytes(), LIMIT).map(drop).map_err(text);
    let (most, beyond) = (message(1_024), message(1_025));
    assert!(append(&json!({"event": most})).is_ok());
    assert!(append(&json!({"events": [most, most]})).is_ok());
    assert_eq!(compact(json!({"replacement": [most, most]})), Ok(()));
    let refused_at = |place: &str| format!("{place}.parts must be an array of at most 1024, not 1025");
    assert_eq!(refused(json!({"event": beyond})), refused_at("event"));
    assert_eq!(refused(json!({"events": [most, beyond]})), refused_at("events[1]"));
    assert_eq!(compact(json!({"replacement": [most, beyond]})), Err(refused_at("replacement[1]")));
}

#[test]
fn parts_tell_what_planning_needs() {
    let body = json!({"event": {"role": "assistant", "parts": [
        {"type": "text", "text": "a"}, {"type": "tool_call", "id": "t1", "name": "lookup"}]}});
    let text = body.to_string();
    let append = Append::parse(text.as_bytes(), Dialect::Conversations, LIMIT).expect("accepted");
    let [first, second] = append.messages[0].parts.as_slice() else { panic!("two parts") };
    assert_eq!(first.facts.kind, PartKind::TEXT);
    assert!(matches!(second.facts.tool, ToolRef::Call(Some(_))));
    assert_eq!(second.facts.marker.as_deref(), Some("[tool call: lookup]"));
}

#[test]
fn a_key_is_tied_to_what_was_sent() {
    let idempotency = |body: Value| {
        let text = body.to_string();
        let append = Append::parse(text.as_bytes(), Dialect::Conversations, LIMIT).expect("accepted");
        append.idempotency.expect("a key")
    };
    let of = |key: &str, content: &str, count: Value| {
        idempotency(
            json!({"event": {"role": "user", "content": content, "token_count": count}, "idempotency_key": key}),
        )
    };
    let first = of("k", "a", Value::Null);
    assert_eq!(first, of("k", "a", Value::Null));
    assert_ne!(first.body, of("k", "b", Value::Null).body);
    assert_ne!(first.body, of("k", "a", json!(3)).body);
    assert_ne!(first.key, of("l", "a", Value::Null).key);
    assert_eq!(first.body, of("l", "a", Value::Null).body);
}

#[test]
fn settings() {
    let settings = |body: Value| Settings::parse(body.to_string().as_bytes());
    let all = settings(
        json!({"token_budget": 5, "trigger_ratio": 1, "policy": {"strategy": "manual"}, "metadata": {}}),
    );
    let all = all.expect("accepted");
    assert_eq!((all.token_budget, all.trigger_ratio), (Some(5), Some(1.0)));
    let none = Settings::parse(b"  ").expect("an empty body settles nothing");
    assert!(none.token_budget.is_none() && none.policy.is_none() && none.metadata.is_none());
    let from_policy = settings(json!({"policy": {"strategy": "last_n", "config": {"trigger_ratio": 0.5}}}));
    assert_eq!(from_policy.expect("accepted").trigger_ratio, Some(0.5));
    for (body, field) in [
        (json!({"token_budget": 0}), "token_budget"),
        (json!({"token_budget": "5"}), "token_budget"),
        (json!({"token_budget": 9_007_199_254_740_992_u64}), "token_budget"),
        (json!({"trigger_ratio": 0}), "trigger_ratio"),
        (json!({"trigger_ratio": 1.01}), "trigger_ratio"),
        (json!({"trigger_ratio": "1"}), "trigger_ratio"),
        (json!({"policy": []}), "policy"),
        (json!({"policy": {"strategy": "newest"}}), "policy.strategy"),
        (json!({"policy": {"config": {"limit": -1}}}), "policy.config.limit"),
        (json!({"metadata": []}), "metadata"),
        (json!({"metadata": "a"}), "metadata"),
    ] {
        let message = text(settings(body).err().expect("refused"));
        assert!(message.starts_with(&format!("{field} must be")), "{message}");
    }
    assert!(matches!(
        settings(json!({"metadata": {"a": "x".repeat(65_536)}})),
        Err(ApiError::TooLarge { .. })
    ));
}

#[test]
fn compactions() {
    let compact = |body: Value| {
        let text = body.to_string();
        Compact::parse(text.as_bytes(), LIMIT)
            .map(|compact| (compact.range, compact.replacement.len()))
            .map_err(text_of)
    };
    fn text_of(error: ApiError) -> String {
        text(error)
    }
    let summary = json!([{"role": "system", "content": "s"}]);
    let range = CompactRange { from: Some(1), to: Some(9) };
    assert_eq!(compact(json!({"from_seq": 1, "to_seq": 9, "replacement": summary})), Ok((range, 1)));
    assert_eq!(compact(json!({"replacement": summary})), Ok((CompactRange::default(), 1)));
    for (body, expected) in [
        (json!({"from_seq": 0, "replacement": summary}), "from_seq must be a whole number of at least 1"),
        (json!({"to_seq": "9", "replacement": summary}), "to_seq must be a whole number of at least 1"),
        (json!({}), "replacement must be an array of messages"),
        (json!({"replacement": {}}), "replacement must be an array"),
        (json!({"replacement": []}), "replacement must be an array of 1 to 1000, not 0"),
        (json!({"replacement": [{}]}), "replacement[0].role must be a non-empty string"),
        (json!({"replacement": summary, "if_version": []}), "if_version must be a whole number"),
    ] {
        assert_eq!(compact(body), Err(expected.to_owned()));
    }
}

/// Any JSON value, a few levels deep.
fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        ".{0,8}".prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 24, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec((".{0,6}", inner), 0..4)
                .prop_map(|members| Value::Object(members.into_iter().collect())),
        ]
    })
}

fn object_with(extra: impl Strategy<Value = Value>) -> impl Strategy<Value = Value> {
    prop::collection::vec((".{0,6}", extra), 0..4)
        .prop_map(|members| Value::Object(members.into_iter().collect()))
}

proptest! {
    #[test]
    fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = Append::parse(&bytes, Dialect::Conversations, LIMIT).is_ok();
        let _ = Compact::parse(&bytes, LIMIT).is_ok();
        let _ = (Settings::parse(&bytes).is_ok(), metadata_patch(&bytes).is_ok());
    }

    /// Almost a request: what a client gets wrong.
    #[test]
    fn any_values_are_survived(event in any_json(), key in any_json(), part in any_json()) {
        let body = json!({"event": {"role": "user", "parts": [part]}, "idempotency_key": key});
        let _ = append(&body);
        let _ = append(&json!({"event": event}));
        let _ = append(&json!({"events": event}));
    }

    /// A stored body means what was sent.
    #[test]
    fn spliced_bodies_read_as_what_was_sent(
        role in ".{1,12}",
        metadata in object_with(any_json()),
        parts in prop::collection::vec(object_with(any_json()), 0..4),
        pretty in any::<bool>(),
    ) {
        let mut parts = parts;
        for part in &mut parts {
            part["type"] = json!("text");
        }
        let body = json!({"event": {"role": role, "parts": parts, "metadata": metadata}});
        let bytes = if pretty { serde_json::to_vec_pretty(&body) } else { serde_json::to_vec(&body) };
        let bytes = bytes.expect("JSON");
        let sent: Value = serde_json::from_slice(&bytes).expect("JSON");
        let stored = append_bytes(&bytes, Dialect::Conversations).expect("accepted");
        let read: Value = serde_json::from_str(&format!("{{{}}}", stored[0])).expect("JSON");
        prop_assert_eq!(&read, &sent["event"]);
    }
}
