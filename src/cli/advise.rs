//! `fastpaca advise`: reads what the rules need (options, files, nodes, Prometheus, this machine), and prints or writes what
//! they say.

mod calibrate;
mod check;
mod history;
mod machine;
mod sizing;

use std::fs;
use std::path::Path;
use std::process::ExitCode;

use clap::{Args, Subcommand, ValueEnum};

use self::calibrate::CalibrateArgs;
use self::check::CheckArgs;
use self::sizing::PlanArgs;
use super::{EXIT_USAGE, Failed};
use crate::advise::workload::BadInput;
use crate::advise::{RULES, alerts, document::Document, rule};
use crate::config::Settings;

#[derive(Debug, Args)]
pub(super) struct AdviseArgs {
    #[command(subcommand)]
    command: AdviseCommand,
}

#[derive(Debug, Subcommand)]
enum AdviseCommand {
    /// Say what a workload needs: machines, nodes, settings, limits, costs.
    Plan(Box<PlanArgs>),
    /// Look at running nodes and say whether to scale, and how. Uses the first of FASTPACA_API_KEY.
    ///
    /// Exit codes: 0 fine, 1 act soon, 2 act now (or asked wrongly), 3 could not tell.
    Check(CheckArgs),
    /// Print the thresholds as alert rules for Prometheus.
    Alerts {
        /// What Prometheus calls the nodes.
        #[arg(long, default_value = "fastpaca")]
        job: String,
        /// Where docs/operations.md lies, for the links to what to do.
        #[arg(long, default_value = "docs/operations.md", value_name = "URL")]
        runbooks: String,
    },
    /// Measure this machine for a minute, for plans that are about it.
    Calibrate(CalibrateArgs),
    /// Say where a figure comes from: a rule's formula, inputs and source.
    Explain {
        /// A rule, or an area such as `memory`; all of them when none is named.
        rule: Option<String>,
        #[arg(long, value_enum, default_value_t = Format::Text)]
        format: Format,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    Text,
    Json,
    Markdown,
}

/// What a command prints, and how it ends.
struct Outcome {
    text: String,
    code: ExitCode,
}

impl From<BadInput> for Failed {
    fn from(error: BadInput) -> Failed {
        Failed { why: error.to_string(), code: EXIT_USAGE }
    }
}

impl Outcome {
    fn done(text: String) -> Outcome {
        Outcome { text, code: ExitCode::SUCCESS }
    }
}

/// Runs it and prints what comes of it.
pub(super) fn run(
    args: &AdviseArgs,
    settings: &dyn Fn() -> Result<Settings, crate::config::ConfigError>,
) -> ExitCode {
    let load_settings = || settings().map_err(|error| Failed { why: error.to_string(), code: EXIT_USAGE });
    let outcome = match &args.command {
        AdviseCommand::Plan(args) => sizing::run(args),
        AdviseCommand::Check(args) => {
            load_settings().and_then(|settings| check::run(args, settings.config()))
        }
        AdviseCommand::Alerts { job, runbooks } => Ok(Outcome::done(alerts::rules(job, runbooks))),
        AdviseCommand::Calibrate(args) => {
            load_settings().and_then(|settings| calibrate::run(args, settings.config()))
        }
        AdviseCommand::Explain { rule, format } => explain(rule.as_deref(), *format),
    };
    match outcome {
        Ok(outcome) => {
            let printed = super::answer(&outcome.text);
            if printed == ExitCode::SUCCESS { outcome.code } else { printed }
        }
        Err(Failed { why, code }) => {
            super::complain(&why);
            ExitCode::from(code)
        }
    }
}

fn explain(id: Option<&str>, format: Format) -> Result<Outcome, Failed> {
    let document = rule::explain(RULES, id).ok_or_else(|| {
        let why = format!("{}: no such rule; `fastpaca advise explain` lists all", id.unwrap_or_default());
        Failed { why, code: EXIT_USAGE }
    })?;
    Ok(Outcome::done(match format {
        Format::Json => {
            let rules = RULES
                .iter()
                .filter(|rule| id.is_none_or(|id| rule.id == id || rule.id.split('.').next() == Some(id)));
            let rules = rules.map(|rule| {
                serde_json::json!({"id": rule.id, "title": rule.title, "formula": rule.formula, "inputs": rule.inputs,
                    "source": rule.source, "departs": rule.departs})
            });
            format!("{:#}\n", serde_json::Value::Array(rules.collect()))
        }
        format => written(&document, format),
    }))
}

/// A document as text or markdown; text has colours where a terminal shows them.
fn written(document: &Document, format: Format) -> String {
    match format {
        Format::Markdown => document.markdown(),
        Format::Text | Format::Json => {
            let choice = anstream::AutoStream::choice(&std::io::stdout());
            document.text(choice != anstream::ColorChoice::Never)
        }
    }
}

fn read(path: &Path) -> Result<(String, String), Failed> {
    let name = path.display().to_string();
    match fs::read_to_string(path) {
        Ok(text) => Ok((name, text)),
        Err(error) => Err(BadInput::File { file: name, why: error.to_string() }.into()),
    }
}
