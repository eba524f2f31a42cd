//! A way to a server that loses things: now and then the answer to an append is swallowed after the server gave it, and
//! streams are cut off in the middle.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

/// Every so many appends lose their answer.
const SWALLOWED_EVERY: usize = 7;
/// So many streams are cut off, each after so many bytes.
const CUTS: usize = 3;
const CUT_AFTER_BYTES: usize = 1_500;

/// Listens until the process ends.
pub(crate) struct Lossy {
    address: SocketAddr,
    counts: Arc<Counts>,
}

#[derive(Default)]
struct Counts {
    appends: AtomicUsize,
    streams: AtomicUsize,
    swallowed: AtomicUsize,
    cut: AtomicUsize,
}

/// What becomes of the answer to the request that is under way.
#[derive(Clone, Copy)]
enum Fate {
    Whole,
    Swallowed,
    CutAfter(usize),
}

impl Lossy {
    /// In front of a server.
    pub(crate) fn before(server: SocketAddr) -> Lossy {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let counts = Arc::<Counts>::default();
        let shared = counts.clone();
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let counts = shared.clone();
                thread::spawn(move || carry(&client, server, &counts));
            }
        });
        Lossy { address, counts }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Answers to appends that the client did not get.
    pub(crate) fn swallowed(&self) -> usize {
        self.counts.swallowed.load(Ordering::Relaxed)
    }

    /// Streams that were cut off.
    pub(crate) fn cut(&self) -> usize {
        self.counts.cut.load(Ordering::Relaxed)
    }
}

/// One connection: this thread carries answers, another one requests.
fn carry(client: &TcpStream, server: SocketAddr, counts: &Arc<Counts>) {
    let Ok(upstream) = TcpStream::connect(server) else { return };
    let fate = Arc::new(Mutex::new(Fate::Whole));
    let (from, to) = (client.try_clone().unwrap(), upstream.try_clone().unwrap());
    let (decided, counted) = (fate.clone(), counts.clone());
    thread::spawn(move || carry_requests(from, to, &decided, &counted));
    carry_answers(&upstream, client, &fate, counts);
    for end in [client, &upstream] {
        end.shutdown(Shutdown::Both).ok();
    }
}

fn carry_requests(mut from: TcpStream, mut to: TcpStream, fate: &Mutex<Fate>, counts: &Counts) {
    let mut piece = [0; 64 << 10];
    while let Ok(length @ 1..) = from.read(&mut piece) {
        let piece = &piece[..length];
        // A request begins a piece of its own: the clients wait for an answer before they send the next.
        if let Some(decided) = counts.decide(piece) {
            *fate.lock().unwrap() = decided;
        }
        if to.write_all(piece).is_err() {
            return;
        }
    }
    to.shutdown(Shutdown::Both).ok();
}

fn carry_answers(mut from: &TcpStream, mut to: &TcpStream, fate: &Mutex<Fate>, counts: &Counts) {
    let mut piece = [0; 64 << 10];
    while let Ok(length @ 1..) = from.read(&mut piece) {
        let mut fate = fate.lock().unwrap();
        let given = match *fate {
            Fate::Whole => length,
            Fate::Swallowed => {
                counts.swallowed.fetch_add(1, Ordering::Relaxed);
                return;
            }
            Fate::CutAfter(left) => left.min(length),
        };
        if to.write_all(&piece[..given]).is_err() {
            return;
        }
        if let Fate::CutAfter(left) = &mut *fate {
            *left -= given;
            if *left == 0 {
                counts.cut.fetch_add(1, Ordering::Relaxed);
                return;
            }
        }
    }
}

impl Counts {
    /// The fate of the answer to the request that begins here, if one does.
    fn decide(&self, piece: &[u8]) -> Option<Fate> {
        let head = String::from_utf8_lossy(&piece[..piece.len().min(256)]);
        let (method, rest) = head.split_once(' ')?;
        let path = rest.split(' ').next()?;
        match method {
            "POST" if path.ends_with("/events") => {
                let number = self.appends.fetch_add(1, Ordering::Relaxed) + 1;
                Some(if number.is_multiple_of(SWALLOWED_EVERY) { Fate::Swallowed } else { Fate::Whole })
            }
            "GET" if path.contains("/stream") => {
                let number = self.streams.fetch_add(1, Ordering::Relaxed);
                Some(if number < CUTS { Fate::CutAfter(CUT_AFTER_BYTES) } else { Fate::Whole })
            }
            "GET" | "POST" | "PUT" => Some(Fate::Whole),
            _ => None,
        }
    }
}
