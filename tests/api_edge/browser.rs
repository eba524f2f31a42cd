//! A headless Chromium, driven by its debugging protocol over a websocket.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async};

use crate::support::PATIENCE;

const PROGRAM: &str = "chromium";
/// Browsers start slowly on a busy machine.
const START_MAX: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(20);

/// One browser with one page. Dropping it ends it.
pub(crate) struct Browser {
    child: Child,
    _profile: TempDir,
    socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
    calls: u64,
    /// What went wrong in the page: errors on its console, exceptions, refused loads.
    pub(crate) complaints: Vec<String>,
    /// The URL of every request.
    pub(crate) requested: Vec<String>,
}

impl Browser {
    /// `None`, with a word about it, where there is no Chromium; a failure where the environment promises one.
    #[allow(clippy::print_stderr, reason = "whoever runs the tests should know")]
    pub(crate) async fn open() -> Option<Browser> {
        let profile = tempfile::tempdir().unwrap();
        let started = Command::new(PROGRAM)
            .args([
                "--headless=new",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-dev-shm-usage",
                "--no-first-run",
            ])
            .args(["--disable-background-networking", "--no-proxy-server", "--remote-debugging-port=0"])
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .arg("about:blank")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        let Ok(mut child) = started else {
            assert!(std::env::var_os("FASTPACA_TEST_NO_SKIP").is_none(), "there is no {PROGRAM}");
            eprintln!("skipped: there is no {PROGRAM}");
            return None;
        };
        let url = page_url(&mut child, &profile.path().join("DevToolsActivePort")).await;
        let (socket, _) = connect_async(url).await.unwrap();
        let (complaints, requested) = (Vec::new(), Vec::new());
        let mut browser = Browser { child, _profile: profile, socket, calls: 0, complaints, requested };
        for domain in ["Page", "Runtime", "Log", "Network"] {
            browser.call(&format!("{domain}.enable"), json!({})).await;
        }
        Some(browser)
    }

    pub(crate) async fn go(&mut self, url: &str) {
        self.call("Page.navigate", json!({"url": url})).await;
    }

    /// The size of the page, as on a screen of that many pixels.
    pub(crate) async fn resize(&mut self, width: u32, height: u32) {
        let size = json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500});
        self.call("Emulation.setDeviceMetricsOverride", size).await;
    }

    /// The value of an expression in the page.
    pub(crate) async fn eval(&mut self, expression: &str) -> Value {
        let asked = json!({"expression": expression, "awaitPromise": true, "returnByValue": true});
        let answer = self.call("Runtime.evaluate", asked).await;
        assert!(answer["exceptionDetails"].is_null(), "{expression}: {answer}");
        answer["result"]["value"].clone()
    }

    /// Waits until an expression is true.
    pub(crate) async fn until(&mut self, expression: &str) {
        let deadline = Instant::now() + PATIENCE;
        while self.eval(&format!("Boolean({expression})")).await != true {
            if Instant::now() > deadline {
                let page = self.eval("document.body.innerText").await;
                panic!(
                    "never so: {expression}\n{:?}\n{}",
                    self.complaints,
                    page.as_str().unwrap_or_default()
                );
            }
            sleep(POLL).await;
        }
    }

    /// Clicks the first element of a selector whose text contains `text`, once there is one.
    pub(crate) async fn click(&mut self, selector: &str, text: &str) {
        let found = format!(
            "[...document.querySelectorAll({selector:?})].find((e) => e.textContent.includes({text:?}))"
        );
        self.until(&found).await;
        self.eval(&format!("{found}.click()")).await;
    }

    async fn call(&mut self, method: &str, params: Value) -> Value {
        self.calls += 1;
        let call = json!({"id": self.calls, "method": method, "params": params});
        self.socket.send(Message::text(call.to_string())).await.unwrap();
        loop {
            let next = timeout(START_MAX, self.socket.next()).await.expect("the browser answers");
            let Message::Text(text) = next.expect("the browser stays").unwrap() else { continue };
            let mut said: Value = serde_json::from_str(&text).unwrap();
            if said["id"] == self.calls {
                assert!(said["error"].is_null(), "{method}: {said}");
                return said["result"].take();
            }
            self.note(&said["method"], &said["params"]);
        }
    }

    fn note(&mut self, event: &Value, params: &Value) {
        match event.as_str().unwrap_or_default() {
            "Runtime.exceptionThrown" => self.complaints.push(params["exceptionDetails"].to_string()),
            "Runtime.consoleAPICalled" if params["type"] == "error" => {
                self.complaints.push(params["args"].to_string())
            }
            "Log.entryAdded" if params["entry"]["level"] == "error" => {
                self.complaints.push(params["entry"].to_string())
            }
            "Network.requestWillBeSent" => {
                self.requested.extend(params["request"]["url"].as_str().map(str::to_owned));
            }
            _ => {}
        }
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// Where the browser's one page is driven, once the browser has written down its port.
async fn page_url(child: &mut Child, port_file: &Path) -> String {
    let deadline = Instant::now() + START_MAX;
    loop {
        let written = std::fs::read_to_string(port_file).unwrap_or_default();
        if let Some((port, _)) = written.split_once('\n')
            && let Some(url) = listed_page(port).await
        {
            return url;
        }
        assert!(child.try_wait().unwrap().is_none(), "{PROGRAM} ended");
        assert!(Instant::now() < deadline, "{PROGRAM} does not start");
        sleep(POLL).await;
    }
}

async fn listed_page(port: &str) -> Option<String> {
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let listed = http.get(format!("http://127.0.0.1:{port}/json/list")).send().await.ok()?;
    let targets: Vec<Value> = listed.json().await.ok()?;
    let page = targets.iter().find(|target| target["type"] == "page")?;
    page["webSocketDebuggerUrl"].as_str().map(str::to_owned)
}
