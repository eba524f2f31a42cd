//! Creating, describing, deleting, metadata, listing.

use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{CONTEXTS, CONVERSATIONS, Client, DIALECTS, fresh};

#[tokio::test]
async fn a_conversation_is_created_with_defaults_then_updated() {
    for words in DIALECTS {
        let client = Client::shared(words);
        let id = fresh("defaults");
        let created = client.put(&id, json!({})).await.expect(201).json;
        assert_eq!(created["id"], json!(id));
        assert_eq!(created["token_budget"], 8_000);
        assert_eq!(created["trigger_ratio"], 0.7);
        assert_eq!(created["policy"], json!({"strategy": "last_n", "config": {"limit": 400}}));
        assert_eq!(created["metadata"], json!({}));
        assert_eq!(
            (&created["status"], &created["version"], &created["last_seq"]),
            (&json!("active"), &json!(0), &json!(0))
        );
        assert!(created["created_at"].as_str().unwrap().ends_with('Z'));
        assert_eq!(created["created_at"], created["updated_at"]);
        assert_eq!(client.get(&id).await.expect(200).json, created);

        let unchanged = client.put(&id, json!({"token_budget": 8000})).await.expect(200).json;
        assert_eq!(unchanged, created, "what changes nothing changes no version");
        let changed =
            client.put(&id, json!({"token_budget": 9000, "metadata": {"a": 1}})).await.expect(200).json;
        assert_eq!((&changed["version"], &changed["token_budget"]), (&json!(1), &json!(9_000)));
        let kept = client.put(&id, json!({"trigger_ratio": 0.5})).await.expect(200).json;
        assert_eq!(
            (&kept["token_budget"], &kept["metadata"]),
            (&json!(9_000), &json!({"a": 1})),
            "omitted fields stay"
        );
    }
}

#[tokio::test]
async fn the_body_of_a_put_may_be_absent() {
    let client = Client::shared(CONVERSATIONS);
    let answer = client.request(Method::PUT, &fresh("bare")).send().await.unwrap();
    assert_eq!(answer.status(), 201);
}

#[tokio::test]
async fn both_dialects_see_the_same_conversation_in_their_own_words() {
    let id = fresh("shared");
    let [one, other] = DIALECTS.map(Client::shared);
    one.create(&id).await;
    one.say(&id, "hello", 3).await;
    let in_one = one.get(&one.log(&id)).await.expect(200).json;
    let in_other = other.get(&other.log(&id)).await.expect(200).json;
    assert_eq!(in_one["events"], in_other["messages"]);
    assert!(in_one.get("messages").is_none() && in_other.get("events").is_none());
    let missing = other.get("absent").await;
    assert_eq!(missing.fails(404, "not_found"), "Context not found");
    assert_eq!(one.get("absent").await.fails(404, "not_found"), "Conversation not found");
    let wrong = other.post(&id, json!({"message": {"role": 1}})).await.fails(400, "invalid_request");
    assert_eq!(wrong, "message.role must be a non-empty string");
}

#[tokio::test]
async fn ids_are_checked() {
    for words in DIALECTS {
        let client = Client::shared(words);
        for id in ["a", "A-z_0.9~:@", "%C3%A9t%C3%A9", &"x".repeat(256)] {
            let id = if id.len() == 1 { fresh("id") } else { id.to_owned() };
            let answer = client.put(&id, json!({})).await;
            assert!(answer.status.is_success(), "{}", answer.text);
        }
        for id in ["a%20b", "a%2Fb", "a%00b", "%FF", "a+b", "a!", &"x".repeat(257), &"%C3%A9".repeat(129)] {
            for (method, path) in [
                (Method::GET, "/tail".to_owned()),
                (Method::PUT, id.to_owned()),
                (Method::GET, id.to_owned()),
                (Method::GET, client.log(id)),
                (Method::POST, client.log(id)),
                (Method::GET, format!("{id}/{}", words.window)),
                (Method::GET, format!("{id}/stream")),
            ] {
                let message = client.send(method, &path, json!({})).await.fails(400, "invalid_id");
                assert!(
                    message.starts_with(&format!("A {}", words.resources.trim_end_matches('s'))),
                    "{message}"
                );
            }
        }
    }
}

