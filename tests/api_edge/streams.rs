//! Streams by websocket and as server-sent events.

use std::net::SocketAddr;
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use reqwest::Method;
use reqwest::header::ACCEPT;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async};

use crate::process::Node;
use crate::support::{Answer, CONTEXTS, CONVERSATIONS, Client, DIALECTS, PATIENCE, TestServer, fresh};

/// A websocket that reads frames.
struct Socket(WebSocketStream<MaybeTlsStream<TcpStream>>);

impl Socket {
    async fn open(client: &Client, id: &str, query: &str) -> Socket {
        let url = format!("ws://{}/v1/{}/{id}/stream{query}", client.address, client.words.resources);
        Socket(timeout(PATIENCE, connect_async(url)).await.unwrap().unwrap().0)
    }

    /// The next frame other than a ping, or how the stream was closed.
    async fn next(&mut self) -> Result<Value, Option<CloseFrame>> {
        loop {
            match timeout(PATIENCE, self.0.next()).await.expect("a frame in time") {
                Some(Ok(Message::Text(text))) => {
                    let frame: Value = serde_json::from_str(&text).unwrap();
                    if frame["type"] != "ping" {
                        return Ok(frame);
                    }
                }
                Some(Ok(Message::Close(frame))) => return Err(frame),
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return Err(None),
            }
        }
    }

    /// The next frame that is not about the size of the window.
    async fn next_change(&mut self, words: crate::support::Words) -> Value {
        loop {
            let frame = self.next().await.expect("a frame");
            if frame["type"] != words.window {
                return frame;
            }
        }
    }

    async fn is_quiet(&mut self) -> bool {
        timeout(Duration::from_millis(400), self.0.next()).await.is_err()
    }
}

/// A reader of server-sent events.
struct Events {
    response: reqwest::Response,
    buffer: String,
}

impl Events {
    async fn open(client: &Client, id: &str, query: &str, last: Option<u64>) -> Events {
        let mut request =
            client.request(Method::GET, &format!("{id}/stream{query}")).header(ACCEPT, "text/event-stream");
        if let Some(last) = last {
            request = request.header("Last-Event-ID", last.to_string());
        }
        let response = request.send().await.unwrap();
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        Events { response, buffer: String::new() }
    }

    /// The next frame with its id; `None` at the end.
    async fn next(&mut self) -> Option<(u64, Value)> {
        loop {
            while let Some((block, rest)) = self.buffer.split_once("\n\n") {
                let (block, rest) = (block.to_owned(), rest.to_owned());
                self.buffer = rest;
                let field =
                    |name: &str| block.lines().find_map(|line| line.strip_prefix(name)).map(str::to_owned);
                if let (Some(id), Some(data)) = (field("id: "), field("data: ")) {
                    return Some((id.parse().unwrap(), serde_json::from_str(&data).unwrap()));
                }
            }
            let chunk = timeout(PATIENCE, self.response.chunk()).await.expect("a chunk in time").unwrap()?;
            self.buffer.push_str(std::str::from_utf8(&chunk).unwrap());
        }
    }
}

#[tokio::test]
async fn replay_then_live_without_a_seam() {
    for words in DIALECTS {
        let client = Client::shared(words);
        let id = fresh("stream");
        client.create(&id).await;
        client.say_all(&id, (1..=300).map(|n| n.to_string())).await;
        let writer = tokio::spawn({
            let (client, id) = (client.clone(), id.clone());
            async move {
                for n in 301..=400 {
                    client.say(&id, &n.to_string(), 1).await;
                }
            }
        });
        let mut socket = Socket::open(&client, &id, "?cursor=0").await;
        for seq in 1..=400 {
            let frame = socket.next_change(words).await;
            assert_eq!(
                (&frame["type"], &frame["seq"], &frame["version"]),
                (&json!(words.event), &json!(seq), &json!(seq))
            );
            assert_eq!(frame[words.event]["parts"][0]["text"], seq.to_string());
            assert_eq!(frame[words.event]["seq"], seq);
        }
        writer.await.unwrap();
    }
}

