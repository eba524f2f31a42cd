//! `fastpaca advise check`: looks at nodes twice, at the cluster, at this machine where a node runs on it, and at Prometheus
//! where there is one, and has the rules judge it.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use http::Method;
use tokio::time::Instant;

use super::super::client::Client;
use super::{Failed, Format, Outcome, history, machine, written};
use crate::advise::check::{Lasting, Look, NodeLook, Seen, cluster_figures, judge, node_figures, report};
use crate::advise::thresholds::{Level, Scope, Signal, of};
use crate::config::Config;

/// All nodes are looked at at once, up to so many.
const NODES_MAX: usize = 64;
const COULD_NOT_TELL: u8 = 3;

#[derive(Debug, Args)]
pub(super) struct CheckArgs {
    /// A node to look at; name all of them [default: the one of FASTPACA_LISTEN, on this machine].
    #[arg(long = "node", value_name = "URL")]
    nodes: Vec<String>,
    /// A Prometheus that scrapes them, to know what lasts.
    #[arg(long, value_name = "URL")]
    prometheus: Option<String>,
    /// Trust what the certificates in this PEM file signed, for https [default: FASTPACA_TLS_CA].
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// Seconds between the two looks at each node.
    #[arg(long, default_value_t = 10, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=3600))]
    interval: u64,
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
}

pub(super) fn run(args: &CheckArgs, config: &Config) -> Result<Outcome, Failed> {
    let usage = |why: String| Failed { why, code: super::EXIT_USAGE };
    if args.nodes.len() > NODES_MAX {
        return Err(usage(format!("--node: given {} times: expected at most {NODES_MAX}", args.nodes.len())));
    }
    let urls: Vec<Option<&str>> = if args.nodes.is_empty() {
        vec![None]
    } else {
        args.nodes.iter().map(|url| Some(url.as_str())).collect()
    };
    let client = |option: &str, url: Option<&str>| {
        Client::new(url, args.ca.as_deref(), config).map_err(|error| usage(format!("{option}: {error}")))
    };
    let node = |url: &Option<&str>| client(if url.is_some() { "--node" } else { "FASTPACA_URL" }, *url);
    let nodes = urls.iter().map(node).collect::<Result<Vec<Client>, Failed>>()?;
    let history = args
        .prometheus
        .as_deref()
        .map(|url| client("--prometheus", Some(url)).map(Client::without_key))
        .transpose()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Failed { why: error.to_string(), code: COULD_NOT_TELL })?;
    let seen = runtime.block_on(look(&nodes, history.as_ref(), Duration::from_secs(args.interval)));
    let verdict = judge(&seen);
    let code = match verdict.level {
        Some(Level::Fine) => 0,
        Some(Level::Soon) => 1,
        Some(Level::Now) => 2,
        None => COULD_NOT_TELL,
    };
    let text = match args.format {
        Format::Json => format!("{:#}\n", serde_json::json!({"schema_version": 1, "verdict": verdict})),
        format => written(&report(&verdict), format),
    };
    Ok(Outcome { text, code: ExitCode::from(code) })
}

async fn look(nodes: &[Client], history: Option<&Client>, interval: Duration) -> Vec<Seen> {
    let each = futures_util::future::join_all(nodes.iter().map(|node| look_at(node, interval))).await;
    let mut seen: Vec<Seen> = each.into_iter().flatten().collect();
    if nodes.iter().any(Client::is_to_this_machine) {
        seen.extend(machine::memory());
    }
    seen.extend(look_at_cluster(nodes).await);
    if let Some(prometheus) = history {
        add_history(&mut seen, prometheus).await;
    }
    seen
}

/// A node's figures, or the reason for each that is missing.
async fn look_at(node: &Client, interval: Duration) -> Vec<Seen> {
    let looked = async {
        let before = Look::parse(&node.ask_text("/metrics").await?);
        let begin = Instant::now();
        tokio::time::sleep(interval).await;
        let after = Look::parse(&node.ask_text("/metrics").await?);
        let seconds = begin.elapsed().as_secs_f64();
        Ok::<_, super::super::client::ClientError>(NodeLook { name: node.name(), before, after, seconds })
    };
    match looked.await {
        Ok(looks) => node_figures(&looks),
        Err(error) => {
            let nothing =
                NodeLook { name: node.name(), before: Look::default(), after: Look::default(), seconds: 1.0 };
            let mut missing = node_figures(&nothing);
            missing.iter_mut().for_each(|figure| figure.value = Err(error.to_string()));
            missing
        }
    }
}

/// Any node knows the cluster; the first that answers is believed.
async fn look_at_cluster(nodes: &[Client]) -> Vec<Seen> {
    let mut why = String::new();
    for node in nodes {
        match node.ask(Method::GET, "/v1/cluster").await {
            Ok(status) => return cluster_figures(&status),
            Err(error) => why = error.to_string(),
        }
    }
    let missing = |signal| Seen {
        signal,
        of: "cluster".to_owned(),
        value: Err(why.clone()),
        lasting: Lasting::Momentary,
    };
    [Signal::GroupsWithoutLeader, Signal::LinksMissing, Signal::RoundTrip, Signal::LeaderImbalance]
        .map(missing)
        .into()
}

/// What Prometheus knows to last takes the place of what was seen for a moment.
async fn add_history(seen: &mut Vec<Seen>, prometheus: &Client) {
    match history::figures(prometheus).await {
        Ok(figures) => {
            for figure in figures {
                // What the cluster says of itself is fresher, and whole.
                let is_cluster =
                    of(figure.signal).scope == Scope::Cluster || figure.signal == Signal::LinksMissing;
                let same =
                    |other: &Seen| other.signal == figure.signal && (other.of == figure.of || is_cluster);
                let Some(at) = seen.iter().position(same) else {
                    seen.push(figure);
                    continue;
                };
                let is_news = figure.lasting == Lasting::Sustained || seen[at].value.is_err();
                if is_news && !is_cluster {
                    seen[at] = figure;
                }
            }
        }
        Err(error) => seen.push(Seen {
            signal: Signal::Cpu,
            of: "Prometheus".to_owned(),
            value: Err(error.to_string()),
            lasting: Lasting::Momentary,
        }),
    }
}
