//! What the excerpts of a backup must add up to: conversations in the order of their ids, each whole from its creation on.

use std::collections::HashSet;

use serde::{Deserialize, Serialize};

use crate::conversation::{Action, Command, FrameLocation};
use crate::shards::{Cursor, Excerpt};

/// What a backup holds.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Sum {
    pub(super) conversations: u64,
    /// With the creation of each.
    pub(super) versions: u64,
    pub(super) keys: u64,
}

/// A walk along the excerpts.
#[derive(Debug, Default, Clone)]
pub(super) struct Walk {
    id: Option<String>,
    /// The last version so far of the conversation that goes on.
    upto: Option<u64>,
    next: Option<Cursor>,
    /// The idempotency keys so far of the conversation that goes on.
    keys: HashSet<[u8; 16]>,
    sum: Sum,
}

impl Walk {
    /// Takes the next excerpt, or says why it cannot come here.
    pub(super) fn take(&mut self, excerpt: &Excerpt) -> Result<(), String> {
        let id = &excerpt.id;
        match (&self.id, self.next) {
            (Some(current), Some(_)) if current != id => {
                return Err(format!("{id} follows before {current} has ended"));
            }
            (Some(current), None) if current >= id => return Err(format!("{id} follows {current}")),
            (_, Some(_)) => {}
            (_, None) => {
                self.upto = None;
                self.keys.clear();
            }
        }
        for restoring in &excerpt.commands {
            let (command, _) = Command::decode(restoring.command.clone(), FrameLocation::default())
                .map_err(|error| format!("{id}: {error}"))?;
            let Command { id: of, action: Action::Restore(restore), .. } = &command else {
                return Err(format!("{id}: a command does something else than restoring it"));
            };
            if of.as_str() != id || restore.after != restoring.after {
                return Err(format!("{id}: a command does something else than restoring it"));
            }
            // No conversation takes it, and which of its two requests the key stands for is not known.
            let mut keys = restore.keys.iter().flat_map(|keys| &keys.keys);
            if !keys.all(|(key, _)| self.keys.insert(*key)) {
                return Err(format!(
                    "{id}: an idempotency key was forgotten and used again between two excerpts"
                ));
            }
            if restoring.after != self.upto {
                return Err(format!(
                    "{id}: versions after {:?} follow version {:?}",
                    restoring.after, self.upto
                ));
            }
            self.sum.versions += restoring.upto + 1 - self.upto.map_or(0, |upto| upto + 1);
            self.sum.keys += restoring.keys;
            self.upto = Some(restoring.upto);
        }
        self.sum.conversations += u64::from(excerpt.next.is_none());
        self.next = excerpt.next;
        self.id = Some(id.clone());
        Ok(())
    }

    /// The last conversation, and where it goes on, unless it is whole.
    pub(super) fn position(&self) -> (Option<&str>, Option<Cursor>) {
        (self.id.as_deref(), self.next)
    }

    /// Whether the keys of a conversation have begun to come, and not ended. What is to come must follow soon: of keys that
    /// are forgotten and used again meanwhile, one would come twice.
    pub(super) fn is_amid_keys(&self) -> bool {
        self.next.is_some_and(|next| next.keys > 0)
    }

    /// What there has been so far.
    pub(super) fn sum(&self) -> Sum {
        self.sum
    }

    /// Whether all that was promised is there.
    pub(super) fn check_end(&self, promised: Sum) -> Result<(), String> {
        match &self.id {
            Some(id) if self.next.is_some() => Err(format!("{id} is not whole")),
            _ if promised != self.sum => Err(format!("it holds {}, but should hold {promised}", self.sum)),
            _ => Ok(()),
        }
    }
}
