//! `fastpaca put`, `window`, `compact` and `list`: what is said of a conversation in one request.

use std::fs;
use std::path::PathBuf;

use bytes::Bytes;
use clap::{Args, ValueEnum};
use http::Method;
use serde::Deserialize;
use serde_json::{Value, json, value::RawValue};

use super::answers::parse;
use super::append::standard_input;
use super::client::{ClientError, NodeArgs, path_of};
use super::listing::Listing;
use super::{Failed, show};
use crate::config::Config;

#[derive(Debug, Args)]
pub(super) struct PutArgs {
    #[command(flatten)]
    node: NodeArgs,
    /// Name of the conversation.
    id: String,
    /// Tokens that its window may take.
    #[arg(long, value_name = "TOKENS")]
    token_budget: Option<u64>,
    /// How full the window gets before it asks for compaction, from 0 to 1.
    #[arg(long, value_name = "RATIO")]
    trigger_ratio: Option<f64>,
    /// What the window keeps: a strategy such as last_n, or {"strategy": ..., "config": {...}}.
    #[arg(long, value_name = "NAME|JSON", value_parser = policy)]
    policy: Option<String>,
    /// A JSON object, in place of the metadata there is.
    #[arg(long, value_name = "JSON", value_parser = object)]
    metadata: Option<String>,
    /// Print what the server answers.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(super) struct WindowArgs {
    #[command(flatten)]
    node: NodeArgs,
    /// Name of the conversation.
    id: String,
    /// Instead of the conversation's own budget.
    #[arg(long, value_name = "TOKENS")]
    budget: Option<u64>,
    /// As it was then.
    #[arg(long, value_name = "VERSION")]
    at_version: Option<u64>,
    /// Say what was left out, and why.
    #[arg(long)]
    explain: bool,
    /// Print what the server answers.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(super) struct CompactArgs {
    #[command(flatten)]
    node: NodeArgs,
    /// Name of the conversation.
    id: String,
    /// The summary [default: standard input].
    text: Option<String>,
    /// First event that it replaces [default: the first there is].
    #[arg(long, value_name = "SEQ")]
    from: Option<u64>,
    /// Last event that it replaces [default: the last there is].
    #[arg(long, value_name = "SEQ")]
    to: Option<u64>,
    /// Who says the summary.
    #[arg(long, default_value = "system")]
    role: String,
    /// A JSON array of messages instead of a text.
    #[arg(long, value_name = "PATH", conflicts_with = "text")]
    file: Option<PathBuf>,
    /// Only if the conversation is at this version.
    #[arg(long, value_name = "VERSION")]
    if_version: Option<u64>,
    /// Print what the server answers.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(super) struct ListArgs {
    #[command(flatten)]
    node: NodeArgs,
    /// Only ids that begin with this.
    #[arg(long)]
    prefix: Option<String>,
    /// Only these.
    #[arg(long)]
    status: Option<Status>,
    /// Only those whose metadata has this value there; may be repeated.
    #[arg(long, value_name = "KEY=VALUE", value_parser = pair)]
    metadata: Vec<(String, String)>,
    /// At most so many.
    #[arg(long, value_name = "COUNT")]
    limit: Option<usize>,
    /// Print one JSON object a line.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Status {
    Active,
    Tombstoned,
}

pub(super) async fn put(args: &PutArgs, config: &Config) -> Result<String, Failed> {
    // Written by hand: JSON that was given is sent as it is.
    let members = [
        ("token_budget", args.token_budget.map(|tokens| tokens.to_string())),
        ("trigger_ratio", args.trigger_ratio.map(|ratio| ratio.to_string())),
        ("policy", args.policy.clone()),
        ("metadata", args.metadata.clone()),
    ];
    let given = members.into_iter().filter_map(|(name, value)| Some(format!("\"{name}\":{}", value?)));
    let body = format!("{{{}}}", given.collect::<Vec<_>>().join(","));
    let client = args.node.client(config)?;
    let path = path_of(&args.id);
    // The same settings once more change nothing.
    let answer = client.patiently(Method::PUT, &path, body.into()).await;
    let answer = answer.map_err(|error| error.about(&args.id))?;
    Ok(answered(&answer, &path, args.json, |answer| show::conversation(&answer))?)
}

