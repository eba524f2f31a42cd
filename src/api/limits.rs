//! What one node takes on at once: connections, requests, bytes of request bodies, streams, and a rate.
//!
//! Everything is refused at the limit, nothing queues here: a client that is told at once can go elsewhere, and memory
//! stays bounded. The limits are per node; a fair share between clients is a proxy's job, except that one address
//! cannot take all connections.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use prometheus::IntGauge;

use super::watchdog::Patience;
use crate::config::Config;

/// Where batches are small, pieces may be this large all the same; peers take 8 MiB beyond two batches.
const PIECE_BYTES: u64 = 8 << 20;
/// What the journal and the calls to peers put around a piece, with room to spare.
const PIECE_ENVELOPE_BYTES: u64 = 64 << 10;

/// Connections beyond the limit, so that clients who take all of that do not keep other nodes out; one that does not show at
/// once to be a node's is closed.
pub(crate) const KEPT_FOR_NODES: usize = 64;
/// Of these, those from one address.
pub(crate) const KEPT_PER_ADDRESS_MAX: usize = KEPT_FOR_NODES / 4;

/// The limits of a node, from its settings.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Largest ordinary request body, and largest single event.
    pub body_bytes: usize,
    /// Largest body that carries a batch or a replacement.
    pub batch_bytes: usize,
    /// Largest encoded piece of a conversation that is restored.
    pub piece_bytes: usize,
    pub streams: usize,
    pub connections: usize,
    pub connections_per_address: usize,
    pub in_flight: usize,
    pub rate: Option<(u64, u64)>,
    pub patience: Patience,
    /// How long requests and streams may take to end once the node shuts down: most of what a shutdown may take, since
    /// a checkpoint follows.
    pub finish: Duration,
}

impl Limits {
    pub(crate) fn of(config: &Config) -> Limits {
        let bytes = |bytes: u64| usize::try_from(bytes).unwrap_or(usize::MAX);
        let (rate, burst) = (config.rate_limit_per_second, config.rate_limit_burst);
        Limits {
            body_bytes: bytes(config.body_max_bytes),
            batch_bytes: bytes(config.batch_body_max_bytes),
            piece_bytes: bytes(piece_bytes(config)),
            streams: config.stream_max_connections,
            connections: config.max_connections,
            connections_per_address: config.max_connections_per_address,
            in_flight: config.max_inflight_requests,
            rate: (rate > 0).then_some((rate, if burst > 0 { burst } else { rate })),
            patience: Patience { head: config.header_timeout, ..Patience::default() },
            finish: config.shutdown_timeout * 2 / 3,
        }
    }
}

/// A piece is a few versions or a single one: at most a summary, which came as a batch and with what was reckoned of its
/// parts takes less than two. As one frame of the journal it must fit into a segment, which holds two batches.
fn piece_bytes(config: &Config) -> u64 {
    let largest = PIECE_BYTES.max(config.batch_body_max_bytes.saturating_mul(2));
    largest.min(config.segment_bytes).saturating_sub(PIECE_ENVELOPE_BYTES)
}

/// A rate with a burst, as one atomic word: the generic cell rate algorithm (ITU-T I.371), lock free.
pub(crate) struct RateLimit {
    start: Instant,
    /// Time one admission costs.
    interval_ns: u64,
    /// How far ahead of its pace the caller may run.
    burst_ns: u64,
    /// When the next admission would be due at an even pace, since `start`.
    due_ns: AtomicU64,
}

impl RateLimit {
    /// Admits `per_second` on average and up to `burst` at once.
    pub(crate) fn new(per_second: u64, burst: u64) -> RateLimit {
        let interval_ns = 1_000_000_000 / per_second.max(1);
        let burst_ns = interval_ns.saturating_mul(burst.max(1));
        RateLimit { start: Instant::now(), interval_ns, burst_ns, due_ns: AtomicU64::new(0) }
    }

    /// Admits one, or says how long until there is room.
    pub(crate) fn admit(&self) -> Result<(), Duration> {
        self.admit_at(u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX))
    }

    fn admit_at(&self, now_ns: u64) -> Result<(), Duration> {
        let next = |due_ns: u64| {
            let due_ns = due_ns.max(now_ns).saturating_add(self.interval_ns);
            (due_ns - now_ns <= self.burst_ns).then_some(due_ns)
        };
        self.due_ns.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next).map(drop).map_err(|due_ns| {
            Duration::from_nanos(
                due_ns.saturating_add(self.interval_ns).saturating_sub(now_ns + self.burst_ns),
            )
        })
    }
}

/// Caps on open connections, in all and per address.
pub(crate) struct ConnectionCaps {
    total_max: usize,
    per_address_max: usize,
    open: Mutex<Open>,
    gauge: Option<IntGauge>,
}

#[derive(Default)]
struct Open {
    total: usize,
    by_address: HashMap<IpAddr, usize>,
}

