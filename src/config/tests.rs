use super::field::Field;
use super::*;
use proptest::prelude::*;

fn load<const N: usize>(file: Option<&str>, environment: [(&str, &str); N]) -> Result<Settings, ConfigError> {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = file.map(|text| {
        let path = dir.path().join("fastpaca.toml");
        fs::write(&path, text).expect("the file is written");
        path
    });
    Settings::load(path.as_deref(), &environment)
}

fn message<const N: usize>(file: Option<&str>, environment: [(&str, &str); N]) -> String {
    let text = load(file, environment).expect_err("refused").to_string();
    assert_eq!(text.lines().count(), 1, "one line: {text}");
    text
}

#[test]
fn every_default_is_accepted_by_its_own_parser_and_the_defaults_agree_with_each_other() {
    for setting in SETTINGS {
        let mut config = Config::unset();
        let mut field = (setting.field)(&mut config);
        let text = setting.default.unwrap_or(setting.example);
        assert!(field.parse(text).is_ok(), "{} = {text}", setting.key);
    }
    defaults().check().expect("the defaults fit each other");
}

#[test]
fn every_setting_has_its_own_field() {
    for (i, setting) in SETTINGS.iter().enumerate() {
        let mut config = Config::unset();
        // What one setting sets, no other shows.
        let before: Vec<String> = SETTINGS.iter().map(|s| (s.field)(&mut config).show()).collect();
        (setting.field)(&mut config).parse(setting.default.unwrap_or(setting.example)).expect("accepted");
        let after: Vec<String> = SETTINGS.iter().map(|s| (s.field)(&mut config).show()).collect();
        let changed: Vec<usize> = (0..SETTINGS.len()).filter(|j| before[*j] != after[*j]).collect();
        assert!(changed.iter().all(|j| *j == i), "{} also sets {changed:?}", setting.key);
    }
}

#[test]
fn the_environment_wins_over_the_file_and_the_file_over_the_default() {
    let file = Some("stream_max_connections = 7\nsegment_bytes = \"128MiB\"\nmetrics_public = false\n");
    let settings = load(file, [("FASTPACA_STREAM_MAX_CONNECTIONS", "9"), ("PATH", "/bin")]).expect("loads");
    let config = settings.config();
    assert_eq!(config.stream_max_connections, 9);
    assert_eq!(config.segment_bytes, 128 << 20);
    assert!(!config.metrics_public);
    assert_eq!(config.body_max_bytes, 1 << 20);
    let text = settings.render();
    let line = |key: &str| text.lines().find(|line| line.starts_with(key)).expect("every setting is shown");
    assert!(line("stream_max_connections = 9 ").ends_with("# environment: FASTPACA_STREAM_MAX_CONNECTIONS"));
    assert!(line("segment_bytes = \"128MiB\" ").ends_with("# file"));
    assert!(line("body_max_bytes = \"1MiB\" ").ends_with("# default"));
}

#[test]
fn what_is_in_force_loads_again_as_a_file() {
    let first =
        load(None, [("FASTPACA_NODE_NAME", "n-1"), ("FASTPACA_RATE_LIMIT_PER_SECOND", "10")]).expect("loads");
    let again = load(Some(&first.render()), []).expect("its own output loads");
    assert_eq!(again.config(), first.config());
}

#[test]
fn secrets_show_nowhere() {
    let settings = load(None, [("FASTPACA_API_KEY", "hunter2, hunter3")]).expect("loads");
    assert_eq!(settings.config().api_keys[1].expose(), "hunter3");
    assert!(settings.render().contains("api_key = \"***,***\""));
    assert!(!format!("{:?}{}", settings.config(), settings.render()).contains("hunter"));
    assert!(!message(None, [("FASTPACA_API_KEY", "hunter2,,")]).contains("hunter"));
    assert!(!message(None, [("FASTPACA_APIKEY", "hunter2")]).contains("hunter"));
    assert!(!message(Some("api_key = [\"hunter2\", \"\"]"), []).contains("hunter"));
}

#[test]
fn more_secrets_than_a_node_names_to_others_are_refused() {
    let secrets = |count: usize| vec!["hunter2"; count].join(",");
    let most = secrets(CLUSTER_SECRETS_MAX);
    assert!(load(None, [("FASTPACA_CLUSTER_SECRET", &most)]).is_ok());
    assert!(load(None, [("FASTPACA_API_KEY", &secrets(CLUSTER_SECRETS_MAX + 1))]).is_ok());
    let text = message(None, [("FASTPACA_CLUSTER_SECRET", &secrets(CLUSTER_SECRETS_MAX + 1))]);
    assert!(
        text.starts_with("FASTPACA_CLUSTER_SECRET") && text.contains("17 secrets: expected at most 16"),
        "{text}"
    );
    assert!(!text.contains("hunter"), "{text}");
}

