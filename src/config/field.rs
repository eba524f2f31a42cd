//! One field of the configuration, with its type and range: how it is parsed, described and shown.

use std::net::{Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{EstimatorSpec, LogFormat, RunAs, Secret};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const TIB: u64 = 1 << 40;

/// Largest first, so that a size is shown in the largest unit that divides it.
const UNITS: [(&str, u64); 4] = [("TiB", TIB), ("GiB", GIB), ("MiB", MIB), ("KiB", KIB)];

/// What a host may be, in words.
const HOSTS: &str = "with a host name, an IPv4 address or an IPv6 address in brackets";

const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

/// A field to be set, and what it accepts.
pub(super) enum Field<'a> {
    Name(&'a mut String),
    Path(&'a mut PathBuf),
    /// A file that may be named.
    File(&'a mut Option<PathBuf>),
    RunAs(&'a mut Option<RunAs>),
    Address(&'a mut SocketAddr),
    /// `host:port`, which may be set.
    Host(&'a mut Option<String>),
    Hosts(&'a mut Vec<String>),
    Estimator(&'a mut EstimatorSpec),
    Secrets(&'a mut Vec<Secret>),
    /// Of a database, with a password in it.
    Url(&'a mut Option<Secret>),
    /// `http://host:port`, which may be set.
    Collector(&'a mut Option<String>),
    /// Of a node.
    NodeUrl(&'a mut Option<String>),
    Flag(&'a mut bool),
    Filter(&'a mut String),
    LogFormat(&'a mut LogFormat),
    Count(&'a mut usize, RangeInclusive<u64>),
    Rate(&'a mut u64, RangeInclusive<u64>),
    /// A number that may be set.
    Bound(&'a mut Option<u64>, RangeInclusive<u64>),
    Size(&'a mut u64, RangeInclusive<u64>),
    Millis(&'a mut Duration, RangeInclusive<u64>),
}

/// The text is not what the field accepts; [`Field::accepts`] says what is.
#[derive(Debug)]
pub(super) struct Rejected;

impl Field<'_> {
    /// Sets the field from text. On an error it keeps the value it had.
    pub(super) fn parse(&mut self, raw: &str) -> Result<(), Rejected> {
        match self {
            Field::Name(name) => **name = parse_name(raw)?,
            Field::Path(path) => **path = parse_path(raw)?,
            Field::File(path) => **path = Some(parse_path(raw)?),
            Field::RunAs(user) => **user = Some(parse_run_as(raw)?),
            Field::Host(host) => **host = Some(parse_host(raw)?),
            Field::Hosts(hosts) => **hosts = raw.split(',').map(parse_host).collect::<Result<_, _>>()?,
            Field::Address(address) => **address = raw.parse().map_err(|_| Rejected)?,
            Field::Estimator(spec) => **spec = raw.parse().map_err(|_| Rejected)?,
            Field::Secrets(secrets) => **secrets = parse_secrets(raw)?,
            Field::Url(url) => **url = Some(parse_url(raw)?),
            Field::Collector(url) => **url = Some(parse_collector(raw)?),
            Field::NodeUrl(url) => **url = Some(parse_node_url(raw)?),
            Field::Flag(flag) => **flag = parse_flag(raw)?,
            Field::Filter(filter) => **filter = parse_filter(raw)?,
            Field::LogFormat(format) => **format = parse_log_format(raw)?,
            Field::Count(count, range) => {
                **count = usize::try_from(parse_number(raw, range)?).map_err(|_| Rejected)?;
            }
            Field::Rate(rate, range) => **rate = parse_number(raw, range)?,
            Field::Bound(bound, range) => **bound = Some(parse_number(raw, range)?),
            Field::Size(bytes, range) => **bytes = parse_size(raw, range)?,
            Field::Millis(duration, range) => **duration = Duration::from_millis(parse_number(raw, range)?),
        }
        Ok(())
    }

    /// What the field accepts, in words that complete "expected ...".
    pub(super) fn accepts(&self) -> String {
        match self {
            Field::Name(_) => "1 to 64 characters of A-Z a-z 0-9 . _ -".to_owned(),
            Field::Path(_) | Field::File(_) => "a path".to_owned(),
            Field::RunAs(_) => "UID:GID, two numbers from 1 to 4294967294".to_owned(),
            Field::Host(_) => format!("HOST:PORT, {HOSTS}"),
            Field::Hosts(_) => format!("comma-separated HOST:PORT, {HOSTS}"),
            Field::Address(_) => "an IP address and port, such as 0.0.0.0:4000 or [::]:4000".to_owned(),
            Field::Estimator(_) => EstimatorSpec::accepted(),
            Field::Secrets(_) => "comma-separated keys of 1 to 256 visible ASCII characters".to_owned(),
            Field::Url(_) => "postgres://USER:PASSWORD@HOST:PORT/DATABASE".to_owned(),
            Field::Collector(_) => format!("http://HOST:PORT, {HOSTS}"),
            Field::NodeUrl(_) => "http://HOST:PORT or https://HOST:PORT".to_owned(),
            Field::Flag(_) => "true or false".to_owned(),
            Field::Filter(_) => {
                format!("comma-separated LEVEL or MODULE=LEVEL, with LEVEL one of {}", LEVELS.join(", "))
            }
            Field::LogFormat(_) => "json or text".to_owned(),
            Field::Count(_, range) | Field::Rate(_, range) | Field::Bound(_, range) => {
                format!("a whole number from {} to {}", range.start(), range.end())
            }
            Field::Size(_, range) => {
                format!(
                    "bytes, or a size such as 64MiB, from {} to {}",
                    show_size(*range.start()),
                    show_size(*range.end())
                )
            }
            Field::Millis(_, range) => format!("milliseconds from {} to {}", range.start(), range.end()),
        }
    }

    /// The value as TOML. Secrets are masked.
    pub(super) fn show(&self) -> String {
        match self {
            Field::Name(text) | Field::Filter(text) => quote(text),
            Field::Path(path) => quote(&path.to_string_lossy()),
            Field::File(path) => quote(&path.as_deref().unwrap_or(Path::new("")).to_string_lossy()),
            Field::RunAs(user) => quote(&user.map(|user| user.to_string()).unwrap_or_default()),
            Field::Host(host) => quote(host.as_deref().unwrap_or_default()),
            Field::Hosts(hosts) => quote(&hosts.join(",")),
            Field::Address(address) => quote(&address.to_string()),
            Field::Estimator(spec) => quote(&spec.to_string()),
            Field::Secrets(secrets) => quote(&vec!["***"; secrets.len()].join(",")),
            Field::Url(url) => quote(if url.is_some() { "***" } else { "" }),
            Field::Collector(url) => quote(url.as_deref().unwrap_or_default()),
            Field::NodeUrl(url) => quote(url.as_deref().unwrap_or_default()),
            Field::Flag(flag) => flag.to_string(),
            Field::LogFormat(LogFormat::Json) => quote("json"),
            Field::LogFormat(LogFormat::Text) => quote("text"),
            Field::Count(count, _) => count.to_string(),
            Field::Rate(rate, _) => rate.to_string(),
            Field::Bound(bound, _) => bound.map_or_else(|| quote(""), |bound| bound.to_string()),
            Field::Size(bytes, _) => match show_size(**bytes) {
                text if text.ends_with('B') => quote(&text),
                plain => plain,
            },
            Field::Millis(duration, _) => duration.as_millis().to_string(),
        }
    }

    /// Whether the value may be printed, in an error message for instance.
    pub(super) fn is_secret(&self) -> bool {
        matches!(self, Field::Secrets(_) | Field::Url(_))
    }
}

/// `text` as a TOML string.
pub(super) fn quote(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

fn show_size(bytes: u64) -> String {
    let unit = UNITS.iter().find(|(_, unit)| bytes >= *unit && bytes.is_multiple_of(*unit));
    unit.map_or_else(|| bytes.to_string(), |(name, unit)| format!("{}{name}", bytes / unit))
}

fn parse_number(raw: &str, range: &RangeInclusive<u64>) -> Result<u64, Rejected> {
    // `u64::from_str` also takes a leading plus; a setting has one spelling.
    let digits = !raw.is_empty() && raw.bytes().all(|b| b.is_ascii_digit());
    let number = raw.parse().ok().filter(|_| digits);
    number.filter(|number| range.contains(number)).ok_or(Rejected)
}

/// `67108864`, `64MiB`, `64 MiB`.
fn parse_size(raw: &str, range: &RangeInclusive<u64>) -> Result<u64, Rejected> {
    let suffixed = UNITS.iter().find_map(|(name, unit)| Some((raw.strip_suffix(name)?.trim_end(), *unit)));
    let (digits, unit) = suffixed.unwrap_or((raw, 1));
    let bytes = parse_number(digits, &(0..=u64::MAX))?.checked_mul(unit).ok_or(Rejected)?;
    if range.contains(&bytes) { Ok(bytes) } else { Err(Rejected) }
}

fn parse_flag(raw: &str) -> Result<bool, Rejected> {
    match raw {
        "true" => Ok(true),
        "false" => Ok(false),
        _ => Err(Rejected),
    }
}

fn parse_log_format(raw: &str) -> Result<LogFormat, Rejected> {
    match raw {
        "json" => Ok(LogFormat::Json),
        "text" => Ok(LogFormat::Text),
        _ => Err(Rejected),
    }
}

fn parse_name(raw: &str) -> Result<String, Rejected> {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    if (1..=64).contains(&raw.len()) && raw.bytes().all(allowed) { Ok(raw.to_owned()) } else { Err(Rejected) }
}

fn parse_path(raw: &str) -> Result<PathBuf, Rejected> {
    if raw.is_empty() || raw.contains('\0') { Err(Rejected) } else { Ok(PathBuf::from(raw)) }
}

/// Root is nobody to go on as, and the last number means "as it is" to the system.
fn parse_run_as(raw: &str) -> Result<RunAs, Rejected> {
    let (uid, gid) = raw.split_once(':').ok_or(Rejected)?;
    let id = |raw: &str| parse_number(raw, &(1..=u64::from(u32::MAX) - 1)).map(|id| id as u32);
    Ok(RunAs { uid: id(uid)?, gid: id(gid)? })
}

/// `name:4000`, `10.0.0.1:4000` or `[fd00::1]:4000`.
fn parse_host(raw: &str) -> Result<String, Rejected> {
    let raw = raw.trim();
    let (host, port) = raw.rsplit_once(':').ok_or(Rejected)?;
    parse_number(port, &(1..=65_535))?;
    let is_name = |host: &str| {
        (1..=200).contains(&host.len())
            && host.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
    };
    let inner = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let is_v6 = inner.is_some_and(|inner| inner.parse::<Ipv6Addr>().is_ok());
    if is_v6 || is_name(host) { Ok(raw.to_owned()) } else { Err(Rejected) }
}

/// A set but empty list is refused: an unexpanded `FASTPACA_API_KEY=$KEY` must not open the door.
fn parse_secrets(raw: &str) -> Result<Vec<Secret>, Rejected> {
    let key = |key: &str| {
        let key = key.trim();
        let fits = (1..=256).contains(&key.len()) && key.bytes().all(|b| b.is_ascii_graphic());
        if fits { Ok(Secret::new(key)) } else { Err(Rejected) }
    };
    raw.split(',').map(key).collect()
}

/// What else is wrong with a URL says the library that connects.
fn parse_url(raw: &str) -> Result<Secret, Rejected> {
    let is_url = ["postgres://", "postgresql://"].iter().any(|scheme| raw.starts_with(scheme));
    if is_url && raw.bytes().all(|b| b.is_ascii_graphic()) { Ok(Secret::new(raw)) } else { Err(Rejected) }
}

/// No TLS, no path: the collector is expected beside the node.
fn parse_collector(raw: &str) -> Result<String, Rejected> {
    let host = raw.strip_prefix("http://").ok_or(Rejected)?;
    parse_host(host.strip_suffix('/').unwrap_or(host)).map(|host| format!("http://{host}"))
}

/// The port may be missing; the client says what else is wrong with it.
fn parse_node_url(raw: &str) -> Result<String, Rejected> {
    let is_url = ["http://", "https://"].iter().any(|scheme| raw.starts_with(scheme));
    if is_url && raw.bytes().all(|b| b.is_ascii_graphic()) { Ok(raw.to_owned()) } else { Err(Rejected) }
}

/// Stricter than the logging library, which takes a misspelt level for a module and then logs nothing.
fn parse_filter(raw: &str) -> Result<String, Rejected> {
    let known = |directive: &str| {
        let (module, level) = directive.split_once('=').unwrap_or(("fastpaca", directive));
        let path = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b':');
        !module.is_empty() && module.bytes().all(path) && LEVELS.contains(&level)
    };
    if raw.split(',').all(known) { Ok(raw.to_owned()) } else { Err(Rejected) }
}
