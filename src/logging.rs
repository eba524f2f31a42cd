//! Logging: one line an event on standard error, as JSON or text, panics included.
//!
//! Where an error is handled it is logged, once, with `event`, and where they are known
//! `conversation_id` and `seq`, as fields. Deliberately absent: log files and their rotation; what runs
//! the process keeps its output.

use std::backtrace::Backtrace;
use std::io;
use std::panic;

use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, fmt, registry};

use crate::config::{Config, LogFormat};

/// Starts logging for the process. A second call changes nothing.
pub(crate) fn init(config: &Config) {
    let filter: Targets = config.log.parse().expect("the configuration accepted the filter");
    let lines = match config.log_format {
        LogFormat::Json => {
            fmt::layer().with_writer(io::stderr).json().flatten_event(true).with_current_span(false).boxed()
        }
        LogFormat::Text => fmt::layer().with_writer(io::stderr).with_ansi(false).boxed(),
    };
    if registry().with(lines.with_filter(filter)).try_init().is_ok() {
        log_panics();
    }
}

/// A panic is an event like any other, so that a collector of JSON lines does not lose it.
fn log_panics() {
    panic::set_hook(Box::new(|panic| {
        let location = panic.location().map(ToString::to_string).unwrap_or_default();
        let backtrace = Backtrace::capture().to_string();
        let message = panic.payload_as_str().unwrap_or("a value that is no text");
        tracing::error!(event = "panic", location, backtrace, "{message}");
    }));
}
