//! `fastpaca cluster`, run as operators run it.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use fastpaca::config::{Config, Secret};
use fastpaca::server::Server;

use crate::support::TestServer;

async fn fastpaca(server: &TestServer, key: &str, arguments: &[&str]) -> Output {
    let listen = server.address.to_string();
    run(&[("FASTPACA_API_KEY", key), ("FASTPACA_LISTEN", &listen)], arguments).await
}

async fn run(settings: &[(&str, &str)], arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fastpaca"));
    // The tests' own switches would be unknown settings to it.
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("FASTPACA_")) {
        command.env_remove(name);
    }
    command.arg("cluster").args(arguments).envs(settings.iter().copied());
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
    fails("new", &["status", "--url", "127.0.0.1"], 2, "no http://HOST:PORT").await;
    fails("new", &["status", "--url", "https://127.0.0.1:1"], 2, "FASTPACA_TLS_CA").await;
    fails("new", &["drain"], 2, "NAME").await;
}

/// A certificate for `name`, signed by itself, with its key: two files in `dir`.
fn certificate(dir: &Path, name: &str) -> (PathBuf, PathBuf) {
    let made = rcgen::generate_simple_self_signed(vec![name.to_owned()]).unwrap();
    let (cert, key) = (dir.join("cert"), dir.join("key"));
    std::fs::write(&cert, made.cert.pem()).unwrap();
    std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    (cert, key)
}

#[tokio::test]
async fn the_command_speaks_https_to_whom_it_may_trust() {
    let [dir, other] = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let (cert, key) = certificate(dir.path(), "localhost");
    let (other, _) = certificate(other.path(), "localhost");
    let mut config = Config::for_test(dir.path().join("data"));
    (config.tls_cert, config.tls_key) = (Some(cert.clone()), Some(key.clone()));
    std::fs::create_dir(&config.data_dir).unwrap();
    let server = Server::start(config).await.unwrap();
    let port = server.address().port();
    let [cert, key, other] = [&cert, &key, &other].map(|path| path.to_str().unwrap());
    let by_name = format!("https://localhost:{port}");
    let by_address = format!("https://127.0.0.1:{port}");
    let listen = format!("127.0.0.1:{port}");

    let succeeds = async |settings: &[(&str, &str)], arguments: &[&str]| {
        let output = run(settings, arguments).await;
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(0), "{said}");
        assert!(String::from_utf8(output.stdout).unwrap().contains("256 groups"));
    };
    succeeds(&[("FASTPACA_TLS_CA", cert)], &["status", "--url", &by_name]).await;
    succeeds(&[("FASTPACA_TLS_CA", other)], &["status", "--url", &by_name, "--ca", cert]).await;
    // The settings of the node itself: its seeds say which names it may go by.
    let own = [
        ("FASTPACA_TLS_CERT", cert),
        ("FASTPACA_TLS_KEY", key),
        ("FASTPACA_LISTEN", &*listen),
        ("FASTPACA_CLUSTER_SEED", "localhost:4000"),
    ];
    succeeds(&own, &["status"]).await;

    let fails = async |settings: &[(&str, &str)], url: &str, code: i32, why: &str| {
        let output = run(settings, &["status", "--url", url]).await;
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!((output.status.code(), output.stdout.len()), (Some(code), 0), "{said}");
        assert!(said.contains(why) && said.lines().count() == 1, "{said}");
    };
    fails(&[], &by_name, 2, "--ca or FASTPACA_TLS_CA").await;
    fails(&[("FASTPACA_TLS_CA", other)], &by_name, 1, "invalid peer certificate").await;
    fails(&[("FASTPACA_TLS_CA", cert)], &by_address, 1, "not valid for name").await;
    fails(&[("FASTPACA_TLS_CA", "/nowhere")], &by_name, 1, "/nowhere: No such file").await;
    server.shutdown().await;
}
