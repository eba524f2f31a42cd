//! Windows and compaction, as far as the edge is concerned; what a policy keeps is tested where policies live.

use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{CONVERSATIONS, Client, DIALECTS, TestServer, fresh};

async fn window(client: &Client, id: &str, query: &str) -> Value {
    client.get(&format!("{id}/{}{query}", client.words.window)).await.expect(200).json
}

#[tokio::test]
async fn a_window_is_what_fits_the_budget() {
    for words in DIALECTS {
        let client = Client::shared(words);
        let id = fresh("window");
        client.put(&id, json!({"token_budget": 100})).await.expect(201);
        let empty = window(&client, &id, "").await;
        let expected = json!({"version": 0, "messages": [], "used_tokens": 0, "needs_compaction": false, "segments": []});
        assert_eq!(empty, expected);
        for n in 1..=4 {
            client.say(&id, &format!("message {n}"), 20).await;
        }
        let all = window(&client, &id, "").await;
        assert_eq!(
            (&all["used_tokens"], &all["needs_compaction"], &all["version"]),
            (&json!(80), &json!(true), &json!(4))
        );
        assert_eq!(all["segments"], json!([{"type": "live", "from_seq": 1, "to_seq": 4}]));
        let message = &all["messages"][3];
        assert_eq!(
            (&message["seq"], &message["role"], &message["token_count"]),
            (&json!(4), &json!("user"), &json!(20))
        );
        assert_eq!(message["parts"], json!([{"type": "text", "text": "message 4"}]));
        assert!(message["inserted_at"].is_string() && message.get("to_seq").is_none());
        assert!(all.get("left_out").is_none());
        let narrow = window(&client, &id, "?budget_tokens=50&explain=true").await;
        assert_eq!((&narrow["used_tokens"], &narrow["needs_compaction"]), (&json!(40), &json!(true)));
        assert_eq!(
            (&narrow["left_out"][0]["from_seq"], &narrow["left_out"][0]["to_seq"]),
            (&json!(1), &json!(2))
        );
        assert!(narrow["left_out"][0]["reason"].is_string());
        let past = window(&client, &id, "?at_version=2").await;
        assert_eq!((&past["version"], &past["used_tokens"]), (&json!(2), &json!(40)));
    }
}

#[tokio::test]
async fn the_questions_asked_of_a_window_are_checked() {
    for words in DIALECTS {
        let client = Client::shared(words);
        let id = fresh("asked");
        client.create(&id).await;
        client.say(&id, "a", 1).await;
        let path = format!("{id}/{}", words.window);
        for (query, name) in [
            ("budget_tokens=-1", "budget_tokens"),
            ("budget_tokens=many", "budget_tokens"),
            ("at_version=x", "at_version"),
            ("if_version=x", "if_version"),
            ("explain=yes", "explain"),
            ("consistency=x", "consistency"),
            ("at_version=2", "version 2 lies in the future (current 1)"),
        ] {
            let message = client.get(&format!("{path}?{query}")).await.fails(400, "invalid_request");
            assert!(message.starts_with(name), "{query}: {message}");
        }
        client.get(&format!("{path}?if_version=1")).await.expect(200);
        let refused = client.get(&format!("{path}?if_version=0")).await;
        refused.fails(409, "conflict");
        assert_eq!(refused.json["current_version"], 1);
        client.get(&format!("nowhere/{}", words.window)).await.fails(404, "not_found");
    }
}