#[test]
fn an_error_names_the_setting_the_value_and_what_is_accepted() {
    let text = message(None, [("FASTPACA_TOKEN_ESTIMATOR", "tiktoken:gpt-99")]);
    assert!(
        text.starts_with("FASTPACA_TOKEN_ESTIMATOR = \"tiktoken:gpt-99\": expected tiktoken:MODEL"),
        "{text}"
    );
    assert!(text.contains("o200k_base") && text.contains("chars:N"), "{text}");

    let text = message(Some("listen = 4000"), []);
    assert!(
        text.starts_with("listen in the file (or FASTPACA_LISTEN) = \"4000\": expected an IP address"),
        "{text}"
    );

    let text = message(None, [("FASTPACA_SEGMENT_BYTES", "64MB")]);
    assert!(text.ends_with("expected bytes, or a size such as 64MiB, from 1MiB to 1GiB"), "{text}");

    let text = message(None, [("FASTPACA_SEGMENT_BYTES", "8MiB")]);
    assert!(
        text.contains("segment_bytes") && text.contains("twice batch_body_max_bytes (8388608)"),
        "{text}"
    );

    let text = message(None, [("FASTPACA_TAIL_KEEP", "50")]);
    assert!(text.starts_with("FASTPACA_TAIL_KEEP") && text.contains("because postgres_url is"), "{text}");

    let text = message(None, [("FASTPACA_LOG", "inof")]);
    assert!(text.contains("\"inof\"") && text.contains("LEVEL"), "{text}");
}

#[test]
fn unknown_names_are_refused_with_the_nearest_known_one() {
    let text = message(None, [("FASTPACA_STREAM_MAX_CONECTIONS", "5")]);
    assert!(text.contains("did you mean FASTPACA_STREAM_MAX_CONNECTIONS?"), "{text}");
    let text = message(None, [("FASTPACA_listen", "0.0.0.0:1")]);
    assert!(text.starts_with("FASTPACA_listen"), "{text}");
    let text = message(Some("lisen = \"0.0.0.0:1\""), []);
    assert!(text.contains("lisen") && text.contains("did you mean listen?"), "{text}");
    let text = message(Some("[limits]\nmax = 1"), []);
    assert!(text.contains("limits"), "{text}");
}

#[test]
fn a_file_that_is_missing_or_is_no_toml_is_refused() {
    let missing = Settings::load(Some(Path::new("/nowhere/f.toml")), &[]).expect_err("missing").to_string();
    assert!(missing.contains("/nowhere/f.toml"), "{missing}");
    let text = message(Some("listen = \"0.0.0.0:4000\"\nlog = \n"), []);
    assert!(text.contains("line 2"), "{text}");
}

#[test]
fn variables_of_a_kubernetes_service_named_like_us_are_none_of_ours() {
    let settings = load(
        None,
        [
            ("FASTPACA_SERVICE_HOST", "10.0.0.1"),
            ("FASTPACA_SERVICE_PORT", "4000"),
            ("FASTPACA_SERVICE_PORT_HTTP", "4000"),
            ("FASTPACA_PORT", "tcp://10.0.0.1:4000"),
            ("FASTPACA_PORT_4000_TCP", "tcp://10.0.0.1:4000"),
            ("FASTPACA_PORT_4000_TCP_ADDR", "10.0.0.1"),
            ("FASTPACA_PEERS_PORT_4000_TCP_PROTO", "tcp"),
        ],
    );
    settings.expect("ignored");
    message(None, [("FASTPACA_PORT", "4000")]);
}

#[test]
fn a_generated_name_is_kept_and_a_given_one_wins() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let home = dir.path().join("deep/data");
    let at = home.to_str().expect("UTF-8");
    let start = || Settings::load(None, &[("FASTPACA_DATA_DIR", at)]).expect("loads");
    let first = start().prepare().expect("writable").node_name;
    assert!(uuid::Uuid::parse_str(&first).is_ok(), "{first}");
    assert_eq!(start().prepare().expect("writable").node_name, first);
    assert!(start().render().contains(&format!("node_name = \"{first}\"  # data directory")));
    let given =
        Settings::load(None, &[("FASTPACA_DATA_DIR", at), ("FASTPACA_NODE_NAME", "a")]).expect("loads");
    assert_eq!(given.prepare().expect("writable").node_name, "a");
}

