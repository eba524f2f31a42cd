//! `fastpaca cluster`, run as operators run it.

use std::process::{Command, Output};

use fastpaca::config::Secret;

use crate::support::TestServer;

async fn fastpaca(server: &TestServer, key: &str, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fastpaca"));
    // The tests' own switches would be unknown settings to it.
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("FASTPACA_")) {
        command.env_remove(name);
    }
    command.arg("cluster").args(arguments).env("FASTPACA_API_KEY", key);
    command.env("FASTPACA_LISTEN", server.address.to_string());
    tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
}

#[tokio::test]
async fn the_command_shows_and_changes_the_cluster() {
    let server = TestServer::start(|config| config.api_keys = vec![Secret::new("new"), Secret::new("old")]);
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let succeeds = async |arguments: &[&str]| {
        let output = fastpaca(&server, "new,older", arguments).await;
        assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
        text(&output.stdout)
    };
    let table = succeeds(&["status"]).await;
    assert!(table.contains("256 groups, 0 without leader, 0 moving"), "{table}");
    let row: Vec<_> = table.lines().last().unwrap().split_whitespace().map(str::to_owned).collect();
    assert_eq!(row[..6], ["test", "active", "up", "256", "256", "0"]);
    let json: serde_json::Value = serde_json::from_str(&succeeds(&["status", "--json"]).await).unwrap();
    assert_eq!(json["nodes"][0]["name"], "test");
    assert_eq!(succeeds(&["drain", "test"]).await, "test is draining: 256 groups are still on it\n");
    assert_eq!(succeeds(&["undrain", "test"]).await, "test is active\n");

    let fails = async |key: &str, arguments: &[&str], code: i32, why: &str| {
        let output = fastpaca(&server, key, arguments).await;
        let said = text(&output.stderr);
        assert_eq!((output.status.code(), output.stdout.len()), (Some(code), 0), "{said}");
        assert!(said.contains(why), "{said}");
    };
    fails("new", &["remove", "a b/c"], 1, "there is no node called `a b/c`").await;
    fails("new", &["remove", "test"], 1, "last active node").await;
    fails("wrong", &["status"], 1, "API key").await;
    fails("new", &["status", "--url", "http://127.0.0.1:1"], 1, "cannot be reached").await;
    fails("new", &["status", "--url", "127.0.0.1"], 1, "no http://HOST:PORT").await;
    fails("new", &["status", "--url", "https://127.0.0.1:1"], 1, "FASTPACA_TLS_CA").await;
    fails("new", &["drain"], 2, "NAME").await;
}
