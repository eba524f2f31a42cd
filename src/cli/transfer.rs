//! `fastpaca export` and `fastpaca import`: whole conversations as lines of JSON, for other tools and other clusters.
//!
//! A line with `conversation` begins one, with its settings; the events follow, a line each. An import appends: seqs are
//! those of the log it comes to, times are new. A copy that is the same in everything is a backup's business.

use std::fs::File;
use std::io::{BufRead, BufWriter, Write};
use std::path::PathBuf;

use bytes::Bytes;
use clap::Args;
use http::Method;
use indicatif::ProgressBar;
use serde_json::{Map, Value, json, value::RawValue};
use tokio::time::sleep;

use super::append::open;
use super::batches::{Appended, Batches};
use super::client::{ATTEMPTS_APART, ATTEMPTS_MAX, Client, ClientError, NodeArgs, path_of};
use super::events::{NDJSON, RANGE_PATIENCE};
use super::listing::{Amount, Listing};
use super::{progress, show};
use crate::config::Config;

/// What an import takes over of a conversation itself.
const SETTINGS: [&str; 4] = ["token_budget", "trigger_ratio", "policy", "metadata"];

#[derive(Debug, Args)]
pub(super) struct ExportArgs {
    #[command(flatten)]
    node: NodeArgs,
    /// Names of conversations.
    #[arg(required_unless_present_any = ["all", "prefix"])]
    ids: Vec<String>,
    /// Every conversation.
    #[arg(long, conflicts_with_all = ["ids", "prefix"])]
    all: bool,
    /// Every conversation whose id begins with this.
    #[arg(long, conflicts_with = "ids")]
    prefix: Option<String>,
    /// Write to this file instead of standard output.
    #[arg(short, long, value_name = "PATH")]
    output: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(super) struct ImportArgs {
    #[command(flatten)]
    node: NodeArgs,
    /// What `fastpaca export` wrote [default: standard input].
    file: Option<PathBuf>,
    /// Print a summary in JSON.
    #[arg(long)]
    json: bool,
}

pub(super) async fn export(args: &ExportArgs, config: &Config) -> Result<String, String> {
    let client = args.node.client(config)?;
    let mut out = Out::to(args.output.as_ref())?;
    if !args.ids.is_empty() {
        let bar = progress::counting("exporting", None);
        for id in &args.ids {
            let described = client.patiently(Method::GET, &path_of(id), Bytes::new()).await?;
            one(&client, &described, &mut out, &bar).await?;
        }
        return out.finish().map(|()| String::new());
    }
    let listing = || {
        let listing = Listing::of(&client);
        args.prefix.iter().fold(listing, |listing, prefix| listing.with("prefix", prefix))
    };
    let total = if progress::is_seen() { Some(Amount::of(listing()).await?.events) } else { None };
    let bar = progress::counting("exporting", total);
    let mut pages = listing();
    while let Some(page) = pages.next().await? {
        for described in page {
            one(&client, described.to_string().as_bytes(), &mut out, &bar).await?;
        }
    }
    bar.finish_and_clear();
    out.finish().map(|()| String::new())
}

/// One conversation as it was when it was described.
async fn one(client: &Client, described: &[u8], out: &mut Out, bar: &ProgressBar) -> Result<(), String> {
    out.line(&[b"{\"conversation\":", described, b"}"].concat())?;
    let described: Value = serde_json::from_slice(described).unwrap_or(Value::Null);
    let (id, last_seq) = (described["id"].as_str().unwrap_or_default(), show::number(&described["last_seq"]));
    let (mut next, mut attempts) = (1, 0);
    while next <= last_seq {
        let before = next;
        match events(client, id, &mut next, last_seq, out, bar).await {
            Ok(()) => {}
            // It goes on behind the last line that came.
            Err(Failed::Asking(error)) if attempts < ATTEMPTS_MAX && client.may_pass(&error) => {
                attempts = if next > before { 0 } else { attempts + 1 };
                sleep(ATTEMPTS_APART).await;
            }
            Err(Failed::Asking(error)) => return Err(error.into()),
            Err(Failed::Writing(error)) => return Err(error),
        }
    }
    Ok(())
}

/// Which side an export failed on.
enum Failed {
    Asking(ClientError),
    Writing(String),
}

/// The events from `next` on, which moves with every one.
async fn events(
    client: &Client,
    id: &str,
    next: &mut u64,
    last_seq: u64,
    out: &mut Out,
    bar: &ProgressBar,
) -> Result<(), Failed> {
    let range = format!("{}/events?from_seq={next}&to_seq={last_seq}", path_of(id));
    let mut lines = client.lines(&range, NDJSON).await.map_err(Failed::Asking)?;
    while let Some(line) = lines.next(RANGE_PATIENCE).await.map_err(Failed::Asking)? {
        out.line(&line).map_err(Failed::Writing)?;
        *next += 1;
        bar.inc(1);
    }
    Ok(())
}

/// A file, or standard output.
struct Out(Option<(BufWriter<File>, PathBuf)>);

impl Out {
    fn to(path: Option<&PathBuf>) -> Result<Out, String> {
        let Some(path) = path else { return Ok(Out(None)) };
        let file = File::create(path).map_err(|error| format!("{}: {error}", path.display()))?;
        Ok(Out(Some((BufWriter::new(file), path.clone()))))
    }

