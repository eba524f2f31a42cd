//! Appends and windows: rates and latencies under load.

use super::{BATCH, Bench, Fresh, MESSAGE_BYTES};
use crate::Error;
use crate::group_commit::GroupCommit;
use crate::load::{Conversations, Extent, Load, Order, Outcome, Request};
use crate::report::Verdict;
use crate::run::{Measured, Reference, measure, measure_in_turns};
use crate::text::{Random, append_body};
use std::cell::Cell;
use std::path::Path;
use std::time::{Duration, Instant};

/// Durable batch appends that suffice whatever the disk can do, in events a second.
const BATCH_EVENTS_PER_SECOND: f64 = 100_000.0;

fn single(own_token_count: bool) -> Request {
    Request::Append { events: 1, message_bytes: MESSAGE_BYTES, own_token_count }
}

impl Bench {
    pub(super) fn appends(&mut self) -> Result<(), Error> {
        let server = self.fresh_server()?;
        let floor_dir = self.temp_dir()?;
        let (noop, floor) = (Reference::noop(None)?, Reference::floor(floor_dir.path())?);
        let conversations = self.scale.conversations;
        self.create_conversations(&server.process, conversations)?;
        let loads = |request, connections| {
            let load = |address, request| self.timed(address, request, conversations, connections);
            [
                (load(noop.address, request), noop.pid()),
                (load(floor.address, request), floor.pid()),
                (load(server.process.address(), request), server.process.pid()),
                (load(server.process.address(), single(false)), server.process.pid()),
            ]
        };
        let many = measure_in_turns(&loads(single(true), self.scale.connections), self.scale.rounds)?;
        let one = measure_in_turns(&loads(single(true), 1), self.scale.rounds)?;

        let title = format!("durable single appends, {MESSAGE_BYTES} bytes, {conversations} conversations");
        self.report.heading(&format!("{title}, {} connections", self.scale.connections));
        self.append_rows(&many);
        let [noop, floor, own, counted] = &many[..] else {
            return Err("four loads give four results".into());
        };
        let worth = floor.rate() / noop.rate();
        let verdict = if worth >= 0.5 { Verdict::Pass } else { Verdict::Void };
        self.report.bar("the floor beside the no-op server", format!("{worth:.2} ×"), ">= 0.5 ×", verdict);
        for (name, fastpaca) in [("own token counts", own), ("counted here", counted)] {
            self.report.at_least(
                &format!("append rate, {name}, × floor"),
                fastpaca.rate() / floor.rate(),
                0.5,
            );
            let p99 = fastpaca.outcome.p99_us as f64 / floor.outcome.p99_us as f64;
            self.report.at_most(&format!("append p99, {name}, × floor"), p99, 3.0);
        }

        self.report.heading(&format!("{title}, 1 connection"));
        self.append_rows(&one);
        let [_, floor, own, counted] = &one[..] else { return Err("four loads give four results".into()) };
        for (name, fastpaca) in [("own token counts", own), ("counted here", counted)] {
            let p50 = fastpaca.outcome.p50_us as f64 / floor.outcome.p50_us as f64;
            self.report.at_most(&format!("append p50 at 1 connection, {name}, × floor"), p50, 2.0);
        }
        Ok(())
    }

    fn append_rows(&mut self, measured: &[Measured]) {
        let labels = ["no-op", "floor", "fastpaca, own token counts", "fastpaca, counted here"];
        for (label, one) in labels.iter().zip(measured) {
            self.report.row(label, one, 1, &measured[1]);
        }
    }

    pub(super) fn batch(&mut self) -> Result<(), Error> {
        let server = self.fresh_server()?;
        let dir = self.temp_dir()?;
        self.create_conversations(&server.process, self.scale.conversations)?;
        let request = |own_token_count| Request::Append {
            events: BATCH,
            message_bytes: MESSAGE_BYTES,
            own_token_count,
        };
        let load = |own| {
            let load = self.timed(
                server.process.address(),
                request(own),
                self.scale.conversations,
                self.scale.connections,
            );
            (load, server.process.pid())
        };
        let file = self.file_appends(dir.path())?;
        let measured = measure_in_turns(&[load(true), load(false)], self.scale.rounds)?;
        let [own, counted] = &measured[..] else { return Err("two loads give two results".into()) };

        let connections = self.scale.connections;
        self.report.heading(&format!("durable batch appends, {BATCH} events of {MESSAGE_BYTES} bytes a request, {connections} connections, in events"));
        self.report.row("the same bytes appended to a file", &file, BATCH as u64, &file);
        self.report.row("fastpaca, own token counts", own, BATCH as u64, &file);
        self.report.row("fastpaca, counted here", counted, BATCH as u64, &file);
        let (rate, floor) = (own.rate() * BATCH as f64, file.rate() * BATCH as f64);
        let bar = BATCH_EVENTS_PER_SECOND.min(0.5 * floor);
        self.report.bar(
            "batch appends, events per second",
            format!("{rate:.0}"),
            format!(">= {bar:.0}"),
            Verdict::of(rate >= bar),
        );
        Ok(())
    }

