//! Golden scripts: `scripts/*.txt` hold commands (`> ...`) and, below each, what came of it. `UPDATE_GOLDEN=1` writes
//! the scripts anew; review the difference before it is committed.
//!
//! Messages and settings are written as clients send them. In a script every part costs 10 tokens and a tool call's
//! marker 3, unless the part says `"tokens"`.

use std::fmt::Write as _;
use std::path::Path;

use bytes::Bytes;
use serde_json::Value;

use super::super::*;
use super::Harness;

#[test]
fn scripts() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/conversation/scripts");
    let mut paths: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    assert!(!paths.is_empty());
    for path in paths {
        let expected = std::fs::read_to_string(&path).unwrap();
        let found = run(&expected);
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            std::fs::write(&path, found).unwrap();
        } else {
            assert_eq!(found, expected, "{} (UPDATE_GOLDEN=1 accepts)", path.display());
        }
    }
}

/// The script with every answer replaced by what comes now.
fn run(script: &str) -> String {
    let mut real = Harness::new();
    let mut bodies = Vec::new();
    let mut out = String::new();
    for line in script.lines() {
        if let Some(command) = line.strip_prefix("> ") {
            writeln!(out, "{line}").unwrap();
            out.push_str(&execute(&mut real, &mut bodies, command));
        } else if line.is_empty() || line.starts_with('#') {
            writeln!(out, "{line}").unwrap();
        }
    }
    out
}

