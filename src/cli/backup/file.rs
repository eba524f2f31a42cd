//! The file of a backup.
//!
//! ```text
//! "fastpaca backup\n"
//! start block    the header, as JSON
//! data block*    length-prefixed excerpts, compressed
//! end block      what the backup holds, as JSON; nothing follows
//!
//! block: kind u8, 3 zeros, stored u32, raw u32, 4 zeros, digest u128, payload (stored bytes, zstd); all little-endian
//! ```
//!
//! The digest (XXH3, 128 bits) covers the backup's id, the block's offset, what stands before it in the block, and the
//! payload: a block that was damaged, moved or taken from another backup is noticed. A file without an end block is no
//! backup yet: it can be gone on with. Deliberately lacks encryption, which is the business of where it is kept.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::Xxh3;

use super::walk::{Sum, Walk};
use crate::shards::Excerpt;

const MAGIC: &[u8; 16] = b"fastpaca backup\n";
const FORMAT: u32 = 1;
const HEAD_BYTES: usize = 32;
/// A block is written once it holds so much, uncompressed.
const BLOCK_BYTES: usize = 4 << 20;
/// What zstd calls fast and good.
const LEVEL: i32 = 3;

const START: u8 = 1;
const DATA: u8 = 2;
const END: u8 = 3;

/// What a backup says of itself at its beginning.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Header {
    pub(super) format: u32,
    pub(super) id: uuid::Uuid,
    pub(super) cluster_id: String,
    pub(super) begun_at: String,
    pub(super) written_by: String,
}

impl Header {
    pub(super) fn new(cluster_id: &str) -> Header {
        Header {
            format: FORMAT,
            id: uuid::Uuid::new_v4(),
            cluster_id: cluster_id.to_owned(),
            begun_at: jiff::Timestamp::now().strftime("%FT%TZ").to_string(),
            written_by: format!("fastpaca {}", env!("CARGO_PKG_VERSION")),
        }
    }
}

/// A backup that is being written.
pub(super) struct Writer {
    file: File,
    path: PathBuf,
    id: u128,
    offset: u64,
    /// What the next block will hold.
    waiting: Vec<u8>,
}

impl Writer {
    /// Goes on with what is there, which `walk` then has walked along, or begins.
    pub(super) fn open(path: &Path, header: &Header, walk: &mut Walk) -> Result<Writer, String> {
        let failed = |error: io::Error| format!("{}: {error}", path.display());
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path);
        let file = file.map_err(failed)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(format!("{}: another backup is writing it", path.display()));
            }
            Err(TryLockError::Error(error)) => return Err(failed(error)),
        }
        let (id, offset) = match file.metadata().map_err(failed)?.len() {
            0 => (0, 0),
            _ => gone_on_with(path, header, walk)?,
        };
        file.set_len(offset).map_err(failed)?;
        let mut writer = Writer { file, path: path.to_owned(), id, offset, waiting: Vec::new() };
        writer.file.seek(SeekFrom::Start(offset)).map_err(failed)?;
        if offset == 0 {
            writer.write(MAGIC)?;
            // The first block tells the id, so that it is not part of its own digest.
            writer.block(START, &serde_json::to_vec(header).expect("plain values become JSON"))?;
            writer.id = header.id.as_u128();
        }
        Ok(writer)
    }

    /// Takes an encoded excerpt.
    pub(super) fn add(&mut self, excerpt: &[u8]) -> Result<(), String> {
        let len = u32::try_from(excerpt.len()).map_err(|_| "an excerpt is too long".to_owned())?;
        self.waiting.extend_from_slice(&len.to_le_bytes());
        self.waiting.extend_from_slice(excerpt);
        if self.waiting.len() >= BLOCK_BYTES { self.flush() } else { Ok(()) }
    }

    /// Ends the backup; it is on disk then.
    pub(super) fn finish(mut self, sum: Sum) -> Result<u64, String> {
        self.flush()?;
        self.block(END, &serde_json::to_vec(&sum).expect("plain values become JSON"))?;
        self.file.sync_all().map_err(|error| self.failed(&error))?;
        Ok(self.offset)
    }

    fn flush(&mut self) -> Result<(), String> {
        if self.waiting.is_empty() {
            return Ok(());
        }
        let raw = std::mem::take(&mut self.waiting);
        self.block(DATA, &raw)
    }

    fn block(&mut self, kind: u8, raw: &[u8]) -> Result<(), String> {
        let payload = zstd::bulk::compress(raw, LEVEL).map_err(|error| self.failed(&error))?;
        let mut head = [0; HEAD_BYTES];
        head[0] = kind;
        let [stored, raw_len] =
            [payload.len(), raw.len()].map(|len| u32::try_from(len).map(u32::to_le_bytes));
        let too_long = |_| "a block is too long".to_owned();
        head[4..8].copy_from_slice(&stored.map_err(too_long)?);
        head[8..12].copy_from_slice(&raw_len.map_err(too_long)?);
        let digest = digest(self.id, self.offset, &head[..16], &payload);
        head[16..].copy_from_slice(&digest.to_le_bytes());
        self.write(&head)?;
        self.write(&payload)
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), String> {
        self.file.write_all(bytes).map_err(|error| self.failed(&error))?;
        self.offset += bytes.len() as u64;
        Ok(())
    }

    fn failed(&self, error: &io::Error) -> String {
        format!("{}: {error}", self.path.display())
    }
}

