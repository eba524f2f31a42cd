//! Which conversations of a group the archive lacks something of, and how much, for whoever writes to it.
//!
//! Nothing that could be lost decides what is archived: a record's version and its mark do. What is kept here only saves
//! looking at every record again: conversations that changed since they were last asked for, up to a bound, beyond which
//! the records are looked through anew. Records are first looked through, in steps, when tracking begins, as it does with
//! every start and every change of leader.

use std::collections::{BTreeMap, HashSet};

use super::StoreError;
use super::group::{GroupStore, Inner};
use super::trims::peek;
use crate::conversation::{ConversationId, unarchived};

/// Changed conversations remembered for one group; of 256 groups that is about 20 MB.
const NEWS_MAX: usize = 1_024;

/// A conversation that the archive lacks something of, and how many versions that is.
pub(crate) type Behind = (ConversationId, u64);

/// A conversation that the archive is marked to hold something of, and up to which version.
pub(crate) type Marked = (ConversationId, u64);

/// How far in the order of ids.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Reached {
    Nothing,
    Upto(ConversationId),
    End,
}

impl Reached {
    fn includes(&self, id: &ConversationId) -> bool {
        match self {
            Self::Nothing => false,
            Self::Upto(last) => id <= last,
            Self::End => true,
        }
    }
}

/// What a group that is being archived knows beside its records.
#[derive(Debug)]
pub(super) struct Tracking {
    /// Where the records are being looked through.
    scan: Reached,
    /// Conversations whose lag is in `behind`; those beyond are counted when they are first looked at.
    counted: Reached,
    behind: u64,
    news: HashSet<ConversationId>,
    overflowed: bool,
}

impl Tracking {
    fn new() -> Self {
        let news = HashSet::new();
        Self { scan: Reached::Nothing, counted: Reached::Nothing, behind: 0, news, overflowed: false }
    }

    /// A conversation lacked `before` versions in the archive, and now lacks `after`.
    pub(super) fn moved(&mut self, id: &ConversationId, before: u64, after: u64) {
        if self.counted.includes(id) {
            self.behind = (self.behind + after).saturating_sub(before);
        }
        if after <= before {
            return;
        }
        if self.news.len() < NEWS_MAX {
            self.news.insert(id.clone());
        } else if !self.news.contains(id) {
            self.overflowed = true;
        }
    }

    fn scanned(&mut self, upto: Reached, behind: u64) {
        // The first look through counts; later ones find what was counted already.
        if self.counted == self.scan && self.counted != Reached::End {
            self.behind += behind;
            self.counted = upto.clone();
        }
        self.scan = upto;
    }
}

impl GroupStore {
    /// Begins or ends to track what the archive lacks. Beginning again changes nothing.
    pub(crate) fn track_unarchived(&self, track: bool) {
        let mut inner = self.inner.lock();
        if !track {
            inner.tracking = None;
        } else if inner.tracking.is_none() {
            inner.trackings += 1;
            inner.tracking = Some(Box::new(Tracking::new()));
        }
    }

    /// The number of the tracking that goes on: another one each time that it begins.
    pub(crate) fn tracking_unarchived(&self) -> Option<u64> {
        let inner = self.inner.lock();
        inner.tracking.is_some().then_some(inner.trackings)
    }

    /// How many versions the archive lacks of the conversations looked at so far.
    pub(crate) fn unarchived_versions(&self) -> u64 {
        self.inner.lock().tracking.as_ref().map_or(0, |tracking| tracking.behind)
    }

    /// Takes out up to `limit` conversations that changed since they were last taken out.
    pub(crate) fn take_unarchived(&self, limit: usize) -> Vec<Behind> {
        let mut inner = self.inner.lock();
        let inner = &mut *inner;
        let Some(tracking) = &mut inner.tracking else { return Vec::new() };
        if std::mem::take(&mut tracking.overflowed) {
            tracking.scan = Reached::Nothing;
        }
        let taken: Vec<ConversationId> = tracking.news.iter().take(limit).cloned().collect();
        let mut behind = Vec::with_capacity(taken.len());
        for id in taken {
            tracking.news.remove(&id);
            // Of a record that is not in memory any more it is read again what it lacks; it is something.
            let lacks = inner.live.get(&id).map_or(1, |live| live.conversation.unarchived());
            if lacks > 0 {
                behind.push((id, lacks));
            }
        }
        behind
    }

