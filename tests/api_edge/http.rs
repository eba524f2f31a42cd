//! What any good HTTP API does: methods, media types, tags, compression, ids of requests, both protocol versions.

use reqwest::header::{ACCEPT, ACCEPT_ENCODING, CONTENT_TYPE, IF_NONE_MATCH};
use reqwest::{Method, StatusCode};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::support::{Answer, CONVERSATIONS, Client, DIALECTS, PATIENCE, TestServer, fresh};

#[tokio::test]
async fn unknown_paths_and_methods_are_json_errors() {
    for words in DIALECTS {
        let client = Client::shared(words);
        for path in ["/", "/v1", "/v2/conversations", "/v1/conversations/a/b/c"] {
            Answer::of(client.raw(Method::GET, path)).await.fails(404, "not_found");
        }
        for (method, path, allowed) in [
            (Method::POST, "a".to_owned(), ["GET", "PUT", "DELETE"].as_slice()),
            (Method::DELETE, client.log("a"), &["GET", "POST"]),
            (Method::POST, format!("a/{}", words.window), &["GET"]),
            (Method::GET, "a/compact".to_owned(), &["POST"]),
            (Method::PUT, "a/stream".to_owned(), &["GET"]),
            (Method::OPTIONS, "a".to_owned(), &["GET"]),
        ] {
            let answer = Answer::of(client.request(method.clone(), &path)).await;
            answer.fails(405, "method_not_allowed");
            let allow = answer.header("allow");
            assert!(allowed.iter().all(|method| allow.contains(method)), "{method} {path}: Allow: {allow}");
        }
    }
}

#[tokio::test]
async fn the_other_dialects_words_are_unknown_paths() {
    let id = fresh("mixed");
    let [one, other] = DIALECTS.map(Client::shared);
    one.create(&id).await;
    for path in ["messages", "context"] {
        one.get(&format!("{id}/{path}")).await.fails(404, "not_found");
    }
    for path in ["events", "window"] {
        other.get(&format!("{id}/{path}")).await.fails(404, "not_found");
    }
}

#[tokio::test]
async fn head_is_get_without_a_body() {
    let client = Client::shared(CONVERSATIONS);
    let id = fresh("head");
    client.create(&id).await;
    let answer = Answer::of(client.request(Method::HEAD, &id)).await.expect(200);
    assert!(answer.text.is_empty() && answer.header("content-length") != "0");
}

#[tokio::test]
async fn media_types_are_negotiated() {
    let client = Client::shared(CONVERSATIONS);
    let id = fresh("media");
    client.create(&id).await;
    let event = json!({"event": {"role": "user", "content": "a"}}).to_string();
    for media in ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data"] {
        let request =
            client.request(Method::POST, &client.log(&id)).header(CONTENT_TYPE, media).body(event.clone());
        Answer::of(request).await.fails(415, "unsupported_media_type");
    }
    let encoded =
        client.request(Method::POST, &client.log(&id)).header("content-encoding", "gzip").body(event.clone());
    Answer::of(encoded).await.fails(415, "unsupported_media_type");
    let html =
        |method, path: &str| client.request(method, path).header(ACCEPT, "text/html").body(event.clone());
    Answer::of(html(Method::POST, &client.log(&id))).await.fails(406, "not_acceptable");
    Answer::of(html(Method::GET, &id)).await.fails(406, "not_acceptable");
    Answer::of(html(Method::GET, &format!("{id}/stream"))).await.fails(406, "not_acceptable");
    assert_eq!(client.get(&id).await.json["last_seq"], 0, "nothing was appended");
    for media in ["application/json; charset=utf-8", "APPLICATION/JSON", "application/vnd.api+json"] {
        let request =
            client.request(Method::POST, &client.log(&id)).header(CONTENT_TYPE, media).body(event.clone());
        Answer::of(request).await.expect(201);
    }
    Answer::of(client.request(Method::POST, &client.log(&id)).body(event)).await.expect(201);
}

#[tokio::test]
async fn tags_save_the_answer() {
    for words in DIALECTS {
        let client = Client::shared(words);
        let id = fresh("tags");
        client.create(&id).await;
        client.say(&id, "a", 1).await;
        let paths = [id.clone(), client.log(&id), format!("{id}/tail"), format!("{id}/{}", words.window)];
        let mut tags = Vec::new();
        for path in &paths {
            let first = client.get(path).await.expect(200);
            let tag = first.header("etag").to_owned();
            assert!(tag.starts_with("W/\""), "{path}: {tag}");
            let conditional = || client.request(Method::GET, path).header(IF_NONE_MATCH, &tag);
            let known = Answer::of(conditional()).await.expect(304);
            assert_eq!((known.header("etag"), known.text.as_str()), (tag.as_str(), ""));
            let narrower =
                client.request(Method::GET, &format!("{path}?limit=1")).header(IF_NONE_MATCH, &tag);
            Answer::of(narrower).await.expect(200);
            tags.push(tag);
        }
        let distinct: std::collections::HashSet<_> = tags.iter().collect();
        assert_eq!(distinct.len(), tags.len());
        client.say(&id, "b", 1).await;
        for (path, tag) in paths.iter().zip(&tags) {
            let stale = client.request(Method::GET, path).header(IF_NONE_MATCH, tag);
            assert_ne!(Answer::of(stale).await.expect(200).header("etag"), tag);
        }
    }
}

