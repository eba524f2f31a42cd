//! Which nodes live and which leaders still lead: one heartbeat per pair of nodes instead of one per group.
//!
//! A heartbeat names the groups its sender leads and their terms. A replica *suspects* its leader when that claim has
//! not been repeated for the election timeout, or at once when the link to the leader's node broke or its process is
//! another one. The node then starts elections, staggered so that the replicas of a group do not run against each other.
//! Safety does not depend on any of this: it only decides when to elect.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::group::LEASE_MS;

/// How often a node says that it lives.
pub(crate) const HEARTBEAT: Duration = Duration::from_millis(250);
/// A leader that has been silent for longer is suspected, and a node that has not answered for longer out of reach.
pub(crate) const ELECTION_TIMEOUT: Duration = Duration::from_millis(1_200);
/// Between the first attempts of the replicas of a group, by rank.
const STAGGER: Duration = Duration::from_millis(400);
/// Until the same replica tries again.
const RETRY: Duration = Duration::from_millis(350);
/// For so long from the suspicion on it tries at every look: the leader's lease ends within that time, and before its end
/// openraft neither stands nor asks anybody.
const EAGER: Duration = Duration::from_millis(LEASE_MS + 200);
/// A group that has just seen a vote is given this long to get a leader, and twice as long each time that it got none, up to
/// the longest: votes are synced, and on a slow disk the next attempt must not overtake the last.
const SETTLE: Duration = Duration::from_millis(300);
const SETTLE_DOUBLINGS_MAX: u32 = 2;

/// What this node knows of the others.
#[derive(Default)]
pub(crate) struct Liveness(Mutex<HashMap<u128, Peer>>);

#[derive(Default)]
struct Peer {
    linked: bool,
    /// When this node's last answered heartbeat was sent.
    answered: Option<Instant>,
    /// When it was last heard.
    heard: Option<Instant>,
    incarnation: u64,
    /// It is about to stop.
    leaving: bool,
    /// Groups it leads, and their terms.
    claims: HashMap<u16, u64>,
}

impl Liveness {
    /// The link to a node came up or broke.
    pub(crate) fn set_linked(&self, node: u128, linked: bool) {
        let mut peers = self.0.lock();
        let peer = peers.entry(node).or_default();
        if peer.linked && !linked {
            peer.answered = None;
            peer.claims.clear();
        }
        peer.linked = linked;
    }

    /// A node answered the heartbeat that was sent at `sent`; true if it is the first since the link came up.
    pub(crate) fn answered(&self, node: u128, sent: Instant) -> bool {
        let mut peers = self.0.lock();
        let peer = peers.entry(node).or_default();
        let is_first = peer.answered.is_none();
        peer.answered = peer.answered.max(Some(sent));
        is_first
    }

    /// A node's heartbeat arrived.
    pub(crate) fn heard(
        &self,
        node: u128,
        incarnation: u64,
        leaving: bool,
        claims: HashMap<u16, u64>,
        now: Instant,
    ) {
        let mut peers = self.0.lock();
        let peer = peers.entry(node).or_default();
        if incarnation >= peer.incarnation {
            *peer = Peer { heard: Some(now), incarnation, leaving, claims, ..std::mem::take(peer) };
        }
    }

    pub(crate) fn is_linked(&self, node: u128) -> bool {
        self.0.lock().get(&node).is_some_and(|peer| peer.linked)
    }

    /// Whether a node has answered recently enough to count on it.
    pub(crate) fn answers(&self, node: u128) -> bool {
        let peers = self.0.lock();
        peers.get(&node).is_some_and(|peer| {
            peer.linked && peer.answered.is_some_and(|sent| sent.elapsed() < ELECTION_TIMEOUT)
        })
    }

    /// Whether a node may be asked to lead: it answers, is heard, as a leader must be, and is not about to stop.
    pub(crate) fn may_lead(&self, node: u128) -> bool {
        let is_heard = |peer: &Peer| peer.heard.is_some_and(|heard| heard.elapsed() < ELECTION_TIMEOUT);
        self.answers(node) && self.0.lock().get(&node).is_some_and(|peer| is_heard(peer) && !peer.leaving)
    }

    /// When a node was last heard, and whether it then said that it leads the group in this term.
    fn heard_claim(&self, node: u128, group: u16, term: u64) -> Option<(Instant, bool)> {
        let peers = self.0.lock();
        let peer = peers.get(&node)?;
        Some((peer.heard?, peer.claims.get(&group) == Some(&term)))
    }
}