    /// Looks at the next `limit` or so records. `None` once all were looked at.
    pub(crate) fn scan_unarchived(&self, limit: usize) -> Result<Option<Vec<Behind>>, StoreError> {
        self.ensure_verified()?;
        let mut inner = self.inner.lock();
        let Some(tracking) = &inner.tracking else { return Ok(None) };
        let after = match &tracking.scan {
            Reached::Nothing => None,
            Reached::Upto(last) => Some(last.clone()),
            Reached::End => return Ok(None),
        };
        let lacks = |version, archived| Some(unarchived(version, archived)).filter(|lacks| *lacks > 0);
        let (found, upto) = self.look(&inner, after.as_ref(), limit, lacks)?;
        let behind = found.values().sum();
        if let Some(tracking) = &mut inner.tracking {
            tracking.scanned(upto, behind);
        }
        Ok(Some(found.into_iter().collect()))
    }

    /// Looks at up to `limit` or so records after `after` for what the archive is marked to hold: up to which version, and
    /// the last of them; `None` when none is left.
    pub(crate) fn look_for_archived(
        &self,
        after: Option<&ConversationId>,
        limit: usize,
    ) -> Result<(Vec<Marked>, Option<ConversationId>), StoreError> {
        self.ensure_verified()?;
        let inner = self.inner.lock();
        let (found, upto) = self.look(&inner, after, limit, |_, archived| archived)?;
        let last = if let Reached::Upto(last) = upto { Some(last) } else { None };
        Ok((found.into_iter().collect(), last))
    }

    /// What `of` says of the records after `after`, by version and mark, and how far it was looked. The index has records
    /// that changed in memory since, and lacks new ones.
    fn look(
        &self,
        inner: &Inner,
        after: Option<&ConversationId>,
        limit: usize,
        of: fn(u64, Option<u64>) -> Option<u64>,
    ) -> Result<(BTreeMap<ConversationId, u64>, Reached), StoreError> {
        let mut found = BTreeMap::new();
        let mut upto = Reached::End;
        let mut looked = 0;
        for head in self.heads_after(after) {
            let head = head?;
            if looked == limit {
                break;
            }
            looked += 1;
            if !inner.live.contains_key(&head.id) {
                let standing = peek(&head)?;
                if let Some(what) = of(standing.version, standing.archived_version) {
                    found.insert(head.id.clone(), what);
                }
            }
            upto = Reached::Upto(head.id);
        }
        if looked < limit {
            upto = Reached::End;
        }
        let here = |id: &ConversationId| upto.includes(id) && after.is_none_or(|after| id > after);
        for (id, live) in inner.live.iter().filter(|(id, _)| here(id)) {
            if let Some(what) = of(live.conversation.version(), live.conversation.archived_version()) {
                found.insert(id.clone(), what);
            }
        }
        Ok((found, upto))
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Fixture, id};
    use super::*;
    use crate::conversation::{Action, Mark, Marks, Put};

