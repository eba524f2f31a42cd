//! Configuration: every setting declared once (in [`settings`]), and what is made of it here.
//!
//! A value comes from the environment (`FASTPACA_*`), else from the TOML file given by `--config`, else
//! from the default. Unknown keys, unknown `FASTPACA_*` variables and bad values are errors that name the
//! setting, the value and what is accepted, on one line. This is the only place that reads the
//! environment, and it reads it through [`Environment`], so that tests bring their own.
//!
//! Deliberately absent: reloading at run time. A node takes its settings when it starts.

mod estimator;
mod field;
mod render;
mod settings;
mod source;

use std::fmt;
use std::fs;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio_rustls::TlsAcceptor;

pub(crate) use estimator::Method;
pub use estimator::{EstimatorError, EstimatorSpec};
pub use render::{markdown_tables, sample};
pub(crate) use settings::BODY_BYTES_MAX;
pub use source::{ConfigError, Environment, Origin, ProcessEnvironment};

use crate::files;
use crate::tls::{self, Dialler, TlsError};

use settings::SETTINGS;

/// Most secrets of a cluster: a node names all of them to another.
pub const CLUSTER_SECRETS_MAX: usize = 16;

/// The file in the data directory that keeps a generated node name.
const NODE_NAME_FILE: &str = "node_name";

/// How log lines are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// One JSON object a line, for machines.
    Json,
    /// Plain text, for people.
    Text,
}

/// A secret that never shows in logs: `Debug` masks it.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    pub fn new(text: impl Into<String>) -> Secret {
        Secret(text.into())
    }

    /// The secret itself; for digests, signatures and connections only.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// A user and a group, by number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RunAs {
    pub uid: u32,
    pub gid: u32,
}

impl fmt::Display for RunAs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.uid, self.gid)
    }
}

/// Everything a node can be told. The meaning, default and range of each field is in the settings table.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Empty only before [`Settings::prepare`] took it from the data directory.
    pub node_name: String,
    pub data_dir: PathBuf,
    /// For a process that is root.
    pub run_as: Option<RunAs>,
    pub listen: SocketAddr,
    /// 0 = one per core.
    pub worker_threads: usize,
    pub pin_workers: bool,
    pub token_estimator: EstimatorSpec,

    /// Empty = no authentication.
    pub api_keys: Vec<Secret>,
    pub metrics_public: bool,
    pub console: bool,

    pub log: String,
    pub log_format: LogFormat,
    /// `http://host:port`. None = no traces.
    pub otlp_endpoint: Option<String>,
    pub otlp_sample_one_in: u64,

    /// `host:port` each. Empty = a cluster of one, until others join through this node.
    pub cluster_seeds: Vec<String>,
    /// Empty = derived from the API keys.
    pub cluster_secrets: Vec<Secret>,
    /// `host:port`.
    pub advertise_addr: Option<String>,
    pub cluster_size: usize,
    pub snapshot_bytes_per_second: u64,
    pub replace: bool,
    /// Set together with `tls_key`, or not at all.
    pub tls_cert: Option<PathBuf>,
    pub tls_key: Option<PathBuf>,
    pub tls_ca: Option<PathBuf>,
    /// Instead of the protocol versions of this build: for tests of upgrades, see [`source::test_protocols`].
    pub peer_protocols: Option<(u16, u16)>,

    pub stream_max_connections: usize,
    pub body_max_bytes: u64,
    pub batch_body_max_bytes: u64,
    pub max_connections: usize,
    pub max_connections_per_address: usize,
    pub max_inflight_requests: usize,
    /// 0 = no limit.
    pub rate_limit_per_second: u64,
    /// 0 = as much as one second allows.
    pub rate_limit_burst: u64,
    pub header_timeout: Duration,
    pub body_timeout: Duration,
    pub request_timeout: Duration,
    pub shutdown_timeout: Duration,

    pub segment_bytes: u64,
    pub disk_reserve_bytes: u64,
    pub checkpoint_bytes: u64,
    pub checkpoint_interval: Duration,
    pub reclaim_interval: Duration,
    /// 100 = nothing is reclaimed.
    pub reclaim_dead_percent: usize,
    pub reclaim_bytes_per_second: u64,
    pub record_cache_bytes: u64,
    pub message_cache_bytes: u64,
    pub window_cache_bytes: u64,
    pub index_cache_bytes: u64,

    /// `None` = no archive.
    pub postgres_url: Option<Secret>,
    pub postgres_pool_size: usize,
    pub flush_interval: Duration,
    pub flush_batch_size: usize,
    /// `None` = all.
    pub tail_keep: Option<u64>,
    pub migrate: bool,

    /// Whom commands ask. `None` = the node of `listen`.
    pub url: Option<String>,
}

