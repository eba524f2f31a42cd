//! `fastpaca cluster`: shows the cluster and changes who is in it, by asking one of its nodes.

use bytes::Bytes;
use clap::{Args, Subcommand};
use http::Method;
use serde_json::Value;

use super::Failed;
use super::client::{NodeArgs, encoded};
use super::conversations::answered;
use crate::config::Config;

const PATH: &str = "/v1/cluster";

/// What is asked, and of whom.
#[derive(Debug, Args)]
pub(super) struct ClusterArgs {
    #[command(flatten)]
    node: NodeArgs,

    #[command(subcommand)]
    command: ClusterCommand,
}

#[derive(Debug, Subcommand)]
enum ClusterCommand {
    /// Show nodes, groups and leaders.
    Status {
        /// Print what the server answers.
        #[arg(long)]
        json: bool,
    },
    /// Move a node's replicas to the others.
    Drain { name: String },
    /// Let a drained node hold replicas again.
    Undrain { name: String },
    /// End the membership of a node that was drained or is lost.
    Remove { name: String },
}

/// Asks, and answers what to print.
pub(super) async fn run(args: &ClusterArgs, config: &Config) -> Result<String, Failed> {
    let client = args.node.client(config)?;
    match &args.command {
        ClusterCommand::Status { json } => {
            let status = client.exchange(Method::GET, PATH, Bytes::new()).await?;
            Ok(answered(&status, PATH, *json, |status| table(&status))?)
        }
        ClusterCommand::Drain { name } => {
            let status = client.ask(Method::POST, &format!("{PATH}/drain?name={}", encoded(name))).await?;
            let left = node(&status, name).map_or(0, |node| number(&node["groups"]));
            Ok(format!("{name} is draining: {left} groups are still on it\n"))
        }
        ClusterCommand::Undrain { name } => {
            client.ask(Method::POST, &format!("{PATH}/undrain?name={}", encoded(name))).await?;
            Ok(format!("{name} is active\n"))
        }
        ClusterCommand::Remove { name } => {
            client.ask(Method::DELETE, &format!("{PATH}/nodes/{}", encoded(name))).await?;
            Ok(format!("{name} is no member any more\n"))
        }
    }
}

fn node<'a>(status: &'a Value, name: &str) -> Option<&'a Value> {
    status["nodes"].as_array()?.iter().find(|node| node["name"] == name)
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or(0)
}

fn text(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// The status for people.
fn table(status: &Value) -> String {
    let mut rows =
        vec![["NAME", "STATE", "LINK", "GROUPS", "LEADERS", "LAG", "RTT", "ADDRESS"].map(str::to_owned)];
    for node in status["nodes"].as_array().into_iter().flatten() {
        let rtt = node["rtt_us"].as_f64().map_or("-".to_owned(), |us| format!("{:.1} ms", us / 1_000.0));
        let [name, state, groups, leaders, lag, address] =
            ["name", "state", "groups", "leaders", "lag", "address"].map(|member| text(&node[member]));
        rows.push([name, state, link(node), groups, leaders, lag, rtt, address]);
    }
    let widths: Vec<usize> =
        (0..8).map(|at| rows.iter().map(|row| row[at].chars().count()).max().unwrap_or(0)).collect();
    let mut out = format!(
        "cluster {}, version {}: {} groups, {} without leader, {} moving\n\n",
        text(&status["cluster_id"]),
        number(&status["version"]),
        number(&status["groups"]),
        number(&status["groups_without_leader"]),
        number(&status["moving"]),
    );
    for row in rows {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        out.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
        out.push('\n');
    }
    for node in status["nodes"].as_array().into_iter().flatten() {
        if let Some(why) = node["link_error"].as_str() {
            out.push_str(&format!("\n{}: {why}\n", text(&node["name"])));
        }
    }
    out
}

/// `down 12s`: how long a node has been out of reach matters.
fn link(node: &Value) -> String {
    match (node["link"].as_str(), node["link_seconds"].as_u64()) {
        (Some("down"), Some(seconds)) => format!("down {seconds}s"),
        (link, _) => link.unwrap_or("-").to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_table_lines_up() {
        let status = json!({
            "cluster_id": "0a", "version": 7, "groups": 256, "groups_without_leader": 0, "moving": 2,
            "nodes": [
                {"name": "node-1", "state": "active", "link": "up", "link_seconds": null, "rtt_us": null,
                 "groups": 256, "leaders": 128, "lag": 0, "address": "10.0.0.1:4000"},
                {"name": "b", "state": "draining", "link": "down", "link_seconds": 12, "rtt_us": 1_250,
                 "groups": 9, "leaders": 0, "lag": null, "address": "10.0.0.2:4000", "link_error": "refused"},
            ],
        });
        let expected = "\
cluster 0a, version 7: 256 groups, 0 without leader, 2 moving

NAME    STATE     LINK      GROUPS  LEADERS  LAG  RTT     ADDRESS
node-1  active    up        256     128      0    -       10.0.0.1:4000
b       draining  down 12s  9       0        -    1.2 ms  10.0.0.2:4000

b: refused
";
        assert_eq!(table(&status), expected);
    }
}
