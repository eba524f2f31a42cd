//! Conversations that have a bit of everything.

use super::client::{Client, message};
use serde_json::{Value, json};

/// Percent-encoded, as far as the ids of the tests need it.
pub(crate) fn encoded(id: &str) -> String {
    id.bytes()
        .map(
            |byte| {
                if byte.is_ascii_alphanumeric() { (byte as char).to_string() } else { format!("%{byte:02X}") }
            },
        )
        .collect()
}

/// Two conversations with versions of every kind, one of them deleted.
pub(crate) async fn fill(client: &Client, name: &str) -> Vec<String> {
    let ids: Vec<String> = ["rich", "gone"].map(|kind| format!("{name}-{kind}")).into();
    for id in &ids {
        let path = format!("/v1/conversations/{id}");
        let settings = json!({"token_budget": 5_000, "metadata": {"project": "support", "n": 1.50}});
        client.put(&path, &settings).await.expect(201);
        for batch in 0..3 {
            let events: Vec<Value> = (0..60).map(|n| message(&format!("{batch}.{n}"))).collect();
            client.post(&format!("{path}/events"), &json!({"events": events})).await.expect(201);
        }
        let call = json!({"type": "tool_call", "id": "t1", "name": "lookup", "payload": {"sku": "A-19"}});
        let result = json!({"type": "tool_result", "id": "t1", "payload": {"stock": 7}});
        let events = json!([{"role": "assistant", "parts": [call, {"type": "text", "text": "one moment"}], "token_count": 99},
                            {"role": "tool", "parts": [result], "metadata": {"took_ms": 3}}]);
        client.post(&format!("{path}/events"), &json!({"events": events})).await.expect(201);
        let summary = json!({"from_seq": 1, "to_seq": 100, "replacement": [message("a summary"), events[0]]});
        client.post(&format!("{path}/compact"), &summary).await.expect(200);
        let policy = json!({"token_budget": 6_000, "policy": {"strategy": "strip_tool_results", "config": {"limit": 50}}});
        client.put(&path, &policy).await.expect(200);
        let (patched, patch) = (format!("{path}/metadata"), json!({"n": 2}));
        client.request(reqwest::Method::PATCH, &patched, Some(&patch)).await.unwrap().expect(200);
        client.append(id, "after all that").await.expect(201);
    }
    let gone = format!("/v1/conversations/{}", ids[1]);
    client.request(reqwest::Method::DELETE, &gone, None).await.unwrap().expect(204);
    ids
}