impl Config {
    /// The defaults, before anything was said. Every field is then set from its entry in the table.
    fn unset() -> Config {
        Config {
            node_name: String::new(),
            data_dir: PathBuf::new(),
            run_as: None,
            listen: SocketAddr::from(([0, 0, 0, 0], 0)),
            worker_threads: 0,
            pin_workers: false,
            token_estimator: EstimatorSpec::chars(4),
            api_keys: Vec::new(),
            metrics_public: true,
            console: true,
            log: String::new(),
            log_format: LogFormat::Json,
            otlp_endpoint: None,
            otlp_sample_one_in: 1,
            cluster_seeds: Vec::new(),
            cluster_secrets: Vec::new(),
            advertise_addr: None,
            cluster_size: 0,
            snapshot_bytes_per_second: 0,
            replace: false,
            tls_cert: None,
            tls_key: None,
            tls_ca: None,
            peer_protocols: None,
            stream_max_connections: 0,
            body_max_bytes: 0,
            batch_body_max_bytes: 0,
            max_connections: 0,
            max_connections_per_address: 0,
            max_inflight_requests: 0,
            rate_limit_per_second: 0,
            rate_limit_burst: 0,
            header_timeout: Duration::ZERO,
            body_timeout: Duration::ZERO,
            request_timeout: Duration::ZERO,
            shutdown_timeout: Duration::ZERO,
            segment_bytes: 0,
            disk_reserve_bytes: 0,
            checkpoint_bytes: 0,
            checkpoint_interval: Duration::ZERO,
            reclaim_interval: Duration::ZERO,
            reclaim_dead_percent: 0,
            reclaim_bytes_per_second: 0,
            record_cache_bytes: 0,
            message_cache_bytes: 0,
            window_cache_bytes: 0,
            index_cache_bytes: 0,
            postgres_url: None,
            postgres_pool_size: 0,
            flush_interval: Duration::ZERO,
            flush_batch_size: 0,
            tail_keep: None,
            migrate: true,
            url: None,
        }
    }

    /// The defaults, for a node of a test: its data under `data_dir`, a free port of the loopback
    /// interface, small caches, and token counting by characters (no vocabulary to load).
    pub fn for_test(data_dir: impl Into<PathBuf>) -> Config {
        let mut config = defaults();
        config.node_name = "test".to_owned();
        config.data_dir = data_dir.into();
        config.listen = SocketAddr::from(([127, 0, 0, 1], 0));
        config.worker_threads = 2;
        config.token_estimator = EstimatorSpec::chars(4);
        config.segment_bytes = 16 << 20;
        config.disk_reserve_bytes = 1 << 20;
        config.record_cache_bytes = 8 << 20;
        config.message_cache_bytes = 8 << 20;
        config.window_cache_bytes = 8 << 20;
        config.index_cache_bytes = 8 << 20;
        config
    }

