//! The messages of the handshake and their bytes: one binary websocket message each, big-endian.
//!
//! ```text
//! every message   "FPCP" | kind u8 | ...
//! hello       1   format u8 | min u16 | max u16 | lane u8 | node id u128 | instance u64 | incarnation u64
//!                 | has cluster u8 | cluster u128 | port u16 | largest body u32 | nonce 32
//!                 | name u8+n | advertised u8+n | keys u8+8n | marks u8+8n
//! challenge   2   hello message u16+n | key id 8 | tag 32
//! proof       3   tag 32
//! welcome     4
//! refusal     5   reason u8 | text u16+n
//! ```
//!
//! Bytes behind the known fields of a hello are left for later versions to use; the tags cover them.

use bytes::{Buf, BufMut};

use super::Lane;
use super::secrets::{KEYS_MAX, KeyId, Tag};
use crate::metrics::REFUSALS;

/// Largest message of a handshake.
pub(crate) const HANDSHAKE_BYTES_MAX: usize = 4 << 10;
/// The lowest and the highest protocol version this build speaks. A version that raises the highest keeps the one
/// before, so that nodes can be upgraded one after the other.
pub const PROTOCOLS: (u16, u16) = (1, 2);
/// From this version on a node knows what trimmed conversations are, in logs, snapshots and answers.
pub const KNOWS_TRIMS: u16 = 2;

const MAGIC: &[u8; 4] = b"FPCP";
const FORMAT: u8 = 1;
/// Most marks a node tells: the one its cluster has, and the next.
const MARKS_MAX: usize = 2;
const REFUSAL_TEXT_BYTES_MAX: usize = 512;

/// What a node says about itself on a new connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Hello {
    pub(crate) protocol_min: u16,
    pub(crate) protocol_max: u16,
    pub(crate) lane: Lane,
    pub(crate) node_id: u128,
    /// Random per process: tells a node from another one with the same data directory.
    pub(crate) instance: u64,
    pub(crate) incarnation: u64,
    pub(crate) cluster: Option<u128>,
    /// Where it listens, on the address it is seen under.
    pub(crate) port: u16,
    /// Largest body of a request it takes, in bytes.
    pub(crate) body_bytes_max: u32,
    pub(crate) nonce: [u8; 32],
    pub(crate) name: String,
    /// `host:port` to dial it, where that is not what it is seen under.
    pub(crate) advertised: Option<String>,
    pub(crate) keys: Vec<KeyId>,
    /// See [`super::Mark`].
    pub(crate) marks: Vec<u64>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Message {
    Hello(Hello),
    Challenge { hello: Vec<u8>, key: KeyId, tag: Tag },
    Proof(Tag),
    Welcome,
    Refusal(Refusal),
}

/// Why two nodes do not talk.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}: {text}", .reason.label())]
pub struct Refusal {
    pub reason: Reason,
    pub text: String,
}

/// The kinds of [`Refusal`]. The numbers go over the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    Malformed = 1,
    WrongSecret = 2,
    OtherCluster = 3,
    NoCommonProtocol = 4,
    SameName = 5,
    SameId = 6,
    Yourself = 7,
    Full = 8,
    OutdatedData = 9,
}

impl Reason {
    const ALL: [Reason; 9] = [
        Reason::Malformed,
        Reason::WrongSecret,
        Reason::OtherCluster,
        Reason::NoCommonProtocol,
        Reason::SameName,
        Reason::SameId,
        Reason::Yourself,
        Reason::Full,
        Reason::OutdatedData,
    ];

    /// As in logs and metrics.
    pub fn label(self) -> &'static str {
        REFUSALS[self as usize]
    }

    pub(crate) fn because(self, text: impl Into<String>) -> Refusal {
        Refusal { reason: self, text: text.into() }
    }
}

