//! What routing needs of the links to other nodes, as a trait, so that it can be tested without a network.

use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;

use crate::peer::CallError;

/// Calls to other nodes.
pub(super) trait Links: Send + Sync + 'static {
    fn is_up(&self, node: u128) -> bool;
    /// Largest body of a call that every node in reach takes.
    fn body_bytes_max(&self) -> usize;
    /// Calls a method; the body goes out as one, made of the parts.
    fn call(
        &self,
        to: u128,
        method: Method,
        body: Vec<Bytes>,
        limit: Duration,
    ) -> BoxFuture<'_, Result<Bytes, CallError>>;
}

/// The calls that nodes make on behalf of requests. The numbers are a contract with other versions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u16)]
pub(super) enum Method {
    /// A command to the leader of its group.
    ForwardWrite = 16,
    /// Read indexes of groups, from their leader.
    ReadIndex = 17,
    /// A read of a conversation, to a host of its group.
    Read = 18,
    /// Waits, within bounds, until a conversation has moved on.
    WaitBeyond = 19,
    /// A page of the listing of some groups.
    List = 20,
}

/// The methods served by this module.
pub(super) const METHODS: std::ops::RangeInclusive<u16> = 16..=31;

impl Method {
    pub(super) fn from_number(number: u16) -> Option<Method> {
        let all = [Method::ForwardWrite, Method::ReadIndex, Method::Read, Method::WaitBeyond, Method::List];
        all.into_iter().find(|method| *method as u16 == number)
    }
}
