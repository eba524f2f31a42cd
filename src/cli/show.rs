//! Conversations and messages for people, and the way to standard output.

use std::io::{self, Write};

use serde_json::Value;

use super::answers::{Conversation, Described, LeftOut, Message, TextPart, Window};

/// Writes to standard output at once. A reader that went away (`fastpaca events ID | head`) ends the program, which is no
/// failure.
pub(super) fn put(bytes: &[u8]) -> Result<(), String> {
    let mut out = io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => std::process::exit(0),
        written => written.map_err(|error| format!("standard output: {error}")),
    }
}

/// A line of its own.
pub(super) fn put_line(bytes: &[u8]) -> Result<(), String> {
    put(&[bytes, b"\n"].concat())
}

/// JSON as a line of its own: line breaks in JSON are white space between tokens.
pub(super) fn line(json: &[u8]) -> String {
    format!("{}\n", String::from_utf8_lossy(json).replace(['\n', '\r'], " "))
}

/// One line about a conversation.
pub(super) fn conversation(described: &Conversation) -> String {
    let Conversation { status, version, last_seq, token_budget, .. } = described;
    format!(
        "{}: {status}, version {version}, {last_seq} events, budget {token_budget} tokens, policy {}\n",
        clean(&described.id),
        clean(&described.policy.strategy),
    )
}

/// Conversations as a table.
pub(super) fn table(page: &[Described]) -> String {
    let mut rows = Vec::new();
    for Described { conversation, .. } in page {
        rows.push([
            clean(&conversation.id),
            conversation.status.clone(),
            conversation.version.to_string(),
            conversation.last_seq.to_string(),
            conversation.updated_at.clone(),
        ]);
    }
    let widths: [usize; 5] =
        std::array::from_fn(|at| rows.iter().map(|row| row[at].chars().count()).max().unwrap_or(0));
    let mut out = String::new();
    for row in rows {
        let cells: Vec<String> =
            row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        out.push_str(cells.join("  ").trim_end());
        out.push('\n');
    }
    out
}

/// A message of the log or of a window, over several lines.
pub(super) fn message(message: &Message) -> String {
    let Message { seq, inserted_at, token_count, .. } = message;
    let seqs = match message.to_seq {
        Some(to_seq) => format!("{seq}-{to_seq} (summary)"),
        None => seq.to_string(),
    };
    let mut out = format!("#{seqs} {inserted_at} {} ({token_count} tokens)\n", clean(&message.role));
    for part in &message.parts {
        let shown = match serde_json::from_str(part.get()) {
            Ok(TextPart { r#type, text }) if r#type == "text" => text,
            _ => part.get().to_owned(),
        };
        for line in clean(&shown).lines() {
            out.push_str(&format!("    {line}\n"));
        }
    }
    out
}

/// What a window holds, and how full it is.
pub(super) fn window(window: &Window) -> String {
    let mut out: String = window.messages.iter().map(message).collect();
    let needs = if window.needs_compaction { ", needs compaction" } else { "" };
    out.push_str(&format!("version {}: {} tokens used{needs}\n", window.version, window.used_tokens));
    for LeftOut { from_seq, to_seq, reason } in &window.left_out {
        out.push_str(&format!("left out: #{from_seq} to #{to_seq}, {reason}\n"));
    }
    out
}

pub(super) fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or(0)
}

/// What clients wrote must not give orders to a terminal.
fn clean(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\n' && c != '\t' { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_shown_without_orders_to_the_terminal() {
        let read = serde_json::from_str(
            r#"{"seq": 3, "role": "user", "token_count": 7, "inserted_at": "2026-01-01T00:00:00.000Z",
                "parts": [{"type": "text", "text": "a\u001b[2Jb\nc"}, {"type":"tool_call","n":1e400}]}"#,
        );
        let expected = "#3 2026-01-01T00:00:00.000Z user (7 tokens)\n    a\u{fffd}[2Jb\n    c\n    \
                        {\"type\":\"tool_call\",\"n\":1e400}\n";
        assert_eq!(message(&read.expect("a message")), expected);
    }

    #[test]
    fn the_table_lines_up() {
        let row = |id: &str, version: u64| {
            let text = format!(
                r#"{{"id":"{id}","status":"active","version":{version},"last_seq":1,"token_budget":9,
                    "policy":{{"strategy":"manual"}},"updated_at":"now"}}"#
            );
            serde_json::from_str(&text).expect("a conversation")
        };
        assert_eq!(
            table(&[row("a", 100), row("bcd", 2)]),
            "a    active  100  1  now\nbcd  active  2    1  now\n"
        );
    }

    #[test]
    fn json_becomes_one_line() {
        assert_eq!(line(b"{\"a\":\r\n 1.50}"), "{\"a\":   1.50}\n");
    }
}
