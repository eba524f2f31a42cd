//! Ports for servers that must know theirs before they start.

use std::net::TcpListener;
use std::sync::atomic::{AtomicU16, Ordering};

/// Loopback ports are taken from here: below what systems give to outgoing connections, so that nobody takes the port of
/// a server that is down.
const PORTS: std::ops::Range<u16> = 20_000..32_000;

/// A port nobody listens on, another one for each call.
pub(crate) fn free_port() -> u16 {
    static TAKEN: AtomicU16 = AtomicU16::new(0);
    let count = PORTS.end - PORTS.start;
    let first = (std::process::id() % u32::from(count)) as u16;
    for _ in 0..count {
        let port = PORTS.start + first.wrapping_add(TAKEN.fetch_add(1, Ordering::Relaxed)) % count;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
    panic!("no port of {PORTS:?} is free");
}
