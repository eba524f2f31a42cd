//! Appending and reading the log.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use reqwest::Method;
use reqwest::header::{ACCEPT, IF_NONE_MATCH};
use serde_json::{Value, json};

use crate::support::{Answer, CONTEXTS, CONVERSATIONS, Client, DIALECTS, fresh};

#[tokio::test]
async fn an_append_is_answered_and_read_back_as_it_was_sent() {
    for words in DIALECTS {
        let client = Client::shared(words);
        let id = fresh("append");
        client.create(&id).await;
        let event = json!({
            "role": "assistant",
            "parts": [{"type": "text", "text": "Checking \u{1f600}\n\"now\""},
                      {"type": "tool_call", "name": "lookup", "payload": {"sku": "A-19"}}],
            "metadata": {"reasoning": "asked for stock"}, "token_count": 128,
        });
        let answer = client.post(&id, json!({words.event: event})).await.expect(201).json;
        assert_eq!(answer, json!({"seq": 1, "version": 1, "token_estimate": 128}));
        let page = client.get(&client.log(&id)).await.expect(200).json;
        let read = &client.entries(&page)[0];
        for member in ["role", "parts", "metadata", "token_count"] {
            assert_eq!(read[member], event[member], "{member}");
        }
        assert_eq!(read["seq"], 1);
        let at = read["inserted_at"].as_str().unwrap();
        assert!(at.len() == 24 && at.ends_with('Z'), "{at}");
        assert_eq!((&page["next_cursor"], &page["has_more"]), (&json!(1), &json!(false)));
        let described = client.get(&id).await.json;
        assert_eq!((&described["last_seq"], &described["version"]), (&json!(1), &json!(1)));
    }
}

