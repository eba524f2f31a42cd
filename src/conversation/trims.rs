//! Trimming: messages that the archive holds leave this cluster's journals, oldest first, as far as a replicated
//! *frontier*. It is no part of a conversation's history and changes no version.
//!
//! Of a trimmed message everything is kept that planning needs (counts, parts, links, length and checksum), but not where
//! its bytes lie: they are read from the archive, and known by their checksum. So pages, windows, streams and answers to
//! idempotency keys are planned below the frontier as above it.
//!
//! Whatever was proposed, apply holds these rules: the frontier never goes back; nothing is trimmed that the archive is not
//! marked to hold, that is among the newest `keep` messages, or that the window as it is now shows; whole sealed runs
//! only. A system message that begins the log, and the messages of summaries, are never trimmed.

use bytes::Bytes;

use super::codec::{CodecError, Reader, Writer};
use super::history::Changes;
use super::runs::{EVENT_RUN, EventRun, History, HistoryError};
use super::window::{PlanError, WindowQuery, plan_window};
use super::{Conversation, ConversationId};

/// Most conversations in one entry.
pub const MAX_TRIMS: usize = 512;
/// Runs that one entry trims of a conversation at most: applying it reads each under the group's lock.
const MAX_RUNS: u64 = 64;

/// The first byte of encoded trims; that of marks is one less.
pub(super) const FORMAT: u8 = 0x82;

/// A conversation to be trimmed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Trim {
    pub id: ConversationId,
    /// Up to here at the most.
    pub upto_seq: u64,
}

/// Conversations of one group to be trimmed, by id, each once.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Trims {
    keep: u64,
    trims: Vec<Trim>,
}

impl Trims {
    /// `keep` messages of each stay, the newest.
    ///
    /// # Panics
    /// When there are more than [`MAX_TRIMS`], or two of one conversation.
    pub fn new(keep: u64, mut trims: Vec<Trim>) -> Trims {
        trims.sort_unstable_by(|a, b| a.id.cmp(&b.id));
        assert!(trims.len() <= MAX_TRIMS, "the caller splits what is more");
        assert!(trims.windows(2).all(|pair| pair[0].id < pair[1].id), "each conversation is there once");
        Trims { keep, trims }
    }

    pub fn keep(&self) -> u64 {
        self.keep
    }

    pub fn as_slice(&self) -> &[Trim] {
        &self.trims
    }

    pub fn encode(&self) -> Bytes {
        let ids: usize = self.trims.iter().map(|trim| trim.id.as_str().len() + 8).sum();
        let mut out = Writer::new(FORMAT, 12 + ids);
        out.varint(self.keep);
        out.count(self.trims.len());
        for trim in &self.trims {
            out.bytes(trim.id.as_str().as_bytes());
            out.varint(trim.upto_seq);
        }
        out.finish()
    }

    pub fn decode(bytes: Bytes) -> Result<Trims, CodecError> {
        let mut input = Reader::new(bytes, FORMAT)?;
        let keep = input.varint()?;
        let count = input.count()?;
        if count > MAX_TRIMS {
            return Err(CodecError::Invalid("number of trims"));
        }
        let mut trims: Vec<Trim> = Vec::new();
        for _ in 0..count {
            let id = input.id()?;
            if trims.last().is_some_and(|last| last.id >= id) {
                return Err(CodecError::Invalid("order of trims"));
            }
            trims.push(Trim { id, upto_seq: input.varint()? });
        }
        input.expect_end()?;
        Ok(Trims { keep, trims })
    }
}

/// How far a conversation, its archive and its trimming are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Standing {
    pub version: u64,
    pub last_seq: u64,
    pub archived_version: Option<u64>,
    pub trimmed_seq: u64,
}

impl Standing {
    /// Whether there may be a run to trim; the window and changes among the versions are not looked at.
    pub fn may_be_trimmed(&self, keep: u64) -> bool {
        let archived = self.archived_version.unwrap_or(0).min(self.last_seq);
        archived.min(self.last_seq.saturating_sub(keep)) >= self.trimmed_seq + EVENT_RUN
    }
}

impl Conversation {
    pub fn standing(&self) -> Standing {
        Standing {
            version: self.version,
            last_seq: self.last_seq,
            archived_version: self.archived_version,
            trimmed_seq: self.trimmed_seq,
        }
    }