#[tokio::test]
async fn compaction_replaces_a_range() {
    for words in DIALECTS {
        let client = Client::shared(words);
        let id = fresh("compacted");
        let path = format!("{id}/compact");
        client.create(&id).await;
        client.say_all(&id, (1..=10).map(|n| n.to_string())).await;
        let summary = json!([{"role": "system", "content": "what was said", "token_count": 3}]);
        let body = json!({"from_seq": 1, "to_seq": 6, "replacement": summary, "if_version": 10});
        let answer = client.send(Method::POST, &path, body.clone()).await.expect(200).json;
        assert_eq!(answer, json!({"version": 11}));
        client.send(Method::POST, &path, body).await.fails(409, "conflict");
        let compacted = window(&client, &id, "").await;
        assert_eq!(
            compacted["segments"],
            json!([{"type": "summary", "from_seq": 1, "to_seq": 6}, {"type": "live", "from_seq": 7, "to_seq": 10}])
        );
        let first = &compacted["messages"][0];
        assert_eq!(
            (&first["seq"], &first["to_seq"], &first["role"]),
            (&json!(1), &json!(6), &json!("system"))
        );
        assert_eq!(compacted["used_tokens"], 7);
        let cut = json!({"from_seq": 3, "to_seq": 8, "replacement": summary});
        let refused = client.send(Method::POST, &path, cut).await;
        refused.fails(400, "invalid_range");
        assert_eq!(refused.json["covering"], json!({"from_seq": 1, "to_seq": 6}));
        let beyond = json!({"from_seq": 7, "to_seq": 99, "replacement": summary});
        client.send(Method::POST, &path, beyond).await.fails(400, "invalid_range");
        let whole = client.send(Method::POST, &path, json!({"replacement": summary})).await.expect(200).json;
        assert_eq!(whole["version"], 12);
        assert_eq!(
            window(&client, &id, "").await["segments"],
            json!([{"type": "summary", "from_seq": 1, "to_seq": 10}])
        );
        let log = client.get(&client.log(&id)).await.expect(200).json;
        assert_eq!(client.seqs(&log).len(), 10, "the log stays as it is");
        client
            .send(Method::POST, "nowhere/compact", json!({"replacement": summary}))
            .await
            .fails(404, "not_found");
        let wrong =
            client.send(Method::POST, &path, json!({"replacement": []})).await.fails(400, "invalid_request");
        assert!(wrong.starts_with("replacement"));
    }
}

#[tokio::test]
async fn tool_results_can_be_stripped() {
    let client = Client::shared(CONVERSATIONS);
    let id = fresh("stripped");
    client.put(&id, json!({"policy": {"strategy": "strip_tool_results"}})).await.expect(201);
    let call = json!({"role": "assistant", "parts": [
        {"type": "text", "text": "Checking"}, {"type": "tool_call", "id": "c1", "name": "lookup", "payload": {}}]});
    let result = json!({"role": "tool", "parts": [{"type": "tool_result", "tool_call_id": "c1", "payload": {"left": 3}}]});
    client.post(&id, json!({"events": [call, result]})).await.expect(201);
    let stripped = window(&client, &id, "").await;
    assert_eq!(stripped["messages"].as_array().unwrap().len(), 1);
    let parts = &stripped["messages"][0]["parts"];
    assert_eq!(parts[0], json!({"type": "text", "text": "Checking"}));
    assert_eq!(parts[1], json!({"type": "text", "text": "[tool call: lookup]"}));
}

#[tokio::test]
async fn a_window_that_is_too_large_is_refused_with_a_way_out() {
    let server = TestServer::start(|config| config.batch_body_max_bytes = 1 << 20);
    for words in DIALECTS {
        let client = Client::new(words, server.address);
        let id = fresh("large");
        client.put(&id, json!({"policy": {"strategy": "manual"}})).await.expect(201);
        for _ in 0..11 {
            client.say(&id, &"x".repeat(1_000_000), 1).await;
        }
        let path = format!("{id}/{}", words.window);
        let refused = client.get(&path).await;
        let message = refused.fails(413, "too_large");
        assert!(message.starts_with(&format!("The {} ", words.window)), "{message}");
        assert!(message.contains("budget_tokens") && message.contains("limit"), "{message}");
        assert_eq!(refused.json["limit_bytes"], 10 << 20);
        let fits = window(&client, &id, "?budget_tokens=10").await;
        assert_eq!(fits["messages"].as_array().unwrap().len(), 10);
    }
}
