//! A Postgres of a test's own, and a PgBouncer before it: started by the test, ended with it, reached on a port of their
//! own, run by a user that is not root, since both refuse to.

use super::faults::skip;
use super::ports::free_port;
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// Who runs it when the test is run by root: nobody.
const NOBODY: u32 = 65_534;
/// Longest wait for it to answer, after a crash on a slow machine.
const START_MAX: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(20);

/// The role the server writes as, and its password.
pub(crate) const ROLE: &str = "fastpaca";
pub(crate) const PASSWORD: &str = "not-logged-anywhere";

/// A database cluster in a directory of its own.
#[derive(Debug)]
pub(crate) struct Postgres {
    dir: TempDir,
    bin: PathBuf,
    port: u16,
    settings: Vec<String>,
    process: Option<Child>,
}

impl Postgres {
    /// Initialised and started, with an empty database for [`ROLE`]. `None`, with a word about it, where it is not
    /// installed.
    pub(crate) fn start() -> Option<Postgres> {
        // What is on disk need not survive a power loss, only the process.
        Postgres::start_with(&["fsync=off"])
    }

    pub(crate) fn start_with(settings: &[&str]) -> Option<Postgres> {
        let mut postgres = Postgres::initialised(settings)?;
        postgres.begin();
        Some(postgres)
    }

    /// One that takes TLS, with this certificate and key in PEM.
    pub(crate) fn start_secured(certificate: &str, key: &str) -> Option<Postgres> {
        let mut postgres = Postgres::initialised(&["fsync=off", "ssl=on"])?;
        for (name, pem) in [("data/server.crt", certificate), ("data/server.key", key)] {
            let path = postgres.path(name);
            fs::write(&path, pem).expect("the directory is writable");
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("its owner may");
            give_to_nobody(&path);
        }
        postgres.begin();
        Some(postgres)
    }

    fn initialised(settings: &[&str]) -> Option<Postgres> {
        let Some(bin) = binaries() else {
            skip("Postgres is not installed");
            return None;
        };
        let dir = dir_of_nobody("postgres-");
        let settings = settings.iter().map(|setting| setting.to_string()).collect();
        let postgres = Postgres { dir, bin, port: free_port(), settings, process: None };
        fs::write(postgres.path("password"), PASSWORD).expect("the directory is writable");
        let mut initdb = as_nobody(&postgres.bin.join("initdb"));
        initdb.args([
            "--username=admin",
            "--auth=scram-sha-256",
            "--encoding=UTF8",
            "--locale=C",
            "--no-sync",
        ]);
        initdb.arg(format!("--pwfile={}", postgres.path("password").display()));
        let made = initdb.arg("-D").arg(postgres.path("data")).output().expect("initdb can be run");
        assert!(made.status.success(), "initdb: {}", String::from_utf8_lossy(&made.stderr));
        Some(postgres)
    }

    fn begin(&mut self) {
        self.run();
        self.admin(&format!("CREATE ROLE {ROLE} LOGIN PASSWORD '{PASSWORD}'"));
        self.admin(&format!("CREATE DATABASE archive OWNER {ROLE}"));
    }

    /// Has a table lie in a directory of its own, which is made.
    pub(crate) fn move_table(&self, table: &str, to: &Path) {
        fs::create_dir(to).expect("the directory around it is writable");
        give_to_nobody(to);
        self.sql(&format!("CREATE TABLESPACE elsewhere LOCATION '{}'", to.display()));
        self.sql(&format!("ALTER TABLE {table} SET TABLESPACE elsewhere"));
    }

