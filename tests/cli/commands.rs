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
    let said = fails(&mut run(&["append", "nobody", "x"]), 1);
    assert!(said.contains("nobody: Conversation not found; --create creates it"), "{said}");
    for command in [&["tail", "nobody"][..], &["events", "nobody"], &["export", "nobody", "x"]] {
        let said = fails(&mut run(command), 1);
        assert!(said.contains("nobody: Conversation not found"), "{command:?}: {said}");
    }

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
    assert!(fails(&mut command(&["list", "--url", "foo"]), 2).contains("--url: \"foo\" is no http"));
    let said = fails(command(&["list"]).env("FASTPACA_URL", "http://"), 2);
    assert!(said.contains("FASTPACA_URL: \"http://\" is no http"), "{said}");
    assert_eq!(command(&["append"]).output().unwrap().status.code(), Some(2));
    let status = succeeds(&mut run(&["cluster", "status", "--json"]));
    assert_eq!((status.lines().count(), json_of(&status)["groups"].as_u64()), (1, Some(256)));
}

/// Metadata and parts that no parser's own types hold: numbers beyond any float, and all the nesting there may be.
#[test]
fn what_clients_keep_is_never_interpreted() {
    let dirs = [(); 3].map(|()| test_dir());
    let [from, restored, imported] = [0, 1, 2].map(|at| small_node(&dirs[at]).start().unwrap());
    let run = |arguments: &[&str]| succeeds(&mut asking(&from, arguments));
    let nested = |depth: usize| format!(r#"{{"a":{}1.50{}}}"#, "[".repeat(depth), "]".repeat(depth));
    // Metadata may have 125 levels, and so may an event, which is imported within a list.
    let kept = [r#"{"n":1e400, "m":-1.0E+0}"#.to_owned(), nested(119), nested(124)];
    for (number, metadata) in kept.iter().enumerate() {
        let id = number.to_string();
        let put = ["put", &id, "--metadata", metadata, "--policy", "manual"];
        assert!(run(&put).starts_with(&format!("{id}: active, version 0")));
        let part = format!(r#"{{"type":"data","value":{}}}"#, nested(121));
        let event = format!(r#"{{"role":"user","parts":[{part}],"metadata":{{"n":1e400}}}}"#);
        assert_eq!(fed(asking(&from, &["append", &id, "--ndjson"]), &event), "appended 1 events\n");
        for command in ["tail", "window"] {
            assert!(run(&[command, &id]).contains(&format!("    {part}\n")), "{command}");
            let json = run(&[command, &id, "--json"]);
            assert!(json.contains(&part) && json.contains(r#""metadata":{"n":1e400}"#), "{json}");
        }
    }
    run(&["put", "z"]);

    assert_eq!(run(&["list"]).lines().count(), 4);
    let (listed, exported) = (run(&["list", "--json"]), run(&["export", "--all"]));
    assert_eq!((listed.lines().count(), exported.lines().count()), (4, 4 + 3));
    for metadata in &kept {
        let verbatim = format!(r#""metadata":{metadata},"#);
        assert!(listed.contains(&verbatim) && exported.contains(&verbatim), "{verbatim}");
    }
    assert_eq!(run(&["export", "0", "1", "2", "z"]), exported);
    let said = fed(asking(&imported, &["import"]), &exported);
    assert_eq!(said, "imported 4 conversations with 3 events, of which 0 were there already\n");

    let path = dirs[0].path().join("backup");
    let path = path.to_str().unwrap();
    let sum = "4 conversations with 7 versions";
    assert!(run(&["backup", path]).contains(sum));
    assert!(succeeds(&mut command(&["backup", "verify", path])).contains(sum));
    let restore = || asking(&restored, &["restore", "--from-backup", path]);
    for _ in 0..2 {
        assert!(succeeds(&mut restore()).contains(sum));
    }
    assert_eq!(succeeds(&mut asking(&restored, &["list", "--json"])), listed);
    assert_eq!(succeeds(&mut asking(&restored, &["export", "--all"])), exported);
    // A cluster that holds such a conversation of its own is not taken for an empty one.
    let deep = ["put", "other", "--metadata", &nested(124)];
    succeeds(&mut asking(&restored, &deep));
    let said = fails(&mut restore(), 1);
    assert!(said.contains("the cluster holds other, which the backup does not"), "{said}");

    let summary = format!(r#"[{{"role":"system","content":"in short","metadata":{}}}]"#, kept[0]);
    let file = dirs[0].path().join("summary");
    std::fs::write(&file, summary).unwrap();
    assert_eq!(run(&["compact", "0", "--file", file.to_str().unwrap()]), "version 2\n");
    assert!(run(&["window", "0", "--json"]).contains(&kept[0]));
}

/// A server, or what stands before it, that answers something else.
#[test]
fn an_answer_that_cannot_be_read_is_no_empty_one() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut request = [0; 4096];
            let _ = std::io::Read::read(&mut stream, &mut request);
            let answer =
                "HTTP/1.1 200 OK\r\ncontent-length: 17\r\nconnection: close\r\n\r\n{\"conversations\":";
            let _ = stream.write_all(answer.as_bytes());
        }
    });
    let dir = test_dir();
    let backup = dir.path().join("backup");
    let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/cli/golden/format-1.backup");
    let commands: [&[&str]; 8] = [
        &["list"],
        &["list", "--json"],
        &["export", "--all"],
        &["export", "a"],
        &["tail", "a"],
        &["window", "a"],
        &["backup", backup.to_str().unwrap()],
        &["restore", "--from-backup", golden],
    ];
    for arguments in commands {
        let said = fails(command(arguments).args(["--url", &url]), 1);
        assert!(said.contains("the answer to /v1/") && said.contains("cannot be read"), "{said}");
    }
    assert!(!backup.exists());
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
    for head in ["{}", r#"{"id":7}"#, "[]", "1"] {
        std::fs::write(&stray, format!("\n{{\"conversation\":{head}}}\n")).unwrap();
        let said = fails(asking(&to, &["import"]).arg(&stray), 1);
        assert!(
            said.contains("line 2: ") && said.contains(if head.starts_with('{') { "`id`" } else { "object" }),
            "{said}"
        );
    }
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
