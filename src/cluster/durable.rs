//! What this node must not forget of its own membership: one small file, replaced as a whole.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::founding::Durable;

const FILE: &str = "cluster.json";
/// Raised when older nodes could not make sense of the file.
const FORMAT: u32 = 1;

#[derive(Serialize, Deserialize)]
struct Saved {
    format: u32,
    incarnation: u64,
    membership: Durable,
}

/// The file of a node. Saving returns once it is on disk.
pub struct DurableFile {
    path: PathBuf,
    incarnation: u64,
}

impl DurableFile {
    /// Opens the file of a data directory and counts this start of the node.
    pub fn open(data_dir: &Path) -> io::Result<(DurableFile, Durable)> {
        let path = data_dir.join(FILE);
        let saved = match fs::read(&path) {
            Ok(bytes) => decode(&bytes).map_err(|why| invalid(&path, &why))?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Saved { format: FORMAT, incarnation: 0, membership: Durable::Nothing }
            }
            Err(error) => return Err(error),
        };
        let file = DurableFile { path, incarnation: saved.incarnation + 1 };
        file.save(&saved.membership)?;
        Ok((file, saved.membership))
    }

    /// Rises with every start of the node.
    pub fn incarnation(&self) -> u64 {
        self.incarnation
    }

    pub fn save(&self, membership: &Durable) -> io::Result<()> {
        let saved = Saved { format: FORMAT, incarnation: self.incarnation, membership: membership.clone() };
        let bytes = serde_json::to_vec_pretty(&saved).map_err(io::Error::other)?;
        let new = self.path.with_extension("new");
        let mut file = File::create(&new)?;
        file.write_all(&bytes)?;
        file.sync_all()?;
        fs::rename(&new, &self.path)?;
        let dir = self.path.parent().expect("the file lies in the data directory");
        File::open(dir)?.sync_all()
    }
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
    fn remembers_and_counts_starts() {
        let dir = tempfile::tempdir().unwrap();
        let (file, membership) = DurableFile::open(dir.path()).unwrap();
        assert_eq!((file.incarnation(), membership), (1, Durable::Nothing));
        let member = Durable::Member { cluster: ClusterId(7) };
        file.save(&member).unwrap();
        let (file, membership) = DurableFile::open(dir.path()).unwrap();
        assert_eq!((file.incarnation(), membership), (2, member));
        fs::write(dir.path().join(FILE), "{").unwrap();
        assert!(DurableFile::open(dir.path()).is_err());
    }
}
