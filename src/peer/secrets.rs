//! What nodes of one cluster share: keys derived from secrets, named by truncated digests, so that both sides of a
//! handshake find a common one while secrets are being rotated.

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use crate::config::{CLUSTER_SECRETS_MAX, Secret};

/// Most keys a node has at once: as many as there may be secrets. Of API keys the first are used.
pub(crate) const KEYS_MAX: usize = CLUSTER_SECRETS_MAX;

/// Names a key without giving it away.
pub(crate) type KeyId = [u8; 8];

/// The result of HMAC-SHA256.
pub(crate) type Tag = [u8; 32];

/// The keys of this node, the preferred one first.
#[derive(Clone)]
pub struct Secrets {
    keys: Vec<Key>,
    is_open: bool,
}

#[derive(Clone)]
struct Key {
    id: KeyId,
    bytes: Tag,
}

impl Secrets {
    /// From the cluster's secrets, else from the API keys, else the key that everybody knows.
    pub fn new(cluster: &[Secret], api_keys: &[Secret]) -> Secrets {
        let (label, secrets) = match (cluster, api_keys) {
            ([], []) => {
                return Secrets { keys: vec![Key::derive("fastpaca open cluster", "")], is_open: true };
            }
            ([], api_keys) => ("fastpaca api key", api_keys),
            (cluster, _) => ("fastpaca cluster secret", cluster),
        };
        let keys = secrets.iter().take(KEYS_MAX).map(|secret| Key::derive(label, secret.expose())).collect();
        Secrets { keys, is_open: false }
    }

    /// Whether any node that reaches this one is let in, for want of a secret.
    pub fn is_open(&self) -> bool {
        self.is_open
    }

    pub(crate) fn ids(&self) -> Vec<KeyId> {
        self.keys.iter().map(|key| key.id).collect()
    }

    /// The key to use with a peer that has keys of these names.
    pub(crate) fn common(&self, theirs: &[KeyId]) -> Option<KeyId> {
        self.ids().into_iter().find(|id| theirs.contains(id))
    }

    /// Proves knowledge of a key for one handshake; `None` for a key this node does not have.
    pub(crate) fn sign(&self, id: KeyId, parts: &[&[u8]]) -> Option<Tag> {
        self.mac(id, parts).map(|mac| mac.finalize().into_bytes().into())
    }

    /// Checks such a proof in constant time.
    pub(crate) fn verify(&self, id: KeyId, parts: &[&[u8]], tag: &Tag) -> bool {
        self.mac(id, parts).is_some_and(|mac| mac.verify_slice(tag).is_ok())
    }

    fn mac(&self, id: KeyId, parts: &[&[u8]]) -> Option<Hmac<Sha256>> {
        let key = self.keys.iter().find(|key| key.id == id)?;
        Some(mac(&key.bytes, parts))
    }
}

impl Key {
    fn derive(label: &str, secret: &str) -> Key {
        let bytes: Tag = mac(label.as_bytes(), &[secret.as_bytes()]).finalize().into_bytes().into();
        let digest: Tag = mac(&bytes, &[b"id"]).finalize().into_bytes().into();
        let mut id = KeyId::default();
        id.copy_from_slice(&digest[..8]);
        Key { id, bytes }
    }
}

/// Each part is preceded by its length, so that no two lists of parts are the same bytes.
fn mac(key: &[u8], parts: &[&[u8]]) -> Hmac<Sha256> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes keys of any length");
    for part in parts {
        mac.update(&(part.len() as u64).to_be_bytes());
        mac.update(part);
    }
    mac
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::hex;

    fn secrets(cluster: &[&str], api: &[&str]) -> Secrets {
        let list = |texts: &[&str]| texts.iter().map(|text| Secret::new(*text)).collect::<Vec<_>>();
        Secrets::new(&list(cluster), &list(api))
    }

    #[test]
    fn names_of_keys_are_a_contract() {
        let name = |secrets: Secrets| hex(&secrets.ids()[0]);
        assert_eq!(name(secrets(&["a"], &["b"])), "5eb729ae95d04f73");
        assert_eq!(name(secrets(&[], &["a"])), "84991d28af11e635");
        assert_eq!(name(secrets(&[], &[])), "0e6de2ea7d435357");
    }

    #[test]
    fn a_common_key_is_found_while_secrets_rotate() {
        let (old, both, new) = (secrets(&["o"], &[]), secrets(&["n", "o"], &[]), secrets(&["n"], &[]));
        assert_eq!(old.common(&both.ids()), Some(old.ids()[0]));
        assert_eq!(both.common(&new.ids()), Some(new.ids()[0]));
        assert_eq!(old.common(&new.ids()), None);
        assert!(secrets(&[], &[]).is_open() && !old.is_open());
        let tag = old.sign(old.ids()[0], &[b"x", b"y"]).expect("an own key");
        assert!(both.verify(old.ids()[0], &[b"x", b"y"], &tag));
        assert!(!both.verify(old.ids()[0], &[b"xy", b""], &tag));
        assert!(!new.verify(old.ids()[0], &[b"x", b"y"], &tag));
    }
}
