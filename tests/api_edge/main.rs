//! The HTTP and websocket contract, exercised through sockets against a real server with its journal and groups.
//!
//! Most tests share one server and keep apart by conversation ids; those that need other settings start their own.
#![allow(clippy::unwrap_used, reason = "a test fails where it fails")]

mod browser;
mod command;
mod console;
mod conversations;
mod events;
mod hostile;
mod http;
mod operations;
#[path = "../support/process.rs"]
#[allow(dead_code, reason = "shared with tests that need more of it")]
mod process;
mod secure;
mod streams;
mod support;
mod windows;
