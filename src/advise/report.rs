//! A plan as a report for people.

use super::Plan;
use super::document::{Document, Section};
use super::rule::Rule;
use super::units::{bits_per_second, bytes, count, memory, number, percent, rate, setting_size};

/// The whole plan.
pub fn report(plan: &Plan) -> Document {
    let workload = &plan.workload;
    let nodes = if plan.nodes == 1 { "one node".to_owned() } else { format!("{} nodes", plan.nodes) };
    let mut document =
        Document::new(format!("{} users ({}): {nodes}", count(workload.users), workload.preset));
    let sections = [
        workload_section(plan),
        load_section(plan),
        tier_section(plan),
        memory_section(plan),
        cpu_section(plan),
        disk_section(plan),
        topology_section(plan),
        settings_section(plan),
        kernel_section(plan),
    ];
    sections.into_iter().for_each(|section| document.push(section));
    if plan.postgres.is_some() {
        document.push(postgres_section(plan));
    }
    document.push(growth_section(plan));
    document.push(Section::new("Before going live").checklist(plan.checklist.clone()));
    document.push(source_section(plan));
    document
}

fn id(rule: &Rule) -> String {
    rule.id.to_owned()
}

fn workload_section(plan: &Plan) -> Section {
    let w = &plan.workload;
    let keep = w.tail_keep.map_or_else(|| "all".to_owned(), count);
    let row = |option: &str, value: String, what: &str| [option.to_owned(), value, what.to_owned()];
    Section::new("Workload").table(
        ["option", "value", "meaning"],
        vec![
            row("--users", count(w.users), "users in all"),
            row("--peak-share", percent(w.peak_share), "of them active at once in the busy hours"),
            row(
                "--messages-per-user-minute",
                number(w.messages_per_user_minute),
                "messages of an active user, both sides",
            ),
            row("--peak-factor", number(w.peak_factor), "highest rate, of the mean of the busy hours"),
            row("--busy-hours-per-day", number(w.busy_hours_per_day), "hours of a day like that"),
            row("--message-bytes", count(w.message_bytes), "bytes of a message's JSON"),
            row(
                "--tokens-per-message",
                count(w.tokens_per_message),
                "tokens of a message, counted by the server",
            ),
            row(
                "--messages-per-conversation",
                count(w.messages_per_conversation),
                "messages of a conversation",
            ),
            row("--windows-per-message", number(w.windows_per_message), "window reads for every message"),
            row("--window-messages", count(w.window_messages), "messages in a window"),
            row("--streams-share", percent(w.streams_share), "of the active users with an open stream"),
            row("--retention-days", count(w.retention_days), "days of messages that the disks are sized for"),
            row("--tail-keep", keep, "newest messages of a conversation that stay on the nodes"),
            row("--growth-per-month", percent(w.growth_per_month), "more users every month"),
        ],
    )
}

fn load_section(plan: &Plan) -> Section {
    use super::{disk, load, network};
    let (l, node) = (&plan.load, &plan.node);
    let row = |what: &str, mean: String, peak: String, rule: &Rule| [what.to_owned(), mean, peak, id(rule)];
    let both = |what: &str, mean: f64, peak: f64, rule: &Rule| row(what, rate(mean), rate(peak), rule);
    let peak = |what: &str, peak: String, rule: &Rule| row(what, "-".to_owned(), peak, rule);
    let sent = |what: &str, bytes_per_second: f64| {
        peak(&format!("network of a node, {what}"), bits_per_second(bytes_per_second), &network::NETWORK)
    };
    let written = format!("{}/s", bytes(node.disk.write_bytes_per_second_peak));
    let rows = vec![
        peak("active users", count(l.active_users.ceil() as u64), &load::ACTIVE_USERS),
        both("appends", l.appends_per_second_mean, l.appends_per_second_peak, &load::APPENDS),
        both("window reads", l.windows_per_second_mean, l.windows_per_second_peak, &load::WINDOWS),
        peak("open streams", count(l.open_streams.ceil() as u64), &load::STREAMS),
        peak("frames on streams", rate(l.stream_frames_per_second_peak), &load::STREAMS),
        peak("fsyncs of a node", rate(node.disk.fsyncs_per_second_peak), &disk::JOURNAL),
        peak("disk writes of a node", written, &disk::JOURNAL),
        sent("clients in", node.network.clients_in_bytes_per_second),
        sent("clients out", node.network.clients_out_bytes_per_second),
        sent("streams", node.network.streams_out_bytes_per_second),
        sent("other nodes", node.network.peers_bytes_per_second),
    ];
    Section::new("Load").table(["what", "busy hours", "peak", "rule"], rows).paragraph(format!(
        "A day adds {} messages, {} as sent and {} on each node's disk (load.day, disk.projection).",
        number(l.messages_per_day),
        bytes(l.message_bytes_per_day),
        bytes(node.disk.bytes_per_day)
    ))
}