#[test]
fn a_data_directory_that_cannot_be_written_is_refused() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let file = dir.path().join("file");
    fs::write(&file, "").expect("written");
    let at = file.join("data");
    let settings =
        Settings::load(None, &[("FASTPACA_DATA_DIR", at.to_str().expect("UTF-8"))]).expect("loads");
    let text = settings.prepare().expect_err("not a directory").to_string();
    assert!(text.starts_with("FASTPACA_DATA_DIR") && text.contains(at.to_str().expect("UTF-8")), "{text}");
    assert_eq!(text.lines().count(), 1);
}

#[test]
fn seeds_are_hosts_with_ports() {
    let seeds =
        |text: &str| load(None, [("FASTPACA_CLUSTER_SEED", text)]).map(|s| s.config().cluster_seeds.clone());
    let good = seeds("a-1.example.org:4000, 10.0.0.1:1,[fd00::1]:65535").expect("loads");
    assert_eq!(good, ["a-1.example.org:4000", "10.0.0.1:1", "[fd00::1]:65535"]);
    for bad in ["", "a", "a:", ":1", "a:0", "a:70000", "a:1,", "fd00::1:4000", "[x]:1", "a b:1", "http://a:1"]
    {
        assert!(seeds(bad).is_err(), "{bad:?}");
    }
}

#[test]
fn tls_needs_both_files_and_they_must_be_of_use() {
    let text = message(None, [("FASTPACA_TLS_CERT", "/nowhere")]);
    assert!(text.starts_with("FASTPACA_TLS_KEY") && text.contains("tls_cert is set"), "{text}");
    let authority = Settings::load(None, &[("FASTPACA_TLS_CA", "/nowhere")]).expect("enough for commands");
    let text = authority.prepare().expect_err("not for a node").to_string();
    assert!(text.starts_with("FASTPACA_TLS_CERT"), "{text}");
    let dir = tempfile::tempdir().expect("a temporary directory");
    let at = dir.path().to_str().expect("UTF-8");
    let files =
        [("FASTPACA_DATA_DIR", at), ("FASTPACA_TLS_CERT", "/nowhere"), ("FASTPACA_TLS_KEY", "/nowhere.key")];
    let settings = Settings::load(None, &files).expect("loads");
    let text = settings.prepare().expect_err("no such file").to_string();
    assert!(text.starts_with("FASTPACA_TLS_CERT (or tls_cert in the file) = \"/nowhere\""), "{text}");
    assert_eq!(text.lines().count(), 1);
}

#[test]
fn sizes_and_numbers_have_one_spelling() {
    let size = |raw: &str| {
        let mut bytes = 0;
        Field::Size(&mut bytes, 0..=u64::MAX).parse(raw).ok().map(|()| bytes)
    };
    assert_eq!(size("64MiB"), Some(64 << 20));
    assert_eq!(size("1 GiB"), Some(1 << 30));
    assert_eq!(size("17"), Some(17));
    for bad in ["", "+1", "-1", "1.5MiB", "MiB", "1mb", "99999999TiB", "0x10", "1 "] {
        assert_eq!(size(bad), None, "{bad:?}");
    }
}

proptest! {
    #[test]
    fn a_size_shown_is_the_size_read(bytes in any::<u64>(), zeros in 0u32..40) {
        let mut written = bytes << zeros;
        let shown = Field::Size(&mut written, 0..=u64::MAX).show();
        let mut read = 0;
        Field::Size(&mut read, 0..=u64::MAX).parse(shown.trim_matches('"')).expect("its own output");
        prop_assert_eq!(read, written);
    }

    #[test]
    fn no_value_breaks_the_one_line(name in "[A-Z_]{0,20}", value in any::<String>()) {
        let variable = format!("FASTPACA_{name}");
        if let Err(error) = Settings::load(None, &[(variable.as_str(), value.as_str())]) {
            prop_assert_eq!(error.to_string().lines().count(), 1);
        }
    }

    #[test]
    fn no_file_breaks_the_one_line(text in "(\\PC|[\n\r\t\"'\\[\\]=.#]){0,40}") {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("f.toml");
        fs::write(&path, text).expect("written");
        if let Err(error) = Settings::load(Some(&path), &[]) {
            prop_assert_eq!(error.to_string().lines().count(), 1, "{}", error);
        }
    }
}
