//! Three sizes of a node: the least that carries the load, the one to take, and one with room for twice as much.

use serde::Serialize;

use super::cpu::{At, Cpu};
use super::disk::Disk;
use super::figures::Figures;
use super::load::Load;
use super::memory::Memory;
use super::network::Network;
use super::rule::Rule;
use super::units::{GB, GIB, doubling};
use super::workload::Workload;

/// A size of a node. Everything is per node.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Tier {
    pub name: &'static str,
    pub vcpu: u64,
    pub memory_gib: u64,
    pub disk_gb: u64,
    pub network_mbit: u64,
    /// Of the vCPU, at the load that the tier is made for.
    pub cpu_share: f64,
    pub memory_share: f64,
    pub disk_share: f64,
}

/// What one node must carry.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Demand {
    pub nodes: u64,
    pub cpu_mean: Cpu,
    pub cpu_peak: Cpu,
    pub cpu_peak_one_lost: Cpu,
    pub memory: Memory,
    pub disk: Disk,
    pub network: Network,
}

pub const MINIMUM: Rule = Rule {
    id: "tier.minimum",
    title: "the least that carries the load",
    formula: "vCPU = peak / 0.80, memory = budget / 0.85, disk = projection / 0.90, network = twice the peak; at least 1 vCPU, 1 GiB, 20 GB, 100 Mbit/s; vCPU \
              and memory in doublings",
    inputs: "cpu.*, memory.*, disk.projection, network.node",
    source: "the levels `now` of the thresholds: a node of this size is about to be too small",
    departs: "Fastpaca's guide asks for 2 vCPU and 4 GB, StudyGuru's minimum for 1,000 users is 8 vCPU, 16 GB and 100 GB, LoonFlow's 4 vCPU, 8 GB and 40 GB, \
              with database, cache and models on board. What a node takes was measured, and is less.",
};

pub const RECOMMENDED: Rule = Rule {
    id: "tier.recommended",
    title: "the size to take",
    formula: "vCPU = peak with one node lost / 0.70, memory = budget / 0.80, disk = projection of 6 months' growth / 0.80, network = 4 × the peak; at least \
              2 vCPU, 4 GiB, 40 GB, 1 Gbit/s",
    inputs: "cpu.*, memory.*, disk.projection, network.node, --growth-per-month",
    source: "the levels `soon` of the thresholds; the floor is Fastpaca's guide (2+ vCPU, 4 GB) with the disk of a CAX11 (Orion)",
    departs: "StudyGuru recommends 16 vCPU, 32 GB and 200 GB for 1,000 users: FastAPI, model calls, MySQL and Redis together",
};

pub const HIGH: Rule = Rule {
    id: "tier.high",
    title: "room for twice as much",
    formula: "as recommended, at twice the load and with 12 months' growth of the disk; at least twice the recommended floor",
    inputs: "as tier.recommended",
    source: "StudyGuru: each of its tiers is twice the one before",
    departs: "",
};

/// Targets and floors of a tier.
struct Aim {
    name: &'static str,
    load_factor: f64,
    one_lost: bool,
    growth_months: i32,
    cpu_share: f64,
    memory_share: f64,
    disk_share: f64,
    network_factor: f64,
    floor: (u64, u64, u64, u64),
}

const AIMS: [Aim; 3] = [
    Aim {
        name: "minimum",
        load_factor: 1.0,
        one_lost: false,
        growth_months: 0,
        cpu_share: 0.80,
        memory_share: 0.85,
        disk_share: 0.90,
        network_factor: 2.0,
        floor: (1, 1, 20, 100),
    },
    Aim {
        name: "recommended",
        load_factor: 1.0,
        one_lost: true,
        growth_months: 6,
        cpu_share: 0.70,
        memory_share: 0.80,
        disk_share: 0.80,
        network_factor: 4.0,
        floor: (2, 4, 40, 1_000),
    },
    Aim {
        name: "high-performance",
        load_factor: 2.0,
        one_lost: true,
        growth_months: 12,
        cpu_share: 0.70,
        memory_share: 0.80,
        disk_share: 0.80,
        network_factor: 4.0,
        floor: (4, 8, 80, 1_000),
    },
];

impl Tier {
    pub fn memory_bytes(&self) -> f64 {
        self.memory_gib as f64 * GIB as f64
    }

    pub fn disk_bytes(&self) -> f64 {
        self.disk_gb as f64 * GB as f64
    }
}

impl Demand {
    pub fn of(workload: &Workload, figures: &Figures, nodes: u64) -> Demand {
        let load = Load::of(workload);
        let disk = Disk::of(workload, &load, figures, nodes);
        Demand {
            nodes,
            cpu_mean: Cpu::of(workload, &load, figures, nodes, At::Mean),
            cpu_peak: Cpu::of(workload, &load, figures, nodes, At::Peak),
            cpu_peak_one_lost: Cpu::of(workload, &load, figures, nodes, At::PeakOneLost),
            memory: Memory::of(workload, &load, figures, nodes, disk.index_bytes),
            disk,
            network: Network::of(workload, &load, figures, nodes),
        }
    }
}

/// The three sizes of one of `nodes`.
pub fn tiers(workload: &Workload, figures: &Figures, nodes: u64) -> Vec<Tier> {
    AIMS.iter().map(|aim| aim.tier(workload, figures, nodes)).collect()
}

impl Aim {
    fn tier(&self, workload: &Workload, figures: &Figures, nodes: u64) -> Tier {
        let workload = scaled(workload, self.load_factor);
        let demand = Demand::of(&workload, figures, nodes);
        let cpu = if self.one_lost { demand.cpu_peak_one_lost } else { demand.cpu_peak };
        let (cores, memory) = (cpu.total_cores(), demand.memory.total_bytes());
        let growth = (1.0 + workload.growth_per_month).powi(self.growth_months);
        let disk = demand.disk.total_bytes() * growth;
        let network = demand.network.busier_bytes_per_second() * 8.0 / 1e6 * self.network_factor;
        let (vcpu, gib, gb, mbit) = self.floor;
        let vcpu = doubling(cores / self.cpu_share, vcpu as f64);
        let gib = doubling(memory / self.memory_share / GIB as f64, gib as f64);
        let gb = disk_gb(disk / self.disk_share).max(gb);
        Tier {
            name: self.name,
            vcpu: vcpu as u64,
            memory_gib: gib as u64,
            disk_gb: gb,
            network_mbit: if network <= mbit as f64 {
                mbit
            } else {
                doubling(network / 10.0, mbit as f64 / 10.0) as u64 * 10
            },
            cpu_share: cores / vcpu,
            memory_share: memory / (gib * GIB as f64),
            disk_share: disk / (gb as f64 * GB as f64),
        }
    }
}

/// The same users, more or fewer of them. Fractions of users are for arithmetic only.
pub fn scaled(workload: &Workload, factor: f64) -> Workload {
    let users = (workload.users as f64 * factor).ceil().max(1.0);
    Workload { users: users as u64, ..workload.clone() }
}

/// A disk as it is sold: 20 GB, 40, 80, and doublings.
pub fn disk_gb(bytes: f64) -> u64 {
    doubling(bytes / GB as f64, 20.0) as u64
}