impl Message {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(256);
        out.put_slice(MAGIC);
        match self {
            Message::Hello(hello) => {
                out.put_u8(1);
                hello.encode(&mut out);
            }
            Message::Challenge { hello, key, tag } => {
                out.put_u8(2);
                out.put_u16(u16::try_from(hello.len()).expect("a hello is bounded"));
                out.put_slice(hello);
                out.put_slice(key);
                out.put_slice(tag);
            }
            Message::Proof(tag) => {
                out.put_u8(3);
                out.put_slice(tag);
            }
            Message::Welcome => out.put_u8(4),
            Message::Refusal(Refusal { reason, text }) => {
                out.put_u8(5);
                out.put_u8(*reason as u8);
                let text = shortened(text, REFUSAL_TEXT_BYTES_MAX);
                out.put_u16(text.len() as u16);
                out.put_slice(text.as_bytes());
            }
        }
        out
    }

    /// `None` for anything that is not a message of the handshake.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Message> {
        if bytes.len() > HANDSHAKE_BYTES_MAX {
            return None;
        }
        let mut rest = bytes.strip_prefix(MAGIC)?;
        match rest.try_get_u8().ok()? {
            1 => Hello::decode(rest).map(Message::Hello),
            2 => {
                let len = usize::from(rest.try_get_u16().ok()?);
                let hello = take(&mut rest, len)?.to_vec();
                Some(Message::Challenge { hello, key: array(&mut rest)?, tag: array(&mut rest)? })
            }
            3 => Some(Message::Proof(array(&mut rest)?)),
            4 => Some(Message::Welcome),
            5 => {
                let code = rest.try_get_u8().ok()?;
                let len = usize::from(rest.try_get_u16().ok()?);
                let text = String::from_utf8_lossy(take(&mut rest, len)?).replace(char::is_control, " ");
                // A reason of a later version is a refusal all the same.
                let known = Reason::ALL.into_iter().find(|reason| *reason as u8 == code);
                Some(Message::Refusal(known.unwrap_or(Reason::Malformed).because(text)))
            }
            _ => None,
        }
    }
}

impl Hello {
    fn encode(&self, out: &mut Vec<u8>) {
        out.put_u8(FORMAT);
        out.put_u16(self.protocol_min);
        out.put_u16(self.protocol_max);
        out.put_u8(self.lane as u8);
        out.put_u128(self.node_id);
        out.put_u64(self.instance);
        out.put_u64(self.incarnation);
        out.put_u8(u8::from(self.cluster.is_some()));
        out.put_u128(self.cluster.unwrap_or(0));
        out.put_u16(self.port);
        out.put_u32(self.body_bytes_max);
        out.put_slice(&self.nonce);
        for text in [&self.name, self.advertised.as_deref().unwrap_or_default()] {
            let text = shortened(text, usize::from(u8::MAX));
            out.put_u8(text.len() as u8);
            out.put_slice(text.as_bytes());
        }
        out.put_u8(self.keys.len().min(KEYS_MAX) as u8);
        self.keys.iter().take(KEYS_MAX).for_each(|key| out.put_slice(key));
        out.put_u8(self.marks.len().min(MARKS_MAX) as u8);
        self.marks.iter().take(MARKS_MAX).for_each(|mark| out.put_u64(*mark));
    }

    fn decode(mut bytes: &[u8]) -> Option<Hello> {
        let rest = &mut bytes;
        rest.try_get_u8().ok().filter(|format| *format == FORMAT)?;
        let (protocol_min, protocol_max) = (rest.try_get_u16().ok()?, rest.try_get_u16().ok()?);
        let lane = rest.try_get_u8().ok()?;
        let lane = Lane::ALL.into_iter().find(|known| *known as u8 == lane)?;
        let node_id = rest.try_get_u128().ok()?;
        let (instance, incarnation) = (rest.try_get_u64().ok()?, rest.try_get_u64().ok()?);
        let has_cluster = rest.try_get_u8().ok()? != 0;
        let cluster = rest.try_get_u128().ok().map(|cluster| has_cluster.then_some(cluster))?;
        let port = rest.try_get_u16().ok()?;
        let body_bytes_max = rest.try_get_u32().ok()?;
        let nonce = array(rest)?;
        let (name, advertised) = (text(rest)?, text(rest)?);
        let count = usize::from(rest.try_get_u8().ok()?);
        if count > KEYS_MAX || protocol_min > protocol_max {
            return None;
        }
        let keys = (0..count).map(|_| array(rest)).collect::<Option<Vec<KeyId>>>()?;
        let count = usize::from(rest.try_get_u8().ok().filter(|count| usize::from(*count) <= MARKS_MAX)?);
        let marks = (0..count).map(|_| rest.try_get_u64().ok()).collect::<Option<Vec<u64>>>()?;
        let advertised = Some(advertised).filter(|text| !text.is_empty());
        Some(Hello {
            protocol_min,
            protocol_max,
            lane,
            node_id,
            instance,
            incarnation,
            cluster,
            port,
            body_bytes_max,
            nonce,
            name,
            advertised,
            keys,
            marks,
        })
    }
}

