//! Configuration as an operator meets it: the binary's answers and refusals, the sample file and the
//! documentation. The last two are generated; after a change of a setting, `BLESS=1 make test` (or
//! `BLESS=1 cargo test --test config`) writes them anew.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use fastpaca::config::{self, Settings};

/// Runs the binary in an empty directory with nothing in its environment but `variables`.
fn run(arguments: &[&str], variables: &[(&str, &str)]) -> Output {
    let home = tempfile::tempdir().expect("a temporary directory");
    Command::new(env!("CARGO_BIN_EXE_fastpaca"))
        .args(arguments)
        .env_clear()
        .envs(variables.iter().copied())
        .current_dir(home.path())
        .output()
        .expect("the binary runs")
}

/// The one line that a refusal consists of.
#[track_caller]
fn refusal(arguments: &[&str], variables: &[(&str, &str)]) -> String {
    let output = run(arguments, variables);
    let line = String::from_utf8(output.stderr).expect("UTF-8");
    assert_eq!(output.status.code(), Some(2), "{line}");
    assert_eq!(line.lines().count(), 1, "{line}");
    assert!(output.stdout.is_empty());
    line
}

fn file(text: &str) -> (tempfile::TempDir, String) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().join("fastpaca.toml");
    fs::write(&path, text).expect("written");
    let path = path.to_str().expect("UTF-8").to_owned();
    (dir, path)
}

#[test]
fn config_prints_what_is_in_force_and_where_it_comes_from() {
    let (_dir, path) = file("body_max_bytes = \"2MiB\"\nlog = \"warn\"\n");
    let variables = [("FASTPACA_LOG", "error"), ("FASTPACA_API_KEY", "hunter2")];
    let output = run(&["config", "--config", &path], &variables);
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    let in_force: toml::Table = text.parse().expect("it is TOML");
    assert_eq!(in_force["body_max_bytes"].as_str(), Some("2MiB"));
    assert_eq!(in_force["log"].as_str(), Some("error"));
    assert_eq!(in_force["listen"].as_str(), Some("0.0.0.0:4000"));
    assert_eq!(in_force["api_key"].as_str(), Some("***"));
    let origin = |key: &str| {
        let line = text.lines().find(|line| line.starts_with(&format!("{key} = "))).expect("shown");
        line.split_once("  # ").expect("an origin").1.to_owned()
    };
    assert_eq!(origin("body_max_bytes"), "file");
    assert_eq!(origin("log"), "environment: FASTPACA_LOG");
    assert_eq!(origin("listen"), "default");
}

#[test]
fn a_bad_value_is_refused_with_one_line_and_code_2() {
    let line = refusal(&[], &[("FASTPACA_TOKEN_ESTIMATOR", "tiktoken:nobody-knows")]);
    assert!(line.contains("FASTPACA_TOKEN_ESTIMATOR = \"tiktoken:nobody-knows\""), "{line}");
    assert!(line.contains("chars:N"), "{line}");
    let line = refusal(&["serve"], &[("FASTPACA_LISTEN", "4000\nand more")]);
    assert!(line.contains("FASTPACA_LISTEN") && line.contains("0.0.0.0:4000"), "{line}");
    let line = refusal(&["config"], &[("FASTPACA_STREAM_MAX_CONNECTIONS", "many")]);
    assert!(line.contains("\"many\"") && line.contains("a whole number from 1 to 1000000"), "{line}");
}

#[test]
fn unknown_names_are_refused() {
    let line = refusal(&[], &[("FASTPACA_LISTN", "0.0.0.0:4000")]);
    assert!(line.contains("FASTPACA_LISTN") && line.contains("FASTPACA_LISTEN?"), "{line}");
    let (_dir, path) = file("listn = \"0.0.0.0:4000\"\n");
    let line = refusal(&["--config", &path], &[]);
    assert!(line.contains("listn") && line.contains(&path), "{line}");
    let line = refusal(&["--config", "/nowhere.toml"], &[]);
    assert!(line.contains("/nowhere.toml"), "{line}");
}

#[test]
fn a_data_directory_that_cannot_be_written_is_refused() {
    let (_dir, path) = file("");
    let inside_a_file = format!("{path}/data");
    let line = refusal(&["serve"], &[("FASTPACA_DATA_DIR", &inside_a_file)]);
    assert!(line.contains("FASTPACA_DATA_DIR") && line.contains(&inside_a_file), "{line}");
}

#[test]
fn the_sample_file_is_made_from_the_settings() {
    check("docker/fastpaca.toml", |_| config::sample());
    let output = run(&["config", "--sample"], &[]);
    assert_eq!(String::from_utf8(output.stdout).expect("UTF-8"), config::sample());
}

#[test]
fn the_sample_uncommented_changes_nothing_but_what_has_no_default() {
    let uncommented: String = config::sample()
        .lines()
        .map(|line| line.strip_prefix('#').filter(|rest| !rest.starts_with([' ', '#'])).unwrap_or(line))
        .flat_map(|line| [line, "\n"])
        .collect();
    let (_dir, path) = file(&uncommented);
    let settings = Settings::load(Some(Path::new(&path)), &[]).expect("the sample loads");
    let mut expected = config::defaults();
    expected.node_name.clone_from(&settings.config().node_name);
    expected.otlp_endpoint.clone_from(&settings.config().otlp_endpoint);
    expected.run_as = settings.config().run_as;
    expected.api_keys.clone_from(&settings.config().api_keys);
    expected.cluster_seeds.clone_from(&settings.config().cluster_seeds);
    expected.cluster_secrets.clone_from(&settings.config().cluster_secrets);
    expected.advertise_addr.clone_from(&settings.config().advertise_addr);
    expected.tls_cert.clone_from(&settings.config().tls_cert);
    expected.tls_key.clone_from(&settings.config().tls_key);
    expected.tls_ca.clone_from(&settings.config().tls_ca);
    expected.postgres_url.clone_from(&settings.config().postgres_url);
    expected.url.clone_from(&settings.config().url);
    expected.tail_keep = settings.config().tail_keep;
    assert_eq!(settings.config(), &expected);
    assert!(!expected.node_name.is_empty() && !expected.api_keys.is_empty());
}

#[test]
fn the_documentation_is_made_from_the_settings() {
    const BEGIN: &str = "<!-- settings: generated, see tests/config.rs -->\n";
    const END: &str = "\n<!-- end of settings -->";
    check("docs/configuration.md", |text| {
        let (before, rest) = text.split_once(BEGIN).expect("the page marks where the tables begin");
        let (_, after) = rest.split_once(END).expect("the page marks where the tables end");
        format!("{before}{BEGIN}{}{END}{after}", config::markdown_tables())
    });
}

/// Holds a file to what `generate` makes of it, or writes it when blessed.
#[track_caller]
fn check(file: &str, generate: impl FnOnce(&str) -> String) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(file);
    let text = fs::read_to_string(&path).unwrap_or_default();
    let expected = generate(&text);
    if std::env::var_os("BLESS").is_some() {
        fs::write(&path, &expected).expect("the file is written");
    } else {
        assert!(text == expected, "{file} is out of date: run `BLESS=1 cargo test --test config`");
    }
}