#[tokio::test]
async fn a_cursor_resumes_and_no_cursor_means_from_now() {
    let client = Client::shared(CONVERSATIONS);
    let id = fresh("resume");
    client.create(&id).await;
    client.say_all(&id, (1..=5).map(|n| n.to_string())).await;
    let mut from_three = Socket::open(&client, &id, "?cursor=3").await;
    assert_eq!(from_three.next().await.unwrap()["seq"], 4);
    assert_eq!(from_three.next().await.unwrap()["seq"], 5);
    assert!(from_three.is_quiet().await, "the size of past windows is not replayed");
    let mut from_now = Socket::open(&client, &id, "").await;
    assert!(from_now.is_quiet().await);
    client.say(&id, "6", 1).await;
    for socket in [&mut from_three, &mut from_now] {
        let frame = socket.next().await.unwrap();
        assert_eq!((&frame["type"], &frame["seq"]), (&json!("event"), &json!(6)));
    }
}

#[tokio::test]
async fn news_is_followed_by_the_size_of_the_window() {
    for words in DIALECTS {
        let client = Client::shared(words);
        let id = fresh("sizes");
        client.put(&id, json!({"token_budget": 100})).await.expect(201);
        let mut socket = Socket::open(&client, &id, "").await;
        client.say(&id, "a", 10).await;
        assert_eq!(socket.next().await.unwrap()["type"], words.event);
        let size = socket.next().await.unwrap();
        assert_eq!(
            size,
            json!({"type": words.window, "version": 1, "used_tokens": 10, "needs_compaction": false})
        );
        client.say_all(&id, (0..40).map(|n| n.to_string())).await;
        let mut sizes = Vec::new();
        while sizes.last().is_none_or(|size: &Value| size["version"] != 41) {
            let frame = socket.next().await.unwrap();
            if frame["type"] == words.window {
                sizes.push(frame);
            }
        }
        assert!(sizes.len() <= 2, "coalesced: {sizes:?}");
        assert_eq!(sizes.last().unwrap()["used_tokens"], 50);
    }
}

#[tokio::test]
async fn every_version_yields_a_frame() {
    let client = Client::shared(CONTEXTS);
    let id = fresh("versions");
    client.create(&id).await;
    client.say(&id, "a", 1).await;
    client.put(&id, json!({"token_budget": 5_000})).await.expect(200);
    client.send(Method::PATCH, &format!("{id}/metadata"), json!({"a": 1})).await.expect(200);
    let replacement = json!([{"role": "system", "content": "s", "token_count": 2}]);
    client
        .send(Method::POST, &format!("{id}/compact"), json!({"replacement": replacement}))
        .await
        .expect(200);
    client.say(&id, "b", 1).await;
    client.request(Method::DELETE, &id).send().await.unwrap();
    let expected = [
        ("message", 1),
        ("context", 2),
        ("context", 3),
        ("compaction", 4),
        ("message", 5),
        ("tombstoned", 6),
    ];
    let mut socket = Socket::open(&client, &id, "?cursor=0").await;
    for (kind, version) in expected {
        let frame = socket.next().await.unwrap();
        assert_eq!((&frame["type"], &frame["version"]), (&json!(kind), &json!(version)), "{frame}");
        if kind == "compaction" {
            assert_eq!(frame["range"], json!({"from_seq": 1, "to_seq": 1}));
        }
    }
    let close = socket.next().await.unwrap_err().expect("a close frame");
    assert_eq!((u16::from(close.code), close.reason.as_str()), (1000, "cursor=6"));
    let mut late = Socket::open(&client, &id, "").await;
    assert_eq!(late.next().await.unwrap()["type"], "tombstoned");
    assert_eq!(u16::from(late.next().await.unwrap_err().expect("a close frame").code), 1000);
}