    /// Rules that span several settings; the setting named is the one to change.
    fn check(&self) -> Result<(), ConfigError> {
        let refuse = |key: &'static str, value: u64, rule: String| {
            let value = value.to_string();
            Err(ConfigError::Combination { name: settings::env_name(key), key, value, rule })
        };
        if self.batch_body_max_bytes < self.body_max_bytes {
            let rule = format!("at least body_max_bytes ({})", self.body_max_bytes);
            return refuse("batch_body_max_bytes", self.batch_body_max_bytes, rule);
        }
        // A batch is one frame of the journal, and a frame lies in one segment.
        if self.segment_bytes < 2 * self.batch_body_max_bytes {
            let rule = format!("at least twice batch_body_max_bytes ({})", self.batch_body_max_bytes);
            return refuse("segment_bytes", self.segment_bytes, rule);
        }
        if self.max_connections_per_address > self.max_connections {
            let rule = format!("at most max_connections ({})", self.max_connections);
            return refuse("max_connections_per_address", self.max_connections_per_address as u64, rule);
        }
        if self.cluster_secrets.len() > CLUSTER_SECRETS_MAX {
            let (value, rule) =
                (format!("{} secrets", self.cluster_secrets.len()), format!("at most {CLUSTER_SECRETS_MAX}"));
            let (name, key) = (settings::env_name("cluster_secret"), "cluster_secret");
            return Err(ConfigError::Combination { name, key, value, rule });
        }
        if let (Some(keep), None) = (self.tail_keep, &self.postgres_url) {
            return refuse(
                "tail_keep",
                keep,
                "unset, because postgres_url is: what is trimmed must be archived".into(),
            );
        }
        self.check_tls()
    }

    /// What the listener shows, if it speaks TLS.
    pub fn tls_acceptor(&self) -> Result<Option<TlsAcceptor>, TlsError> {
        let (Some(cert), Some(key)) = (&self.tls_cert, &self.tls_key) else { return Ok(None) };
        tls::acceptor(cert, key).map(Some)
    }

    /// What other nodes are dialled with, if their listeners speak TLS.
    pub fn tls_dialler(&self) -> Result<Option<Dialler>, TlsError> {
        let Some(ca) = self.tls_ca.as_ref().or(self.tls_cert.as_ref()) else { return Ok(None) };
        Dialler::new(ca, &self.tls_names()).map(Some)
    }

    /// What certificates of nodes may be made for, beside the address that is dialled.
    pub fn tls_names(&self) -> Vec<String> {
        let hosts = self.cluster_seeds.iter().chain(&self.advertise_addr);
        let host = |host: &String| {
            let name = host.rsplit_once(':').map_or(host.as_str(), |(name, _)| name);
            name.trim_start_matches('[').trim_end_matches(']').to_owned()
        };
        hosts.map(host).collect()
    }

    /// Reads the files once, so that a bad one is refused before anything is started.
    fn prove_tls(&self) -> Result<(), ConfigError> {
        let error = match (self.tls_acceptor(), self.tls_dialler()) {
            (Ok(_), Ok(_)) => return Ok(()),
            (Err(error), _) | (_, Err(error)) => error,
        };
        let files = [("tls_cert", &self.tls_cert), ("tls_key", &self.tls_key), ("tls_ca", &self.tls_ca)];
        let named = files.iter().find(|(_, file)| file.as_ref() == Some(&error.file));
        let key = named.map_or("tls_cert", |(key, _)| *key);
        Err(ConfigError::Tls { name: settings::env_name(key), key, path: error.file, why: error.why })
    }

    /// A command may trust an authority without showing a certificate; a node that did would speak no TLS itself.
    fn check_listener(&self) -> Result<(), ConfigError> {
        if self.tls_ca.is_none() || self.tls_cert.is_some() {
            return Ok(());
        }
        let (value, rule) = ("unset".to_owned(), "a path, because tls_ca is set".to_owned());
        Err(ConfigError::Combination { name: settings::env_name("tls_cert"), key: "tls_cert", value, rule })
    }

    fn check_tls(&self) -> Result<(), ConfigError> {
        let unset = |key: &'static str, other: &str| {
            let (value, rule) = ("unset".to_owned(), format!("a path, because {other} is set"));
            Err(ConfigError::Combination { name: settings::env_name(key), key, value, rule })
        };
        match (&self.tls_cert, &self.tls_key) {
            (Some(_), None) => unset("tls_key", "tls_cert"),
            (None, Some(_)) => unset("tls_cert", "tls_key"),
            _ => Ok(()),
        }
    }
}

