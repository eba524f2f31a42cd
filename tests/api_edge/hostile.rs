//! Clients that mean harm or know no better: a clear 4xx or a closed connection, and nobody else notices.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use fastpaca::api::PEER_PATH;
use fastpaca::config::Secret;
use reqwest::Method;
use reqwest::header::CONTENT_TYPE;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;

use crate::process::{Node, peak_resident_bytes, resident_bytes};
use crate::support::{Answer, CONVERSATIONS, Client, DIALECTS, PATIENCE, TestServer, fresh};

/// Sends bytes and reads what comes until the connection ends.
async fn exchange(address: SocketAddr, bytes: &[u8]) -> String {
    let mut socket = TcpStream::connect(address).await.unwrap();
    let _ = socket.write_all(bytes).await;
    let mut answer = Vec::new();
    let _ = timeout(PATIENCE, socket.read_to_end(&mut answer)).await.expect("the connection ends");
    String::from_utf8_lossy(&answer).into_owned()
}

async fn post_text(client: &Client, id: &str, text: impl Into<reqwest::Body>) -> Answer {
    let request = client.request(Method::POST, &client.log(id)).header(CONTENT_TYPE, "application/json");
    Answer::of(request.body(text)).await
}

#[tokio::test]
async fn bodies_that_are_not_json_are_named_as_such() {
    for words in DIALECTS {
        let client = Client::shared(words);
        let id = fresh("not-json");
        client.create(&id).await;
        let in_event =
            |member: &str| format!(r#"{{"{}":{{"role":"user","parts":[{member}]}}}}"#, words.event);
        for text in [
            String::new(),
            "{".to_owned(),
            "nonsense".to_owned(),
            "{}{}".to_owned(),
            in_event(r#"{"type":"text","text":"\ud800"}"#),
            in_event(r#"{"type":"text","text":"\x"}"#),
            in_event("{\"type\":\"text\",\"text\":\"a\nb\"}"),
            in_event(r#"{"type":"text",}"#),
            in_event(&format!("{}{}", "[".repeat(200), "]".repeat(200))),
            in_event(&"[".repeat(100_000)),
        ] {
            post_text(&client, &id, text).await.fails(400, "invalid_json");
        }
        let invalid_utf8 = [b"{\"".as_slice(), &[0xff, 0xfe], b"\":1}"].concat();
        post_text(&client, &id, invalid_utf8).await.fails(400, "invalid_json");
        let lone = in_event(r#"{"type":"text","text":"\uDEAD"}"#);
        assert!(post_text(&client, &id, lone).await.fails(400, "invalid_json").contains(r"\uDEAD"));
        for path in [id.clone(), format!("{id}/compact"), format!("{id}/metadata")] {
            let method = match path.rsplit('/').next().unwrap() {
                "compact" => Method::POST,
                "metadata" => Method::PATCH,
                _ => Method::PUT,
            };
            Answer::of(client.request(method, &path).body("{\"a\":")).await.fails(400, "invalid_json");
        }
        assert_eq!(client.get(&id).await.json["version"], 0);
    }
}

#[tokio::test]
async fn wrong_types_for_every_field_are_named() {
    let wrong = [json!(true), json!(-1), json!(1.5), json!("x"), json!([[]]), json!({"a": {}})];
    for words in DIALECTS {
        let client = Client::shared(words);
        let id = fresh("types");
        client.create(&id).await;
        // Field, the kinds of JSON it takes.
        let event_fields = [
            ("role", "string"),
            ("parts", "array of objects"),
            ("content", "string"),
            ("metadata", "object"),
            ("token_count", "number"),
        ];
        let body_fields = [("idempotency_key", "string"), ("if_version", "number")];
        let fits = |kind: &str, value: &Value| match kind {
            "string" => value.is_string(),
            "object" => value.is_object(),
            "number" => value.is_u64(),
            _ => false,
        };
        for value in &wrong {
            for (field, kind) in event_fields.iter().filter(|(_, kind)| !fits(kind, value)) {
                let mut event = json!({"role": "user", "parts": []});
                event[*field] = value.clone();
                if *field == "content" {
                    event.as_object_mut().unwrap().remove("parts");
                }
                let message =
                    client.post(&id, json!({words.event: event})).await.fails(400, "invalid_request");
                assert!(
                    message.starts_with(&format!("{}.{field}", words.event)),
                    "{field} ({kind}): {message}"
                );
            }
            for (field, _) in body_fields.iter().filter(|(_, kind)| !fits(kind, value)) {
                let body = json!({words.event: {"role": "user", "content": "a"}, *field: value});
                let message = client.post(&id, body).await.fails(400, "invalid_request");
                assert!(message.starts_with(field), "{message}");
            }
            let message = client.post(&id, value.clone()).await.fails(400, "invalid_request");
            assert!(!message.is_empty());
        }
        assert_eq!(client.get(&id).await.json["version"], 0, "nothing was appended");
    }
}

#[tokio::test]
async fn bodies_over_the_limit_are_refused_whole() {
    // Segments of the usual size, into which a batch of the largest size fits.
    let server = TestServer::start(|config| config.segment_bytes = 64 << 20);
    let client = Client::new(CONVERSATIONS, server.address);
    let id = fresh("large");
    client.create(&id).await;
    let event = |bytes: usize| {
        json!({"event": {"role": "user", "content": "x".repeat(bytes), "token_count": 1}}).to_string()
    };
    post_text(&client, &id, event((1 << 20) - 100)).await.expect(201);
    let message = post_text(&client, &id, event(1 << 20)).await.fails(413, "too_large");
    assert!(message.contains("1048576"), "{message}");
    let batch = |count: usize, bytes: usize| {
        let one = json!({"role": "user", "content": "x".repeat(bytes), "token_count": 1});
        json!({"events": vec![one; count]}).to_string()
    };
    post_text(&client, &id, batch(7, 1_000_000)).await.expect(201);
    let message = post_text(&client, &id, batch(9, 1_000_000)).await.fails(413, "too_large");
    assert!(message.contains("8388608"), "{message}");
    let message = post_text(&client, &id, batch(2, 1 << 20)).await.fails(413, "too_large");
    assert!(message.starts_with("events[0]"), "{message}");
    let put =
        client.request(Method::PUT, &id).body(format!(r#"{{"metadata":{{"a":"{}"}}}}"#, "x".repeat(1 << 20)));
    Answer::of(put).await.fails(413, "too_large");
}

#[tokio::test]
async fn who_is_still_sending_gets_to_see_a_refusal() {
    let server = TestServer::start(|config| {
        config.api_keys = vec![Secret::new("k")];
        config.max_inflight_requests = 1;
    });
    let client = Client::new(CONVERSATIONS, server.address).with_key("k");
    let (key, piece) = ("authorization: Bearer k\r\n", vec![b' '; 64 << 10]);
    for (path, headers, pieces, status) in [
        ("conversations/a/events", String::new(), 15, 401),
        ("nowhere", key.to_owned(), 112, 404),
        ("conversations/a", key.to_owned(), 112, 405),
        ("conversations/a/events", format!("{key}accept: text/html\r\n"), 112, 406),
        ("conversations/a/events", format!("{key}content-type: text/plain\r\n"), 112, 415),
    ] {
        let length = pieces * piece.len();
        let head =
            format!("POST /v1/{path} HTTP/1.1\r\nhost: x\r\ncontent-length: {length}\r\n{headers}\r\n");
        let mut socket = TcpStream::connect(server.address).await.unwrap();
        socket.write_all(head.as_bytes()).await.unwrap();
        for sent in 0..pieces {
            socket.write_all(&piece).await.unwrap_or_else(|error| panic!("{status}: {error}"));
            tokio::time::sleep(Duration::from_millis(10)).await;
            if sent == pieces / 2 {
                // The one that is refused holds no place among the requests at work.
                client.get("absent").await.fails(404, "not_found");
            }
        }
        let mut answer = [0; 12];
        timeout(PATIENCE, socket.read_exact(&mut answer)).await.unwrap().unwrap();
        assert_eq!(String::from_utf8_lossy(&answer), format!("HTTP/1.1 {status}"));
    }
}

#[tokio::test]
async fn a_hundred_megabytes_are_refused_in_bounded_memory() {
    let dir = tempfile::tempdir().unwrap();
    let server = Node::in_dir(dir.path()).with_env("FASTPACA_TOKEN_ESTIMATOR", "chars:4").start().unwrap();
    let client = Client::new(CONVERSATIONS, server.address());
    client.create("huge").await;
    let before = resident_bytes(server.pid()).unwrap();
    post_text(&client, "huge", vec![b' '; 100 << 20]).await.fails(413, "too_large");
    let chunk = bytes::Bytes::from(vec![b'['; 1 << 20]);
    for _ in 0..4 {
        let chunk = chunk.clone();
        let chunks =
            futures_util::stream::iter((0..100).map(move |_| Ok::<_, std::io::Error>(chunk.clone())));
        post_text(&client, "huge", reqwest::Body::wrap_stream(chunks)).await.fails(413, "too_large");
    }
    let grown = resident_bytes(server.pid()).unwrap().saturating_sub(before);
    assert!(grown < 48 << 20, "grew by {} MiB", grown >> 20);
}

#[tokio::test]
async fn millions_of_items_are_refused_in_bounded_memory() {
    let dir = tempfile::tempdir().unwrap();
    let server = Node::in_dir(dir.path()).with_env("FASTPACA_TOKEN_ESTIMATOR", "chars:4").start().unwrap();
    let client = Client::new(CONVERSATIONS, server.address());
    client.create("many").await;
    let before = resident_bytes(server.pid()).unwrap();
    let count = 4_000_000;
    let ones = vec!["1"; count].join(",");
    for (body, field) in [
        (format!(r#"{{"events":[{ones}]}}"#), "events must be an array of 1 to 1000"),
        (
            format!(r#"{{"events":[{{"role":"user","parts":[{ones}]}}]}}"#),
            "events[0].parts must be an array of at most 1024",
        ),
    ] {
        let message = post_text(&client, "many", body).await.fails(400, "invalid_request");
        assert_eq!(message, format!("{field}, not {count}"));
    }
    let grown = peak_resident_bytes(server.pid()).unwrap().saturating_sub(before);
    assert!(grown < 48 << 20, "grew by {} MiB", grown >> 20);
}

#[tokio::test]
async fn slow_heads_bodies_and_idle_starts_are_cut_off() {
    let server = TestServer::start(|config| {
        config.header_timeout = Duration::from_millis(400);
        config.body_timeout = Duration::from_millis(800);
    });
    let address = server.address;
    Client::new(CONVERSATIONS, address).create("a").await;
    for head in
        ["", "P", "PRI * HTTP/2.0\r\n", "GET /health/live HT", "GET /health/live HTTP/1.1\r\nhost: x\r\n"]
    {
        let started = Instant::now();
        let answer = exchange(address, head.as_bytes()).await;
        assert!(!answer.contains(" 200 "), "{head:?}: {answer}");
        assert!(started.elapsed() < PATIENCE, "{head:?}");
    }
    // Half a second request on a connection that already served one.
    let mut reused = TcpStream::connect(address).await.unwrap();
    reused.write_all(b"GET /health/live HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    tokio::time::sleep(Duration::from_millis(200)).await;
    reused.write_all(b"GET /health").await.unwrap();
    let mut answer = String::new();
    let _ = timeout(PATIENCE, reused.read_to_string(&mut answer)).await.expect("the connection ends");
    assert_eq!(answer.matches(" 200 OK").count(), 1, "{answer}");
    let body =
        b"POST /v1/conversations/a/events HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{\"event\"";
    let answer = exchange(address, body).await;
    assert!(answer.starts_with("HTTP/1.1 408") && answer.contains("request_timeout"), "{answer}");
    let body = b"POST /internal/restore HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n\x01";
    let answer = exchange(address, body).await;
    assert!(answer.starts_with("HTTP/1.1 408") && answer.contains("request_timeout"), "{answer}");
    // A head that drips, and so is never idle.
    let mut dripping = TcpStream::connect(address).await.unwrap();
    let started = Instant::now();
    while dripping.write_all(b"G").await.is_ok() && started.elapsed() < PATIENCE {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(started.elapsed() < PATIENCE);
}

#[tokio::test]
async fn an_idle_connection_lives_longer_than_a_head_may_take() {
    let server = TestServer::start(|config| config.header_timeout = Duration::from_secs(1));
    let mut socket = TcpStream::connect(server.address).await.unwrap();
    for _ in 0..3 {
        socket.write_all(b"GET /health/live HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        let mut answer = [0; 512];
        let read = timeout(PATIENCE, socket.read(&mut answer)).await.unwrap().unwrap();
        assert!(answer[..read].starts_with(b"HTTP/1.1 200"));
        tokio::time::sleep(Duration::from_millis(2_300)).await;
    }
}

#[tokio::test]
async fn half_open_connections_lock_nobody_out() {
    let server = TestServer::start(|config| {
        config.header_timeout = Duration::from_secs(2);
        config.max_connections = 300;
        config.max_connections_per_address = 250;
    });
    let _open = futures_util::future::join_all((0..1_000).map(|_| TcpStream::connect(server.address))).await;
    let client = Client::new(CONVERSATIONS, server.address);
    let served = async {
        while Answer::try_of(client.raw(Method::GET, "/health/live")).await.is_none() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    timeout(PATIENCE, served).await.expect("the half-open ones are cut off");
    let metrics = Answer::of(client.raw(Method::GET, "/metrics")).await.expect(200).text;
    let refused =
        metrics.lines().find_map(|line| line.strip_prefix("fastpaca_connections_refused_total ")).unwrap();
    assert!(refused.parse::<u64>().unwrap() > 0, "{refused}");
}

#[tokio::test]
async fn clients_that_take_every_connection_leave_room_for_nodes() {
    let full = 8;
    let server = TestServer::start(move |config| {
        (config.max_connections, config.max_connections_per_address) = (full, full);
    });
    let mut clients = Vec::new();
    for _ in 0..full {
        let mut client = TcpStream::connect(server.address).await.unwrap();
        client.write_all(b"GET /health/live HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        let read = timeout(PATIENCE, client.read(&mut [0; 512])).await.unwrap();
        assert!(read.unwrap() > 0, "it is served and stays open");
        clients.push(client);
    }
    let client = b"GET /health/live HTTP/1.1\r\nhost: x\r\n\r\n";
    assert_eq!(exchange(server.address, client).await, "");
    // This one shows nothing for long, and is cut off.
    exchange(server.address, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await;
    let mut node = TcpStream::connect(server.address).await.unwrap();
    let upgrade = format!(
        "GET {PEER_PATH} HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n\
         sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    );
    node.write_all(upgrade.as_bytes()).await.unwrap();
    let mut answer = [0; 512];
    let read = timeout(PATIENCE, node.read(&mut answer)).await.unwrap().unwrap();
    assert!(answer[..read].starts_with(b"HTTP/1.1 101"), "{}", String::from_utf8_lossy(&answer[..read]));

    // Silent ones do not keep what is kept for nodes.
    let silent = futures_util::future::join_all((0..64).map(|_| TcpStream::connect(server.address))).await;
    let enters = async {
        while !exchange(server.address, format!("GET {PEER_PATH} HTTP/1.1\r\nhost: x\r\n\r\n").as_bytes())
            .await
            .starts_with("HTTP/1.1 400")
        {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    timeout(PATIENCE, enters).await.expect("they are cut off");
    drop(silent);
    drop(clients);
}

#[tokio::test]
async fn garbage_and_oversized_heads_end_the_connection() {
    let address = Client::shared(CONVERSATIONS).address;
    for bytes in [
        b"\x00\x01\x02\x03\r\n\r\n".to_vec(),
        b"GET / HTTP/9.9\r\n\r\n".to_vec(),
        format!("GET /{} HTTP/1.1\r\nhost: x\r\n\r\n", "a".repeat(100_000)).into_bytes(),
        format!("GET / HTTP/1.1\r\nhost: x\r\nx-long: {}\r\n\r\n", "a".repeat(100_000)).into_bytes(),
        b"POST /v1/conversations/a HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nabcdef".to_vec(),
        b"POST /v1/conversations/a HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n".to_vec(),
    ] {
        let answer = exchange(address, &bytes).await;
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{answer}");
    }
}

#[tokio::test]
async fn an_answer_nobody_reads_holds_up_nobody() {
    let client = Client::shared(CONVERSATIONS);
    let id = fresh("unread");
    client.create(&id).await;
    for _ in 0..8 {
        client.say(&id, &"x".repeat(900_000), 1).await;
    }
    let mut unread = Vec::new();
    for _ in 0..20 {
        let mut socket = TcpStream::connect(client.address).await.unwrap();
        let head = format!("GET /v1/conversations/{} HTTP/1.1\r\nhost: x\r\n\r\n", client.log(&id));
        socket.write_all(head.as_bytes()).await.unwrap();
        unread.push(socket);
    }
    let started = Instant::now();
    for _ in 0..20 {
        client.say(&fresh_conversation(&client).await, "quick", 1).await;
    }
    assert!(started.elapsed() < Duration::from_secs(60));
}

/// Asks for something and reads nothing.
async fn ask_and_ignore(address: SocketAddr, method: &str, path: &str, headers: &str) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4 << 10).unwrap();
    let mut socket = socket.connect(address).await.unwrap();
    let head = format!("{method} /v1/conversations/{path} HTTP/1.1\r\nhost: x\r\n{headers}\r\n");
    socket.write_all(head.as_bytes()).await.unwrap();
    socket
}

#[tokio::test]
async fn an_answer_that_is_not_sent_counts_as_a_request_at_work() {
    let server = TestServer::start(|config| {
        config.max_inflight_requests = 2;
        config.segment_bytes = 64 << 20;
    });
    let client = Client::new(CONVERSATIONS, server.address);
    client.create("a").await;
    // More than the system's buffers take.
    for _ in 0..16 {
        client.say("a", &"x".repeat(1_000_000), 1).await;
    }
    let tag = client.get("a/window?budget_tokens=1").await.expect(200).header("etag").to_owned();
    let mut unread = Vec::new();
    for (method, path, headers) in [
        ("HEAD", "a/window", String::new()),
        ("GET", "a/window?budget_tokens=1", format!("if-none-match: {tag}\r\n")),
        ("GET", "a/events", "accept: application/x-ndjson\r\n".to_owned()),
        ("GET", "a/stream?cursor=0", "accept: text/event-stream\r\n".to_owned()),
    ] {
        for _ in 0..3 {
            let socket = ask_and_ignore(server.address, method, path, &headers).await;
            timeout(PATIENCE, socket.readable()).await.unwrap().unwrap();
            unread.push(socket);
        }
        client.get("a").await.expect(200);
    }
    let windows = [(); 2].map(|()| ask_and_ignore(server.address, "GET", "a/window", ""));
    let windows = futures_util::future::join_all(windows).await;
    for socket in &windows {
        let mut begun = [0; 12];
        let peeked = timeout(PATIENCE, socket.peek(&mut begun)).await.unwrap().unwrap();
        assert_eq!(&begun[..peeked], b"HTTP/1.1 200");
    }
    client.get("a").await.fails(503, "unavailable");
    for path in ["/metrics", "/v1/cluster", "/health/live"] {
        assert_eq!(client.raw(Method::GET, path).send().await.unwrap().status(), 200, "{path}");
    }
    drop(windows);
    let given_back = async {
        while client.get("a").await.status != 200 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, given_back).await.expect("they are given back");
}

#[tokio::test]
async fn answers_that_are_not_read_have_a_bound_in_bytes_together() {
    let server = TestServer::start(|config| {
        config.segment_bytes = 64 << 20;
        // The window is held once, however many ask for it.
        config.window_cache_bytes = 1 << 30;
    });
    let client = Client::new(CONVERSATIONS, server.address);
    client.create("a").await;
    for _ in 0..24 {
        client.say("a", &"x".repeat(1_000_000), 1).await;
    }
    let window = client.get("a/window").await.expect(200).text.len();
    let room_for = (512 << 20) / window;
    let mut unread = Vec::new();
    for _ in 0..room_for {
        let socket = ask_and_ignore(server.address, "GET", "a/window", "").await;
        let mut begun = [0; 12];
        let peeked = timeout(PATIENCE, socket.peek(&mut begun)).await.unwrap().unwrap();
        assert_eq!(&begun[..peeked], b"HTTP/1.1 200");
        unread.push(socket);
    }
    let refused = client.get("a/window").await;
    let message = refused.fails(503, "unavailable");
    assert!(message.contains("answers") && refused.header("retry-after") == "1", "{message}");
    client.get("a").await.expect(200);
    client.say("a", &"x".repeat(1_000_000), 1).await;
    // The answer of a write, whatever its size.
    let metadata = json!({"m": "x".repeat((64 << 10) - 8)});
    assert!(client.put("b", json!({"metadata": metadata})).await.expect(201).text.len() > 64 << 10);
    drop(unread);
    let given_back = async {
        while client.get("a/window").await.status != 200 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, given_back).await.expect("it is given back");
}

/// An HTTP/2 connection, frame by frame.
struct Http2(TcpStream);

/// Type, stream and payload.
type Frame = (u8, u32, Vec<u8>);

impl Http2 {
    const DATA: u8 = 0;
    const HEADERS: u8 = 1;
    const RST_STREAM: u8 = 3;
    const SETTINGS: u8 = 4;
    const PING: u8 = 6;
    const WINDOW_UPDATE: u8 = 8;

    /// Connects and gives every answer room for this many bytes.
    async fn connect(address: SocketAddr, room: u32) -> Http2 {
        let mut connection = Http2(TcpStream::connect(address).await.unwrap());
        connection.0.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
        connection.send(Http2::SETTINGS, 0, 0, &[&[0, 4], room.to_be_bytes().as_slice()].concat()).await;
        connection
    }

    async fn send(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        let length = (payload.len() as u32).to_be_bytes();
        let head = [&length[1..], &[kind, flags], &stream.to_be_bytes()].concat();
        self.0.write_all(&[&head, payload].concat()).await.unwrap();
    }

    /// Asks for a path, as HPACK without Huffman coding.
    async fn get(&mut self, stream: u32, path: &str, accept: &str) {
        let text = |value: &str| [&[value.len() as u8], value.as_bytes()].concat();
        let (path, accept) = (text(path), text(accept));
        // :method GET, :scheme http, :path, :authority, accept.
        let block: [&[u8]; 5] = [&[0x82, 0x86, 4], &path, &[1, 1, b'x'], &[0x0f, 4], &accept];
        self.send(Http2::HEADERS, 0x05, stream, &block.concat()).await;
    }

    /// The next frame, settings and pings being acknowledged; `None` once the connection has ended.
    async fn next(&mut self) -> Option<Frame> {
        loop {
            let mut head = [0; 9];
            self.0.read_exact(&mut head).await.ok()?;
            let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
            self.0.read_exact(&mut payload).await.ok()?;
            let (kind, flags) = (head[3], head[4]);
            match (kind, flags & 1) {
                (Http2::SETTINGS, 0) => self.send(kind, 1, 0, &[]).await,
                (Http2::PING, 0) => self.send(kind, 1, 0, &payload).await,
                _ => {
                    let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
                    return Some((kind, stream, payload));
                }
            }
        }
    }

    /// Waits for a frame of this kind on each of the streams; frames of data none of them may have.
    async fn await_each(&mut self, kind: u8, streams: &[u32]) {
        let mut awaited = streams.to_vec();
        while !awaited.is_empty() {
            let frame = timeout(PATIENCE, self.next()).await.expect("in time").expect("connected");
            assert_ne!(frame.0, Http2::DATA);
            if frame.0 == kind {
                awaited.retain(|stream| *stream != frame.1);
            }
        }
    }
}

#[tokio::test]
async fn an_http2_answer_that_is_given_no_room_is_ended_alone() {
    let server = TestServer::start(|config| {
        config.max_inflight_requests = 3;
        config.stream_max_connections = 2;
    });
    let client = Client::new(CONVERSATIONS, server.address);
    client.create("a").await;
    client.say("a", &"x".repeat(100_000), 1).await;
    let (json, events) = ("application/json", "text/event-stream");
    let lines = "application/x-ndjson";
    let mut roomless = Http2::connect(server.address, 0).await;
    roomless.get(1, "/v1/conversations/a/events", json).await;
    roomless.get(3, "/v1/conversations/a", json).await;
    roomless.get(5, "/v1/conversations/a/stream?cursor=0", events).await;
    roomless.get(7, "/v1/conversations/a/events", lines).await;
    roomless.await_each(Http2::HEADERS, &[1, 3, 5, 7]).await;
    // All of this answer is hyper's, which sends one byte.
    let mut with_one_byte = Http2::connect(server.address, 1).await;
    with_one_byte.get(1, "/v1/conversations/a", json).await;
    while with_one_byte.next().await.expect("connected").0 != Http2::DATA {}
    client.get("a").await.fails(503, "unavailable");
    let begun = Instant::now();

    let cut_off = async { while with_one_byte.next().await.is_some() {} };
    let ended = async {
        roomless.await_each(Http2::RST_STREAM, &[1, 3, 5, 7]).await;
        // Its other streams go on.
        roomless.get(9, "/v1/conversations/a", json).await;
        roomless.send(Http2::WINDOW_UPDATE, 0, 9, &[0, 0, 0x7f, 0]).await;
        while roomless.next().await.expect("connected").0 != Http2::DATA {}
    };
    timeout(PATIENCE, async { tokio::join!(cut_off, ended) }).await.expect("ended");
    assert!(begun.elapsed() > Duration::from_secs(20), "a pause is not held against anybody");
    client.get("a").await.expect(200);
    let metrics = Answer::of(client.raw(Method::GET, "/metrics")).await.expect(200).text;
    for line in ["fastpaca_slow_streams_closed_total 5", "fastpaca_streams 0"] {
        assert!(metrics.lines().any(|other| other == line), "{line}: {metrics}");
    }
}

async fn fresh_conversation(client: &Client) -> String {
    let id = fresh("bystander");
    client.create(&id).await;
    id
}
