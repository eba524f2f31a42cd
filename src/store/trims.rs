//! Trimming: what could go, and applying what was decided.

use super::fresh::Outside;
use super::group::{Applied, GroupStore, Head};
use super::runs::EVENT_RUNS;
use super::{IndexError, StoreError, value};
use crate::conversation::{Conversation, ConversationId, Reply, Standing, Trim, Trims};

/// The beginning of a record that tells where it stands.
const PEEK_BYTES: usize = 80;

/// A conversation that can be trimmed, and by how much.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trimmable {
    pub trim: Trim,
    pub events: u64,
}

impl GroupStore {
    /// Takes in the trims of one entry, all under one lock. As with marks, what a snapshot brought newer is passed over.
    pub(super) fn apply_trims(&self, at: Applied, trims: &Trims) -> Result<Reply, StoreError> {
        let mut inner = self.begin_entry(trims.as_slice().iter().map(|trim| &trim.id))?;
        let inner = &mut *inner;
        let mut events = 0;
        for Trim { id, upto_seq } in trims.as_slice() {
            self.load(inner, id)?;
            let Some(live) = inner.live.get_mut(id) else { continue };
            if live.conversation.changed_index() < at.index {
                let before = live.conversation.trimmed_seq();
                let outside = Outside::new(self, &inner.fresh, inner.writing.as_deref());
                let runs = live.conversation.trim(at.index, id, &outside, trims.keep(), *upto_seq)?;
                live.dirty |= !runs.is_empty();
                events += live.conversation.trimmed_seq() - before;
                runs.into_iter().for_each(|run| inner.fresh.replace(&EVENT_RUNS, &self.shared, id, run));
            }
        }
        self.end_entry(inner, at);
        Ok(Reply::Trimmed { events })
    }

    /// Looks at up to `limit` records after `after` in the index for what could be trimmed, and answers the last of them;
    /// `None` when none is left. What changed since the last checkpoint is found after the next.
    pub(crate) fn look_for_trimmable(
        &self,
        after: Option<&ConversationId>,
        limit: usize,
        keep: u64,
    ) -> Result<(Vec<Trimmable>, Option<ConversationId>), StoreError> {
        let (mut found, mut last, mut looked) = (Vec::new(), None, 0);
        for head in self.heads_after(after) {
            let head = head?;
            if looked == limit {
                return Ok((found, last));
            }
            looked += 1;
            if peek(&head)?.may_be_trimmed(keep) {
                let id = &head.id;
                let seqs = self.read(id, |c, history| {
                    c.trimmable_seq(id, history, keep).map(|upto_seq| (c.trimmed_seq(), upto_seq))
                })?;
                match seqs.transpose()? {
                    Some((trimmed, upto_seq)) if upto_seq > trimmed => {
                        let trim = Trim { id: id.clone(), upto_seq };
                        found.push(Trimmable { trim, events: upto_seq - trimmed });
                    }
                    _ => {}
                }
            }
            last = Some(head.id);
        }
        Ok((found, None))
    }
}

/// Where a record stands, read from its beginning.
pub(super) fn peek(head: &Head) -> Result<Standing, StoreError> {
    let (_, payload) = value::decode(&head.key, &head.record)?;
    let beginning = &payload[..payload.len().min(PEEK_BYTES)];
    let undecodable =
        |_| IndexError::Corrupt { key: value::printable(&head.key), reason: "undecodable record" };
    Ok(Conversation::peek(beginning.to_vec().into()).map_err(undecodable)?)
}
