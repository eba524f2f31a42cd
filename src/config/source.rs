//! Where values come from: the TOML file and the environment, both as text by key.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::settings::{self, PREFIX, SETTINGS, Setting};

/// Longest part of a bad value that an error message repeats.
const SHOWN_CHARS_MAX: usize = 80;

/// See [`test_protocols`]. Without the prefix of settings, of which it is none.
const TEST_PROTOCOLS: &str = "TEST_FASTPACA_PROTOCOLS";

/// Where the value in force was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    Environment,
    File,
    /// Generated at an earlier start and kept there.
    DataDir,
    Default,
}

/// The variables of a process.
pub trait Environment {
    fn variables(&self) -> Vec<(OsString, OsString)>;
}

/// The environment of this process.
#[derive(Debug, Clone, Copy)]
pub struct ProcessEnvironment;

impl Environment for ProcessEnvironment {
    fn variables(&self) -> Vec<(OsString, OsString)> {
        std::env::vars_os().collect()
    }
}

/// For tests and tools: a fixed environment.
impl<const N: usize> Environment for [(&str, &str); N] {
    fn variables(&self) -> Vec<(OsString, OsString)> {
        self.iter().map(|(name, value)| (name.into(), value.into())).collect()
    }
}

/// Why there is no configuration. Each is one line that says what to change.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("{place} = {value}: expected {expected}")]
    BadValue { place: String, value: String, expected: String },
    #[error("{name} (or {key} in the file) = {value}: expected {rule}")]
    Combination { name: String, key: &'static str, value: String, rule: String },
    #[error("{name} = {value:?}: no such setting{hint}; `fastpaca config --sample` lists all")]
    UnknownVariable { name: String, value: String, hint: String },
    #[error("{key} in {}: no such setting{hint}; `fastpaca config --sample` lists all", .path.display())]
    UnknownKey { key: String, path: PathBuf, hint: String },
    #[error("--config {}: cannot be read ({error}): expected a TOML file", .path.display())]
    FileUnreadable { path: PathBuf, error: io::Error },
    #[error("--config {}: line {line}: {message}: expected TOML, `key = value`", .path.display())]
    FileSyntax { path: PathBuf, line: usize, message: String },
    #[error("{name} (or {key} in the file) = {:?}: cannot be used ({why})", .path.display().to_string())]
    Tls { name: String, key: &'static str, path: PathBuf, why: String },
    #[error("FASTPACA_DATA_DIR (or data_dir in the file) = {:?}: not writable ({error}): expected a directory this process may create and write", .path.display().to_string())]
    DataDir { path: PathBuf, error: io::Error },
}

impl ConfigError {
    pub(super) fn bad_value(setting: &Setting, raw: &str, origin: Origin, expected: String) -> ConfigError {
        let place = match origin {
            Origin::Environment => setting.env_name(),
            _ => format!("{} in the file (or {})", setting.key, setting.env_name()),
        };
        let value = if setting.is_secret() { "***".to_owned() } else { shown(raw) };
        ConfigError::BadValue { place, value, expected }
    }
}

/// A value on one line: control characters escaped, the rest of a long one cut off.
fn shown(raw: &str) -> String {
    match raw.char_indices().nth(SHOWN_CHARS_MAX) {
        Some((end, _)) => format!("{:?}...", &raw[..end]),
        None => format!("{raw:?}"),
    }
}

/// The file's values as text by key. Every key must be a setting.
pub(super) fn read_file(path: Option<&Path>) -> Result<BTreeMap<&'static str, String>, ConfigError> {
    let Some(path) = path else { return Ok(BTreeMap::new()) };
    let unreadable = |error| ConfigError::FileUnreadable { path: path.to_owned(), error };
    let text = fs::read_to_string(path).map_err(unreadable)?;
    let table: toml::Table = text.parse().map_err(|error| syntax_error(path, &text, &error))?;
    let mut values = BTreeMap::new();
    for (key, value) in &table {
        let Some(setting) = settings::find(key) else {
            let hint = hint(SETTINGS.iter().map(|s| s.key.to_owned()), key);
            let key = shown(key).trim_matches('"').to_owned();
            return Err(ConfigError::UnknownKey { key, path: path.to_owned(), hint });
        };
        let Some(raw) = as_text(value) else {
            let expected = setting.accepts();
            return Err(ConfigError::bad_value(setting, &value.to_string(), Origin::File, expected));
        };
        values.insert(setting.key, raw);
    }
    Ok(values)
}

