//! The two servers that the real one is measured against, on the same axum, hyper and tokio.
//!
//! *no-op* reads the request and answers a constant. *floor* parses the same JSON body, appends it to a file with a
//! group-committed `fdatasync`, and answers JSON of the same shape. Neither replicates, orders, checks or remembers
//! anything.

use crate::Error;
use crate::group_commit::GroupCommit;
use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::{get, post};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::net::TcpListener;

const EVENTS: &str = "/v1/conversations/{id}/events";
const WINDOW: &str = "/v1/conversations/{id}/window";
const JSON: [(header::HeaderName, &str); 1] = [(header::CONTENT_TYPE, "application/json")];

/// Answers every append and every window with the same bytes: an append's answer, or `answer_bytes` of filler.
pub(crate) fn serve_noop(answer_bytes: Option<usize>) -> Result<(), Error> {
    let answer = match answer_bytes {
        Some(len) => Bytes::from(vec![b' '; len]),
        None => Bytes::from_static(br#"{"seq":42,"version":42,"token_estimate":128}"#),
    };
    let reply = {
        let answer = answer.clone();
        async move || (JSON, answer.clone())
    };
    let created = async move |_body: Bytes| (StatusCode::CREATED, JSON, answer.clone());
    serve(Router::new().route(EVENTS, post(created)).route(WINDOW, get(reply)))
}

/// Serves durable appends with its file in `dir`.
pub(crate) fn serve_floor(dir: &Path) -> Result<(), Error> {
    let floor = Floor { file: GroupCommit::create(&dir.join("floor"))?, last_seq: Arc::default() };
    serve(Router::new().route(EVENTS, post(append)).with_state(floor))
}

#[derive(Clone)]
struct Floor {
    file: GroupCommit,
    last_seq: Arc<AtomicU64>,
}

#[derive(Deserialize)]
struct Append<'a> {
    #[serde(borrow)]
    event: Event<'a>,
    idempotency_key: Option<&'a str>,
    if_version: Option<u64>,
}

#[derive(Deserialize)]
struct Event<'a> {
    role: &'a str,
    #[serde(borrow)]
    parts: Vec<&'a RawValue>,
    metadata: Option<&'a RawValue>,
    token_count: Option<u32>,
}

#[derive(Serialize)]
struct Appended {
    seq: u64,
    version: u64,
    token_estimate: u32,
}

async fn append(State(floor): State<Floor>, body: Bytes) -> impl IntoResponse {
    let token_estimate = match serde_json::from_slice::<Append>(&body) {
        Ok(append) => std::hint::black_box(append).token_estimate(),
        Err(error) => return (StatusCode::BAD_REQUEST, JSON, error.to_string().into_bytes()),
    };
    floor.file.append(&body).await;
    let seq = floor.last_seq.fetch_add(1, Ordering::Relaxed) + 1;
    let answer =
        serde_json::to_vec(&Appended { seq, version: seq, token_estimate }).expect("plain numbers are JSON");
    (StatusCode::CREATED, JSON, answer)
}

impl Append<'_> {
    fn token_estimate(&self) -> u32 {
        let Event { role, parts, metadata, token_count } = &self.event;
        let bytes = role.len() + parts.iter().map(|part| part.get().len()).sum::<usize>();
        let named = self.idempotency_key.map_or(0, str::len) + self.if_version.map_or(0, |_| 1);
        token_count.unwrap_or(((bytes + named + metadata.map_or(0, |json| json.get().len())) / 4) as u32)
    }
}

/// Accepts as the real server does (hyper-util, a header timeout, no delay) and prints the address first of all.
fn serve(router: Router) -> Result<(), Error> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        println!("{}", listener.local_addr()?);
        loop {
            let (stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            let service = TowerToHyperService::new(router.clone());
            tokio::spawn(async move {
                let mut builder = auto::Builder::new(TokioExecutor::new());
                builder.http1().timer(TokioTimer::new()).header_read_timeout(Duration::from_secs(10));
                // A connection that fails is the client's to notice: the load generator counts errors.
                builder.serve_connection(TokioIo::new(stream), service).await.ok();
            });
        }
    })
}
