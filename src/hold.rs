//! Bytes that keep something until the last of them is dropped.

use bytes::Bytes;

/// The same bytes; what they are held `with` is dropped with the last of them.
pub(crate) fn hold(bytes: Bytes, with: impl Send + 'static) -> Bytes {
    Bytes::from_owner(Held { bytes, _with: with })
}

struct Held<W> {
    bytes: Bytes,
    _with: W,
}

impl<W> AsRef<[u8]> for Held<W> {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}