#[tokio::test]
async fn a_cursor_of_another_life_is_reset() {
    let client = Client::shared(CONVERSATIONS);
    let id = fresh("reset");
    client.create(&id).await;
    client.say(&id, "a", 1).await;
    let mut socket = Socket::open(&client, &id, "?cursor=50").await;
    assert_eq!(socket.next().await.unwrap(), json!({"type": "reset", "version": 1}));
    client.say(&id, "b", 1).await;
    assert_eq!(socket.next().await.unwrap()["seq"], 2);
}

#[tokio::test]
async fn events_can_be_left_out() {
    for words in DIALECTS {
        let client = Client::shared(words);
        let id = fresh("sizes-only");
        client.create(&id).await;
        let mut socket = Socket::open(&client, &id, &format!("?{}=false", words.include)).await;
        client.say(&id, "a", 4).await;
        let frame = socket.next().await.unwrap();
        assert_eq!((&frame["type"], &frame["used_tokens"]), (&json!(words.window), &json!(4)));
    }
}

#[tokio::test]
async fn server_sent_events_resume_by_their_id() {
    for words in DIALECTS {
        let client = Client::shared(words);
        let id = fresh("sse");
        client.create(&id).await;
        client.say_all(&id, (1..=3).map(|n| n.to_string())).await;
        let mut events = Events::open(&client, &id, "?cursor=0", None).await;
        for seq in 1..=3 {
            let (version, frame) = events.next().await.unwrap();
            assert_eq!((version, &frame["type"], &frame["seq"]), (seq, &json!(words.event), &json!(seq)));
        }
        client.say(&id, "line\nbreak", 1).await;
        let (version, frame) = events.next().await.unwrap();
        assert_eq!((version, &frame[words.event]["parts"][0]["text"]), (4, &json!("line\nbreak")));
        drop(events);
        // A client that reconnects repeats its first URL.
        let mut events = Events::open(&client, &id, "?cursor=0", Some(2)).await;
        assert_eq!(events.next().await.unwrap().0, 3);
        assert_eq!(events.next().await.unwrap().0, 4);
        client.request(Method::DELETE, &id).send().await.unwrap();
        let (version, last) = events.next().await.unwrap();
        assert_eq!((version, &last["type"]), (5, &json!("tombstoned")));
        assert_eq!(events.next().await, None);
        let over = client.request(Method::GET, &format!("{id}/stream")).header(ACCEPT, "text/event-stream");
        let over = over.header("Last-Event-ID", "5").send().await.unwrap();
        assert_eq!(over.status(), 204, "stops a client from reconnecting");
    }
}

/// The `id` of the first block of server-sent events.
async fn greeting_id(client: &Client, id: &str, query: &str) -> Option<u64> {
    let mut events = Events::open(client, id, query, None).await;
    let block = timeout(PATIENCE, events.response.chunk()).await.unwrap().unwrap().unwrap();
    let block = std::str::from_utf8(&block).unwrap();
    assert!(block.starts_with("retry: ") && block.ends_with("\n\n"), "{block:?}");
    block.lines().find_map(|line| line.strip_prefix("id: ")).map(|id| id.parse().unwrap())
}

#[tokio::test]
async fn a_client_cut_off_before_the_first_frame_misses_nothing() {
    let client = Client::shared(CONVERSATIONS);
    let id = fresh("greeted");
    client.create(&id).await;
    client.say_all(&id, (1..=3).map(|n| n.to_string())).await;
    assert_eq!(greeting_id(&client, &id, "?cursor=2").await, Some(2));
    assert_eq!(greeting_id(&client, &id, "?cursor=50").await, None, "a reset comes first");
    let last = greeting_id(&client, &id, "").await;
    assert_eq!(last, Some(3));
    client.say(&id, "4", 1).await;
    client.say(&id, "5", 1).await;
    let mut events = Events::open(&client, &id, "", last).await;
    for seq in [4, 5] {
        assert_eq!(events.next().await.unwrap().1["seq"], seq);
    }
}