    /// The bytes of the batch requests through the floor's group commit, without HTTP or JSON, by as many clients.
    fn file_appends(&self, dir: &Path) -> Result<Measured, Error> {
        let file = GroupCommit::create(&dir.join("floor"))?;
        let body = append_body(&mut Random::new(0), BATCH, MESSAGE_BYTES, true);
        let (length, count) = (self.scale.measure, Cell::new(0));
        let mut latency_us = hdrhistogram::Histogram::<u64>::new(3)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let begin = Instant::now();
        let client = async |latency_us: &mut hdrhistogram::Histogram<u64>| {
            while begin.elapsed() < length {
                let sent = Instant::now();
                file.append(&body).await;
                latency_us.record(sent.elapsed().as_micros() as u64)?;
                count.set(count.get() + 1);
            }
            Ok::<(), Error>(())
        };
        let cpu_before = crate::process::cpu_time(std::process::id())?;
        let mut histograms = vec![latency_us.clone(); self.scale.connections];
        runtime.block_on(futures_util::future::try_join_all(histograms.iter_mut().map(client)))?;
        for histogram in &histograms {
            latency_us.add(histogram)?;
        }
        let outcome = Outcome {
            requests: count.get(),
            seconds: begin.elapsed().as_secs_f64(),
            p50_us: latency_us.value_at_quantile(0.50),
            p99_us: latency_us.value_at_quantile(0.99),
            max_us: latency_us.max(),
            ..Outcome::default()
        };
        let server_cpu = crate::process::cpu_time(std::process::id())? - cpu_before;
        Ok(Measured { outcome, server_cpu, cpu_of_each: vec![server_cpu], load_cpu: Duration::ZERO })
    }

    pub(super) fn hot(&mut self) -> Result<(), Error> {
        let server = self.fresh_server()?;
        self.create_conversations(&server.process, self.scale.conversations)?;
        let load = |count| {
            let load = self.timed(server.process.address(), single(true), count, self.scale.connections);
            (load, server.process.pid())
        };
        let measured = measure_in_turns(&[load(self.scale.conversations), load(1)], self.scale.rounds)?;
        let [many, one] = &measured[..] else { return Err("two loads give two results".into()) };
        self.report.heading(&format!(
            "durable single appends to one conversation, {} connections",
            self.scale.connections
        ));
        self.report.row(&format!("{} conversations", self.scale.conversations), many, 1, many);
        self.report.row("1 conversation", one, 1, many);
        self.report.at_least("append rate of 1 conversation, × of many", one.rate() / many.rate(), 0.5);
        Ok(())
    }

    pub(super) fn window(&mut self) -> Result<(), Error> {
        let server = self.fresh_server()?;
        let conversations = self.scale.conversations;
        self.create_conversations(&server.process, conversations)?;
        let fill = Request::Append { events: BATCH, message_bytes: MESSAGE_BYTES, own_token_count: true };
        self.prepare(&server.process, fill, conversations, 2 * conversations)?;

        let hot = |address| self.timed(address, Request::Window, conversations, self.scale.connections);
        let once = self.each_window_once(&server)?;
        let noop = Reference::noop(Some(once.outcome.answer_bytes))?;
        let loads = [(hot(noop.address), noop.pid()), (hot(server.process.address()), server.process.pid())];
        let measured = measure_in_turns(&loads, self.scale.rounds)?;
        let server = server.killed_and_restarted_cold()?;
        let cold = self.each_window_once(&server)?;

        let [noop, hot] = &measured[..] else { return Err("two loads give two results".into()) };
        self.report.heading(&format!(
            "window of the newest 50 of {} messages, {} bytes an answer, {conversations} conversations, {} connections",
            2 * BATCH,
            once.outcome.answer_bytes,
            self.scale.connections
        ));
        self.report.row("no-op of the same size", noop, 1, noop);
        self.report.row("fastpaca, hot", hot, 1, noop);
        self.report.row("fastpaca, each once after a restart", &cold, 1, noop);
        self.report.at_least("window rate, hot, × no-op", hot.rate() / noop.rate(), 0.6);
        self.report.figure("window p99, cold", format!("{:.2} ms", cold.outcome.p99_us as f64 / 1e3));
        Ok(())
    }

    /// Reads every conversation's window one time.
    fn each_window_once(&self, server: &Fresh) -> Result<Measured, Error> {
        let count = self.scale.conversations;
        let load = Load {
            addresses: vec![server.process.address()],
            connections: self.scale.connections,
            extent: Extent::Requests(count),
            request: Request::Window,
            conversations: Conversations::first(count),
            order: Order::InTurn,
        };
        measure(&load, server.process.pid())
    }
}
