//! Token counts for messages on their way in, without letting long texts hold up the other requests.

use std::num::NonZero;
use std::sync::Arc;
use std::thread::available_parallelism;
use std::time::Instant;

use bytes::Bytes;
use tokio::sync::Semaphore;

use super::error::ApiError;
use super::wire::request::Message;
use crate::conversation::{NewMessage, PartMeta, RoleKind};
use crate::metrics::Metrics;
use crate::tokens::{Estimator, LARGE_TEXT_BYTES};

/// The node's token counting: an estimator, and as many threads for long texts as there are cores.
#[derive(Clone)]
pub(crate) struct Scales {
    estimator: Estimator,
    metrics: Metrics,
    threads: Arc<Semaphore>,
}

/// What counts the messages of one body.
pub(crate) struct Counter<'a> {
    scales: &'a Scales,
    may_block: bool,
}

/// Why a body was not turned into something.
pub(crate) enum Unread {
    Refused(ApiError),
    /// To be read again where counting may take its time.
    TooLong,
}

impl From<ApiError> for Unread {
    fn from(error: ApiError) -> Unread {
        Unread::Refused(error)
    }
}

impl Scales {
    pub(crate) fn new(estimator: Estimator, metrics: Metrics) -> Scales {
        let cores = available_parallelism().map_or(1, NonZero::get);
        Scales { estimator, metrics, threads: Arc::new(Semaphore::new(cores)) }
    }

    /// Reads a body with `read`, which counts with the counter it is given. Borrowed values cannot move to another
    /// thread, so a body that takes long to count is parsed a second time there.
    pub(crate) async fn read<T, F>(&self, bytes: &Bytes, read: F) -> Result<T, ApiError>
    where
        T: Send + 'static,
        F: Fn(&[u8], &Counter<'_>) -> Result<T, Unread> + Send + 'static,
    {
        match read(bytes, &self.counter(false)) {
            Ok(value) => return Ok(value),
            Err(Unread::Refused(error)) => return Err(error),
            Err(Unread::TooLong) => {}
        }
        let _thread = self.threads.acquire().await.map_err(|_| ApiError::Draining)?;
        let (scales, bytes) = (self.clone(), bytes.clone());
        let task = tokio::task::spawn_blocking(move || read(&bytes, &scales.counter(true)));
        match task.await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(Unread::Refused(error))) => Err(error),
            Ok(Err(Unread::TooLong)) => Err(ApiError::Internal("counting was put off twice".into())),
            Err(error) => Err(ApiError::Internal(format!("counting tokens: {error}"))),
        }
    }

    fn counter(&self, may_block: bool) -> Counter<'_> {
        Counter { scales: self, may_block }
    }
}

impl Counter<'_> {
    /// Counts messages and makes their stored form.
    pub(crate) fn weigh(&self, messages: Vec<Message<'_>>) -> Result<Vec<NewMessage>, Unread> {
        let text_bytes: usize = messages.iter().map(Message::countable_bytes).sum();
        if text_bytes > LARGE_TEXT_BYTES && !self.may_block {
            return Err(Unread::TooLong);
        }
        let started = Instant::now();
        let weighed = messages.into_iter().map(|message| self.weigh_one(message)).collect();
        self.scales.metrics.token_count_seconds.observe(started.elapsed().as_secs_f64());
        Ok(weighed)
    }

    fn weigh_one(&self, message: Message<'_>) -> NewMessage {
        let parts: Vec<&str> = message.parts.iter().map(|part| &*part.json).collect();
        let measured = self.scales.estimator.measure(&message.role, &parts, message.token_count);
        let body = message.body();
        let role = RoleKind::of(&message.role);
        let parts = message.parts.into_iter().zip(measured.parts).map(|(part, tokens)| PartMeta {
            marker_tokens: part.facts.marker.map_or(0, |marker| self.scales.estimator.count(&marker)),
            kind: part.facts.kind,
            tokens,
            tool: part.facts.tool,
        });
        NewMessage { body, token_count: measured.total, role, parts: parts.collect() }
    }
}
