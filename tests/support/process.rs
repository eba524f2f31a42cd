//! Starting, watching and stopping the real server as a process of its own.
//!
//! A [`Node`] is what stays (a directory with data and logs, settings); a [`Process`] is one life of it. Everything here
//! waits for conditions, never for a guessed time, and gives up with the end of the server's log in the error. It is
//! synchronous: a test's own thread may block while the clients it spawned go on.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// Longest wait for a server to listen or to become ready, on a slow machine with a rebuild to do.
pub(crate) const START_MAX: Duration = Duration::from_secs(120);

/// How often a condition is looked at.
const POLL: Duration = Duration::from_millis(5);

/// USER_HZ: the unit of `/proc/PID/stat`, the same on every Linux of the architectures served.
const TICKS_PER_SECOND: u64 = 100;

/// A server that can be started again and again on the same data.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    data_dir: PathBuf,
    log_dir: PathBuf,
    env: Vec<(OsString, OsString)>,
    /// What it is started under: a program and its arguments, which `exec` the server in their own process.
    program: Vec<String>,
    /// Where it is reached, when that is not what it says itself.
    reached_at: Option<SocketAddr>,
}

impl Node {
    /// Keeps its data in `dir/data` and a log of every life in `dir/logs`.
    pub(crate) fn in_dir(dir: &Path) -> Node {
        Node {
            data_dir: dir.join("data"),
            log_dir: dir.join("logs"),
            env: Vec::new(),
            program: Vec::new(),
            reached_at: None,
        }
    }

    /// Every start is under this program; see [`Node::spawn_under`].
    pub(crate) fn with_program(mut self, program: Vec<String>) -> Node {
        self.program = program;
        self
    }

    /// For a server that listens on every address of a host of its own.
    pub(crate) fn with_reached_at(mut self, address: SocketAddr) -> Node {
        self.reached_at = Some(address);
        self
    }

    pub(crate) fn with_env(mut self, name: &str, value: impl Into<OsString>) -> Node {
        self.env.push((name.into(), value.into()));
        self
    }

    pub(crate) fn with_data_dir(mut self, data_dir: &Path) -> Node {
        self.data_dir = data_dir.into();
        self
    }

    pub(crate) fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    /// Starts the server and waits until it is ready.
    pub(crate) fn start(&self) -> Result<Process, StartError> {
        let mut process = self.spawn()?;
        process.wait_ready(START_MAX)?;
        Ok(process)
    }

    /// Starts the server and waits for nothing.
    pub(crate) fn spawn(&self) -> Result<Process, StartError> {
        self.spawn_under(&self.program)
    }

    /// Starts the server as the last argument of another program, which must `exec` it in its own process.
    pub(crate) fn spawn_under(&self, program: &[String]) -> Result<Process, StartError> {
        fs::create_dir_all(&self.log_dir)?;
        let (log_path, log) = create_next(&self.log_dir)?;
        let server = env!("CARGO_BIN_EXE_fastpaca");
        let mut command = match program {
            [] => Command::new(server),
            [program, arguments @ ..] => {
                let mut command = Command::new(program);
                command.args(arguments).arg(server);
                command
            }
        };
        for (name, _) in
            std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("FASTPACA_"))
        {
            command.env_remove(name);
        }
        command.env("FASTPACA_DATA_DIR", &self.data_dir).env("FASTPACA_LISTEN", "127.0.0.1:0");
        command.envs(self.env.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        Ok(Process { child: command.spawn()?, log_path, address: None, reached_at: self.reached_at })
    }
}

/// Opens `1.log`, `2.log`, ... whichever does not exist yet.
fn create_next(dir: &Path) -> io::Result<(PathBuf, File)> {
    let mut number = 1;
    loop {
        let path = dir.join(format!("{number}.log"));
        match OpenOptions::new().append(true).create_new(true).open(&path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => number += 1,
            opened => return opened.map(|file| (path, file)),
        }
    }
}

/// Why a server did not come up.
#[derive(Debug)]
pub(crate) enum StartError {
    Io(io::Error),
    /// It ended instead; with the end of its log.
    Exited(ExitStatus, String),
    /// It neither ended nor reached what was waited for; with what that was and the end of its log.
    TimedOut(&'static str, String),
}

impl From<io::Error> for StartError {
    fn from(error: io::Error) -> StartError {
        StartError::Io(error)
    }
}

impl std::fmt::Display for StartError {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        match self {
            StartError::Io(error) => write!(f, "the server did not start: {error}"),
            StartError::Exited(status, log) => {
                write!(f, "the server ended with {status}; its log ends:\n{log}")
            }
            StartError::TimedOut(what, log) => {
                write!(f, "the server is not {what} in time; its log ends:\n{log}")
            }
        }
    }
}

impl std::error::Error for StartError {}

/// One life of a server. Dropping it ends it like a power cut would: by SIGKILL.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
    log_path: PathBuf,
    address: Option<SocketAddr>,
    reached_at: Option<SocketAddr>,
}