fn tier_section(plan: &Plan) -> Section {
    let rows = plan.tiers.iter().map(|tier| {
        [
            tier.name.to_owned(),
            tier.vcpu.to_string(),
            format!("{} GiB", tier.memory_gib),
            format!("{} GB", count(tier.disk_gb)),
            bits_per_second(tier.network_mbit as f64 * 125_000.0),
            percent(tier.cpu_share),
            percent(tier.memory_share),
            percent(tier.disk_share),
        ]
    });
    Section::new(if plan.nodes == 1 { "Sizes of the node" } else { "Sizes of each node" })
        .table(["tier", "vCPU", "memory", "disk", "network", "CPU used", "memory", "disk"], rows.collect())
}

fn memory_section(plan: &Plan) -> Section {
    let (budget, tier) = (&plan.node.memory, &plan.tiers[1]);
    let whole = tier.memory_bytes();
    let row = |what: &str, value: f64, rule: &str| {
        [what.to_owned(), memory(value), percent(value / whole), rule.to_owned()]
    };
    let parts = budget.components.iter().filter(|part| part.bytes > 0.0);
    let mut rows: Vec<[String; 4]> = parts.map(|part| row(part.name, part.bytes, part.rule)).collect();
    rows.push(row("resident, together", budget.resident_bytes(), ""));
    rows.push(row("system and page cache", budget.system_bytes, super::memory::SYSTEM.id));
    rows.push(row("headroom", whole - budget.total_bytes(), super::tiers::RECOMMENDED.id));
    rows.push(row("recommended tier", whole, super::tiers::RECOMMENDED.id));
    Section::new("Memory budget of a node").table(["component", "memory", "share", "rule"], rows)
}

fn cpu_section(plan: &Plan) -> Section {
    let (mean, peak, lost) = (&plan.node.cpu_mean, &plan.node.cpu_peak, &plan.node.cpu_peak_one_lost);
    let row = |what: &str, of: fn(&super::cpu::Cpu) -> f64, rule: &str| {
        [what.to_owned(), number(of(mean)), number(of(peak)), number(of(lost)), rule.to_owned()]
    };
    Section::new("CPU of a node, in cores").table(
        ["work", "busy hours", "peak", "one node lost", "rule"],
        vec![
            row("idle", |cpu| cpu.idle_cores, super::cpu::IDLE.id),
            row("appends", |cpu| cpu.append_cores, super::cpu::APPEND.id),
            row("counting tokens", |cpu| cpu.token_cores, super::cpu::TOKENS.id),
            row("windows", |cpu| cpu.window_cores, super::cpu::WINDOWS.id),
            row("streams", |cpu| cpu.stream_cores, super::cpu::STREAMS.id),
            row("together", super::cpu::Cpu::total_cores, ""),
        ],
    )
}

fn disk_section(plan: &Plan) -> Section {
    let disk = &plan.node.disk;
    let row = |what: &str, value: f64, rule: &Rule| [what.to_owned(), bytes(value), id(rule)];
    Section::new(format!("Disk of a node after {} days", plan.workload.retention_days))
        .table(
            ["what", "bytes", "rule"],
            vec![
                row("journal", disk.journal_bytes, &super::disk::JOURNAL),
                row("index", disk.index_bytes, &super::disk::INDEX),
                row("prepared ahead, and reserve", disk.reserve_bytes, &super::disk::PROJECTION),
                row("together", disk.total_bytes(), &super::disk::PROJECTION),
            ],
        )
        .paragraph(format!(
            "A message of {} bytes takes {} bytes of the journal at the mean rate.",
            count(plan.workload.message_bytes),
            number(disk.journal_bytes_per_message)
        ))
}

fn topology_section(plan: &Plan) -> Section {
    let rows = plan.topologies.iter().map(|option| {
        let node = &option.node;
        [
            format!("{}{}", if option.chosen { "* " } else { "" }, option.name),
            format!("{} vCPU, {} GiB, {} GB", node.vcpu, node.memory_gib, count(node.disk_gb)),
            count(option.capacity_users),
            option.survives.to_owned(),
        ]
    });
    let costs = plan.topologies.iter().flat_map(|option| {
        option.costs.iter().map(move |cost| {
            let without = if cost.without.is_empty() {
                String::new()
            } else {
                format!("; not in it: {}", cost.without.join(", "))
            };
            [option.name.clone(), cost.provider.clone(), cost.amount(), format!("{}{without}", cost.of)]
        })
    });
    let mut section = Section::new("Topologies")
        .table(["nodes (* = this plan)", "each", "users it carries", "survives"], rows.collect())
        .table(["nodes", "provider", "a month", "what for"], costs.collect());
    let priced = plan.topologies.iter().all(|option| option.costs.len() == plan.providers.len());
    if !priced {
        section = section.paragraph(
            "Where a provider is missing, the catalogue has no machine of its that is large enough.",
        );
    }
    let sources = plan
        .providers
        .iter()
        .map(|provider| format!("{}: {} ({})", provider.name, provider.source, provider.date));
    section.list(sources.collect())
}

