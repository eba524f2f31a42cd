//! Applying marks: many conversations' in one entry.

use super::StoreError;
use super::group::{Applied, GroupStore};
use crate::conversation::{Marks, Reply};

impl GroupStore {
    /// Takes in the marks of one entry, all under one lock: a checkpoint never separates them. Of a conversation that a
    /// snapshot brought in a newer state, and of one that does not exist, the mark is passed over.
    pub(super) fn apply_marks(&self, at: Applied, marks: &Marks) -> Result<Reply, StoreError> {
        let marks = marks.as_slice();
        let mut inner = self.lock_verified_for(marks.iter().map(|mark| &mark.id))?;
        let inner = &mut *inner;
        inner.applied = Some(at);
        inner.meta_dirty = true;
        let mut moved = 0;
        for mark in marks {
            let Some(mut live) = self.take(inner, &mark.id)? else { continue };
            if live.conversation.changed_index() < at.index {
                let lacked = live.conversation.unarchived();
                let further = live.conversation.mark_archived(at.index, mark.archived_version);
                if let Some(tracking) = &mut inner.tracking {
                    tracking.moved(&mark.id, lacked, live.conversation.unarchived());
                }
                live.dirty |= further;
                moved += u32::from(further);
            }
            inner.put_back(&mark.id, Some(live));
        }
        inner.sweep_if_over(&self.shared);
        Ok(Reply::Marked { moved })
    }
}
