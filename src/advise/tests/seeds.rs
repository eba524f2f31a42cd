//! The guides' worked examples beside what the rules make of the same numbers, line by line. Where a guide's arithmetic is
//! for something else (Python workers, MySQL), the case shows by how much, and the rule says why.

use crate::advise::catalogue::{Catalogue, Need};
use crate::advise::figures::Figures;
use crate::advise::load::Load;
use crate::advise::memory::Memory;
use crate::advise::postgres::Postgres;
use crate::advise::settings::{Known, NodeLimits};
use crate::advise::thresholds::{Level, Signal, of};
use crate::advise::tiers::tiers;
use crate::advise::workload::{Nodes, Workload};
use crate::advise::{Plan, RULES};

fn thousand() -> Workload {
    Workload::preset("1k-users").unwrap()
}

fn departs(id: &str) -> &'static str {
    RULES.iter().find(|rule| rule.id == id).unwrap().departs
}

/// StudyGuru, "Resource Calculation".
#[test]
fn active_users_and_requests() {
    let load = Load::of(&thousand());
    // "Peak concurrent active: 200-300 users (20-30% of total)"; "Active Users: 300".
    assert_eq!(load.active_users, 300.0);
    // "200 users × 3 req/min = 600 req/min", "50 users × 1 req/min = 50 req/min", "~11 req/s".
    let guide: f64 = (200.0 * 3.0 + 50.0 * 1.0) / 60.0;
    assert_eq!(guide.round(), 11.0);
    // All 300 at 3 a minute.
    assert_eq!(load.appends_per_second_mean, 15.0);
    // "peak: ~50 req/s".
    assert!((load.appends_per_second_peak - 50.0).abs() < 1e-9);
    // "WebSocket connections: 150 active connections".
    assert_eq!(load.open_streams, 150.0);
    assert!(departs("load.appends").contains("about 11/s"));
    let as_the_guide = Workload { messages_per_user_minute: 650.0 / 300.0, ..thousand() };
    assert_eq!(Load::of(&as_the_guide).appends_per_second_mean.round(), 11.0);
}

/// StudyGuru: workers = 2 × cores + 1; Orion: the same, 9 for 4.
#[test]
fn workers() {
    let workers = |cores: u64| 2 * cores + 1;
    assert_eq!((workers(8), workers(4)), (17, 9));
    // A node has one thread a core, which is the default, so that no setting is advised.
    let plan =
        Plan::of(thousand(), Figures::built_in(), Catalogue::built_in(), &Known::this_build()).unwrap();
    assert!(plan.settings.iter().all(|setting| setting.name != "FASTPACA_WORKER_THREADS"));
    assert!(departs("cpu.append").contains("17 for 8 cores"));
}

/// Pools: StudyGuru 50 + 20, Orion 10 + 20 = 30 with an alert above 20, Fastpaca 20, Flow-Like max_connections=200.
#[test]
fn pools() {
    let load = Load::of(&thousand());
    let postgres = |nodes| Postgres::of(&load, nodes);
    let of = |nodes: u64| {
        (
            postgres(nodes).connections_of_all_nodes,
            postgres(nodes).max_connections,
            postgres(nodes).pgbouncer.is_some(),
        )
    };
    assert_eq!(of(1), (20, 100, false));
    assert_eq!(of(3), (60, 100, false));
    assert_eq!(of(5), (100, 200, false));
    assert_eq!(of(8), (160, 200, false));
    // Beyond Flow-Like's 200, Orion's PgBouncer.
    assert_eq!(of(9), (180, 100, true));
    assert_eq!(postgres(9).pgbouncer.unwrap().default_pool_size, 20);
    assert!(departs("postgres.pool").contains("10 + 20 = 30"));
    // "Connection pool: ~100-200 connections" of "4 CPU, 8GB".
    assert_eq!((postgres(3).vcpu, postgres(3).memory_gib, postgres(3).shared_buffers_bytes), (4, 8, 2 << 30));
}

/// Flow-Like: "With 3 instances × 10 concurrent = 30 total concurrent executions".
#[test]
fn instances_times_concurrency() {
    assert_eq!(3 * 10, 30);
    let at_once = |nodes: u64| nodes * crate::config::defaults().max_inflight_requests as u64;
    assert_eq!(at_once(3), 3_072);
    assert!(departs("topology.concurrency").contains("three nodes whichever takes it"));
}

/// Flow-Like: "Development 1, 1, 2 CPU, 4GB", "Small team 1, 2, 4 CPU, 8GB", "Medium 2, 4, 4 CPU, 8GB", "Large 3+, 6+, 8 CPU, 16GB".
#[test]
fn sizes_of_deployments() {
    let cases = [
        ("development", "Development 1 API and 1 runtime of 2 CPU and 4 GB", 2, 4),
        ("small-team", "Small team 1 and 2 of 4 CPU and 8 GB", 4, 8),
        ("medium", "Medium 2 and 4 of 4 CPU and 8 GB", 4, 8),
        ("large", "Large 3 and 6 or more of 8 CPU and 16 GB", 8, 16),
    ];
    for (preset, said, cpu, gb) in cases {
        let workload = Workload::preset(preset).unwrap();
        let plan =
            Plan::of(workload, Figures::built_in(), Catalogue::built_in(), &Known::this_build()).unwrap();
        let tier = &plan.tiers[1];
        assert!(tier.vcpu <= cpu && tier.memory_gib <= gb, "{preset}: {tier:?}");
        assert!(departs("workload.presets").contains(said), "{preset}");
    }
}

