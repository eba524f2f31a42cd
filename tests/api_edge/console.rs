//! The operator's page: its files over HTTP, and what an operator sees and does in a browser.

use fastpaca::config::Secret;
use reqwest::Method;
use serde_json::{Value, json};

use crate::browser::Browser;
use crate::support::{Answer, CONVERSATIONS, Client, TestServer, fresh};

/// Would run if it were ever taken for markup.
const HOSTILE: &str = r#"</pre><img src="x" onerror="window.hacked=1"><script>window.hacked=1</script>"#;

#[tokio::test]
async fn the_page_needs_no_key_and_is_held_to_its_own_origin() {
    let server = TestServer::start(|config| config.api_keys = vec![Secret::new("k")]);
    let client = Client::new(CONVERSATIONS, server.address);
    for (path, media) in [("/console", "text/html"), ("/console/main.js", "text/javascript")] {
        let answer = Answer::of(client.raw(Method::GET, path)).await.expect(200);
        assert!(answer.header("content-type").starts_with(media));
        assert_eq!(answer.header("x-content-type-options"), "nosniff");
        let policy = answer.header("content-security-policy");
        for rule in ["default-src 'none'", "script-src 'self'", "frame-ancestors 'none'"] {
            assert!(policy.contains(rule), "{policy}");
        }
        assert!(!policy.contains("unsafe"), "{policy}");
        let again = client.raw(Method::GET, path).header("if-none-match", answer.header("etag"));
        Answer::of(again).await.expect(304);
    }
    for path in ["/console/none.js", "/console/../v1/cluster", "/consoles"] {
        Answer::of(client.raw(Method::GET, path)).await.fails(401, "unauthorized");
    }
}

#[tokio::test]
async fn the_page_can_be_turned_off() {
    let server = TestServer::start(|config| config.console = false);
    let client = Client::new(CONVERSATIONS, server.address);
    for path in ["/console", "/console/main.js"] {
        Answer::of(client.raw(Method::GET, path)).await.fails(404, "not_found");
    }
}

/// A conversation with a summary, messages that do not fit, and text that is not to be trusted.
async fn talk(client: &Client, id: &str) {
    client.put(id, json!({"token_budget": 100, "metadata": {"note": HOSTILE}})).await.expect(201);
    client.say_all(id, (1..=20).map(|n| format!("message {n}"))).await;
    let summary = json!([{"role": "system", "content": "what was said", "token_count": 5}]);
    let range = json!({"from_seq": 1, "to_seq": 10, "replacement": summary});
    client.send(Method::POST, &format!("{id}/compact"), range).await.expect(200);
    client.say(id, "too large for the rest", 90).await;
    let part = json!({"type": HOSTILE.get(..40), "payload": HOSTILE});
    let parts = json!([{"type": "text", "text": HOSTILE}, part]);
    let event = json!({"role": HOSTILE, "parts": parts, "metadata": {HOSTILE: HOSTILE}, "token_count": 9});
    client.post(id, json!({"event": event})).await.expect(201);
}

#[tokio::test]
async fn an_operator_sees_the_cluster_a_log_its_window_and_what_comes() {
    let Some(mut page) = Browser::open().await else { return };
    let client = Client::shared(CONVERSATIONS);
    let id = fresh("console:%C3%A9");
    talk(&client, &id).await;
    let base = format!("http://{}/", client.address);

    page.go(&format!("{base}console")).await;
    page.until("document.querySelector('.verdict h2')?.textContent === 'All is well'").await;
    let led = page.eval("document.querySelectorAll('.map .cell[data-colour=\"0\"]').length").await;
    assert_eq!(led, 256);
    page.until("document.querySelector('.tiles')?.textContent.includes('B/s of messages')").await;
    fits_a_phone(&mut page).await;

    page.click("nav a", "Conversations").await;
    page.click("td a", "console:é").await;
    page.until("document.querySelectorAll('.message').length === 22").await;
    let last = page.eval("[...document.querySelectorAll('.message')].at(-1).textContent").await;
    assert!(last.as_str().unwrap().matches("<script>window.hacked=1</script>").count() >= 4, "{last}");
    fits_a_phone(&mut page).await;

    page.click("[role=tab]", "Window").await;
    page.until("document.querySelectorAll('.bar .slice').length > 2").await;
    let rows = page.eval("[...document.querySelectorAll('tbody tr')].map((row) => row.innerText)").await;
    let rows: Vec<&str> = rows.as_array().unwrap().iter().filter_map(Value::as_str).collect();
    let has = |words: [&str; 2]| rows.iter().any(|row| words.iter().all(|word| row.contains(word)));
    assert!(
        has(["1–10", "summarised"]) && has(["left out", "older than what fits into the budget"]),
        "{rows:?}"
    );
    fits_a_phone(&mut page).await;

    page.click("[role=tab]", "Live").await;
    page.until("document.querySelector('.panel [role=status]')?.textContent.startsWith('Connected')").await;
    client.say(&id, "said while somebody looks", 1).await;
    page.until("document.querySelector('.message')?.textContent.includes('said while somebody looks')").await;
    fits_a_phone(&mut page).await;

    assert_eq!(page.eval("window.hacked ?? null").await, Value::Null);
    assert_eq!(page.complaints, [""; 0]);
    let foreign: Vec<_> = page.requested.iter().filter(|url| !url.starts_with(&base)).collect();
    assert!(foreign.is_empty() && page.requested.len() > 20, "{foreign:?}");
}

async fn fits_a_phone(page: &mut Browser) {
    page.resize(360, 740).await;
    // Nothing sticks out.
    page.until("document.documentElement.scrollWidth === 360").await;
    page.resize(1280, 800).await;
}

#[tokio::test]
async fn a_key_is_asked_for_and_stays_out_of_urls() {
    let Some(mut page) = Browser::open().await else { return };
    let server = TestServer::start(|config| config.api_keys = vec![Secret::new("right-key")]);
    let client = Client::new(CONVERSATIONS, server.address).with_key("right-key");
    client.create("a").await;
    let enter = |key: &str| format!("document.getElementById('key-input').value = {key:?}");
    let says = |text: &str| format!("document.getElementById('key-reason')?.textContent === {text:?}");
    let stored = "JSON.stringify([{...localStorage}, {...sessionStorage}])";

    page.go(&format!("http://{}/console#/conversations/a", server.address)).await;
    page.until(&format!(
        "document.querySelector('dialog')?.open && {}",
        says("This server wants an API key.")
    ))
    .await;
    page.eval(&enter("wrong-key")).await;
    page.click("#key-form button", "Use this key").await;
    page.until(&format!(
        "document.querySelector('dialog')?.open && {}",
        says("The server refuses this key.")
    ))
    .await;
    page.eval(&enter("right-key")).await;
    page.click("#key-form button", "Use this key").await;
    page.click("[role=tab]", "Live").await;
    page.until("document.querySelector('.panel [role=status]')?.textContent.startsWith('Connected')").await;
    client.say("a", "with a key", 1).await;
    page.until("document.querySelector('.message')?.textContent.includes('with a key')").await;
    assert!(!page.eval(stored).await.to_string().contains("right-key"), "kept only when asked to");

    page.click("#key-button", "API key: set").await;
    page.click("#key-form button", "Forget").await;
    page.until("document.querySelector('dialog')?.open").await;
    assert!(page.requested.iter().all(|url| !url.contains("-key")), "{:?}", page.requested);
    assert!(page.complaints.iter().all(|complaint| complaint.contains("401")), "{:?}", page.complaints);
}