#[tokio::test]
async fn a_client_that_has_seen_only_pings_misses_nothing() {
    let client = Client::shared(CONVERSATIONS);
    let id = fresh("pinged");
    client.create(&id).await;
    client.say_all(&id, (1..=3).map(|n| n.to_string())).await;
    let (last, ping) = Events::open(&client, &id, "", None).await.next().await.unwrap();
    assert_eq!((last, ping), (3, json!({"type": "ping", "version": 3})));
    client.say_all(&id, (4..=5).map(|n| n.to_string())).await;
    let mut events = Events::open(&client, &id, "", Some(last)).await;
    for seq in [4, 5] {
        assert_eq!(events.next().await.unwrap().1["seq"], seq);
    }
}

#[tokio::test]
async fn a_last_event_id_is_checked_like_a_cursor() {
    let client = Client::shared(CONVERSATIONS);
    let id = fresh("last-id");
    client.create(&id).await;
    client.say(&id, "a", 1).await;
    let open = |last: &'static str| {
        let stream = client.request(Method::GET, &format!("{id}/stream?cursor=0"));
        stream.header(ACCEPT, "text/event-stream").header("Last-Event-ID", last)
    };
    for wrong in ["abc", "-1", "1.5", "18446744073709551616"] {
        let message = Answer::of(open(wrong)).await.fails(400, "invalid_request");
        assert!(message.starts_with("Last-Event-ID must be a whole number"), "{message}");
    }
    let response = open("").send().await.unwrap();
    assert_eq!(response.status(), 200);
    let mut events = Events { response, buffer: String::new() };
    assert_eq!(events.next().await.unwrap().0, 1, "none is as good as absent");
}

#[tokio::test]
async fn what_cannot_be_streamed_is_said_before_the_upgrade() {
    for words in DIALECTS {
        let client = Client::shared(words);
        let url = format!("ws://{}/v1/{}/nowhere/stream", client.address, words.resources);
        let Err(Error::Http(refusal)) = connect_async(url).await else { panic!("upgraded") };
        assert_eq!(refusal.status(), 404);
        let body: Value = serde_json::from_slice(refusal.body().as_ref().unwrap()).unwrap();
        assert_eq!(body["error"], "not_found");
        let id = fresh("refused");
        client.create(&id).await;
        let query = format!("{id}/stream?cursor=x");
        let wrong = client.request(Method::GET, &query).header(ACCEPT, "text/event-stream");
        assert!(Answer::of(wrong).await.fails(400, "invalid_request").starts_with("cursor"));
    }
}