fn take<'a>(bytes: &mut &'a [u8], len: usize) -> Option<&'a [u8]> {
    let (taken, rest) = bytes.split_at_checked(len)?;
    *bytes = rest;
    Some(taken)
}

fn array<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
    take(bytes, N)?.try_into().ok()
}

fn text(bytes: &mut &[u8]) -> Option<String> {
    let len = usize::from(bytes.try_get_u8().ok()?);
    let text = std::str::from_utf8(take(bytes, len)?).ok()?;
    text.chars().all(|c| !c.is_control()).then(|| text.to_owned())
}

/// As much of a text as fits, in whole characters.
pub(crate) fn shortened(text: &str, bytes_max: usize) -> &str {
    &text[..text.floor_char_boundary(bytes_max)]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::hex;

    fn hello() -> Hello {
        Hello {
            protocol_min: 1,
            protocol_max: 2,
            lane: Lane::Log,
            node_id: 0x0102,
            instance: 3,
            incarnation: 4,
            cluster: Some(5),
            port: 4000,
            body_bytes_max: 1 << 20,
            nonce: [6; 32],
            name: "n-1".into(),
            advertised: Some("h:1".into()),
            keys: vec![[7; 8], [8; 8]],
            marks: vec![9],
        }
    }

    fn messages() -> Vec<Message> {
        let bare = Hello { cluster: None, advertised: None, keys: vec![], marks: vec![], ..hello() };
        vec![
            Message::Hello(hello()),
            Message::Hello(bare),
            Message::Challenge { hello: b"hi".to_vec(), key: [1; 8], tag: [2; 32] },
            Message::Proof([3; 32]),
            Message::Welcome,
            Message::Refusal(Reason::SameName.because("two of \"a\"")),
        ]
    }

    #[test]
    fn the_bytes_on_the_wire_are_these() {
        let lines: Vec<String> = messages().iter().map(|message| hex(&message.encode())).collect();
        assert_eq!(lines.join("\n"), include_str!("hello.golden").trim_end());
    }

    #[test]
    fn metrics_label_lanes_and_reasons_by_their_names() {
        let plain = |label: &str| label.replace('_', "");
        for lane in Lane::ALL {
            assert_eq!(plain(lane.label()), format!("{lane:?}").to_lowercase());
        }
        for reason in Reason::ALL {
            assert_eq!(plain(reason.label()), format!("{reason:?}").to_lowercase());
        }
    }

    #[test]
    fn messages_come_back_and_cut_ones_do_not() {
        for message in messages() {
            let bytes = message.encode();
            assert_eq!(Message::decode(&bytes), Some(message));
            for end in 0..bytes.len() {
                assert_eq!(Message::decode(&bytes[..end]), None, "cut at {end}");
            }
        }
    }

    #[test]
    fn a_later_hello_may_say_more() {
        let mut bytes = Message::Hello(hello()).encode();
        bytes.extend_from_slice(b"more");
        assert_eq!(Message::decode(&bytes), Some(Message::Hello(hello())));
        bytes.resize(HANDSHAKE_BYTES_MAX + 1, 0);
        assert_eq!(Message::decode(&bytes), None);
    }

    #[test]
    fn names_with_control_characters_are_no_names() {
        let mut broken = hello();
        broken.name = "a\nb".into();
        assert_eq!(Message::decode(&Message::Hello(broken).encode()), None);
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(kind in 0u8..7, bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let mut message = MAGIC.to_vec();
            message.push(kind);
            message.extend(bytes);
            let _ = Message::decode(&message);
        }

        #[test]
        fn any_hello_comes_back(
            node_id in any::<u128>(), incarnation in any::<u64>(), cluster in any::<Option<u128>>(),
            port in any::<u16>(), name in "[a-z]{0,64}", keys in prop::collection::vec(any::<KeyId>(), 0..16),
            marks in prop::collection::vec(any::<u64>(), 0..=MARKS_MAX),
        ) {
            let hello = Hello { node_id, incarnation, cluster, port, name, keys, marks, ..hello() };
            let message = Message::Hello(hello);
            prop_assert_eq!(Message::decode(&message.encode()), Some(message));
        }
    }
}
