//! Processes of the bench: the reference servers, and one run of the load generator against some server.

use crate::Error;
use crate::load::{Load, MEASURING, Outcome};
use crate::process::cpu_time;
use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

/// A no-op or floor server; ends with this value.
pub(crate) struct Reference {
    child: Child,
    pub(crate) address: SocketAddr,
}

impl Reference {
    pub(crate) fn noop(answer_bytes: Option<usize>) -> Result<Reference, Error> {
        let mut command = this_executable("noop")?;
        if let Some(bytes) = answer_bytes {
            command.arg("--answer-bytes").arg(bytes.to_string());
        }
        Reference::start(&mut command)
    }

    /// The floor keeps its file in `dir`, which should lie on the disk of the server's data.
    pub(crate) fn floor(dir: &Path) -> Result<Reference, Error> {
        Reference::start(this_executable("floor")?.arg("--dir").arg(dir))
    }

    fn start(command: &mut Command) -> Result<Reference, Error> {
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
        let mut lines = LineReader::of(&mut child)?;
        // Held from here on, so that a server that says nothing sensible is still ended.
        let mut reference = Reference { child, address: ([127, 0, 0, 1], 0).into() };
        reference.address = lines.next()?.parse()?;
        Ok(reference)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Reference {
    fn drop(&mut self) {
        // It may have ended by itself; either way it is gone afterwards.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// One run of the load generator and what it cost.
#[derive(Clone, Debug)]
pub(crate) struct Measured {
    pub(crate) outcome: Outcome,
    pub(crate) server_cpu: Duration,
    /// The same of each process, in the order in which they were named.
    pub(crate) cpu_of_each: Vec<Duration>,
    pub(crate) load_cpu: Duration,
}

impl Measured {
    /// Requests per second.
    pub(crate) fn rate(&self) -> f64 {
        self.outcome.requests as f64 / self.outcome.seconds
    }

    /// CPU that one process took for every request, in microseconds.
    #[allow(dead_code)] // One server has no others to be told apart from.
    pub(crate) fn cpu_us_of(&self, process: usize) -> f64 {
        self.cpu_of_each[process].as_secs_f64() * 1e6 / self.outcome.requests as f64
    }
}

/// Runs one load against the server of that process. Any unexpected answer is an error: figures with failures in them
/// would mean nothing.
pub(crate) fn measure(load: &Load, server_pid: u32) -> Result<Measured, Error> {
    measure_over(load, &[server_pid])
}

/// Runs one load against the servers of those processes.
pub(crate) fn measure_over(load: &Load, server_pids: &[u32]) -> Result<Measured, Error> {
    let cpu_of_each = || server_pids.iter().map(|pid| cpu_time(*pid)).collect::<Result<Vec<_>, _>>();
    let mut child = this_executable("load")?.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let mut lines = LineReader::of(&mut child)?;
    let mut input = child.stdin.take().ok_or("the load generator has no input")?;
    input.write_all(&serde_json::to_vec(load)?)?;
    drop(input);
    let run = (|| {
        let line = lines.next()?;
        if line != MEASURING {
            return Err(format!("the load generator said {line:?}").into());
        }
        let (servers_before, load_before) = (cpu_of_each()?, cpu_time(child.id())?);
        let outcome: Outcome = serde_json::from_str(&lines.next()?)?;
        // Not yet waited for, so that /proc still knows the generator even when it has ended.
        let (servers_after, load_after) = (cpu_of_each()?, cpu_time(child.id())?);
        let cpu_of_each: Vec<Duration> =
            servers_after.iter().zip(&servers_before).map(|(after, before)| *after - *before).collect();
        Ok::<_, Error>(Measured {
            outcome,
            server_cpu: cpu_of_each.iter().sum(),
            cpu_of_each,
            load_cpu: load_after - load_before,
        })
    })();
    child.kill().ok();
    child.wait()?;
    let measured = run?;
    match &measured.outcome.first_failure {
        None => Ok(measured),
        Some(first) => Err(format!(
            "{} of {} requests failed, the first with {first}",
            measured.outcome.failures, measured.outcome.requests
        )
        .into()),
    }
}

/// Repeats a comparison in turns, so that a slow minute of the machine hits all of it, and takes every one's median by rate.
pub(crate) fn measure_in_turns(loads: &[(Load, u32)], rounds: usize) -> Result<Vec<Measured>, Error> {
    let loads: Vec<_> = loads.iter().map(|(load, pid)| (load.clone(), vec![*pid])).collect();
    measure_over_in_turns(&loads, rounds)
}

/// The same with loads that several processes serve.
pub(crate) fn measure_over_in_turns(
    loads: &[(Load, Vec<u32>)],
    rounds: usize,
) -> Result<Vec<Measured>, Error> {
    let mut runs: Vec<Vec<Measured>> = vec![Vec::new(); loads.len()];
    for _ in 0..rounds.max(1) {
        for ((load, server_pids), runs) in loads.iter().zip(&mut runs) {
            runs.push(measure_over(load, server_pids)?);
        }
    }
    let median = |mut runs: Vec<Measured>| {
        runs.sort_by(|one, other| one.rate().total_cmp(&other.rate()));
        runs.swap_remove(runs.len() / 2)
    };
    Ok(runs.into_iter().map(median).collect())
}

/// This bench again, in another role.
pub(crate) fn this_executable(role: &str) -> Result<Command, Error> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("--role").arg(role);
    Ok(command)
}

/// What a child process says, line by line.
pub(crate) struct LineReader(BufReader<ChildStdout>);

impl LineReader {
    pub(crate) fn of(child: &mut Child) -> Result<LineReader, Error> {
        Ok(LineReader(BufReader::new(child.stdout.take().ok_or("the process has no output")?)))
    }

    pub(crate) fn next(&mut self) -> Result<String, Error> {
        let mut line = String::new();
        match self.0.read_line(&mut line)? {
            0 => Err("the process ended early".into()),
            _ => Ok(line.trim_end().into()),
        }
    }
}