    /// How far one entry could trim this conversation now; its frontier, when no further.
    pub fn trimmable_seq(
        &self,
        id: &ConversationId,
        history: &dyn History,
        keep: u64,
    ) -> Result<u64, HistoryError> {
        let Some(archived) = self.archived_version.filter(|_| self.standing().may_be_trimmed(keep)) else {
            return Ok(self.trimmed_seq);
        };
        let whole_runs = |seq: u64| seq / EVENT_RUN * EVENT_RUN;
        let bounds = [
            self.last_seq.saturating_sub(keep),
            self.open_first_seq() - 1,
            self.trimmed_seq + MAX_RUNS * EVENT_RUN,
            Changes::new(self, id, history).last_seq_at(archived)?,
        ];
        let upto = whole_runs(bounds.into_iter().min().unwrap_or(0));
        if upto <= self.trimmed_seq {
            return Ok(self.trimmed_seq);
        }
        let upto = upto.min(whole_runs(self.first_shown(id, history)? - 1));
        Ok(upto.max(self.trimmed_seq))
    }

    /// The oldest message that the window shows by its own bytes, the leading system message apart.
    fn first_shown(&self, id: &ConversationId, history: &dyn History) -> Result<u64, HistoryError> {
        let plan = match plan_window(self, id, history, &WindowQuery::default(), u64::MAX) {
            Ok(plan) => plan,
            Err(PlanError::History(error)) => return Err(error),
            Err(PlanError::VersionInFuture { .. } | PlanError::TooManyMessages { .. }) => {
                unreachable!("the window as it is now, whatever its size")
            }
        };
        let kept_apart = |seq: u64| seq == 1 && self.leading_system.is_some();
        let own = plan.messages.iter().filter(|message| message.to_seq.is_none() && !kept_apart(message.seq));
        Ok(own.map(|message| message.seq).min().unwrap_or(self.last_seq + 1))
    }

    /// Trims up to `upto_seq` or as far as the rules allow; the entry that asks for it lies at Raft index `index`. Answers
    /// the runs that take the places of those there are.
    pub fn trim(
        &mut self,
        index: u64,
        id: &ConversationId,
        history: &dyn History,
        keep: u64,
        upto_seq: u64,
    ) -> Result<Vec<EventRun>, HistoryError> {
        let upto = (upto_seq / EVENT_RUN * EVENT_RUN).min(self.trimmable_seq(id, history, keep)?);
        let mut runs = Vec::new();
        for first_seq in (self.trimmed_seq + 1..=upto).step_by(EVENT_RUN as usize) {
            let run = EventRun::clone(&*history.event_run(id, first_seq)?).trimmed();
            runs.push(match (first_seq, &self.leading_system) {
                (1, Some(leading)) => run.beginning_with(leading),
                _ => run,
            });
        }
        if !runs.is_empty() {
            self.trimmed_seq = upto;
            self.changed_index = index;
        }
        Ok(runs)
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Harness, append, put, text};
    use super::super::{
        Action, CompactRange, Entry, EventRange, FrameLocation, NewMessage, Policy, Put, RoleKind,
        plan_events,
    };
    use super::*;

    /// A conversation of so many texts, all archived, with a window of the newest few.
    fn long(events: u64, policy: &'static str) -> Harness {
        let mut real = Harness::new();
        real.apply(put());
        let policy = Some(Policy::parse(Bytes::from_static(policy.as_bytes())).unwrap());
        real.apply(Action::Put(Put { policy, ..Put::default() }));
        let first = NewMessage { role: RoleKind::System, ..text(1) };
        real.apply(append(std::iter::once(first).chain((1..events).map(|_| text(1))).collect()));
        archive(&mut real, u64::MAX);
        real
    }

    fn archive(real: &mut Harness, version: u64) {
        real.index += 1;
        real.conversation.as_mut().unwrap().mark_archived(real.index, version);
    }

    const NARROW: &str = r#"{"strategy":"last_n","config":{"limit":7}}"#;
    const WIDE: &str = r#"{"strategy":"manual"}"#;