/// Scalars, and arrays of strings in place of a comma-separated list; tables are no setting's value.
fn as_text(value: &toml::Value) -> Option<String> {
    match value {
        toml::Value::String(text) => Some(text.clone()),
        toml::Value::Integer(number) => Some(number.to_string()),
        toml::Value::Boolean(flag) => Some(flag.to_string()),
        toml::Value::Array(items) => {
            let texts: Option<Vec<&str>> = items.iter().map(toml::Value::as_str).collect();
            texts.map(|texts| texts.join(","))
        }
        toml::Value::Float(_) | toml::Value::Datetime(_) | toml::Value::Table(_) => None,
    }
}

fn syntax_error(path: &Path, text: &str, error: &toml::de::Error) -> ConfigError {
    let start = error.span().map_or(0, |span| span.start.min(text.len()));
    let line = 1 + text.as_bytes()[..start].iter().filter(|b| **b == b'\n').count();
    let message = error.message().lines().collect::<Vec<_>>().join(" ");
    ConfigError::FileSyntax { path: path.to_owned(), line, message }
}

/// The `FASTPACA_*` variables as text by key. Every one must be a setting.
pub(super) fn read_environment(
    environment: &dyn Environment,
) -> Result<BTreeMap<&'static str, String>, ConfigError> {
    let mut values = BTreeMap::new();
    for (name, value) in environment.variables() {
        let name = name.to_string_lossy().into_owned();
        let Some(rest) = name.strip_prefix(PREFIX) else { continue };
        let value = value.to_string_lossy().into_owned();
        if let Some(setting) = settings::find(&rest.to_lowercase()).filter(|s| s.env_name() == name) {
            values.insert(setting.key, value);
        } else if !is_kubernetes_service_link(rest, &value) {
            let hint = hint(SETTINGS.iter().map(Setting::env_name), &name);
            // The value of an unknown variable may be a misspelt secret.
            let value = if value.is_empty() { value } else { "***".to_owned() };
            return Err(ConfigError::UnknownVariable { name, value, hint });
        }
    }
    Ok(values)
}

/// The range of protocol versions that a test has a server pretend to speak, as `1-2`: how it gets two adjacent versions
/// out of one build. No setting: only builds with debug assertions look.
pub(super) fn test_protocols(environment: &dyn Environment) -> Option<(u16, u16)> {
    if !cfg!(debug_assertions) {
        return None;
    }
    let given = environment.variables().into_iter().find(|(name, _)| name == TEST_PROTOCOLS)?.1;
    let (min, max) = given.to_str()?.split_once('-')?;
    Some((min.parse().ok()?, max.parse().ok()?))
}

/// Kubernetes gives every pod variables for the services around it. Next to a service named `fastpaca`
/// they begin like ours (`FASTPACA_SERVICE_HOST`, `FASTPACA_PORT=tcp://...`), and are none of ours.
fn is_kubernetes_service_link(rest: &str, value: &str) -> bool {
    let transport = ["tcp://", "udp://", "sctp://"].iter().any(|scheme| value.starts_with(scheme));
    let is_link = |part: &str| {
        let mut words = part.split('_');
        let numbered = words.next().is_some_and(|port| port.bytes().all(|b| b.is_ascii_digit()));
        numbered && words.next().is_some_and(|protocol| matches!(protocol, "TCP" | "UDP" | "SCTP"))
    };
    rest.ends_with("SERVICE_HOST")
        || rest.contains("SERVICE_PORT")
        || (rest.ends_with("PORT") && transport)
        || rest.split_once("PORT_").is_some_and(|(_, port)| is_link(port))
}

/// `, did you mean X?` for a near miss.
fn hint(known: impl Iterator<Item = String>, given: &str) -> String {
    let near = known.map(|name| (distance(&name, given), name)).min();
    near.filter(|(distance, _)| *distance <= 3)
        .map_or_else(String::new, |(_, name)| format!(", did you mean {name}?"))
}

/// Levenshtein distance in bytes; `given` is cut where it can no longer be near.
fn distance(known: &str, given: &str) -> usize {
    let given = &given.as_bytes()[..given.len().min(64)];
    let mut row: Vec<usize> = (0..=given.len()).collect();
    for (i, a) in known.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, b) in given.iter().enumerate() {
            let substituted = diagonal + usize::from(a != *b);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[given.len()]
}
