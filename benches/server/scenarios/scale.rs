//! Many conversations and much history: memory, disk, idle cost and restarts.

use super::{BATCH, Bench, Fresh, MESSAGE_BYTES};
use crate::Error;
use crate::load::{Conversations, Extent, Load, Order, Request};
use crate::process::{START_MAX, cpu_time, resident_bytes};
use crate::report::{Verdict, megabytes, seconds};
use crate::run::measure;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

/// Messages of every one of the many conversations, and their size.
const FEW: usize = 3;
const SHORT_MESSAGE_BYTES: usize = 120;

const RESIDENT_BYTES_MAX: u64 = 700_000_000;
const READY_AFTER_KILL_MAX: Duration = Duration::from_secs(5);
const IDLE_CORE_MAX: f64 = 0.01;

/// Time for a server to finish what it does behind its answers, before its resident memory is read.
const SETTLE: Duration = Duration::from_secs(5);

impl Bench {
    pub(super) fn idle(&mut self) -> Result<(), Error> {
        let server = self.fresh_server()?;
        let core = self.idle_core(&server)?;
        self.report.title("a server with nothing to do");
        let limit = format!("< {:.0} %", IDLE_CORE_MAX * 100.0);
        self.report.bar(
            "idle CPU, of one core",
            format!("{:.2} %", core * 100.0),
            limit,
            Verdict::of(core < IDLE_CORE_MAX),
        );
        Ok(())
    }

    /// Share of one core used over a while without requests.
    fn idle_core(&self, server: &Fresh) -> Result<f64, Error> {
        std::thread::sleep(SETTLE.min(self.scale.idle));
        let (begin, before) = (Instant::now(), cpu_time(server.process.pid())?);
        std::thread::sleep(self.scale.idle);
        let used = cpu_time(server.process.pid())? - before;
        Ok(used.as_secs_f64() / begin.elapsed().as_secs_f64())
    }

    /// Fills a server, and leaves it running for what comes after.
    pub(super) fn memory(&mut self) -> Result<Fresh, Error> {
        let server = self.fresh_server()?;
        let count = self.scale.memory_conversations;
        self.report
            .heading(&format!("{count} conversations of {FEW} messages of {SHORT_MESSAGE_BYTES} bytes"));
        let begin = Instant::now();
        self.create_conversations(&server.process, count)?;
        let few = Request::Append { events: FEW, message_bytes: SHORT_MESSAGE_BYTES, own_token_count: true };
        self.prepare(&server.process, few, count, count)?;
        self.report.figure("filled in", seconds(begin.elapsed()));
        self.report.figure("resident right after", megabytes(resident_bytes(server.process.pid())?));
        let few_resident = settled_resident(&server, self.scale.idle)?;
        let few_bytes = count * (FEW * SHORT_MESSAGE_BYTES) as u64;
        let limit = format!("< {}", megabytes(RESIDENT_BYTES_MAX));
        self.report.bar(
            "resident",
            megabytes(few_resident),
            limit.clone(),
            Verdict::of(few_resident < RESIDENT_BYTES_MAX),
        );
        self.disk_figure(&server, "disk per byte of message", few_bytes)?;

        let begin = Instant::now();
        let peak = self.grow(&server)?;
        self.report.figure(
            &format!("grown by {} in", megabytes(self.scale.memory_growth_bytes)),
            seconds(begin.elapsed()),
        );
        let grown_resident = settled_resident(&server, self.scale.idle)?;
        let ratio = grown_resident as f64 / few_resident as f64;
        self.report.figure("highest resident meanwhile", megabytes(peak));
        self.report.bar(
            "resident after growth",
            megabytes(grown_resident),
            limit,
            Verdict::of(grown_resident < RESIDENT_BYTES_MAX),
        );
        self.report.bar(
            "resident after growth, × before",
            format!("{ratio:.2} ×"),
            "0.9 to 1.1 ×",
            Verdict::of((0.9..=1.1).contains(&ratio)),
        );
        self.disk_figure(
            &server,
            "disk per byte of message, after growth",
            few_bytes + self.scale.memory_growth_bytes,
        )?;
        let core = self.idle_core(&server)?;
        self.report.figure("idle CPU with all that, of one core", format!("{:.2} %", core * 100.0));
        Ok(server)
    }

