//! The command line: what can be asked of the binary, and what it prints when asked wrongly.
//!
//! Exit codes: 0 done, 1 failed, 2 asked wrongly (a bad option or a bad setting), with one line on
//! standard error. Standard output carries answers only; logs go to standard error.

mod advise;
mod answers;
mod append;
mod archive;
mod backup;
mod batches;
mod client;
mod cluster;
mod conversations;
mod events;
mod health;
mod listing;
mod progress;
mod reference;
mod run_as;
mod show;
mod transfer;

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use self::advise::AdviseArgs;
use self::append::AppendArgs;
use self::archive::ArchiveArgs;
use self::backup::{BackupArgs, RestoreArgs};
use self::client::ClientError;
use self::cluster::ClusterArgs;
use self::conversations::{CompactArgs, ListArgs, PutArgs, WindowArgs};
use self::events::{EventsArgs, TailArgs};
use self::health::HealthArgs;
use self::reference::{CompletionsArgs, ManArgs};
use self::transfer::{ExportArgs, ImportArgs};
use crate::config::{self, ConfigError, ProcessEnvironment, Settings};
use crate::{logging, server, trace};

/// Asked wrongly: what `EX_USAGE` is elsewhere, and what clap answers.
const EXIT_USAGE: u8 = 2;
const EXIT_FAILURE: u8 = 1;

/// A replicated conversation log: append, window, compact, replay, stream.
///
/// Every setting is a FASTPACA_* variable or a key of the file given by --config; the environment wins. Commands that ask
/// a node send the first of FASTPACA_API_KEY.
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
    /// Create a conversation, or change its settings.
    Put(PutArgs),
    /// Append a message to a conversation, or many as lines of JSON.
    Append(AppendArgs),
    /// Print events of a conversation.
    Events(EventsArgs),
    /// Print the newest events of a conversation, and with -f those that come.
    Tail(TailArgs),
    /// Print what a conversation's policy gives to the model.
    Window(WindowArgs),
    /// Replace a range of the window by a summary.
    Compact(CompactArgs),
    /// List conversations: id, status, version, events, last change.
    List(ListArgs),
    /// Write conversations with their events as lines of JSON.
    Export(ExportArgs),
    /// Append what was exported to the conversations of its ids. May be repeated after a failure.
    Import(ImportArgs),
    /// Ask whether a node is ready: exit code 0, or 1 with the reason. Made for container health checks.
    Health(HealthArgs),
    /// Bring the schema of the archive in FASTPACA_POSTGRES_URL up to date.
    Migrate,
    /// Compare a cluster with its archive.
    Archive(ArchiveArgs),
    /// Write everything that a cluster holds to a file, while it serves.
    Backup(BackupArgs),
    /// Fill an empty cluster from a backup or an archive.
    Restore(RestoreArgs),
    /// Look at a cluster, and change who is in it.
    Cluster(ClusterArgs),
    /// Size, scale and watch a system: what a workload needs, and whether a running one is fine.
    Advise(AdviseArgs),
    /// Print completions for a shell.
    Completions(CompletionsArgs),
    /// Write the manual pages, one a command.
    Man(ManArgs),
}

/// The reference of all commands, as `docs/cli.md` has it.
pub fn reference() -> String {
    reference::markdown()
}

/// Runs what the command line asks for.
pub fn run(cli: Cli) -> ExitCode {
    let settings = || Settings::load(cli.config.as_deref(), &ProcessEnvironment);
    match cli.command.unwrap_or(Command::Serve) {
        Command::Serve => match settings() {
            Ok(settings) => serve(settings),
            Err(error) => refuse(&error),
        },
        Command::Config { sample: true } => answer(&config::sample()),
        Command::Advise(args) => advise::run(&args, &settings),
        Command::Completions(args) => answer(&reference::completions(&args)),
        Command::Man(args) => ended(reference::man(&args).map_err(Failed::from)),
        command => match settings() {
            Ok(settings) => ask_with(command, &settings),
            Err(error) => refuse(&error),
        },
    }
}

/// Commands that look at the settings, of which most ask a node.
fn ask_with(command: Command, settings: &Settings) -> ExitCode {
    let config = settings.config();
    match command {
        Command::Config { .. } => answer(&settings.render()),
        Command::Put(args) => ask(conversations::put(&args, config)),
        Command::Append(args) => ask(append::run(&args, config)),
        Command::Events(args) => ask(events::events(&args, config)),
        Command::Tail(args) => ask(events::tail(&args, config)),
        Command::Window(args) => ask(conversations::window(&args, config)),
        Command::Compact(args) => ask(conversations::compact(&args, config)),
        Command::List(args) => ask(conversations::list(&args, config)),
        Command::Export(args) => ask(transfer::export(&args, config)),
        Command::Import(args) => ask(transfer::import(&args, config)),
        Command::Health(args) => ask(health::run(&args, config)),
        Command::Migrate => ask(archive::migrate(config)),
        Command::Archive(args) => ask(archive::run(&args, config)),
        Command::Backup(args) => ask(backup::run(&args, config)),
        Command::Restore(args) => ask(backup::restore(&args, config)),
        Command::Cluster(args) => ask(cluster::run(&args, config)),
        Command::Serve | Command::Advise(_) | Command::Completions(_) | Command::Man(_) => {
            unreachable!("they were run without settings, or look at them in their own way")
        }
    }
}

/// Why there is no answer: one line, and the exit code.
struct Failed {
    why: String,
    code: u8,
}

impl From<String> for Failed {
    fn from(why: String) -> Failed {
        Failed { why, code: EXIT_FAILURE }
    }
}

impl From<ClientError> for Failed {
    fn from(error: ClientError) -> Failed {
        error.to_string().into()
    }
}

/// Waits for an answer and prints it.
fn ask<E: Into<Failed>>(answering: impl Future<Output = Result<String, E>>) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    ended(match &runtime {
        Ok(runtime) => runtime.block_on(answering).map_err(Into::into),
        Err(error) => Err(error.to_string().into()),
    })
}

fn ended(result: Result<String, Failed>) -> ExitCode {
    match result {
        Ok(text) => answer(&text),
        Err(Failed { why, code }) => {
            complain(&why);
            ExitCode::from(code)
        }
    }
}

fn serve(settings: Settings) -> ExitCode {
    if let Err(error) = run_as::switch(settings.config()) {
        complain(&error);
        return ExitCode::FAILURE;
    }
    match settings.prepare() {
        Ok(config) => {
            logging::init(&config);
            if let Some(endpoint) = &config.otlp_endpoint {
                trace::start(endpoint, &config.node_name, config.otlp_sample_one_in);
            }
            server::run(config)
        }
        Err(error) => refuse(&error),
    }
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