#[tokio::test]
async fn numbers_and_escapes_pass_untouched() {
    let client = Client::shared(CONVERSATIONS);
    let id = fresh("verbatim");
    client.create(&id).await;
    let parts = r#"[ {"type":"data","huge":1e400,"long":123456789012345678901234567890,"small":-0.0, "e":"\u00e9\ud83d\ude00"} ]"#;
    let body = format!(r#"{{"event":{{"role":"user","parts":{parts},"token_count":1}}}}"#);
    let request = client.request(Method::POST, &client.log(&id)).header("content-type", "application/json");
    Answer::of(request.body(body)).await.expect(201);
    let page = client.get(&client.log(&id)).await.expect(200);
    assert!(page.text.contains(&format!(r#""parts":{parts},"metadata":{{}}"#)), "{}", page.text);
}

#[tokio::test]
async fn tokens_are_counted_where_the_client_does_not() {
    let client = Client::shared(CONVERSATIONS);
    let id = fresh("counted");
    client.create(&id).await;
    let count = async |text: String| {
        let answer = client.post(&id, json!({"event": {"role": "user", "content": text}})).await.expect(201);
        answer.json["token_estimate"].as_u64().unwrap()
    };
    let short = count("four words of text".into()).await;
    assert!((1..40).contains(&short), "{short}");
    // Long enough to be counted elsewhere than where the request is served.
    let long = count("word ".repeat(10_000)).await;
    assert!((5_000..30_000).contains(&long), "{long}");
}

#[tokio::test]
async fn a_batch_is_appended_as_a_whole_or_not_at_all() {
    for words in DIALECTS {
        let client = Client::shared(words);
        let id = fresh("batch");
        client.create(&id).await;
        let good = json!({"role": "user", "content": "a", "token_count": 2});
        let answer = client.post(&id, json!({words.events: [good, good, good]})).await.expect(201).json;
        assert_eq!(
            answer,
            json!({"first_seq": 1, "last_seq": 3, "version": 3, "token_estimates": [2, 2, 2]})
        );
        let message = client
            .post(&id, json!({words.events: [good, {"role": "user"}]}))
            .await
            .fails(400, "invalid_request");
        assert_eq!(message, format!("{}[1].parts must be an array of objects", words.events));
        client
            .post(&id, json!({words.events: vec![good.clone(); 1_001]}))
            .await
            .fails(400, "invalid_request");
        assert_eq!(client.get(&id).await.json["last_seq"], 3);
        let full = client.post(&id, json!({words.events: vec![good; 1_000]})).await.expect(201).json;
        assert_eq!((&full["first_seq"], &full["last_seq"]), (&json!(4), &json!(1_003)));
    }
}

#[tokio::test]
async fn parts_of_a_message_are_bounded() {
    for words in DIALECTS {
        let client = Client::shared(words);
        let id = fresh("parts");
        client.create(&id).await;
        let message = |parts: usize| json!({"role": "user", "parts": vec![json!({"type": "x"}); parts]});
        let (most, beyond) = (message(1_024), message(1_025));
        client.post(&id, json!({words.event: most})).await.expect(201);
        client.post(&id, json!({words.events: [most]})).await.expect(201);
        let compact = async |messages: Value| {
            client.send(Method::POST, &format!("{id}/compact"), json!({"replacement": messages})).await
        };
        compact(json!([most])).await.expect(200);
        for (refused, place) in [
            (client.post(&id, json!({words.event: beyond})).await, words.event.to_owned()),
            (client.post(&id, json!({words.events: [most, beyond]})).await, format!("{}[1]", words.events)),
            (compact(json!([most, beyond])).await, "replacement[1]".to_owned()),
        ] {
            let message = refused.fails(400, "invalid_request");
            assert_eq!(message, format!("{place}.parts must be an array of at most 1024, not 1025"));
        }
        assert_eq!(client.get(&id).await.json["version"], 3, "what is refused changes nothing");
        // 64 full messages are as many parts as summaries may have.
        compact(json!(vec![most.clone(); 64])).await.expect(200);
        compact(json!(vec![most; 65])).await.fails(400, "invalid_range");
    }
}

#[tokio::test]
async fn a_request_sent_again_is_answered_again() {
    for words in DIALECTS {
        let client = Client::shared(words);
        let id = fresh("again");
        client.create(&id).await;
        let body = |text: &str, key: &str| json!({words.event: {"role": "user", "content": text, "token_count": 7}, "idempotency_key": key});
        let first = client.post(&id, body("a", "k")).await.expect(201).json;
        client.say(&id, "between", 1).await;
        let mut again = client.post(&id, body("a", "k")).await.expect(200).json;
        assert_eq!(again["deduped"].take(), json!(true));
        again.as_object_mut().unwrap().remove("deduped");
        assert_eq!(again, first);
        client.post(&id, body("b", "k")).await.fails(409, "idempotency_conflict");
        let batch = json!({words.events: [{"role": "user", "content": "x"}, {"role": "user", "content": "y"}],
                           "idempotency_key": "batch"});
        let first = client.post(&id, batch.clone()).await.expect(201).json;
        let again = client.post(&id, batch).await.expect(200).json;
        assert_eq!(
            (&again["first_seq"], &again["token_estimates"]),
            (&first["first_seq"], &first["token_estimates"])
        );
        assert_eq!(client.get(&id).await.json["last_seq"], 4);
    }
}

#[tokio::test]
async fn guards_hold() {
    for words in DIALECTS {
        let client = Client::shared(words);
        let id = fresh("guarded");
        client.create(&id).await;
        let body =
            |version: u64| json!({words.event: {"role": "user", "content": "a"}, "if_version": version});
        client.post(&id, body(0)).await.expect(201);
        let refused = client.post(&id, body(0)).await;
        let message = refused.fails(409, "conflict");
        assert!(message.ends_with("version changed (expected 0, found 1)"), "{message}");
        assert_eq!(
            (&refused.json["current_version"], &refused.json["expected_version"]),
            (&json!(1), &json!(0))
        );
        client.post("nowhere", body(0)).await.fails(404, "not_found");
    }
}

#[tokio::test]
async fn concurrent_appends_get_contiguous_seqs() {
    let client = Client::shared(CONVERSATIONS);
    let id = fresh("concurrent");
    client.create(&id).await;
    let answers = join_all((0..64).map(|n| {
        let (client, id) = (client.clone(), id.clone());
        async move { client.say(&id, &format!("{n}"), 1).await.json["seq"].as_u64().unwrap() }
    }));
    let mut seqs = answers.await;
    seqs.sort_unstable();
    assert_eq!(seqs, (1..=64).collect::<Vec<u64>>());
}

#[tokio::test]
async fn pages_of_the_log() {
    for words in DIALECTS {
        let client = Client::shared(words);
        let id = fresh("pages");
        client.create(&id).await;
        let path = client.log(&id);
        let empty = client.get(&path).await.expect(200).json;
        assert_eq!(empty, json!({words.events: [], "next_cursor": 0, "has_more": false}));
        client.say_all(&id, (1..=10).map(|n| n.to_string())).await;
        let page = async |query: &str| {
            let page = client.get(&format!("{path}?{query}")).await.expect(200).json;
            (client.seqs(&page), page["next_cursor"].clone(), page["has_more"].as_bool().unwrap())
        };
        let range = |from: u64, to: u64| (from..=to).collect::<Vec<u64>>();
        assert_eq!(page("").await, (range(1, 10), json!(10), false));
        assert_eq!(page("limit=4").await, (range(1, 4), json!(4), true));
        assert_eq!(page("cursor=4&limit=4").await, (range(5, 8), json!(8), true));
        assert_eq!(page("cursor=8&limit=4").await, (range(9, 10), json!(10), false));
        assert_eq!(page("cursor=10").await, (vec![], json!(10), false));
        assert_eq!(page("from_seq=3&to_seq=5").await, (range(3, 5), json!(5), false));
        assert_eq!(page("from_seq=-3").await, (range(8, 10), json!(10), false));
        assert_eq!(page("from_seq=-99&to_seq=2").await, (range(1, 2), json!(2), false));
        assert_eq!(page("from_seq=11").await, (vec![], json!(10), false));
        assert_eq!(page("order=desc&limit=3").await, (vec![10, 9, 8], json!(8), true));
        assert_eq!(page("order=desc&cursor=8&limit=3").await, (vec![7, 6, 5], json!(5), true));
        assert_eq!(page("order=desc&cursor=2").await, (vec![1], json!(1), false));
        assert_eq!(page("order=desc&from_seq=9").await, (vec![10, 9], json!(9), false));
        assert_eq!(page("order=desc&from_seq=3&limit=4").await, (vec![10, 9, 8, 7], json!(7), true));
        assert_eq!(page("order=desc&from_seq=3&limit=4&cursor=7").await, (vec![6, 5, 4, 3], json!(3), false));
        assert_eq!(page("to_seq=8&cursor=6").await, (vec![7, 8], json!(8), false));
        assert_eq!(page("from_seq=-2&to_seq=3").await, (vec![], json!(8), false));
        assert_eq!(page("from_seq=-20&to_seq=0").await, (vec![], json!(0), false));
        for (query, name) in [
            ("limit=0", "limit"),
            ("limit=1001", "limit"),
            ("limit=x", "limit"),
            ("from_seq=1.5", "from_seq"),
            ("to_seq=-1", "to_seq"),
            ("cursor=a", "cursor"),
            ("cursor=%ff", "cursor"),
            ("cursor=1&from_seq=1", "cursor"),
            ("order=up", "order"),
            ("wait=1", "wait"),
            ("wait=61&cursor=1", "wait"),
            ("consistency=eventual", "consistency"),
            ("min_version=x", "min_version"),
            ("limit=1&limit=2", "limit"),
        ] {
            let message = client.get(&format!("{path}?{query}")).await.fails(400, "invalid_request");
            assert!(message.starts_with(name), "{query}: {message}");
        }
        client.get(&format!("{path}?unknown=1&consistency=local&min_version=10")).await.expect(200);
        client.get("nowhere/tail").await.fails(404, "not_found");
        client.get(&client.log("nowhere")).await.fails(404, "not_found");
    }
}

#[tokio::test]
async fn the_tail_pages_backwards() {
    for words in DIALECTS {
        let client = Client::shared(words);
        let id = fresh("tail");
        client.create(&id).await;
        client.say_all(&id, (1..=10).map(|n| n.to_string())).await;
        let page = async |query: &str| {
            let page = client.get(&format!("{id}/tail?{query}")).await.expect(200).json;
            (client.seqs(&page), page["next_offset"].clone(), page["has_more"].as_bool().unwrap())
        };
        assert_eq!(page("limit=4").await, (vec![7, 8, 9, 10], json!(4), true));
        assert_eq!(page("offset=4&limit=4").await, (vec![3, 4, 5, 6], json!(8), true));
        assert_eq!(page("offset=8&limit=4").await, (vec![1, 2], Value::Null, false));
        assert_eq!(page("offset=10").await, (vec![], Value::Null, false));
        assert_eq!(page("offset=99999").await, (vec![], Value::Null, false));
        assert_eq!(page("").await.0.len(), 10);
        let message = client.get(&format!("{id}/tail?offset=-1")).await.fails(400, "invalid_request");
        assert!(message.starts_with("offset"));
    }
}

#[tokio::test]
async fn a_tail_page_cut_by_its_size_keeps_the_newest() {
    let client = Client::shared(CONTEXTS);
    let id = fresh("large-tail");
    client.create(&id).await;
    for n in 0..12 {
        client.say(&id, &format!("{n}{}", "x".repeat(1_000_000)), 1).await;
    }
    let mut seen = Vec::new();
    let mut offset = json!(0);
    while let Some(skip) = offset.as_u64() {
        let page = client.get(&format!("{id}/tail?offset={skip}")).await.expect(200).json;
        assert!(client.entries(&page).len() < 12, "a page is bounded in bytes");
        seen.splice(0..0, client.seqs(&page));
        offset = page["next_offset"].clone();
    }
    assert_eq!(seen, (1..=12).collect::<Vec<u64>>());
}

#[tokio::test]
async fn a_long_poll_waits_for_an_event() {
    for words in DIALECTS {
        let client = Client::shared(words);
        let id = fresh("poll");
        client.create(&id).await;
        client.say(&id, "one", 1).await;
        let path = client.log(&id);
        let at_once = client.get(&format!("{path}?cursor=0&wait=30")).await.expect(200).json;
        assert_eq!(client.seqs(&at_once), [1]);
        let started = Instant::now();
        let timed_out = client.get(&format!("{path}?cursor=1&wait=1")).await.expect(200).json;
        assert_eq!(timed_out, json!({words.events: [], "next_cursor": 1, "has_more": false}));
        assert!(started.elapsed() >= Duration::from_millis(990));
        let waiting = tokio::spawn({
            let client = client.clone();
            async move { client.get(&format!("{path}?cursor=1&wait=15")).await }
        });
        tokio::time::sleep(Duration::from_millis(100)).await;
        // Another kind of change does not end the wait.
        client.put(&id, json!({"token_budget": 5})).await.expect(200);
        client.say(&id, "two", 1).await;
        let woken = waiting.await.unwrap().expect(200).json;
        assert_eq!(client.seqs(&woken), [2]);
    }
}

#[tokio::test]
async fn a_long_poll_has_a_tag() {
    let client = Client::shared(CONVERSATIONS);
    let id = fresh("poll-tag");
    client.create(&id).await;
    client.say(&id, "one", 1).await;
    let poll = async |query: &str, tag: &str| {
        let path = format!("{}?{query}", client.log(&id));
        Answer::of(client.request(Method::GET, &path).header(IF_NONE_MATCH, tag)).await
    };
    let tag = poll("cursor=0&wait=30", "\"other\"").await.expect(200).header("etag").to_owned();
    assert_eq!(poll("cursor=0&wait=30", &tag).await.expect(304).header("etag"), tag);
    let empty = poll("cursor=1&wait=0", "\"other\"").await.expect(200);
    assert_eq!(empty.json["events"], json!([]));
    let empty = empty.header("etag").to_owned();
    poll("cursor=1&wait=0", &empty).await.expect(304);
    client.put(&id, json!({"token_budget": 5})).await.expect(200);
    poll("cursor=1&wait=0", &empty).await.expect(200);
    poll("cursor=0&wait=30", &tag).await.expect(200);
    // A tag that is known does not end the wait.
    let current = poll("cursor=1&wait=15", "\"other\"");
    let (woken, _) = tokio::join!(current, async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        client.say(&id, "two", 1).await
    });
    assert_eq!(client.seqs(&woken.expect(200).json), [2]);
}

#[tokio::test]
async fn a_long_poll_ends_with_the_conversation() {
    let client = Client::shared(CONVERSATIONS);
    let id = fresh("poll-end");
    client.create(&id).await;
    client.say(&id, "one", 1).await;
    let started = Instant::now();
    let path = format!("{}?cursor=1&wait=30", client.log(&id));
    let delete = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        client.request(Method::DELETE, &id).send().await.unwrap()
    };
    let (under_way, _) = tokio::join!(client.get(&path), delete);
    for answer in [under_way, client.get(&path).await] {
        assert_eq!(answer.expect(200).json, json!({"events": [], "next_cursor": 1, "has_more": false}));
    }
    assert!(started.elapsed() < Duration::from_secs(20), "no event can come");
}

#[tokio::test]
async fn creation_is_a_version_to_wait_for() {
    let client = Client::shared(CONVERSATIONS);
    let id = fresh("to-come");
    let started = Instant::now();
    for version in [0, 1] {
        client.get(&format!("{id}?min_version={version}")).await.fails(404, "not_found");
    }
    assert!(started.elapsed() < Duration::from_secs(4), "a linearizable read knows");
    let never = client.get("never?consistency=local&min_version=0");
    let query = format!("{id}?consistency=local&min_version=0");
    let created = async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        client.create(&id).await;
    };
    let (never, found, ()) = tokio::join!(never, client.get(&query), created);
    assert_eq!(found.expect(200).json["version"], 0);
    never.fails(503, "unavailable");
    client.get("never?consistency=local").await.fails(404, "not_found");
}

#[tokio::test]
async fn an_export_is_the_whole_log_one_event_a_line() {
    for words in DIALECTS {
        let client = Client::shared(words);
        let id = fresh("export");
        client.create(&id).await;
        let total = 2_500;
        for from in (0..total).step_by(500) {
            client.say_all(&id, (from..from + 500).map(|n| format!("{n} {}", "x".repeat(300)))).await;
        }
        // White space of the sender must not break lines.
        let pretty =
            format!("{{\"{}\":{{\"role\":\"user\",\n\"parts\":[\r\n],\"token_count\":1}}}}", words.event);
        let request =
            client.request(Method::POST, &client.log(&id)).header("content-type", "application/json");
        Answer::of(request.body(pretty)).await.expect(201);
        let export = async |query: &str| {
            let path = format!("{}{query}", client.log(&id));
            let answer =
                Answer::of(client.request(Method::GET, &path).header(ACCEPT, "application/x-ndjson")).await;
            assert_eq!(answer.header("content-type"), "application/x-ndjson");
            let lines = answer.expect(200).text;
            lines
                .lines()
                .map(|line| serde_json::from_str::<Value>(line).unwrap()["seq"].as_u64().unwrap())
                .collect::<Vec<_>>()
        };
        assert_eq!(export("").await, (1..=total + 1).collect::<Vec<u64>>());
        assert_eq!(export("?from_seq=-2").await, [total, total + 1]);
        assert_eq!(export("?from_seq=10&to_seq=12").await, [10, 11, 12]);
        let downwards = export("?order=desc").await;
        assert_eq!(downwards.len() as u64, total + 1);
        assert!(downwards.is_sorted_by(|a, b| a > b));
        assert_eq!(export("?order=desc&from_seq=-1200").await.len(), 1_200);
        let rather_json = "application/json, application/x-ndjson;q=0.1";
        let page = client.request(Method::GET, &client.log(&id)).header(ACCEPT, rather_json);
        assert_eq!(Answer::of(page).await.expect(200).header("content-type"), "application/json");
        let missing =
            client.request(Method::GET, &client.log("nowhere")).header(ACCEPT, "application/x-ndjson");
        Answer::of(missing).await.fails(404, "not_found");
    }
}
