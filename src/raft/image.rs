//! Images in the journal: a group's whole state written anew on this node, so that older segments can go.
//!
//! Its frames are those of a snapshot's installation, begin, blocks and commit, under a group number with the top bit set:
//! a snapshot may be arriving for the same group. What precedes the commit does not count. An image is as of the log index
//! in its commit; the entries after that follow in segments that are kept, and so does everything that it locates: it
//! needs no segment before its floor. See [`crate::store`] for the blocks, [`super::replay`] for who reads them.
//!
//! An image must not be committed behind the installation of a snapshot whose state it lacks: see [`Imaging`].

use std::io;
use std::time::Duration;

use super::codec::{Reader, RecordError, VERSION};
use super::log_store::LogStore;
use crate::journal::{AppendError, Draft, FrameKind, Position};

/// In the group number of a frame: it belongs to an image.
pub(crate) const IMAGE: u16 = 1 << 15;
/// How often a commit is tried again while the journal's queue is full.
const COMMIT_RETRY: Duration = Duration::from_millis(5);

/// Whether a group's image may be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum ImageState {
    #[default]
    Allowed,
    /// One is being written. The log is not purged meanwhile: the entries behind the image must stay.
    Running,
    /// A snapshot is being installed.
    Barred,
}

/// The payload of the frame that begins an image.
pub(crate) fn encode_begin(floor: u32) -> Vec<u8> {
    let mut out = vec![VERSION];
    out.extend_from_slice(&floor.to_le_bytes());
    out
}

/// The image's floor.
pub(crate) fn decode_begin(payload: &[u8]) -> Result<u32, RecordError> {
    let mut reader = Reader::new("image begin", payload);
    reader.version()?;
    reader.u32()
}

/// An image on its way into the journal.
pub(crate) struct Imaging(LogStore);

impl Imaging {
    /// `None` while a snapshot is being installed.
    pub(crate) fn begin(log: &LogStore) -> Option<Self> {
        let mut state = log.state.lock();
        if state.image != ImageState::Allowed {
            return None;
        }
        state.image = ImageState::Running;
        drop(state);
        Some(Self(log.clone()))
    }

    /// Writes a frame and returns where its payload begins.
    pub(crate) async fn write(&self, kind: FrameKind, payload: &[u8]) -> io::Result<Position> {
        let draft = Draft { kind, group: self.0.group | IMAGE, payload: &[payload] };
        let positions = self.0.journal().append(&[draft], None).await;
        Ok(positions.map_err(io::Error::other)?[0])
    }

    /// Whether a snapshot came in between: what was being read may be gone, and the image lacks its state.
    pub(crate) fn is_overtaken(&self) -> bool {
        self.0.state.lock().image != ImageState::Running
    }

    /// Writes the commit unless a snapshot came in between; says whether it did.
    pub(crate) async fn commit(self, payload: &[u8]) -> io::Result<bool> {
        let draft = Draft { kind: FrameKind::ImportCommit, group: self.0.group | IMAGE, payload: &[payload] };
        loop {
            {
                // Under the lock: the commit is queued before a snapshot's own, or not at all.
                let mut state = self.0.state.lock();
                if state.image != ImageState::Running {
                    return Ok(false);
                }
                match self.0.journal().try_append(&[draft], None) {
                    Ok(_) => {
                        state.image = ImageState::Allowed;
                        return Ok(true);
                    }
                    Err(AppendError::Busy) => {}
                    Err(error) => return Err(io::Error::other(error)),
                }
            }
            tokio::time::sleep(COMMIT_RETRY).await;
        }
    }
}

impl Drop for Imaging {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        if state.image == ImageState::Running {
            state.image = ImageState::Allowed;
        }
    }
}

impl LogStore {
    /// Whether an image is being written, so that the log must not be purged.
    pub(crate) fn is_imaged(&self) -> bool {
        self.state.lock().image == ImageState::Running
    }

    /// A snapshot is about to be committed: an image that is being written lacks its state. Until the end of the import.
    pub(crate) fn bar_image(&self) {
        self.state.lock().image = ImageState::Barred;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden_bytes() {
        assert_eq!(encode_begin(0x0102_0304), [1, 4, 3, 2, 1]);
        assert_eq!(decode_begin(&encode_begin(7)).unwrap(), 7);
        assert!(decode_begin(&[]).is_err());
        assert!(decode_begin(&[2, 0, 0, 0, 0]).is_err(), "a later version");
    }
}
