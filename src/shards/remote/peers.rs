//! The links between nodes, as routing sees them, and its service on them.

use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use tokio::runtime::Handle;

use crate::peer::{Answer, CallError, Lane, Peers, Refused, Remote, Service, served_by};
use crate::shards::Shards;
use crate::shards::links::{Links, Method};

impl Links for Peers {
    fn is_up(&self, node: u128) -> bool {
        Peers::is_up(self, node)
    }

    fn body_bytes_max(&self) -> usize {
        Peers::body_bytes_max(self)
    }

    fn call(
        &self,
        to: u128,
        method: Method,
        body: Vec<Bytes>,
        limit: Duration,
    ) -> BoxFuture<'_, Result<Bytes, CallError>> {
        let lane = if method == Method::ReadIndex { Lane::Control } else { Lane::Log };
        Box::pin(async move { Peers::call(self, to, lane, method as u16, &body, limit).await })
    }
}

/// Serves other nodes' calls on the runtime of requests, not on that of the links. Writes come on the lane whose
/// connections run there anyway.
pub(in crate::shards) struct PeerService {
    pub shards: Shards,
    pub runtime: Handle,
}

impl Service for PeerService {
    fn call<'a>(&'a self, _: &'a Remote, method: u16, body: Bytes) -> Answer<'a> {
        let shards = self.shards.clone();
        let served = async move { shards.serve(method, body).await.map_err(Refused) };
        match Method::from_number(method) {
            Some(Method::ForwardWrite) => Box::pin(served),
            _ => Box::pin(served_by(self.runtime.spawn(served))),
        }
    }
}