impl Process {
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Where it listens. Only after [`Process::wait_listening`], which everything that starts a server goes through.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address.expect("wait_listening has returned")
    }

    /// `path` begins with a slash.
    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address())
    }

    /// Waits for the log line with event `listening`, which names the address.
    pub(crate) fn wait_listening(&mut self, limit: Duration) -> Result<SocketAddr, StartError> {
        let deadline = Instant::now() + limit;
        while self.address.is_none() {
            let said = self.log_records().iter().find_map(listening_address);
            self.address = said.map(|said| self.reached_at.unwrap_or(said));
            if self.address.is_none() {
                self.still_starting(deadline, "listening")?;
            }
        }
        Ok(self.address())
    }

    /// Waits until `/health/ready` answers 200.
    pub(crate) fn wait_ready(&mut self, limit: Duration) -> Result<(), StartError> {
        let deadline = Instant::now() + limit;
        self.wait_listening(limit)?;
        while self.probe("/health/ready") != Some(200) {
            self.still_starting(deadline, "ready")?;
        }
        Ok(())
    }

    fn still_starting(&mut self, deadline: Instant, awaited: &'static str) -> Result<(), StartError> {
        if let Some(status) = self.child.try_wait()? {
            return Err(StartError::Exited(status, self.log_end()));
        }
        if Instant::now() > deadline {
            return Err(StartError::TimedOut(awaited, self.log_end()));
        }
        std::thread::sleep(POLL);
        Ok(())
    }

    /// The status of a `GET`, or `None` when nothing answers.
    pub(crate) fn probe(&self, path: &str) -> Option<u16> {
        probe(self.address?, path).ok()
    }

    /// Everything logged so far that is JSON.
    pub(crate) fn log_records(&self) -> Vec<serde_json::Value> {
        self.log().lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    pub(crate) fn log(&self) -> String {
        let bytes = fs::read(&self.log_path).expect("the log was created with the process");
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// The last lines of the log, for an error message.
    pub(crate) fn log_end(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }

    /// SIGKILL, and waits for the end.
    pub(crate) fn kill(&mut self) -> ExitStatus {
        // An error means that it has ended already, which is what is wanted.
        self.child.kill().ok();
        self.child.wait().expect("a child can be waited for")
    }

    /// SIGTERM, as a supervisor asks for a shutdown; see [`Process::wait_exit`].
    pub(crate) fn terminate(&self) {
        self.signal(rustix::process::Signal::TERM);
    }

    /// SIGSTOP: it keeps its connections and says nothing. SIGKILL works on it as ever.
    pub(crate) fn pause(&self) {
        self.signal(rustix::process::Signal::STOP);
    }

    /// SIGCONT.
    pub(crate) fn resume(&self) {
        self.signal(rustix::process::Signal::CONT);
    }

    fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal).expect("an unwaited child can be signalled");
    }

    /// `None` when it still runs at the end of `limit`.
    pub(crate) fn wait_exit(&mut self, limit: Duration) -> Option<ExitStatus> {
        let deadline = Instant::now() + limit;
        loop {
            let status = self.child.try_wait().expect("a child can be waited for");
            if status.is_some() || Instant::now() > deadline {
                return status;
            }
            std::thread::sleep(POLL);
        }
    }

    pub(crate) fn is_running(&mut self) -> bool {
        self.wait_exit(Duration::ZERO).is_none()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The address in a log record of the server's first socket, wherever the log format nests its fields.
fn listening_address(record: &serde_json::Value) -> Option<SocketAddr> {
    let fields = if record["event"].is_string() { record } else { &record["fields"] };
    match fields["event"].as_str() {
        Some("listening") => fields["address"].as_str()?.parse().ok(),
        _ => None,
    }
}

/// The status of a `GET`.
pub(crate) fn probe(address: SocketAddr, path: &str) -> io::Result<u16> {
    get(address, path, Duration::from_secs(2)).map(|(status, _)| status)
}

/// Status and body of a `GET` on a connection of its own, which is silent for no longer than `limit`.
pub(crate) fn get(address: SocketAddr, path: &str, limit: Duration) -> io::Result<(u16, String)> {
    let mut stream = TcpStream::connect_timeout(&address, limit)?;
    stream.set_read_timeout(Some(limit))?;
    write!(stream, "GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").ok_or(io::ErrorKind::InvalidData)?;
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    Ok((status.ok_or(io::ErrorKind::InvalidData)?, body.to_owned()))
}

/// CPU time a process has used on behalf of its user and of the kernel.
pub(crate) fn cpu_time(pid: u32) -> io::Result<Duration> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The command name, in brackets, may hold spaces; utime and stime are the 12th and 13th field after it.
    let after_name = stat.rsplit(')').next().unwrap_or_default();
    let ticks = after_name
        .split_whitespace()
        .skip(11)
        .take(2)
        .filter_map(|field| field.parse::<u64>().ok())
        .sum::<u64>();
    Ok(Duration::from_millis(ticks * 1000 / TICKS_PER_SECOND))
}

/// Memory of a process that is resident now.
pub(crate) fn resident_bytes(pid: u32) -> io::Result<u64> {
    status_bytes(pid, "VmRSS:")
}

/// Most memory of a process that was ever resident.
pub(crate) fn peak_resident_bytes(pid: u32) -> io::Result<u64> {
    status_bytes(pid, "VmHWM:")
}

fn status_bytes(pid: u32, field: &str) -> io::Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let kilobytes = status
        .lines()
        .find_map(|line| line.strip_prefix(field)?.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    kilobytes.map(|kilobytes| kilobytes << 10).ok_or(io::ErrorKind::InvalidData.into())
}
