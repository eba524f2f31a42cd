//! What the process may use: cores, memory, disk. Beside what it does use, these tell how much room is left.

use std::fs;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::thread::available_parallelism;

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{Gauge, Registry};

/// Cores and memory do not change while a process runs; disks do, and are looked at when asked.
struct Room {
    cores: Gauge,
    memory_bytes: Gauge,
    disk_bytes: Gauge,
    data_dir: PathBuf,
}

pub(super) fn register(registry: &Registry, data_dir: &Path) {
    let room = Room {
        cores: gauge(
            "fastpaca_available_cores",
            "Cores this process may use: quota of its control group, else the machine's.",
        ),
        memory_bytes: gauge(
            "fastpaca_available_memory_bytes",
            "Memory this process may use: the limit of its control group, else the machine's.",
        ),
        disk_bytes: gauge(
            "fastpaca_disk_size_bytes",
            "Size of the disk of the data directory, what others may not use excluded.",
        ),
        data_dir: data_dir.to_owned(),
    };
    room.cores.set(available_parallelism().map_or(1, NonZeroUsize::get) as f64);
    room.memory_bytes.set(available_memory_bytes());
    super::register(registry, room);
}

fn gauge(name: &str, help: &str) -> Gauge {
    super::valid(Gauge::new(name, help))
}

impl Collector for Room {
    fn desc(&self) -> Vec<&Desc> {
        [&self.cores, &self.memory_bytes, &self.disk_bytes]
            .into_iter()
            .flat_map(|gauge| gauge.desc())
            .collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        if let Ok(disk) = rustix::fs::statvfs(&self.data_dir) {
            // Blocks kept for the superuser are neither free nor usable here.
            let blocks = disk.f_blocks - disk.f_bfree + disk.f_bavail;
            self.disk_bytes.set(blocks as f64 * disk.f_frsize as f64);
        }
        [&self.cores, &self.memory_bytes, &self.disk_bytes]
            .into_iter()
            .flat_map(|gauge| gauge.collect())
            .collect()
    }
}

/// Where the kernel says what there is of memory.
pub(crate) const MEMINFO: &str = "/proc/meminfo";

/// The smallest of what the machine has and what control groups allow. Zero where neither can be read.
fn available_memory_bytes() -> f64 {
    let own_group = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let own_group =
        own_group.lines().find_map(|line| line.strip_prefix("0::/")).unwrap_or_default().to_owned();
    let limits = [
        format!("/sys/fs/cgroup/{own_group}/memory.max"),
        "/sys/fs/cgroup/memory.max".to_owned(),
        "/sys/fs/cgroup/memory/memory.limit_in_bytes".to_owned(),
    ];
    let limits = limits.iter().filter_map(|file| fs::read_to_string(file).ok()?.trim().parse::<f64>().ok());
    let machine = fs::read_to_string(MEMINFO).ok().and_then(|text| meminfo_bytes(&text, "MemTotal"));
    limits.chain(machine).reduce(f64::min).unwrap_or(0.0)
}

/// A figure of [`MEMINFO`].
pub(crate) fn meminfo_bytes(meminfo: &str, name: &str) -> Option<f64> {
    let value = meminfo.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    Some(value.trim().strip_suffix(" kB")?.parse::<f64>().ok()? * 1_024.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_room() {
        let registry = Registry::new();
        register(&registry, Path::new("/"));
        let families = registry.gather();
        assert_eq!(families.len(), 3);
        for family in families {
            let value = family.get_metric()[0].get_gauge().get_value();
            assert!(value >= 1.0, "{} {value}", family.name());
        }
        assert_eq!(meminfo_bytes("MemTotal:       1024 kB\nMemFree: 1 kB\n", "MemTotal"), Some(1_048_576.0));
    }
}
