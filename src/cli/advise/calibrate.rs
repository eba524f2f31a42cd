//! `fastpaca advise calibrate`: what this machine takes for the work of a node, measured through the server's own parts.
//!
//! Fsyncs by the journal, tokens by the estimator, appends and windows by a server in this process over the loopback
//! interface. The server's CPU time is the process's without that of the thread that plays the clients.

use std::fs;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use clap::Args;
use futures_util::future::try_join_all;
use http::{Method, Request, header};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::net::TcpStream;
use tokio::runtime::{Builder, Runtime};

use super::{Failed, Outcome};
use crate::advise::figures::Calibration;
use crate::advise::workload::BadInput;
use crate::config::Config;
use crate::journal::{Draft, FrameKind, Journal, OnBatch, Options, RealDisk, ScanFrom};
use crate::server::Server;
use crate::tokens::Estimator;

/// Bytes of a message's text, and of its JSON about.
const TEXT_BYTES: usize = 550;
const MESSAGE_BYTES: usize = 600;
const CONVERSATIONS: usize = 1_000;
const WINDOW_MESSAGES: usize = 50;
/// Clients at once, where many are wanted.
const CLIENTS: usize = 64;
const START_MAX: Duration = Duration::from_secs(30);
/// Linux reports CPU time in ticks of 10 ms.
const TICKS_PER_SECOND: f64 = 100.0;
/// Ordinary English for the tokenizer, repeated to any length.
const PROSE: &str = "The order arrived late because the warehouse moved and nobody updated the tracking page. Could you please check \
                     whether a refund was already issued for invoice seventeen? ";

#[derive(Debug, Args)]
pub(super) struct CalibrateArgs {
    /// Where the measured figures go.
    #[arg(long, value_name = "FILE", default_value = "calibration.toml")]
    output: PathBuf,
    /// A directory on the disk that nodes will use; what is written there is removed again.
    #[arg(long, value_name = "DIR", default_value = ".")]
    dir: PathBuf,
    /// Seconds in all, about.
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(5..=3600))]
    seconds: u64,
}

type Error = Box<dyn std::error::Error + Send + Sync>;

pub(super) fn run(args: &CalibrateArgs, config: &Config) -> Result<Outcome, Failed> {
    let failed = |error: &dyn std::fmt::Display| Failed { why: format!("calibrating: {error}"), code: 1 };
    if !args.dir.is_dir() {
        let dir = args.dir.display().to_string();
        return Err(BadInput::value("dir", &dir, "a directory that exists").into());
    }
    let home = args.dir.join(format!("fastpaca-calibration-{}", uuid::Uuid::new_v4()));
    let measured = measure(&home, config, Duration::from_secs(args.seconds));
    // Also after a failure; what cannot be removed is named by the error of what made it.
    let removed = fs::remove_dir_all(&home);
    let measured = measured.map_err(|error| failed(&error))?;
    removed.map_err(|error| failed(&format!("{}: {error}", home.display())))?;
    let text = measured.to_toml();
    fs::write(&args.output, &text).map_err(|error| failed(&format!("{}: {error}", args.output.display())))?;
    Ok(Outcome::done(format!("{text}\nwritten to {}\n", args.output.display())))
}

fn measure(home: &Path, config: &Config, whole: Duration) -> Result<Calibration, Error> {
    fs::create_dir(home).map_err(|error| format!("{}: {error}", home.display()))?;
    let share = |part: f64| whole.mul_f64(part);
    let (fsync_p50_ms, fsync_p99_ms) = fsyncs(&home.join("journal"), share(0.15))?;
    let tokens_per_core_second = tokens(config, share(0.1))?;
    let rig = Rig::start(home, config)?;
    let busy = rig.appends(CLIENTS, share(0.3))?;
    let alone = rig.appends(1, share(0.2))?;
    let windows = rig.windows(share(0.1))?;
    rig.stop();
    Ok(Calibration {
        version: Calibration::VERSION,
        measured_on: machine(),
        measured_at: jiff::Timestamp::now().strftime("%Y-%m-%d").to_string(),
        message_bytes: MESSAGE_BYTES as f64,
        fsync_p50_ms,
        fsync_p99_ms,
        tokens_per_core_second,
        appends_per_core_second: busy.count / busy.cpu_seconds,
        append_alone_per_second: alone.count / alone.seconds,
        append_alone_us: alone.cpu_seconds * 1e6 / alone.count,
        window_kib: windows.first.answer_bytes / 1_024.0,
        windows_per_core_second: windows.first.count / windows.first.cpu_seconds,
        repeated_windows_per_core_second: windows.repeated.count / windows.repeated.cpu_seconds,
        stored_bytes_per_message_busy: busy.stored_bytes / busy.count,
        stored_bytes_per_message_alone: alone.stored_bytes / alone.count,
    })
}

