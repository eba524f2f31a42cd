//! The command line: what can be asked of the binary, and what it prints when asked wrongly.
//!
//! Exit codes: 0 done, 1 failed, 2 asked wrongly (a bad option or a bad setting), with one line on
//! standard error. Standard output carries answers only; logs go to standard error.

mod advise;
mod archive;
mod client;
mod cluster;

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use self::advise::AdviseArgs;
use self::archive::{ArchiveArgs, RestoreArgs};
use self::cluster::ClusterArgs;
use crate::config::{self, Config, ConfigError, ProcessEnvironment, Settings};
use crate::{logging, server};

/// Asked wrongly: what `EX_USAGE` is elsewhere, and what clap answers.
const EXIT_USAGE: u8 = 2;

/// A replicated conversation log: append, window, compact, replay, stream.
///
/// Every setting is a FASTPACA_* variable or a key of the file given by --config; the environment wins.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 100)]
pub struct Cli {
    /// Read settings from this TOML file.
    #[arg(long, global = true, value_name = "PATH")]
    config: Option<PathBuf>,

    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the server (the default).
    Serve,
    /// Print the settings in force, where each comes from, with secrets masked.
    Config {
        /// Print the commented sample file with every setting instead.
        #[arg(long)]
        sample: bool,
    },
    /// Bring the schema of the archive in FASTPACA_POSTGRES_URL up to date.
    Migrate,
    /// Compare a cluster with its archive. Uses the first of FASTPACA_API_KEY.
    Archive(ArchiveArgs),
    /// Fill an empty cluster from an archive. Uses the first of FASTPACA_API_KEY.
    Restore(RestoreArgs),
    /// Look at a cluster, and change who is in it. Uses the first of FASTPACA_API_KEY.
    Cluster(ClusterArgs),
    /// Size, scale and watch a system: what a workload needs, and whether a running one is fine.
    Advise(AdviseArgs),
}

/// Runs what the command line asks for.
pub fn run(cli: Cli) -> ExitCode {
    let settings = || Settings::load(cli.config.as_deref(), &ProcessEnvironment);
    match cli.command {
        None | Some(Command::Serve) => match settings().and_then(Settings::prepare) {
            Ok(config) => serve(config),
            Err(error) => refuse(&error),
        },
        Some(Command::Config { sample: true }) => answer(&config::sample()),
        Some(Command::Config { sample: false }) => match settings() {
            Ok(settings) => answer(&settings.render()),
            Err(error) => refuse(&error),
        },
        Some(Command::Migrate) => match settings() {
            Ok(settings) => ask(archive::migrate(settings.config())),
            Err(error) => refuse(&error),
        },
        Some(Command::Archive(args)) => match settings() {
            Ok(settings) => ask(archive::run(&args, settings.config())),
            Err(error) => refuse(&error),
        },
        Some(Command::Restore(args)) => match settings() {
            Ok(settings) => ask(archive::restore(&args, settings.config())),
            Err(error) => refuse(&error),
        },
        Some(Command::Cluster(args)) => match settings() {
            Ok(settings) => ask(cluster::run(&args, settings.config())),
            Err(error) => refuse(&error),
        },
        Some(Command::Advise(args)) => advise::run(&args, &settings),
    }
}

/// Waits for an answer and prints it.
fn ask<E: std::fmt::Display>(answering: impl Future<Output = Result<String, E>>) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let asked = match &runtime {
        Ok(runtime) => runtime.block_on(answering).map_err(|error| error.to_string()),
        Err(error) => Err(error.to_string()),
    };
    match asked {
        Ok(text) => answer(&text),
        Err(error) => {
            complain(&error);
            ExitCode::FAILURE
        }
    }
}

fn serve(config: Config) -> ExitCode {
    logging::init(&config);
    server::run(config)
}

/// A reader that went away (`fastpaca config | head -1`) is no failure.
fn answer(text: &str) -> ExitCode {
    match io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => ExitCode::FAILURE,
        _ => ExitCode::SUCCESS,
    }
}

fn refuse(error: &ConfigError) -> ExitCode {
    complain(error);
    ExitCode::from(EXIT_USAGE)
}

fn complain(error: &dyn std::fmt::Display) {
    // Nothing is left to be done when standard error is gone as well.
    let _ = writeln!(io::stderr(), "fastpaca: {error}");
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn serve_is_the_default_and_the_file_may_be_named_on_either_side() {
        assert!(Cli::parse_from(["fastpaca"]).command.is_none());
        let cli = Cli::parse_from(["fastpaca", "serve", "--config", "a.toml"]);
        assert_eq!(cli.config, Cli::parse_from(["fastpaca", "--config", "a.toml", "serve"]).config);
    }
}
