//! A small client of the HTTP interface, for tests: JSON values in and out, nothing retried, nothing hidden.

use super::process::Process;
use reqwest::Method;
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::time::Duration;

/// Longest wait for an answer; well above the server's own limits, so that its answer is seen rather than ours.
const ANSWER_MAX: Duration = Duration::from_secs(60);

#[derive(Clone)]
pub(crate) struct Client {
    http: reqwest::Client,
    base: String,
}

/// A status and a body, JSON or null.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: Value,
}

impl Answer {
    /// The code of an error answer.
    pub(crate) fn error(&self) -> &str {
        self.body["error"].as_str().unwrap_or_default()
    }

    /// The body, after a check of the status.
    #[track_caller]
    pub(crate) fn expect(self, status: u16) -> Value {
        assert_eq!(self.status, status, "unexpected answer: {}", self.body);
        self.body
    }
}

impl Client {
    /// A client with connections of its own.
    pub(crate) fn of(process: &Process) -> Client {
        Client::at(process.address(), ANSWER_MAX)
    }

    /// A client of whatever listens there, which waits so long for an answer.
    pub(crate) fn at(address: SocketAddr, answer_max: Duration) -> Client {
        let http = reqwest::Client::builder()
            .timeout(answer_max)
            .no_proxy()
            .build()
            .expect("plain settings are valid");
        Client { http, base: format!("http://{address}") }
    }

    /// Sends a request; an error means that no whole answer came.
    pub(crate) async fn request(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> reqwest::Result<Answer> {
        let mut request = self.http.request(method, format!("{}{path}", self.base));
        if let Some(body) = body {
            request = request.json(body);
        }
        let response = request.send().await?;
        let status = response.status().as_u16();
        let bytes = response.bytes().await?;
        Ok(Answer { status, body: serde_json::from_slice(&bytes).unwrap_or(Value::Null) })
    }

    /// A `GET` that must be answered, with whatever status.
    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.request(Method::GET, path, None).await.expect("the server answers")
    }

    /// A `POST` that must be answered, with whatever status.
    pub(crate) async fn post(&self, path: &str, body: &Value) -> Answer {
        self.request(Method::POST, path, Some(body)).await.expect("the server answers")
    }

    /// A `PUT` that must be answered, with whatever status.
    pub(crate) async fn put(&self, path: &str, body: &Value) -> Answer {
        self.request(Method::PUT, path, Some(body)).await.expect("the server answers")
    }

    /// Creates a conversation, or leaves it as it is.
    pub(crate) async fn create(&self, id: &str) {
        let answer = self.put(&format!("/v1/conversations/{id}"), &json!({})).await;
        assert!(matches!(answer.status, 200 | 201), "not created: {answer:?}");
    }

    /// Appends one text message.
    pub(crate) async fn append(&self, id: &str, text: &str) -> Answer {
        self.post(&format!("/v1/conversations/{id}/events"), &json!({"event": message(text)})).await
    }

    /// The whole log of a conversation, page by page.
    pub(crate) async fn log(&self, id: &str) -> Vec<Value> {
        let mut events = Vec::new();
        let mut cursor = 0;
        loop {
            let page = self
                .get(&format!("/v1/conversations/{id}/events?cursor={cursor}&limit=1000"))
                .await
                .expect(200);
            events.extend(page["events"].as_array().expect("events is an array").iter().cloned());
            match page["has_more"].as_bool() {
                Some(true) => cursor = page["next_cursor"].as_u64().expect("a page with more has a cursor"),
                _ => return events,
            }
        }
    }

    /// The value of a metric without labels.
    pub(crate) async fn metric(&self, name: &str) -> f64 {
        let response =
            self.http.get(format!("{}/metrics", self.base)).send().await.expect("the server answers");
        let text = response.text().await.expect("the answer is text");
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.and_then(|value| value.parse().ok()).unwrap_or_else(|| panic!("no metric {name} in\n{text}"))
    }

    /// Everything a client can see of a conversation: itself, its whole log and its window.
    pub(crate) async fn everything(&self, id: &str) -> Value {
        let conversation = self.get(&format!("/v1/conversations/{id}")).await.expect(200);
        let window = self.get(&format!("/v1/conversations/{id}/window?explain=true")).await.expect(200);
        json!({"conversation": conversation, "log": self.log(id).await, "window": window})
    }
}

/// A user's message of one text part.
pub(crate) fn message(text: &str) -> Value {
    json!({"role": "user", "parts": [{"type": "text", "text": text}]})
}

/// The text of a message of one text part, as the log gives it back.
pub(crate) fn text_of(event: &Value) -> &str {
    event["parts"][0]["text"].as_str().unwrap_or_default()
}
