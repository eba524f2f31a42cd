//! One question at a time on a connection of its own: what the bench asks of nodes between measurements.

use crate::Error;
use serde_json::Value;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// Longer than a server takes to give up on a request.
const ANSWER_MAX: Duration = Duration::from_secs(30);

/// Status and body of a `GET`.
pub(crate) fn get(address: SocketAddr, path: &str) -> Result<(u16, String), Error> {
    exchange(address, &format!("GET {path} HTTP/1.1\r\n"), "")
}

/// Sends JSON by `PUT` or `POST`; the answer must be a success.
pub(crate) fn send(address: SocketAddr, method: &str, path: &str, body: &str) -> Result<(), Error> {
    let line = format!("{method} {path} HTTP/1.1\r\ncontent-type: application/json\r\n");
    match exchange(address, &line, body)? {
        (200 | 201, _) => Ok(()),
        (status, body) => Err(format!("{method} {path}: {status} {body}").into()),
    }
}

/// The body of a `GET` that must be answered with JSON.
pub(crate) fn json(address: SocketAddr, path: &str) -> Result<Value, Error> {
    match get(address, path)? {
        (200, body) => Ok(serde_json::from_str(&body)?),
        (status, body) => Err(format!("GET {path}: {status} {body}").into()),
    }
}

fn exchange(address: SocketAddr, head: &str, body: &str) -> Result<(u16, String), Error> {
    let mut stream = TcpStream::connect_timeout(&address, ANSWER_MAX)?;
    stream.set_read_timeout(Some(ANSWER_MAX))?;
    let length = body.len();
    write!(stream, "{head}host: bench\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").ok_or("an answer without an end of its head")?;
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    Ok((status.ok_or("an answer without a status")?, body.to_owned()))
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
