//! Tests of the cluster's pure parts: golden bytes, single changes, and two simulations in which a seed is a
//! whole story. `FASTPACA_SEED=7 cargo test --lib cluster:: -- --nocapture` replays one and prints it.

mod changes;
mod founding_sim;
mod golden;
mod plan_sim;

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use super::plan::{Liveness, Membership, Observed};
use super::state::{ClusterId, ClusterState, Mark, NodeId, NodeRecord, NodeState};

/// Runs a story for each seed, or for the one that is asked for; the story answers its trace.
fn for_seeds(count: u64, story: impl Fn(u64) -> String) {
    if let Ok(seed) = std::env::var("FASTPACA_SEED") {
        println!("{}", story(seed.parse().expect("FASTPACA_SEED is a number")));
        return;
    }
    for seed in 0..count {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| story(seed))) {
            eprintln!("this failed with FASTPACA_SEED={seed}");
            resume_unwind(panic);
        }
    }
}

fn record(name: &str) -> NodeRecord {
    NodeRecord {
        name: name.to_owned(),
        address: format!("{name}.example:4000"),
        state: NodeState::Active,
        incarnation: Some(1),
        mark: Some(Mark { value: u64::MAX - 1, instance: u64::MAX }),
        protocol: (1, 1),
        joined_ms: 1_800_000_000_000,
    }
}

/// Nodes 1, 2, ... called a, b, ...
fn records(count: u128) -> BTreeMap<NodeId, NodeRecord> {
    let name = |node: u128| char::from(b'a' + (node as u8 - 1)).to_string();
    (1..=count).map(|node| (NodeId(node), record(&name(node)))).collect()
}

fn found(count: u128) -> ClusterState {
    ClusterState::found(ClusterId(0xc1), records(count))
}

/// Everything is as the document says, and everyone is up.
fn all_well(state: &ClusterState) -> Observed {
    let groups = (0u16..).zip(&state.groups).map(|(number, group)| {
        let (voters, learners) = (group.voters(), group.learners());
        let caught_up = voters.keys().chain(learners.keys()).copied().collect();
        (number, Membership { voters, learners, caught_up })
    });
    Observed {
        nodes: state.nodes.keys().map(|node| (*node, Liveness::Up)).collect(),
        groups: groups.collect(),
        ..Observed::default()
    }
}
