//! `fastpaca events` and `fastpaca tail`: the log, and what is said from now on.

use std::time::Duration;

use clap::Args;
use http::StatusCode;
use serde_json::value::RawValue;
use tokio::time::sleep;

use super::answers::{Conversation, parse};
use super::client::{Client, ClientError, NodeArgs, path_of};
use super::{Failed, show};
use crate::config::Config;

pub(super) const NDJSON: &str = "application/x-ndjson";
const EVENT_STREAM: &str = "text/event-stream";
/// Longest wait for the next bytes of a range of the log.
pub(super) const RANGE_PATIENCE: Duration = Duration::from_secs(30);
/// Longest silence of a stream, which says something every 30 s.
const STREAM_PATIENCE: Duration = Duration::from_secs(90);
/// How long a stream that broke off is left alone, at first and at most.
const RECONNECT: [Duration; 2] = [Duration::from_millis(100), Duration::from_secs(5)];

#[derive(Debug, Args)]
pub(super) struct EventsArgs {
    #[command(flatten)]
    node: NodeArgs,
    /// Name of the conversation.
    id: String,
    /// First event [default: the first there is].
    #[arg(long, value_name = "SEQ")]
    from: Option<u64>,
    /// Last event [default: the last there is].
    #[arg(long, value_name = "SEQ")]
    to: Option<u64>,
    /// Only the newest so many.
    #[arg(long, value_name = "COUNT", conflicts_with = "from", value_parser = clap::value_parser!(i64).range(1..))]
    last: Option<i64>,
    /// Print one JSON object a line.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(super) struct TailArgs {
    #[command(flatten)]
    node: NodeArgs,
    /// Name of the conversation.
    id: String,
    /// Begin with the newest so many.
    #[arg(short = 'n', long, value_name = "COUNT", default_value_t = 10, value_parser = clap::value_parser!(i64).range(0..))]
    lines: i64,
    /// Go on with every event as it comes. What comes while the server is away is made up for.
    #[arg(short, long)]
    follow: bool,
    /// Print one JSON object a line.
    #[arg(long)]
    json: bool,
}

pub(super) async fn events(args: &EventsArgs, config: &Config) -> Result<String, Failed> {
    let from =
        args.last.map_or(args.from.map_or(String::from("1"), |from| from.to_string()), |n| format!("-{n}"));
    let to = args.to.map(|to| format!("&to_seq={to}")).unwrap_or_default();
    print_range(&args.node.client(config)?, &args.id, &format!("from_seq={from}{to}"), args.json).await?;
    Ok(String::new())
}

pub(super) async fn tail(args: &TailArgs, config: &Config) -> Result<String, Failed> {
    let client = args.node.client(config)?;
    let described: Result<Conversation, _> = client.read(&path_of(&args.id)).await;
    let Conversation { version, last_seq, .. } = described.map_err(|error| error.about(&args.id))?;
    if args.lines > 0 && last_seq > 0 {
        let from = (last_seq + 1).saturating_sub(args.lines.unsigned_abs()).max(1);
        print_range(&client, &args.id, &format!("from_seq={from}&to_seq={last_seq}"), args.json).await?;
    }
    if args.follow {
        Follower { client: &client, id: &args.id, json: args.json, version, last_seq }.follow().await?;
    }
    Ok(String::new())
}

/// Prints a range of the log, which `query` says.
async fn print_range(client: &Client, id: &str, query: &str, json: bool) -> Result<(), String> {
    let path = format!("{}/events?{query}", path_of(id));
    let mut lines = client.lines(&path, NDJSON).await.map_err(|error| error.about(id))?;
    while let Some(line) = lines.next(RANGE_PATIENCE).await? {
        print_event(&line, &path, json)?;
    }
    Ok(())
}

/// Prints a line of what `path` answers.
fn print_event(event: &[u8], path: &str, json: bool) -> Result<(), String> {
    if json {
        return show::put_line(event);
    }
    show::put(show::message(&parse(event, path)?).as_bytes())
}

/// What is printed, and how far it has come.
struct Follower<'a> {
    client: &'a Client,
    id: &'a str,
    json: bool,
    /// Where the stream goes on.
    version: u64,
    /// The last event that was printed, or is older than what shall be.
    last_seq: u64,
}

/// A frame of the stream. What an event is made of stays as it came.
#[derive(serde::Deserialize)]
struct Frame<'a> {
    r#type: &'a str,
    version: u64,
    seq: Option<u64>,
    #[serde(borrow)]
    event: Option<&'a RawValue>,
}

impl Follower<'_> {
    /// Until the conversation is deleted.
    async fn follow(mut self) -> Result<(), String> {
        let mut pause = RECONNECT[0];
        loop {
            let before = self.version;
            match self.stream().await {
                Ok(true) => return Ok(()),
                Err(Broken::For(why)) => return Err(why),
                // A server that stops ends its streams, and others may be there already.
                Ok(false) | Err(Broken::Maybe) => {}
            }
            pause = if self.version > before { RECONNECT[0] } else { (pause * 2).min(RECONNECT[1]) };
            sleep(pause).await;
        }
    }

    /// One connection. True when nothing more will come.
    async fn stream(&mut self) -> Result<bool, Broken> {
        let path = format!("{}/stream?cursor={}", path_of(self.id), self.version);
        let mut lines = self.client.lines(&path, EVENT_STREAM).await.map_err(|error| self.broken(&error))?;
        if lines.status == StatusCode::NO_CONTENT {
            return Ok(true);
        }
        loop {
            let line = lines.next(STREAM_PATIENCE).await.map_err(|error| self.broken(&error))?;
            let Some(line) = line else { return Ok(false) };
            let Some(data) = line.strip_prefix(b"data:") else { continue };
            if self.take(data.trim_ascii()).await? {
                return Ok(true);
            }
        }
    }

    async fn take(&mut self, data: &[u8]) -> Result<bool, Broken> {
        let odd = |why: &dyn std::fmt::Display| Broken::For(format!("the server's stream: {why}"));
        let frame: Frame = serde_json::from_slice(data).map_err(|error| odd(&error))?;
        match (frame.r#type, frame.seq, frame.event) {
            ("event", Some(seq), Some(event)) if seq > self.last_seq => {
                if seq > self.last_seq + 1 {
                    self.make_up(seq - 1).await?;
                }
                print_event(event.get().as_bytes(), "the stream", self.json).map_err(Broken::For)?;
                self.last_seq = seq;
            }
            ("reset", ..) => return Err(odd(&"the conversation is not the one it was")),
            ("tombstoned", ..) => return Ok(true),
            _ => {}
        }
        self.version = self.version.max(frame.version);
        Ok(false)
    }

    /// Prints what a stream left out.
    async fn make_up(&self, to_seq: u64) -> Result<(), Broken> {
        let query = format!("from_seq={}&to_seq={to_seq}", self.last_seq + 1);
        print_range(self.client, self.id, &query, self.json).await.map_err(Broken::For)
    }

    fn broken(&self, error: &ClientError) -> Broken {
        if self.client.may_pass(error) { Broken::Maybe } else { Broken::For(error.to_string()) }
    }
}

/// Why a stream does not go on.
enum Broken {
    /// For good, and why.
    For(String),
    /// It may go on over another connection.
    Maybe,
}
