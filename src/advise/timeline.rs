//! Growth: which month crosses which limit of the recommended size, and what to do then.

use serde::Serialize;

use super::catalogue::Catalogue;
use super::figures::Figures;
use super::load::Load;
use super::rule::Rule;
use super::settings::NodeLimits;
use super::tiers::{Demand, Tier};
use super::workload::Workload;

/// How far ahead is looked.
pub const MONTHS: u32 = 36;

/// A limit that is crossed.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Crossing {
    pub month: u32,
    pub users: u64,
    pub limit: &'static str,
    pub value: String,
    pub action: String,
}

pub const TIMELINE: Rule = Rule {
    id: "growth.timeline",
    title: "when growth crosses a limit",
    formula: "users × (1 + growth_per_month)^month, and the load of that many; a limit is crossed in the first month in which CPU (one node lost) is above 70 %, \
              memory or disk above 80 % of the recommended tier, or streams above 80 % of their setting",
    inputs: "--growth-per-month, tier.recommended, settings.streams",
    source: "Orion: launch, 1 to 3 months, 3 to 6, 6 to 12, then 12 and more, each with a trigger and an action; vertical first",
    departs: "Orion's stages are counted in clients and stores; here the month follows from the load",
};

/// Every limit that growth crosses within [`MONTHS`], the first first.
pub fn timeline(
    workload: &Workload,
    figures: &Figures,
    nodes: u64,
    tier: &Tier,
    limits: &NodeLimits,
    catalogue: &Catalogue,
) -> Vec<Crossing> {
    let mut crossings: Vec<Crossing> = Vec::new();
    if workload.growth_per_month == 0.0 {
        return crossings;
    }
    for month in 1..=MONTHS {
        let users =
            (workload.users as f64 * (1.0 + workload.growth_per_month).powi(month as i32)).min(1e12) as u64;
        let grown = Workload { users, ..workload.clone() };
        for (limit, share, most) in shares(&grown, figures, nodes, tier, limits) {
            if share > most && !crossings.iter().any(|crossing| crossing.limit == limit) {
                let value = format!("{} of the recommended tier's", super::units::percent(share));
                let value = if limit == STREAMS {
                    format!("{} of the setting", super::units::percent(share))
                } else {
                    value
                };
                crossings.push(Crossing {
                    month,
                    users,
                    limit,
                    value,
                    action: action(limit, tier, nodes, catalogue),
                });
            }
        }
    }
    crossings
}

const CPU: &str = "CPU";
const MEMORY: &str = "memory";
const DISK: &str = "disk";
const STREAMS: &str = "streams";

fn shares(
    workload: &Workload,
    figures: &Figures,
    nodes: u64,
    tier: &Tier,
    limits: &NodeLimits,
) -> [(&'static str, f64, f64); 4] {
    let demand = Demand::of(workload, figures, nodes);
    let left = nodes.saturating_sub(1).max(1) as f64;
    [
        (CPU, demand.cpu_peak_one_lost.total_cores() / tier.vcpu as f64, 0.7),
        (MEMORY, demand.memory.total_bytes() / tier.memory_bytes(), 0.8),
        (DISK, demand.disk.total_bytes() / tier.disk_bytes(), 0.8),
        (STREAMS, Load::of(workload).open_streams / left / limits.streams as f64, 0.8),
    ]
}

fn action(limit: &str, tier: &Tier, nodes: u64, catalogue: &Catalogue) -> String {
    let next = catalogue.providers.first().and_then(|provider| {
        let larger = |plan: &&super::catalogue::MachinePlan| match limit {
            CPU => plan.vcpu > tier.vcpu,
            MEMORY => plan.memory_gib > tier.memory_gib,
            _ => plan.disk_gb.is_some_and(|disk| disk > tier.disk_gb),
        };
        let plans = provider.plans.iter().filter(larger);
        let next = plans.min_by(|one, other| one.price_high.total_cmp(&other.price_high));
        next.map(|plan| format!(", such as {} of {}", plan.name, provider.title))
    });
    match (limit, next) {
        (STREAMS, _) => {
            "raise FASTPACA_STREAM_MAX_CONNECTIONS to twice as much, one node after the other".to_owned()
        }
        (DISK, Some(next)) => format!("vertical: a larger disk, or a larger machine{next}"),
        (DISK, None) => "vertical: a larger disk; or a shorter retention".to_owned(),
        (_, Some(next)) => format!("vertical: the next larger machine{next}, one node after the other"),
        (CPU, None) if nodes < 3 => {
            "horizontal: three nodes; they carry no more, but survive one; beyond three they share the load"
                .to_owned()
        }
        (CPU, None) => format!("horizontal: {} nodes; groups move there by themselves", nodes + 2),
        (_, None) => {
            "vertical: a machine with more memory than the catalogue has, or smaller caches".to_owned()
        }
    }
}
