//! Frames of an established connection: one per binary websocket message, big-endian, no state.
//!
//! ```text
//! request  1 | id u64 | method u16 | body length u32 | first chunk
//! answer   2 | id u64 | body length u32 | first chunk
//! more     3 | id u64 | next chunk
//! refusal  4 | id u64 | UTF-8 text
//! cancel   5 | id u64
//! ping     6 | stamp u64
//! pong     7 | stamp u64
//! failure  8 | id u64 | UTF-8 text
//! ```
//!
//! A body longer than [`CHUNK_BYTES_MAX`] goes on in `more` frames until its announced length is reached; no chunk but
//! that of an empty body is empty. The layout belongs to the protocol version that the handshake agreed on.
//! A refusal says that the service declined; a failure, that nobody knows what it did.
//! [`Reassembly`] puts bodies together and holds a sender to its announcements.

use std::collections::BTreeMap;

use bytes::{Buf, BufMut, Bytes, BytesMut};

/// Most bytes of a body in one frame: short enough that a ping behind one is not late.
pub(crate) const CHUNK_BYTES_MAX: usize = 128 << 10;
/// Most bytes of a frame.
pub(crate) const FRAME_BYTES_MAX: usize = CHUNK_BYTES_MAX + HEADER_BYTES_MAX;
/// Longest text of a refusal or a failure; longer ones are cut.
pub(crate) const TEXT_BYTES_MAX: usize = 1 << 10;

const HEADER_BYTES_MAX: usize = 1 + 8 + 2 + 4;

const REQUEST: u8 = 1;
const ANSWER: u8 = 2;
const MORE: u8 = 3;
const REFUSAL: u8 = 4;
const CANCEL: u8 = 5;
const PING: u8 = 6;
const PONG: u8 = 7;
const FAILURE: u8 = 8;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Frame {
    Request { id: u64, method: u16, total: u32, chunk: Bytes },
    Answer { id: u64, total: u32, chunk: Bytes },
    More { id: u64, chunk: Bytes },
    Refusal { id: u64, text: String },
    Cancel { id: u64 },
    Ping { stamp: u64 },
    Pong { stamp: u64 },
    Failure { id: u64, text: String },
}

/// The other side broke the protocol; the connection cannot go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Violation {
    #[error("a frame of an unknown kind")]
    UnknownKind,
    #[error("a frame that ends too early")]
    Truncated,
    #[error("a frame with bytes behind its end")]
    Trailing,
    #[error("a refusal or a failure that is no text")]
    NotText,
    #[error("a chunk that is empty or too long")]
    BadChunk,
    #[error("a body larger than this node takes")]
    TooLarge,
    #[error("more unfinished bodies than agreed")]
    TooMany,
    #[error("an id that is in use")]
    IdInUse,
    #[error("a chunk of a body that was not begun")]
    NotBegun,
}

impl Frame {
    pub(crate) fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(HEADER_BYTES_MAX + self.tail().len());
        match self {
            Frame::Request { id, method, total, .. } => {
                head(&mut out, REQUEST, *id);
                out.put_u16(*method);
                out.put_u32(*total);
            }
            Frame::Answer { id, total, .. } => {
                head(&mut out, ANSWER, *id);
                out.put_u32(*total);
            }
            Frame::More { id, .. } => head(&mut out, MORE, *id),
            Frame::Refusal { id, .. } => head(&mut out, REFUSAL, *id),
            Frame::Failure { id, .. } => head(&mut out, FAILURE, *id),
            Frame::Cancel { id } => head(&mut out, CANCEL, *id),
            Frame::Ping { stamp } => head(&mut out, PING, *stamp),
            Frame::Pong { stamp } => head(&mut out, PONG, *stamp),
        }
        out.put_slice(self.tail());
        out.freeze()
    }

    fn tail(&self) -> &[u8] {
        match self {
            Frame::Request { chunk, .. } | Frame::Answer { chunk, .. } | Frame::More { chunk, .. } => chunk,
            Frame::Refusal { text, .. } | Frame::Failure { text, .. } => text.as_bytes(),
            Frame::Cancel { .. } | Frame::Ping { .. } | Frame::Pong { .. } => &[],
        }
    }

    pub(crate) fn decode(mut bytes: Bytes) -> Result<Frame, Violation> {
        let kind = bytes.try_get_u8().map_err(|_| Violation::Truncated)?;
        let id = bytes.try_get_u64().map_err(|_| Violation::Truncated)?;
        let frame = match kind {
            REQUEST => {
                let method = bytes.try_get_u16().map_err(|_| Violation::Truncated)?;
                let total = bytes.try_get_u32().map_err(|_| Violation::Truncated)?;
                return Ok(Frame::Request { id, method, total, chunk: first_chunk(bytes, total)? });
            }
            ANSWER => {
                let total = bytes.try_get_u32().map_err(|_| Violation::Truncated)?;
                return Ok(Frame::Answer { id, total, chunk: first_chunk(bytes, total)? });
            }
            MORE if bytes.is_empty() || bytes.len() > CHUNK_BYTES_MAX => return Err(Violation::BadChunk),
            MORE => return Ok(Frame::More { id, chunk: bytes }),
            REFUSAL => return Ok(Frame::Refusal { id, text: text(&bytes)? }),
            FAILURE => return Ok(Frame::Failure { id, text: text(&bytes)? }),
            CANCEL => Frame::Cancel { id },
            PING => Frame::Ping { stamp: id },
            PONG => Frame::Pong { stamp: id },
            _ => return Err(Violation::UnknownKind),
        };
        if bytes.is_empty() { Ok(frame) } else { Err(Violation::Trailing) }
    }
}

