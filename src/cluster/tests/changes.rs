//! What is refused and what is not, one change at a time; and what founding and growth come to.

use std::collections::BTreeSet;

use super::super::change::Refusal;
use super::super::plan::{MOVES_MAX, plan};
use super::super::share::{placed_on, share};
use super::super::state::*;
use super::*;

fn spread(counts: impl IntoIterator<Item = usize>) -> usize {
    let counts: Vec<usize> = counts.into_iter().collect();
    counts.iter().max().unwrap() - counts.iter().min().unwrap()
}

fn dead(state: &ClusterState, node: u128) -> Observed {
    let mut seen = all_well(state);
    seen.nodes.insert(NodeId(node), Liveness::Dead);
    seen
}

#[test]
fn a_founded_cluster_is_balanced_and_has_nothing_to_do() {
    for nodes in 1..=20 {
        let state = found(nodes);
        let conversations = &state.groups[..usize::from(META_GROUP)];
        let ids: Vec<NodeId> = state.active().collect();
        let load = |node| conversations.iter().filter(|group| group.on(node).is_some()).count();
        let leads =
            |node| conversations.iter().filter(|group| group.preferred().unwrap().node == node).count();
        assert!(spread(ids.iter().map(|node| load(*node))) <= 1, "{nodes} nodes");
        assert!(spread(ids.iter().map(|node| leads(*node))) <= 1, "{nodes} nodes");
        assert_eq!(state.groups[256].replicas.len(), nodes as usize);
        assert_eq!(plan(&state, &all_well(&state)), None, "{nodes} nodes");
    }
}

/// It could never catch up, and would keep others from moving.
#[test]
fn nothing_moves_to_where_the_leader_of_a_group_does_not_reach() {
    let mut state = found(3);
    state.admit(NodeId(4), record("d"), false, &all_well(&state)).unwrap();
    let former: BTreeSet<NodeId> = (1..=3).map(NodeId).collect();
    let mut seen = all_well(&state);
    seen.reached = (0..META_GROUP).step_by(2).map(|group| (group, former.clone())).collect();
    let next = plan(&state, &seen).unwrap();
    let moved: Vec<u16> =
        (0..META_GROUP).filter(|group| next.groups[usize::from(*group)].on(NodeId(4)).is_some()).collect();
    assert_eq!(moved.len(), MOVES_MAX - 1, "beside the meta group: {moved:?}");
    assert!(moved.iter().all(|group| group % 2 == 1), "{moved:?}");
}

/// The voters are those that were, and its place among those that move is another's.
#[test]
fn a_move_to_where_the_leader_of_a_group_reaches_no_more_is_called_off() {
    let mut state = found(3);
    state.admit(NodeId(4), record("d"), false, &all_well(&state)).unwrap();
    let before = state.clone();
    let moving = plan(&state, &all_well(&state)).unwrap();
    let moves = |state: &ClusterState| -> Vec<u16> {
        (0..META_GROUP).filter(|group| state.groups[usize::from(*group)].on(NodeId(4)).is_some()).collect()
    };
    let cut = moves(&moving);
    let mut seen = all_well(&before);
    let former: BTreeSet<NodeId> = (1..=3).map(NodeId).collect();
    for group in &cut {
        seen.reached.insert(*group, former.clone());
    }
    let waiting = plan(&moving, &seen).unwrap_or_else(|| moving.clone());
    assert_eq!(moves(&waiting), cut, "a link that has just gone may come back");

    for group in &cut {
        seen.lost.insert(*group, [NodeId(4)].into());
    }
    let next = plan(&waiting, &seen).unwrap();
    for group in &cut {
        let (was, is) = (&before.groups[usize::from(*group)], &next.groups[usize::from(*group)]);
        assert_eq!(was.voters(), is.voters());
    }
    let others = moves(&plan(&next, &seen).unwrap());
    assert!(!others.is_empty() && others.iter().all(|group| !cut.contains(group)), "{others:?}");
}

#[test]
fn growth_moves_a_fair_share_and_no_more() {
    let mut state = found(3);
    state.admit(NodeId(4), record("d"), false, &all_well(&state)).unwrap();
    let mut moved = 0;
    while let Some(next) = plan(&state, &all_well(&state)) {
        let new = |group: usize| next.groups[group].next_replica > state.groups[group].next_replica;
        let started = (0..256).filter(|group| new(*group)).count();
        assert!(started <= MOVES_MAX);
        moved += started;
        state = next;
    }
    assert_eq!(moved, 256 * 3 / 4);
    assert_eq!(state.groups[256].learners().into_values().collect::<Vec<_>>(), [NodeId(4)]);
}

