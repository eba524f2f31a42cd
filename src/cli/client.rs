//! HTTP requests to a node, and its answers: for commands.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use clap::Args;
use http::{Method, Request, Response, StatusCode, Uri, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use super::answers::parse;
use super::{EXIT_USAGE, Failed};
use crate::config::Config;
use crate::tls::Dialler;

/// Longest wait for an answer. The server's own bounds on what is asked here are shorter.
const ANSWER_MAX: Duration = Duration::from_secs(30);
/// Longest wait for each address of the node.
const CONNECT_MAX: Duration = Duration::from_secs(5);
/// Largest answer, and longest line of one: a node bounds what it gives at once below, and the largest is a summary
/// for a backup, of as many bytes as a batch may be set to have (256 MiB).
const ANSWER_BYTES_MAX: usize = 512 << 20;
/// How often a node that cannot answer just now is asked again, and how long apart.
pub(super) const ATTEMPTS_MAX: usize = 30;
pub(super) const ATTEMPTS_APART: Duration = Duration::from_secs(1);

/// Which node is asked: the options of every command that asks one.
#[derive(Debug, Args)]
pub(super) struct NodeArgs {
    /// Ask this node [default: FASTPACA_URL, or the one of FASTPACA_LISTEN on this machine].
    #[arg(long, global = true, value_name = "URL")]
    url: Option<String>,

    /// Trust what the certificates in this PEM file signed, for https [default: FASTPACA_TLS_CA].
    #[arg(long, global = true, value_name = "PATH")]
    ca: Option<PathBuf>,
}

impl NodeArgs {
    pub(super) fn client(&self, config: &Config) -> Result<Client, Failed> {
        let setting = if self.url.is_some() { "--url" } else { "FASTPACA_URL" };
        Client::new(self.url.as_deref(), self.ca.as_deref(), config).map_err(|error| match error {
            ClientError::Url(_) | ClientError::NoAuthority => {
                Failed { why: format!("{setting}: {error}"), code: EXIT_USAGE }
            }
            error => error.into(),
        })
    }
}

/// Why a request brought no good answer; one line for people.
#[derive(Debug, thiserror::Error)]
pub(super) enum ClientError {
    #[error("{0:?} is no http://HOST:PORT or https://HOST:PORT")]
    Url(String),
    #[error("https needs --ca or FASTPACA_TLS_CA, to know whom to trust")]
    NoAuthority,
    #[error(transparent)]
    Tls(#[from] crate::tls::TlsError),
    #[error("{to} cannot be reached: {why}")]
    Unreachable { to: String, why: String },
    #[error("{to} did not answer: {why}")]
    NoAnswer { to: String, why: String },
    #[error("the answer to {what} cannot be read: {why}")]
    Unreadable { what: String, why: String },
    /// What the server said.
    #[error("{said}")]
    Refused { status: u16, current_version: Option<u64>, said: String },
}

impl ClientError {
    /// The same of this conversation, which what a server says does not name.
    pub(super) fn about(self, id: &str) -> ClientError {
        match self {
            ClientError::Refused { status, current_version, said } => {
                ClientError::Refused { status, current_version, said: format!("{id}: {said}") }
            }
            error => error,
        }
    }
}

impl From<ClientError> for String {
    fn from(error: ClientError) -> String {
        error.to_string()
    }
}

/// Where requests go. Connections are used again.
pub(super) struct Client {
    host: String,
    port: u16,
    tls: Option<Dialler>,
    key: Option<String>,
    answer_max: Duration,
    idle: Mutex<Vec<Sender>>,
    /// The node has answered once, so that it is worth waiting for.
    was_reached: AtomicBool,
}

type Sender = SendRequest<Full<Bytes>>;

impl Client {
    /// To `url`, to the one that the settings name, or to the node that these settings would start. Trusts what `ca`
    /// signed, or whom such a node trusts.
    pub(super) fn new(url: Option<&str>, ca: Option<&Path>, config: &Config) -> Result<Client, ClientError> {
        let url = url.or(config.url.as_deref());
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
        let (answer_max, idle, was_reached) = (ANSWER_MAX, Mutex::default(), AtomicBool::new(false));
        Ok(Client { host, port, tls, key, answer_max, idle, was_reached })
    }

    pub(super) fn is_to_this_machine(&self) -> bool {
        self.host == "localhost" || self.host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
    }

    /// For who cannot wait as long as others.
    pub(super) fn within(mut self, answer_max: Duration) -> Client {
        self.answer_max = answer_max;
        self
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
        if body.is_empty() { Ok(Value::Null) } else { parse(&body, path) }
    }

    /// What the answer says, which is asked for as [`Client::patiently`] does.
    pub(super) async fn read<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        parse(&self.patiently(Method::GET, path, Bytes::new()).await?, path)
    }

    /// The answer as text.
    pub(super) async fn ask_text(&self, path: &str) -> Result<String, ClientError> {
        let body = self.exchange(Method::GET, path, Bytes::new()).await?;
        Ok(String::from_utf8_lossy(&body).into_owned())
    }

    /// The answer's bytes, asked for again while the node cannot give one just now. Only for what may be sent again.
    pub(super) async fn patiently(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<Bytes, ClientError> {
        let mut attempts = 1;
        loop {
            match self.exchange(method.clone(), path, body.clone()).await {
                Err(error) if attempts < ATTEMPTS_MAX && self.may_pass(&error) => {}
                answer => return answer,
            }
            attempts += 1;
            sleep(ATTEMPTS_APART).await;
        }
    }

    /// Whether what went wrong may go well soon.
    pub(super) fn may_pass(&self, error: &ClientError) -> bool {
        match error {
            ClientError::Refused { status, .. } => matches!(status, 429 | 503),
            ClientError::Unreachable { .. } | ClientError::NoAnswer { .. } => {
                self.was_reached.load(Ordering::Relaxed)
            }
            _ => false,
        }
    }

    pub(super) async fn exchange(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<Bytes, ClientError> {
        let answered = async {
            let (response, sender) = self.respond(method, path, "*/*", body).await?;
            let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
            let body = body.map_err(|error| self.no_answer(&*error))?.to_bytes();
            if !sender.is_closed() {
                self.idle.lock().push(sender);
            }
            Ok(body)
        };
        let late = format!("no answer within {} seconds", self.answer_max.as_secs());
        timeout(self.answer_max, answered).await.unwrap_or_else(|_| Err(self.no_answer(&late)))
    }

    /// An answer that comes line by line, in the media type asked for.
    pub(super) async fn lines(&self, path: &str, accept: &'static str) -> Result<Lines, ClientError> {
        let responded = timeout(self.answer_max, self.respond(Method::GET, path, accept, Bytes::new()));
        let late = format!("no answer within {} seconds", self.answer_max.as_secs());
        let (response, sender) = responded.await.unwrap_or_else(|_| Err(self.no_answer(&late)))?;
        let (status, body) = (response.status(), response.into_body());
        Ok(Lines { status, body, waiting: BytesMut::new(), from: self.name(), _sender: sender })
    }

    /// The head of a good answer.
    async fn respond(
        &self,
        method: Method,
        path: &str,
        accept: &'static str,
        body: Bytes,
    ) -> Result<(Response<Incoming>, Sender), ClientError> {
        let request = Request::builder().method(method).uri(path);
        let mut request = request.header(header::HOST, self.name()).header(header::ACCEPT, accept);
        if let Some(key) = &self.key {
            request = request.header(header::AUTHORIZATION, format!("Bearer {key}"));
        }
        let request = request.body(Full::new(body)).map_err(|error| self.no_answer(&error))?;
        let (response, sender) = self.first_response(request).await?;
        self.was_reached.store(true, Ordering::Relaxed);
        if response.status().is_success() {
            return Ok((response, sender));
        }
        let status = response.status();
        let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
        let body = body.map_err(|error| self.no_answer(&*error))?.to_bytes();
        Err(self.refused(status, &body))
    }

    /// Over a connection that has served, if one is left and takes it; else over a new one.
    async fn first_response(
        &self,
        mut request: Request<Full<Bytes>>,
    ) -> Result<(Response<Incoming>, Sender), ClientError> {
        loop {
            // Not within the loop's condition: the lock would be held on.
            let idle = self.idle.lock().pop();
            let Some(mut sender) = idle else { break };
            match sender.try_send_request(request).await {
                Ok(response) => return Ok((response, sender)),
                // It was closed meanwhile, before anything was sent.
                Err(mut error) => match error.take_message() {
                    Some(unsent) => request = unsent,
                    None => return Err(self.no_answer(error.error())),
                },
            }
        }
        let mut sender = self.connect().await?;
        let response = sender.send_request(request).await.map_err(|error| self.no_answer(&error))?;
        Ok((response, sender))
    }

    fn refused(&self, status: StatusCode, body: &[u8]) -> ClientError {
        let value: Value = serde_json::from_slice(body).unwrap_or(Value::Null);
        let state = || Some(format!("{}: {}", value["status"].as_str()?, value["reason"].as_str()?));
        let said = value["message"].as_str().map(str::to_owned).or_else(state);
        let said = said.unwrap_or_else(|| format!("{} answered {status}", self.name()));
        let current_version = value["current_version"].as_u64();
        ClientError::Refused { status: status.as_u16(), current_version, said }
    }

    fn no_answer(&self, why: &dyn std::fmt::Display) -> ClientError {
        ClientError::NoAnswer { to: self.name(), why: why.to_string() }
    }

    async fn connect(&self) -> Result<Sender, ClientError> {
        let unreachable = |why: String| ClientError::Unreachable { to: self.name(), why };
        let addresses = tokio::net::lookup_host((self.host.as_str(), self.port)).await;
        let addresses = addresses.map_err(|error| unreachable(error.to_string()))?;
        let mut why = "the name has no address".to_owned();
        for address in addresses {
            let connected = timeout(CONNECT_MAX.min(self.answer_max), TcpStream::connect(address)).await;
            why = match connected {
                Ok(Ok(io)) => return self.shake_hands(io, address).await,
                Ok(Err(error)) => error.to_string(),
                Err(_) => "timed out".to_owned(),
            };
        }
        Err(unreachable(why))
    }

    async fn shake_hands(&self, io: TcpStream, address: SocketAddr) -> Result<Sender, ClientError> {
        match &self.tls {
            None => self.speak(io).await,
            Some(tls) => {
                let io = tls.connect(address.ip(), io).await.map_err(|error| self.no_answer(&error))?;
                self.speak(io).await
            }
        }
    }

    async fn speak<IO>(&self, io: IO) -> Result<Sender, ClientError>
    where
        IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let shaken = hyper::client::conn::http1::handshake(TokioIo::new(io)).await;
        let (sender, connection) = shaken.map_err(|error| self.no_answer(&error))?;
        // It ends with the process; how, shows in the answer.
        tokio::spawn(connection);
        Ok(sender)
    }

    /// `host:port`.
    pub(super) fn name(&self) -> String {
        authority(&self.host, self.port)
    }
}

/// An answer that is read as it comes.
pub(super) struct Lines {
    pub(super) status: StatusCode,
    body: Incoming,
    waiting: BytesMut,
    from: String,
    /// The connection lives as long as this.
    _sender: Sender,
}

impl Lines {
    /// The next line without its end; `None` after the last. A line of silence for longer than `patience` is an error.
    pub(super) async fn next(&mut self, patience: Duration) -> Result<Option<Bytes>, ClientError> {
        let mut looked = 0;
        loop {
            if let Some(end) = memchr::memchr(b'\n', &self.waiting[looked..]) {
                let mut line = self.waiting.split_to(looked + end + 1);
                line.truncate(looked + end);
                return Ok(Some(line.freeze()));
            }
            looked = self.waiting.len();
            let no_answer = |why: String| ClientError::NoAnswer { to: self.from.clone(), why };
            if looked > ANSWER_BYTES_MAX {
                return Err(no_answer("a line is too long".to_owned()));
            }
            match timeout(patience, self.body.frame()).await {
                Ok(Some(Ok(frame))) => {
                    self.waiting.extend_from_slice(frame.data_ref().map_or(&[], |data| data))
                }
                Ok(Some(Err(error))) => return Err(no_answer(error.to_string())),
                Ok(None) if self.waiting.is_empty() => return Ok(None),
                Ok(None) => return Ok(Some(self.waiting.split().freeze())),
                Err(_) => return Err(no_answer(format!("silent for {} seconds", patience.as_secs()))),
            }
        }
    }
}

/// Where a conversation is.
pub(super) fn path_of(id: &str) -> String {
    format!("/v1/conversations/{}", encoded(id))
}

/// `text` as part of a path or a query.
pub(super) fn encoded(text: &str) -> impl std::fmt::Display {
    utf8_percent_encode(text, NON_ALPHANUMERIC)
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
