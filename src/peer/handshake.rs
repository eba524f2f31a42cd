//! Who is at the other end: mutual challenge and response over a shared key, without IO.
//!
//! The dialling side sends its hello; the accepting side answers with its own and a tag over both (it knows the key);
//! the dialling side answers with a tag of its own. Both tags cover both hellos with their nonces, and the role of the
//! signer, so that none can be replayed or reflected. Only then do the two decide ([`super::roster`]) whether they
//! want each other; either may still refuse, and says why. Frames after the handshake are not signed: against someone
//! who can change packets between nodes, use TLS.

use super::hello::{Hello, Message, Reason, Refusal};
use super::secrets::{KeyId, Secrets};

const ACCEPTING: &[u8] = b"accepting";
const DIALLING: &[u8] = b"dialling";

/// How a handshake failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Failed {
    /// This side refuses, and tells the other.
    Here(Refusal),
    /// The other side refused.
    There(Refusal),
}

/// The other side, proven to know the key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Proven {
    pub(crate) hello: Hello,
    /// The protocol version both speak.
    pub(crate) protocol: u16,
}

/// The dialling side, waiting for the challenge.
pub(crate) struct Dialling {
    secrets: Secrets,
    own: Hello,
    /// As it was sent.
    own_bytes: Vec<u8>,
}

impl Dialling {
    /// The state, and the first message to send.
    pub(crate) fn start(secrets: Secrets, own: Hello) -> (Dialling, Vec<u8>) {
        let own_bytes = Message::Hello(own.clone()).encode();
        (Dialling { secrets, own, own_bytes: own_bytes.clone() }, own_bytes)
    }

    /// Checks the challenge. The proof to send, once the peer is wanted.
    pub(crate) fn on_challenge(self, message: &[u8]) -> Result<(Proven, Vec<u8>), Failed> {
        let (theirs, key, tag) = match Message::decode(message) {
            Some(Message::Challenge { hello, key, tag }) => (hello, key, tag),
            Some(Message::Refusal(refusal)) => return Err(Failed::There(refusal)),
            _ => return Err(malformed("expected a challenge")),
        };
        let hello = hello_in(&theirs)?;
        if !self.secrets.verify(key, &[ACCEPTING, &self.own_bytes, &theirs], &tag) {
            return Err(wrong_secret());
        }
        let protocol = common_protocol(&self.own, &hello)?;
        let proof = self.secrets.sign(key, &[DIALLING, &self.own_bytes, &theirs]).ok_or_else(wrong_secret)?;
        Ok((Proven { hello, protocol }, Message::Proof(proof).encode()))
    }

    /// The last word of the accepting side.
    pub(crate) fn on_verdict(message: &[u8]) -> Result<(), Failed> {
        match Message::decode(message) {
            Some(Message::Welcome) => Ok(()),
            Some(Message::Refusal(refusal)) => Err(Failed::There(refusal)),
            _ => Err(malformed("expected a welcome")),
        }
    }
}

/// The accepting side, waiting for the proof.
pub(crate) struct Accepting {
    secrets: Secrets,
    key: KeyId,
    theirs: Vec<u8>,
    own: Hello,
    own_bytes: Vec<u8>,
    hello: Hello,
}

impl Accepting {
    /// Answers a first message. `own` gets the lane of the connection.
    pub(crate) fn on_hello(
        secrets: Secrets,
        mut own: Hello,
        message: &[u8],
    ) -> Result<(Accepting, Vec<u8>), Failed> {
        let hello = hello_in(message)?;
        own.lane = hello.lane;
        let key = secrets.common(&hello.keys).ok_or_else(wrong_secret)?;
        let own_bytes = Message::Hello(own.clone()).encode();
        let tag = secrets.sign(key, &[ACCEPTING, message, &own_bytes]).ok_or_else(wrong_secret)?;
        let challenge = Message::Challenge { hello: own_bytes.clone(), key, tag }.encode();
        Ok((Accepting { secrets, key, theirs: message.to_vec(), own, own_bytes, hello }, challenge))
    }

