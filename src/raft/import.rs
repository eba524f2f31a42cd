//! The receiving end of a snapshot: its blocks go into this node's journal as they come.
//!
//! A transfer that breaks leaves its whole conversations; the next one, from whichever leader, goes on behind them.
//! Conversations are not as of one moment, so what changed since the first transfer began is sent again at the end.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use uuid::Uuid;

use super::codec::{self, ImportBegin};
use super::log_store::LogStore;
use super::state_machine::log_id;
use crate::conversation::ConversationId;
use crate::journal::{FrameKind, Position};
use crate::store::{GroupStore, Resume, completes};

/// The blocks of one snapshot in this node's journal.
pub(crate) struct Import {
    log: LogStore,
    /// From where recovery sees its frames.
    from: Position,
    /// The sender's handle to this transfer; another one after every interruption.
    pub(crate) session: u64,
    /// The number of the request expected next; `None` while one is being written, and after one failed to be.
    pub(crate) next: Option<u64>,
    base: Option<u64>,
    frames: Vec<(Position, u32)>,
    /// So many frames are of whole conversations.
    whole: usize,
    /// What is already here of an interrupted transfer, as the sender of this one was told.
    told: Option<Resume>,
    /// What is here.
    here: Resume,
    /// It is the snapshot's installation now that decides over the frames.
    taken: bool,
}

impl Import {
    /// Opens an import of a snapshot as of log index `at`. `base` is what the group has applied.
    pub(crate) async fn begin(
        log: LogStore,
        store: &Arc<GroupStore>,
        base: Option<u64>,
        at: u64,
    ) -> io::Result<Self> {
        if let (Some(_), Some(applied)) = (base, store.applied().0) {
            // Recovery must have come as far when it reaches the frames.
            let committed = codec::encode_log_id(Some(&log_id(applied)));
            log.write(FrameKind::Committed, &committed, None).await?;
        }
        let from = log.begin_import(&ImportBegin { base, kept: 0 }).await?;
        Ok(Self {
            log,
            from,
            session: new_session(),
            next: Some(0),
            base,
            frames: Vec::new(),
            whole: 0,
            told: None,
            here: Resume { since: at, upto: None },
            taken: false,
        })
    }

    /// Goes on with an interrupted import by a snapshot as of log index `at`.
    pub(crate) async fn resume(&mut self, at: u64) -> io::Result<()> {
        self.next = None;
        self.frames.truncate(self.whole);
        let kept = self.whole as u32;
        self.from = self.log.begin_import(&ImportBegin { base: self.base, kept }).await?;
        self.session = new_session();
        self.told = (self.whole > 0).then(|| self.here.clone());
        self.here.since = if self.whole > 0 { self.here.since.min(at) } else { at };
        self.next = Some(0);
        Ok(())
    }

    pub(crate) fn base(&self) -> Option<u64> {
        self.base
    }

    /// What of the snapshot need not be sent.
    pub(crate) fn told(&self) -> Option<Resume> {
        self.told.clone()
    }

    /// Writes the blocks of the request expected next.
    pub(crate) async fn write(&mut self, blocks: Vec<Bytes>) -> io::Result<()> {
        // If this future is dropped half way, nobody knows what was written; the transfer has to be begun again.
        let number = self.next.take().ok_or_else(|| io::Error::other("the import was interrupted"))?;
        let positions = self.log.write_import(&blocks).await?;
        for (block, position) in blocks.iter().zip(positions) {
            self.frames.push((position, block.len() as u32));
            if let Some(id) = completes(block) {
                self.arrived(id);
            }
        }
        self.next = Some(number + 1);
        Ok(())
    }

    fn arrived(&mut self, id: ConversationId) {
        self.whole = self.frames.len();
        match &self.told {
            None => self.here.upto = Some(id),
            Some(Resume { upto: Some(upto), .. }) if id > *upto => self.here.upto = Some(id),
            // The sender is through and sends anew what has changed since.
            Some(_) => self.here.upto = None,
        }
    }

    /// The install-commit frame is written.
    pub(crate) fn committed(mut self) -> (Option<u64>, Vec<(Position, u32)>) {
        self.taken = true;
        (self.base, std::mem::take(&mut self.frames))
    }
}

impl Drop for Import {
    fn drop(&mut self) {
        if !self.taken {
            self.log.abandon_import(self.from);
        }
    }
}

fn new_session() -> u64 {
    // Random, so that a stray request to an earlier process means nothing to this one.
    Uuid::new_v4().as_u64_pair().0
}
