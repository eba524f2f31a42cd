//! The documentation: that links lead somewhere, that the index has every page, that generated tables are those of the
//! code, and that the commands and clients in it work. `BLESS=1 cargo test --test docs` writes the tables anew.
#![allow(clippy::unwrap_used, reason = "a test fails where it fails")]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::{Component, Path, PathBuf};
use std::process::{Command, Output};

use fastpaca::config;
use fastpaca::metrics::Metrics;
use serde_json::{Value, json};

#[path = "docs/lossy.rs"]
mod lossy;
#[path = "support/process.rs"]
#[allow(dead_code, reason = "shared with tests that need more of it")]
mod process;

use self::lossy::Lossy;
use self::process::{Node, Process};

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Every page of the project, by its path from the root.
fn pages() -> BTreeMap<PathBuf, String> {
    fn collect(dir: &Path, pages: &mut BTreeMap<PathBuf, String>) {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if path.is_dir() && name != "target" && !name.starts_with('.') {
                collect(&path, pages);
            } else if name.ends_with(".md") {
                let text = fs::read_to_string(&path).unwrap();
                pages.insert(path.strip_prefix(root()).unwrap().to_owned(), text);
            }
        }
    }
    let mut pages = BTreeMap::new();
    collect(&root(), &mut pages);
    pages
}

/// The lines that are neither code nor in a fence.
fn prose(text: &str) -> impl Iterator<Item = &str> {
    let mut fenced = false;
    text.lines().filter(move |line| {
        let is_fence = line.trim_start().starts_with("```");
        fenced ^= is_fence;
        !fenced && !is_fence && !line.starts_with("    ")
    })
}

/// The targets of `[text](target)` outside of code.
fn links(text: &str) -> Vec<String> {
    let prose: Vec<&str> = prose(text).collect();
    let prose = prose.join("\n");
    // What is between backticks is code.
    let prose: String = prose.split('`').step_by(2).collect::<Vec<_>>().join("code");
    let ends = prose.match_indices("](").map(|(at, _)| &prose[at + 2..]);
    ends.filter_map(|rest| rest.split_once(')').map(|(target, _)| target.to_owned())).collect()
}

/// The anchors of a page's headings, as GitHub makes them.
fn anchors(text: &str) -> BTreeSet<String> {
    let headings = prose(text).filter(|line| line.starts_with('#'));
    let explicit = text.match_indices("<a id=\"").map(|(at, found)| &text[at + found.len()..]);
    let explicit = explicit.filter_map(|rest| rest.split_once('"').map(|(id, _)| id.to_owned()));
    let mut found: BTreeSet<String> = explicit.collect();
    for heading in headings {
        let kept = heading.trim_start_matches('#').trim().chars().filter_map(|c| match c {
            ' ' => Some('-'),
            c if c.is_alphanumeric() || c == '-' || c == '_' => Some(c.to_ascii_lowercase()),
            _ => None,
        });
        let slug: String = kept.collect();
        let numbered = (1..).map(|number| format!("{slug}-{number}"));
        let free = std::iter::once(slug.clone()).chain(numbered).find(|name| !found.contains(name));
        found.extend(free);
    }
    found
}

/// A path from the root, after `..`.
fn resolve(page: &Path, target: &str) -> PathBuf {
    let joined = page.parent().unwrap().join(target);
    joined.components().fold(PathBuf::new(), |mut path, component| {
        match component {
            Component::ParentDir => drop(path.pop()),
            other => path.push(other),
        }
        path
    })
}

#[test]
fn links_lead_somewhere() {
    let pages = pages();
    let mut broken = String::new();
    let mut seen = 0;
    for (page, text) in &pages {
        for link in
            links(text).into_iter().filter(|link| !link.contains("://") && !link.starts_with("mailto:"))
        {
            seen += 1;
            let (target, anchor) = link.split_once('#').unwrap_or((&link, ""));
            let path = if target.is_empty() { page.clone() } else { resolve(page, target) };
            let exists = root().join(&path).exists();
            let has_anchor =
                anchor.is_empty() || pages.get(&path).is_some_and(|text| anchors(text).contains(anchor));
            if !exists || !has_anchor {
                writeln!(broken, "{}: {link}", page.display()).unwrap();
            }
        }
    }
    assert!(seen > 50, "links were looked for in the wrong place");
    assert!(broken.is_empty(), "these lead nowhere:\n{broken}");
}

#[test]
fn the_index_has_every_page_once() {
    let pages = pages();
    let index = Path::new("docs/README.md");
    let mut listed: Vec<PathBuf> = links(&pages[index]).iter().map(|link| resolve(index, link)).collect();
    listed.sort();
    let mut expected: Vec<PathBuf> = pages
        .into_keys()
        .filter(|page| page.starts_with("docs") && page != index && !page.starts_with("docs/decisions"))
        .collect();
    expected.push("docs/decisions".into());
    expected.sort();
    assert_eq!(listed, expected);
}