fn machine() -> String {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let cores = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
    format!("{cores} cores of {}", model.map_or("an unnamed CPU", |(_, model)| model.trim()))
}

/// Median and 99th percentile of the journal's fsyncs, one message each, in milliseconds.
fn fsyncs(dir: &Path, length: Duration) -> Result<(f64, f64), Error> {
    fs::create_dir_all(dir)?;
    let syncs: Arc<Mutex<Vec<Duration>>> = Arc::default();
    let observed = Arc::clone(&syncs);
    let on_batch: OnBatch = Arc::new(move |report| observed.lock().push(report.sync));
    let options = Options { on_batch, ..Options::new(1) };
    let disk = Arc::new(RealDisk::open(dir)?);
    let (journal, _) = Journal::open(options, disk, ScanFrom::Beginning, &mut |_| Ok(()))?;
    let payload = [0x5A; MESSAGE_BYTES];
    let runtime = Builder::new_current_thread().build()?;
    let (begin, mut appends) = (Instant::now(), 0u16);
    while begin.elapsed() < length {
        appends = appends.wrapping_add(1);
        let draft = [Draft { kind: FrameKind::Entry, group: appends % 256, payload: &[&payload] }];
        runtime.block_on(async {
            let (tell, told) = tokio::sync::oneshot::channel();
            let done = Box::new(move |result| drop(tell.send(result)));
            journal.append(&draft, Some(done)).await?;
            told.await??;
            Ok::<_, Error>(())
        })?;
    }
    journal.shutdown();
    let mut times = std::mem::take(&mut *syncs.lock());
    times.sort_unstable();
    let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize].as_secs_f64() * 1e3;
    if times.is_empty() { Err("no fsync was done".into()) } else { Ok((at(0.5), at(0.99))) }
}

fn tokens(config: &Config, length: Duration) -> Result<f64, Error> {
    let estimator = Estimator::new(&config.token_estimator)?;
    let text: String = PROSE.chars().cycle().take(TEXT_BYTES).collect();
    let (begin, mut counted) = (Instant::now(), 0u64);
    while begin.elapsed() < length {
        counted += u64::from(estimator.count(&text));
    }
    Ok(counted as f64 / begin.elapsed().as_secs_f64())
}

/// A server in this process, and its clients.
struct Rig {
    server: Server,
    /// The server's threads.
    serving: Runtime,
    /// The clients', which is this one.
    asking: Runtime,
}

/// What a load came to.
struct Cost {
    count: f64,
    seconds: f64,
    cpu_seconds: f64,
    stored_bytes: f64,
    answer_bytes: f64,
}

struct Windows {
    first: Cost,
    repeated: Cost,
}

impl Rig {
    fn start(home: &Path, config: &Config) -> Result<Rig, Error> {
        let mut config = config.clone();
        config.data_dir = home.join("data");
        config.listen = ([127, 0, 0, 1], 0).into();
        config.node_name = "calibration".to_owned();
        (config.api_keys, config.cluster_seeds, config.cluster_secrets) =
            (Vec::new(), Vec::new(), Vec::new());
        (config.tls_cert, config.tls_key, config.tls_ca, config.metrics_public) = (None, None, None, true);
        (config.rate_limit_per_second, config.advertise_addr) = (0, None);
        fs::create_dir_all(&config.data_dir)?;
        let mut builder = Builder::new_multi_thread();
        if config.worker_threads > 0 {
            builder.worker_threads(config.worker_threads);
        }
        let serving = builder.enable_all().build()?;
        let asking = Builder::new_current_thread().enable_all().build()?;
        let server = serving.block_on(Server::start(config))?;
        let rig = Rig { server, serving, asking };
        rig.asking.block_on(rig.prepare())?;
        Ok(rig)
    }

    fn stop(self) {
        self.serving.block_on(self.server.shutdown());
    }