#[tokio::test]
async fn pongs_and_chatter_are_taken_but_large_messages_are_not() {
    let client = Client::shared(CONVERSATIONS);
    let id = fresh("chatter");
    client.create(&id).await;
    let mut socket = Socket::open(&client, &id, "").await;
    socket.0.send(Message::text(r#"{"type":"pong"}"#)).await.unwrap();
    socket.0.send(Message::binary(vec![0; 1_000])).await.unwrap();
    client.say(&id, "a", 1).await;
    assert_eq!(socket.next().await.unwrap()["seq"], 1);
    let _ = socket.0.send(Message::binary(vec![0; 70 << 10])).await;
    while socket.next().await.is_ok() {}
}

#[tokio::test]
async fn streams_are_capped_and_give_their_place_back() {
    let server = TestServer::start(|config| config.stream_max_connections = 2);
    let client = Client::new(CONVERSATIONS, server.address);
    client.create("a").await;
    let first = Socket::open(&client, "a", "").await;
    let _second = Events::open(&client, "a", "", None).await;
    let third = client.request(Method::GET, "a/stream").header(ACCEPT, "text/event-stream");
    let refused = Answer::of(third).await;
    refused.fails(503, "too_many_streams");
    assert_eq!(refused.header("retry-after"), "1");
    drop(first);
    let reopened = async {
        loop {
            let request = client.request(Method::GET, "a/stream").header(ACCEPT, "text/event-stream");
            if request.send().await.unwrap().status() == 200 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(PATIENCE, reopened).await.expect("a place comes free");
    server.join();
}

#[tokio::test]
async fn shutting_down_sends_streams_elsewhere() {
    let mut server = TestServer::start(|_| {});
    let client = Client::new(CONVERSATIONS, server.address);
    client.create("a").await;
    client.say("a", "x", 1).await;
    let mut socket = Socket::open(&client, "a", "?cursor=0").await;
    assert_eq!(socket.next().await.unwrap()["seq"], 1);
    let mut events = Events::open(&client, "a", "?cursor=1", None).await;
    let poll = tokio::spawn({
        let client = client.clone();
        async move { client.get("a/events?cursor=1&wait=60").await }
    });
    let served = async {
        while !Answer::of(client.raw(Method::GET, "/metrics")).await.text.contains("\nfastpaca_streams 3\n") {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(PATIENCE, served).await.expect("the poll is served");
    server.stop();
    let close = socket.next().await.unwrap_err().expect("a close frame");
    assert_eq!((u16::from(close.code), close.reason.as_str()), (1001, "cursor=1"));
    assert_eq!(events.next().await, None);
    assert_eq!(client.seqs(&poll.await.unwrap().expect(200).json), [0_u64; 0]);
    tokio::task::spawn_blocking(|| server.join()).await.unwrap();
}

#[tokio::test]
async fn a_reader_that_never_reads_holds_up_nobody() {
    let client = Client::shared(CONVERSATIONS);
    let id = fresh("stuck");
    client.create(&id).await;
    let stuck = Socket::open(&client, &id, "?cursor=0").await;
    let mut reading = Socket::open(&client, &id, "?cursor=0").await;
    let text = "x".repeat(500_000);
    for seq in 1..=40_u64 {
        client.say(&id, &text, 1).await;
        let frame = reading.next_change(CONVERSATIONS).await;
        assert_eq!(frame["seq"], seq);
    }
    // Having caught up late, the reader gets everything, at its own pace.
    let mut late = stuck;
    for seq in 1..=40_u64 {
        assert_eq!(late.next_change(CONVERSATIONS).await["seq"], seq);
    }
}

#[tokio::test]
async fn keys_are_wanted_before_the_upgrade() {
    let server = TestServer::start(|config| config.api_keys = vec![fastpaca::config::Secret::new("k")]);
    let url = |address: SocketAddr| format!("ws://{address}/v1/conversations/a/stream");
    Client::new(CONVERSATIONS, server.address).with_key("k").create("a").await;
    let Err(Error::Http(refusal)) = connect_async(url(server.address)).await else { panic!("upgraded") };
    assert_eq!(refusal.status(), 401);
    assert_eq!(refusal.headers()["www-authenticate"], "Bearer");
    let mut request = url(server.address).into_client_request().unwrap();
    request.headers_mut().insert("authorization", "Bearer k".parse().unwrap());
    assert!(connect_async(request).await.is_ok());
}

/// What was taken under a larger limit is delivered under a smaller one.
#[tokio::test]
async fn an_event_larger_than_the_limit_of_today_is_delivered() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::in_dir(dir.path()).with_env("FASTPACA_TOKEN_ESTIMATOR", "chars:4");
    let text = "x".repeat(900_000);
    let mut server = node.start().unwrap();
    let client = Client::new(CONVERSATIONS, server.address());
    client.create("a").await;
    client.say("a", &text, 1).await;
    server.terminate();
    server.wait_exit(PATIENCE).expect("it ends");
    let server = node.with_env("FASTPACA_BODY_MAX_BYTES", "64KiB").start().unwrap();
    let client = Client::new(CONVERSATIONS, server.address());
    client.post("a", json!({"event": {"role": "user", "content": text}})).await.fails(413, "too_large");
    let mut socket = Socket::open(&client, "a", "?cursor=0").await;
    let frame = socket.next_change(CONVERSATIONS).await;
    assert_eq!(frame["event"]["parts"][0]["text"], text);
}