    #[test]
    fn golden_bytes() {
        let trim = |id: &str, upto_seq| Trim { id: ConversationId::parse(id).unwrap(), upto_seq };
        let encoded = Trims::new(1_000, vec![trim("b", 300), trim("a", 128)]).encode();
        assert_eq!(&encoded[..], b"\x82\xe8\x07\x02\x01a\x80\x01\x01b\xac\x02");
        for len in 0..encoded.len() {
            assert!(Entry::decode(encoded.slice(..len), FrameLocation::default()).is_err(), "{len}");
        }
        for bytes in [&b"\x82\x00\x02\x01b\x00\x01a\x00"[..], b"\x82\x00\x02\x01a\x00\x01a\x00"] {
            assert!(Trims::decode(Bytes::from_static(bytes)).is_err());
        }
    }

    #[test]
    fn the_rules_hold_whatever_is_asked_for() {
        let asked = |mut real: Harness, keep, upto| real.trim(keep, upto);
        assert_eq!(asked(long(600, NARROW), 0, u64::MAX), 512, "the open run stays");
        assert_eq!(asked(long(600, NARROW), 200, u64::MAX), 384);
        assert_eq!(asked(long(600, NARROW), 600, u64::MAX), 0);
        assert_eq!(asked(long(600, NARROW), 0, 300), 256);
        assert_eq!(asked(long(600, WIDE), 0, u64::MAX), 0, "the window shows everything");
        assert_eq!(asked(long(9_000, NARROW), 0, u64::MAX), MAX_RUNS * EVENT_RUN, "one entry's share");

        let mut real = long(600, WIDE);
        let range = CompactRange { from: None, to: Some(400) };
        real.apply(Action::Compact { range, replacement: vec![text(1)], if_version: None });
        assert_eq!(real.trim(0, u64::MAX), 384, "what was compacted is not shown");

        let mut real = Harness::new();
        real.apply(put());
        real.apply(append((0..600).map(|_| text(1)).collect()));
        assert_eq!(real.trim(0, u64::MAX), 0, "nothing is archived");
        archive(&mut real, 600);
        assert_eq!(real.trim(0, u64::MAX), 128, "the default window shows 400 messages");
    }

    #[test]
    fn only_what_is_archived_goes_and_the_frontier_never_goes_back() {
        let mut real = Harness::new();
        real.apply(put());
        real.apply(append((0..600).map(|_| text(1)).collect()));
        let policy = Some(Policy::parse(Bytes::from_static(NARROW.as_bytes())).unwrap());
        real.apply(Action::Put(Put { policy, ..Put::default() }));
        archive(&mut real, 255);
        assert_eq!(real.trim(0, u64::MAX), 128);
        archive(&mut real, 256);
        assert_eq!(real.trim(0, u64::MAX), 128);
        for (keep, upto) in [(0, 128), (600, u64::MAX), (0, 0)] {
            assert_eq!(real.trim(keep, upto), 0);
            assert_eq!(real.current().trimmed_seq(), 256);
        }
    }

    #[test]
    fn everything_but_places_is_kept() {
        let mut real = long(600, NARROW);
        let all =
            EventRange { from_seq: 1, to_seq: 600, newest_first: false, limit: 600, limit_bytes: u64::MAX };
        let events = |real: &Harness| plan_events(real.current(), &real.id, &real.store, &all).unwrap();
        let (before, digest) = (events(&real), real.current().logical_digest());
        let run = real.store.event_run(&real.id, 1).unwrap().logical_digest();
        assert_eq!(real.trim(0, u64::MAX), 512);
        let after = events(&real);
        for (before, after) in before.iter().zip(&after) {
            let trimmed = (2..=512).contains(&after.seq);
            assert_eq!(after.location.is_placed(), !trimmed, "a leading system message stays");
            let (mut before, mut after) = (*before, *after);
            before.location.forget_place();
            after.location.forget_place();
            assert_eq!(before, after);
        }
        assert_ne!(real.current().logical_digest(), digest, "replicas must agree on the frontier");
        // What is left to compare of a run is the same, its first message apart, which the record places.
        let trimmed = EventRun::clone(&real.store.event_run(&real.id, 1).unwrap());
        assert_eq!(trimmed.logical_digest(), run);
        let mut shown = 0;
        trimmed.clone().visit_locations(&mut |_| shown += 1);
        assert_eq!(shown, 1);
    }
}
