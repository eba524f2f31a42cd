//! The alert rules, held by Prometheus' own tool: they are well formed, every one fires when its threshold is crossed for
//! long enough, and none does on a system that is fine.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;

use super::{has, passes, said};

/// Series of three nodes that are fine, in promtool's notation. Counters grow by the minute.
const FINE: &[(&str, &str)] = &[
    ("up", "1x60"),
    ("process_resident_memory_bytes", "600000000x60"),
    ("fastpaca_available_memory_bytes", "4000000000x60"),
    ("process_cpu_seconds_total", "0+12x60"),
    ("fastpaca_available_cores", "2x60"),
    ("fastpaca_append_latency_ms_bucket{le=\"5\"}", "0+600x60"),
    ("fastpaca_append_latency_ms_bucket{le=\"5000\"}", "0+600x60"),
    ("fastpaca_append_latency_ms_bucket{le=\"+Inf\"}", "0+600x60"),
    ("fastpaca_window_latency_ms_bucket{le=\"5\"}", "0+600x60"),
    ("fastpaca_window_latency_ms_bucket{le=\"5000\"}", "0+600x60"),
    ("fastpaca_window_latency_ms_bucket{le=\"+Inf\"}", "0+600x60"),
    ("fastpaca_journal_fsync_seconds_bucket{le=\"0.001\"}", "0+600x60"),
    ("fastpaca_journal_fsync_seconds_bucket{le=\"0.5\"}", "0+600x60"),
    ("fastpaca_journal_fsync_seconds_bucket{le=\"+Inf\"}", "0+600x60"),
    ("fastpaca_overloaded_total", "0x60"),
    ("fastpaca_rate_limited_total", "0x60"),
    ("fastpaca_connections_refused_total", "0x60"),
    ("fastpaca_http_requests_total{status=\"2xx\"}", "0+600x60"),
    ("fastpaca_http_requests_total{status=\"5xx\"}", "0x60"),
    ("fastpaca_disk_free_bytes", "60000000000x60"),
    ("fastpaca_disk_size_bytes", "80000000000x60"),
    ("fastpaca_disk_full", "0x60"),
    ("fastpaca_streams", "100x60"),
    ("fastpaca_stream_limit", "512x60"),
    ("fastpaca_connections", "100x60"),
    ("fastpaca_connection_limit", "4096x60"),
    ("fastpaca_raft_pending_flush_messages", "0x60"),
    ("fastpaca_archive_stopped_conversations", "0x60"),
    ("fastpaca_trims_refused_total", "3x60"),
    ("fastpaca_peer_links_up", "2x60"),
];

/// What is different on the first node, and the alerts that must fire: all levels that are crossed.
const CASES: &[(&str, &str, &[&str])] = &[
    ("up", "0x60", &["NodeDown"]),
    ("process_resident_memory_bytes", "3300000000x60", &["Memory"]),
    ("process_resident_memory_bytes", "3500000000x60", &["Memory", "MemoryCritical"]),
    ("process_cpu_seconds_total", "0+90x60", &["Cpu"]),
    ("process_cpu_seconds_total", "0+110x60", &["Cpu", "CpuCritical"]),
    ("fastpaca_append_latency_ms_bucket{le=\"5\"}", "0+300x60", &["AppendLatency", "AppendLatencyCritical"]),
    ("fastpaca_append_latency_ms_bucket{le=\"5\"}", "0+566x60", &["AppendLatency"]),
    ("fastpaca_window_latency_ms_bucket{le=\"5\"}", "0+300x60", &["WindowLatency", "WindowLatencyCritical"]),
    ("fastpaca_journal_fsync_seconds_bucket{le=\"0.001\"}", "0+300x60", &["Fsync", "FsyncCritical"]),
    ("fastpaca_overloaded_total", "0+60x60", &["Overload"]),
    ("fastpaca_connections_refused_total", "0+660x60", &["Overload", "OverloadCritical"]),
    ("fastpaca_http_requests_total{status=\"5xx\"}", "0+12x60", &["Errors"]),
    ("fastpaca_http_requests_total{status=\"5xx\"}", "0+60x60", &["Errors", "ErrorsCritical"]),
    ("fastpaca_disk_free_bytes", "15000000000x60", &["Disk"]),
    ("fastpaca_disk_free_bytes", "7000000000x60", &["Disk", "DiskCritical"]),
    ("fastpaca_disk_full", "1x60", &["DiskFullCritical"]),
    ("fastpaca_streams", "420x60", &["Streams"]),
    ("fastpaca_streams", "500x60", &["Streams", "StreamsCritical"]),
    ("fastpaca_connections", "3500x60", &["Connections"]),
    ("fastpaca_connections", "4000x60", &["Connections", "ConnectionsCritical"]),
    ("fastpaca_raft_pending_flush_messages", "60000x60", &["ArchiveBacklog"]),
    ("fastpaca_raft_pending_flush_messages", "600000x60", &["ArchiveBacklog", "ArchiveBacklogCritical"]),
    ("fastpaca_archive_stopped_conversations", "1x60", &["ArchiveStopped"]),
    ("fastpaca_trims_refused_total", "3x30 4x30", &["TrimsRefused"]),
    ("fastpaca_group_leaders", "60x60", &["GroupsWithoutLeaderCritical"]),
    ("fastpaca_peer_links_up", "1x60", &["Links"]),
];

