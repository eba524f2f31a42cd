//! A server to talk to, and a client that talks either dialect.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{LazyLock, mpsc};
use std::time::{Duration, Instant};

use fastpaca::config::Config;
use fastpaca::server::Server;
use reqwest::{Method, RequestBuilder, Response, StatusCode};
use serde_json::{Value, json};

use crate::process::{START_MAX, probe};

/// No single step of a test takes longer, unless something hangs.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A server on a thread of its own, since tests have runtimes of their own.
pub(crate) struct TestServer {
    pub(crate) address: SocketAddr,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl TestServer {
    /// Starts one with changed settings, and waits until it is ready.
    pub(crate) fn start(change: impl FnOnce(&mut Config) + Send + 'static) -> TestServer {
        let (tell, told) = mpsc::channel();
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let thread = std::thread::spawn(move || {
            let dir = tempfile::tempdir().unwrap();
            let mut config = Config::for_test(dir.path());
            change(&mut config);
            let runtime =
                tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
            runtime.block_on(async {
                let server = Server::start(config).await.unwrap();
                tell.send(server.address()).unwrap();
                let _ = stopped.await;
                server.shutdown().await;
            });
        });
        let address = told.recv().expect("the server starts");
        let server = TestServer { address, stop: Some(stop), thread: Some(thread) };
        server.await_ready();
        server
    }

    fn await_ready(&self) {
        let deadline = Instant::now() + START_MAX;
        while probe(self.address, "/health/ready").ok() != Some(200) {
            assert!(Instant::now() < deadline, "the server does not become ready");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Begins an orderly shutdown.
    pub(crate) fn stop(&mut self) {
        drop(self.stop.take());
    }

    /// Waits for the shutdown to end.
    pub(crate) fn join(mut self) {
        self.stop();
        self.thread.take().unwrap().join().unwrap();
    }
}

/// The server most tests share; it lives as long as the process.
static SHARED: LazyLock<TestServer> = LazyLock::new(|| TestServer::start(|_| {}));

pub(crate) fn shared() -> SocketAddr {
    SHARED.address
}

/// A name no other test of this run uses.
pub(crate) fn fresh(prefix: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("{prefix}-{}", NEXT.fetch_add(1, Ordering::Relaxed))
}

/// The words of a dialect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Words {
    pub(crate) resources: &'static str,
    pub(crate) event: &'static str,
    pub(crate) events: &'static str,
    pub(crate) window: &'static str,
    pub(crate) include: &'static str,
}

pub(crate) const CONVERSATIONS: Words = Words {
    resources: "conversations",
    event: "event",
    events: "events",
    window: "window",
    include: "includeEvents",
};
pub(crate) const CONTEXTS: Words = Words {
    resources: "contexts",
    event: "message",
    events: "messages",
    window: "context",
    include: "include_messages",
};
pub(crate) const DIALECTS: [Words; 2] = [CONVERSATIONS, CONTEXTS];

/// A client of one server in one dialect.
#[derive(Clone)]
pub(crate) struct Client {
    pub(crate) words: Words,
    pub(crate) address: SocketAddr,
    http: reqwest::Client,
    key: Option<&'static str>,
}

impl Client {
    pub(crate) fn new(words: Words, address: SocketAddr) -> Client {
        let http = reqwest::Client::builder().no_proxy().no_gzip().timeout(PATIENCE).build().unwrap();
        Client { words, address, http, key: None }
    }

    /// Of the shared server.
    pub(crate) fn shared(words: Words) -> Client {
        Client::new(words, shared())
    }

    pub(crate) fn with_key(mut self, key: &'static str) -> Client {
        self.key = Some(key);
        self
    }

    /// A request to any path.
    pub(crate) fn raw(&self, method: Method, path: &str) -> RequestBuilder {
        let request = self.http.request(method, format!("http://{}{path}", self.address));
        match self.key {
            Some(key) => request.bearer_auth(key),
            None => request,
        }
    }

    /// A request to a path below the collection: `{id}/tail?limit=1`.
    pub(crate) fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.raw(method, &format!("/v1/{}/{path}", self.words.resources))
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        Answer::of(self.request(Method::GET, path)).await
    }

    pub(crate) async fn send(&self, method: Method, path: &str, body: Value) -> Answer {
        Answer::of(self.request(method, path).json(&body)).await
    }

    /// Creates a conversation.
    pub(crate) async fn create(&self, id: &str) -> Answer {
        self.put(id, json!({})).await.expect(201)
    }

    pub(crate) async fn put(&self, id: &str, settings: Value) -> Answer {
        self.send(Method::PUT, id, settings).await
    }

    /// The path of the log of `id`.
    pub(crate) fn log(&self, id: &str) -> String {
        format!("{id}/{}", self.words.events)
    }

    pub(crate) async fn post(&self, id: &str, body: Value) -> Answer {
        self.send(Method::POST, &self.log(id), body).await
    }

    /// Appends one text with a token count.
    pub(crate) async fn say(&self, id: &str, text: &str, tokens: u32) -> Answer {
        let event = json!({"role": "user", "content": text, "token_count": tokens});
        self.post(id, json!({self.words.event: event})).await.expect(201)
    }

    /// Appends several texts as one batch.
    pub(crate) async fn say_all(&self, id: &str, texts: impl IntoIterator<Item = String>) -> Answer {
        let events: Vec<Value> = texts
            .into_iter()
            .map(|text| json!({"role": "user", "content": text, "token_count": 1}))
            .collect();
        self.post(id, json!({self.words.events: events})).await.expect(201)
    }

    /// The entries of the log under the dialect's key.
    pub(crate) fn entries<'a>(&self, page: &'a Value) -> &'a Vec<Value> {
        page[self.words.events].as_array().unwrap_or_else(|| panic!("no {} in {page}", self.words.events))
    }

    pub(crate) fn seqs(&self, page: &Value) -> Vec<u64> {
        self.entries(page).iter().map(|event| event["seq"].as_u64().unwrap()).collect()
    }
}

/// An answer, read to its end.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: reqwest::header::HeaderMap,
    pub(crate) text: String,
    /// Null where the text is not JSON.
    pub(crate) json: Value,
}

impl Answer {
    pub(crate) async fn of(request: RequestBuilder) -> Answer {
        Answer::read(request.send().await.unwrap()).await
    }

    /// Nothing when the connection was refused or cut off.
    pub(crate) async fn try_of(request: RequestBuilder) -> Option<Answer> {
        Some(Answer::read(request.send().await.ok()?).await)
    }

    pub(crate) async fn read(response: Response) -> Answer {
        let (status, headers) = (response.status(), response.headers().clone());
        let text = response.text().await.unwrap();
        let json = serde_json::from_str(&text).unwrap_or(Value::Null);
        Answer { status, headers, text, json }
    }

    #[track_caller]
    pub(crate) fn expect(self, status: u16) -> Answer {
        assert_eq!(self.status.as_u16(), status, "{}", self.text);
        self
    }

    /// Expects an error with its code; gives the message.
    #[track_caller]
    pub(crate) fn fails(&self, status: u16, error: &str) -> String {
        assert_eq!(
            (self.status.as_u16(), self.json["error"].as_str()),
            (status, Some(error)),
            "{}",
            self.text
        );
        let media = self.header("content-type");
        assert_eq!(media, "application/json", "errors are JSON");
        self.json["message"].as_str().expect("a message").to_owned()
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }
}