    /// Appends history to conversations all over the place, and says how much memory that took at most.
    fn grow(&self, server: &Fresh) -> Result<u64, Error> {
        /// Pieces between two looks at the memory.
        const PIECES: u64 = 20;
        let requests = self.scale.memory_growth_bytes / (BATCH * MESSAGE_BYTES) as u64;
        let mut peak = 0;
        for piece in 0..PIECES {
            let load = Load {
                addresses: vec![server.process.address()],
                connections: self.scale.connections,
                extent: Extent::Requests(requests / PIECES),
                request: Request::Append {
                    events: BATCH,
                    message_bytes: MESSAGE_BYTES,
                    own_token_count: true,
                },
                conversations: Conversations::Range {
                    first: piece * self.scale.memory_conversations / PIECES,
                    count: self.scale.memory_conversations / PIECES,
                },
                order: Order::Scattered,
            };
            measure(&load, server.process.pid())?;
            peak = peak.max(resident_bytes(server.process.pid())?);
        }
        Ok(peak)
    }

    fn disk_figure(&mut self, server: &Fresh, label: &str, message_bytes: u64) -> Result<(), Error> {
        let bytes = disk_bytes(server.node.data_dir())?;
        self.report.figure(
            label,
            format!(
                "{:.2} ({} for {})",
                bytes as f64 / message_bytes as f64,
                megabytes(bytes),
                megabytes(message_bytes)
            ),
        );
        Ok(())
    }

    pub(super) fn restart(&mut self, mut server: Fresh) -> Result<(), Error> {
        self.report.title("restart after kill -9, with that data");
        server.process.kill();
        let begin = Instant::now();
        server.process = server.node.spawn()?;
        server.process.wait_ready(START_MAX)?;
        let ready = begin.elapsed();
        let limit = format!("< {}", seconds(READY_AFTER_KILL_MAX));
        self.report.bar(
            "ready after kill -9",
            seconds(ready),
            limit,
            Verdict::of(ready < READY_AFTER_KILL_MAX),
        );
        server.process.kill();
        let dropped = drop_page_cache();
        let begin = Instant::now();
        server.process = server.node.start()?;
        let cache =
            if dropped { "the page cache dropped" } else { "the page cache warm (root could drop it)" };
        self.report.figure(&format!("ready again, {cache}"), seconds(begin.elapsed()));
        self.report.figure("resident then", megabytes(settled_resident(&server, self.scale.idle)?));
        Ok(())
    }
}

impl Fresh {
    /// The same server after an end without warning, with nothing of its files in memory where that can be arranged.
    pub(super) fn killed_and_restarted_cold(mut self) -> Result<Fresh, Error> {
        self.process.kill();
        drop_page_cache();
        self.process = self.node.start()?;
        Ok(self)
    }
}

fn settled_resident(server: &Fresh, wait: Duration) -> Result<u64, Error> {
    std::thread::sleep(SETTLE.min(wait));
    Ok(resident_bytes(server.process.pid())?)
}

/// Blocks that the files below a directory occupy; a file that goes away meanwhile counts for nothing.
fn disk_bytes(dir: &Path) -> Result<u64, Error> {
    /// `st_blocks` counts these whatever the file system's own blocks are.
    const BLOCK_BYTES: u64 = 512;
    let mut total = 0;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        total += match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => disk_bytes(&entry.path())?,
            Ok(metadata) => metadata.blocks() * BLOCK_BYTES,
            Err(_) => 0,
        };
    }
    Ok(total)
}

/// Makes the kernel forget what it has read of files; true when it was allowed to (root only).
fn drop_page_cache() -> bool {
    rustix::fs::sync();
    fs::write("/proc/sys/vm/drop_caches", "3").is_ok()
}
