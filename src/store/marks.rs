//! Applying marks: many conversations' in one entry.

use super::StoreError;
use super::group::{Applied, GroupStore};
use crate::conversation::{Marks, Reply};

impl GroupStore {
    /// Takes in the marks of one entry, all under one lock: a checkpoint never separates them. Of a conversation that a
    /// snapshot brought in a newer state, and of one that does not exist, the mark is passed over.
    pub(super) fn apply_marks(&self, at: Applied, marks: &Marks) -> Result<Reply, StoreError> {
        let marks = marks.as_slice();
        let mut inner = self.begin_entry(marks.iter().map(|mark| &mark.id))?;
        let inner = &mut *inner;
        let mut moved = 0;
        for mark in marks {
            self.load(inner, &mark.id)?;
            let Some(live) = inner.live.get_mut(&mark.id) else { continue };
            if live.conversation.changed_index() < at.index {
                let lacked = live.conversation.unarchived();
                let further = live.conversation.mark_archived(at.index, mark.archived_version);
                if let Some(tracking) = &mut inner.tracking {
                    tracking.moved(&mark.id, lacked, live.conversation.unarchived());
                }
                live.dirty |= further;
                moved += u32::from(further);
            }
        }
        self.end_entry(inner, at);
        Ok(Reply::Marked { moved })
    }
}
