//! How many nodes: the options, what each carries, survives and costs.

use serde::Serialize;

use super::catalogue::{Catalogue, Cost, Need};
use super::cpu::{At, Cpu};
use super::disk::Disk;
use super::figures::Figures;
use super::load::Load;
use super::memory::Memory;
use super::postgres::Postgres;
use super::rule::Rule;
use super::tiers::{Tier, scaled, tiers};
use super::workload::{BadInput, Nodes, Workload};

/// An option.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Topology {
    pub name: String,
    pub nodes: u64,
    pub archive: bool,
    pub pgbouncer: bool,
    /// Of the recommended tier.
    pub node: Tier,
    /// Users that it carries before a threshold of CPU, memory or disk is crossed.
    pub capacity_users: u64,
    pub survives: &'static str,
    pub costs: Vec<Cost>,
    pub chosen: bool,
}

pub const NODES: Rule = Rule {
    id: "topology.nodes",
    title: "how many nodes",
    formula: "auto: one up to 500 users, else three; more, two at a time, while a node would need more than 16 vCPU",
    inputs: "--nodes, --users, cpu.*",
    source: "StudyGuru: a single server for 500 to 800 users (the lower end); Fastpaca: exactly three replicas; Orion: vertical first, and its largest plan has 16 vCPU",
    departs: "StudyGuru's high availability is two application servers, and Flow-Like's replicas share no state. Two nodes of a Raft group survive less than one: both \
              are needed for a write. Fastpaca's \"exactly three\" is three replicas of each group; more nodes share the groups.",
};

pub const CAPACITY: Rule = Rule {
    id: "topology.capacity",
    title: "users that a topology carries",
    formula: "the most users whose load keeps CPU (one node lost) below 70 % and memory and disk below 80 % of the recommended tier",
    inputs: "tier.recommended, cpu.*, memory.*, disk.projection",
    source: "the levels `soon` of the thresholds",
    departs: "StudyGuru: 500 to 800 users on one server, over 1,000 with services apart, over 2,000 with two application servers: for Python and models",
};

pub const CONCURRENCY: Rule = Rule {
    id: "topology.concurrency",
    title: "requests at once over all nodes",
    formula: "nodes × FASTPACA_MAX_INFLIGHT_REQUESTS (1,024)",
    inputs: "nodes",
    source: "Flow-Like: 3 instances × 10 concurrent executions = 30",
    departs: "a runtime of Flow-Like is stateless and any can be added; here a write is done by three nodes whichever takes it, so more nodes mean more requests at \
              once, and more throughput only beyond three",
};

/// The most nodes of a cluster (docs/cluster.md).
pub const NODES_MAX: u64 = 64;
/// The most vCPU of a node before nodes are added.
const NODE_VCPU_MAX: u64 = 16;
/// Up to how many users one node is enough for `auto`.
const SINGLE_NODE_USERS_MAX: u64 = 500;

/// How many nodes the workload asks for, or amounts to.
pub fn nodes(workload: &Workload, figures: &Figures) -> Result<u64, BadInput> {
    match workload.nodes {
        Nodes::One => return Ok(1),
        Nodes::Three => return Ok(3),
        Nodes::Auto if workload.users <= SINGLE_NODE_USERS_MAX => return Ok(1),
        Nodes::Auto => {}
    }
    let fits = |nodes: &u64| tiers(workload, figures, *nodes)[1].vcpu <= NODE_VCPU_MAX;
    (3..NODES_MAX).step_by(2).find(fits).ok_or_else(|| {
        let peak = super::units::rate(Load::of(workload).appends_per_second_peak);
        let why = format!("the peak of {peak} appends is more than {NODES_MAX} nodes of {NODE_VCPU_MAX} vCPU carry: split it over several clusters");
        BadInput::Impossible { option: "users", why }
    })
}

/// Every option, the chosen one marked.
pub fn options(workload: &Workload, figures: &Figures, catalogue: &Catalogue, chosen: u64) -> Vec<Topology> {
    let more = if chosen > 3 { chosen } else { 5 };
    let mut options: Vec<Topology> = [(1, false), (3, false), (3, true), (more, workload.postgres)]
        .into_iter()
        .map(|(nodes, archive)| option(workload, figures, catalogue, nodes, archive))
        .collect();
    for option in &mut options {
        option.chosen = option.nodes == chosen && option.archive == workload.postgres;
    }
    if !options.iter().any(|option| option.chosen) {
        let mut single = option(workload, figures, catalogue, chosen, workload.postgres);
        single.chosen = true;
        options.insert(1, single);
    }
    options
}

fn option(
    workload: &Workload,
    figures: &Figures,
    catalogue: &Catalogue,
    nodes: u64,
    archive: bool,
) -> Topology {
    let node = tiers(workload, figures, nodes).swap_remove(1);
    let postgres = archive.then(|| Postgres::of(&Load::of(workload), nodes));
    let pgbouncer = postgres.is_some_and(|postgres| postgres.pgbouncer.is_some());
    let need = Need { vcpu: node.vcpu, memory_gib: node.memory_gib, disk_gb: node.disk_gb };
    let base = if nodes == 1 { "one node".to_owned() } else { format!("{nodes} nodes") };
    Topology {
        name: match (archive, pgbouncer) {
            (true, true) => format!("{base} + Postgres behind PgBouncer"),
            (true, false) => format!("{base} + Postgres"),
            (false, _) => base,
        },
        nodes,
        archive,
        pgbouncer,
        capacity_users: capacity(workload, figures, nodes, &node),
        survives: survives(nodes, archive),
        costs: catalogue
            .providers
            .iter()
            .filter_map(|provider| provider.cost(nodes, need, archive))
            .collect(),
        node,
        chosen: false,
    }
}

fn survives(nodes: u64, archive: bool) -> &'static str {
    match (nodes, archive) {
        (1, false) => "a crash or power cut of the node; not the loss of its disk",
        (1, true) => "a crash of the node; the loss of its disk, but for what the archive had not taken",
        (2..=3, false) => "the loss of any one node, with its disk",
        (2..=3, true) => {
            "the loss of any one node, with its disk; of all of them, but for what the archive had not taken"
        }
        (_, false) => "the loss of any one node, and of a second one for most groups",
        (_, true) => {
            "the loss of any one node, a second one for most groups; of all, but for what the archive had not taken"
        }
    }
}

/// The most users that fit, found by halving: more users never ask for less.
fn capacity(workload: &Workload, figures: &Figures, nodes: u64, node: &Tier) -> u64 {
    let fits = |factor: f64| {
        let workload = scaled(workload, factor);
        let load = Load::of(&workload);
        let disk = Disk::of(&workload, &load, figures, nodes);
        let cpu = Cpu::of(&workload, &load, figures, nodes, At::PeakOneLost).total_cores();
        let memory = Memory::of(&workload, &load, figures, nodes, disk.index_bytes).total_bytes();
        cpu <= 0.7 * node.vcpu as f64
            && memory <= 0.8 * node.memory_bytes()
            && disk.total_bytes() <= 0.8 * node.disk_bytes()
    };
    let (mut low, mut high) = (1.0, 1e6 / workload.users as f64 * 1e3);
    if !fits(low) {
        return workload.users;
    }
    for _ in 0..64 {
        let middle = (low + high) / 2.0;
        if fits(middle) { low = middle } else { high = middle }
    }
    (workload.users as f64 * low) as u64
}
