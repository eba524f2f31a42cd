//! What the model predicts of a server, beside what the server takes, under presets scaled to one machine.
//!
//! A preset is scaled by its number of users, to a rate that one machine serves beside the load generator. What is measured
//! runs at the peak rate from the first second to the last; so the prediction is for that rate, and for what was written
//! by then.

use crate::Error;
use crate::drive::{self, Seen, Traffic};
use crate::server::{Sample, Server, Taken};
use fastpaca::advise::cpu::{At, Cpu};
use fastpaca::advise::figures::Figures;
use fastpaca::advise::load::Load;
use fastpaca::advise::memory::{Memory, Written};
use fastpaca::advise::network::Network;
use fastpaca::advise::settings::{Known, NodeLimits, PER_SITE, settings};
use fastpaca::advise::workload::{Nodes, Workload};
use std::path::Path;
use std::time::Duration;

const WARMUP: Duration = Duration::from_secs(10);

/// Presets, and users to scale them to.
const CASES: [(&str, u64); 3] = [("small-team", 400), ("1k-users", 4_000), ("large", 15_000)];

const CPU_SHARE: f64 = 0.30;
const MEMORY_SHARE: f64 = 0.30;
const DISK_SHARE: f64 = 0.15;
/// Nothing was asked of the network; it is shown, and held to this.
const NETWORK_SHARE: f64 = 0.15;

/// One figure, predicted and measured.
struct Row {
    what: &'static str,
    unit: &'static str,
    predicted: f64,
    measured: f64,
    within: f64,
}

pub(crate) async fn run(dir: &Path, seconds: f64) -> Result<(), Error> {
    println!(
        "| preset | figure | predicted | measured | off by | allowed | |\n| --- | --- | --- | --- | --- | --- | --- |"
    );
    let mut missed = 0;
    for (preset, users) in CASES {
        let workload = Workload::preset(preset).ok_or("a preset has gone")?;
        let workload = Workload { users, nodes: Nodes::One, ..workload };
        for row in prove(dir, &workload, Duration::from_secs_f64(seconds)).await? {
            let off = row.predicted / row.measured - 1.0;
            let is_within = off.abs() <= row.within;
            missed += usize::from(!is_within);
            println!(
                "| {preset}, {users} users | {} | {:.3} {} | {:.3} {} | {:+.0} % | {:.0} % | {} |",
                row.what,
                row.predicted,
                row.unit,
                row.measured,
                row.unit,
                off * 100.0,
                row.within * 100.0,
                if is_within { "within" } else { "**off**" }
            );
        }
    }
    if missed == 0 { Ok(()) } else { Err(format!("{missed} figures are off").into()) }
}

async fn prove(dir: &Path, workload: &Workload, measure: Duration) -> Result<Vec<Row>, Error> {
    let load = Load::of(workload);
    let limits = NodeLimits::of(workload, &load, 1);
    let advised = settings(workload, 1, &limits, &Known::this_build());
    let advised: Vec<(String, String)> =
        advised.into_iter().filter(|s| s.value != PER_SITE).map(|s| (s.name.to_owned(), s.value)).collect();
    let server = Server::start(dir, &advised)?;
    let traffic = Traffic {
        appends_per_second: load.appends_per_second_peak,
        windows_per_append: workload.windows_per_message,
        message_bytes: workload.message_bytes as usize,
        own_token_count: workload.tokens_per_message == 0,
        conversations: load.conversations_active as u64,
        streams: load.open_streams as u64,
    };
    server.create(traffic.conversations, workload.window_messages).await?;
    let batch = crate::text::append_body(
        &mut crate::text::Random::new(1),
        workload.window_messages as usize,
        traffic.message_bytes,
        true,
    );
    server.fill(traffic.conversations, &batch).await?;
    let (seen, before, after) = watched(&server, traffic, (WARMUP, measure)).await?;
    Ok(rows(workload, &load, &limits, &seen, &after.since(&before), &after))
}

/// Runs the traffic, and looks at the server at both ends of the measurement.
pub(crate) async fn watched(
    server: &Server,
    traffic: Traffic,
    times: (Duration, Duration),
) -> Result<(Seen, Sample, Sample), Error> {
    let (tell, mut edges) = tokio::sync::mpsc::unbounded_channel();
    let load = drive::run(server.address(), traffic, times, move || Ok(tell.send(())?));
    let samples = async {
        edges.recv().await.ok_or("the load did not begin")?;
        let before = server.sample().await?;
        edges.recv().await.ok_or("the load did not end")?;
        Ok::<_, Error>((before, server.sample().await?))
    };
    let (seen, samples) = tokio::join!(load, samples);
    let (before, after) = samples?;
    Ok((seen?, before, after))
}

fn rows(
    workload: &Workload,
    load: &Load,
    limits: &NodeLimits,
    seen: &Seen,
    taken: &Taken,
    after: &Sample,
) -> Vec<Row> {
    let figures = Figures::built_in();
    let cpu = Cpu::of(workload, load, &figures, 1, At::Peak).total_cores();
    // In the journal's log, an entry is an append: the first messages of a conversation came in one.
    let messages = after.appended();
    let entries = messages - load.conversations_active * (workload.window_messages as f64 - 2.0);
    let written = Written { messages, entries, conversations: load.conversations_active };
    let memory = Memory::after(workload, load, &figures, (1, limits), written, after.index());
    // The load generator's clients share a few connections.
    let connections = load.active_users - drive::CONNECTIONS as f64;
    let resident = memory.resident_bytes() - connections * figures.connection_bytes;
    let journal =
        taken.appended * figures.journal_bytes(workload.message_bytes as f64, load.appends_per_second_peak);
    let network = Network::of(workload, load, &figures, 1);
    let out = network.clients_out_bytes_per_second + network.streams_out_bytes_per_second;
    let row = |what, unit, predicted, measured, within| Row { what, unit, predicted, measured, within };
    vec![
        row("CPU", "cores", cpu, taken.cores, CPU_SHARE),
        row("resident memory", "MB", resident / 1e6, taken.resident_bytes as f64 / 1e6, MEMORY_SHARE),
        row(
            "growth of the disk",
            "kB/s",
            journal / taken.seconds / 1e3,
            taken.journal_bytes / taken.seconds / 1e3,
            DISK_SHARE,
        ),
        row(
            "network in",
            "kB/s",
            network.clients_in_bytes_per_second / 1e3,
            seen.sent_bytes as f64 / taken.seconds / 1e3,
            NETWORK_SHARE,
        ),
        row(
            "network out",
            "kB/s",
            out / 1e3,
            seen.received_bytes as f64 / taken.seconds / 1e3,
            NETWORK_SHARE,
        ),
    ]
}
