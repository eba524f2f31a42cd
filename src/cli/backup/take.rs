//! Taking a backup: every conversation, in the order of the listing, as far as it had come when it was reached.

use std::path::{Path, PathBuf};
use std::pin::pin;

use bytes::Bytes;
use futures_util::{TryStreamExt, stream};
use http::Method;

use super::file::{Header, Writer};
use super::walk::Walk;
use crate::cli::answers::Described;
use crate::cli::client::{Client, ClientError, encoded};
use crate::cli::listing::{Amount, Listing};
use crate::cli::progress;
use crate::files;
use crate::shards::{Cursor, Excerpt};

/// Conversations whose beginnings are fetched at once; an excerpt of each is in memory.
const AT_ONCE: usize = 8;

/// Answers what to print.
pub(super) async fn run(client: &Client, path: &Path) -> Result<String, String> {
    if path.exists() {
        return Err(format!("{}: exists already, and is left as it is", path.display()));
    }
    let status: serde_json::Value = client.read("/v1/cluster").await?;
    let cluster = status["cluster_id"].as_str().ok_or("the node belongs to no cluster yet")?;
    let partial = PathBuf::from(format!("{}.partial", path.display()));
    let mut walk = Walk::default();
    let mut writer = Writer::open(&partial, &Header::new(cluster), &mut walk)?;
    let resumed = walk.sum().versions > 0;
    fetch(client, &mut walk, &mut writer).await?;
    let sum = walk.sum();
    let bytes = writer.finish(sum)?;
    files::rename(&partial, path).map_err(|error| format!("{}: {error}", path.display()))?;
    let went_on = if resumed { ", going on with what was there" } else { "" };
    Ok(format!("{}: {sum}, {bytes} bytes{went_on}\n", path.display()))
}

async fn fetch(client: &Client, walk: &mut Walk, writer: &mut Writer) -> Result<(), String> {
    let total =
        if progress::is_seen() { Some(Amount::of(Listing::of(client)).await?.versions) } else { None };
    let bar = progress::counting("backing up", total);
    bar.set_position(walk.sum().versions);
    let (last_id, next) = walk.position();
    let last_id = last_id.map(str::to_owned);
    if let (Some(id), Some(next)) = (&last_id, next) {
        whole(client, id, Some(next), walk, writer).await?;
    }
    let pages = stream::try_unfold(Listing::of(client).after(last_id.as_deref()), async |mut listing| {
        Ok::<_, ClientError>(listing.next().await?.map(|page| (page, listing)))
    });
    let ids = pages.map_ok(|page| stream::iter(page.into_iter().map(Ok))).try_flatten();
    let beginnings = ids.map_ok(async |Described { conversation, .. }| {
        excerpt(client, &conversation.id, Cursor::default()).await
    });
    let mut beginnings = pin!(beginnings.try_buffered(AT_ONCE));
    while let Some(beginning) = beginnings.try_next().await? {
        let beginning = keep(&beginning, walk, writer)?;
        whole(client, &beginning.id, beginning.next, walk, writer).await?;
        bar.set_position(walk.sum().versions);
    }
    bar.finish_and_clear();
    Ok(())
}

/// Fetches what is left of a conversation.
async fn whole(
    client: &Client,
    id: &str,
    mut next: Option<Cursor>,
    walk: &mut Walk,
    writer: &mut Writer,
) -> Result<(), String> {
    while let Some(from) = next {
        next = keep(&excerpt(client, id, from).await?, walk, writer)?.next;
    }
    Ok(())
}

fn keep(bytes: &Bytes, walk: &mut Walk, writer: &mut Writer) -> Result<Excerpt, String> {
    let excerpt = Excerpt::decode(bytes)?;
    walk.take(&excerpt)?;
    writer.add(bytes)?;
    Ok(excerpt)
}

async fn excerpt(client: &Client, id: &str, from: Cursor) -> Result<Bytes, ClientError> {
    let Cursor { version, key, keys } = from;
    let path = format!("/internal/history?id={}&version={version}&key={key}&keys={keys}", encoded(id));
    client.patiently(Method::GET, &path, Bytes::new()).await
}