/// Every environment variable there is, with its default where it has one.
pub fn variables() -> Vec<(String, Option<&'static str>)> {
    SETTINGS.iter().map(|setting| (setting.env_name(), setting.default)).collect()
}

/// The configuration when nothing is set.
pub fn defaults() -> Config {
    let mut config = Config::unset();
    for setting in SETTINGS {
        if let Some(default) = setting.default {
            (setting.field)(&mut config)
                .parse(default)
                .expect("a test holds every default to its own parser");
        }
    }
    config
}

/// The configuration in force, and where each value came from.
#[derive(Debug, Clone)]
pub struct Settings {
    config: Config,
    /// One per entry of the settings table, in its order.
    origins: Vec<Origin>,
}

impl Settings {
    /// Reads the file, if one is named, and the environment. Touches nothing on disk.
    pub fn load(file: Option<&Path>, environment: &dyn Environment) -> Result<Settings, ConfigError> {
        let from_file = source::read_file(file)?;
        let from_environment = source::read_environment(environment)?;
        let mut config = defaults();
        let mut origins = Vec::with_capacity(SETTINGS.len());
        for setting in SETTINGS {
            let given = from_environment
                .get(setting.key)
                .map(|raw| (raw, Origin::Environment))
                .or_else(|| from_file.get(setting.key).map(|raw| (raw, Origin::File)));
            let Some((raw, origin)) = given else {
                origins.push(Origin::Default);
                continue;
            };
            let mut field = (setting.field)(&mut config);
            if field.parse(raw).is_err() {
                return Err(ConfigError::bad_value(setting, raw, origin, field.accepts()));
            }
            origins.push(origin);
        }
        config.check()?;
        config.peer_protocols = source::test_protocols(environment);
        let mut settings = Settings { config, origins };
        settings.recall_node_name();
        Ok(settings)
    }

    /// What is in force as TOML, with the origin of each value as a comment and secrets masked.
    pub fn render(&self) -> String {
        render::in_force(&self.config, &self.origins)
    }

    /// The configuration as far as it is known without touching the disk; for logging and tests.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Makes the node's home ready: creates the data directory, proves that it can be written, and
    /// settles the node's name, generating and keeping one at the first start.
    pub fn prepare(mut self) -> Result<Config, ConfigError> {
        self.config.check_listener()?;
        self.config.prove_tls()?;
        let dir = self.config.data_dir.clone();
        prove_writable(&dir).map_err(|error| ConfigError::DataDir { path: dir.clone(), error })?;
        if self.config.node_name.is_empty() {
            let name = uuid::Uuid::new_v4().to_string();
            files::replace(&dir.join(NODE_NAME_FILE), format!("{name}\n").as_bytes())
                .map_err(|error| ConfigError::DataDir { path: dir, error })?;
            self.config.node_name = name;
        }
        Ok(self.config)
    }

    /// An unset name is the one generated at an earlier start, if there was one.
    fn recall_node_name(&mut self) {
        let at = settings::position("node_name");
        if self.origins[at] != Origin::Default {
            return;
        }
        let Ok(kept) = fs::read_to_string(self.config.data_dir.join(NODE_NAME_FILE)) else { return };
        if (SETTINGS[at].field)(&mut self.config).parse(kept.trim()).is_ok() {
            self.origins[at] = Origin::DataDir;
        }
    }
}

/// A probe file is the only honest test: permissions, read-only mounts and quotas all show in it.
fn prove_writable(dir: &Path) -> io::Result<()> {
    fs::create_dir_all(dir)?;
    let probe = dir.join(".writable");
    fs::File::create(&probe)?.write_all(b"fastpaca")?;
    fs::remove_file(&probe)
}

#[cfg(test)]
mod tests;