    /// Starts it, which it must not be, and waits until it answers.
    pub(crate) fn run(&mut self) {
        let log = fs::File::options().append(true).create(true).open(self.path("log"));
        let log = log.expect("the directory is writable");
        let mut command = as_nobody(&self.bin.join("postgres"));
        command.arg("-D").arg(self.path("data"));
        command.args(["-c", "listen_addresses=127.0.0.1", "-c", &format!("port={}", self.port)]);
        command.arg("-c").arg(format!("unix_socket_directories={}", self.dir.path().display()));
        for setting in &self.settings {
            command.args(["-c", setting]);
        }
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("a file")).stderr(log);
        self.process = Some(command.spawn().expect("postgres can be run"));
        let deadline = Instant::now() + START_MAX;
        while !psql(&self.admin_url(), "SELECT 1").status.success() {
            let ended = self.process.as_mut().and_then(|process| process.try_wait().expect("a child"));
            let log = || fs::read_to_string(self.path("log")).unwrap_or_default();
            assert!(ended.is_none() && Instant::now() < deadline, "postgres does not answer:\n{}", log());
            std::thread::sleep(POLL);
        }
    }

    /// What the server is given as FASTPACA_POSTGRES_URL.
    pub(crate) fn url(&self) -> String {
        url(ROLE, PASSWORD, self.port)
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    fn admin_url(&self) -> String {
        let database = format!("postgres://admin:{PASSWORD}@127.0.0.1:{}/", self.port);
        database + "postgres"
    }

    /// Runs statements as superuser in the database `postgres`.
    #[track_caller]
    pub(crate) fn admin(&self, sql: &str) -> String {
        said(psql(&self.admin_url(), sql))
    }

    /// Runs statements as superuser in the archive; answers rows with `|` between columns.
    #[track_caller]
    pub(crate) fn sql(&self, sql: &str) -> String {
        said(psql(&url("admin", PASSWORD, self.port), sql))
    }

    /// Ends every connection of the server, as a failover or an operator would.
    pub(crate) fn disconnect(&self) {
        self.admin(&format!(
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE usename = '{ROLE}'"
        ));
    }

    /// SIGKILL to all of it.
    pub(crate) fn kill(&mut self) {
        let Some(mut process) = self.process.take() else { return };
        let children = children(process.id());
        // An error means that it is gone already.
        process.kill().ok();
        for pid in &children {
            kill_process(*pid, Signal::KILL).ok();
        }
        process.wait().expect("a child can be waited for");
        while children.iter().any(|pid| Path::new(&format!("/proc/{}", pid.as_raw_nonzero())).exists()) {
            std::thread::sleep(POLL);
        }
        fs::remove_file(self.path("data/postmaster.pid")).ok();
    }

    /// SIGSTOP to all of it: connections stay and say nothing.
    pub(crate) fn pause(&self) {
        self.signal(Signal::STOP);
    }

    /// SIGCONT.
    pub(crate) fn resume(&self) {
        self.signal(Signal::CONT);
    }

    fn signal(&self, signal: Signal) {
        let Some(process) = &self.process else { return };
        kill_process(Pid::from_child(process), signal).expect("an unwaited child can be signalled");
        for pid in children(process.id()) {
            kill_process(pid, signal).ok();
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        self.resume();
        self.kill();
    }
}

/// A pooler in transaction mode before a [`Postgres`].
#[derive(Debug)]
pub(crate) struct PgBouncer {
    _dir: TempDir,
    port: u16,
    process: Child,
}

impl PgBouncer {
    /// With few connections, which transactions share.
    pub(crate) fn start(postgres: &Postgres) -> Option<PgBouncer> {
        let Some(program) =
            ["/usr/sbin/pgbouncer", "/usr/bin/pgbouncer"].map(Path::new).into_iter().find(|p| p.exists())
        else {
            skip("PgBouncer is not installed");
            return None;
        };
        let dir = dir_of_nobody("pgbouncer-");
        let port = free_port();
        let path = |name: &str| dir.path().join(name);
        let config = format!(
            "[databases]\narchive = host=127.0.0.1 port={} dbname=archive\n[pgbouncer]\nlisten_addr = 127.0.0.1\n\
             listen_port = {port}\nunix_socket_dir =\npool_mode = transaction\ndefault_pool_size = 2\n\
             auth_type = plain\nauth_file = {}\nlogfile = {}\n",
            postgres.port(),
            path("users").display(),
            path("log").display(),
        );
        fs::write(path("config"), config).expect("the directory is writable");
        fs::write(path("users"), format!("\"{ROLE}\" \"{PASSWORD}\"\n")).expect("the directory is writable");
        let process =
            as_nobody(program).arg(path("config")).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let bouncer = PgBouncer { _dir: dir, port, process: process.expect("pgbouncer can be run") };
        let deadline = Instant::now() + START_MAX;
        while !psql(&bouncer.url(), "SELECT 1").status.success() {
            assert!(Instant::now() < deadline, "pgbouncer does not answer");
            std::thread::sleep(POLL);
        }
        Some(bouncer)
    }

    pub(crate) fn url(&self) -> String {
        url(ROLE, PASSWORD, self.port)
    }
}

impl Drop for PgBouncer {
    fn drop(&mut self) {
        self.process.kill().ok();
        self.process.wait().ok();
    }
}

fn url(role: &str, password: &str, port: u16) -> String {
    format!("postgres://{role}:{password}@127.0.0.1:{port}/archive")
}

fn psql(url: &str, sql: &str) -> Output {
    let mut psql = Command::new("psql");
    psql.args([url, "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-c", sql]);
    psql.output().expect("psql comes with Postgres")
}

#[track_caller]
fn said(output: Output) -> String {
    assert!(output.status.success(), "psql: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("psql writes UTF-8").trim_end().to_owned()
}

/// Where Debian puts the newest server that is installed.
fn binaries() -> Option<PathBuf> {
    let versions =
        fs::read_dir("/usr/lib/postgresql").ok()?.flatten().map(|version| version.path().join("bin"));
    versions.filter(|bin| bin.join("postgres").exists()).max()
}

/// A directory outside the build's, which nobody may not be allowed to reach.
fn dir_of_nobody(prefix: &str) -> TempDir {
    let dir = tempfile::Builder::new()
        .prefix(prefix)
        .tempdir()
        .expect("the system has a directory for such things");
    give_to_nobody(dir.path());
    dir
}

/// Where the test is run by root; else everything is its user's, who runs Postgres, too.
fn give_to_nobody(path: &Path) {
    if rustix::process::geteuid().is_root() {
        chown(path, Some(NOBODY), Some(NOBODY)).expect("root may give away");
    }
}

fn as_nobody(program: &Path) -> Command {
    if !rustix::process::geteuid().is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("setpriv");
    let id = NOBODY.to_string();
    command.args(["--reuid", &id, "--regid", &id, "--clear-groups", "--"]).arg(program);
    command
}

fn children(parent: u32) -> Vec<Pid> {
    let processes = fs::read_dir("/proc").expect("proc is mounted").flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let is_child = |pid: &i32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let after_name = stat.rsplit(')').next().unwrap_or_default().to_owned();
        after_name.split_whitespace().nth(1) == Some(parent.to_string().as_str())
    };
    pids.filter(is_child).filter_map(Pid::from_raw).collect()
}