#[test]
fn a_version_is_spoken_once_the_last_node_speaks_it() {
    let mut state = found(3);
    assert!(state.all_speak(1) && !state.all_speak(2));
    let versions = [(1, 2), (2, 3), (1, 2)];
    for (n, (node, protocol)) in state.nodes.clone().keys().zip(versions).enumerate() {
        assert!(!state.all_speak(2), "{n} of 3 do");
        state.nodes.get_mut(node).unwrap().protocol = protocol;
    }
    assert!(state.all_speak(2) && !state.all_speak(3));
    let removed = state.nodes.values_mut().next().unwrap();
    (removed.protocol, removed.state) = ((1, 1), NodeState::Removed);
    assert!(state.all_speak(2), "who has left is not asked");
}

#[test]
fn a_name_has_one_holder() {
    let state = found(3);
    let admit = |node, name, replace, seen: &Observed| {
        let mut state = state.clone();
        state.admit(NodeId(node), record(name), replace, seen).map(|changed| (changed, state))
    };
    let well = all_well(&state);
    assert_eq!(admit(9, "b", true, &well).unwrap_err(), Refusal::NameTaken("b".to_owned()));
    assert_eq!(admit(9, "b", false, &dead(&state, 2)).unwrap_err(), Refusal::NameKnown("b".to_owned()));
    assert_eq!(admit(1, "b", false, &dead(&state, 2)).unwrap_err(), Refusal::NameTaken("b".to_owned()));
    assert!(!admit(1, "a", false, &well).unwrap().0, "nothing changed");
    let (changed, replaced) = admit(9, "b", true, &dead(&state, 2)).unwrap();
    assert!(changed && replaced.is(NodeId(2), NodeState::Removed) && replaced.named("b") == Some(NodeId(9)));
    let again = replaced.clone().admit(NodeId(2), record("b"), true, &well);
    assert_eq!(again.unwrap_err(), Refusal::WasRemoved("b".to_owned()));

    let mut moved = state.clone();
    let elsewhere = NodeRecord { address: "10.0.0.9:4000".to_owned(), ..record("b") };
    moved.drain("b").unwrap();
    assert!(moved.admit(NodeId(2), elsewhere.clone(), false, &well).unwrap());
    assert_eq!(moved.nodes[&NodeId(2)].address, elsewhere.address);
    assert!(moved.is(NodeId(2), NodeState::Draining), "a new address undrains nothing");
    let restarted = NodeRecord { incarnation: Some(2), ..elsewhere.clone() };
    assert!(moved.admit(NodeId(2), restarted, false, &well).unwrap());
    let late = moved.admit(NodeId(2), elsewhere, false, &well);
    assert_eq!(late.unwrap_err(), Refusal::Outdated("b".to_owned()));
}

#[test]
fn nobody_is_removed_who_is_needed() {
    let mut state = found(3);
    let well = all_well(&state);
    assert_eq!(state.remove("x", &well).unwrap_err(), Refusal::Unknown("x".to_owned()));
    assert_eq!(state.remove("a", &well).unwrap_err(), Refusal::NotDrained("a".to_owned()));

    let mut seen = dead(&state, 1);
    seen.groups.remove(&7);
    assert_eq!(state.remove("a", &seen).unwrap_err(), Refusal::NoLeader(7));
    let mut seen = dead(&state, 1);
    seen.nodes.insert(NodeId(2), Liveness::Silent);
    assert_eq!(state.remove("a", &seen).unwrap_err(), Refusal::Majority { name: "a".to_owned(), group: 0 });
    state.remove("a", &dead(&state, 1)).unwrap();
    assert!(state.is(NodeId(1), NodeState::Removed));

    // Of two voters neither can be spared, and the last one has nowhere to go.
    let mut two = found(2);
    assert!(matches!(two.remove("a", &dead(&two, 1)), Err(Refusal::Majority { .. })));
    two.drain("a").unwrap();
    assert_eq!(two.drain("b").unwrap_err(), Refusal::LastActive("b".to_owned()));
    assert!(two.undrain("a").unwrap() && !two.undrain("a").unwrap());
}

#[test]
fn a_full_cluster_is_full() {
    let nodes: u128 = super::super::change::NODES_MAX as u128;
    let mut state = found(1);
    for node in 2..=nodes {
        state.admit(NodeId(node), record(&format!("node-{node}")), false, &Observed::default()).unwrap();
    }
    let late = state.admit(NodeId(nodes + 1), record("late"), false, &Observed::default());
    assert_eq!(late.unwrap_err(), Refusal::Full);
}

#[test]
fn a_founder_has_its_whole_share_placed_and_a_joiner_none_of_it() {
    for (nodes, least) in [(1, 256), (2, 256), (3, 256), (4, 192), (5, 153), (7, 109)] {
        let mut state = found(nodes);
        assert_eq!(share(&state), least, "of {nodes} nodes");
        let placed = placed_on(&state, NodeId(1)).unwrap().len();
        assert!((least..=least + 1).contains(&placed), "{placed} of {nodes} nodes");
        let joiner = NodeId(nodes + 1);
        state.admit(joiner, record("joiner"), false, &Observed::default()).unwrap();
        assert_eq!(placed_on(&state, joiner), Some(vec![]));
        state.drain("joiner").unwrap();
        assert_eq!(placed_on(&state, joiner), None);
    }
}
