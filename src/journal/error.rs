//! What can go wrong in the journal, told apart by what the caller must do about it.

use std::io;

use super::format::Position;

/// Why [`Journal::append`](super::Journal::append) queued nothing. Whatever the reason, nothing was
/// written and the completion will not be called.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AppendError {
    /// The queue, or the room prepared on disk, is used up for the moment. Only
    /// [`Journal::try_append`](super::Journal::try_append) says so; `append` waits.
    #[error("the journal's queue is full for the moment")]
    Busy,
    /// The frames do not fit into one segment.
    #[error("{bytes} bytes of frames exceed the {max} bytes one append may carry")]
    TooLarge {
        /// What the frames take on disk.
        bytes: u64,
        /// What an empty segment can take.
        max: u64,
    },
    /// A write or an fsync failed earlier; the process has to be restarted.
    #[error("the journal is poisoned: {0}")]
    Poisoned(String),
    /// [`Journal::shutdown`](super::Journal::shutdown) was called.
    #[error("the journal is shut down")]
    Closed,
}

/// What a visitor of recovered frames may fail with.
pub type VisitError = Box<dyn std::error::Error + Send + Sync>;

/// Why a journal could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// An option has a value the format cannot hold.
    #[error("journal option {0}")]
    InvalidOption(&'static str),
    /// Another process holds the directory.
    #[error("{0} is in use by another process")]
    Locked(String),
    /// The directory belongs to another node.
    #[error("{file} belongs to node {found:032x}, but this is node {expected:032x}")]
    ForeignNode {
        /// The segment that says so.
        file: String,
        /// The id in [`Options`](super::Options).
        expected: u128,
        /// The id in the segment's header.
        found: u128,
    },
    /// A later release wrote this file.
    #[error(
        "{file} has journal format {found}, and this release reads formats up to {newest}: \
         start the release that wrote it, or a later one"
    )]
    NewerFormat {
        /// The segment that says so.
        file: String,
        /// The format version in it.
        found: u16,
        /// The newest this code understands.
        newest: u16,
    },
    /// Bytes that had been synced are not what was written.
    #[error(
        "{file} is corrupt at offset {offset}: {reason}. Nothing was changed. \
         If this node is part of a cluster, empty its data directory and start it with \
         FASTPACA_REPLACE=true; otherwise start it empty and fill it from a backup with `fastpaca restore`"
    )]
    Corrupt {
        /// The segment file.
        file: String,
        /// Where in it, in bytes.
        offset: u64,
        /// What was expected.
        reason: String,
    },
    /// The visitor refused a frame.
    #[error("the frame at {position} was refused: {source}")]
    Visit {
        /// Where the frame's payload begins.
        position: Position,
        /// The visitor's reason.
        source: VisitError,
    },
    /// The disk failed.
    #[error("{action} failed: {source}")]
    Io {
        /// What was tried, with the file's name.
        action: String,
        /// What the system answered.
        source: io::Error,
    },
}

/// Names what was being done in an [`OpenError::Io`].
pub(super) trait IoContext<T> {
    fn during(self, action: impl FnOnce() -> String) -> Result<T, OpenError>;
}

impl<T> IoContext<T> for io::Result<T> {
    fn during(self, action: impl FnOnce() -> String) -> Result<T, OpenError> {
        self.map_err(|source| OpenError::Io { action: action(), source })
    }
}
