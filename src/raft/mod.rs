//! Adapters between openraft and the node's journal and store. Nothing else imports openraft.
//!
//! No domain logic lives here: commands are bytes, replies come from the store.

mod checkpoint;
mod codec;
mod commits;
mod elections;
mod group;
mod heartbeat;
mod image;
mod import;
mod leadership;
mod liveness;
mod log_reader;
mod log_store;
mod network;
#[cfg(test)]
mod network_tests;
mod node;
mod read_barrier;
mod reclaim;
mod recovery;
mod replay;
mod rpc;
mod runtime;
mod send;
mod service;
mod slots;
mod snapshot;
mod state_machine;
#[cfg(test)]
mod tests;
mod types;
mod watch;

pub use self::group::{Group, Members, MembershipError, WriteFailure};
pub use self::network::{NoPeers, Transport};
pub use self::node::{HostError, Node, NodeSettings, StartError};
pub use self::read_barrier::ReadFailure;
pub use self::reclaim::ReclaimSettings;
pub(crate) use self::recovery::request_rebuild;
pub use self::recovery::{RecoveryError, RecoverySettings};
pub use self::service::RaftService;
