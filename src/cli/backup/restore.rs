//! Restoring a backup into a cluster that is empty, or holds nothing but what an earlier attempt at the same left there.

use std::path::Path;
use std::sync::Arc;

use http::Method;
use serde_json::Value;
use tokio::sync::mpsc;
use tokio::task::{JoinError, JoinSet};
use tokio::time::sleep;

use super::file::Reader;
use super::walk::Walk;
use crate::cli::answers::Described;
use crate::cli::client::{ATTEMPTS_APART, ATTEMPTS_MAX, Client, ClientError, encoded};
use crate::cli::listing::Listing;
use crate::cli::progress;
use crate::conversation::ConversationId;
use crate::shards::placement::group_of;
use crate::shards::{Excerpt, RestoringCommand, digest_of_digests};

/// Conversations restored at once: what waits for one disk shares its flushes.
const WORKERS: usize = 16;
/// Commands that wait for a worker; each is far below a MiB, unless it is a single message or summary that is larger.
const WAITING: usize = 2;

/// Something to write, to a conversation.
struct Job {
    id: String,
    command: RestoringCommand,
    /// Nothing follows for this conversation.
    is_last: bool,
}

/// What an excerpt asks for, in order.
fn jobs(excerpt: Excerpt) -> impl Iterator<Item = Job> {
    let Excerpt { id, commands, next } = excerpt;
    let count = commands.len();
    (1..).zip(commands).map(move |(at, command)| {
        let is_last = next.is_none() && at == count;
        Job { id: id.clone(), command, is_last }
    })
}

/// Answers what to print.
pub(super) async fn run(client: Client, path: &Path) -> Result<String, String> {
    let client = Arc::new(client);
    // A bad backup, or one that is not of this cluster, is refused before anything of it is written.
    let is_empty = prove(&client, path).await?;
    let (mut senders, mut workers) = (Vec::new(), JoinSet::new());
    for _ in 0..WORKERS {
        let (sender, receiver) = mpsc::channel(WAITING);
        senders.push(sender);
        workers.spawn(work(client.clone(), receiver, is_empty));
    }
    let mut reader = Reader::open(path)?;
    let bar = progress::bytes("restoring", reader.size());
    let mut walk = Walk::default();
    'all: while let Some(excerpts) = reader.next(&mut walk)? {
        for excerpt in excerpts {
            let id = ConversationId::parse(&excerpt.id).map_err(|error| error.to_string())?;
            let sender = &senders[usize::from(group_of(&id)) % WORKERS];
            for job in jobs(excerpt) {
                if sender.send(job).await.is_err() {
                    // The worker has ended, and tells why.
                    break 'all;
                }
            }
        }
        bar.set_position(reader.offset());
    }
    drop(senders);
    while let Some(worked) = workers.join_next().await {
        ended(worked)?;
    }
    bar.finish_and_clear();
    Ok(format!("restored {}\n", walk.sum()))
}

/// Reads all of the backup, and compares what the cluster holds with it. True when the cluster is empty; an error when it
/// holds conversations that are not in the backup, or other versions of those that are.
async fn prove(client: &Arc<Client>, path: &Path) -> Result<bool, String> {
    let mut reader = Reader::open(path)?;
    let bar = progress::bytes("verifying", reader.size());
    let mut listing = Listing::of(client);
    let mut there = listing.next().await?.unwrap_or_default().into_iter();
    let is_empty = there.len() == 0;
    let mut expected = id_of(there.next());
    let (mut present, mut comparing) = (None, JoinSet::new());
    let mut differs: Result<(), String> = Ok(());
    let mut walk = Walk::default();
    while let Some(excerpts) = reader.next(&mut walk)? {
        for excerpt in excerpts {
            // Both come in the order of ids.
            if expected.as_ref() == Some(&excerpt.id) {
                let mut next = there.next();
                if next.is_none() {
                    there = listing.next().await?.unwrap_or_default().into_iter();
                    next = there.next();
                }
                expected = id_of(next);
                present = Some(excerpt.id.clone());
            }
            if present.as_ref() != Some(&excerpt.id) {
                continue;
            }
            for job in jobs(excerpt) {
                if comparing.len() == WORKERS
                    && let Some(compared) = comparing.join_next().await
                {
                    differs = differs.and(ended(compared));
                }
                let client = client.clone();
                comparing.spawn(async move { is_there(&client, &job).await.map(drop) });
            }
        }
        bar.set_position(reader.offset());
    }
    while let Some(compared) = comparing.join_next().await {
        differs = differs.and(ended(compared));
    }
    bar.finish_and_clear();
    match expected {
        Some(id) => {
            Err(format!("the cluster holds {id}, which the backup does not: restore into an empty one"))
        }
        None => differs.map(|()| is_empty),
    }
}

