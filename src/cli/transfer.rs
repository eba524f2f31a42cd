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
use serde::Deserialize;
use serde_json::{json, value::RawValue};
use tokio::time::sleep;

use super::answers::Described;
use super::append::open;
use super::batches::{Appended, Batches};
use super::client::{ATTEMPTS_APART, ATTEMPTS_MAX, Client, ClientError, NodeArgs, path_of};
use super::events::{NDJSON, RANGE_PATIENCE};
use super::listing::{Amount, Listing};
use super::{Failed, progress, show};
use crate::config::Config;

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

pub(super) async fn export(args: &ExportArgs, config: &Config) -> Result<String, Failed> {
    let client = args.node.client(config)?;
    let mut out = Out::to(args.output.as_ref())?;
    if !args.ids.is_empty() {
        let bar = progress::counting("exporting", None);
        for id in &args.ids {
            let described = client.read(&path_of(id)).await.map_err(|error| error.about(id))?;
            one(&client, &described, &mut out, &bar).await?;
        }
        out.finish()?;
        return Ok(String::new());
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
            one(&client, &described, &mut out, &bar).await?;
        }
    }
    bar.finish_and_clear();
    out.finish()?;
    Ok(String::new())
}

/// One conversation as it was when it was described.
async fn one(client: &Client, described: &Described, out: &mut Out, bar: &ProgressBar) -> Result<(), String> {
    let beginning = format!("{{\"conversation\":{}}}", described.text);
    out.write(show::line(beginning.as_bytes()).as_bytes())?;
    let (id, last_seq) = (&described.conversation.id, described.conversation.last_seq);
    let (mut next, mut attempts) = (1, 0);
    while next <= last_seq {
        let before = next;
        match events(client, id, &mut next, last_seq, out, bar).await {
            Ok(()) => {}
            // It goes on behind the last line that came.
            Err(Broken::Asking(error)) if attempts < ATTEMPTS_MAX && client.may_pass(&error) => {
                attempts = if next > before { 0 } else { attempts + 1 };
                sleep(ATTEMPTS_APART).await;
            }
            Err(Broken::Asking(error)) => return Err(error.about(id).into()),
            Err(Broken::Writing(error)) => return Err(error),
        }
    }
    Ok(())
}

/// Which side an export failed on.
enum Broken {
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
) -> Result<(), Broken> {
    let range = format!("{}/events?from_seq={next}&to_seq={last_seq}", path_of(id));
    let mut lines = client.lines(&range, NDJSON).await.map_err(Broken::Asking)?;
    while let Some(line) = lines.next(RANGE_PATIENCE).await.map_err(Broken::Asking)? {
        out.write(&[&line[..], b"\n"].concat()).map_err(Broken::Writing)?;
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

    fn write(&mut self, line: &[u8]) -> Result<(), String> {
        match &mut self.0 {
            None => show::put(line),
            Some((file, path)) => {
                file.write_all(line).map_err(|error| format!("{}: {error}", path.display()))
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
#[derive(Deserialize)]
struct Beginning<'a> {
    #[serde(borrow)]
    conversation: &'a RawValue,
}

/// What an import takes over of a conversation itself, as it stands there.
#[derive(Deserialize)]
#[serde(expecting = "the conversation as an object")]
struct Settings<'a> {
    #[serde(borrow)]
    id: Option<&'a RawValue>,
    status: Option<&'a RawValue>,
    token_budget: Option<&'a RawValue>,
    trigger_ratio: Option<&'a RawValue>,
    policy: Option<&'a RawValue>,
    metadata: Option<&'a RawValue>,
}

impl Settings<'_> {
    fn id(&self) -> Result<String, String> {
        let id = self.id.and_then(|id| serde_json::from_str(id.get()).ok());
        id.ok_or_else(|| "the conversation has no `id` that is a string".to_owned())
    }

    fn is_deleted(&self) -> bool {
        self.status.is_some_and(|status| status.get() == "\"tombstoned\"")
    }

    /// The request that gives a conversation these settings.
    fn body(&self) -> String {
        let members = [
            ("token_budget", self.token_budget),
            ("trigger_ratio", self.trigger_ratio),
            ("policy", self.policy),
            ("metadata", self.metadata),
        ];
        let given = members.into_iter().filter_map(|(name, value)| Some(format!("\"{name}\":{}", value?)));
        format!("{{{}}}", given.collect::<Vec<_>>().join(","))
    }
}

pub(super) async fn import(args: &ImportArgs, config: &Config) -> Result<String, Failed> {
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
    let settings: Settings = serde_json::from_str(described).map_err(|error| error.to_string())?;
    let (id, is_deleted) = (settings.id()?, settings.is_deleted());
    match client.patiently(Method::PUT, &path_of(&id), settings.body().into()).await {
        Ok(_) => {}
        // An earlier attempt has come to the end of it. Should events be missing, they are refused as well.
        Err(ClientError::Refused { status: 409, .. }) if is_deleted => {}
        Err(error) => return Err(error.about(&id).into()),
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
