//! Adapters between openraft and the node's journal and store. Nothing else imports openraft.
//!
//! No domain logic lives here: commands are bytes, replies come from the store. Where to begin reading:
//!
//! - A replica that runs: `group`, of which the node has one in each of its `slots`. `node` starts and stops them.
//! - What openraft is given: `log_store` over `group_log`, `state_machine`, `network`, and `types` over
//!   `runtime`.
//! - Between nodes: `network` and `commits` call, `service` is called, `rpc` has the bytes. Who leads where, and when
//!   to elect: `heartbeat`, `liveness`, `elections`.
//! - Snapshots: `snapshot`, from `send` to `receive` and `import`.
//! - On disk: `codec` has the bytes, `checkpoint` says from where `recovery` reads, `replay` reads, `reclaim` writes
//!   each `image` by which it frees space.

mod checkpoint;
mod codec;
mod commits;
mod elections;
mod group;
mod group_log;
mod heartbeat;
mod image;
mod import;
mod liveness;
mod log_reader;
mod log_store;
mod network;
mod node;
mod receive;
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
mod testing;
mod types;
mod watch;

pub use self::group::{Group, Members, MembershipError, ReadFailure, WriteFailure};
pub use self::network::{NoPeers, Transport};
pub use self::node::{HostError, Node, NodeSettings, StartError};
pub use self::reclaim::ReclaimSettings;
pub(crate) use self::recovery::request_rebuild;
pub use self::recovery::{RecoveryError, RecoverySettings};
pub use self::service::RaftService;