    impl Fixture {
        /// Takes a conversation to the next version.
        fn change(&mut self, name: &str) {
            let metadata = Some(format!(r#"{{"n":{}}}"#, self.index).into());
            let action = Action::Put(Put { metadata, ..Put::default() });
            self.command(name, action);
        }

        fn mark(&mut self, name: &str, archived_version: u64) {
            self.apply(Marks::new(vec![Mark { id: id(name), archived_version }]).encode());
        }

        fn checkpoint(&self) {
            self.store.checkpoint().unwrap();
        }

        fn scan_all(&self, limit: usize) -> Vec<(String, u64)> {
            let mut all = Vec::new();
            while let Some(page) = self.store.scan_unarchived(limit).unwrap() {
                assert!(page.len() <= limit + self.store.inner.lock().live.len());
                all.extend(page.into_iter().map(|(id, lacks)| (id.as_str().to_owned(), lacks)));
            }
            all
        }

        fn news(&self) -> BTreeMap<String, u64> {
            let news = self.store.take_unarchived(usize::MAX);
            news.into_iter().map(|(id, lacks)| (id.as_str().to_owned(), lacks)).collect()
        }
    }

    #[test]
    fn what_is_behind_is_found_in_the_index_and_in_memory() {
        let mut fixture = Fixture::new(0);
        for name in ["a", "b", "c", "d"] {
            fixture.change(name);
            fixture.change(name);
        }
        fixture.mark("b", 1);
        fixture.checkpoint();
        fixture.change("d");
        fixture.change("e");
        fixture.mark("c", 0);
        assert_eq!(fixture.scan_all(1), [], "nothing is tracked yet");
        for limit in [1, 2, 100] {
            fixture.store.track_unarchived(false);
            fixture.store.track_unarchived(true);
            let expected = [("a", 2), ("c", 1), ("d", 3), ("e", 1)].map(|(id, n)| (id.to_owned(), n));
            assert_eq!(fixture.scan_all(limit), expected, "{limit} at a time");
            assert_eq!(fixture.store.unarchived_versions(), 7);
        }
    }

    #[test]
    fn tracking_that_ended_in_between_is_another() {
        let fixture = Fixture::new(0);
        let number = || fixture.store.tracking_unarchived();
        assert_eq!(number(), None);
        fixture.store.track_unarchived(true);
        let first = number().unwrap();
        fixture.store.track_unarchived(true);
        assert_eq!(number(), Some(first));
        fixture.store.track_unarchived(false);
        assert_eq!(number(), None);
        fixture.store.track_unarchived(true);
        assert_ne!(number(), Some(first));
    }

    #[test]
    fn what_is_marked_is_found_in_the_index_and_in_memory() {
        let mut fixture = Fixture::new(0);
        for name in ["a", "b", "c"] {
            fixture.change(name);
            fixture.change(name);
        }
        fixture.mark("a", 0);
        fixture.mark("b", 0);
        fixture.checkpoint();
        fixture.change("d");
        fixture.mark("b", 1);
        fixture.mark("d", 0);
        for limit in [1, 2, 100] {
            let (mut marked, mut after) = (Vec::new(), None);
            loop {
                let (found, last) = fixture.store.look_for_archived(after.as_ref(), limit).unwrap();
                marked.extend(found);
                after = last;
                if after.is_none() {
                    break;
                }
            }
            assert_eq!(marked, [("a", 0), ("b", 1), ("d", 0)].map(|(name, upto)| (id(name), upto)));
        }
    }

    #[test]
    fn the_lag_counts_what_changes_during_the_scan() {
        let mut fixture = Fixture::new(0);
        for name in ["a", "c", "e"] {
            fixture.change(name);
        }
        fixture.checkpoint();
        fixture.store.track_unarchived(true);
        assert_eq!(fixture.store.scan_unarchived(1).unwrap().unwrap().len(), 1);
        fixture.change("a");
        fixture.change("b");
        fixture.change("e");
        assert_eq!(fixture.store.unarchived_versions(), 2, "what lies beyond is counted when it is reached");
        fixture.scan_all(1);
        assert_eq!(fixture.store.unarchived_versions(), 6);
        fixture.mark("e", 1);
        fixture.mark("a", 0);
        assert_eq!(fixture.store.unarchived_versions(), 3);
        let expected: BTreeMap<_, _> = [("a".to_owned(), 1), ("b".to_owned(), 1)].into();
        assert_eq!(fixture.news(), expected, "what was marked since lacks nothing");
    }

    #[test]
    fn more_news_than_can_be_kept_are_found_by_looking_again() {
        let mut fixture = Fixture::new(0);
        fixture.store.track_unarchived(true);
        fixture.scan_all(100);
        let names: Vec<String> = (0..NEWS_MAX + 50).map(|n| format!("c{n:05}")).collect();
        for name in &names {
            fixture.change(name);
        }
        assert_eq!(fixture.store.unarchived_versions(), names.len() as u64);
        assert_eq!(fixture.news().len(), NEWS_MAX);
        let found: Vec<String> = fixture.scan_all(100).into_iter().map(|(id, _)| id).collect();
        assert_eq!(found, names);
        assert_eq!(fixture.store.unarchived_versions(), names.len() as u64, "nothing is counted twice");
    }
}