fn digest(id: u128, offset: u64, head: &[u8], payload: &[u8]) -> u128 {
    let mut hasher = Xxh3::new();
    hasher.update(&id.to_le_bytes());
    hasher.update(&offset.to_le_bytes());
    hasher.update(head);
    hasher.update(payload);
    hasher.digest128()
}

/// The id of the backup that was begun there, and where to go on with it.
fn gone_on_with(path: &Path, ours: &Header, walk: &mut Walk) -> Result<(u128, u64), String> {
    let begun = Reader::open(path);
    let mut reader = begun.map_err(|why| format!("{why}; it is left as it is: move it away"))?;
    let (theirs, ours) = (&reader.header.cluster_id, &ours.cluster_id);
    if theirs != ours {
        return Err(format!("{}: begun of cluster {theirs}, not of {ours}", path.display()));
    }
    let (mut offset, mut reading) = (reader.offset, Walk::default());
    // What is cut off at the end was being written when the backup was interrupted. Keys are read again from the first on.
    while let Ok(Some(_)) = reader.next(&mut reading) {
        if !reading.is_amid_keys() {
            (offset, *walk) = (reader.offset, reading.clone());
        }
    }
    Ok((reader.id, offset))
}

/// A backup that is read, from its beginning to its end block.
#[derive(Debug)]
pub(super) struct Reader {
    file: BufReader<File>,
    path: PathBuf,
    header: Header,
    id: u128,
    /// Where the next block begins.
    offset: u64,
    size: u64,
}

impl Reader {
    /// Reads the header.
    pub(super) fn open(path: &Path) -> Result<Reader, String> {
        let failed = |error: io::Error| format!("{}: {error}", path.display());
        let file = File::open(path).map_err(failed)?;
        let size = file.metadata().map_err(failed)?.len();
        let nothing = Header { id: uuid::Uuid::nil(), ..Header::new("") };
        let file = BufReader::new(file);
        let mut reader = Reader { file, path: path.to_owned(), header: nothing, id: 0, offset: 0, size };
        let mut magic = [0; MAGIC.len()];
        if reader.file.read_exact(&mut magic).is_err() || &magic != MAGIC {
            return Err(format!("{}: this is no backup", path.display()));
        }
        reader.offset = MAGIC.len() as u64;
        let (kind, raw) = reader.block()?;
        let header: Option<Header> = serde_json::from_slice(&raw).ok();
        match header {
            Some(header) if kind == START && header.format == FORMAT => {
                (reader.id, reader.header) = (header.id.as_u128(), header);
                Ok(reader)
            }
            Some(header) if kind == START => Err(format!(
                "{}: written by {} in format {}, which this version does not know",
                path.display(),
                header.written_by,
                header.format
            )),
            _ => Err(reader.damaged("the header cannot be read")),
        }
    }

    pub(super) fn header(&self) -> &Header {
        &self.header
    }

    /// Bytes read so far.
    pub(super) fn offset(&self) -> u64 {
        self.offset
    }

    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// The excerpts of the next block, with which `walk` has gone along; `None` at the end of a whole backup.
    ///
    /// # Errors
    /// Names the file, and where the block begins that is not as it was written.
    ///
    /// In both cases `offset` stays where that block begins.
    pub(super) fn next(&mut self, walk: &mut Walk) -> Result<Option<Vec<Excerpt>>, String> {
        let begin = self.offset;
        let read = self.contents(walk);
        if !matches!(read, Ok(Some(_))) {
            self.offset = begin;
        }
        read.map_err(|why| format!("{}: at offset {begin}: {why}", self.path.display()))
    }

    fn contents(&mut self, walk: &mut Walk) -> Result<Option<Vec<Excerpt>>, String> {
        match self.checked_block()? {
            (DATA, raw) => {
                let excerpts = excerpts(&raw)?;
                excerpts.iter().try_for_each(|excerpt| walk.take(excerpt))?;
                Ok(Some(excerpts))
            }
            (END, raw) => {
                let sum: Sum = serde_json::from_slice(&raw).map_err(|error| error.to_string())?;
                walk.check_end(sum)?;
                if self.offset != self.size {
                    return Err("something follows the end of the backup".to_owned());
                }
                Ok(None)
            }
            (kind, _) => Err(format!("a block of unknown kind {kind}")),
        }
    }

    fn block(&mut self) -> Result<(u8, Vec<u8>), String> {
        let begin = self.offset;
        self.checked_block().map_err(|why| format!("{}: at offset {begin}: {why}", self.path.display()))
    }

