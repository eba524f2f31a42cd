//! Who may be about to read message bytes from the journal: what a reclaimed segment waits for.
//!
//! A reader looks a location up and reads there a little later. Between the two the message may get another location and
//! the segment of the old one may be due to go. So a reader says first that it is there, and a segment goes only once all
//! are gone that were there while anything could still be located in it.

use std::sync::{Arc, Weak};

use parking_lot::RwLock;

/// The readers of a node. Entering costs a shared lock and a count.
#[derive(Default)]
pub(crate) struct Readers(RwLock<Arc<()>>);

/// Held from before locations are looked up until their bytes were read.
#[derive(Clone)]
pub(crate) struct Reading(#[expect(dead_code, reason = "its count is what matters")] Arc<()>);

/// Those that were there at some moment.
pub(crate) struct Earlier(Weak<()>);

impl Readers {
    pub(crate) fn enter(&self) -> Reading {
        Reading(self.0.read().clone())
    }

    /// Whoever is there now.
    pub(crate) fn so_far(&self) -> Earlier {
        let before = std::mem::take(&mut *self.0.write());
        Earlier(Arc::downgrade(&before))
    }
}

impl Earlier {
    pub(crate) fn are_gone(&self) -> bool {
        self.0.strong_count() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_earlier_readers_are_waited_for() {
        let readers = Readers::default();
        let first = readers.enter();
        let copy = first.clone();
        let before_second = readers.so_far();
        let second = readers.enter();
        drop(first);
        assert!(!before_second.are_gone(), "a copy is still reading");
        drop(copy);
        assert!(before_second.are_gone());
        let before_third = readers.so_far();
        assert!(!before_third.are_gone());
        drop(second);
        assert!(before_third.are_gone());
    }
}