/// What one replica sees of its group's leadership.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Leadership {
    pub(crate) term: u64,
    /// The node that leads, as far as known.
    pub(crate) leader: Option<u128>,
    /// This replica is the leader.
    pub(crate) here: bool,
}

/// Decides when one replica calls an election.
#[derive(Debug)]
pub(crate) struct ElectionTimer {
    seen: Option<Leadership>,
    /// When the leader was last known to lead, or the leadership last changed.
    alive: Instant,
    suspected: Option<Instant>,
    attempt: Option<Instant>,
    /// Votes seen since there was a leader.
    votes: u32,
}

impl ElectionTimer {
    pub(crate) fn new(now: Instant) -> Self {
        Self { seen: None, alive: now, suspected: None, attempt: None, votes: 0 }
    }

    pub(crate) fn is_suspicious(&self) -> bool {
        self.suspected.is_some()
    }

    /// Takes a look; true when an election is due. `rank` orders the replicas of the group.
    pub(crate) fn tick(
        &mut self,
        now: Instant,
        group: u16,
        rank: u32,
        leadership: Leadership,
        liveness: &Liveness,
    ) -> bool {
        if self.seen != Some(leadership) {
            let first = self.seen.is_none();
            self.seen = Some(leadership);
            // A process that has just started waits a full timeout for the leader there may be.
            self.alive = if first { now + ELECTION_TIMEOUT - SETTLE } else { now };
            self.votes = if leadership.leader.is_some() { 0 } else { self.votes + 1 };
        }
        if !self.suspects(now, group, leadership, liveness) {
            (self.suspected, self.attempt) = (None, None);
            return false;
        }
        let since = *self.suspected.get_or_insert(now);
        let retry = if now < since + EAGER { Duration::ZERO } else { RETRY };
        let first = since + STAGGER * rank;
        let is_due = now >= self.attempt.map_or(first, |attempt| attempt + retry + STAGGER * rank);
        if is_due {
            self.attempt = Some(now);
        }
        is_due
    }

