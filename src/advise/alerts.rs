//! The thresholds as alert rules of Prometheus.

use super::thresholds::{Scope, THRESHOLDS, Threshold, Unit};

/// The name of the group in the file.
const GROUP: &str = "fastpaca";
/// The heading, in the page of runbooks, for a node that is not scraped.
const NODE_DOWN: &str = "node_down";

/// A rule file: an alert for each level of each threshold that Prometheus sees, and one for a node that is not scraped.
///
/// `job` is what Prometheus calls the nodes; alerts are confined to it where their expression names metrics that any
/// process has. `runbooks` is where the page with what to do lies; it has a heading for each id.
pub fn rules(job: &str, runbooks: &str) -> String {
    let mut text = format!(
        "# Made by `fastpaca advise alerts`; what each threshold means and where it comes from is in docs/advise.md,\n\
         # what to do in docs/operations.md.\n\
         # Scrape every node's /metrics as job {job:?}. severity: warning = act soon, critical = act now.\n\
         groups:\n  - name: {GROUP}\n    rules:\n"
    );
    for threshold in THRESHOLDS {
        for (severity, limit) in [("warning", threshold.soon), ("critical", threshold.now)] {
            if let (Some(expr), Some(limit)) = (threshold.expr, limit) {
                text.push_str(&alert(threshold, expr, severity, limit, runbooks));
            }
        }
    }
    text.push_str(&format!(
        "      - alert: FastpacaNodeDown\n        expr: {}\n        for: 1m\n        labels:\n          severity: critical\n        \
         annotations:\n          summary: \"{{{{ $labels.instance }}}}: not scraped\"\n          \
         description: \"Start it again; a cluster of three goes on with two.\"\n          runbook_url: {}\n",
        quoted(&format!("up{{job={job:?}}} == 0")),
        quoted(&format!("{runbooks}#{NODE_DOWN}")),
    ));
    text
}

fn alert(threshold: &Threshold, expr: &str, severity: &str, limit: f64, runbooks: &str) -> String {
    let name: String = threshold.id.split('_').map(capitalised).collect();
    let name = format!("Fastpaca{name}{}", if severity == "critical" { "Critical" } else { "" });
    let lasting =
        if threshold.minutes == 0 { String::new() } else { format!("        for: {}m\n", threshold.minutes) };
    let expr = quoted(&format!("({expr}) > {limit}"));
    // What is added up over the nodes of a job has no instance.
    let of = if threshold.scope == Scope::Cluster { "job" } else { "instance" };
    let summary =
        quoted(&format!("{{{{ $labels.{of} }}}}: {} above {}", threshold.title, threshold.show(limit)));
    let shown = if threshold.unit == Unit::Share { "humanizePercentage" } else { "humanize" };
    let description = quoted(&format!("Is {{{{ $value | {shown} }}}}. {}.", threshold.action));
    let runbook = quoted(&format!("{runbooks}#{}", threshold.id));
    format!(
        "      - alert: {name}\n        expr: {expr}\n{lasting}        labels:\n          severity: {severity}\n        \
         annotations:\n          summary: {summary}\n          description: {description}\n          runbook_url: {runbook}\n"
    )
}

fn capitalised(word: &str) -> String {
    let mut letters = word.chars();
    letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
}

/// A YAML string in double quotes.
fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}
