//! Where a request goes next. Pure: what is known goes in, a decision comes out.

/// Where to take a request that needs the leader of a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Route {
    /// This node leads the group.
    Here,
    /// That node leads it, or may know who does.
    To(u128),
    /// Nobody is known: wait for news.
    Nowhere,
}

/// What a node knows about one group.
#[derive(Debug, Clone, Copy)]
pub(super) struct Known<'a> {
    pub here: u128,
    /// The group is hosted here; the leader as far as the replica knows.
    pub replica: Option<Option<u128>>,
    /// Who another node said leads it, or who did when it was last asked.
    pub hint: Option<u128>,
    /// Who hosts it, the preferred leader first.
    pub hosts: &'a [u128],
    /// Attempts made so far for this request.
    pub attempt: usize,
}

/// The way to the leader.
///
/// A hint from elsewhere is newer than what the replica here believes, and is followed once; then the replica decides.
/// A group that is not hosted here is looked for at one host after the other.
pub(super) fn to_leader(known: &Known<'_>, is_up: impl Fn(u128) -> bool) -> Route {
    if known.replica == Some(Some(known.here)) {
        return Route::Here;
    }
    let elsewhere = |node: &u128| *node != known.here && is_up(*node);
    if let Some(hint) = known.hint.filter(elsewhere) {
        return Route::To(hint);
    }
    match known.replica {
        Some(leader) => leader.filter(elsewhere).map_or(Route::Nowhere, Route::To),
        None => to_any_host(known, is_up),
    }
}

/// The way to some host other than this node: first to the leader of the hint, which has all that was acknowledged, then to
/// one after the other. The hint has to stay the same from one attempt to the next.
pub(super) fn to_any_host(known: &Known<'_>, is_up: impl Fn(u128) -> bool) -> Route {
    let live = || known.hosts.iter().copied().filter(|node| *node != known.here && is_up(*node));
    let leader = live().find(|node| Some(*node) == known.hint);
    let others = live().filter(|node| Some(*node) != leader);
    match live().count() {
        0 => Route::Nowhere,
        count => {
            leader.into_iter().chain(others).nth(known.attempt % count).map_or(Route::Nowhere, Route::To)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOSTS: &[u128] = &[1, 2, 3];

    fn known(replica: Option<Option<u128>>, hint: Option<u128>, attempt: usize) -> Known<'static> {
        Known { here: 1, replica, hint, hosts: HOSTS, attempt }
    }

    fn all_up(_: u128) -> bool {
        true
    }

    #[test]
    fn the_leader_itself_needs_no_advice() {
        assert_eq!(to_leader(&known(Some(Some(1)), Some(2), 0), all_up), Route::Here);
    }

    #[test]
    fn a_hint_is_newer_than_the_replica() {
        assert_eq!(to_leader(&known(Some(Some(2)), None, 0), all_up), Route::To(2));
        assert_eq!(to_leader(&known(Some(Some(2)), Some(3), 0), all_up), Route::To(3));
        assert_eq!(to_leader(&known(Some(Some(2)), Some(1), 0), all_up), Route::To(2), "not to oneself");
    }

    #[test]
    fn nobody_is_called_who_is_down() {
        assert_eq!(to_leader(&known(Some(Some(2)), None, 0), |_| false), Route::Nowhere);
        assert_eq!(to_leader(&known(Some(Some(2)), Some(3), 0), |node| node == 2), Route::To(2));
        assert_eq!(to_leader(&known(Some(None), None, 0), all_up), Route::Nowhere);
    }

    #[test]
    fn hosts_are_tried_one_after_the_other() {
        let routes = [0, 1, 2].map(|attempt| to_leader(&known(None, None, attempt), all_up));
        assert_eq!(routes, [Route::To(2), Route::To(3), Route::To(2)]);
        assert_eq!(to_any_host(&known(None, None, 0), |node| node == 3), Route::To(3));
        assert_eq!(to_any_host(&Known { hosts: &[], ..known(None, None, 0) }, all_up), Route::Nowhere);
    }

    #[test]
    fn the_host_that_leads_is_tried_first() {
        let routes = [0, 1, 2].map(|attempt| to_any_host(&known(None, Some(3), attempt), all_up));
        assert_eq!(routes, [Route::To(3), Route::To(2), Route::To(3)]);
        assert_eq!(to_any_host(&known(None, Some(3), 0), |node| node != 3), Route::To(2));
        assert_eq!(to_any_host(&known(None, Some(9), 0), all_up), Route::To(2), "hosts it no more");
    }
}
