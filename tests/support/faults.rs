//! Faults injected from outside: system calls that fail or kill (by strace), disks that are small (by tmpfs).

use super::process::Process;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Stdio};
use std::time::Duration;

/// The system calls a fault is injected into, by what they do, with their names on every architecture.
pub(crate) mod calls {
    pub(crate) const SYNC: &str = "fdatasync,fsync";
    pub(crate) const WRITE: &str = "pwrite64,pwritev,pwritev2";
    pub(crate) const RENAME: &str = "?rename,?renameat,?renameat2";
    pub(crate) const UNLINK: &str = "?unlink,?unlinkat";
}

/// What [`Node::spawn_under`](super::process::Node::spawn_under) takes to run the server with a fault in these system calls,
/// in the words of strace's `-e inject=`. The tracer detaches itself, so that the server stays a child of the test. Its
/// seccomp filter would be faster, but strace 6.1 then ignores `signal=` at any but the first call.
pub(crate) fn strace(calls: &str, fault: &str) -> Vec<String> {
    let fixed = ["strace", "-D", "-f", "-qq", "-o", "/dev/null"];
    fixed.into_iter().map(String::from).chain(filters(calls, fault)).collect()
}

/// The same for a delay of these system calls. The filter has no other call stop for the tracer, which makes a server slow.
pub(crate) fn delayed(calls: &str, delay: Duration) -> Vec<String> {
    let mut program = strace(calls, &format!("delay_enter={}", delay.as_micros()));
    program.insert(1, "--seccomp-bpf".into());
    program
}

/// What is not traced is not printed either.
fn filters(calls: &str, fault: &str) -> [String; 4] {
    ["-e".into(), format!("trace={calls}"), "-e".into(), format!("inject={calls}:{fault}")]
}

/// Whether strace is here and may trace. A test that needs it says so and passes when it may not.
pub(crate) fn can_trace() -> bool {
    let [program, arguments @ ..] = &strace("getpid", "error=EIO")[..] else { return false };
    let traced = Command::new(program).args(arguments).arg("true").status();
    let can = traced.is_ok_and(|status| status.success());
    if !can {
        skip("strace is not installed or may not trace here");
    }
    can
}

/// Says that a test cannot do its work here; where `FASTPACA_TEST_NO_SKIP` is set, as in CI, that is a failure.
pub(crate) fn skip(reason: &str) {
    assert!(std::env::var_os("FASTPACA_TEST_NO_SKIP").is_none(), "cannot test: {reason}");
    eprintln!("SKIPPED: {reason}");
}

/// An injection into a server that runs already; ends with this value.
pub(crate) struct Injected {
    strace: Child,
    /// Kept open: strace has a word for every thread it meets, and dies when nobody can hear it.
    _said: BufReader<ChildStderr>,
}

impl Injected {
    /// Into every thread, each counting for itself. Returns once all are traced, so that the counts begin here.
    pub(crate) fn into(server: &Process, calls: &str, fault: &str) -> Injected {
        Injected::attach(&["-f", "-p", &server.pid().to_string()], calls, fault)
    }

    /// Into the one thread of this name.
    pub(crate) fn into_thread(server: &Process, thread: &str, calls: &str, fault: &str) -> Injected {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", server.pid())).expect("the server runs");
        let named = |task: &Path| {
            std::fs::read_to_string(task.join("comm")).is_ok_and(|name| name.trim_end() == thread)
        };
        let task =
            tasks.flatten().map(|task| task.path()).find(|task| named(task)).expect("a thread of that name");
        let id = task.file_name().expect("it was listed by name").to_string_lossy().into_owned();
        Injected::attach(&["-p", &id], calls, fault)
    }

    fn attach(to: &[&str], calls: &str, fault: &str) -> Injected {
        let mut strace = Command::new("strace");
        strace.args(["-o", "/dev/null"]).args(to).args(filters(calls, fault));
        let mut child = strace.stderr(Stdio::piped()).spawn().expect("strace was found before");
        let mut said = BufReader::new(child.stderr.take().expect("it was piped"));
        let attached = said.by_ref().lines().map_while(Result::ok).any(|line| line.contains("attached"));
        assert!(attached, "strace did not attach");
        Injected { strace: child, _said: said }
    }
}

impl Drop for Injected {
    fn drop(&mut self) {
        // It ends by itself when the server does.
        self.strace.kill().ok();
        self.strace.wait().ok();
    }
}

/// What [`Node::spawn_under`](super::process::Node::spawn_under) takes to let a server believe that the machine was booted
/// since it last ran. `dir` is for the boot id it is shown.
pub(crate) fn under_new_boot(dir: &Path) -> Vec<String> {
    let boot_id = dir.join("boot-id");
    std::fs::write(&boot_id, "another-boot").expect("a test writes to its own directory");
    let mount =
        format!("mount --bind '{}' /proc/sys/kernel/random/boot_id && exec \"$@\"", boot_id.display());
    let unshare = if rustix::process::geteuid().is_root() { "-m" } else { "-rm" };
    ["unshare", unshare, "sh", "-c", &mount, "sh"].map(String::from).into()
}

/// Whether [`under_new_boot`] works here.
pub(crate) fn can_change_boot() -> bool {
    let [program, arguments @ ..] = &under_new_boot(&std::env::temp_dir())[..] else { return false };
    let can = Command::new(program).args(arguments).arg("true").status().is_ok_and(|status| status.success());
    if !can {
        skip("mount namespaces are not allowed");
    }
    can
}

/// A file system of a fixed size in memory, unmounted with this value.
#[derive(Debug)]
pub(crate) struct SmallDisk(PathBuf);

impl SmallDisk {
    /// `None`, with a word about it, where mounting is not allowed.
    pub(crate) fn mount(at: &Path, bytes: u64) -> Option<SmallDisk> {
        std::fs::create_dir_all(at).expect("a mount point can be made");
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={bytes}"), "tmpfs"])
            .arg(at)
            .status();
        if mounted.is_ok_and(|status| status.success()) {
            return Some(SmallDisk(at.into()));
        }
        skip("mounting a tmpfs needs root");
        None
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// Bytes that can still be written.
    pub(crate) fn free_bytes(&self) -> u64 {
        let stat = rustix::fs::statvfs(&self.0).expect("a mounted file system has statistics");
        stat.f_bavail * stat.f_frsize
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: a process that is just ending may still hold it.
        Command::new("umount").arg("-l").arg(&self.0).status().ok();
    }
}
