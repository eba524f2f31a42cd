//! Token counts for messages on their way in, without letting long texts hold up the other requests.

use std::num::NonZero;
use std::sync::Arc;
use std::thread::available_parallelism;
use std::time::Instant;

use tokio::sync::Semaphore;

use super::body::Received;
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
    pub(crate) async fn read<T, F>(&self, body: &Received, read: F) -> Result<T, ApiError>
    where
        T: Send + 'static,
        F: Fn(&[u8], &Counter<'_>) -> Result<T, Unread> + Send + 'static,
    {
        match read(&body.bytes, &self.counter(false)) {
            Ok(value) => return Ok(value),
            Err(Unread::Refused(error)) => return Err(error),
            Err(Unread::TooLong) => {}
        }
        let thread = self.threads.clone().acquire_owned().await.map_err(|_| ApiError::Draining)?;
        let (scales, body) = (self.clone(), body.clone());
        // It goes on when the client has gone, and so keeps its place and what accounts for the body.
        let task = tokio::task::spawn_blocking(move || {
            // By name: a closure takes only the fields that it uses.
            let (_thread, body) = (thread, body);
            read(&body.bytes, &scales.counter(true))
        });
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

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use bytes::Bytes;
    use serde_json::{Value, json};

    use super::*;
    use crate::api::dialect::Dialect;
    use crate::api::wire::request::Append;

    fn scales() -> Scales {
        let estimator = Estimator::new(&"chars:4".parse().expect("a name")).expect("it loads");
        Scales::new(estimator, Metrics::new())
    }

    #[test]
    fn whatever_is_long_is_put_off() {
        let scales = scales();
        let is_put_off = |event: Value| {
            let body = json!({"event": event}).to_string();
            let append = Append::parse(body.as_bytes(), Dialect::Conversations, 1 << 20);
            let messages = append.unwrap_or_else(|error| panic!("{error:?}")).messages;
            matches!(scales.counter(false).weigh(messages), Err(Unread::TooLong))
        };
        let (long, text) = ("x".repeat(LARGE_TEXT_BYTES), json!({"type": "text", "text": "a"}));
        let call = json!({"type": "tool_call", "name": long});
        let long_text = json!({"type": "text", "text": long});
        for (event, expected) in [
            (json!({"role": "user", "parts": [text]}), false),
            (json!({"role": "user", "parts": [long_text]}), true),
            (json!({"role": "user", "parts": [long_text], "token_count": 1}), false),
            (json!({"role": "user", "parts": [long_text, text], "token_count": 1}), true),
            (json!({"role": long, "parts": [text]}), true),
            (json!({"role": long, "parts": [text], "token_count": 1}), false),
            (json!({"role": "assistant", "parts": [call], "token_count": 1}), true),
        ] {
            assert_eq!(is_put_off(event.clone()), expected, "{:.60}", event.to_string());
        }
    }

    #[tokio::test]
    async fn counting_that_nobody_waits_for_keeps_its_place_and_its_body_to_the_end() {
        let scales = scales();
        let (places, memory) = (scales.threads.available_permits(), Arc::new(Semaphore::new(1)));
        let permit = memory.clone().try_acquire_owned().expect("there is one");
        let body = Received::for_test(Bytes::from_static(b"long"), permit);
        let (begun, mut began) = tokio::sync::mpsc::unbounded_channel();
        let (end, ended) = mpsc::channel::<()>();
        let ended = std::sync::Mutex::new(ended);
        let count = move |_: &[u8], counter: &Counter<'_>| {
            if !counter.may_block {
                return Err(Unread::TooLong);
            }
            begun.send(()).expect("waited for");
            ended.lock().expect("one thread").recv().expect("told to end");
            Ok(())
        };
        let request = {
            let scales = scales.clone();
            tokio::spawn(async move { scales.read(&body, count).await.is_ok() })
        };
        began.recv().await.expect("begun");
        request.abort();
        assert!(request.await.expect_err("aborted").is_cancelled());
        assert_eq!((scales.threads.available_permits(), memory.available_permits()), (places - 1, 0));
        end.send(()).expect("waited for");
        let _place = scales.threads.acquire_many(places as u32).await.expect("given back");
        let _memory = memory.acquire().await.expect("given back");
    }
}