    fn suspects(&mut self, now: Instant, group: u16, leadership: Leadership, liveness: &Liveness) -> bool {
        if leadership.here {
            return false;
        }
        let Some(leader) = leadership.leader else {
            let doublings = self.votes.saturating_sub(1).min(SETTLE_DOUBLINGS_MAX);
            return now.saturating_duration_since(self.alive) > SETTLE * 2_u32.pow(doublings);
        };
        match liveness.heard_claim(leader, group, leadership.term) {
            Some((heard, true)) => self.alive = self.alive.max(heard),
            // It lives and no longer claims the lead, in more than one heartbeat: it has asked another to take over,
            // and that one should lead by now.
            Some((heard, false)) if heard > self.alive + SETTLE => return true,
            _ => {}
        }
        !liveness.is_linked(leader) && now >= self.alive
            || now.saturating_duration_since(self.alive) > ELECTION_TIMEOUT
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEADER: u128 = 7;
    const GROUP: u16 = 3;

    struct Rig {
        start: Instant,
        liveness: Liveness,
        timer: ElectionTimer,
        leadership: Leadership,
        rank: u32,
    }

    impl Rig {
        fn new(rank: u32) -> Rig {
            let start = Instant::now();
            let liveness = Liveness::default();
            liveness.set_linked(LEADER, true);
            let leadership = Leadership { term: 1, leader: Some(LEADER), here: false };
            Rig { start, liveness, timer: ElectionTimer::new(start), leadership, rank }
        }

        fn claim_at(&self, ms: u64) {
            let at = self.start + Duration::from_millis(ms);
            self.liveness.heard(LEADER, 1, false, HashMap::from([(GROUP, 1)]), at);
        }

        fn due_at(&mut self, ms: u64) -> bool {
            let now = self.start + Duration::from_millis(ms);
            self.timer.tick(now, GROUP, self.rank, self.leadership, &self.liveness)
        }
    }

    #[test]
    fn a_leader_that_repeats_its_claim_is_left_alone() {
        let mut rig = Rig::new(0);
        for ms in (0..20_000).step_by(100) {
            rig.claim_at(ms);
            assert!(!rig.due_at(ms), "at {ms}");
        }
        assert!(!rig.timer.is_suspicious());
    }

    #[test]
    fn silence_is_suspicious_after_the_timeout_and_retried() {
        let mut rig = Rig::new(0);
        rig.claim_at(0);
        assert!(!rig.due_at(0));
        rig.claim_at(5_000);
        let due: Vec<u64> = (5_000..8_000).step_by(100).filter(|ms| rig.due_at(*ms)).collect();
        assert_eq!(due.first(), Some(&6_300));
        assert!(due.len() > 2, "{due:?}");
    }

    #[test]
    fn a_broken_link_is_suspicious_at_once_and_ranks_take_turns() {
        let first = |rank| {
            let mut rig = Rig::new(rank);
            assert!(!rig.due_at(0));
            rig.claim_at(5_000);
            assert!(!rig.due_at(5_000));
            rig.liveness.set_linked(LEADER, false);
            (5_001..9_000).find(|ms| rig.due_at(*ms)).unwrap()
        };
        assert_eq!((first(0), first(1), first(2)), (5_001, 5_401, 5_801));
    }

    #[test]
    fn every_look_is_an_attempt_until_the_lease_must_be_over() {
        let mut rig = Rig::new(0);
        assert!(!rig.due_at(0));
        rig.claim_at(5_000);
        rig.liveness.set_linked(LEADER, false);
        let due: Vec<u64> = (5_000..7_000).step_by(100).filter(|ms| rig.due_at(*ms)).collect();
        let (eager, later) = due.split_at(8);
        assert!(eager.iter().copied().eq((5_000..5_800).step_by(100)), "{due:?}");
        assert_eq!(later, [6_100, 6_500, 6_900]);
    }

    #[test]
    fn a_leader_that_claims_no_more_is_suspected_sooner() {
        let mut rig = Rig::new(0);
        assert!(!rig.due_at(0));
        rig.claim_at(5_000);
        assert!(!rig.due_at(5_000));
        let due = (5_250..9_000).step_by(250).find(|ms| {
            let at = rig.start + Duration::from_millis(*ms);
            rig.liveness.heard(LEADER, 1, false, HashMap::new(), at);
            rig.due_at(*ms)
        });
        assert_eq!(due, Some(5_500));
    }

    #[test]
    fn a_claim_of_another_term_or_an_older_process_does_not_count() {
        let mut rig = Rig::new(0);
        rig.liveness.heard(LEADER, 2, false, HashMap::from([(GROUP, 9)]), rig.start);
        rig.claim_at(4_000);
        let due = (0..4_100).step_by(100).find(|ms| rig.due_at(*ms));
        assert!(due.is_some());
    }

    #[test]
    fn who_answers_but_is_not_heard_cannot_lead() {
        let rig = Rig::new(0);
        rig.liveness.answered(LEADER, Instant::now());
        assert!(rig.liveness.answers(LEADER) && !rig.liveness.may_lead(LEADER));
        rig.claim_at(0);
        assert!(rig.liveness.may_lead(LEADER));
        rig.liveness.heard(LEADER, 1, true, HashMap::new(), rig.start);
        assert!(!rig.liveness.may_lead(LEADER));
    }

    #[test]
    fn the_first_answer_over_each_link_is_told_apart() {
        let rig = Rig::new(0);
        for _ in 0..2 {
            rig.liveness.set_linked(LEADER, true);
            let answers = [(); 3].map(|()| rig.liveness.answered(LEADER, rig.start));
            assert_eq!(answers, [true, false, false]);
            rig.liveness.set_linked(LEADER, false);
        }
    }

    #[test]
    fn a_new_leadership_gets_time_to_settle() {
        let mut rig = Rig::new(0);
        assert!(!rig.due_at(0));
        rig.claim_at(5_000);
        assert!(!rig.due_at(5_000));
        rig.leadership = Leadership { term: 2, leader: None, here: false };
        assert_eq!((5_000..9_000).step_by(10).find(|ms| rig.due_at(*ms)), Some(5_310));
        rig.leadership = Leadership { term: 3, leader: None, here: true };
        assert!(!(6_000..9_000).step_by(10).any(|ms| rig.due_at(ms)));
    }

    #[test]
    fn votes_without_a_leader_get_more_time() {
        let mut rig = Rig::new(0);
        let mut waited = Vec::new();
        let mut now = 0;
        for term in 2..=6 {
            rig.leadership = Leadership { term, leader: None, here: false };
            let due = (now..).step_by(10).find(|ms| rig.due_at(*ms)).unwrap();
            waited.push(due - now);
            now = due;
        }
        // The first is a process that has just started, and waits for the leader there may be.
        assert_eq!(waited, [1_210, 610, 1_210, 1_210, 1_210]);
        rig.leadership = Leadership { term: 7, leader: Some(LEADER), here: false };
        rig.claim_at(now);
        assert!(!rig.due_at(now));
        rig.leadership = Leadership { term: 8, leader: None, here: false };
        assert_eq!((now..).step_by(10).find(|ms| rig.due_at(*ms)), Some(now + 310));
    }
}
