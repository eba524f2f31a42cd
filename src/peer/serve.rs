//! The serving side of one accepted connection: hands requests to their services and sends the answers.

use std::any::Any;
use std::future::poll_fn;
use std::ops::RangeInclusive;
use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;

use bytes::Bytes;
use futures_util::FutureExt;
use parking_lot::RwLock;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::task::coop::unconstrained;

use super::connection::Handler;
use super::frame::{Frame, Reassembly, TEXT_BYTES_MAX, Violation};
use super::hello::shortened;
use super::outbox::{Kind, Outbox};
use super::{Lane, Refused, Remote, Service};

/// Bytes of requests of one connection that are served at once, unless a single one is larger.
const SERVED_BYTES_MAX: u32 = 64 << 20;
/// What a caller hears of a panic.
const PANICKED: &str = "the node failed while it served the call";

/// Who serves which methods.
#[derive(Default)]
pub(crate) struct Services(RwLock<Vec<Entry>>);

type Entry = (RangeInclusive<u16>, Arc<dyn Service>);

impl Services {
    /// Takes over methods, from an earlier service too.
    pub(crate) fn add(&self, methods: RangeInclusive<u16>, service: Arc<dyn Service>) {
        self.0.write().insert(0, (methods, service));
    }

    pub(crate) fn clear(&self) {
        self.0.write().clear();
    }

    fn of(&self, method: u16) -> Option<Arc<dyn Service>> {
        let services = self.0.read();
        services.iter().find(|(methods, _)| methods.contains(&method)).map(|(_, service)| service.clone())
    }
}

/// Takes the requests of one connection.
pub(crate) struct Requests {
    services: Arc<Services>,
    remote: Arc<Remote>,
    outbox: Arc<Outbox>,
    bodies: Reassembly<u16>,
    served: Arc<Semaphore>,
    served_bytes: Arc<Semaphore>,
    /// Largest answer the other side takes.
    answer_bytes_max: usize,
    runtime: Handle,
}

impl Requests {
    pub(crate) fn new(
        services: Arc<Services>,
        remote: Remote,
        outbox: Arc<Outbox>,
        lane: Lane,
        (request_bytes_max, answer_bytes_max): (usize, usize),
        runtime: Handle,
    ) -> Requests {
        Requests {
            services,
            remote: Arc::new(remote),
            outbox,
            // Requests come one whole body after the other.
            bodies: Reassembly::new(request_bytes_max, request_bytes_max, 1),
            served: Arc::new(Semaphore::new(lane.served_max())),
            served_bytes: Arc::new(Semaphore::new(SERVED_BYTES_MAX as usize)),
            answer_bytes_max,
            runtime,
        }
    }

    /// Enters the service. Does not return before there is room to serve the call.
    async fn serve(&mut self, id: u64, method: u16, body: Bytes) {
        let bytes = u32::try_from(body.len()).unwrap_or(u32::MAX).min(SERVED_BYTES_MAX);
        let slot = self.served.clone().acquire_owned().await.expect("never closed");
        let room = self.served_bytes.clone().acquire_many_owned(bytes).await.expect("never closed");
        let (remote, outbox) = (self.remote.clone(), self.outbox.clone());
        let (service, answer_bytes_max) = (self.services.of(method), self.answer_bytes_max);
        let mut call = Box::pin(async move {
            let outcome = match service {
                Some(service) => enter(&*service, &remote, method, body).await,
                None => Ok(Err(Refused(format!("method {method} is not served here")))),
            };
            drop(room);
            answer(&outbox, id, outcome, answer_bytes_max).await;
            drop(slot);
        });
        // Without a budget, which could end the poll anywhere before the service has queued the call: what comes next
        // would then overtake it.
        let first = poll_fn(|cx| Poll::Ready(pin!(unconstrained(call.as_mut())).poll(cx))).await;
        if first.is_pending() {
            self.runtime.spawn(call);
        }
    }
}

impl Handler for Requests {
    async fn on_frame(&mut self, frame: Frame) -> Result<(), Violation> {
        let (id, request) = match frame {
            Frame::Request { id, method, total, chunk } => (id, self.bodies.begin(id, method, total, chunk)?),
            Frame::More { id, chunk } => (id, self.bodies.more(id, &chunk)?),
            Frame::Cancel { id } => {
                self.bodies.forget(id);
                return Ok(());
            }
            _ => return Err(Violation::UnknownKind),
        };
        if let Some((method, body)) = request {
            self.serve(id, method, body).await;
        }
        Ok(())
    }
}

/// The service panicked: what it did is unknown, which a refusal would deny.
struct Panicked;

async fn enter(
    service: &dyn Service,
    from: &Remote,
    method: u16,
    body: Bytes,
) -> Result<Result<Bytes, Refused>, Panicked> {
    let call = AssertUnwindSafe(async { service.call(from, method, body).await });
    call.catch_unwind().await.map_err(|panic| {
        let detail = panic_text(&*panic);
        tracing::error!(event = "peer_service_panicked", method, node = from.name, detail);
        Panicked
    })
}

fn panic_text(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("of unknown kind")
}

async fn answer(
    outbox: &Outbox,
    id: u64,
    outcome: Result<Result<Bytes, Refused>, Panicked>,
    bytes_max: usize,
) {
    let (kind, body) = match outcome {
        Ok(Ok(body)) if body.len() > bytes_max => {
            let text = format!("an answer of {} bytes; the caller takes {bytes_max}", body.len());
            (Kind::Failure { text }, Bytes::new())
        }
        Ok(Ok(body)) => (Kind::Answer, body),
        Ok(Err(Refused(text))) => {
            (Kind::Refusal { text: shortened(&text, TEXT_BYTES_MAX).to_owned() }, Bytes::new())
        }
        // What the panic said is for the log here.
        Err(Panicked) => (Kind::Failure { text: PANICKED.to_owned() }, Bytes::new()),
    };
    // A caller whose connection is gone knows that its answer is lost.
    if let Ok(room) = outbox.room(body.len()).await {
        let _ = outbox.push(id, kind, &[body], room);
    }
}
