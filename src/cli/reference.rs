//! `fastpaca completions` and `fastpaca man`: the command line described for shells and readers, from the same
//! definitions that parse it.

use std::fs;
use std::path::PathBuf;

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use super::Cli;

const NAME: &str = "fastpaca";

#[derive(Debug, Args)]
pub(super) struct CompletionsArgs {
    shell: Shell,
}

#[derive(Debug, Args)]
pub(super) struct ManArgs {
    /// Into this directory, which must exist.
    #[arg(long, value_name = "DIR", default_value = ".")]
    out: PathBuf,
}

/// What the shell has to read.
pub(super) fn completions(args: &CompletionsArgs) -> String {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), NAME, &mut script);
    String::from_utf8_lossy(&script).into_owned()
}

/// Answers which files were written.
pub(super) fn man(args: &ManArgs) -> Result<String, String> {
    let failed = |error: std::io::Error| format!("{}: {error}", args.out.display());
    clap_mangen::generate_to(Cli::command(), &args.out).map_err(failed)?;
    let mut pages = Vec::new();
    for entry in fs::read_dir(&args.out).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name().to_string_lossy().into_owned();
        if name.starts_with(NAME) && name.ends_with(".1") {
            pages.push(format!("{name}\n"));
        }
    }
    pages.sort_unstable();
    Ok(pages.concat())
}

/// The reference of all commands: what `docs/cli.md` shows.
pub(super) fn markdown() -> String {
    let mut text = String::new();
    let mut root = Cli::command();
    root.build();
    for command in root.get_subcommands().filter(|command| command.get_name() != "help") {
        section(command, NAME, &mut text);
    }
    text
}

fn section(command: &clap::Command, parent: &str, text: &mut String) {
    let name = format!("{parent} {}", command.get_name());
    let below: Vec<&clap::Command> =
        command.get_subcommands().filter(|command| command.get_name() != "help").collect();
    if below.is_empty() || command.get_positionals().next().is_some() {
        let about = command.get_about().map(ToString::to_string).unwrap_or_default();
        let usage = command.clone().render_usage().to_string();
        text.push_str(&format!(
            "\n### `{name}`\n\n{about}.\n\n    {}\n",
            usage.trim_start_matches("Usage: ")
        ));
        let rows: String = command.get_arguments().filter_map(row).collect();
        if !rows.is_empty() {
            text.push_str(&format!("\n| argument | meaning |\n| --- | --- |\n{rows}"));
        }
    }
    below.iter().for_each(|command| section(command, &name, text));
}

/// What every command has in common is left out.
fn row(argument: &clap::Arg) -> Option<String> {
    let id = argument.get_id().as_str();
    if ["url", "ca", "config", "help"].contains(&id) {
        return None;
    }
    let help = argument.get_help().map(ToString::to_string).unwrap_or_default().replace('|', "\\|");
    let default: Vec<_> = argument.get_default_values().iter().map(|value| value.to_string_lossy()).collect();
    let takes_value = argument.get_action().takes_values();
    let default = if takes_value && !default.is_empty() {
        format!(" [default: {}]", default.join(", "))
    } else {
        String::new()
    };
    let short = argument.get_short().map_or_else(String::new, |short| format!("-{short}, "));
    let shown = format!("{short}{argument}").replace('|', "\\|");
    Some(format!("| `{shown}` | {help}{default} |\n"))
}
