//! Growth: which month crosses which limit of the recommended size, and what to do then. Users become more every month;
//! what they write stays on the disks.

use serde::Serialize;

use super::catalogue::Catalogue;
use super::disk::{Disk, could_trim_more};
use super::figures::Figures;
use super::load::Load;
use super::memory::Memory;
use super::rule::Rule;
use super::settings::NodeLimits;
use super::tiers::{Demand, Tier};
use super::workload::Workload;

/// How far ahead is looked.
pub const MONTHS: u32 = 36;
/// Of a month.
const DAYS: u64 = 30;

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
    formula: "users × (1 + growth_per_month)^month, and the load of that many; on the disk, which begins empty, 30 days of messages for every month, by the users at its \
              beginning, and nothing leaves it for its age; a limit is crossed in the first month at whose end CPU (one node lost) is above 70 %, memory or disk \
              above 80 % of the recommended tier, or streams above 80 % of their setting",
    inputs: "--growth-per-month, load.day, disk.journal, disk.index, tier.recommended, settings.streams",
    source: "Orion: launch, 1 to 3 months, 3 to 6, 6 to 12, then 12 and more, each with a trigger and an action; vertical first",
    departs: "Orion's stages are counted in clients and stores; here the month follows from the load. Orion moves a young system on above 70 % of its disk: here it \
              is 80 %, as of `advise check`, since the month is known before.",
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
    let mut stored = Stored::default();
    for month in 1..=MONTHS {
        stored.add_month(&after(workload, month - 1), figures, nodes);
        let grown = after(workload, month);
        for (limit, share, most) in shares(&grown, stored, figures, nodes, tier, limits) {
            if share > most && !crossings.iter().any(|crossing| crossing.limit == limit) {
                let of = if limit == STREAMS { "the setting" } else { "the recommended tier's" };
                crossings.push(Crossing {
                    month,
                    users: grown.users,
                    limit,
                    value: format!("{} of {of}", super::units::percent(share)),
                    action: action(limit, workload, tier, nodes, catalogue),
                });
            }
        }
    }
    crossings
}

/// The same with the users that there are after so many months.
fn after(workload: &Workload, months: u32) -> Workload {
    let growth = (1.0 + workload.growth_per_month).powi(months as i32);
    let users = (workload.users as f64 * growth).min(1e12) as u64;
    Workload { users, ..workload.clone() }
}

/// Bytes that have come to a node's disk since it was empty.
#[derive(Debug, Clone, Copy, Default)]
struct Stored {
    journal_bytes: f64,
    index_bytes: f64,
}

impl Stored {
    fn add_month(&mut self, workload: &Workload, figures: &Figures, nodes: u64) {
        let month = Workload { retention_days: DAYS, ..workload.clone() };
        let disk = Disk::of(&month, &Load::of(&month), figures, nodes);
        self.journal_bytes += disk.journal_bytes;
        self.index_bytes += disk.index_bytes;
    }
}

const CPU: &str = "CPU";
const MEMORY: &str = "memory";
const DISK: &str = "disk";
const STREAMS: &str = "streams";

