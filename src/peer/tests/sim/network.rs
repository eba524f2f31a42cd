//! A network in memory: bytes come in pieces of any size, late, or not at all, as a seed says.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, ReadHalf, WriteHalf, duplex, split};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::peer::Peers;
use crate::peer::dial::{Io, Network};
use crate::testing::Rng;

/// Largest piece that bytes come in.
const PIECE_BYTES_MAX: usize = 64 << 10;
/// Smallest buffer of a connection: with the longest delays, a frame still passes in the time that it may take.
const BUFFER_BYTES_MIN: usize = 1 << 10;
/// How often a stalled connection looks whether it may go on.
const STALL_LOOK: Duration = Duration::from_millis(50);

/// Two nodes, the lower address first.
type Pair = (SocketAddr, SocketAddr);

#[derive(Clone)]
pub(super) struct Net(Arc<Mutex<Inner>>);

struct Inner {
    rng: Rng,
    nodes: BTreeMap<SocketAddr, Peers>,
    open: Vec<(Pair, CancellationToken)>,
    /// Between these nothing gets through, and nothing breaks.
    stalled: BTreeSet<Pair>,
    is_calm: bool,
}

impl Net {
    pub(super) fn new(rng: Rng) -> Net {
        let (nodes, stalled) = (BTreeMap::new(), BTreeSet::new());
        Net(Arc::new(Mutex::new(Inner { rng, nodes, open: Vec::new(), stalled, is_calm: false })))
    }

    /// Has whoever dials `address` from now on reach these.
    pub(super) fn listen(&self, address: SocketAddr, peers: Peers) {
        self.0.lock().nodes.insert(address, peers);
    }

    /// Cuts one connection, wherever its bytes are.
    pub(super) fn cut_one(&self) {
        let mut inner = self.0.lock();
        inner.open.retain(|(_, cut)| !cut.is_cancelled());
        if !inner.open.is_empty() {
            let count = inner.open.len() as u64;
            let at = inner.rng.below(count) as usize;
            inner.open.swap_remove(at).1.cancel();
        }
    }

    /// Cuts all connections of two nodes.
    pub(super) fn cut_all(&self, a: SocketAddr, b: SocketAddr) {
        let between = pair(a, b);
        self.0.lock().open.iter().filter(|(of, _)| *of == between).for_each(|(_, cut)| cut.cancel());
    }

    pub(super) fn stall(&self, a: SocketAddr, b: SocketAddr) {
        self.0.lock().stalled.insert(pair(a, b));
    }

    pub(super) fn flow(&self) {
        self.0.lock().stalled.clear();
    }

    /// From now on nothing breaks any more.
    pub(super) fn calm(&self) {
        let mut inner = self.0.lock();
        inner.is_calm = true;
        inner.stalled.clear();
    }

    fn is_calm(&self) -> bool {
        self.0.lock().is_calm
    }

    fn is_stalled(&self, of: Pair) -> bool {
        self.0.lock().stalled.contains(&of)
    }

    async fn connect(self, from: SocketAddr, to: SocketAddr) -> io::Result<Box<dyn Io>> {
        let of = pair(from, to);
        let (mut rng, fails) = {
            let mut inner = self.0.lock();
            let rng = Rng::new(inner.rng.next_u64());
            (rng, !inner.is_calm && inner.rng.chance(15))
        };
        sleep(Duration::from_millis(rng.below(20))).await;
        if fails {
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        while self.is_stalled(of) {
            sleep(STALL_LOOK).await;
        }
        let peers = self.0.lock().nodes.get(&to).cloned().ok_or(io::ErrorKind::ConnectionRefused)?;
        let buffer = BUFFER_BYTES_MIN << rng.below(7);
        let ((client, near), (far, server)) = (duplex(buffer), duplex(buffer));
        let ((near_in, near_out), (far_in, far_out)) = (split(near), split(far));
        let (cut, late_ms) = (CancellationToken::new(), [0, 1, 5, 100][rng.below(4) as usize]);
        for (input, output) in [(near_in, far_out), (far_in, near_out)] {
            let wire = Wire { net: self.clone(), of, rng: Rng::new(rng.next_u64()), late_ms };
            tokio::spawn(cut.clone().run_until_cancelled_owned(wire.carry(input, output)));
        }
        tokio::spawn(async move {
            if let Ok(socket) = tokio_tungstenite::accept_async(server).await {
                peers.accept(socket.into_inner(), from, ()).await;
            }
        });
        self.0.lock().open.push((of, cut));
        Ok(Box::new(client))
    }
}

fn pair(a: SocketAddr, b: SocketAddr) -> Pair {
    (a.min(b), a.max(b))
}

/// One direction of a connection.
struct Wire {
    net: Net,
    of: Pair,
    rng: Rng,
    late_ms: u64,
}

impl Wire {
    async fn carry(mut self, mut input: ReadHalf<DuplexStream>, mut output: WriteHalf<DuplexStream>) {
        let mut piece = vec![0; PIECE_BYTES_MAX];
        loop {
            let most = 1 << self.rng.below(u64::from(PIECE_BYTES_MAX.ilog2()) + 1);
            let Ok(read @ 1..) = input.read(&mut piece[..most]).await else { break };
            if self.late_ms > 0 && !self.net.is_calm() {
                sleep(Duration::from_millis(self.rng.below(self.late_ms + 1))).await;
            }
            while self.net.is_stalled(self.of) {
                sleep(STALL_LOOK).await;
            }
            if output.write_all(&piece[..read]).await.is_err() {
                break;
            }
        }
        let _ = output.shutdown().await;
    }
}

/// The network as one node sees it.
pub(super) struct From {
    pub(super) net: Net,
    pub(super) own: SocketAddr,
}

impl Network for From {
    fn connect(&self, to: SocketAddr) -> BoxFuture<'static, io::Result<Box<dyn Io>>> {
        Box::pin(self.net.clone().connect(self.own, to))
    }

    fn random(&self) -> u32 {
        self.net.0.lock().rng.next_u64() as u32
    }
}
