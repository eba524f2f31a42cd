//! The primitives of every encoding of the conversation core: little-endian fixed integers, LEB128 varints, length-prefixed bytes.
//!
//! Guarantees: a [`Reader`] never panics and never allocates more than the input could fill, whatever the bytes.
//! Deliberately lacks: checksums (frames and index values carry their own) and self-description.

use bytes::Bytes;

use super::ConversationId;

/// Why bytes are not what they should be. Never a client's fault: the edge validates before anything is encoded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    #[error("the bytes end in the middle of a value")]
    Truncated,
    #[error("{0} bytes are left over after the last value")]
    Trailing(usize),
    #[error("unknown format version {0}")]
    UnknownVersion(u8),
    #[error("unknown {what} ordinal {value}")]
    UnknownOrdinal { what: &'static str, value: u64 },
    #[error("invalid {0}")]
    Invalid(&'static str),
}

/// Appends primitives to a growing buffer.
pub(super) struct Writer {
    out: Vec<u8>,
}

impl Writer {
    pub(super) fn new(version: u8, capacity: usize) -> Writer {
        let mut out = Vec::with_capacity(capacity);
        out.push(version);
        Writer { out }
    }

    /// How many bytes `write` appends.
    pub(super) fn measure(write: impl FnOnce(&mut Writer)) -> usize {
        let mut out = Writer { out: Vec::new() };
        write(&mut out);
        out.out.len()
    }

    pub(super) fn u8(&mut self, value: u8) {
        self.out.push(value);
    }

    pub(super) fn flag(&mut self, value: bool) {
        self.out.push(u8::from(value));
    }

    pub(super) fn fixed_u32(&mut self, value: u32) {
        self.out.extend_from_slice(&value.to_le_bytes());
    }

    pub(super) fn fixed_u64(&mut self, value: u64) {
        self.out.extend_from_slice(&value.to_le_bytes());
    }

    pub(super) fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.out.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.out.push(value as u8);
    }

    pub(super) fn count(&mut self, value: usize) {
        self.varint(value as u64);
    }

    /// Zero stands for `None`; everything else is shifted by one (so `u64::MAX` is stored as itself).
    pub(super) fn optional(&mut self, value: Option<u64>) {
        match value {
            None => self.varint(0),
            Some(value) => self.varint(value.saturating_add(1)),
        }
    }

    pub(super) fn raw(&mut self, value: &[u8]) {
        self.out.extend_from_slice(value);
    }

    pub(super) fn bytes(&mut self, value: &[u8]) {
        self.count(value.len());
        self.raw(value);
    }

    pub(super) fn finish(self) -> Bytes {
        Bytes::from(self.out)
    }
}

/// Takes primitives off the front of a buffer; slices of it are shared, not copied.
pub(super) struct Reader {
    input: Bytes,
    position: usize,
}

impl Reader {
    /// Begins after checking the leading version byte.
    pub(super) fn new(input: Bytes, version: u8) -> Result<Reader, CodecError> {
        let mut reader = Reader { input, position: 0 };
        match reader.u8()? {
            found if found == version => Ok(reader),
            found => Err(CodecError::UnknownVersion(found)),
        }
    }

    /// As [`Reader::new`], for encodings of which older versions are still read; answers the one found.
    pub(super) fn up_to(input: Bytes, newest: u8) -> Result<(Reader, u8), CodecError> {
        let mut reader = Reader { input, position: 0 };
        match reader.u8()? {
            found if (1..=newest).contains(&found) => Ok((reader, found)),
            found => Err(CodecError::UnknownVersion(found)),
        }
    }

    pub(super) fn position(&self) -> usize {
        self.position
    }

    fn remaining(&self) -> usize {
        self.input.len() - self.position
    }

    pub(super) fn expect_end(&self) -> Result<(), CodecError> {
        match self.remaining() {
            0 => Ok(()),
            left => Err(CodecError::Trailing(left)),
        }
    }

    fn take(&mut self, len: usize) -> Result<&[u8], CodecError> {
        if len > self.remaining() {
            return Err(CodecError::Truncated);
        }
        let slice = &self.input[self.position..self.position + len];
        self.position += len;
        Ok(slice)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], CodecError> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    pub(super) fn u8(&mut self) -> Result<u8, CodecError> {
        let byte = *self.input.get(self.position).ok_or(CodecError::Truncated)?;
        self.position += 1;
        Ok(byte)
    }

    pub(super) fn flag(&mut self) -> Result<bool, CodecError> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(CodecError::Invalid("flag")),
        }
    }

    pub(super) fn digest(&mut self) -> Result<[u8; 16], CodecError> {
        self.array()
    }

    pub(super) fn fixed_u32(&mut self) -> Result<u32, CodecError> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    pub(super) fn fixed_u64(&mut self) -> Result<u64, CodecError> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    pub(super) fn varint(&mut self) -> Result<u64, CodecError> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.u8()?;
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                return Err(CodecError::Invalid("varint"));
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(CodecError::Invalid("varint"))
    }

    pub(super) fn varint_u32(&mut self) -> Result<u32, CodecError> {
        u32::try_from(self.varint()?).map_err(|_| CodecError::Invalid("32-bit integer"))
    }

    pub(super) fn optional(&mut self) -> Result<Option<u64>, CodecError> {
        Ok(self.varint()?.checked_sub(1))
    }

    /// A number of items that follow. Each takes at least one byte, so a count above what is left is a lie.
    pub(super) fn count(&mut self) -> Result<usize, CodecError> {
        match usize::try_from(self.varint()?) {
            Ok(count) if count <= self.remaining() => Ok(count),
            _ => Err(CodecError::Truncated),
        }
    }

    /// How many items to reserve memory for, when each takes at least `min_bytes` of what is left.
    pub(super) fn plausible(&self, count: usize, min_bytes: usize) -> usize {
        count.min(self.remaining() / min_bytes + 1)
    }

    /// Shares `len` bytes of the input.
    pub(super) fn shared(&mut self, len: usize) -> Result<Bytes, CodecError> {
        let start = self.position;
        self.take(len)?;
        Ok(self.input.slice(start..start + len))
    }

    pub(super) fn bytes(&mut self) -> Result<Bytes, CodecError> {
        let len = self.count()?;
        self.shared(len)
    }

    pub(super) fn text(&mut self) -> Result<&str, CodecError> {
        let len = self.count()?;
        std::str::from_utf8(self.take(len)?).map_err(|_| CodecError::Invalid("UTF-8"))
    }

    pub(super) fn id(&mut self) -> Result<ConversationId, CodecError> {
        ConversationId::parse(self.text()?).map_err(|_| CodecError::Invalid("conversation id"))
    }
}
