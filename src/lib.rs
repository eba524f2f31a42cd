//! Fastpaca core: a Raft-replicated conversation log server.
//!
//! Read in this order: [`conversation`] (what a conversation is, pure), [`journal`] (the bytes on disk), [`store`]
//! (records over the journal), [`raft`] (the two joined by consensus), [`peer`] (the links between nodes), [`shards`] (what
//! the edge calls), [`api`] (HTTP), [`server`] (all of it wired); then [`cluster`] (who is a member and holds what),
//! [`archive`] (Postgres), [`tokens`] and [`advise`]. `docs/ARCHITECTURE.md` has the picture and the invariants.
//!
//! Layers, each of which may use only those below it; `tests/architecture.rs` holds them:
//!
//! ```text
//! main
//! cli
//! server, advise
//! api, archive, cluster
//! shards
//! raft
//! store, peer
//! journal
//! tokens
//! conversation
//! logging
//! config, metrics, trace
//! files, hold, testing, tls, workers
//! ```

pub mod advise;
pub mod api;
pub mod archive;
pub mod cli;
pub mod cluster;
pub mod config;
pub mod conversation;
pub mod files;
mod hold;
pub mod journal;
mod logging;
pub mod metrics;
pub mod peer;
pub mod raft;
pub mod server;
pub mod shards;
pub mod store;
#[cfg(test)]
mod testing;
mod tls;
pub mod tokens;
mod trace;
mod workers;
