use proptest::prelude::*;

use crate::advise::cpu::{At, Cpu};
use crate::advise::document::COLUMNS;
use crate::advise::figures::Figures;
use crate::advise::load::Load;
use crate::advise::postgres::{FLUSH_BATCH_SIZE, FLUSH_INTERVAL_MS, POOL_SIZE};
use crate::advise::settings::Known;
use crate::advise::tiers::{Demand, tiers};
use crate::advise::workload::{Nodes, PRESETS, Workload};
use crate::advise::{Plan, RULES, catalogue::Catalogue, report, rule};

fn workload() -> impl Strategy<Value = Workload> {
    let people = (1u64..2_000_000, 0.01..=1.0, 0.1..20.0, 1.0..10.0, 1.0..=24.0);
    let messages = (50u64..20_000, 0u64..50, 1u64..500, 0.0..5.0, 1u64..200);
    let rest = (
        0.0..=1.0,
        1u64..400,
        prop_oneof![Just(Nodes::One), Just(Nodes::Three), Just(Nodes::Auto)],
        0.0..0.5,
    );
    (people, messages, rest).prop_map(|(people, messages, rest)| Workload {
        users: people.0,
        peak_share: people.1,
        messages_per_user_minute: people.2,
        peak_factor: people.3,
        busy_hours_per_day: people.4,
        message_bytes: messages.0,
        tokens_per_message: messages.1,
        messages_per_conversation: messages.2,
        windows_per_message: messages.3,
        window_messages: messages.4,
        streams_share: rest.0,
        retention_days: rest.1,
        nodes: rest.2,
        growth_per_month: rest.3,
        ..Workload::preset("1k-users").unwrap()
    })
}

fn plan(workload: Workload) -> Result<Plan, crate::advise::workload::BadInput> {
    Plan::of(workload, Figures::built_in(), Catalogue::built_in(), &Known::this_build())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn more_load_never_asks_for_less(workload in workload(), more in 1.0..4.0f64, nodes in prop_oneof![Just(1u64), Just(3), Just(5)]) {
        let grown = [
            Workload { users: (workload.users as f64 * more).ceil() as u64, ..workload.clone() },
            Workload { messages_per_user_minute: workload.messages_per_user_minute * more, ..workload.clone() },
            Workload { message_bytes: (workload.message_bytes as f64 * more) as u64, ..workload.clone() },
            Workload { windows_per_message: workload.windows_per_message * more, ..workload.clone() },
            Workload { retention_days: (workload.retention_days as f64 * more) as u64, ..workload.clone() },
            Workload { peak_factor: workload.peak_factor * more, ..workload.clone() },
            Workload { tokens_per_message: (workload.tokens_per_message as f64 * more) as u64, ..workload.clone() },
        ];
        let figures = Figures::built_in();
        let before = tiers(&workload, &figures, nodes);
        for (at, grown) in grown.iter().enumerate() {
            for (after, before) in tiers(grown, &figures, nodes).iter().zip(&before) {
                prop_assert!(after.vcpu >= before.vcpu, "{at}: {after:?} {before:?}");
                prop_assert!(after.memory_gib >= before.memory_gib, "{at}: {after:?} {before:?}");
                prop_assert!(after.disk_gb >= before.disk_gb, "{at}: {after:?} {before:?}");
                prop_assert!(after.network_mbit >= before.network_mbit, "{at}: {after:?} {before:?}");
            }
        }
    }

    #[test]
    fn every_tier_covers_its_load_and_the_next_is_no_smaller(workload in workload()) {
        let Ok(plan) = plan(workload) else { return Ok(()) };
        for tier in &plan.tiers {
            prop_assert!(tier.vcpu as f64 >= plan.node.cpu_peak.total_cores());
            prop_assert!(tier.memory_bytes() >= plan.node.memory.total_bytes());
            prop_assert!(tier.disk_bytes() >= plan.node.disk.total_bytes());
            prop_assert!(tier.network_mbit as f64 * 125_000.0 >= plan.node.network.busier_bytes_per_second());
            prop_assert!(tier.cpu_share <= 0.8 && tier.memory_share <= 0.85 && tier.disk_share <= 0.9, "{tier:?}");
        }
        for pair in plan.tiers.windows(2) {
            prop_assert!(pair[0].vcpu <= pair[1].vcpu && pair[0].memory_gib <= pair[1].memory_gib && pair[0].disk_gb <= pair[1].disk_gb);
        }
    }

    #[test]
    fn totals_add_up(workload in workload()) {
        let Ok(plan) = plan(workload.clone()) else { return Ok(()) };
        let near = |one: f64, other: f64| (one - other).abs() <= 1e-9 * one.abs().max(other.abs()).max(1.0);
        let load = Load::of(&workload);
        prop_assert!(near(load.messages_per_day * workload.retention_days as f64, load.messages_kept));
        let memory = &plan.node.memory;
        let parts: f64 = memory.components.iter().map(|component| component.bytes).sum();
        prop_assert!(near(parts + memory.system_bytes, memory.total_bytes()));
        // What the nodes do together does not depend on which of them does it.
        let figures = Figures::built_in();
        let cpu = Cpu::of(&workload, &load, &figures, plan.nodes, At::Peak);
        let parts = cpu.idle_cores + cpu.append_cores + cpu.token_cores + cpu.window_cores + cpu.stream_cores;
        prop_assert!(near(parts, cpu.total_cores()));
        let disks: Vec<f64> = [1u64, 3, 6].iter().map(|nodes| Demand::of(&workload, &figures, *nodes).disk.journal_bytes).collect();
        prop_assert!(near(disks[0], disks[1]) && disks[2] >= disks[1] * 0.499);
        for topology in &plan.topologies {
            for cost in &topology.costs {
                prop_assert!(cost.low <= cost.high && cost.low >= 0.0);
            }
        }
        prop_assert_eq!(plan.topologies.iter().filter(|topology| topology.chosen).count(), 1);
    }

    #[test]
    fn reports_fit_and_are_finite(workload in workload()) {
        let Ok(plan) = plan(workload) else { return Ok(()) };
        let text = report::report(&plan).text(false);
        for line in text.lines() {
            prop_assert!(line.chars().count() <= COLUMNS, "{}", line);
        }
        prop_assert!(!text.contains("NaN") && !text.contains("inf"), "{}", text);
    }
}

