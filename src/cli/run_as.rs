//! Started as root, the server gives its data directory to the user it is to run as, and goes on as that user.
//!
//! A container engine makes the directory of a host for a volume as root; so the server works with one whoever owns it,
//! and nothing of it that serves requests ever runs as root. Started by anybody else it stays who it is.

use std::convert::Infallible;
use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, lchown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::config::{Config, RunAs};

/// Why the server does not go on as the user it is to run as; one line for people.
#[derive(Debug, thiserror::Error)]
pub(super) enum RunAsError {
    #[error("FASTPACA_RUN_AS: {path} cannot be given to {user}: {source}. Give it away beforehand, or start as {user}", path = .path.display())]
    Give { path: PathBuf, user: RunAs, source: io::Error },
    #[error("FASTPACA_RUN_AS: cannot go on as {user}: {source}. Start as {user} instead")]
    Switch { user: RunAs, source: io::Error },
}

/// Returns where there is nothing to do: nobody is named, or this process is not root. Else the process goes on in
/// a new life of the same command, as the user that is named.
pub(super) fn switch(config: &Config) -> Result<(), RunAsError> {
    let Some(user) = config.run_as.filter(|_| rustix::process::geteuid().is_root()) else { return Ok(()) };
    fs::create_dir_all(&config.data_dir)
        .and_then(|()| give(&config.data_dir, user))
        .map_err(|source| RunAsError::Give { path: config.data_dir.clone(), user, source })?;
    match start_again(user) {
        Ok(never) => match never {},
        Err(source) => Err(RunAsError::Switch { user, source }),
    }
}

/// Everything below `path`, links themselves rather than what they point to.
fn give(path: &Path, user: RunAs) -> io::Result<()> {
    let found = fs::symlink_metadata(path)?;
    if (found.uid(), found.gid()) != (user.uid, user.gid) {
        lchown(path, Some(user.uid), Some(user.gid))?;
    }
    if found.is_dir() {
        for entry in fs::read_dir(path)? {
            give(&entry?.path(), user)?;
        }
    }
    Ok(())
}

/// In this same process, so that signals and the supervisor find it where it was. Other groups are given up with root.
fn start_again(user: RunAs) -> io::Result<Infallible> {
    rustix::thread::set_no_new_privs(true)?;
    let program = std::env::current_exe()?;
    Err(Command::new(program).args(std::env::args_os().skip(1)).uid(user.uid).gid(user.gid).exec())
}