fn head(out: &mut BytesMut, kind: u8, id: u64) {
    out.put_u8(kind);
    out.put_u64(id);
}

fn text(bytes: &[u8]) -> Result<String, Violation> {
    std::str::from_utf8(bytes).map(str::to_owned).map_err(|_| Violation::NotText)
}

fn first_chunk(chunk: Bytes, total: u32) -> Result<Bytes, Violation> {
    let fits = chunk.len() <= CHUNK_BYTES_MAX && chunk.len() <= total as usize;
    if fits && (chunk.is_empty() == (total == 0)) { Ok(chunk) } else { Err(Violation::BadChunk) }
}

/// Bodies under way in one direction of one connection. `H` is what their first frames said besides.
pub(crate) struct Reassembly<H> {
    unfinished: BTreeMap<u64, Unfinished<H>>,
    /// Announced bytes of the unfinished bodies.
    bytes: usize,
    body_bytes_max: usize,
    bytes_max: usize,
    count_max: usize,
}

struct Unfinished<H> {
    head: H,
    total: usize,
    body: BytesMut,
}

impl<H> Reassembly<H> {
    /// Takes bodies of up to `body_bytes_max`, and at once up to `count_max` unfinished ones of together `bytes_max`.
    pub(crate) fn new(body_bytes_max: usize, bytes_max: usize, count_max: usize) -> Reassembly<H> {
        Reassembly { unfinished: BTreeMap::new(), bytes: 0, body_bytes_max, bytes_max, count_max }
    }

    /// Takes the first chunk of a body; the whole body if that was all.
    pub(crate) fn begin(
        &mut self,
        id: u64,
        head: H,
        total: u32,
        chunk: Bytes,
    ) -> Result<Option<(H, Bytes)>, Violation> {
        let total = total as usize;
        if self.unfinished.contains_key(&id) {
            return Err(Violation::IdInUse);
        }
        if total > self.body_bytes_max {
            return Err(Violation::TooLarge);
        }
        if chunk.len() == total {
            return Ok(Some((head, chunk)));
        }
        if self.unfinished.len() >= self.count_max || self.bytes + total > self.bytes_max {
            return Err(Violation::TooMany);
        }
        let mut body = BytesMut::with_capacity(total);
        body.put_slice(&chunk);
        self.bytes += total;
        self.unfinished.insert(id, Unfinished { head, total, body });
        Ok(None)
    }

    /// Takes the next chunk of a body; the whole body if that was the last.
    pub(crate) fn more(&mut self, id: u64, chunk: &[u8]) -> Result<Option<(H, Bytes)>, Violation> {
        let unfinished = self.unfinished.get_mut(&id).ok_or(Violation::NotBegun)?;
        if unfinished.body.len() + chunk.len() > unfinished.total {
            return Err(Violation::BadChunk);
        }
        unfinished.body.put_slice(chunk);
        if unfinished.body.len() < unfinished.total {
            return Ok(None);
        }
        Ok(self.cancel(id).map(|done| (done.head, done.body.freeze())))
    }

    /// Forgets a body of which no more will come.
    pub(crate) fn forget(&mut self, id: u64) {
        self.cancel(id);
    }

