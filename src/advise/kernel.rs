//! Limits of the kernel on a node's machine, and of a node's container.

use serde::Serialize;

use super::load::Load;
use super::rule::Rule;
use super::settings::NodeLimits;
use super::tiers::Tier;
use super::units::GIB;
use super::workload::Workload;

/// Limits of one machine.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Kernel {
    pub open_files: u64,
    pub somaxconn: u64,
    /// Of the load balancer.
    pub balancer_connections: u64,
    pub body_max_bytes: u64,
    pub sysctl: Vec<Sysctl>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Sysctl {
    pub key: &'static str,
    pub value: String,
    pub why: String,
}

pub const OPEN_FILES: Rule = Rule {
    id: "kernel.open_files",
    title: "open files of the process",
    formula: "the next doubling of 65,536 above 2 × (connections + 1,024 for segments, the index and links)",
    inputs: "settings.connections",
    source: "StudyGuru: nofile 65,535; the journal keeps 128 segment files open",
    departs: "the server raises its soft limit to the hard one by itself, so only the hard one matters",
};

pub const BACKLOG: Rule = Rule {
    id: "kernel.backlog",
    title: "somaxconn and tcp_max_syn_backlog",
    formula: "somaxconn = the next doubling of 1,024 above the connections that come back at once after a node is lost (clients and streams of one node); \
              tcp_max_syn_backlog = 2 × that",
    inputs: "load.streams, settings.connections, nodes",
    source: "StudyGuru: 1,024 and 2,048",
    departs: "StudyGuru's Redis runs with tcp-backlog 511; a node has no Redis",
};

pub const PORTS: Rule = Rule {
    id: "kernel.ports",
    title: "ip_local_port_range",
    formula: "10000 65535",
    inputs: "none",
    source: "StudyGuru",
    departs: "only who dials needs ports: the load balancer, for each of its connections to one node",
};

pub const CONTAINER: Rule = Rule {
    id: "container.limits",
    title: "limits and reservations of a container or unit",
    formula: "limits = the recommended tier, less 0.5 GiB of memory for the system (a quarter on small machines); reservations = a quarter of the \
              CPU, and the memory budget",
    inputs: "tier.recommended, memory.*",
    source: "Flow-Like: limits of 8 CPUs and 16 GB, reservations of 2 and 4 (a quarter)",
    departs: "Orion leaves 1,150 of 4,096 MB to the system, because a proxy, a forge and CI run beside; nothing does here. \
              A quarter of the memory would be less than a node is known to take: the reservation is its budget.",
};

/// What a container may and shall have.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Container {
    pub cpu_limit: u64,
    pub cpu_reservation: f64,
    pub memory_limit_bytes: u64,
    pub memory_reservation_bytes: u64,
    pub disk_gb: u64,
}

impl Kernel {
    pub fn of(workload: &Workload, load: &Load, nodes: u64, limits: &NodeLimits) -> Kernel {
        let returning = load.open_streams / nodes as f64 + load.active_users / nodes as f64;
        let doubled = |least: u64, needed: f64| super::units::doubling(needed, least as f64) as u64;
        let somaxconn = doubled(1_024, returning.min(limits.max_connections as f64));
        let open_files = doubled(65_536, 2.0 * (limits.max_connections as f64 + 1_024.0));
        let setting = |key, value: String, why: &str| Sysctl { key, value, why: why.to_owned() };
        Kernel {
            open_files,
            somaxconn,
            // Each client's connection needs one to a node.
            balancer_connections: doubled(4_096, 2.0 * (load.open_streams + load.active_users)),
            body_max_bytes: (8u64 << 20).max(workload.message_bytes * 2),
            sysctl: vec![
                setting(
                    "net.core.somaxconn",
                    somaxconn.to_string(),
                    "connections that wait to be accepted, as after the loss of another node",
                ),
                setting(
                    "net.ipv4.tcp_max_syn_backlog",
                    (2 * somaxconn).to_string(),
                    "connections that are being made",
                ),
                setting(
                    "net.ipv4.ip_local_port_range",
                    "10000 65535".to_owned(),
                    "ports to dial from; for the load balancer",
                ),
                setting(
                    "fs.file-max",
                    doubled(1 << 20, 4.0 * open_files as f64).to_string(),
                    "open files of the whole machine",
                ),
            ],
        }
    }
}

impl Container {
    pub fn of(tier: &Tier, budget_bytes: f64) -> Container {
        let memory = tier.memory_gib.saturating_mul(GIB);
        let system = (memory / 4).min(GIB / 2);
        let limit = memory - system;
        Container {
            cpu_limit: tier.vcpu,
            cpu_reservation: tier.vcpu as f64 / 4.0,
            memory_limit_bytes: limit,
            memory_reservation_bytes: (budget_bytes as u64).min(limit),
            disk_gb: tier.disk_gb,
        }
    }
}