fn settings_section(plan: &Plan) -> Section {
    let rows = plan.settings.iter().map(|setting| {
        [setting.name.to_owned(), setting.value.clone(), setting.default.clone(), setting.why.clone()]
    });
    Section::new("Settings that differ from their defaults")
        .table(["variable", "value", "default", "why"], rows.collect())
}

fn kernel_section(plan: &Plan) -> Section {
    let (kernel, container) = (&plan.kernel, &plan.container);
    let files = [
        "open files (LimitNOFILE, nofile)".to_owned(),
        count(kernel.open_files),
        id(&super::kernel::OPEN_FILES),
    ];
    let rows =
        kernel.sysctl.iter().map(|limit| [limit.key.to_owned(), limit.value.clone(), limit.why.clone()]);
    let limits = Section::new("Limits of the machine and the container")
        .table(["limit", "value", "rule or reason"], [files].into_iter().chain(rows).collect());
    limits.table(
        ["container", "limit", "reservation", "rule"],
        vec![
            [
                "CPU".into(),
                container.cpu_limit.to_string(),
                number(container.cpu_reservation),
                id(&super::kernel::CONTAINER),
            ],
            [
                "memory".into(),
                memory(container.memory_limit_bytes as f64),
                memory(container.memory_reservation_bytes as f64),
                id(&super::kernel::CONTAINER),
            ],
        ],
    )
}

fn postgres_section(plan: &Plan) -> Section {
    let Some(postgres) = &plan.postgres else { return Section::default() };
    let row = |what: &str, value: String, rule: &Rule| [what.to_owned(), value, id(rule)];
    let mut rows = vec![
        row(
            "connections of the nodes",
            format!("{} × {} = {}", plan.nodes, postgres.pool_per_node, postgres.connections_of_all_nodes),
            &super::postgres::POOL,
        ),
        row("max_connections", count(postgres.max_connections), &super::postgres::POOL),
        row("shared_buffers", setting_size(postgres.shared_buffers_bytes), &super::postgres::DATABASE),
        row(
            "machine",
            format!("{} vCPU, {} GiB, {} GB", postgres.vcpu, postgres.memory_gib, count(postgres.disk_gb)),
            &super::postgres::DATABASE,
        ),
        row(
            "to be written between two looks, at the peak",
            format!(
                "{} messages, {} batches",
                number(postgres.messages_per_flush_peak),
                count(postgres.batches_per_flush_peak.ceil() as u64)
            ),
            &super::postgres::FLUSH,
        ),
    ];
    rows.push(match &postgres.pgbouncer {
        Some(pooler) => row(
            "PgBouncer",
            format!(
                "max_client_conn {}, default_pool_size {}",
                pooler.max_client_conn, pooler.default_pool_size
            ),
            &super::postgres::PGBOUNCER,
        ),
        None => row("PgBouncer", "not needed".to_owned(), &super::postgres::PGBOUNCER),
    });
    Section::new("Postgres").table(["what", "value", "rule"], rows)
}

fn growth_section(plan: &Plan) -> Section {
    let section = Section::new(format!("Growth of {} a month", percent(plan.workload.growth_per_month)))
        .paragraph("Disks begin empty, and nothing is deleted from them (growth.timeline).");
    if plan.growth.is_empty() {
        return section.paragraph(format!(
            "No limit of the recommended tier is crossed within {} months.",
            super::timeline::MONTHS
        ));
    }
    let rows = plan.growth.iter().map(|crossing| {
        [
            crossing.month.to_string(),
            count(crossing.users),
            crossing.limit.to_owned(),
            crossing.value.clone(),
            crossing.action.clone(),
        ]
    });
    section.table(["month", "users", "limit", "reached", "then"], rows.collect())
}

fn source_section(plan: &Plan) -> Section {
    let figures = &plan.figures;
    Section::new("Where the figures come from").paragraph(format!(
        "Costs of requests: {}, {}. `fastpaca advise explain RULE` has the formula, inputs and source of each rule; `fastpaca advise calibrate` measures this machine.",
        figures.measured_on, figures.measured_at
    ))
}
