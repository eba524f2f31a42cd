//! One HTTP request to a node, and its answer: for commands, which make few and wait for each.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::config::Config;
use crate::tls::Dialler;

/// Longest wait for an answer. The server's own bounds on what is asked here are shorter.
const ANSWER_MAX: Duration = Duration::from_secs(30);
/// Longest wait for each address of the node.
const CONNECT_MAX: Duration = Duration::from_secs(5);
/// Largest answer.
const ANSWER_BYTES_MAX: usize = 4 << 20;

/// Why a request brought no good answer; one line for people.
#[derive(Debug, thiserror::Error)]
pub(super) enum ClientError {
    #[error("--url {0:?} is no http://HOST:PORT or https://HOST:PORT")]
    Url(String),
    #[error("https needs --ca or FASTPACA_TLS_CA, to know whom to trust")]
    NoAuthority,
    #[error(transparent)]
    Tls(#[from] crate::tls::TlsError),
    #[error("{to} cannot be reached: {why}")]
    Unreachable { to: String, why: String },
    #[error("{to} did not answer: {why}")]
    NoAnswer { to: String, why: String },
    /// What the server said.
    #[error("{said}")]
    Refused { status: u16, current_version: Option<u64>, said: String },
}

/// Where requests go.
pub(super) struct Client {
    host: String,
    port: u16,
    tls: Option<Dialler>,
    key: Option<String>,
}

impl Client {
    /// To `url`, or to the node that these settings would start. Trusts what `ca` signed, or whom such a node trusts.
    pub(super) fn new(url: Option<&str>, ca: Option<&Path>, config: &Config) -> Result<Client, ClientError> {
        let given = url.map_or_else(|| url_of(config), str::to_owned);
        let (https, host, port) = split(&given).ok_or_else(|| ClientError::Url(given.clone()))?;
        let authority = ca.or(config.tls_ca.as_deref()).or(config.tls_cert.as_deref());
        let tls = match (https, authority) {
            (false, _) => None,
            (true, None) => return Err(ClientError::NoAuthority),
            (true, Some(ca)) if url.is_some() => Some(Dialler::new(ca, std::slice::from_ref(&host))?),
            // The node of these settings is dialled by address, and known by the names that nodes are known by.
            (true, Some(ca)) => Some(Dialler::new(ca, &config.tls_names())?),
        };
        let key = config.api_keys.first().map(|key| key.expose().to_owned());
        Ok(Client { host, port, tls, key })
    }

    /// For a server that is none of ours, and must not see our key.
    pub(super) fn without_key(mut self) -> Client {
        self.key = None;
        self
    }

    /// The answer's JSON, null if it has no body.
    pub(super) async fn ask(&self, method: Method, path: &str) -> Result<Value, ClientError> {
        self.send(method, path, Bytes::new()).await
    }

    /// As [`Client::ask`], with a body.
    pub(super) async fn send(&self, method: Method, path: &str, body: Bytes) -> Result<Value, ClientError> {
        let body = self.exchange(method, path, body).await?;
        Ok(serde_json::from_slice(&body).unwrap_or(Value::Null))
    }

    /// The answer as text.
    pub(super) async fn ask_text(&self, path: &str) -> Result<String, ClientError> {
        let body = self.exchange(Method::GET, path, Bytes::new()).await?;
        Ok(String::from_utf8_lossy(&body).into_owned())
    }

    async fn exchange(&self, method: Method, path: &str, body: Bytes) -> Result<Bytes, ClientError> {
        let (io, address) = self.connect().await?;
        let answered = async {
            match &self.tls {
                None => self.speak(io, method, path, body).await,
                Some(tls) => {
                    let io = tls.connect(address.ip(), io).await.map_err(|error| error.to_string())?;
                    self.speak(io, method, path, body).await
                }
            }
        };
        let late = Err(format!("no answer within {} seconds", ANSWER_MAX.as_secs()));
        let answered = timeout(ANSWER_MAX, answered).await.unwrap_or(late);
        let (status, body) = answered.map_err(|why| ClientError::NoAnswer { to: self.name(), why })?;
        if status.is_success() {
            return Ok(body);
        }
        let value: Value = serde_json::from_slice(&body).unwrap_or(Value::Null);
        let said = value["message"].as_str().map(str::to_owned);
        let said = said.unwrap_or_else(|| format!("{} answered {status}", self.name()));
        let current_version = value["current_version"].as_u64();
        Err(ClientError::Refused { status: status.as_u16(), current_version, said })
    }