#[test]
fn every_limit_that_can_be_set_is_on_the_page_of_limits() {
    let tables = config::markdown_tables();
    let (_, limits) = tables.split_once("### Limits").expect("the section of limits");
    let (limits, _) = limits.split_once("\n### ").expect("a section behind it");
    let page = &pages()[Path::new("docs/limits.md")];
    let names: Vec<&str> = limits.split('`').filter(|word| word.starts_with("FASTPACA_")).collect();
    assert!(names.len() > 5);
    for name in names {
        assert!(page.contains(name), "docs/limits.md lacks {name}");
    }
}

#[test]
fn the_reference_of_metrics_is_made_from_the_code() {
    hold("docs/metrics.md", "metrics", &metrics_table());
}

/// Holds what stands between the marks of `what` to `table`, or writes it when blessed.
#[track_caller]
fn hold(file: &str, what: &str, table: &str) {
    let begin = format!("<!-- {what}: generated, see tests/docs.rs -->\n");
    let end = format!("<!-- end of {what} -->");
    let path = root().join(file);
    let page = fs::read_to_string(&path).unwrap();
    let (before, rest) = page.split_once(&begin).expect("the page marks where the table begins");
    let (_, after) = rest.split_once(&end).expect("the page marks where the table ends");
    let expected = format!("{before}{begin}\n{table}\n{end}{after}");
    if std::env::var_os("BLESS").is_some() {
        fs::write(&path, expected).unwrap();
    } else {
        assert!(page == expected, "{file} is out of date: run `BLESS=1 cargo test --test docs`");
    }
}

/// A row for every family of the exposition.
fn metrics_table() -> String {
    let dir = tempfile::tempdir().unwrap();
    let metrics = Metrics::new();
    metrics.show_room(dir.path());
    let text = metrics.render();
    let mut table = "| Metric | Type | Labels | Meaning |\n| --- | --- | --- | --- |\n".to_owned();
    for family in text.split("# HELP ").skip(1) {
        let (name, rest) = family.split_once(' ').unwrap();
        let (help, rest) = rest.split_once('\n').unwrap();
        let kind = rest.lines().next().and_then(|line| line.rsplit(' ').next()).unwrap();
        let labels: BTreeSet<&str> = rest
            .lines()
            .skip(1)
            .filter_map(|line| line.split_once('{')?.1.split_once('='))
            .map(|(label, _)| label)
            .filter(|label| *label != "le")
            .collect();
        let labels: Vec<String> = labels.iter().map(|label| format!("`{label}`")).collect();
        writeln!(table, "| `{name}` | {kind} | {} | {help} |", labels.join(", ")).unwrap();
    }
    table
}

/// A server on data of its own.
fn start(dir: &Path) -> Process {
    Node::in_dir(dir).with_env("FASTPACA_TOKEN_ESTIMATOR", "chars:4").start().unwrap()
}

/// Runs a command, and gives what it printed.
#[track_caller]
fn run(command: &mut Command) -> String {
    let Output { status, stdout, stderr } =
        command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let (out, err) = (String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
    assert!(status.success(), "{command:?} ends with {status}:\n{out}\n{err}");
    out.into_owned()
}

/// The blocks marked `sh`, as one script.
fn script(page: &str) -> String {
    let blocks = page.split("```sh\n").skip(1).filter_map(|rest| rest.split_once("```"));
    blocks.map(|(block, _)| format!("{block}echo\n")).collect()
}

#[test]
fn the_commands_of_the_quick_start_and_of_the_clients_work() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path());
    let pages = pages();
    let scripts =
        ["docs/quickstart.md", "docs/clients/README.md"].map(|page| script(&pages[Path::new(page)]));
    let said = run(Command::new("bash").args(["-euc", &scripts.concat()]).env("URL", server.url("")));
    for expected in [
        r#"{"status":"ok"}"#,
        r#""token_budget":100"#,
        r#"{"seq":1,"version":1,"token_estimate":9}"#,
        r#"{"seq":1,"version":1,"token_estimate":9,"deduped":true}"#,
        r#""first_seq":2,"last_seq":4"#,
        r#""segments":[{"type":"summary","from_seq":1,"to_seq":3},{"type":"live","from_seq":4,"to_seq":4}]"#,
        r#"{"seq":5,"version":6,"#,
        "id: 6\ndata: {\"type\":\"event\",\"version\":6,",
    ] {
        assert!(said.contains(expected), "{expected} is not in\n{said}");
    }
}

