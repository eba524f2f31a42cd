//! `fastpaca health`: whether a node serves, told by the exit code; for containers and supervisors.

use std::time::Duration;

use clap::Args;
use http::Method;

use super::Failed;
use super::client::NodeArgs;
use crate::config::Config;

/// A node that takes longer is not well.
const ANSWER_MAX: Duration = Duration::from_secs(3);

#[derive(Debug, Args)]
pub(super) struct HealthArgs {
    #[command(flatten)]
    node: NodeArgs,

    /// Ask only whether the process serves, not whether the node should get traffic.
    #[arg(long)]
    live: bool,
}

/// Answers what to print; an error says why the node is not well.
pub(super) async fn run(args: &HealthArgs, config: &Config) -> Result<String, Failed> {
    // Health needs no key.
    let client = args.node.client(config)?.without_key().within(ANSWER_MAX);
    let path = if args.live { "/health/live" } else { "/health/ready" };
    client.ask(Method::GET, path).await?;
    Ok("ok\n".to_owned())
}
