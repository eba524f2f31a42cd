//! Fastpaca core: a Raft-replicated conversation log server.

pub mod api;
pub mod cli;
pub mod config;
pub mod conversation;
pub mod journal;
pub mod logging;
pub mod metrics;
pub mod raft;
pub mod server;
pub mod shards;
pub mod store;
pub mod tokens;
