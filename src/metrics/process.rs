//! The process's own figures, read from `/proc` when they are asked for. Zero where there is no `/proc`.

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{Counter, Gauge, Registry};

/// Linux reports CPU time in ticks of 10 ms on every supported architecture.
const TICKS_PER_SECOND: f64 = 100.0;

struct Process {
    cpu_seconds: Counter,
    resident_bytes: Gauge,
    open_files: Gauge,
    threads: Gauge,
    start_time: Gauge,
}

pub(super) fn register(registry: &Registry) {
    let process = Process {
        cpu_seconds: super::valid(Counter::new("process_cpu_seconds_total", "User and system CPU time.")),
        resident_bytes: super::valid(Gauge::new("process_resident_memory_bytes", "Resident memory.")),
        open_files: super::valid(Gauge::new("process_open_fds", "Open file descriptors.")),
        threads: super::valid(Gauge::new("process_threads", "Threads.")),
        start_time: super::valid(Gauge::new(
            "process_start_time_seconds",
            "Start of the process, Unix time.",
        )),
    };
    process.start_time.set(start_time().unwrap_or(0.0));
    super::register(registry, process);
}

impl Collector for Process {
    fn desc(&self) -> Vec<&Desc> {
        let mut all = self.cpu_seconds.desc();
        for gauge in [&self.resident_bytes, &self.open_files, &self.threads, &self.start_time] {
            all.extend(gauge.desc());
        }
        all
    }

    fn collect(&self) -> Vec<MetricFamily> {
        if let Some(fields) = stat_fields("/proc/self/stat") {
            let field = |n: usize| fields.get(n - 3).and_then(|f| f.parse::<f64>().ok()).unwrap_or(0.0);
            let cpu = (field(14) + field(15)) / TICKS_PER_SECOND;
            self.cpu_seconds.inc_by((cpu - self.cpu_seconds.get()).max(0.0));
            self.threads.set(field(20));
            self.resident_bytes.set(field(24) * rustix::param::page_size() as f64);
        }
        if let Ok(files) = std::fs::read_dir("/proc/self/fd") {
            self.open_files.set(files.count() as f64);
        }
        let mut all = self.cpu_seconds.collect();
        for gauge in [&self.resident_bytes, &self.open_files, &self.threads, &self.start_time] {
            all.extend(gauge.collect());
        }
        all
    }
}

/// Fields of a stat file from the third on: those after the command name, which may hold spaces.
fn stat_fields(path: &str) -> Option<Vec<String>> {
    let text = std::fs::read_to_string(path).ok()?;
    let (_, rest) = text.rsplit_once(')')?;
    Some(rest.split_whitespace().map(str::to_owned).collect())
}

fn start_time() -> Option<f64> {
    let ticks: f64 = stat_fields("/proc/self/stat")?.get(19)?.parse().ok()?;
    let stat = std::fs::read_to_string("/proc/stat").ok()?;
    let boot: f64 = stat.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()?;
    Some(boot + ticks / TICKS_PER_SECOND)
}