pub(super) async fn window(args: &WindowArgs, config: &Config) -> Result<String, Failed> {
    let mut path = format!("{}/window?explain={}", path_of(&args.id), args.explain);
    for (name, value) in [("budget_tokens", args.budget), ("at_version", args.at_version)] {
        path.extend(value.map(|value| format!("&{name}={value}")));
    }
    let answer = args.node.client(config)?.patiently(Method::GET, &path, Bytes::new()).await;
    let answer = answer.map_err(|error| error.about(&args.id))?;
    Ok(answered(&answer, &path, args.json, |answer| show::window(&answer))?)
}

pub(super) async fn compact(args: &CompactArgs, config: &Config) -> Result<String, Failed> {
    let message = |text: &str| json!([{"role": args.role, "content": text}]).to_string();
    let replacement = match (&args.file, &args.text) {
        (Some(path), _) => {
            let failed = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
            let text = fs::read(path).map_err(|error| failed(&error))?;
            let value: &RawValue = serde_json::from_slice(&text).map_err(|error| failed(&error))?;
            value.get().to_owned()
        }
        (None, Some(text)) => message(text),
        (None, None) => message(&standard_input()?),
    };
    // Written by hand: JSON that was given is sent as it is.
    let mut body = format!(r#"{{"replacement":{replacement}"#);
    for (name, value) in [("from_seq", args.from), ("to_seq", args.to), ("if_version", args.if_version)] {
        body.extend(value.map(|value| format!(r#","{name}":{value}"#)));
    }
    body.push('}');
    let path = format!("{}/compact", path_of(&args.id));
    // Sent once: without `if_version` nothing tells a second compaction from the first.
    let answer = args.node.client(config)?.exchange(Method::POST, &path, body.into()).await;
    let answer = answer.map_err(|error| error.about(&args.id))?;
    Ok(answered(&answer, &path, args.json, |answer: Value| {
        format!("version {}\n", show::number(&answer["version"]))
    })?)
}

pub(super) async fn list(args: &ListArgs, config: &Config) -> Result<String, Failed> {
    let client = args.node.client(config)?;
    let mut listing = Listing::of(&client);
    if let Some(prefix) = &args.prefix {
        listing = listing.with("prefix", prefix);
    }
    if let Some(status) = args.status {
        listing = listing.with("status", &format!("{status:?}").to_lowercase());
    }
    for (key, value) in &args.metadata {
        listing = listing.with(&format!("metadata.{key}"), value);
    }
    let mut left = args.limit.unwrap_or(usize::MAX);
    while left > 0
        && let Some(mut page) = listing.next().await?
    {
        page.truncate(left);
        left -= page.len();
        let text = match args.json {
            true => page.iter().map(|one| show::line(one.text.get().as_bytes())).collect(),
            false => show::table(&page),
        };
        show::put(text.as_bytes())?;
    }
    Ok(String::new())
}

/// The server's own words on one line, or what they mean, which were an answer to `what`.
pub(super) fn answered<'a, T: Deserialize<'a>>(
    answer: &'a [u8],
    what: &str,
    json: bool,
    meaning: impl FnOnce(T) -> String,
) -> Result<String, ClientError> {
    if json { Ok(show::line(answer)) } else { parse(answer, what).map(meaning) }
}

/// A strategy by its name, or all of a policy.
fn policy(given: &str) -> Result<String, String> {
    if given.trim_start().starts_with('{') {
        return object(given);
    }
    Ok(json!({"strategy": given}).to_string())
}

/// Its text, which must be that of a JSON object.
pub(super) fn object(given: &str) -> Result<String, String> {
    let value: &RawValue = serde_json::from_str(given).map_err(|error| error.to_string())?;
    if value.get().starts_with('{') {
        Ok(given.to_owned())
    } else {
        Err("it must be a JSON object".to_owned())
    }
}

fn pair(given: &str) -> Result<(String, String), String> {
    let (key, value) = given.split_once('=').ok_or("it must be KEY=VALUE")?;
    Ok((key.to_owned(), value.to_owned()))
}
