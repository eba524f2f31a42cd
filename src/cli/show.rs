//! Conversations and messages for people, and the way to standard output.

use std::io::{self, Write};

use serde_json::Value;

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

/// One line about a conversation as the server describes it.
pub(super) fn conversation(described: &Value) -> String {
    let version = number(&described["version"]);
    let (events, budget) = (number(&described["last_seq"]), number(&described["token_budget"]));
    format!(
        "{}: {}, version {version}, {events} events, budget {budget} tokens, policy {}\n",
        clean(text(&described["id"])),
        text(&described["status"]),
        text(&described["policy"]["strategy"]),
    )
}

/// Conversations as a table.
pub(super) fn table(conversations: &[Value]) -> String {
    let mut rows = Vec::new();
    for described in conversations {
        rows.push([
            clean(text(&described["id"])),
            text(&described["status"]).to_owned(),
            number(&described["version"]).to_string(),
            number(&described["last_seq"]).to_string(),
            text(&described["updated_at"]).to_owned(),
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
pub(super) fn message(message: &Value) -> String {
    let seq = number(&message["seq"]);
    let seqs = match message["to_seq"].as_u64() {
        Some(to_seq) => format!("{seq}-{to_seq} (summary)"),
        None => seq.to_string(),
    };
    let mut out = format!(
        "#{seqs} {} {} ({} tokens)\n",
        text(&message["inserted_at"]),
        clean(text(&message["role"])),
        number(&message["token_count"]),
    );
    for part in message["parts"].as_array().into_iter().flatten() {
        let shown = match (part["type"].as_str(), part["text"].as_str()) {
            (Some("text"), Some(said)) => said.to_owned(),
            _ => part.to_string(),
        };
        for line in clean(&shown).lines() {
            out.push_str(&format!("    {line}\n"));
        }
    }
    out
}

/// What a window holds, and how full it is.
pub(super) fn window(window: &Value) -> String {
    let mut out: String = window["messages"].as_array().into_iter().flatten().map(message).collect();
    let needs = if window["needs_compaction"] == true { ", needs compaction" } else { "" };
    out.push_str(&format!(
        "version {}: {} tokens used{needs}\n",
        number(&window["version"]),
        number(&window["used_tokens"]),
    ));
    for left in window["left_out"].as_array().into_iter().flatten() {
        let (from, to) = (number(&left["from_seq"]), number(&left["to_seq"]));
        out.push_str(&format!("left out: #{from} to #{to}, {}\n", text(&left["reason"])));
    }
    out
}

pub(super) fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or(0)
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or("-")
}

/// What clients wrote must not give orders to a terminal.
fn clean(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\n' && c != '\t' { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn messages_are_shown_without_orders_to_the_terminal() {
        let shown = message(&json!({
            "seq": 3, "role": "user", "token_count": 7, "inserted_at": "2026-01-01T00:00:00.000Z",
            "parts": [{"type": "text", "text": "a\u{1b}[2Jb\nc"}, {"type": "tool_call", "name": "lookup"}],
        }));
        let expected = "#3 2026-01-01T00:00:00.000Z user (7 tokens)\n    a\u{fffd}[2Jb\n    c\n    \
                        {\"type\":\"tool_call\",\"name\":\"lookup\"}\n";
        assert_eq!(shown, expected);
    }

    #[test]
    fn the_table_lines_up() {
        let row = |id: &str, version| json!({"id": id, "status": "active", "version": version, "last_seq": 1, "updated_at": "now"});
        assert_eq!(
            table(&[row("a", 100), row("bcd", 2)]),
            "a    active  100  1  now\nbcd  active  2    1  now\n"
        );
    }
}
