//! One question at a time on a connection of its own: what the bench asks of nodes between measurements.

use crate::Error;
use crate::process;
use serde_json::Value;
use std::net::SocketAddr;
use std::time::Duration;

/// Longer than a server takes to give up on a request, or to compute digests of all it has.
const ANSWER_MAX: Duration = Duration::from_secs(120);

/// Status and body of a `GET`.
pub(crate) fn get(address: SocketAddr, path: &str) -> Result<(u16, String), Error> {
    Ok(process::get(address, path, ANSWER_MAX)?)
}

/// The body of a `GET` that must be answered with JSON.
pub(crate) fn json(address: SocketAddr, path: &str) -> Result<Value, Error> {
    match get(address, path)? {
        (200, body) => Ok(serde_json::from_str(&body)?),
        (status, body) => Err(format!("GET {path}: {status} {body}").into()),
    }
}

/// The metrics of a node at one moment.
pub(crate) struct Metrics(String);

impl Metrics {
    pub(crate) fn of(address: SocketAddr) -> Result<Metrics, Error> {
        match get(address, "/metrics")? {
            (200, text) => Ok(Metrics(text)),
            (status, text) => Err(format!("GET /metrics: {status} {text}").into()),
        }
    }

    /// The value of a metric; `name` carries its labels, if it has any. Nothing where there is none of that name.
    pub(crate) fn value(&self, name: &str) -> f64 {
        let of_name = |line: &str| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok();
        self.0.lines().find_map(of_name).unwrap_or_default()
    }
}
