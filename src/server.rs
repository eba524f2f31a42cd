//! The composition root: opens the node's files, wires the parts together, serves, and shuts down in order.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::pin::Pin;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use rustix::process::{Resource, getrlimit, setrlimit};
use tokio::net::TcpListener;
use tokio::runtime::{Handle, Runtime};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};
use uuid::Uuid;

use crate::api::{self, App, PeerDoor, PeerIo, Unproven};
use crate::archive::{Archive, ArchiveSettings, ClusterView};
use crate::cluster::{self, Cluster, ClusterSettings, DurableFile};
use crate::config::Config;
use crate::files;
use crate::journal::{self, OnBatch, Options, RealDisk};
use crate::metrics::Metrics;
use crate::peer::{self, KNOWS_TRIMS, PeerSettings, Peers};
use crate::raft::{Node, NodeSettings, ReclaimSettings, RecoverySettings, request_rebuild};
use crate::shards::placement::GROUPS;
use crate::shards::{Placement, Shards};
use crate::store::{CacheSizes, Failure};
use crate::tokens::Estimator;
use crate::workers;

/// How long responses to the requests that a failure broke may take to leave before the process ends.
const FAILURE_GRACE: Duration = Duration::from_millis(500);

/// What is logged when anybody who reaches the port could join.
const OPEN_CLUSTER: &str = "neither FASTPACA_CLUSTER_SECRET nor FASTPACA_API_KEY is set: any node that reaches this one can join its cluster";

/// Threads of links between nodes.
const PEER_THREADS: usize = 2;

/// Longest wait, at a shutdown, for the writes of other nodes that are under way here.
const PEERS_WRITES_MAX: Duration = Duration::from_secs(2);

/// The exit code when a second signal cut the shutdown short.
const SECOND_SIGNAL: u8 = 130;