    /// Checks the proof. What is left is to say [`welcome`], or to refuse.
    pub(crate) fn on_proof(self, message: &[u8]) -> Result<Proven, Failed> {
        let tag = match Message::decode(message) {
            Some(Message::Proof(tag)) => tag,
            Some(Message::Refusal(refusal)) => return Err(Failed::There(refusal)),
            _ => return Err(malformed("expected a proof")),
        };
        if !self.secrets.verify(self.key, &[DIALLING, &self.theirs, &self.own_bytes], &tag) {
            return Err(wrong_secret());
        }
        let protocol = common_protocol(&self.own, &self.hello)?;
        Ok(Proven { hello: self.hello, protocol })
    }
}

pub(crate) fn welcome() -> Vec<u8> {
    Message::Welcome.encode()
}

/// The newest version both sides speak.
fn common_protocol(own: &Hello, theirs: &Hello) -> Result<u16, Failed> {
    let newest = theirs.protocol_max.min(own.protocol_max);
    if newest >= theirs.protocol_min.max(own.protocol_min) {
        return Ok(newest);
    }
    let speaks = |node: &Hello| {
        format!("{:?} speaks protocol versions {} to {}", node.name, node.protocol_min, node.protocol_max)
    };
    let text = format!("{}, {}: upgrade by way of a version between", speaks(own), speaks(theirs));
    Err(Failed::Here(Reason::NoCommonProtocol.because(text)))
}

fn hello_in(message: &[u8]) -> Result<Hello, Failed> {
    match Message::decode(message) {
        Some(Message::Hello(hello)) => Ok(hello),
        Some(Message::Refusal(refusal)) => Err(Failed::There(refusal)),
        _ => Err(malformed("expected a hello")),
    }
}

fn malformed(text: &str) -> Failed {
    Failed::Here(Reason::Malformed.because(text))
}