    fn checked_block(&mut self) -> Result<(u8, Vec<u8>), String> {
        let begin = self.offset;
        let left = self.size.saturating_sub(begin);
        if left == 0 {
            return Err("the file ends without the end of the backup".to_owned());
        }
        let cut_off = |_| "the file ends in the middle of a block".to_owned();
        let mut head = [0; HEAD_BYTES];
        self.file.read_exact(&mut head).map_err(cut_off)?;
        let number = |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        let (stored, raw) = (number(4) as usize, number(8) as usize);
        // Lengths are believed only as far as the file goes, until the digest has proved them.
        if stored as u64 > left - HEAD_BYTES as u64 {
            return Err("the file ends in the middle of a block, or the block is damaged".to_owned());
        }
        let mut payload = vec![0; stored];
        self.file.read_exact(&mut payload).map_err(cut_off)?;
        if digest(self.id, begin, &head[..16], &payload).to_le_bytes() != head[16..] {
            return Err("the block is damaged".to_owned());
        }
        let raw = zstd::bulk::decompress(&payload, raw).map_err(|error| error.to_string())?;
        self.offset = begin + (HEAD_BYTES + stored) as u64;
        Ok((head[0], raw))
    }

    fn damaged(&self, why: &str) -> String {
        format!("{}: at offset {}: {why}", self.path.display(), MAGIC.len())
    }
}

fn excerpts(mut raw: &[u8]) -> Result<Vec<Excerpt>, String> {
    let mut excerpts = Vec::new();
    while let Some((len, rest)) = raw.split_first_chunk() {
        let len = u32::from_le_bytes(*len) as usize;
        let (excerpt, rest) = rest.split_at_checked(len).ok_or("an excerpt is cut off")?;
        excerpts.push(Excerpt::decode(excerpt)?);
        raw = rest;
    }
    if raw.is_empty() { Ok(excerpts) } else { Err("an excerpt is cut off".to_owned()) }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::sync::Arc;

    use super::*;
    use crate::conversation::{
        Action, Command, ConversationId, IdempotencyRecord, Restore, RestoredKeys, RestoredVersion,
    };
    use crate::shards::{Cursor, RestoringCommand};

    /// An excerpt of a conversation without events: its creation, then these keys.
    fn excerpt(id: &str, after: Option<u64>, keys: &[u8], next: Option<Cursor>) -> Excerpt {
        let record = IdempotencyRecord { first_seq: 1, count: 1, version: 1, body: [1; 16], at_ms: 5 };
        let restored = keys.iter().map(|key| ([*key; 16], record)).collect();
        let versions = if after.is_none() { vec![RestoredVersion::Created(Arc::default())] } else { vec![] };
        let restored = RestoredKeys { after: 0, keys: restored };
        let restore = Restore { after, versions, keys: Some(restored), end: None };
        let id = ConversationId::parse(id).unwrap();
        let command = Command { id: id.clone(), now_ms: 5, action: Action::Restore(restore) }.encode();
        let command = RestoringCommand { after, upto: 0, digest: (0, 0), keys: keys.len() as u64, command };
        Excerpt { id: id.as_str().to_owned(), commands: vec![command], next }
    }

    fn keep(excerpt: &Excerpt, walk: &mut Walk, writer: &mut Writer) {
        walk.take(excerpt).unwrap();
        writer.add(&excerpt.encode()).unwrap();
        writer.flush().unwrap();
    }

    #[test]
    fn what_was_interrupted_amid_keys_goes_on_before_them() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("b.partial");
        let mut walk = Walk::default();
        let header = Header::new("cluster");
        let mut writer = Writer::open(&path, &header, &mut walk).unwrap();
        let amid = Cursor { version: 1, key: 2, keys: 2 };
        keep(&excerpt("a", None, &[1, 2], None), &mut walk, &mut writer);
        let whole = fs::metadata(&path).unwrap().len();
        keep(&excerpt("b", None, &[1, 2], Some(amid)), &mut walk, &mut writer);
        drop(writer);

        let mut walk = Walk::default();
        let mut writer = Writer::open(&path, &header, &mut walk).unwrap();
        assert_eq!((walk.position(), walk.sum().keys), ((Some("a"), None), 2));
        assert_eq!(fs::metadata(&path).unwrap().len(), whole);
        keep(&excerpt("b", None, &[2, 3], Some(amid)), &mut walk, &mut writer);
        let again = walk.take(&excerpt("b", Some(0), &[4, 2], None)).unwrap_err();
        assert!(again.contains("forgotten and used again"), "{again}");
    }

    #[test]
    fn a_file_that_is_no_backup_is_left_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("b.partial");
        let header = Header::new("cluster");
        for theirs in ["mine", &"mine ".repeat(100), "fastpaca backup\n and more"] {
            fs::write(&path, theirs).unwrap();
            let refused = Writer::open(&path, &header, &mut Walk::default()).err().unwrap();
            assert!(refused.contains("it is left as it is"), "{refused}");
            assert_eq!(fs::read(&path).unwrap(), theirs.as_bytes());
        }
        fs::write(&path, "").unwrap();
        Writer::open(&path, &header, &mut Walk::default()).map(drop).unwrap();
        assert_eq!(Reader::open(&path).unwrap().header(), &header);
    }
}
