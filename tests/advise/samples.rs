//! Files of `docker/` that `fastpaca advise` writes: they are its own output, for a sample of a plan, so that there is one
//! truth of each. `BLESS=1 cargo test --test advise` writes them anew. And what the alerts point to is there.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;

use super::files::compose;
use super::golden::{check, root};
use super::{has, passes, said};

/// What stands where a secret was.
const PLACEHOLDER: &str = "replace-by-the-output-of-openssl-rand-hex-32";

fn written(name: &str) -> String {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_str().unwrap();
    said(&["plan", "--preset", "small-team", "--nodes", "3", "--image", "fastpaca", "--write", path]);
    let text = fs::read_to_string(dir.path().join(name)).unwrap();
    text.lines().map(without_secret).collect::<Vec<_>>().join("\n") + "\n"
}

fn without_secret(line: &str) -> String {
    match line.split_once(": ") {
        Some((name, _)) if ["FASTPACA_API_KEY", "FASTPACA_CLUSTER_SECRET"].contains(&name.trim()) => {
            format!("{name}: \"{PLACEHOLDER}\"")
        }
        _ => line.to_owned(),
    }
}

#[test]
fn the_manifests_are_those_of_a_plan() {
    check("docker/kubernetes/fastpaca.yaml", |_| written("kubernetes.yaml"));
}

#[test]
fn the_unit_is_that_of_a_plan() {
    check("docker/systemd/fastpaca.service", |_| written("fastpaca.service"));
}

#[test]
fn the_alert_rules_are_the_thresholds() {
    check("docker/prometheus/alerts.yml", |_| said(&["alerts"]));
    if has("promtool") {
        passes(
            Command::new("promtool").args(["check", "config"]).arg(root("docker/prometheus/prometheus.yml")),
        );
    }
}

/// With every profile, and what the nodes of these files and of a plan's must have in common.
#[test]
fn compose_takes_the_files() {
    for (file, nodes) in [("docker/compose.yaml", 1), ("docker/compose.cluster.yaml", 3)] {
        let Some(mut command) = compose() else { return };
        command.arg("-f").arg(root(file)).args([
            "--profile",
            "postgres",
            "--profile",
            "monitoring",
            "config",
        ]);
        let shown = passes(command.env("FASTPACA_CLUSTER_SECRET", "secret"));
        let planned = written("compose.yaml");
        for line in
            ["user: \"10001:10001\"", "read_only: true", "stop_grace_period: 30s", "- no-new-privileges:true"]
        {
            // What Compose prints has its own quotes.
            let count = |text: &str| text.replace('"', "").matches(&line.replace('"', "")).count();
            assert_eq!(count(&shown), nodes, "{line} in {file}: {shown}");
            let planned = planned.replace("[\"no", "- no");
            assert_eq!(count(&planned), 3, "{line} in a plan's: {planned}");
        }
        assert_eq!(shown.contains("fastpaca.internal:4000"), nodes == 3, "{shown}");
        assert_eq!(shown.contains("/etc/grafana/dashboards"), nodes == 3, "{shown}");
    }
}

/// Whatever fires at night, its link leads to a section that says what to do; and no section is left over.
#[test]
fn every_alert_has_its_runbook() {
    let linked: BTreeSet<String> = said(&["alerts"])
        .lines()
        .filter_map(|line| line.trim().strip_prefix("runbook_url: \"docs/operations.md#"))
        .map(|anchor| anchor.trim_end_matches('"').to_owned())
        .collect();
    let page = fs::read_to_string(root("docs/operations.md")).unwrap();
    let (_, runbooks) = page.split_once("\n## When an alert fires\n").expect("the page has them together");
    let (runbooks, _) = runbooks.split_once("\n## ").unwrap_or((runbooks, ""));
    let written: BTreeSet<String> =
        runbooks.lines().filter_map(|line| line.strip_prefix("### ")).map(str::to_owned).collect();
    assert!(linked.len() > 10, "{linked:?}");
    assert_eq!(linked, written);
    let elsewhere = said(&["alerts", "--runbooks", "https://example.org/ops"]);
    assert!(elsewhere.contains("runbook_url: \"https://example.org/ops#memory\""), "{elsewhere}");
}

/// Higher is less protected; systemd calls 5 and more exposed.
#[test]
fn systemd_finds_the_unit_well_protected() {
    if !has("systemd-analyze") {
        return;
    }
    let mut command = Command::new("systemd-analyze");
    command.args(["security", "--offline=true", "--no-pager", "--threshold=20"]);
    passes(command.arg(root("docker/systemd/fastpaca.service")));
}