/// Why the server did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("listening on {address}: {source}")]
    Listen { address: SocketAddr, source: io::Error },
    #[error("installing signal handlers: {0}")]
    Signals(io::Error),
    #[error("data directory {dir}: {source}")]
    DataDir { dir: String, source: io::Error },
    #[error(
        "data directory {dir} is of a member of a cluster, and there is no journal in {dir}/journal: is it mounted? If it is lost, \
         empty the directory: a node beside others then starts with FASTPACA_REPLACE=true, a lone one is restored from a backup"
    )]
    JournalGone { dir: String },
    #[error(transparent)]
    Journal(#[from] crate::journal::OpenError),
    #[error(transparent)]
    Node(#[from] crate::raft::StartError),
    #[error("TLS: {0}")]
    Tls(#[from] crate::tls::TlsError),
    #[error("starting the threads of links to other nodes: {0}")]
    Threads(io::Error),
    #[error("{0}")]
    ClusterState(String),
    #[error(transparent)]
    Archive(#[from] crate::archive::InvalidUrl),
    #[error("token estimator: {0}")]
    Estimator(String),
}

/// Runs a server until a signal or a failure ends it. The exit code is 0 after an orderly shutdown.
pub fn run(config: Config) -> ExitCode {
    raise_file_limit();
    let runtime = match workers::runtime("worker", config.worker_threads, config.pin_workers) {
        Ok(runtime) => runtime,
        Err(error) => {
            error!(event = "start_failed", %error);
            return ExitCode::FAILURE;
        }
    };
    let code = runtime.block_on(serve(config)).unwrap_or_else(|error| {
        error!(event = "start_failed", %error);
        ExitCode::FAILURE
    });
    // What still runs is a recovery that nobody waits for, or work that a second signal cut short.
    runtime.shutdown_background();
    code
}

/// Connections and segments need more files than the usual soft limit of 1,024 allows.
fn raise_file_limit() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        warn!(event = "file_limit_kept", %error);
    }
}

async fn serve(config: Config) -> Result<ExitCode, StartError> {
    let mut terminate = signal(SignalKind::terminate()).map_err(StartError::Signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(StartError::Signals)?;
    let bound = config.shutdown_timeout;
    let starting = Server::start(config);
    let server = tokio::select! {
        started = starting => started?,
        _ = terminate.recv() => return Ok(ExitCode::SUCCESS),
        _ = interrupt.recv() => return Ok(ExitCode::SUCCESS),
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        reason = server.failure.raised() => {
            tokio::time::sleep(FAILURE_GRACE).await;
            error!(event = "stopped_by_failure", reason = %reason.text);
            return Ok(ExitCode::FAILURE);
        }
    }
    info!(event = "shutdown_started");
    tokio::select! {
        done = tokio::time::timeout(bound, server.shutdown()) => match done {
            Ok(()) => {
                info!(event = "shutdown_finished");
                Ok(ExitCode::SUCCESS)
            }
            Err(_) => {
                error!(event = "shutdown_timed_out", bound_ms = bound.as_millis() as u64);
                Ok(ExitCode::FAILURE)
            }
        },
        _ = terminate.recv() => Ok(ExitCode::from(SECOND_SIGNAL)),
        _ = interrupt.recv() => Ok(ExitCode::from(SECOND_SIGNAL)),
    }
}

/// A running server.
pub struct Server {
    address: SocketAddr,
    shards: Shards,
    node: Arc<Node>,
    cluster: Cluster,
    archive: Option<Archive>,
    peers: Peers,
    links: PeerRuntime,
    failure: Failure,
    stop: CancellationToken,
    edge: JoinHandle<()>,
}

impl Server {
    /// Binds the port, serves health at once, recovers, and then serves everything.
    pub async fn start(config: Config) -> Result<Self, StartError> {
        let metrics = Metrics::new();
        metrics.show_room(&config.data_dir);
        let failure = Failure::default();
        let estimator =
            Estimator::new(&config.token_estimator).map_err(|e| StartError::Estimator(e.to_string()))?;
        let shards = Shards::new(failure.clone(), config.request_timeout);
        // The same from every node, whether it hosts the conversation or asks one that does.
        shards.bound_windows(peer::body_bytes_max(&config).into());
        let stop = CancellationToken::new();
        let listener = TcpListener::bind(config.listen)
            .await
            .map_err(|source| StartError::Listen { address: config.listen, source })?;
        let address =
            listener.local_addr().map_err(|source| StartError::Listen { address: config.listen, source })?;
        let config = Arc::new(config);
        let app = App::new(shards.clone(), estimator, config.clone(), metrics.clone());
        if let Some(acceptor) = config.tls_acceptor()? {
            app.set_tls(acceptor);
        }
        let edge = tokio::spawn(api::serve(listener, app.clone(), stop.clone()));
        info!(event = "listening", address = %address, node = %config.node_name);

        let in_data_dir = |source| StartError::DataDir { dir: config.data_dir.display().to_string(), source };
        let node_id = node_id(&config.data_dir).map_err(in_data_dir)?;
        let (file, membership) = DurableFile::open(&config.data_dir).map_err(in_data_dir)?;
        let journal = RealDisk::open(&config.data_dir.join("journal"))?;
        if membership.cluster().is_some() && journal::oldest_segment(&journal).map_err(in_data_dir)?.is_none()
        {
            return Err(StartError::JournalGone { dir: config.data_dir.display().to_string() });
        }
        let links = PeerRuntime::start(config.pin_workers).map_err(StartError::Threads)?;
        let start = (file.incarnation(), file.marks());
        let settings = PeerSettings::of(&config, node_id, start, address.port())?;
        if settings.secrets.is_open() && !config.cluster_seeds.is_empty() {
            warn!(event = "cluster_is_open", reason = OPEN_CLUSTER);
        }
        let peers = Peers::start(settings, links.handle(), Handle::current(), metrics.clone());
        app.set_peer_door(Arc::new(Door(peers.clone())));
        let node = Arc::new(start_node(&config, node_id, journal, peers.clone(), &metrics, &failure).await?);
        cluster::remember_marks(&node, &peers).await.map_err(StartError::ClusterState)?;
        node.meet_peers(&peers, &links.handle());
        let placement = watch::Sender::new(Arc::new(Placement::new([])));
        shards.attach(node.clone(), peers.clone(), placement.subscribe());
        let parts = cluster::Parts {
            node: node.clone(),
            peers: peers.clone(),
            shards: shards.clone(),
            failure: failure.clone(),
        };
        let settings = cluster_settings(&config, node_id, address);
        let cluster = Cluster::start(settings, parts, file, membership, placement);
        app.set_cluster(Arc::new(cluster.clone()));
        let archive = start_archive(&config, &shards, &metrics, &cluster)?;
        info!(event = "recovered", groups = node.hosted().len());
        Ok(Self { address, shards, node, cluster, archive, peers, links, failure, stop, edge })
    }

    /// The address actually bound.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Unready first, then hands leadership over, finishes requests and closes streams, then a checkpoint, then the
    /// files.
    pub async fn shutdown(self) {
        self.shards.leave();
        self.cluster.hand_over().await;
        let ended = tokio::time::timeout(PEERS_WRITES_MAX, self.shards.peers_writes_ended()).await;
        if ended.is_err() {
            warn!(event = "peers_writes_cut_short");
        }
        self.stop.cancel();
        if let Err(error) = self.edge.await {
            warn!(event = "edge_failed", %error);
        }
        if let Some(archive) = self.archive {
            archive.stop().await;
        }
        self.cluster.stop().await;
        self.peers.close();
        self.node.shutdown().await;
        drop(self.links);
    }
}

async fn start_node(
    config: &Config,
    node_id: u128,
    disk: RealDisk,
    peers: Peers,
    metrics: &Metrics,
    failure: &Failure,
) -> Result<Node, StartError> {
    let dir = &config.data_dir;
    let mut journal = Options::new(node_id);
    journal.segment_bytes = config.segment_bytes as u32;
    journal.reserve_bytes = config.disk_reserve_bytes;
    journal.on_batch = report_batches(metrics.clone());
    let poisoned = failure.clone();
    journal.on_poison = Arc::new(move |reason| poisoned.raise(format!("journal: {reason}"), false));
    let index_dir = dir.join("index");
    let settings = NodeSettings {
        node_id,
        recovery: RecoverySettings {
            index_dir: index_dir.clone(),
            index_cache_bytes: config.index_cache_bytes,
            caches: CacheSizes {
                records: config.record_cache_bytes as usize,
                messages: config.message_cache_bytes as usize,
            },
            groups: GROUPS + 1,
            boot_id: boot_id(),
        },
        journal,
        checkpoint_bytes: config.checkpoint_bytes,
        checkpoint_interval: config.checkpoint_interval,
        snapshot_bytes_per_second: config.snapshot_bytes_per_second,
        reclaim: ReclaimSettings {
            bytes_per_second: config.reclaim_bytes_per_second,
            dead_percent: config.reclaim_dead_percent as u64,
            interval: config.reclaim_interval,
        },
    };
    note_failures(failure.clone(), index_dir);
    Ok(Node::start(settings, Arc::new(disk), peers, metrics.clone(), failure.clone()).await?)
}

fn start_archive(
    config: &Config,
    shards: &Shards,
    metrics: &Metrics,
    cluster: &Cluster,
) -> Result<Option<Archive>, StartError> {
    let Some(url) = config.postgres_url.clone() else { return Ok(None) };
    let settings = ArchiveSettings {
        url,
        flush_interval: config.flush_interval,
        batch_rows: config.flush_batch_size,
        connections: config.postgres_pool_size,
        migrate: config.migrate,
        tail_keep: config.tail_keep,
    };
    let cluster = Arc::new(ArchivedCluster(cluster.clone()));
    Ok(Some(Archive::start(settings, shards.clone(), metrics.clone(), cluster)?))
}

/// The cluster as the archive sees it.
struct ArchivedCluster(Cluster);

impl ClusterView for ArchivedCluster {
    fn id(&self) -> Option<u128> {
        self.0.id()
    }

    fn understands_trims(&self) -> bool {
        self.0.speaks(KNOWS_TRIMS)
    }
}

fn cluster_settings(config: &Config, node_id: u128, address: SocketAddr) -> ClusterSettings {
    ClusterSettings {
        node_id,
        name: config.node_name.clone(),
        seeds: config.cluster_seeds.clone(),
        cluster_size: config.cluster_size,
        replace: config.replace,
        advertise: config.advertise_addr.clone(),
        listen: address.to_string(),
    }
}

/// Lets connections of other nodes in.
struct Door(Peers);

impl PeerDoor for Door {
    fn enter(
        &self,
        io: PeerIo,
        from: SocketAddr,
        unproven: Unproven,
    ) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        let peers = self.0.clone();
        Box::pin(async move { peers.accept(io, from, unproven).await })
    }
}

/// The threads of links between nodes: their own, so that client load cannot starve heartbeats.
struct PeerRuntime(Option<Runtime>);

impl PeerRuntime {
    fn start(pin: bool) -> io::Result<Self> {
        Ok(Self(Some(workers::runtime("peers", PEER_THREADS, pin)?)))
    }

    fn handle(&self) -> Handle {
        self.0.as_ref().expect("it is there until it is dropped").handle().clone()
    }
}

impl Drop for PeerRuntime {
    /// A runtime may not be dropped, and waited for, where others run.
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

/// A failure that distrusts the index leaves a note for the next start.
fn note_failures(failure: Failure, index_dir: std::path::PathBuf) {
    tokio::spawn(async move {
        let reason = failure.raised().await;
        if reason.rebuild_index {
            request_rebuild(&index_dir, &reason.text);
        }
    });
}

/// The node's permanent id, made on the first start. It is not the node's name, which may change.
fn node_id(data_dir: &Path) -> io::Result<u128> {
    let path = data_dir.join("node-id");
    match std::fs::read_to_string(&path) {
        Ok(text) => Uuid::parse_str(text.trim())
            .map(|id| id.as_u128())
            .map_err(|e| io::Error::new(io::ErrorKind::InvalidData, format!("{}: {e}", path.display()))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let id = Uuid::new_v4();
            files::replace(&path, format!("{id}\n").as_bytes())?;
            Ok(id.as_u128())
        }
        Err(error) => Err(error),
    }
}

/// Changes with every start of the kernel. Where it cannot be read, every start counts as one.
fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .map(|id| id.trim().to_owned())
        .unwrap_or_else(|_| Uuid::new_v4().to_string())
}

/// Feeds the journal's reports to the metrics.
fn report_batches(metrics: Metrics) -> OnBatch {
    Arc::new(move |report| {
        metrics.journal_fsync_seconds.observe(report.sync.as_secs_f64());
        metrics.journal_batch_bytes.observe(report.bytes as f64);
        metrics.journal_batch_frames.observe(f64::from(report.frames));
        metrics.journal_bytes_total.inc_by(report.bytes as u64);
    })
}
