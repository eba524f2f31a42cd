//! Calls between nodes on behalf of requests: their encodings and the side that serves them.

pub(super) mod codec;
pub(super) mod convert;
pub(super) mod peers;
pub(super) mod service;
#[cfg(test)]
mod tests;
pub(super) mod wire;
