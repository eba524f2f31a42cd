//! The commands that speak to a server, each as a person or a script uses it.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};

use crate::run::{asking, command, fails, succeeds, text};
use crate::support::client::Client;
use crate::support::ports::free_port;
use crate::support::process::Process;
use crate::support::{small_node, test_dir};

/// What the command prints when it is given this input.
fn fed(mut command: Command, input: &str) -> String {
    let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = child.spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{command:?}: {}", text(&output.stderr));
    text(&output.stdout)
}

fn json_of(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

#[test]
fn a_conversation_from_the_command_line() {
    let dir = test_dir();
    let server = small_node(&dir).with_env("FASTPACA_API_KEY", "secret").start().unwrap();
    let run = |arguments: &[&str]| {
        let mut command = asking(&server, arguments);
        command.env("FASTPACA_API_KEY", "secret,older");
        command
    };
    let put = [
        "put",
        "chat/1",
        "--token-budget",
        "900",
        "--policy",
        "manual",
        "--metadata",
        r#"{"a":1.50,"kind":"test"}"#,
    ];
    assert!(fails(&mut run(&put), 1).contains("id"), "an id has no slash");
    let put = [&["put", "chat-1"], &put[2..]].concat();
    let shown = succeeds(&mut run(&put));
    assert_eq!(shown, "chat-1: active, version 0, 0 events, budget 900 tokens, policy manual\n");

    assert_eq!(succeeds(&mut run(&["append", "chat-1", "hello"])), "#1: version 1, 6 tokens\n");
    assert_eq!(
        fed(run(&["append", "chat-1", "--role", "assistant", "--token-count", "9"]), "two\nlines\n"),
        "#2: version 2, 9 tokens\n"
    );
    let keyed = ["append", "chat-1", "once", "--key", "k", "--json"];
    assert_eq!(json_of(&succeeds(&mut run(&keyed)))["seq"], 3);
    assert_eq!(json_of(&succeeds(&mut run(&keyed)))["deduped"], true);
    assert!(fails(&mut run(&["append", "chat-1", "twice", "--key", "k"]), 1).contains("idempotency"));
    assert!(fails(&mut run(&["append", "chat-1", "late", "--if-version", "1"]), 1).contains("version"));
    assert!(fails(&mut run(&["append", "nobody", "x"]), 1).contains("found"));

    let events = succeeds(&mut run(&["events", "chat-1", "--json"]));
    let events: Vec<Value> = events.lines().map(json_of).collect();
    assert_eq!(events.iter().map(|event| event["seq"].as_u64().unwrap()).collect::<Vec<_>>(), [1, 2, 3]);
    assert_eq!(events[1]["parts"][0]["text"], "two\nlines");
    let shown = succeeds(&mut run(&["events", "chat-1", "--from", "2", "--to", "2"]));
    assert!(
        shown.starts_with("#2 ") && shown.ends_with(" assistant (9 tokens)\n    two\n    lines\n"),
        "{shown}"
    );
    assert_eq!(succeeds(&mut run(&["events", "chat-1", "--last", "1", "--json"])).lines().count(), 1);
    assert_eq!(succeeds(&mut run(&["tail", "chat-1", "-n", "2", "--json"])).lines().count(), 2);

    let compact = ["compact", "chat-1", "in short", "--from", "1", "--to", "2", "--if-version", "3"];
    assert_eq!(succeeds(&mut run(&compact)), "version 4\n");
    assert!(fails(&mut run(&compact), 1).contains("version"));
    let window = json_of(&succeeds(&mut run(&["window", "chat-1", "--json"])));
    assert_eq!(window["segments"][0], json!({"type": "summary", "from_seq": 1, "to_seq": 2}));
    let shown = succeeds(&mut run(&["window", "chat-1"]));
    assert!(shown.starts_with("#1-2 (summary) ") && shown.contains("    in short\n#3 "), "{shown}");
    let before = json_of(&succeeds(&mut run(&["window", "chat-1", "--at-version", "2", "--json"])));
    assert_eq!(before["messages"].as_array().unwrap().len(), 2);
    let tight = succeeds(&mut run(&["window", "chat-1", "--budget", "8", "--explain"]));
    assert!(tight.contains("needs compaction") && tight.contains("left out: #"), "{tight}");

    succeeds(&mut run(&["put", "other", "--json"]));
    let listed = succeeds(&mut run(&["list"]));
    assert_eq!(
        listed.lines().map(|line| line.split(' ').next().unwrap()).collect::<Vec<_>>(),
        ["chat-1", "other"]
    );
    let listed = succeeds(&mut run(&[
        "list",
        "--prefix",
        "chat",
        "--status",
        "active",
        "--metadata",
        "kind=test",
        "--json",
    ]));
    assert_eq!((listed.lines().count(), json_of(&listed)["version"].as_u64()), (1, Some(4)));
    assert_eq!(succeeds(&mut run(&["list", "--limit", "1"])).lines().count(), 1);

    assert!(fails(&mut asking(&server, &["list"]), 1).contains("API key"));
    assert!(fails(&mut command(&["list", "--url", "http://127.0.0.1:1"]), 1).contains("cannot be reached"));
    assert_eq!(command(&["append"]).output().unwrap().status.code(), Some(2));
}

#[test]
fn many_events_are_appended_once_however_often() {
    let dir = test_dir();
    let server = small_node(&dir).start().unwrap();
    let event =
        |n: u32| json!({"role": "user", "content": format!("message {n}"), "token_count": n}).to_string();
    let lines: Vec<String> = (1..=1_203).map(event).collect();
    let append = || asking(&server, &["append", "bulk", "--create", "--ndjson"]);
    // The first attempt comes as far as a line that is no event.
    let broken = format!("{}\n{{\n", lines[..1_000].join("\n"));
    let file = dir.path().join("events");
    std::fs::write(&file, &broken).unwrap();
    let said = fails(append().arg("--file").arg(&file), 1);
    assert!(said.contains("event 1001: "), "{said}");
    assert_eq!(fed(append(), &lines.join("\n")), "appended 1203 events, of which 1000 were there already\n");
    let again = json_of(&fed(
        {
            let mut c = append();
            c.arg("--json");
            c
        },
        &lines.join("\n\n"),
    ));
    assert_eq!(again, json!({"events": 1_203, "deduped": 1_203}));
    let log = succeeds(&mut asking(&server, &["events", "bulk", "--json"]));
    let counts: Vec<u64> = log.lines().map(|line| json_of(line)["token_count"].as_u64().unwrap()).collect();
    assert!(counts.into_iter().eq(1..=1_203));
    assert!(fails(append().arg("--file").arg("/nowhere"), 1).contains("/nowhere: "));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_exported_is_imported() {
    let dirs = [(); 2].map(|()| test_dir());
    let [from, to] = [0, 1].map(|at| small_node(&dirs[at]).start().unwrap());
    let client = Client::of(&from);
    let ids = crate::support::rich::fill(&client, "x").await;
    client.create("empty").await;
    let file = dirs[0].path().join("all.ndjson");
    let export = |arguments: &[&str]| succeeds(&mut asking(&from, &[&["export"], arguments].concat()));
    assert_eq!(export(&["--all", "-o", file.to_str().unwrap()]), "");
    assert_eq!(std::fs::read_to_string(&file).unwrap().lines().count(), 3 + 2 * 183);
    assert_eq!(export(&["x-gone", "empty"]).lines().count(), 2 + 183);
    assert_eq!(export(&["--prefix", "x-"]).lines().count(), 2 + 2 * 183);
    assert_eq!(asking(&from, &["export"]).output().unwrap().status.code(), Some(2));

    let import = || succeeds(asking(&to, &["import"]).arg(&file));
    assert_eq!(import(), "imported 3 conversations with 366 events, of which 0 were there already\n");
    assert_eq!(import(), "imported 3 conversations with 366 events, of which 366 were there already\n");
    let copy = Client::of(&to);
    for id in ids.iter().chain([&"empty".to_owned()]) {
        // Times are those of the import, as its header says.
        let what = |log: Vec<Value>| {
            log.into_iter()
                .map(|mut event| {
                    event["inserted_at"].take();
                    event
                })
                .collect::<Vec<_>>()
        };
        assert_eq!(what(copy.log(id).await), what(client.log(id).await));
        let path = format!("/v1/conversations/{id}");
        let [here, there] = [&copy, &client].map(|client| client.get(&path));
        let (here, there) = (here.await.body, there.await.body);
        for member in ["token_budget", "trigger_ratio", "policy", "metadata", "status", "last_seq"] {
            assert_eq!(here[member], there[member], "{id} {member}");
        }
    }
    assert!(fails(asking(&to, &["import"]).arg(dirs[0].path().join("none")), 1).contains("none: "));
    let stray = dirs[0].path().join("stray");
    std::fs::write(&stray, "{\"role\":\"user\"}\n").unwrap();
    assert!(fails(asking(&to, &["import"]).arg(&stray), 1).contains("line 1: no conversation was begun"));
}

/// A command that runs on, and the lines it prints.
struct Running(Child);

impl Running {
    fn lines(&mut self) -> impl Iterator<Item = Value> + use<> {
        BufReader::new(self.0.stdout.take().unwrap()).lines().map(|line| json_of(&line.unwrap()))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tail_goes_on_over_the_death_of_its_server() {
    let dir = test_dir();
    let port = free_port();
    let node = small_node(&dir).with_env("FASTPACA_LISTEN", format!("127.0.0.1:{port}"));
    let mut server: Process = node.start().unwrap();
    let client = Client::of(&server);
    client.create("live").await;
    for n in 1..=5 {
        client.append("live", &n.to_string()).await.expect(201);
    }
    let mut tail = asking(&server, &["tail", "live", "-n", "3", "-f", "--json"]);
    let mut tail = Running(tail.stdout(Stdio::piped()).spawn().unwrap());
    let mut lines = tail.lines().map(|event| event["seq"].as_u64().unwrap());
    assert_eq!(lines.by_ref().take(3).collect::<Vec<_>>(), [3, 4, 5]);
    client.append("live", "6").await.expect(201);
    assert_eq!(lines.next(), Some(6));

    server.kill();
    server = node.start().unwrap();
    let client = Client::of(&server);
    for n in 7..=20 {
        client.append("live", &n.to_string()).await.expect(201);
    }
    assert_eq!(lines.by_ref().take(14).collect::<Vec<_>>(), (7..=20).collect::<Vec<_>>());
    client.request(reqwest::Method::DELETE, "/v1/conversations/live", None).await.unwrap().expect(204);
    assert_eq!(lines.next(), None);
    assert_eq!(tail.0.wait().unwrap().code(), Some(0));
}

#[test]
fn shells_and_readers_are_told_of_every_command() {
    for shell in ["bash", "zsh", "fish"] {
        let script = succeeds(&mut command(&["completions", shell]));
        assert!(script.contains("backup") && script.contains("if-version"), "{shell}");
    }
    let dir = test_dir();
    let pages = succeeds(command(&["man", "--out"]).arg(dir.path()));
    assert!(
        pages.lines().any(|page| page == "fastpaca.1")
            && pages.lines().any(|page| page == "fastpaca-backup-verify.1"),
        "{pages}"
    );
    let page = std::fs::read_to_string(dir.path().join("fastpaca-append.1")).unwrap();
    assert!(page.contains("Idempotency key"), "{page}");
}

/// The reference of the commands in the documentation is what the command line itself says. `BLESS=1` writes it.
#[test]
fn the_documentation_has_every_command() {
    const BEGIN: &str = "<!-- commands: generated, see tests/cli/commands.rs -->\n";
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/cli.md");
    let page = std::fs::read_to_string(path).unwrap();
    let (before, _) = page.split_once(BEGIN).expect("the page marks where the reference begins");
    let expected = format!("{before}{BEGIN}{}", fastpaca::cli::reference());
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(path, &expected).unwrap();
    }
    assert_eq!(std::fs::read_to_string(path).unwrap(), expected, "BLESS=1 writes it anew");
}
