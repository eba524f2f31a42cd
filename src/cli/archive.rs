//! `fastpaca migrate`, `fastpaca archive` and `fastpaca restore --from-postgres`: the archive's schema, what it holds
//! beside what the cluster holds, and a cluster made of it.

use bytes::Bytes;
use clap::{Args, Subcommand};
use futures_util::future::BoxFuture;
use http::Method;
use serde_json::Value;
use tokio::time::sleep;

use super::client::{ATTEMPTS_APART, ATTEMPTS_MAX, Client, ClientError, NodeArgs, encoded};
use super::listing::Listing;
use super::{Failed, progress};
use crate::archive::{self, Log, Restored, Target};
use crate::config::Config;
use crate::conversation::ConversationId;
use crate::shards::DigestPage;

const NO_URL: &str = "FASTPACA_POSTGRES_URL is not set";

#[derive(Debug, Args)]
pub(super) struct ArchiveArgs {
    #[command(flatten)]
    node: NodeArgs,

    #[command(subcommand)]
    command: ArchiveCommand,
}

#[derive(Debug, Subcommand)]
enum ArchiveCommand {
    /// Compare the log with the archive in FASTPACA_POSTGRES_URL, and say what differs.
    Verify {
        /// Only this conversation.
        #[arg(long, value_name = "ID")]
        conversation: Option<String>,
    },
}

/// Brings the archive's schema up to date; answers what to print.
pub(super) async fn migrate(config: &Config) -> Result<String, String> {
    archive::migrate(postgres(config)?).await
}

/// Answers what to print, as an error when anything differs.
pub(super) async fn run(args: &ArchiveArgs, config: &Config) -> Result<String, Failed> {
    let ArchiveCommand::Verify { conversation } = &args.command;
    let only = conversation.as_deref().map(ConversationId::parse).transpose();
    let only = only.map_err(|error| error.to_string())?;
    let node = Node(args.node.client(config)?);
    let cluster = node.cluster().await?;
    let findings = archive::verify(postgres(config)?, cluster, &node, only.as_ref()).await?;
    match findings.different {
        0 => Ok(findings.to_string()),
        _ => Err(findings.to_string().trim_end().to_owned().into()),
    }
}

/// Fills the cluster of this node from the archive; answers what to print.
pub(super) async fn restore(
    client: Client,
    cluster: Option<u128>,
    config: &Config,
) -> Result<String, String> {
    let bar = progress::counting("restoring", None);
    let mut progress = |restored: Restored| bar.set_position(restored.versions);
    let restored = archive::restore(postgres(config)?, cluster, &Node(client), &mut progress).await?;
    bar.finish_and_clear();
    Ok(format!("restored {} conversations with {} versions\n", restored.conversations, restored.versions))
}

fn postgres(config: &Config) -> Result<&str, String> {
    config.postgres_url.as_ref().map(|url| url.expose()).ok_or_else(|| NO_URL.to_owned())
}

pub(super) fn cluster_id(text: &str) -> Result<u128, String> {
    uuid::Uuid::parse_str(text).map(|id| id.as_u128()).map_err(|error| error.to_string())
}

/// A node that is asked.
struct Node(Client);

impl Node {
    async fn cluster(&self) -> Result<u128, String> {
        let status = self.ask("/v1/cluster").await?;
        cluster_id(status["cluster_id"].as_str().ok_or("the node belongs to no cluster yet")?)
    }

    async fn ask(&self, path: &str) -> Result<Value, String> {
        self.0.ask(Method::GET, path).await.map_err(|error| error.to_string())
    }
}

impl Log for Node {
    fn ids_after<'a>(
        &'a self,
        after: Option<&'a ConversationId>,
    ) -> BoxFuture<'a, Result<Vec<ConversationId>, String>> {
        Box::pin(async move {
            let mut listing = Listing::of(&self.0).after(after.map(ConversationId::as_str));
            let page = listing.next().await?.unwrap_or_default();
            let ids = page.iter().map(|described| &described.conversation.id);
            ids.map(|id| ConversationId::parse(id).map_err(|error| error.to_string())).collect()
        })
    }

    fn digests<'a>(
        &'a self,
        id: &'a ConversationId,
        first: u64,
        limit: u64,
    ) -> BoxFuture<'a, Result<Option<DigestPage>, String>> {
        Box::pin(async move {
            let path = format!("/internal/versions?id={}&first={first}&limit={limit}", encoded(id.as_str()));
            let page = match self.0.ask(Method::GET, &path).await {
                Ok(page) => page,
                Err(ClientError::Refused { status: 404, .. }) => return Ok(None),
                Err(error) => return Err(error.to_string()),
            };
            let digest = |digest: &Value| u128::from_str_radix(digest.as_str()?, 16).ok();
            let digests: Option<Vec<u128>> =
                page["digests"].as_array().and_then(|d| d.iter().map(digest).collect());
            Ok(Some(DigestPage {
                version: page["version"].as_u64().ok_or("the node answers no version")?,
                archived_version: page["archived_version"].as_u64(),
                digests: digests.ok_or("the node answers no digests")?,
            }))
        })
    }
}

impl Target for Node {
    fn is_empty(&self) -> BoxFuture<'_, Result<bool, String>> {
        Box::pin(async { Ok(self.ids_after(None).await?.is_empty()) })
    }

    fn restore(&self, command: Bytes) -> BoxFuture<'_, Result<u64, String>> {
        Box::pin(async move {
            let mut attempts = 0;
            loop {
                attempts += 1;
                match self.0.send(Method::POST, "/internal/restore", command.clone()).await {
                    Ok(answer) => return answer["version"].as_u64().ok_or_else(|| "no version".to_owned()),
                    // It may have been applied: the next attempt then finds the conversation at its end.
                    Err(ClientError::Refused { status: 503, .. }) if attempts < ATTEMPTS_MAX => {}
                    Err(ClientError::Refused { status: 409, current_version: Some(version), .. })
                        if attempts > 1 =>
                    {
                        return Ok(version);
                    }
                    Err(error) => return Err(error.to_string()),
                }
                sleep(ATTEMPTS_APART).await;
            }
        })
    }
}
