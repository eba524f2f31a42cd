//! What `--write` writes, held by the programs it is for.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use super::{advise, has, passes, path, said};

/// Files for one node and for three, the latter with an archive.
fn written(nodes: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let hosts = match nodes {
        "1" => "127.0.0.1",
        _ => "127.0.0.1,127.0.0.2,127.0.0.3",
    };
    let binary = env!("CARGO_BIN_EXE_fastpaca");
    let arguments =
        ["--nodes", nodes, "--hosts", hosts, "--binary", binary, "--image", "registry.example/fastpaca:1"];
    let path = dir.path().to_str().unwrap();
    let archive: &[&str] = if nodes == "3" { &["--postgres", "true", "--tail-keep", "200"] } else { &[] };
    let listed =
        said(&[&["plan", "--preset", "1k-users", "--write", path], &arguments[..], archive].concat());
    assert_eq!(listed.lines().count(), 6, "{listed}");
    dir
}

fn each(check: impl Fn(&Path, &str)) {
    for nodes in ["1", "3"] {
        check(written(nodes).path(), nodes);
    }
}

#[test]
fn nothing_is_overwritten_and_secrets_are_kept() {
    let dir = written("3");
    let env = dir.path().join(".env");
    let before = fs::read_to_string(&env).unwrap();
    let value = |name: &str| before.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    let secrets = ["FASTPACA_API_KEY=", "FASTPACA_CLUSTER_SECRET="].map(value);
    let mut with_secrets = Vec::new();
    for entry in fs::read_dir(dir.path()).unwrap().map(Result::unwrap) {
        let text = fs::read_to_string(entry.path()).unwrap();
        if secrets.iter().any(|secret| text.contains(secret)) {
            let mode = entry.metadata().unwrap().permissions().mode() & 0o777;
            assert_eq!(mode, 0o600, "{}", entry.path().display());
            with_secrets.push(entry.file_name().into_string().unwrap());
        }
    }
    with_secrets.sort();
    assert_eq!(with_secrets, [".env", "kubernetes.yaml"]);
    let again = advise(&["plan", "--preset", "1k-users", "--write", dir.path().to_str().unwrap()]);
    assert_eq!(again.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&again.stderr).contains("nothing is overwritten"));
    assert_eq!(fs::read_to_string(&env).unwrap(), before);
    assert_ne!(
        before,
        fs::read_to_string(written("3").path().join(".env")).unwrap(),
        "every plan has secrets of its own"
    );
}

/// The server itself takes every setting.
#[test]
fn the_settings_are_accepted() {
    each(|dir, nodes| {
        let text = fs::read_to_string(dir.join(".env")).unwrap();
        let settings: BTreeMap<&str, &str> = text
            .lines()
            .filter(|line| !line.starts_with('#'))
            .map(|line| line.split_once('=').unwrap())
            .collect();
        assert_eq!(settings.contains_key("FASTPACA_CLUSTER_SEED"), nodes == "3");
        let mut command = Command::new(env!("CARGO_BIN_EXE_fastpaca"));
        let shown = passes(command.arg("config").env_clear().envs(&settings));
        assert!(shown.contains("environment: FASTPACA_API_KEY"), "{shown}");
        let manifests = fs::read_to_string(dir.join("kubernetes.yaml")).unwrap();
        for (name, value) in [("FASTPACA_POSTGRES_URL", None), ("FASTPACA_TAIL_KEEP", Some("200"))] {
            assert_eq!(settings.contains_key(name), nodes == "3", "{name}");
            assert_eq!(manifests.contains(name), nodes == "3", "{name}");
            assert!(value.is_none() || nodes == "1" || settings.get(name).copied() == value, "{name}");
        }
    });
}

/// The plugin where it is installed, else the program of the same name that Debian has.
pub(super) fn compose() -> Option<Command> {
    let plugin = Command::new("docker")
        .args(["compose", "version"])
        .output()
        .is_ok_and(|output| output.status.success());
    if plugin {
        let mut command = Command::new("docker");
        command.arg("compose");
        return Some(command);
    }
    has("docker-compose").then(|| Command::new("docker-compose"))
}

#[test]
fn compose_takes_the_file() {
    each(|dir, nodes| {
        let Some(mut command) = compose() else { return };
        let shown = passes(command.args(["-f", "compose.yaml", "config"]).current_dir(dir));
        assert!(
            shown.contains("registry.example/fastpaca:1") && shown.contains("FASTPACA_API_KEY"),
            "{shown}"
        );
        assert_eq!(shown.contains("fastpaca-3"), nodes == "3", "{shown}");
    });
}

#[test]
fn systemd_takes_the_unit() {
    if !has("systemd-analyze") {
        return;
    }
    each(|dir, _| {
        let said = passes(
            Command::new("systemd-analyze").args(["verify", "--man=no"]).arg(dir.join("fastpaca.service")),
        );
        let about_it: Vec<&str> = said.lines().filter(|line| line.contains("fastpaca")).collect();
        assert!(about_it.is_empty(), "{about_it:?}");
    });
}

#[test]
fn nginx_takes_the_configuration() {
    if !has("nginx") {
        return;
    }
    each(|dir, _| {
        let pid = format!("pid {};", dir.join("nginx.pid").display());
        let said = passes(
            Command::new("nginx")
                .env("PATH", path())
                .args(["-t", "-q", "-g", &pid, "-p"])
                .arg(dir)
                .arg("-c")
                .arg(dir.join("nginx.conf")),
        );
        assert!(!said.contains("[emerg]") && !said.contains("[warn]"), "{said}");
    });
}

#[test]
fn the_kernel_has_the_limits() {
    each(|dir, _| {
        let text = fs::read_to_string(dir.join("90-fastpaca.conf")).unwrap();
        let keys: Vec<&str> = text
            .lines()
            .filter(|line| !line.starts_with('#'))
            .map(|line| line.split_once(" = ").unwrap().0)
            .collect();
        assert!(keys.len() >= 3);
        for key in keys {
            let file = Path::new("/proc/sys").join(key.replace('.', "/"));
            assert!(file.exists(), "{key}");
        }
    });
}

/// Without a cluster kubectl only reads the objects: whether their fields are known, it cannot tell.
#[test]
fn kubectl_reads_the_objects() {
    if !has("kubectl") {
        return;
    }
    each(|dir, nodes| {
        let mut command = Command::new("kubectl");
        let read = passes(
            command
                .args(["label", "--local", "-o", "yaml", "read=yes", "-f"])
                .arg(dir.join("kubernetes.yaml")),
        );
        let kinds: Vec<&str> = read
            .lines()
            .filter_map(|line| line.strip_prefix("kind: ").or(line.strip_prefix("  kind: ")))
            .collect();
        assert!(
            kinds.contains(&"StatefulSet") && kinds.contains(&"Secret") && kinds.contains(&"Service"),
            "{read}"
        );
        assert_eq!(kinds.contains(&"PodDisruptionBudget"), nodes == "3");
    });
}