    async fn connect(&self) -> Result<(TcpStream, SocketAddr), ClientError> {
        let unreachable = |why: String| ClientError::Unreachable { to: self.name(), why };
        let addresses = tokio::net::lookup_host((self.host.as_str(), self.port)).await;
        let addresses = addresses.map_err(|error| unreachable(error.to_string()))?;
        let mut why = "the name has no address".to_owned();
        for address in addresses {
            why = match timeout(CONNECT_MAX, TcpStream::connect(address)).await {
                Ok(Ok(io)) => return Ok((io, address)),
                Ok(Err(error)) => error.to_string(),
                Err(_) => "timed out".to_owned(),
            };
        }
        Err(unreachable(why))
    }

    async fn speak<IO>(
        &self,
        io: IO,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<(StatusCode, Bytes), String>
    where
        IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(io)).await.map_err(|e| e.to_string())?;
        // It ends with the process; how, shows in the answer.
        tokio::spawn(connection);
        let mut request = Request::builder().method(method).uri(path).header(header::HOST, self.name());
        if let Some(key) = &self.key {
            request = request.header(header::AUTHORIZATION, format!("Bearer {key}"));
        }
        let request = request.body(Full::new(body)).map_err(|e| e.to_string())?;
        let response = sender.send_request(request).await.map_err(|e| e.to_string())?;
        let status = response.status();
        let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
        Ok((status, body.map_err(|e| e.to_string())?.to_bytes()))
    }

    /// `host:port`.
    pub(super) fn name(&self) -> String {
        authority(&self.host, self.port)
    }
}

fn authority(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

/// Where a node with these settings is reached from its own machine.
fn url_of(config: &Config) -> String {
    let listen = config.listen;
    let host = match listen.ip() {
        ip if !ip.is_unspecified() => ip.to_string(),
        ip if ip.is_ipv6() => "::1".to_owned(),
        _ => "127.0.0.1".to_owned(),
    };
    let scheme = if config.tls_cert.is_some() { "https" } else { "http" };
    format!("{scheme}://{}", authority(&host, listen.port()))
}

/// Whether it is https, the host, the port.
fn split(url: &str) -> Option<(bool, String, u16)> {
    let uri: Uri = url.parse().ok()?;
    let (https, default_port) = match uri.scheme_str()? {
        "http" => (false, 80),
        "https" => (true, 443),
        _ => return None,
    };
    let is_bare = matches!(uri.path(), "" | "/") && uri.query().is_none();
    let host = uri.host()?.trim_start_matches('[').trim_end_matches(']').to_owned();
    is_bare.then(|| (https, host, uri.port_u16().unwrap_or(default_port)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_name_a_scheme_and_a_host() {
        let http = |host: &str, port| Some((false, host.to_owned(), port));
        assert_eq!(split("http://a.example:4000"), http("a.example", 4000));
        assert_eq!(split("http://a.example/"), http("a.example", 80));
        assert_eq!(split("http://[::1]:4000"), http("::1", 4000));
        assert_eq!(split("https://10.0.0.1"), Some((true, "10.0.0.1".to_owned(), 443)));
        for bad in ["", "a.example:4000", "localhost", "ftp://a", "http://", "http://a/v1", "http://a?b"] {
            assert_eq!(split(bad), None, "{bad}");
        }
    }

    #[test]
    fn the_default_is_the_node_of_the_settings() {
        let mut config = Config::for_test(std::path::Path::new("unused"));
        for (listen, url) in [
            ("0.0.0.0:4000", "http://127.0.0.1:4000"),
            ("[::]:4000", "http://[::1]:4000"),
            ("10.0.0.1:80", "http://10.0.0.1:80"),
        ] {
            config.listen = listen.parse().expect("an address");
            assert_eq!(url_of(&config), url);
            assert!(split(url).is_some());
        }
        config.tls_cert = Some("cert.pem".into());
        assert_eq!(url_of(&config), "https://10.0.0.1:80");
    }
}