#[test]
fn every_capacity_is_at_least_what_was_asked_for() {
    for preset in PRESETS {
        let plan = plan(Workload::preset(preset).unwrap()).unwrap();
        for topology in plan.topologies.iter().filter(|topology| topology.chosen) {
            assert!(topology.capacity_users >= plan.workload.users, "{preset}: {topology:?}");
        }
    }
}

#[test]
fn every_rule_of_a_report_can_be_explained_and_every_setting_exists() {
    let known = Known::this_build();
    for preset in PRESETS {
        for nodes in [Nodes::One, Nodes::Three, Nodes::Auto] {
            let plan = plan(Workload { nodes, ..Workload::preset(preset).unwrap() }).unwrap();
            for setting in &plan.settings {
                assert!(known.knows(setting.name), "{}", setting.name);
            }
            for component in &plan.node.memory.components {
                assert!(RULES.iter().any(|rule| rule.id == component.rule));
            }
        }
    }
    for rule in RULES {
        assert_eq!(RULES.iter().filter(|other| other.id == rule.id).count(), 1, "{}", rule.id);
        assert!(!rule.formula.is_empty() && !rule.inputs.is_empty() && !rule.source.is_empty());
        assert!(rule::explain(RULES, Some(rule.id)).is_some());
    }
    assert!(rule::explain(RULES, Some("nothing")).is_none());
}

/// Every `FASTPACA_*` that any text of this module names is a setting of this build.
#[test]
fn every_variable_that_is_named_exists() {
    let known = Known::this_build();
    let mut named = 0;
    let texts =
        RULES.iter().flat_map(|rule| [rule.title, rule.formula, rule.inputs, rule.source, rule.departs]);
    let texts = texts.chain(
        crate::advise::thresholds::THRESHOLDS.iter().flat_map(|row| [row.title, row.action, row.source]),
    );
    for text in texts {
        for word in
            text.split(|c: char| !(c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_' || c == '*'))
        {
            let is_pattern = word.contains('*');
            if word.starts_with("FASTPACA_") && !is_pattern {
                named += 1;
                assert!(known.knows(word), "{word} in {text}");
            }
        }
    }
    assert!(named > 10, "{named}");
}

#[test]
fn an_archive_is_advised_where_it_is_asked_for() {
    for nodes in [Nodes::One, Nodes::Three, Nodes::Auto] {
        for postgres in [false, true] {
            let plan = plan(Workload { nodes, postgres, ..Workload::preset("large").unwrap() }).unwrap();
            assert_eq!(plan.settings.iter().any(|setting| setting.name == "FASTPACA_POSTGRES_URL"), postgres);
            let chosen = plan.topologies.iter().find(|topology| topology.chosen).unwrap();
            assert_eq!((chosen.nodes, chosen.archive), (plan.nodes, postgres));
            assert_eq!(report::report(&plan).text(false).contains("max_connections"), postgres);
        }
    }
}

/// What the rules say of the archive's settings is what they are.
#[test]
fn the_archive_has_the_defaults_that_the_rules_speak_of() {
    let defaults: std::collections::BTreeMap<_, _> = crate::config::variables().into_iter().collect();
    let default = |name: &str| defaults[name].unwrap().parse::<u64>().unwrap();
    assert_eq!(default("FASTPACA_POSTGRES_POOL_SIZE"), POOL_SIZE);
    assert_eq!(default("FASTPACA_FLUSH_INTERVAL_MS"), FLUSH_INTERVAL_MS);
    assert_eq!(default("FASTPACA_FLUSH_BATCH_SIZE"), FLUSH_BATCH_SIZE);
}

#[test]
fn what_no_cluster_carries_is_refused_by_name() {
    let absurd = Workload {
        users: 1_000_000_000,
        messages_per_user_minute: 10_000.0,
        peak_factor: 1_000.0,
        ..Workload::preset("large").unwrap()
    };
    let line = plan(absurd).unwrap_err().to_string();
    assert!(line.starts_with("--users: the peak of") && line.lines().count() == 1, "{line}");
}