/// Fastpaca: "Snapshot the volume regularly (EBS/GCE disk snapshots)".
#[test]
fn backups() {
    assert!(departs("backup").contains("Snapshot the volume regularly"));
    let plan =
        Plan::of(thousand(), Figures::built_in(), Catalogue::built_in(), &Known::this_build()).unwrap();
    assert!(plan.checklist.iter().any(|item| item.contains("not snapshots of volumes")));
}

/// Fastpaca: "keep Raft replicas within the same AZ or region (<5 ms RTT)".
#[test]
fn round_trips() {
    let level = |ms| of(Signal::RoundTrip).level(ms);
    assert_eq!([5.0, 5.1].map(level), [Level::Fine, Level::Soon]);
}

/// Orion: the CAX plans and their prices.
#[test]
fn cax_plans() {
    let catalogue = Catalogue::built_in();
    let hetzner = &catalogue.providers[0];
    for (name, vcpu, memory_gib, disk_gb, price) in [
        ("CAX11", 2, 4, 40, 4.5),
        ("CAX21", 4, 8, 80, 7.5),
        ("CAX31", 8, 16, 160, 14.5),
        ("CAX41", 16, 32, 320, 27.5),
    ] {
        let cost = hetzner.cost(1, Need { vcpu, memory_gib, disk_gb }, false).unwrap();
        assert_eq!((cost.of.as_str(), cost.low, cost.high), (name, price, price));
    }
    assert_eq!(hetzner.date, "2026-02-17");
}

/// StudyGuru's monthly costs of the machine for 1,000 users.
#[test]
fn costs_of_the_guide() {
    let catalogue = Catalogue::built_in();
    let need = Need { vcpu: 8, memory_gib: 32, disk_gb: 1 };
    let cost = |at: usize, database| catalogue.providers[at].cost(1, need, database).unwrap();
    assert_eq!((cost(1, false).low, cost(1, false).high, cost(1, true).high), (150.0, 200.0, 350.0));
    assert_eq!((cost(2, false).low, cost(2, true).low), (160.0, 250.0));
    assert_eq!((cost(3, false).low, cost(3, false).high), (50.0, 80.0));
}

/// The tiers of StudyGuru for 1,000 users are 8, 16 and 32 vCPU; Fastpaca's guide says 2+ vCPU and 4 GB a node.
#[test]
fn tiers_of_a_thousand_users() {
    let tiers = tiers(&thousand(), &Figures::built_in(), 3);
    assert!(tiers.iter().all(|tier| tier.vcpu <= 8));
    assert_eq!((tiers[1].vcpu, tiers[1].memory_gib), (2, 4));
    for id in ["tier.minimum", "tier.recommended"] {
        assert!(departs(id).contains("StudyGuru"));
    }
}

/// StudyGuru: "WebSocket/SSE connections: ~50-100 MB per 100 connections".
#[test]
fn memory_of_streams() {
    let hundred = Workload { users: 100, peak_share: 1.0, streams_share: 1.0, ..thousand() };
    let load = Load::of(&hundred);
    let memory = Memory::of(&hundred, &load, &Figures::built_in(), 1, 0.0);
    let streams = memory.components.iter().find(|component| component.name == "streams").unwrap().bytes;
    assert!(streams < 50e6 / 5.0, "{streams}");
    assert!(departs("memory.streams").contains("50 to 100 MB"));
}

/// Orion's memory budget: 2,176 + 672 = 2,848 of 4,096 MB, the rest to the system. Ours adds up to the tier as well.
#[test]
fn a_memory_budget_with_headroom() {
    assert_eq!((512 + 128 + 512 + 512 + 256 + 256, 256 + 192 + 64 + 128 + 32), (2_176, 672));
    let plan =
        Plan::of(thousand(), Figures::built_in(), Catalogue::built_in(), &Known::this_build()).unwrap();
    let budget = plan.node.memory.total_bytes();
    assert!(budget < 2_848.0 * 1_048_576.0 && plan.tiers[1].memory_gib == 4, "{budget}");
}

/// 80 %, 85 %, 70 %, 90 %, 1 s and 1 % are the guides'.
#[test]
fn thresholds_of_the_guides() {
    let level = |signal, value| of(signal).level(value);
    assert_eq!(
        [0.80, 0.81, 0.86].map(|share| level(Signal::Memory, share)),
        [Level::Fine, Level::Soon, Level::Now]
    );
    assert_eq!(
        [0.70, 0.71, 0.81].map(|share| level(Signal::Cpu, share)),
        [Level::Fine, Level::Soon, Level::Now]
    );
    assert_eq!(
        [0.80, 0.81, 0.91].map(|share| level(Signal::DiskUsed, share)),
        [Level::Fine, Level::Soon, Level::Now]
    );
    assert_eq!(level(Signal::AppendLatencyP95, 1_001.0), Level::Now);
    assert_eq!([0.01, 0.011].map(|share| level(Signal::Errors, share)), [Level::Fine, Level::Soon]);
    assert_eq!(of(Signal::Cpu).minutes, 5);
}

/// Fastpaca: "Per-node websocket limit: 512"; 150 streams of 1,000 users fit.
#[test]
fn streams_fit_the_default_until_they_do_not() {
    let limits = |users| {
        let workload = Workload { users, nodes: Nodes::Three, ..thousand() };
        NodeLimits::of(&workload, &Load::of(&workload), 3).streams
    };
    // 3 nodes, one lost: 75 of 512 a node; at 6,000 users 450 of 512 would be above 80 %.
    assert_eq!((limits(1_000), limits(5_400), limits(6_000)), (512, 512, 1_024));
}
