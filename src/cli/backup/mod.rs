//! `fastpaca backup` and `fastpaca restore`: everything a cluster holds, in one file, and a cluster made of it.
//!
//! Reading order: `file` is what is on disk, `walk` what its contents must add up to, `take` writes, `restore` reads.

mod file;
mod restore;
mod take;
mod walk;

use std::path::{Path, PathBuf};

use clap::{ArgGroup, Args, Subcommand};

use self::file::Reader;
use self::walk::{Sum, Walk};
use super::client::NodeArgs;
use super::{Failed, progress};
use crate::config::Config;

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub(super) struct BackupArgs {
    #[command(flatten)]
    node: NodeArgs,
    /// The file to write. While it is written it is called PATH.partial; the same command again goes on with that.
    #[arg(required = true)]
    path: Option<PathBuf>,
    #[command(subcommand)]
    command: Option<BackupCommand>,
}

#[derive(Debug, Subcommand)]
enum BackupCommand {
    /// Read a whole backup and check it; asks no node.
    Verify { path: PathBuf },
}

#[derive(Debug, Args)]
#[command(group(ArgGroup::new("source").required(true).args(["from_backup", "from_postgres"])))]
pub(super) struct RestoreArgs {
    #[command(flatten)]
    node: NodeArgs,
    /// From this file, which `fastpaca backup` wrote.
    #[arg(long, value_name = "PATH")]
    from_backup: Option<PathBuf>,
    /// From the archive in FASTPACA_POSTGRES_URL.
    #[arg(long)]
    from_postgres: bool,
    /// Which cluster's archive, when the database holds several.
    #[arg(long, value_name = "ID", value_parser = super::archive::cluster_id, requires = "from_postgres")]
    cluster: Option<u128>,
}

/// Answers what to print.
pub(super) async fn run(args: &BackupArgs, config: &Config) -> Result<String, Failed> {
    Ok(match (&args.command, &args.path) {
        (Some(BackupCommand::Verify { path }), _) => verify(path)?,
        (None, Some(path)) => take::run(&args.node.client(config)?, path).await?,
        (None, None) => return Err("PATH is missing".to_owned().into()),
    })
}

/// Answers what to print.
pub(super) async fn restore(args: &RestoreArgs, config: &Config) -> Result<String, Failed> {
    let client = args.node.client(config)?;
    Ok(match &args.from_backup {
        Some(path) => restore::run(client, path).await?,
        None => super::archive::restore(client, args.cluster, config).await?,
    })
}

fn verify(path: &Path) -> Result<String, String> {
    let mut reader = Reader::open(path)?;
    let bar = progress::bytes("verifying", reader.size());
    let mut walk = Walk::default();
    while let Some(excerpts) = reader.next(&mut walk)? {
        drop(excerpts);
        bar.set_position(reader.offset());
    }
    bar.finish_and_clear();
    let (header, sum) = (reader.header(), walk.sum());
    Ok(format!(
        "{} is whole: {sum}, of cluster {}, begun at {}\n",
        path.display(),
        header.cluster_id,
        header.begun_at
    ))
}

impl std::fmt::Display for Sum {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        let Sum { conversations, versions, keys } = self;
        write!(f, "{conversations} conversations with {versions} versions and {keys} idempotency keys")
    }
}
