//! `fastpaca advise plan`: options and files in, a report or files out.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use clap::{Arg, ArgMatches, Args, Command, FromArgMatches};

use super::{Failed, Format, Outcome, read, written};
use crate::advise::catalogue::Catalogue;
use crate::advise::figures::{Calibration, Figures};
use crate::advise::files::{Site, files};
use crate::advise::settings::Known;
use crate::advise::workload::{BadInput, OPTIONS, Said};
use crate::advise::{Plan, report};

#[derive(Debug, Args)]
pub(super) struct PlanArgs {
    /// Begin with this workload: development, small-team, medium, large or 1k-users [default: small-team].
    #[arg(long, value_name = "NAME")]
    preset: Option<String>,
    /// Read the workload from a TOML file: `users = 1000`, or `preset = "medium"`.
    #[arg(long, value_name = "FILE")]
    from: Option<PathBuf>,
    #[command(flatten)]
    workload: WorkloadOptions,
    /// Prices from this file instead of the guides'.
    #[arg(long, value_name = "FILE")]
    catalog: Option<PathBuf>,
    /// What `fastpaca advise calibrate` measured, instead of the built-in figures.
    #[arg(long, value_name = "FILE")]
    calibration: Option<PathBuf>,
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
    /// Write files that put the plan into practice into this directory.
    #[arg(long, value_name = "DIR")]
    write: Option<PathBuf>,
    /// The container image in the files.
    #[arg(long, default_value = "fastpaca:latest")]
    image: String,
    /// The binary in the systemd unit.
    #[arg(long, default_value = "/usr/local/bin/fastpaca")]
    binary: String,
    /// The nodes' machines in the files, comma-separated [default: fastpaca-1,fastpaca-2,...].
    #[arg(long, value_delimiter = ',', value_name = "HOST")]
    hosts: Vec<String>,
}

/// The options of a workload, as text: their own parser says what is wrong with them, in one line.
#[derive(Debug, Clone, Default)]
struct WorkloadOptions(Vec<(&'static str, String)>);

impl Args for WorkloadOptions {
    fn augment_args(command: Command) -> Command {
        OPTIONS.iter().fold(command, |command, (name, help)| {
            let option = Arg::new(*name).long(*name).help(*help).help_heading("Workload");
            let value = if matches!(*name, "nodes" | "provider") { "WHICH" } else { "N" };
            command.arg(match *name {
                "postgres" => option.value_name("BOOL").num_args(0..=1).default_missing_value("true"),
                _ => option.value_name(value).allow_hyphen_values(true),
            })
        })
    }

    fn augment_args_for_update(command: Command) -> Command {
        WorkloadOptions::augment_args(command)
    }
}

impl FromArgMatches for WorkloadOptions {
    fn from_arg_matches(matches: &ArgMatches) -> Result<WorkloadOptions, clap::Error> {
        let given =
            |(name, _): &(&'static str, &str)| Some((*name, matches.get_one::<String>(name)?.clone()));
        Ok(WorkloadOptions(OPTIONS.iter().filter_map(given).collect()))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = WorkloadOptions::from_arg_matches(matches)?;
        Ok(())
    }
}

pub(super) fn run(args: &PlanArgs) -> Result<Outcome, Failed> {
    let file = args.from.as_deref().map(read).transpose()?;
    let said = Said { preset: args.preset.clone(), file, options: args.workload.0.clone() };
    let catalogue = match &args.catalog {
        Some(path) => read(path).and_then(|(name, text)| Ok(Catalogue::parse(&name, &text)?))?,
        None => Catalogue::built_in(),
    };
    let plan =
        Plan::of(said.workload()?, figures(args.calibration.as_deref())?, catalogue, &Known::this_build())?;
    if let Some(dir) = &args.write {
        return write(&plan, dir, &site(args, plan.nodes)?);
    }
    Ok(Outcome::done(match args.format {
        Format::Json => {
            let json = serde_json::to_string_pretty(&plan)
                .map_err(|error| Failed { why: error.to_string(), code: 1 })?;
            format!("{json}\n")
        }
        format => written(&report::report(&plan), format),
    }))
}

/// The built-in figures, or those of a calibration.
fn figures(calibration: Option<&Path>) -> Result<Figures, Failed> {
    let Some(path) = calibration else { return Ok(Figures::built_in()) };
    let (name, text) = read(path)?;
    Ok(Figures::built_in().calibrated(&Calibration::parse(&name, &text)?))
}

fn site(args: &PlanArgs, nodes: u64) -> Result<Site, Failed> {
    let hosts = match args.hosts.as_slice() {
        [] => (1..=nodes).map(|number| format!("fastpaca-{number}")).collect(),
        hosts if hosts.len() as u64 == nodes => hosts.to_vec(),
        hosts => {
            let expected = format!("{nodes}, one for each node of the plan");
            return Err(BadInput::value("hosts", &hosts.join(","), expected).into());
        }
    };
    let plain = |text: &str| {
        !text.is_empty() && text.chars().all(|c| c.is_ascii_graphic() && !"\"'\\$#{};".contains(c))
    };
    let named = [("image", &args.image), ("binary", &args.binary)]
        .into_iter()
        .chain(hosts.iter().map(|host| ("hosts", host)));
    for (option, value) in named {
        if !plain(value) {
            return Err(BadInput::value(
                option,
                value,
                "a name without spaces, quotes or marks of the files' formats",
            )
            .into());
        }
    }
    if !args.binary.starts_with('/') {
        return Err(BadInput::value("binary", &args.binary, "an absolute path").into());
    }
    let (image, binary) = (args.image.clone(), args.binary.clone());
    Ok(Site { image, binary, hosts, api_key: secret()?, cluster_secret: secret()? })
}

/// 32 random bytes in hexadecimal.
fn secret() -> Result<String, Failed> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes)
        .map_err(|error| Failed { why: format!("no randomness for secrets: {error}"), code: 1 })?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Nothing is overwritten: a file that is there may hold the secrets in use.
fn write(plan: &Plan, dir: &Path, site: &Site) -> Result<Outcome, Failed> {
    let failed = |path: &Path, error: &io::Error| {
        let why = match error.kind() {
            io::ErrorKind::AlreadyExists => "it is there already; nothing is overwritten".to_owned(),
            _ => error.to_string(),
        };
        Failed { why: format!("--write {}: {why}", path.display()), code: 1 }
    };
    fs::create_dir_all(dir).map_err(|error| failed(dir, &error))?;
    let files = files(plan, site);
    for file in &files {
        let path = dir.join(file.name);
        if path.exists() {
            return Err(failed(&path, &io::ErrorKind::AlreadyExists.into()));
        }
    }
    let mut said = String::new();
    for file in files {
        let path = dir.join(file.name);
        let mode = if file.is_secret { 0o600 } else { 0o644 };
        let opened = OpenOptions::new().write(true).create_new(true).mode(mode).open(&path);
        opened
            .and_then(|mut open| open.write_all(file.text.as_bytes()))
            .map_err(|error| failed(&path, &error))?;
        said.push_str(&format!("{}\n", path.display()));
    }
    Ok(Outcome::done(said))
}
