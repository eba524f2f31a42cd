//! Small files that survive a power cut: what is written here is on disk, with its name, on return.
//!
//! Lacks on purpose: anything for files that grow (the journal and backups sync their own), and a lock.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

/// Writes a file aside and puts it into its place: whatever happens meanwhile, there is the old one or the new one, whole.
pub fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut aside = path.as_os_str().to_owned();
    aside.push(".new");
    write_synced(aside.as_ref(), bytes)?;
    rename(aside.as_ref(), path)
}

/// Writes a file in its place, for one whose being there says enough. It is there, maybe not whole, before anything is
/// waited for.
pub fn note(path: &Path, bytes: &[u8]) -> io::Result<()> {
    write_synced(path, bytes)?;
    sync_directory_of(path)
}

/// Gives a file or a directory another name in the same directory.
pub fn rename(from: &Path, to: &Path) -> io::Result<()> {
    fs::rename(from, to)?;
    sync_directory_of(to)
}

fn write_synced(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

fn sync_directory_of(path: &Path) -> io::Result<()> {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    File::open(directory.unwrap_or(Path::new(".")))?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_replaces_what_was_there_and_leaves_nothing_beside_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.json");
        for bytes in [&b"long enough"[..], b"short", b""] {
            replace(&path, bytes).unwrap();
            assert_eq!(fs::read(&path).unwrap(), bytes);
            note(&path, b"noted").unwrap();
            assert_eq!(fs::read(&path).unwrap(), b"noted");
        }
        let other = dir.path().join("b");
        rename(&path, &other).unwrap();
        let names: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
        assert_eq!(names, [other]);
        assert!(replace(&dir.path().join("absent/a"), b"").is_err());
    }
}