/// What stands in the request: the policy, and the budget where it is another one.
const WINDOWS: [(&str, &str); 8] = [
    (r#"{"strategy": "last_n"}"#, ""),
    (r#"{"strategy": "last_n", "config": {"limit": 4}}"#, ""),
    (r#"{"strategy": "last_n"}"#, "180"),
    (r#"{"strategy": "last_n", "config": {"pairing": "off"}}"#, "180"),
    (r#"{"strategy": "last_n", "config": {"max_tokens": 60}}"#, ""),
    (r#"{"strategy": "skip_parts"}"#, ""),
    (r#"{"strategy": "strip_tool_results"}"#, ""),
    (r#"{"strategy": "manual"}"#, "90"),
];

#[tokio::test]
async fn the_worked_example_of_policies_is_what_a_server_answers() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path());
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let base = server.url("/v1/conversations/example");
    let put = async |settings: Value| {
        http.put(&base).json(&settings).send().await.unwrap().error_for_status().unwrap();
    };
    let text = |role: &str, tokens: u32| json!({"role": role, "content": "text", "token_count": tokens});
    let call = json!([{"type": "reasoning", "text": "asked for stock"}, {"type": "tool_call", "id": "c", "name": "lookup"}]);
    let result = json!([{"type": "tool_result", "tool_call_id": "c", "payload": {"stock": 7}}]);
    let events = json!([
        text("system", 10), text("user", 20), {"role": "assistant", "parts": call, "token_count": 30},
        {"role": "tool", "parts": result, "token_count": 100}, text("assistant", 20), text("user", 20),
        text("assistant", 20),
    ]);
    put(json!({"token_budget": 400})).await;
    let log = http.post(format!("{base}/events")).json(&json!({"events": events}));
    log.send().await.unwrap().error_for_status().unwrap();

    let mut table =
        "| policy | budget | window | tokens | left out |\n| --- | --- | --- | --- | --- |\n".to_owned();
    for (policy, budget) in WINDOWS {
        put(json!({"policy": serde_json::from_str::<Value>(policy).unwrap()})).await;
        let query = if budget.is_empty() { "" } else { "&budget_tokens=" };
        let asked = http.get(format!("{base}/window?explain=true{query}{budget}"));
        let window: Value = asked.send().await.unwrap().json().await.unwrap();
        let seqs: Vec<String> =
            window["messages"].as_array().unwrap().iter().map(|message| message["seq"].to_string()).collect();
        let left_out = window["left_out"].as_array().unwrap().iter().map(|left| {
            let [from, to] = ["from_seq", "to_seq"].map(|end| left[end].to_string());
            let range = if from == to { from } else { format!("{from} to {to}") };
            format!("{range} `{}`", left["reason"].as_str().unwrap())
        });
        let left_out: Vec<String> = left_out.collect();
        let (seqs, used, left_out) = (seqs.join(" "), &window["used_tokens"], left_out.join(", "));
        let budget = if budget.is_empty() { "400" } else { budget };
        writeln!(table, "| `{policy}` | {budget} | {seqs} | {used} | {left_out} |").unwrap();
    }
    hold("docs/api/windows.md", "windows", &table);
}

/// What both examples print at the end.
const TOLD: &str = r#"window: 6 messages, 25 questions about stock
stream: true compaction of {"from_seq":1,"to_seq":25}"#;

/// Has an example talk through a network that swallows answers and cuts streams.
fn talk(server: &Process, conversation: &str, example: &mut Command) {
    let lossy = Lossy::before(server.address());
    let said = run(example.args([&format!("http://{}", lossy.address()), conversation]));
    // Python writes dictionaries and truth in its own way.
    let plain = |text: &str| text.replace('\'', "\"").replace(' ', "").to_lowercase();
    assert_eq!(plain(said.trim()), plain(TOLD));
    assert!(lossy.swallowed() > 0 && lossy.cut() > 0, "nothing went wrong on the way");
}

#[test]
fn the_python_client_survives_a_lossy_network() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path());
    let example = root().join("docs/clients/example.py");
    talk(&server, "from-python", Command::new("python3").args(["-B"]).arg(example));
}

#[test]
fn the_typescript_client_survives_a_lossy_network() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path());
    let sources = ["fastpaca.ts", "example.ts"].map(|file| root().join("docs/clients").join(file));
    let options = ["--strict", "--target", "es2022", "--module", "es2022", "--moduleResolution", "node"];
    let compile = &mut Command::new("tsc");
    run(compile.args(options).args(["--lib", "es2022,dom", "--outDir"]).arg(dir.path()).args(sources));
    fs::write(dir.path().join("package.json"), r#"{"type": "module"}"#).unwrap();
    talk(&server, "from-typescript", Command::new("node").arg(dir.path().join("example.js")));
}
