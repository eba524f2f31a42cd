//! The journal beside the disk it runs on: 600-byte entries over 256 groups, waiting for completion
//! after every 1, 64 or 512 appends, and in the same run a bare `pwrite` + `fdatasync` of the same
//! bytes into a preallocated file. Run with `cargo bench --bench journal`; the directory is
//! `JOURNAL_BENCH_DIR`, or a temporary one.
//!
//! Journal and floor take turns in short rounds, and the median round counts, so that a disk whose
//! speed wanders favours neither.

#![allow(clippy::print_stdout)] // A bench reports on its standard output.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use fastpaca::journal::{Completion, Draft, FrameKind, Journal, OnBatch, Options, RealDisk, ScanFrom};
use parking_lot::Mutex;

const ENTRY_BYTES: usize = 600;
const GROUPS: u64 = 256;
const ROUND: Duration = Duration::from_millis(500);
const ROUNDS: usize = 7;
const FLOOR_FILE_BYTES: u64 = 256 << 20;
const BLOCK_BYTES: usize = 4096;

fn main() {
    let temporary = tempfile::tempdir().expect("a temporary directory");
    let dir = std::env::var_os("JOURNAL_BENCH_DIR").map_or(temporary.path().to_owned(), PathBuf::from);
    let mut floor = Floor::new(&dir.join("floor"));
    let mut subject = Subject::new(&dir.join("journal"));
    println!("{ENTRY_BYTES}-byte entries over {GROUPS} groups, medians of {ROUNDS} rounds of {ROUND:?}");
    println!(
        "{:>6} {:>14} {:>14} {:>7} {:>14} {:>14} {:>14}",
        "batch", "journal/s", "floor/s", "ratio", "fsync p50 us", "fsync p99 us", "CPU us/entry"
    );
    for batch in [1, 64, 512] {
        let mut rounds: Vec<(Rate, Rate)> =
            (0..ROUNDS).map(|_| (measure(|| floor.write(batch), batch), subject.measure(batch))).collect();
        let (p50, p99) = subject.observer.take_percentiles();
        let median = |of: fn(&(Rate, Rate)) -> f64, rounds: &mut Vec<(Rate, Rate)>| {
            rounds.sort_by(|a, b| of(a).total_cmp(&of(b)));
            of(&rounds[ROUNDS / 2])
        };
        let bare = median(|r| r.0.per_second, &mut rounds);
        let journal = median(|r| r.1.per_second, &mut rounds);
        let ratio = median(|r| r.1.per_second / r.0.per_second, &mut rounds);
        let cpu = median(|r| r.1.cpu_us, &mut rounds);
        println!(
            "{batch:>6} {journal:>14.0} {bare:>14.0} {ratio:>7.2} {:>14} {:>14} {cpu:>14.2}",
            p50.as_micros(),
            p99.as_micros(),
        );
    }
}

#[derive(Clone, Copy)]
struct Rate {
    per_second: f64,
    cpu_us: f64,
}

/// Repeats `one` for a round; each makes `entries` durable.
fn measure(mut one: impl FnMut(), entries: usize) -> Rate {
    let (begun, cpu, mut done) = (Instant::now(), cpu_seconds(), 0);
    while begun.elapsed() < ROUND {
        one();
        done += entries;
    }
    Rate {
        per_second: done as f64 / begun.elapsed().as_secs_f64(),
        cpu_us: (cpu_seconds() - cpu) * 1e6 / done as f64,
    }
}

/// CPU time of this process, in steps of 10 ms.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").expect("a /proc file system");
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or("").split_whitespace().collect();
    let ticks = |n: usize| fields[n].parse::<f64>().unwrap_or(0.0);
    (ticks(11) + ticks(12)) / 100.0
}

/// One write and one fdatasync, of block-aligned bytes, in a file of zeros.
struct Floor {
    file: File,
    at: u64,
    bytes: Vec<u8>,
}

impl Floor {
    fn new(path: &Path) -> Self {
        let file = File::create(path).expect("the floor's file");
        let zeros = vec![0; 1 << 20];
        for at in (0..FLOOR_FILE_BYTES).step_by(zeros.len()) {
            file.write_all_at(&zeros, at).expect("zeros");
        }
        file.sync_all().expect("synced zeros");
        Floor { file, at: 0, bytes: vec![0xA5; 512 * ENTRY_BYTES + BLOCK_BYTES] }
    }

    fn write(&mut self, batch: usize) {
        let len = (batch * ENTRY_BYTES).next_multiple_of(BLOCK_BYTES);
        if self.at + len as u64 > FLOOR_FILE_BYTES {
            self.at = 0;
        }
        self.file.write_all_at(&self.bytes[..len], self.at).expect("a write");
        self.file.sync_data().expect("an fsync");
        self.at += len as u64;
    }
}

#[derive(Default)]
struct Syncs {
    times: Mutex<Vec<Duration>>,
}

impl Syncs {
    /// Median and 99th percentile of the journal's fsyncs since the last call.
    fn take_percentiles(&self) -> (Duration, Duration) {
        let mut times = std::mem::take(&mut *self.times.lock());
        times.sort_unstable();
        (times[times.len() / 2], times[times.len() * 99 / 100])
    }
}

struct Subject {
    journal: Journal,
    observer: Arc<Syncs>,
    payload: Vec<u8>,
    next_group: u64,
}

impl Subject {
    fn new(path: &Path) -> Self {
        let disk = Arc::new(RealDisk::open(path).expect("the journal's directory"));
        let observer = Arc::new(Syncs::default());
        let observed = Arc::clone(&observer);
        let on_batch: OnBatch = Arc::new(move |report| observed.times.lock().push(report.sync));
        let options = Options { on_batch, ..Options::new(1) };
        let opened = Journal::open(options, disk, ScanFrom::Beginning, &mut |_| Ok(()));
        let (journal, _) = opened.expect("an open journal");
        Subject { journal, observer, payload: vec![0x5A; ENTRY_BYTES], next_group: 0 }
    }

    fn measure(&mut self, batch: usize) -> Rate {
        let rate = measure(|| self.append(batch), batch);
        // History is not what is measured: give the disk its space back.
        let journal = &self.journal;
        block_on(journal.checkpoint(journal.end(), b"")).expect("a checkpoint");
        let active = journal.stats().active_segment;
        journal.remove_segments_before(active).expect("removed segments");
        rate
    }

    /// One append for each entry, as that many groups would; the last completion ends the wait.
    fn append(&mut self, batch: usize) {
        let (sender, synced) = mpsc::sync_channel(batch);
        for _ in 0..batch {
            self.next_group = (self.next_group + 1) % GROUPS;
            let group = self.next_group as u16;
            let draft = [Draft { kind: FrameKind::Entry, group, payload: &[&self.payload] }];
            let sender = sender.clone();
            let done: Completion = Box::new(move |result| sender.send(result).expect("a waiting bench"));
            block_on(self.journal.append(&draft, Some(done))).expect("an append");
        }
        for _ in 0..batch {
            synced.recv().expect("a completion").expect("a synced batch");
        }
    }
}

/// Runs a future. An append is ready at once unless it waits for room.
fn block_on<F: Future>(future: F) -> F::Output {
    let mut future = std::pin::pin!(future);
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    loop {
        if let std::task::Poll::Ready(output) = future.as_mut().poll(&mut context) {
            return output;
        }
        std::thread::yield_now();
    }
}