    fn cancel(&mut self, id: u64) -> Option<Unfinished<H>> {
        let removed = self.unfinished.remove(&id)?;
        self.bytes -= removed.total;
        Some(removed)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::hex;

    fn frames() -> Vec<Frame> {
        let chunk = Bytes::from_static(b"abc");
        vec![
            Frame::Request { id: 1, method: 0x0203, total: 5, chunk: chunk.clone() },
            Frame::Answer { id: 2, total: 3, chunk: chunk.clone() },
            Frame::Answer { id: 2, total: 0, chunk: Bytes::new() },
            Frame::More { id: 3, chunk },
            Frame::Refusal { id: 4, text: "né".into() },
            Frame::Cancel { id: 5 },
            Frame::Ping { stamp: u64::MAX },
            Frame::Pong { stamp: 7 },
            Frame::Failure { id: 8, text: "x".into() },
        ]
    }

    #[test]
    fn the_bytes_on_the_wire_are_these() {
        let lines: Vec<String> = frames().iter().map(|frame| hex(&frame.encode())).collect();
        let golden = [
            "010000000000000001020300000005616263",
            "02000000000000000200000003616263",
            "02000000000000000200000000",
            "030000000000000003616263",
            "0400000000000000046ec3a9",
            "050000000000000005",
            "06ffffffffffffffff",
            "070000000000000007",
            "08000000000000000878",
        ];
        assert_eq!(lines, golden);
        for frame in frames() {
            assert_eq!(Frame::decode(frame.encode()), Ok(frame));
        }
    }

    #[test]
    fn malformed_frames_are_violations() {
        let decode = |bytes: &[u8]| Frame::decode(Bytes::copy_from_slice(bytes));
        assert_eq!(decode(b""), Err(Violation::Truncated));
        assert_eq!(decode(&[1; 9]), Err(Violation::Truncated));
        assert_eq!(decode(&[9; 9]), Err(Violation::UnknownKind));
        assert_eq!(decode(&[5; 10]), Err(Violation::Trailing));
        assert_eq!(decode(&[3; 9]), Err(Violation::BadChunk));
        assert_eq!(decode(b"\x04\0\0\0\0\0\0\0\x01\xff"), Err(Violation::NotText));
        let longer = Frame::Answer { id: 1, total: 2, chunk: Bytes::from_static(b"abc") };
        assert_eq!(Frame::decode(longer.encode()), Err(Violation::BadChunk));
        let empty = Frame::Answer { id: 1, total: 2, chunk: Bytes::new() };
        assert_eq!(Frame::decode(empty.encode()), Err(Violation::BadChunk));
    }

    #[test]
    fn the_bounds_of_reassembly_hold() {
        let chunk = || Bytes::from_static(b"ab");
        let mut bodies = Reassembly::new(10, 15, 2);
        assert_eq!(bodies.begin(1, (), 11, chunk()), Err(Violation::TooLarge));
        assert_eq!(bodies.begin(1, (), 10, chunk()), Ok(None));
        assert_eq!(bodies.begin(1, (), 4, chunk()), Err(Violation::IdInUse));
        assert_eq!(bodies.begin(2, (), 6, chunk()), Err(Violation::TooMany), "bytes");
        assert_eq!(bodies.begin(2, (), 5, chunk()), Ok(None));
        assert_eq!(bodies.begin(3, (), 2, chunk()), Ok(Some(((), chunk()))), "whole at once");
        bodies.forget(1);
        assert_eq!(bodies.begin(3, (), 4, chunk()), Ok(None));
        assert_eq!(bodies.begin(4, (), 3, chunk()), Err(Violation::TooMany), "count");
        assert_eq!(bodies.more(1, b"x"), Err(Violation::NotBegun));
        assert_eq!(bodies.more(3, b"xyz"), Err(Violation::BadChunk));
        assert_eq!(bodies.more(3, b"xy"), Ok(Some(((), Bytes::from_static(b"abxy")))));
        bodies.forget(2);
        assert_eq!(bodies.bytes, 0);
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            if let Ok(frame) = Frame::decode(Bytes::from(bytes.clone())) {
                prop_assert_eq!(&frame.encode()[..], &bytes[..]);
            }
        }

        #[test]
        fn a_body_survives_every_split(
            body in prop::collection::vec(any::<u8>(), 1..200),
            cuts in prop::collection::vec(1usize..50, 0..20),
        ) {
            let mut bodies = Reassembly::new(200, 400, 4);
            let (mut at, mut cuts) = (0, cuts.into_iter());
            let mut whole = None;
            while at < body.len() {
                prop_assert!(whole.is_none());
                let end = (at + cuts.next().unwrap_or(body.len())).min(body.len());
                let chunk = Bytes::copy_from_slice(&body[at..end]);
                whole = if at == 0 {
                    bodies.begin(7, 'h', body.len() as u32, chunk).unwrap()
                } else {
                    bodies.more(7, &chunk).unwrap()
                };
                at = end;
            }
            prop_assert_eq!(whole, Some(('h', Bytes::from(body))));
            prop_assert_eq!(bodies.bytes, 0);
        }
    }
}