/// One admitted connection; dropping it makes room.
pub(crate) struct ConnectionPermit {
    caps: Arc<ConnectionCaps>,
    address: IpAddr,
}

impl ConnectionPermit {
    pub(crate) fn is_of(&self, caps: &Arc<ConnectionCaps>) -> bool {
        Arc::ptr_eq(&self.caps, caps)
    }
}

impl ConnectionCaps {
    /// `gauge`, if there is one, shows how many are open.
    pub(crate) fn new(
        total_max: usize,
        per_address_max: usize,
        gauge: Option<IntGauge>,
    ) -> Arc<ConnectionCaps> {
        Arc::new(ConnectionCaps { total_max, per_address_max, open: Mutex::default(), gauge })
    }

    /// Admits a connection from `address`, unless that would be one too many.
    pub(crate) fn admit(self: &Arc<Self>, address: IpAddr) -> Option<ConnectionPermit> {
        let address = owner(address);
        let mut open = self.open.lock();
        if open.total >= self.total_max {
            return None;
        }
        let here = open.by_address.entry(address).or_default();
        if *here >= self.per_address_max {
            return None;
        }
        *here += 1;
        open.total += 1;
        self.gauge.iter().for_each(IntGauge::inc);
        Some(ConnectionPermit { caps: self.clone(), address })
    }
}

impl Drop for ConnectionPermit {
    fn drop(&mut self) {
        let mut open = self.caps.open.lock();
        open.total -= 1;
        self.caps.gauge.iter().for_each(IntGauge::dec);
        if let Entry::Occupied(mut here) = open.by_address.entry(self.address) {
            *here.get_mut() -= 1;
            if *here.get() == 0 {
                here.remove();
            }
        }
    }
}

/// The unit that shares a cap: an IPv4 address, or the /64 a single IPv6 subscriber owns.
fn owner(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
        }
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Metrics;

    const SECOND_NS: u64 = 1_000_000_000;

    #[test]
    fn a_piece_may_be_as_large_as_what_is_stored_but_no_larger_than_a_segment() {
        let piece_bytes = |batch: u64, segment: u64| {
            let mut config = Config::for_test("unused");
            (config.batch_body_max_bytes, config.segment_bytes) = (batch, segment);
            Limits::of(&config).piece_bytes as u64
        };
        for (batch, segment) in [(8 << 20, 64 << 20), (512 << 10, 1 << 20), (256 << 20, 512 << 20)] {
            let piece = piece_bytes(batch, segment);
            assert!(piece >= batch + batch / 2 && piece < segment, "{batch} of {segment}: {piece}");
        }
        let usual = piece_bytes(1 << 10, 64 << 20);
        assert!(usual > 4 << 20 && usual < 8 << 20, "{usual}");
    }

    #[test]
    fn a_burst_passes_then_the_pace_holds() {
        let limit = RateLimit::new(10, 5);
        let admitted = (0..100).filter(|_| limit.admit_at(0).is_ok()).count();
        assert_eq!(admitted, 5);
        assert_eq!(limit.admit_at(0), Err(Duration::from_millis(100)));
        assert_eq!(limit.admit_at(SECOND_NS / 10), Ok(()));
        assert!(limit.admit_at(SECOND_NS / 10).is_err());
        let admitted = (0..100).filter(|_| limit.admit_at(10 * SECOND_NS).is_ok()).count();
        assert_eq!(admitted, 5, "idle time does not add up beyond the burst");
    }

    #[test]
    fn connections_are_capped_in_all_and_per_address() {
        let caps = ConnectionCaps::new(3, 2, None);
        let [a, b] = [IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2])];
        let first = caps.admit(a).expect("room");
        let _second = caps.admit(a).expect("room");
        assert!(caps.admit(a).is_none(), "per address");
        let _third = caps.admit(b).expect("room");
        assert!(caps.admit(b).is_none(), "in all");
        drop(first);
        assert!(caps.admit(a).is_some());
    }

    #[test]
    fn a_closed_address_leaves_nothing_behind() {
        let gauge = Metrics::new().connections.clone();
        let caps = ConnectionCaps::new(10, 10, Some(gauge.clone()));
        let permit = caps.admit(IpAddr::from([10, 0, 0, 1]));
        assert_eq!(gauge.get(), 1);
        drop(permit);
        assert!(caps.open.lock().by_address.is_empty());
        assert_eq!(gauge.get(), 0);
    }

    #[test]
    fn one_ipv6_network_is_one_owner() {
        let of = |text: &str| owner(text.parse().expect("an address"));
        assert_eq!(of("2001:db8::1"), of("2001:db8::ffff"));
        assert_ne!(of("2001:db8::1"), of("2001:db8:0:1::1"));
        assert_eq!(of("::ffff:10.0.0.1"), of("10.0.0.1"));
    }
}
