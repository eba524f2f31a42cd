//! Sizing and scaling guidance: from a workload to machines, settings, limits and costs, and from what a running system
//! shows to what to do.
//!
//! Pure: everything here is a function of its arguments. Reading nodes, Prometheus, files and this machine is the command
//! line's (`cli/advise`). Every figure follows from a [`Rule`](rule::Rule), with its formula, inputs and source; quantities
//! carry their unit in their name.
//!
//! Reading order: [`workload`] and [`figures`] (what goes in), [`load`], [`cpu`], [`memory`], [`disk`], [`network`] (what one
//! node has to carry), [`tiers`] and [`topology`] (what carries it), [`Plan`] and [`report`] (the answer); [`thresholds`] with
//! [`alerts`] and [`check`] for systems that run.
//!
//! Deliberately lacking: a model of what is not Fastpaca. Model calls, other databases and the application have their own.

pub mod alerts;
pub mod catalogue;
pub mod check;
mod checklist;
pub mod cpu;
pub mod disk;
pub mod document;
pub mod figures;
pub mod files;
pub mod kernel;
pub mod load;
pub mod memory;
pub mod network;
pub mod postgres;
pub mod report;
pub mod rule;
pub mod settings;
pub mod thresholds;
pub mod tiers;
pub mod timeline;
pub mod topology;
pub mod units;
pub mod workload;

#[cfg(test)]
mod tests;

use serde::Serialize;

use catalogue::{Catalogue, Provider};
use figures::Figures;
use kernel::{Container, Kernel};
use load::Load;
use postgres::Postgres;
use rule::Rule;
use settings::{Known, NodeLimits, Setting};
use tiers::{Demand, Tier};
use timeline::Crossing;
use topology::Topology;
use workload::{BadInput, Workload};

/// The version of the JSON form of a [`Plan`]: raised when a member changes its meaning or goes.
pub const SCHEMA_VERSION: u64 = 1;

/// The answer for a workload.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Plan {
    pub schema_version: u64,
    pub workload: Workload,
    pub figures: Figures,
    pub load: Load,
    /// Of the topology that is advised.
    pub nodes: u64,
    /// What one of its nodes has to carry.
    pub node: Demand,
    /// Of a node: minimum, recommended, high-performance.
    pub tiers: Vec<Tier>,
    pub topologies: Vec<Topology>,
    pub limits: NodeLimits,
    pub settings: Vec<Setting>,
    pub postgres: Option<Postgres>,
    pub kernel: Kernel,
    pub container: Container,
    pub growth: Vec<Crossing>,
    pub checklist: Vec<String>,
    pub providers: Vec<Provider>,
}

/// Every rule, in the order in which a plan uses them.
pub const RULES: &[&Rule] = &[
    &workload::SIZES,
    &load::ACTIVE_USERS,
    &load::APPENDS,
    &load::WINDOWS,
    &load::STREAMS,
    &load::DAY,
    &load::KEPT,
    &figures::FIGURES,
    &cpu::IDLE,
    &cpu::APPEND,
    &cpu::TOKENS,
    &cpu::WINDOWS,
    &cpu::STREAMS,
    &memory::BASE,
    &memory::RAFT,
    &memory::CACHES,
    &memory::STREAMS,
    &memory::WORK,
    &memory::SYSTEM,
    &disk::JOURNAL,
    &disk::INDEX,
    &disk::PROJECTION,
    &network::NETWORK,
    &tiers::MINIMUM,
    &tiers::RECOMMENDED,
    &tiers::HIGH,
    &topology::NODES,
    &topology::CAPACITY,
    &topology::CONCURRENCY,
    &catalogue::COST,
    &settings::STREAM_LIMIT,
    &settings::CONNECTION_LIMIT,
    &settings::RECORD_CACHE,
    &settings::MESSAGE_CACHE,
    &settings::WINDOW_CACHE,
    &postgres::POOL,
    &postgres::PGBOUNCER,
    &postgres::DATABASE,
    &postgres::FLUSH,
    &kernel::OPEN_FILES,
    &kernel::BACKLOG,
    &kernel::PORTS,
    &kernel::CONTAINER,
    &timeline::TIMELINE,
    &checklist::BACKUP,
    &thresholds::THRESHOLD,
    &check::TREE,
    &check::LASTING,
];

impl Plan {
    /// The plan for a workload on a build with these settings.
    pub fn of(
        workload: Workload,
        figures: Figures,
        catalogue: Catalogue,
        known: &Known,
    ) -> Result<Plan, BadInput> {
        workload.check()?;
        let catalogue = catalogue.only(workload.provider.as_deref())?;
        let nodes = topology::nodes(&workload, &figures)?;
        let load = Load::of(&workload);
        let node = Demand::of(&workload, &figures, nodes);
        let tiers = tiers::tiers(&workload, &figures, nodes);
        let limits = NodeLimits::of(&workload, &load, nodes);
        let postgres = workload.postgres.then(|| Postgres::of(&load, nodes));
        let mut plan = Plan {
            schema_version: SCHEMA_VERSION,
            topologies: topology::options(&workload, &figures, &catalogue, nodes),
            settings: settings::settings(&workload, nodes, &limits, known),
            kernel: Kernel::of(&workload, &load, nodes, &limits),
            container: Container::of(&tiers[1], node.memory.resident_bytes()),
            growth: timeline::timeline(&workload, &figures, nodes, &tiers[1], &limits, &catalogue),
            checklist: Vec::new(),
            providers: catalogue.providers,
            workload,
            figures,
            load,
            nodes,
            node,
            tiers,
            limits,
            postgres,
        };
        plan.checklist = checklist::checklist(&plan);
        Ok(plan)
    }
}