    fn line(&mut self, line: &[u8]) -> Result<(), String> {
        match &mut self.0 {
            None => show::put_line(line),
            Some((file, path)) => {
                let written = file.write_all(line).and_then(|()| file.write_all(b"\n"));
                written.map_err(|error| format!("{}: {error}", path.display()))
            }
        }
    }

    fn finish(self) -> Result<(), String> {
        match self.0 {
            None => Ok(()),
            Some((mut file, path)) => file.flush().map_err(|error| format!("{}: {error}", path.display())),
        }
    }
}

/// A line that begins a conversation.
#[derive(serde::Deserialize)]
struct Beginning<'a> {
    #[serde(borrow)]
    conversation: &'a RawValue,
}

pub(super) async fn import(args: &ImportArgs, config: &Config) -> Result<String, String> {
    let client = args.node.client(config)?;
    let (input, size) = open(args.file.as_deref())?;
    let bar = match size {
        Some(size) => progress::bytes("importing", size),
        None => progress::counting("importing", None),
    };
    let (conversations, Appended { events, known }) = read(&client, input, &bar, size.is_some()).await?;
    bar.finish_and_clear();
    Ok(match args.json {
        true => format!("{}\n", json!({"conversations": conversations, "events": events, "deduped": known})),
        false => format!(
            "imported {conversations} conversations with {events} events, of which {known} were there already\n"
        ),
    })
}

async fn read(
    client: &Client,
    input: Box<dyn BufRead>,
    bar: &ProgressBar,
    in_bytes: bool,
) -> Result<(u64, Appended), String> {
    let (mut conversations, mut sum) = (0, Appended::default());
    let mut current: Option<(Batches, bool)> = None;
    for (number, line) in (1..).zip(input.split(b'\n')) {
        let at = |error: String| format!("line {number}: {error}");
        let line = line.map_err(|error| at(error.to_string()))?;
        bar.inc(if in_bytes { line.len() as u64 + 1 } else { 1 });
        if line.trim_ascii().is_empty() {
            continue;
        }
        if let Ok(Beginning { conversation }) = serde_json::from_slice(&line) {
            end(client, current.take(), &mut sum).await?;
            conversations += 1;
            current = Some(begin(client, conversation.get()).await.map_err(at)?);
        } else {
            let (batches, _) = current.as_mut().ok_or_else(|| at("no conversation was begun".to_owned()))?;
            batches.add(&line).await.map_err(at)?;
        }
    }
    end(client, current, &mut sum).await?;
    Ok((conversations, sum))
}

/// Creates the conversation. The flag says whether it is to be deleted in the end.
async fn begin<'a>(client: &'a Client, described: &str) -> Result<(Batches<'a>, bool), String> {
    let mut described: Map<String, Value> =
        serde_json::from_str(described).map_err(|error| error.to_string())?;
    let id = described["id"].as_str().ok_or("the conversation has no id")?.to_owned();
    let is_deleted = described.get("status").is_some_and(|status| status == "tombstoned");
    described.retain(|member, _| SETTINGS.contains(&member.as_str()));
    let body = Value::from(described).to_string();
    match client.patiently(Method::PUT, &path_of(&id), body.into()).await {
        Ok(_) => {}
        // An earlier attempt has come to the end of it. Should events be missing, they are refused as well.
        Err(ClientError::Refused { status: 409, .. }) if is_deleted => {}
        Err(error) => return Err(error.into()),
    }
    Ok((Batches::new(client, &id), is_deleted))
}

async fn end(
    client: &Client,
    current: Option<(Batches<'_>, bool)>,
    sum: &mut Appended,
) -> Result<(), String> {
    let Some((batches, is_deleted)) = current else { return Ok(()) };
    let id = batches.id().to_owned();
    let done = batches.finish().await?;
    sum.events += done.events;
    sum.known += done.known;
    if is_deleted {
        client.patiently(Method::DELETE, &path_of(&id), Bytes::new()).await?;
    }
    Ok(())
}