/// Leaders of the three nodes.
const LEADERS: [&str; 3] = ["86x60", "86x60", "85x60"];

/// One test of the file: the series of a system, and which alerts of all fire at minute 40.
fn unit(changed: Option<(&str, &str)>, leaders: [&str; 3], fire: &[&str], all: &BTreeSet<String>) -> String {
    let mut text = String::from("  - interval: 1m\n    input_series:\n");
    let mut add = |series: &str, node: usize, values: &str| {
        let labels = format!("job=\"fastpaca\",instance=\"node-{node}\"");
        let series = match series.split_once('{') {
            Some((name, rest)) => format!("{name}{{{labels},{rest}"),
            None => format!("{series}{{{labels}}}"),
        };
        text.push_str(&format!("      - series: '{series}'\n        values: '{values}'\n"));
    };
    for (node, leaders) in leaders.iter().enumerate() {
        for (series, values) in FINE {
            let values =
                changed.filter(|(name, _)| node == 0 && name == series).map_or(*values, |(_, values)| values);
            add(series, node, values);
        }
        let own = changed.filter(|(name, _)| node == 0 && *name == "fastpaca_group_leaders");
        add("fastpaca_group_leaders", node, own.map_or(*leaders, |(_, values)| values));
    }
    text.push_str("    promql_expr_test:\n");
    for alert in all {
        let firing =
            format!("count(ALERTS{{alertname=\"{alert}\",alertstate=\"firing\"}}) > bool 0 or vector(0)");
        let value = u8::from(fire.iter().any(|name| format!("Fastpaca{name}") == *alert));
        text.push_str(&format!(
            "      - expr: '{firing}'\n        eval_time: 40m\n        exp_samples:\n          - value: {value}\n            labels: '{{}}'\n"
        ));
    }
    text
}

#[test]
fn prometheus_takes_the_rules_and_every_alert_fires_when_it_should() {
    if !has("promtool") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (rules, tests) = (dir.path().join("rules.yml"), dir.path().join("tests.yml"));
    let text = said(&["alerts"]);
    fs::write(&rules, &text).unwrap();
    let checked = passes(Command::new("promtool").args(["check", "rules"]).arg(&rules));
    let all: BTreeSet<String> =
        text.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).map(str::to_owned).collect();
    assert!(checked.contains(&format!("{} rules found", all.len())), "{checked}");

    let mut units = String::from("rule_files:\n  - rules.yml\nevaluation_interval: 1m\ntests:\n");
    units.push_str(&unit(None, LEADERS, &[], &all));
    for (series, values, fire) in CASES {
        units.push_str(&unit(Some((series, values)), LEADERS, fire, &all));
    }
    units.push_str(&unit(None, ["200x60", "40x60", "17x60"], &["LeaderBalance"], &all));
    let covered = CASES.iter().flat_map(|(_, _, fire)| *fire).map(|name| format!("Fastpaca{name}"));
    let covered: BTreeSet<String> = covered.chain(["FastpacaLeaderBalance".to_owned()]).collect();
    assert_eq!(covered, all, "every alert has a case");
    fs::write(&tests, units).unwrap();
    passes(Command::new("promtool").args(["test", "rules"]).arg(&tests));
}

/// An alert names what its series tell: those that are added up over the nodes have no instance.
#[test]
fn summaries_name_a_label_that_is_there() {
    let rules = said(&["alerts"]);
    for alert in rules.split("      - alert: ").skip(1) {
        let is_of_the_cluster = alert.contains("by (job)") && !alert.contains("group_right");
        let label = if is_of_the_cluster { "{{ $labels.job }}: " } else { "{{ $labels.instance }}: " };
        assert!(alert.contains(&format!("summary: \"{label}")), "{alert}");
        let of_a_share = alert.lines().any(|line| line.contains("summary: ") && line.ends_with(" %\""));
        assert_eq!(of_a_share, alert.contains("{{ $value | humanizePercentage }}"), "{alert}");
    }
}

#[test]
fn the_job_is_a_parameter() {
    let rules = said(&["alerts", "--job", "chat"]);
    assert!(rules.contains(r#"up{job=\"chat\"} == 0"#), "{rules}");
}
