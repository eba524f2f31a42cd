//! Looking for a group's leader within a request's deadline: following hints, waiting for news, never spinning.

use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

use super::attached::Attached;
use super::local::Replica;
use super::placement::Placement;
use super::route::{Known, Route, to_any_host, to_leader};

/// Longest time that a request is tried again, whatever its own deadline.
const RETRY_MAX: Duration = Duration::from_secs(10);
/// Pauses between attempts, doubling; news of a leader ends a pause early, but not before the shortest one.
const PAUSE_MIN: Duration = Duration::from_millis(5);
const PAUSE_MAX: Duration = Duration::from_millis(200);

/// How long a request may take.
#[derive(Debug, Clone, Copy)]
pub(super) struct Deadline {
    /// No new attempt after this.
    pub retry_until: Instant,
    /// No answer is waited for beyond this.
    pub answer_by: Instant,
}

impl Deadline {
    pub(super) fn after(limit: Duration) -> Self {
        let now = Instant::now();
        Self { retry_until: now + limit.min(RETRY_MAX), answer_by: now + limit }
    }

    pub(super) fn left(&self) -> Duration {
        self.answer_by.saturating_duration_since(Instant::now())
    }
}

/// The attempts of one request to reach the leader, or a host, of a group.
pub(super) struct Search<'a> {
    attached: &'a Attached,
    group: u16,
    hint: Option<u128>,
    /// Who was remembered to lead when the search began.
    first: Option<u128>,
    /// The last attempt followed a hint: the next one waits, so that two nodes cannot play ball with a request.
    followed: bool,
    attempt: usize,
    pause: Duration,
    /// Who led, as far as the replica here knew when the last attempt was decided.
    known: Option<u128>,
}

impl<'a> Search<'a> {
    pub(super) fn new(attached: &'a Attached, group: u16) -> Self {
        let first = attached.remembered_leader(group);
        Self {
            attached,
            group,
            hint: None,
            first,
            followed: false,
            attempt: 0,
            pause: PAUSE_MIN,
            known: None,
        }
    }

    /// Where the leader is to be found now.
    pub(super) fn leader(&mut self) -> Route {
        let is_hosted_here = self.attached.local.replica(self.group).is_some();
        let remembered = || self.attached.remembered_leader(self.group).filter(|_| !is_hosted_here);
        let hint = self.hint.take().or_else(remembered);
        self.decide(hint, |known, is_up| to_leader(known, is_up))
    }

    /// Where another host is to be found now.
    pub(super) fn host(&mut self) -> Route {
        self.decide(self.first, |known, is_up| to_any_host(known, is_up))
    }

    fn decide(
        &mut self,
        hint: Option<u128>,
        choose: impl Fn(&Known<'_>, &dyn Fn(u128) -> bool) -> Route,
    ) -> Route {
        let replica = self.attached.local.replica(self.group).map(|replica| replica.leader());
        self.known = replica.flatten();
        let placement: Arc<Placement> = self.attached.placement();
        let known = Known {
            here: self.attached.local.node_id(),
            replica,
            hint,
            hosts: placement.hosts(self.group),
            attempt: self.attempt,
        };
        choose(&known, &|node| self.attached.links.is_up(node))
    }

    /// Counts an attempt that failed; for callers that have their own idea of when to make the next.
    pub(super) fn failed(&mut self) {
        self.attempt += 1;
    }

    /// Notes the host that has what another one lacked: the next search begins there.
    pub(super) fn found_at(&self, node: u128) {
        if self.attempt > 0 {
            self.attached.remember_leader(self.group, Some(node));
        }
    }

    /// Waits until another attempt is worthwhile; false once it is too late for one. `hint` is who leads the group
    /// according to the node that was asked last.
    pub(super) async fn again(&mut self, hint: Option<u128>, deadline: &Deadline) -> bool {
        let hint = hint.filter(|node| *node != self.attached.local.node_id());
        self.attempt += 1;
        self.attached.remember_leader(self.group, hint);
        let left = deadline.retry_until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return false;
        }
        self.attached.metrics().routing_retries_total.inc();
        self.hint = hint;
        if hint.is_some() && !self.followed {
            self.followed = true;
            return true;
        }
        self.followed = false;
        let replica = self.attached.local.replica(self.group);
        // News during the attempt and the shortest pause must not be missed.
        let news = timeout(self.pause.min(left), leader_other_than(self.known, replica.as_deref()));
        tokio::join!(sleep(PAUSE_MIN.min(left)), news).1.ok();
        self.pause = (self.pause * 2).min(PAUSE_MAX);
        Instant::now() < deadline.retry_until
    }
}

/// Resolves once the replica knows something else than that leader.
async fn leader_other_than(known: Option<u128>, replica: Option<&dyn Replica>) {
    let Some(replica) = replica else { return pending().await };
    if replica.leader() == known {
        replica.leader_changed().await;
    }
}