fn wrong_secret() -> Failed {
    let text =
        "the nodes have no secret in common; give both the same FASTPACA_CLUSTER_SECRET, or the same API key";
    Failed::Here(Reason::WrongSecret.because(text))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Secret;
    use crate::peer::Lane;
    use proptest::prelude::*;

    fn secrets(list: &[&str]) -> Secrets {
        Secrets::new(&list.iter().map(|text| Secret::new(*text)).collect::<Vec<_>>(), &[])
    }

    fn hello(name: &str, secrets: &Secrets) -> Hello {
        Hello {
            protocol_min: 1,
            protocol_max: 1,
            lane: Lane::Control,
            node_id: name.bytes().map(u128::from).sum(),
            instance: 1,
            incarnation: 1,
            cluster: None,
            port: 1,
            body_bytes_max: 1,
            nonce: [name.len() as u8; 32],
            name: name.to_owned(),
            advertised: None,
            keys: secrets.ids(),
            marks: Vec::new(),
        }
    }

    /// Both sides in memory; what each thinks of the other. `meddle` sees every message.
    fn shake(
        dials: &Secrets,
        accepts: &Secrets,
        mut meddle: impl FnMut(usize, &mut Vec<u8>),
    ) -> (Result<Proven, Failed>, Result<Proven, Failed>) {
        let mut pass = |step: usize, mut message: Vec<u8>| {
            meddle(step, &mut message);
            message
        };
        let refused = |failed: &Failed| match failed {
            Failed::Here(refusal) => Message::Refusal(refusal.clone()).encode(),
            Failed::There(_) => Vec::new(),
        };
        let (dialling, first) = Dialling::start(dials.clone(), hello("d", dials));
        let first = pass(0, first);
        let (accepting, challenge) = match Accepting::on_hello(accepts.clone(), hello("acc", accepts), &first)
        {
            Ok(next) => next,
            Err(failed) => {
                let told = dialling.on_challenge(&refused(&failed)).map(|(proven, _)| proven);
                return (told, Err(failed));
            }
        };
        let (proven, proof) = match dialling.on_challenge(&pass(1, challenge)) {
            Ok(next) => next,
            Err(failed) => {
                let told = accepting.on_proof(&refused(&failed));
                return (Err(failed), told);
            }
        };
        match accepting.on_proof(&pass(2, proof)) {
            Ok(accepted) => (Dialling::on_verdict(&pass(3, welcome())).map(|()| proven), Ok(accepted)),
            Err(failed) => (Dialling::on_verdict(&refused(&failed)).map(|()| proven), Err(failed)),
        }
    }

    #[test]
    fn a_common_secret_is_enough() {
        for (dials, accepts) in [("a", "a"), ("a,b", "b"), ("b", "a,b"), ("a,b", "b,c")] {
            let list = |text: &str| secrets(&text.split(',').collect::<Vec<_>>());
            let (dialled, accepted) = shake(&list(dials), &list(accepts), |_, _| {});
            assert_eq!(dialled.expect("trusted").hello.name, "acc");
            assert_eq!(accepted.expect("trusted").hello.name, "d");
        }
    }

    #[test]
    fn without_one_both_sides_know_why() {
        let (dialled, accepted) = shake(&secrets(&["a"]), &secrets(&["b"]), |_, _| {});
        let Err(Failed::There(told)) = dialled else { panic!("{dialled:?}") };
        let Err(Failed::Here(refused)) = accepted else { panic!("{accepted:?}") };
        assert_eq!(told, refused);
        assert_eq!(told.reason, Reason::WrongSecret);
        assert!(told.text.contains("FASTPACA_CLUSTER_SECRET"));
    }

    #[test]
    fn a_name_of_a_key_is_no_key() {
        let (knows, pretends) = (secrets(&["a"]), secrets(&["b"]));
        // The dialling side claims the accepting side's key id, and signs with another key.
        let mut claims = hello("d", &pretends);
        claims.keys = knows.ids();
        let message = Message::Hello(claims).encode();
        let (accepting, _) =
            Accepting::on_hello(knows.clone(), hello("acc", &knows), &message).expect("an id in common");
        let proof = Message::Proof([0; 32]).encode();
        let Err(Failed::Here(refusal)) = accepting.on_proof(&proof) else { panic!("let in") };
        assert_eq!(refusal.reason, Reason::WrongSecret);
    }

    #[test]
    fn versions_without_overlap_are_refused_on_both_sides() {
        let with = |name, (protocol_min, protocol_max)| Hello {
            protocol_min,
            protocol_max,
            ..hello(name, &secrets(&["a"]))
        };
        let agreed = |own, theirs| common_protocol(&with("own", own), &with("other", theirs));
        assert_eq!(agreed((1, 2), (1, 5)), Ok(2));
        assert_eq!(agreed((1, 5), (1, 2)), Ok(2));
        assert_eq!(agreed((2, 3), (3, 4)), Ok(3));
        for (own, theirs) in [((1, 2), (3, 5)), ((3, 5), (1, 2))] {
            let Err(Failed::Here(refusal)) = agreed(own, theirs) else { panic!("agreed") };
            assert_eq!(refusal.reason, Reason::NoCommonProtocol);
            assert!(refusal.text.contains("\"own\"") && refusal.text.contains("\"other\""), "{refusal}");
        }
    }

    proptest! {
        #[test]
        fn no_changed_message_gets_through(step in 0usize..3, at in any::<prop::sample::Index>(), bit in 0u8..8) {
            let keys = secrets(&["a"]);
            let flip = |now: usize, message: &mut Vec<u8>| if now == step {
                let at = at.index(message.len());
                message[at] ^= 1 << bit;
            };
            let (dialled, accepted) = shake(&keys, &keys, flip);
            prop_assert!(dialled.is_err(), "the dialling side noticed or was told");
            prop_assert!(accepted.is_err(), "{accepted:?}");
        }
    }
}