#[tokio::test]
async fn large_answers_are_compressed_on_request() {
    let client = Client::shared(CONVERSATIONS);
    let id = fresh("compressed");
    client.create(&id).await;
    let get = async |accepted: &str| {
        let path = client.log(&id);
        client.request(Method::GET, &path).header(ACCEPT_ENCODING, accepted).send().await.unwrap()
    };
    assert!(!get("gzip").await.headers().contains_key("content-encoding"), "small");
    client.say_all(&id, (0..100).map(|n| format!("{n} and so on"))).await;
    let plain = client.get(&client.log(&id)).await.expect(200);
    assert_eq!(plain.header("content-encoding"), "");
    for (accepted, coding) in [("gzip", "gzip"), ("zstd", "zstd"), ("gzip;q=0, zstd", "zstd"), ("br", "")] {
        let answer = get(accepted).await;
        let found = answer.headers().get("content-encoding").map_or("", |value| value.to_str().unwrap());
        assert_eq!(found, coding, "{accepted}");
        let bytes = answer.bytes().await.unwrap();
        assert!(coding.is_empty() || bytes.len() < plain.text.len() / 3, "{accepted}: {}", bytes.len());
    }
    let reader = reqwest::Client::builder().no_proxy().gzip(true).build().unwrap();
    let url = format!("http://{}/v1/conversations/{}", client.address, client.log(&id));
    assert_eq!(reader.get(url).send().await.unwrap().text().await.unwrap(), plain.text);
}

#[tokio::test]
async fn no_coding_is_a_reason_to_refuse() {
    let client = Client::shared(CONVERSATIONS);
    let id = fresh("codings");
    client.create(&id).await;
    let events = vec![json!({"role": "user", "content": "a"}); 1_000];
    for (accepted, last_seq) in [("br, *;q=0", 1_000), ("identity;q=0", 2_000), ("gzip;q=0, *;q=0", 3_000)] {
        let request = client.request(Method::POST, &client.log(&id)).header(ACCEPT_ENCODING, accepted);
        let answer = Answer::of(request.json(&json!({"events": events}))).await.expect(201);
        assert!(answer.text.len() > 1_024);
        assert_eq!(answer.header("content-encoding"), "");
        assert_eq!(answer.json["last_seq"], last_seq);
    }
}

#[tokio::test]
async fn requests_have_ids() {
    let client = Client::shared(CONVERSATIONS);
    let made = client.get("absent").await;
    assert_eq!(made.header("x-request-id").len(), 17);
    let given = client.request(Method::GET, "absent").header("x-request-id", "mine-1");
    assert_eq!(Answer::of(given).await.header("x-request-id"), "mine-1");
    let odd = client.request(Method::GET, "absent").header("x-request-id", "a b\"c");
    assert_eq!(Answer::of(odd).await.header("x-request-id").len(), 17);
}

#[tokio::test]
async fn cleartext_http2_is_served_on_the_same_port() {
    let client = Client::shared(CONVERSATIONS);
    let id = fresh("h2");
    client.create(&id).await;
    let h2 = reqwest::Client::builder().no_proxy().http2_prior_knowledge().timeout(PATIENCE).build().unwrap();
    let url = format!("http://{}/v1/conversations/{id}", client.address);
    let posts = (0..50).map(|n| {
        let event = json!({"event": {"role": "user", "content": n.to_string()}});
        h2.post(format!("{url}/events")).json(&event).send()
    });
    for answer in futures_util::future::join_all(posts).await {
        let answer = answer.unwrap();
        assert_eq!((answer.version(), answer.status()), (reqwest::Version::HTTP_2, StatusCode::CREATED));
    }
    let page = Answer::read(h2.get(format!("{url}/events")).send().await.unwrap()).await.expect(200);
    assert_eq!(client.seqs(&page.json).len(), 50);
}

#[tokio::test]
async fn whoever_is_connected_at_a_shutdown_has_one_more_request_answered() {
    let mut server = TestServer::start(|_| {});
    let client = Client::new(CONVERSATIONS, server.address);
    let mut sockets = Vec::new();
    for number in 0..24 {
        let mut socket = TcpStream::connect(server.address).await.unwrap();
        // Some have asked before, some have not, and some may not even be accepted yet.
        if number < 8 {
            assert!(ask(&mut socket).await.starts_with("HTTP/1.1 200"));
        }
        sockets.push(socket);
    }
    server.stop();
    let is_ready = async || {
        let answer = Answer::try_of(client.raw(Method::GET, "/health/ready")).await;
        answer.is_some_and(|answer| answer.status == 200)
    };
    while is_ready().await {}
    for mut socket in sockets {
        let answer = ask(&mut socket).await;
        assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("connection: close"), "{answer}");
        assert_eq!(socket.read(&mut [0]).await.unwrap(), 0);
    }
    tokio::task::spawn_blocking(|| server.join()).await.unwrap();
}

/// Whether the server lives, with the head of its answer.
async fn ask(socket: &mut TcpStream) -> String {
    socket.write_all(b"GET /health/live HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    while !answer.ends_with(r#"{"status":"ok"}"#) {
        let byte =
            timeout(PATIENCE, socket.read_u8()).await.unwrap().unwrap_or_else(|e| panic!("{e}: {answer}"));
        answer.push(byte.into());
    }
    answer
}