/// What came of a task; one that panicked failed.
fn ended(task: Result<Result<(), String>, JoinError>) -> Result<(), String> {
    task.map_err(|error| error.to_string())?
}

fn id_of(described: Option<Described>) -> Option<String> {
    described.map(|described| described.conversation.id)
}

/// Writes what comes, in its order.
async fn work(client: Arc<Client>, mut jobs: mpsc::Receiver<Job>, is_empty: bool) -> Result<(), String> {
    while let Some(job) = jobs.recv().await {
        if is_empty || !is_there(&client, &job).await? {
            let sent = send(&client, &job.command, is_empty).await;
            sent.map_err(|error| format!("{}: {error}", job.id))?;
        }
    }
    Ok(())
}

/// Whether an earlier attempt wrote these versions; an error, which names the conversation, if the cluster has others.
async fn is_there(client: &Client, job: &Job) -> Result<bool, String> {
    compare(client, job).await.map_err(|error| format!("{}: {error}", job.id))
}

async fn compare(client: &Client, Job { id, command, is_last }: &Job) -> Result<bool, String> {
    let first = command.after.map_or(0, |after| after + 1);
    let Some((version, mut digests)) = digests(client, id, first, command.upto).await? else {
        return Ok(false);
    };
    if command.after.is_some_and(|after| version <= after) {
        return Ok(false);
    }
    let others =
        || format!("it is at version {version} in the cluster, with other versions than in the backup");
    if version < command.upto || *is_last && version > command.upto {
        return Err(others());
    }
    while (digests.len() as u64) < command.upto + 1 - first {
        let next = first + digests.len() as u64;
        let more = self::digests(client, id, next, command.upto).await?;
        digests.extend(more.filter(|(_, more)| !more.is_empty()).ok_or_else(others)?.1);
    }
    if digest_of_digests(digests) == command.digest() { Ok(true) } else { Err(others()) }
}

/// The version of a conversation, and digests of some of its versions; `None` if it does not exist.
async fn digests(
    client: &Client,
    id: &str,
    first: u64,
    upto: u64,
) -> Result<Option<(u64, Vec<u128>)>, String> {
    let path = format!("/internal/versions?id={}&first={first}&limit={}", encoded(id), upto + 1 - first);
    let page: Value = match client.read(&path).await {
        Err(ClientError::Refused { status: 404, .. }) => return Ok(None),
        page => page?,
    };
    let digest = |digest: &Value| u128::from_str_radix(digest.as_str()?, 16).ok();
    let digests = page["digests"].as_array().and_then(|digests| digests.iter().map(digest).collect());
    let (version, digests) = page["version"].as_u64().zip(digests).ok_or("the node answers no digests")?;
    Ok(Some((version, digests)))
}

async fn send(client: &Client, command: &RestoringCommand, is_empty: bool) -> Result<(), String> {
    let mut attempts = 1;
    loop {
        match client.exchange(Method::POST, "/internal/restore", command.command.clone()).await {
            Ok(_) => return Ok(()),
            Err(error) if attempts < ATTEMPTS_MAX && client.may_pass(&error) => {}
            // An attempt before this one was applied.
            Err(ClientError::Refused { status: 409, current_version, .. })
                if (attempts > 1 || !is_empty) && current_version == Some(command.upto) =>
            {
                return Ok(());
            }
            Err(error) => return Err(error.into()),
        }
        attempts += 1;
        sleep(ATTEMPTS_APART).await;
    }
}