/// `bodies` is the journal: a message's location leads to its body by its checksum.
fn execute(real: &mut Harness, bodies: &mut Vec<Bytes>, command: &str) -> String {
    let (verb, rest) = command.split_once(' ').unwrap_or((command, ""));
    let (options, json) = Options::split(rest);
    match verb {
        "put" => settled(real.apply(put(&json.unwrap_or_default()))),
        "patch" => settled(real.apply(Action::PatchMetadata { patch: json.unwrap_or_default().into() })),
        "append" | "compact" => {
            let messages = messages(&json.unwrap_or_default());
            bodies.extend(messages.iter().map(|message| message.body.clone()));
            let if_version = options.number("if_version");
            replied(real.apply(if verb == "append" {
                Action::Append { messages, idempotency: options.idempotency(), if_version }
            } else {
                let range = CompactRange { from: options.number("from"), to: options.number("to") };
                Action::Compact { range, replacement: messages, if_version }
            }))
        }
        "fill" => {
            let message = |n| {
                let role = if n % 2 == 0 { "user" } else { "assistant" };
                let tokens = options.number("tokens").unwrap_or(10);
                format!(r#"{{"role":"{role}","parts":[{{"type":"text","text":"{n}","tokens":{tokens}}}]}}"#)
            };
            let count = options.number("count").unwrap();
            let messages: Vec<String> = (0..count).map(message).collect();
            let messages = self::messages(&format!("[{}]", messages.join(",")));
            bodies.extend(messages.iter().map(|message| message.body.clone()));
            replied(real.apply(super::append(messages)))
        }
        "tombstone" => replied(real.apply(Action::Tombstone)),
        "archive" => {
            real.index += 1;
            let (index, version) = (real.index, options.number("version").unwrap());
            let moved = real.conversation.as_mut().unwrap().mark_archived(index, version);
            format!("{}\n", if moved { "archived" } else { "archived already" })
        }
        "trim" => {
            let upto = options.number("upto").unwrap_or(u64::MAX);
            let trimmed = real.trim(options.number("keep").unwrap(), upto);
            format!("trimmed {trimmed}, frontier {}\n", real.current().trimmed_seq())
        }
        "wait" => {
            real.now_ms += options.number("ms").unwrap();
            String::new()
        }
        "describe" => {
            let described = real.current().describe();
            format!("{}{}", describe(&described), text_of(&described.policy))
        }
        "window" => window(real, bodies, &options),
        "events" => events(real, &options),
        "changes" => changes(real, &options),
        _ => panic!("unknown command {verb:?}"),
    }
}

/// `name=value` words and flags before an optional JSON value.
struct Options(Vec<(String, String)>);

impl Options {
    fn split(rest: &str) -> (Options, Option<String>) {
        let json = rest.find(['{', '[']);
        let (words, json) = rest.split_at(json.unwrap_or(rest.len()));
        let option = |word: &str| match word.split_once('=') {
            Some((name, value)) => (name.to_owned(), value.to_owned()),
            None => (word.to_owned(), String::new()),
        };
        let options = words.split_whitespace().map(option).collect();
        (Options(options), Some(json.to_owned()).filter(|json| !json.is_empty()))
    }

    fn text(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    fn number(&self, name: &str) -> Option<u64> {
        self.text(name).map(|value| value.parse().unwrap())
    }

    fn idempotency(&self) -> Option<Idempotency> {
        let digest = |text: &str| u128::from(tool_digest(text)).to_le_bytes();
        let key = self.text("key")?;
        Some(Idempotency { key: digest(key), body: digest(self.text("request").unwrap_or("")) })
    }
}

fn put(json: &str) -> Action {
    let settings: Value = if json.is_empty() { Value::Null } else { serde_json::from_str(json).unwrap() };
    let policy = settings.get("policy").map(|policy| Policy::parse(policy.to_string().into()).unwrap());
    let ratio = settings.get("trigger_ratio").map(|ratio| ratio.as_f64().unwrap());
    Action::Put(Put {
        token_budget: settings.get("token_budget").map(|budget| budget.as_u64().unwrap()),
        trigger_ratio: ratio.or(policy.as_ref().and_then(Policy::trigger_ratio)),
        policy,
        metadata: settings.get("metadata").map(|metadata| metadata.to_string().into()),
    })
}

fn messages(json: &str) -> Vec<NewMessage> {
    let messages: Value = if json.is_empty() { Value::Null } else { serde_json::from_str(json).unwrap() };
    match messages {
        Value::Null => Vec::new(),
        Value::Array(messages) => messages.iter().map(message).collect(),
        single => vec![message(&single)],
    }
}

fn message(json: &Value) -> NewMessage {
    let part = |part: &Value| {
        let facts = inspect_part(&part.to_string()).unwrap();
        PartMeta {
            kind: facts.kind,
            tokens: part.get("tokens").map_or(10, |tokens| tokens.as_u64().unwrap() as u32),
            marker_tokens: if facts.marker.is_some() { 3 } else { 0 },
            tool: facts.tool,
        }
    };
    let parts: Vec<PartMeta> = json["parts"].as_array().unwrap().iter().map(part).collect();
    let counted: u32 = parts.iter().map(|part| part.tokens).sum();
    let given = json.get("token_count").map(|tokens| tokens.as_u64().unwrap() as u32);
    let metadata = json.get("metadata").map_or("{}".to_owned(), Value::to_string);
    NewMessage {
        body: format!(r#""role":{},"parts":{},"metadata":{metadata}"#, json["role"], json["parts"]).into(),
        token_count: given.unwrap_or(counted),
        role: RoleKind::of(json["role"].as_str().unwrap()),
        parts,
    }
}

fn settled(reply: Reply) -> String {
    match reply {
        Reply::Settled { created, changed, description } => {
            let what = if created {
                "created"
            } else if changed {
                "changed"
            } else {
                "unchanged"
            };
            format!("{what}: {}", describe(&description))
        }
        other => replied(other),
    }
}

fn describe(description: &Description) -> String {
    let Description { token_budget, trigger_ratio, metadata, status, version, last_seq, .. } = description;
    let metadata = text_of(metadata);
    let status = status.as_str();
    format!(
        "{status}, version {version}, last seq {last_seq}, budget {token_budget}, ratio {trigger_ratio}, {metadata}"
    )
}

fn text_of(json: &[u8]) -> String {
    format!("{}\n", std::str::from_utf8(json).unwrap())
}

fn replied(reply: Reply) -> String {
    match reply {
        Reply::Appended { first_seq, last_seq, version, token_counts, deduped } => {
            let tokens: u64 = token_counts.iter().copied().map(u64::from).sum();
            let deduped = if deduped { ", deduped" } else { "" };
            format!("seq {first_seq}..{last_seq}, version {version}, {tokens} tokens{deduped}\n")
        }
        Reply::Compacted { version } => format!("compacted: version {version}\n"),
        Reply::Tombstoned { changed } => format!("tombstoned{}\n", if changed { "" } else { ": unchanged" }),
        Reply::Refused(refusal) => match &refusal {
            Refusal::InvalidRange { covering: Some((from, to)), .. } => {
                format!("refused: {refusal} (covering {from}..{to})\n")
            }
            Refusal::TooManyKeys { retry_after_ms } => {
                format!("refused: {refusal} (retry in {retry_after_ms} ms)\n")
            }
            _ => format!("refused: {refusal}\n"),
        },
        Reply::Marked { .. } | Reply::Trimmed { .. } | Reply::Restored { .. } => {
            unreachable!("no script does that")
        }
        Reply::Settled { .. } => unreachable!("settled() prints these"),
    }
}

fn window(real: &Harness, bodies: &[Bytes], options: &Options) -> String {
    let explain = options.text("explain").is_some();
    let query = WindowQuery {
        budget_tokens: options.number("budget"),
        at_version: options.number("at_version"),
        explain,
    };
    let plan = match real.window(&query) {
        Ok(plan) => plan,
        Err(error) => return format!("error: {error}\n"),
    };
    let mut out = format!("version {}, {} tokens", plan.version, plan.used_tokens);
    out.push_str(if plan.needs_compaction { ", needs compaction\n" } else { "\n" });
    for segment in &plan.segments {
        match segment {
            Segment::Summary { from_seq, to_seq } => writeln!(out, "summary {from_seq}..{to_seq}").unwrap(),
            Segment::Live { from_seq, to_seq } => writeln!(out, "live {from_seq}..{to_seq}").unwrap(),
        }
    }
    if options.text("bodies").is_some() {
        plan.messages.iter().for_each(|message| out.push_str(&render(message, bodies)));
    }
    for LeftOut { from_seq, to_seq, reason } in &plan.left_out {
        writeln!(out, "left out {from_seq}..{to_seq}: {}", reason.as_str()).unwrap();
    }
    out
}

fn render(message: &PlannedMessage, bodies: &[Bytes]) -> String {
    let body = bodies.iter().find(|body| crc32c::crc32c(body) == message.location.crc).unwrap();
    let body = match &message.edit {
        Edit::Whole => body.clone(),
        Edit::Parts(edits) => render_edited(body, edits).unwrap(),
    };
    let to_seq = message.to_seq.map(|to_seq| format!("..{to_seq}")).unwrap_or_default();
    format!("  {}{to_seq} ({} tokens): {}", message.seq, message.token_count, text_of(&body))
}

fn events(real: &Harness, options: &Options) -> String {
    let range = EventRange {
        from_seq: options.number("from").unwrap_or(1),
        to_seq: options.number("to").unwrap_or(u64::MAX),
        newest_first: options.text("newest_first").is_some(),
        limit: options.number("limit").unwrap_or(100) as usize,
        limit_bytes: u64::MAX,
    };
    let page = plan_events(real.current(), &real.id, &real.store, &range).unwrap();
    let seqs: Vec<String> = page.iter().map(|event| event.seq.to_string()).collect();
    format!("events: {}\n", seqs.join(" "))
}

fn changes(real: &Harness, options: &Options) -> String {
    let after = options.number("after").unwrap_or(0);
    let items = changes_after(real.current(), &real.id, &real.store, after, 1_000, u64::MAX).unwrap();
    let line = |item: &StreamItem| match item.kind {
        StreamKind::Event(event) => format!("{}: event {}\n", item.version, event.seq),
        StreamKind::Compaction { from_seq, to_seq } => {
            format!("{}: compaction {from_seq}..{to_seq}\n", item.version)
        }
        other => format!("{}: {other:?}\n", item.version),
    };
    items.iter().map(line).collect()
}