/// Of each limit, what is used, and the most that it should be.
fn shares(
    workload: &Workload,
    stored: Stored,
    figures: &Figures,
    nodes: u64,
    tier: &Tier,
    limits: &NodeLimits,
) -> [(&'static str, f64, f64); 4] {
    let (demand, load) = (Demand::of(workload, figures, nodes), Load::of(workload));
    let memory = Memory::of(workload, &load, figures, nodes, stored.index_bytes);
    let disk_bytes = stored.journal_bytes + stored.index_bytes + demand.disk.reserve_bytes;
    let left = nodes.saturating_sub(1).max(1) as f64;
    [
        (CPU, demand.cpu_peak_one_lost.total_cores() / tier.vcpu as f64, 0.7),
        (MEMORY, memory.total_bytes() / tier.memory_bytes(), 0.8),
        (DISK, disk_bytes / tier.disk_bytes(), 0.8),
        (STREAMS, load.open_streams / left / limits.streams as f64, 0.8),
    ]
}

fn action(limit: &str, workload: &Workload, tier: &Tier, nodes: u64, catalogue: &Catalogue) -> String {
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
    let trimming = match workload.tail_keep {
        _ if !could_trim_more(workload) => "",
        None => "; or FASTPACA_TAIL_KEEP with an archive (--tail-keep)",
        Some(_) => "; or a smaller FASTPACA_TAIL_KEEP",
    };
    match (limit, next) {
        (STREAMS, _) => {
            "raise FASTPACA_STREAM_MAX_CONNECTIONS to twice as much, one node after the other".to_owned()
        }
        (DISK, Some(next)) => format!("vertical: a larger disk, or a larger machine{next}{trimming}"),
        (DISK, None) => format!("vertical: a larger disk{trimming}"),
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

#[cfg(test)]
mod tests {
    use super::*;

    /// A message of 750 bytes takes 1,000 of the journal and none of the index. 1,000 users who send one a minute for 10 hours
    /// send 600,000 a day: 18 GB in a month of 30 days. The reserve is 384 MiB, 0.403 GB.
    fn disk_of_100_gb(change: impl FnOnce(&mut Workload)) -> Vec<Crossing> {
        let figures = Figures {
            frame_bytes: 250.0,
            block_bytes: 1_000.0,
            quiet_seconds: 1e9,
            index_bytes_per_conversation: 0.0,
            index_bytes_per_message: 0.0,
            ..Figures::built_in()
        };
        let mut workload = Workload {
            peak_share: 1.0,
            messages_per_user_minute: 1.0,
            peak_factor: 1.0,
            busy_hours_per_day: 10.0,
            message_bytes: 750,
            streams_share: 0.0,
            growth_per_month: 0.0,
            ..Workload::preset("1k-users").unwrap()
        };
        change(&mut workload);
        let tier = Tier {
            name: "of the test",
            vcpu: 64,
            memory_gib: 1_024,
            disk_gb: 100,
            network_mbit: 1_000,
            cpu_share: 0.0,
            memory_share: 0.0,
            disk_share: 0.0,
        };
        let limits = NodeLimits::of(&workload, &Load::of(&workload), 1);
        timeline(&workload, &figures, 1, &tier, &limits, &Catalogue::built_in())
    }

    #[track_caller]
    fn assert_only(crossings: &[Crossing], month: u32, users: u64, value: &str) {
        let seen: Vec<_> = crossings
            .iter()
            .map(|crossing| (crossing.limit, crossing.month, crossing.users, crossing.value.as_str()))
            .collect();
        assert_eq!(seen, [(DISK, month, users, value)]);
    }

    #[test]
    fn what_is_written_gathers_on_the_disk() {
        // 4 × 18 + 0.403 = 72.4 GB are not yet 80 %; 5 × 18 + 0.403 = 90.4 are.
        let value = "90.4 % of the recommended tier's";
        assert_only(&disk_of_100_gb(|_| {}), 5, 1_000, value);
        // For how long the disk was sized is no age at which anything is deleted.
        assert_only(&disk_of_100_gb(|workload| workload.retention_days = 1), 5, 1_000, value);
        // 18 + 19.8 + 21.78 = 59.58 GB; + 23.958, of 1,331 users, + 0.403 = 83.9. By the end of that month there are 1,464.
        let value = "83.9 % of the recommended tier's";
        assert_only(&disk_of_100_gb(|workload| workload.growth_per_month = 0.1), 4, 1_464, value);
    }

    #[test]
    fn trimming_is_advised_where_it_gains_something() {
        let action = |messages_per_conversation, tail_keep| {
            let crossings = disk_of_100_gb(|workload| {
                (workload.messages_per_conversation, workload.tail_keep) =
                    (messages_per_conversation, tail_keep);
            });
            crossings[0].action.clone()
        };
        assert!(!action(50, None).contains("FASTPACA_TAIL_KEEP"), "what is this short is never trimmed");
        assert!(action(512, None).ends_with("; or FASTPACA_TAIL_KEEP with an archive (--tail-keep)"));
        assert!(action(512, Some(256)).ends_with("; or a smaller FASTPACA_TAIL_KEEP"));
        // Of 512 messages 128 stay: 4.5 GB in a month, 17 × 4.5 + 0.403 = 76.9, 18 × 4.5 + 0.403 = 81.4 GB.
        assert_only(
            &disk_of_100_gb(|workload| {
                (workload.messages_per_conversation, workload.tail_keep) = (512, Some(128));
            }),
            18,
            1_000,
            "81.4 % of the recommended tier's",
        );
    }
}
