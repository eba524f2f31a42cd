//! What this node must not forget of its own membership: one small file, replaced as a whole.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::founding::Durable;
use crate::files;
use crate::peer::Mark;

const FILE: &str = "cluster.json";
/// Raised when older nodes could not make sense of the file.
const FORMAT: u32 = 1;

#[derive(Clone, Serialize, Deserialize)]
struct Saved {
    format: u32,
    incarnation: u64,
    membership: Durable,
    /// See [`super::marks`]; the newest last.
    #[serde(default)]
    marks: Vec<u64>,
}

/// The file of a node. Saving returns once it is on disk.
pub struct DurableFile {
    path: PathBuf,
    incarnation: u64,
    /// As it is on disk.
    saved: Mutex<Saved>,
}

impl DurableFile {
    /// Opens the file of a data directory and counts this start of the node.
    pub fn open(data_dir: &Path) -> io::Result<(DurableFile, Durable)> {
        let path = data_dir.join(FILE);
        let mut saved = match fs::read(&path) {
            Ok(bytes) => decode(&bytes).map_err(|why| invalid(&path, &why))?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Saved { format: FORMAT, incarnation: 0, membership: Durable::Nothing, marks: Vec::new() }
            }
            Err(error) => return Err(error),
        };
        saved.incarnation += 1;
        write(&path, &saved)?;
        let membership = saved.membership.clone();
        Ok((DurableFile { path, incarnation: saved.incarnation, saved: Mutex::new(saved) }, membership))
    }

    /// Rises with every start of the node.
    pub fn incarnation(&self) -> u64 {
        self.incarnation
    }

    pub fn save(&self, membership: &Durable) -> io::Result<()> {
        self.change(|saved| saved.membership = membership.clone()).map(drop)
    }

    /// The marks of which the cluster state says one, or none yet; the newest last.
    pub fn marks(&self) -> Vec<u64> {
        self.saved.lock().marks.clone()
    }

    /// Adds a mark, and forgets all but the one before it; answers both.
    pub fn add_mark(&self) -> io::Result<Vec<u64>> {
        let random = getrandom::u64().map_err(io::Error::other)?;
        let saved = self.change(|saved| {
            saved.marks.drain(..saved.marks.len().saturating_sub(1));
            saved.marks.push(Mark::value_after(saved.marks.last().copied(), random));
        });
        saved.map(|saved| saved.marks)
    }

    fn change(&self, change: impl FnOnce(&mut Saved)) -> io::Result<Saved> {
        let mut saved = self.saved.lock();
        let mut changed = saved.clone();
        change(&mut changed);
        write(&self.path, &changed)?;
        *saved = changed.clone();
        Ok(changed)
    }
}

fn write(path: &Path, saved: &Saved) -> io::Result<()> {
    let bytes = serde_json::to_vec_pretty(saved).map_err(io::Error::other)?;
    files::replace(path, &bytes)
}

fn decode(bytes: &[u8]) -> Result<Saved, String> {
    let saved: Saved = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
    match saved.format {
        FORMAT => Ok(saved),
        other => Err(format!("format {other}, this version reads {FORMAT}")),
    }
}

fn invalid(path: &Path, why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("{}: {why}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::state::ClusterId;

    #[test]
    fn the_file_may_lack_what_later_versions_added() {
        let dir = tempfile::tempdir().unwrap();
        let text = r#"{"format":1,"incarnation":3,"membership":{"state":"nothing"}}"#;
        fs::write(dir.path().join(FILE), text).unwrap();
        let (file, _) = DurableFile::open(dir.path()).unwrap();
        assert_eq!((file.incarnation(), file.marks()), (4, Vec::new()));
    }

    #[test]
    fn remembers_and_counts_starts() {
        let dir = tempfile::tempdir().unwrap();
        let (file, membership) = DurableFile::open(dir.path()).unwrap();
        assert_eq!((file.incarnation(), membership), (1, Durable::Nothing));
        let member = Durable::Member { cluster: ClusterId(7) };
        file.save(&member).unwrap();
        let first = file.add_mark().unwrap();
        let second = file.add_mark().unwrap();
        assert_eq!((first.len(), second.len(), second[0]), (1, 2, first[0]));
        let third = file.add_mark().unwrap();
        assert_eq!((third.len(), third[0]), (2, second[1]));
        assert_eq!(third.iter().map(|mark| mark >> Mark::RANDOM_BITS).collect::<Vec<_>>(), [2, 3]);
        let (file, membership) = DurableFile::open(dir.path()).unwrap();
        assert_eq!((file.incarnation(), membership, file.marks()), (2, member, third));
        fs::write(dir.path().join(FILE), "{").unwrap();
        assert!(DurableFile::open(dir.path()).is_err());
    }
}