    /// Waits until the server is ready, and gives every conversation a window's worth of messages.
    async fn prepare(&self) -> Result<(), Error> {
        let begin = Instant::now();
        let mut client = self.connect().await?;
        while send(&mut client, Method::GET, "/health/ready", Bytes::new()).await.is_err() {
            if begin.elapsed() > START_MAX {
                return Err("the server does not become ready".into());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let settings = format!(
            r#"{{"token_budget":1000000,"policy":{{"strategy":"last_n","config":{{"limit":{WINDOW_MESSAGES}}}}}}}"#
        );
        let batch = Bytes::from(format!(r#"{{"events":[{}]}}"#, vec![message(); WINDOW_MESSAGES].join(",")));
        let fill = async |first: usize| {
            let mut client = self.connect().await?;
            for number in (first..CONVERSATIONS).step_by(CLIENTS) {
                send(&mut client, Method::PUT, &path(number, ""), settings.clone().into()).await?;
                send(&mut client, Method::POST, &path(number, "/events"), batch.clone()).await?;
            }
            Ok::<_, Error>(())
        };
        try_join_all((0..CLIENTS).map(fill)).await.map(drop)
    }

    /// Single appends, with token counts of their own, by so many clients that each wait for their answer.
    fn appends(&self, clients: usize, length: Duration) -> Result<Cost, Error> {
        let body = Bytes::from(format!(r#"{{"event":{}}}"#, message()));
        self.load(clients, length, |number| (Method::POST, path(number * 7, "/events"), body.clone()), None)
    }

    /// Every window once, and then again.
    fn windows(&self, length: Duration) -> Result<Windows, Error> {
        let read = |number| (Method::GET, path(number, "/window"), Bytes::new());
        let first = self.load(CLIENTS, Duration::MAX, read, Some(CONVERSATIONS))?;
        Ok(Windows { first, repeated: self.load(CLIENTS, length, read, None)? })
    }

    fn load(
        &self,
        clients: usize,
        length: Duration,
        request: impl Fn(usize) -> (Method, String, Bytes),
        count_max: Option<usize>,
    ) -> Result<Cost, Error> {
        self.asking.block_on(async {
            let (stored, next, begin) = (self.stored_bytes().await?, std::cell::Cell::new(0), Instant::now());
            let cpu = server_cpu_seconds()?;
            let client = async |_| {
                let (mut client, mut bytes) = (self.connect().await?, 0);
                while begin.elapsed() < length && count_max.is_none_or(|most| next.get() < most) {
                    let number = next.replace(next.get() + 1);
                    let (method, path, body) = request(number);
                    bytes = send(&mut client, method, &path, body).await?.len();
                }
                Ok::<_, Error>(bytes)
            };
            let bytes = try_join_all((0..clients).map(client)).await?;
            let (seconds, cpu_seconds) = (begin.elapsed().as_secs_f64(), server_cpu_seconds()? - cpu);
            Ok(Cost {
                count: next.get() as f64,
                seconds,
                cpu_seconds: cpu_seconds.max(1.0 / TICKS_PER_SECOND),
                stored_bytes: self.stored_bytes().await? - stored,
                answer_bytes: bytes.into_iter().max().unwrap_or(0) as f64,
            })
        })
    }

    /// Bytes written to the journal so far.
    async fn stored_bytes(&self) -> Result<f64, Error> {
        let metrics = send(&mut self.connect().await?, Method::GET, "/metrics", Bytes::new()).await?;
        let text = String::from_utf8_lossy(&metrics);
        let value = text.lines().find_map(|line| line.strip_prefix("fastpaca_journal_bytes_total "));
        Ok(value.ok_or("the server shows no fastpaca_journal_bytes_total")?.parse()?)
    }

    async fn connect(&self) -> Result<SendRequest<Full<Bytes>>, Error> {
        let io = TcpStream::connect(self.server.address()).await?;
        io.set_nodelay(true)?;
        let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(io)).await?;
        // It ends with its sender; how, shows in the answers.
        tokio::spawn(connection);
        Ok(sender)
    }
}

fn path(number: usize, rest: &str) -> String {
    format!("/v1/conversations/calibration-{}{rest}", number % CONVERSATIONS)
}

/// The JSON of a message of [`MESSAGE_BYTES`], beside its token count.
fn message() -> String {
    let text: String = PROSE.chars().cycle().take(TEXT_BYTES).collect();
    format!(r#"{{"role":"user","parts":[{{"type":"text","text":"{text}"}}],"token_count":120}}"#)
}

/// The body of a good answer.
async fn send(
    client: &mut SendRequest<Full<Bytes>>,
    method: Method,
    path: &str,
    body: Bytes,
) -> Result<Bytes, Error> {
    client.ready().await?;
    let request = Request::builder().method(method).uri(path).header(header::HOST, "calibration");
    let request = request.header(header::CONTENT_TYPE, "application/json").body(Full::new(body))?;
    let response = client.send_request(request).await?;
    let status = response.status();
    let body = response.into_body().collect().await?.to_bytes();
    if status.is_success() {
        Ok(body)
    } else {
        Err(format!("{path}: {status} {}", String::from_utf8_lossy(&body)).into())
    }
}

/// CPU time of this process, without that of its first thread, which asks.
fn server_cpu_seconds() -> Result<f64, Error> {
    let seconds = |file: String| -> Result<f64, Error> {
        let text = fs::read_to_string(&file)?;
        let fields: Vec<&str> = text.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        let ticks = |at: usize| fields.get(at).and_then(|field| field.parse::<f64>().ok()).unwrap_or(0.0);
        Ok((ticks(11) + ticks(12)) / TICKS_PER_SECOND)
    };
    let thread = rustix::thread::gettid().as_raw_nonzero();
    Ok(seconds("/proc/self/stat".to_owned())? - seconds(format!("/proc/self/task/{thread}/stat"))?)
}