#[tokio::test]
async fn settings_are_validated() {
    let client = Client::shared(CONVERSATIONS);
    let id = fresh("settings");
    for (body, field) in [
        (json!({"token_budget": "1"}), "token_budget"),
        (json!({"trigger_ratio": []}), "trigger_ratio"),
        (json!({"policy": 1}), "policy"),
        (json!({"policy": {"strategy": 1}}), "policy.strategy"),
        (
            json!({"policy": {"strategy": "skip_parts", "config": {"skip_kinds": "tool"}}}),
            "policy.config.skip_kinds",
        ),
        (json!({"metadata": 1}), "metadata"),
    ] {
        let message = client.put(&id, body).await.fails(400, "invalid_request");
        assert!(message.starts_with(field), "{message}");
    }
    client.get(&id).await.fails(404, "not_found");
    let put = client.put(&id, json!({"policy": {"strategy": "manual", "x": {"y": 1e2}}})).await.expect(201);
    assert!(
        put.text.contains(r#""policy":{"strategy":"manual","x":{"y":100.0}}"#),
        "as received: {}",
        put.text
    );
}

#[tokio::test]
async fn deleting_tombstones() {
    for words in DIALECTS {
        let client = Client::shared(words);
        let id = fresh("deleted");
        client.send(Method::DELETE, &id, json!({})).await.fails(404, "not_found");
        client.create(&id).await;
        client.say(&id, "kept", 1).await;
        for _ in 0..2 {
            let answer = client.request(Method::DELETE, &id).send().await.unwrap();
            assert_eq!(answer.status(), 204);
            assert_eq!(answer.bytes().await.unwrap().len(), 0);
        }
        let described = client.get(&id).await.expect(200).json;
        assert_eq!((&described["status"], &described["version"]), (&json!("tombstoned"), &json!(2)));
        assert_eq!(client.seqs(&client.get(&client.log(&id)).await.expect(200).json), [1], "reads go on");
        let event = json!({words.event: {"role": "user", "content": "a"}});
        client.post(&id, event).await.fails(409, "tombstoned");
        client.put(&id, json!({"token_budget": 5})).await.fails(409, "tombstoned");
        client.send(Method::PATCH, &format!("{id}/metadata"), json!({"a": 1})).await.fails(409, "tombstoned");
        let replacement = json!({"replacement": [{"role": "system", "content": "s"}]});
        client.send(Method::POST, &format!("{id}/compact"), replacement).await.fails(409, "tombstoned");
    }
}

#[tokio::test]
async fn metadata_is_merged() {
    let client = Client::shared(CONTEXTS);
    let id = fresh("metadata");
    let path = format!("{id}/metadata");
    client.send(Method::PATCH, &path, json!({"a": 1})).await.fails(404, "not_found");
    client.put(&id, json!({"metadata": {"a": 1, "b": {"c": 2}}})).await.expect(201);
    let patched =
        client.send(Method::PATCH, &path, json!({"a": null, "b": 3, "d": "x"})).await.expect(200).json;
    assert_eq!((&patched["metadata"], &patched["version"]), (&json!({"b": 3, "d": "x"}), &json!(1)));
    let same = client.send(Method::PATCH, &path, json!({"a": null, "b": 3})).await.expect(200).json;
    assert_eq!(same["version"], 1, "what changes nothing changes no version");
    for wrong in [json!([]), json!(1), json!("a")] {
        client.send(Method::PATCH, &path, wrong).await.fails(400, "invalid_request");
    }
}

#[tokio::test]
async fn metadata_that_grows_too_long_is_refused_alike() {
    let client = Client::shared(CONVERSATIONS);
    let id = fresh("long-metadata");
    let half = "x".repeat(40_000);
    let whole = client.put(&id, json!({"metadata": {"a": half, "b": half}})).await;
    client.put(&id, json!({"metadata": {"a": half}})).await.expect(201);
    let merged = client.send(Method::PATCH, &format!("{id}/metadata"), json!({"b": half})).await;
    for refused in [whole, merged] {
        refused.fails(413, "too_large");
        assert_eq!(refused.json["limit_bytes"], 65_536);
    }
}

#[tokio::test]
async fn a_filter_takes_values_as_they_are_shown() {
    let client = Client::shared(CONVERSATIONS);
    let id = fresh("verbatim-filter");
    let metadata = r#"{"long":12345678901234567890123,"exp":1e2,"on":true,"text":"a\u00e9","digits":"7"}"#;
    let body = format!(r#"{{"metadata":{metadata}}}"#);
    let request = client.request(Method::PUT, &id).header("content-type", "application/json").body(body);
    crate::support::Answer::of(request).await.expect(201);
    for (filter, matches) in [
        ("long=12345678901234567890123", true),
        ("exp=1e2", true),
        ("exp=100.0", false),
        ("on=true", true),
        ("text=a%C3%A9", true),
        ("digits=7", true),
        ("digits=8", false),
        ("absent=null", false),
    ] {
        let found = ids(&client, &format!("?prefix={id}&metadata.{filter}")).await;
        assert_eq!(found == [id.clone()], matches, "{filter}");
    }
}

#[tokio::test]
async fn listing_pages_in_id_order_with_filters() {
    for words in DIALECTS {
        let client = Client::shared(words);
        let prefix = fresh("listed");
        for n in 0..5 {
            let metadata = json!({"n": n, "kind": if n % 2 == 0 { "even" } else { "odd" }});
            client.put(&format!("{prefix}:{n}"), json!({"metadata": metadata})).await.expect(201);
        }
        client.request(Method::DELETE, &format!("{prefix}:4")).send().await.unwrap();
        let all = ids(&client, &format!("?prefix={prefix}:")).await;
        let expected: Vec<String> = (0..5).map(|n| format!("{prefix}:{n}")).collect();
        assert_eq!(all, expected);
        assert_eq!(ids(&client, &format!("?prefix={prefix}:&limit=2")).await, expected, "page by page");
        let select = |wanted: &[usize]| wanted.iter().map(|n| expected[*n].clone()).collect::<Vec<_>>();
        assert_eq!(ids(&client, &format!("?prefix={prefix}:&status=tombstoned")).await, select(&[4]));
        assert_eq!(ids(&client, &format!("?prefix={prefix}:&status=active")).await, select(&[0, 1, 2, 3]));
        assert_eq!(ids(&client, &format!("?prefix={prefix}:&metadata.kind=odd")).await, select(&[1, 3]));
        assert_eq!(
            ids(&client, &format!("?prefix={prefix}:&metadata.kind=odd&metadata.n=3")).await,
            select(&[3])
        );
        for (query, name) in [
            ("limit=0", "limit"),
            ("limit=1001", "limit"),
            ("status=gone", "status"),
            ("cursor=a/b", "cursor"),
        ] {
            let answer = list(&client, &format!("?{query}")).await;
            assert!(answer.fails(400, "invalid_request").starts_with(name));
        }
    }
}

async fn list(client: &Client, query: &str) -> crate::support::Answer {
    let path = format!("/v1/{}{query}", client.words.resources);
    crate::support::Answer::of(client.raw(Method::GET, &path)).await
}

/// The ids of all pages.
async fn ids(client: &Client, query: &str) -> Vec<String> {
    let mut ids = Vec::new();
    let mut cursor = String::new();
    loop {
        let page = list(client, &format!("{query}{cursor}")).await.expect(200).json;
        let items = page[client.words.resources].as_array().unwrap();
        ids.extend(items.iter().map(|item| item["id"].as_str().unwrap().to_owned()));
        match &page["next_cursor"] {
            Value::String(next) => cursor = format!("&cursor={next}"),
            _ => return ids,
        }
    }
}
