//! Adapters between openraft and the node's journal and store. Nothing else imports openraft.
//!
//! No domain logic lives here: commands are bytes, replies come from the store.

mod checkpoint;
mod codec;
mod group;
mod log_store;
mod network;
mod node;
mod recovery;
mod snapshot;
mod state_machine;
#[cfg(test)]
mod tests;
mod types;

pub use self::group::{Group, WriteFailure};
pub use self::node::{Node, NodeSettings, StartError};
pub(crate) use self::recovery::request_rebuild;
pub use self::recovery::{RecoveryError, RecoverySettings};
