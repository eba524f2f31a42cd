//! `fastpaca append`: one message, or many as lines of JSON.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use clap::Args;
use http::Method;
use serde_json::{Value, json};

use super::batches::{Appended, Batches, refused};
use super::client::{Client, NodeArgs, path_of};
use super::conversations::{answered, object};
use super::{Failed, progress, show};
use crate::config::Config;

#[derive(Debug, Args)]
pub(super) struct AppendArgs {
    #[command(flatten)]
    node: NodeArgs,
    /// Name of the conversation.
    id: String,
    /// The message [default: standard input, without the last line break].
    text: Option<String>,
    /// Read this file instead; - is standard input.
    #[arg(long, value_name = "PATH", conflicts_with = "text")]
    file: Option<PathBuf>,
    /// Every line is an event in JSON, as `fastpaca events --json` prints them. May be repeated after a failure: what was
    /// appended is not appended again.
    #[arg(long, conflicts_with_all = ["text", "role", "metadata", "token_count", "key", "if_version"])]
    ndjson: bool,
    /// Who says it.
    #[arg(long, default_value = "user")]
    role: String,
    /// A JSON object that the message carries.
    #[arg(long, value_name = "JSON", value_parser = object)]
    metadata: Option<String>,
    /// Instead of having the server count.
    #[arg(long, value_name = "TOKENS")]
    token_count: Option<u64>,
    /// Idempotency key: the same message under the same key is appended once [default: one of its own].
    #[arg(long)]
    key: Option<String>,
    /// Only if the conversation is at this version.
    #[arg(long, value_name = "VERSION")]
    if_version: Option<u64>,
    /// Create the conversation, if there is none.
    #[arg(long)]
    create: bool,
    /// Print what the server answers, or for --ndjson a summary in JSON.
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(args: &AppendArgs, config: &Config) -> Result<String, Failed> {
    let client = args.node.client(config)?;
    if args.create {
        let path = path_of(&args.id);
        let created = client.patiently(Method::PUT, &path, "{}".into()).await;
        created.map_err(|error| error.about(&args.id))?;
    }
    Ok(if args.ndjson { many(args, &client).await? } else { one(args, &client).await? })
}

async fn one(args: &AppendArgs, client: &Client) -> Result<String, String> {
    let content = match (&args.text, &args.file) {
        (Some(text), _) => text.clone(),
        (None, Some(path)) if path != Path::new("-") => {
            std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?
        }
        _ => standard_input()?,
    };
    // Written by hand: JSON that was given is sent as it is.
    let mut event = format!(r#""role":{},"content":{}"#, json!(args.role), json!(content));
    if let Some(metadata) = &args.metadata {
        event.push_str(&format!(r#","metadata":{metadata}"#));
    }
    if let Some(count) = args.token_count {
        event.push_str(&format!(r#","token_count":{count}"#));
    }
    // With a key of its own the request may be sent again, should its answer get lost.
    let key = args.key.clone().unwrap_or_else(|| format!("cli-{}", uuid::Uuid::new_v4().simple()));
    let if_version = args.if_version.map(|version| format!(r#","if_version":{version}"#)).unwrap_or_default();
    let body = format!(r#"{{"event":{{{event}}},"idempotency_key":{}{if_version}}}"#, json!(key));
    let path = format!("{}/events", path_of(&args.id));
    let answer = client.patiently(Method::POST, &path, body.into()).await;
    let answer = answer.map_err(|error| refused(&args.id, error))?;
    Ok(answered(&answer, &path, args.json, |answer: Value| {
        let [seq, version, tokens] =
            ["seq", "version", "token_estimate"].map(|member| show::number(&answer[member]));
        let known = if answer["deduped"] == true { ", which was there already" } else { "" };
        format!("#{seq}{known}: version {version}, {tokens} tokens\n")
    })?)
}

async fn many(args: &AppendArgs, client: &Client) -> Result<String, String> {
    let (input, size) = open(args.file.as_deref())?;
    let bar = match size {
        Some(size) => progress::bytes("appending", size),
        None => progress::counting("appending", None),
    };
    let mut batches = Batches::new(client, &args.id);
    for line in input.split(b'\n') {
        let line = line.map_err(|error| format!("reading: {error}"))?;
        if !line.trim_ascii().is_empty() {
            batches.add(&line).await?;
        }
        bar.inc(if size.is_some() { line.len() as u64 + 1 } else { 1 });
    }
    let Appended { events, known } = batches.finish().await?;
    bar.finish_and_clear();
    Ok(match (args.json, known) {
        (true, _) => format!("{}\n", json!({"events": events, "deduped": known})),
        (false, 0) => format!("appended {events} events\n"),
        (false, known) => format!("appended {events} events, of which {known} were there already\n"),
    })
}

/// Lines to read, and how many bytes there are, if anybody knows.
pub(super) fn open(path: Option<&Path>) -> Result<(Box<dyn BufRead>, Option<u64>), String> {
    match path {
        Some(path) if path != Path::new("-") => {
            let file = File::open(path).map_err(|error| format!("{}: {error}", path.display()))?;
            let size = file.metadata().ok().map(|metadata| metadata.len());
            Ok((Box::new(BufReader::new(file)), size))
        }
        _ => Ok((Box::new(BufReader::new(io::stdin())), None)),
    }
}

/// All of standard input as text, without the line break that ends it.
pub(super) fn standard_input() -> Result<String, String> {
    let mut text = String::new();
    io::stdin().read_to_string(&mut text).map_err(|error| format!("standard input: {error}"))?;
    let end =
        text.strip_suffix('\n').map_or(text.len(), |text| text.strip_suffix('\r').unwrap_or(text).len());
    text.truncate(end);
    Ok(text)
}
