//! Fastpaca core: a Raft-replicated conversation log server.

pub mod conversation;
pub mod journal;
pub mod metrics;
pub mod raft;
pub mod shards;
pub mod store;
