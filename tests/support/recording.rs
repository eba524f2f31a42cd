//! What a server did to the files of one directory, recorded by strace, and what a power cut would have left of it.
//!
//! The model is the strict reading of POSIX: bytes of a file are safe once an `fsync` or `fdatasync` of that file began
//! after they were written and returned; a name is safe once the same happened to its directory. Everything else may be
//! lost, or kept, or kept in part ([`Unsynced`]). `sync_file_range` and closing promise nothing.
//!
//! Deliberately absent: reordering by the disk of what *was* synced, and writes through mappings (nobody here uses them).

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// Every call that changes files or makes a change durable.
const CALLS: &str = "openat,?creat,write,pwrite64,?writev,?pwritev,?pwritev2,ftruncate,fallocate,\
                     ?rename,?renameat,?renameat2,?unlink,?unlinkat,?rmdir,?mkdir,?mkdirat,fsync,fdatasync";

/// What a disk keeps or loses as a whole.
const BLOCK_BYTES: usize = 4096;

/// Arguments for [`Node::spawn_under`](super::process::Node::spawn_under) that record to this file.
pub(crate) fn strace_to(log: &Path) -> Vec<String> {
    let fixed = "strace -D -f -qq --seccomp-bpf -y -ttt -xx -s 16777216 -o";
    let trace = ["-e".into(), "signal=none".into(), "-e".into(), format!("trace={CALLS}")];
    fixed.split(' ').map(String::from).chain([log.display().to_string()]).chain(trace).collect()
}

/// A directory's history, over one or more lives of a server.
pub(crate) struct Recording {
    root: PathBuf,
    operations: Vec<Operation>,
    /// Files and directories as they are now, with the number of each file.
    names: HashMap<PathBuf, Named>,
    files: usize,
    /// Where plain writes to an open file go on.
    positions: HashMap<String, u64>,
    lines: usize,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Named {
    File(usize),
    Directory,
}

/// A call that succeeded, or was never seen to return.
struct Operation {
    /// Lines of the record where it began and returned.
    begun: usize,
    returned: usize,
    at: SystemTime,
    change: Change,
}

enum Change {
    Write { file: usize, offset: u64, bytes: Vec<u8> },
    Extend { file: usize, len: u64 },
    Cut { file: usize, len: u64 },
    Name { path: PathBuf, named: Named },
    Rename { from: PathBuf, to: PathBuf },
    Remove { path: PathBuf },
    Sync { what: Synced },
}

#[derive(Clone, PartialEq, Eq, Hash)]
enum Synced {
    File(usize),
    Directory(PathBuf),
}

/// What becomes of changes that nothing made durable.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Unsynced {
    Lost,
    /// Blocks of data are kept or not by chance, and of the names a first part.
    Torn {
        seed: u64,
    },
}

impl Recording {
    /// Of the files below `root`, which must not exist when the first recorded life begins.
    pub(crate) fn of(root: &Path) -> Recording {
        let (names, positions) = (HashMap::from([(root.to_owned(), Named::Directory)]), HashMap::new());
        Recording { root: root.to_owned(), operations: Vec::new(), names, files: 0, positions, lines: 0 }
    }

    /// Adds a life that has ended.
    pub(crate) fn add(&mut self, log: &Path) {
        let mut unfinished: HashMap<String, (usize, String)> = HashMap::new();
        for line in BufReader::new(fs::File::open(log).unwrap()).lines() {
            let line = line.unwrap();
            self.lines += 1;
            let (thread, rest) = line.split_once(' ').expect("a line begins with a thread id");
            let rest = rest.trim_start();
            if let Some(call) = rest.strip_suffix(" <unfinished ...>") {
                unfinished.insert(thread.to_owned(), (self.lines, call.to_owned()));
            } else if let Some((_, resumed)) = rest.split_once("<... ") {
                let end = resumed.split_once(" resumed>").map_or("", |(_, end)| end);
                if let Some((begun, call)) = unfinished.remove(thread) {
                    self.call(begun, self.lines, &format!("{call}{end}"));
                }
            } else {
                self.call(self.lines, self.lines, rest);
            }
        }
        // What a kill cut short may have happened.
        for (begun, call) in unfinished.into_values() {
            self.call(begun, usize::MAX, &format!("{call}) = ?"));
        }
        self.operations.sort_by_key(|operation| operation.begun);
    }

    /// How many moments there are; each is just before one recorded operation.
    pub(crate) fn moments(&self) -> usize {
        self.operations.len()
    }

    /// When a moment was.
    pub(crate) fn time_of(&self, moment: usize) -> SystemTime {
        self.operations[moment].at
    }

    /// `TIME NAME(ARGUMENTS) = RESULT`.
    fn call(&mut self, begun: usize, returned: usize, text: &str) {
        let Some((time, text)) = text.split_once(' ') else { return };
        let Some((name, rest)) = text.split_once('(') else { return };
        let Some((arguments, result)) = rest.rsplit_once(" = ") else { return };
        if result.starts_with('-') {
            return;
        }
        let at = SystemTime::UNIX_EPOCH
            + Duration::from_secs_f64(time.parse().expect("a line begins with its time"));
        let arguments: Vec<&str> = arguments.trim_end().trim_end_matches(')').split(", ").collect();
        for change in self.changes(name, &arguments, result) {
            self.operations.push(Operation { begun, returned, at, change });
        }
    }

    fn changes(&mut self, name: &str, arguments: &[&str], result: &str) -> Vec<Change> {
        let changes = match (name, arguments) {
            ("openat", [_, path, flags, ..]) => self.opened(&unquoted(path), flags, result),
            ("write", [file, bytes, ..]) => self.written(file, unquoted(bytes), None),
            ("pwrite64", [file, bytes, _, offset]) => {
                self.written(file, unquoted(bytes), offset.parse().ok())
            }
            ("fallocate", [file, "0", offset, len]) => {
                let end = offset.parse::<u64>().unwrap() + len.parse::<u64>().unwrap();
                self.file(file).map(|file| vec![Change::Extend { file, len: end }])
            }
            ("ftruncate", [file, len]) => {
                self.file(file).map(|file| vec![Change::Cut { file, len: len.parse().unwrap() }])
            }
            ("fsync" | "fdatasync", [file]) => self.synced(file).map(|what| vec![Change::Sync { what }]),
            ("rename", [from, to]) => self.renamed(&unquoted(from), &unquoted(to)),
            ("renameat" | "renameat2", [_, from, _, to, ..]) => self.renamed(&unquoted(from), &unquoted(to)),
            ("unlink" | "rmdir", [path]) => self.removed(&unquoted(path)),
            ("unlinkat", [directory, path, ..]) => self.removed(&in_directory(directory, path)),
            ("mkdir", [path, ..]) => self.named(&unquoted(path), Named::Directory),
            ("mkdirat", [_, path, ..]) => self.named(&unquoted(path), Named::Directory),
            _ => {
                // Of other files nothing matters; of these, nothing may be missed.
                assert!(!self.concerns(arguments), "a call that is not understood: {name}{arguments:?}");
                None
            }
        };
        changes.unwrap_or_default()
    }

    fn concerns(&self, arguments: &[&str]) -> bool {
        arguments.iter().any(|argument| path_of(argument).is_some_and(|path| path.starts_with(&self.root)))
    }

    fn opened(&mut self, path: &[u8], flags: &str, result: &str) -> Option<Vec<Change>> {
        let path = path_from(path);
        if !path.starts_with(&self.root) {
            return None;
        }
        self.positions.insert(descriptor(result).to_owned(), 0);
        let mut changes = Vec::new();
        if flags.contains("O_CREAT") && !self.names.contains_key(&path) {
            self.files += 1;
            changes.extend(self.named(path.as_os_str().as_encoded_bytes(), Named::File(self.files))?);
        }
        if let (true, Some(Named::File(file))) = (flags.contains("O_TRUNC"), self.names.get(&path)) {
            changes.push(Change::Cut { file: *file, len: 0 });
        }
        Some(changes)
    }

    fn written(&mut self, argument: &str, bytes: Vec<u8>, offset: Option<u64>) -> Option<Vec<Change>> {
        let file = self.file(argument)?;
        let position = self.positions.entry(descriptor(argument).to_owned()).or_default();
        let offset = offset.unwrap_or_else(|| {
            *position += bytes.len() as u64;
            *position - bytes.len() as u64
        });
        Some(vec![Change::Write { file, offset, bytes }])
    }

    fn synced(&self, argument: &str) -> Option<Synced> {
        let path = path_of(argument)?;
        match self.names.get(&path)? {
            Named::File(file) => Some(Synced::File(*file)),
            Named::Directory => Some(Synced::Directory(path)),
        }
    }

    fn named(&mut self, path: &[u8], named: Named) -> Option<Vec<Change>> {
        let path = path_from(path);
        if !path.starts_with(&self.root) || self.names.contains_key(&path) {
            return None;
        }
        self.names.insert(path.clone(), named);
        Some(vec![Change::Name { path, named }])
    }

    fn renamed(&mut self, from: &[u8], to: &[u8]) -> Option<Vec<Change>> {
        let (from, to) = (path_from(from), path_from(to));
        rename(&mut self.names, &from, &to).then(|| vec![Change::Rename { from, to }])
    }

    fn removed(&mut self, path: &[u8]) -> Option<Vec<Change>> {
        let path = path_from(path);
        self.names.remove(&path).map(|_| vec![Change::Remove { path }])
    }

    fn file(&self, argument: &str) -> Option<usize> {
        match self.names.get(&path_of(argument)?) {
            Some(Named::File(file)) => Some(*file),
            _ => None,
        }
    }

    /// Writes what a power cut at this moment leaves into `into`, an empty directory.
    pub(crate) fn restore(&self, moment: usize, unsynced: Unsynced, into: &Path) {
        let before = &self.operations[..moment];
        let cut = self.operations[moment].begun;
        let synced = last_syncs(before, cut);
        let is_safe = |operation: &Operation, what: Synced| {
            synced.get(&what).is_some_and(|sync| operation.returned < *sync)
        };
        let mut chance = Chance::of(unsynced, moment);
        let unsafe_names = before.iter().filter(|operation| {
            parent_of(&operation.change).is_some_and(|parent| !is_safe(operation, Synced::Directory(parent)))
        });
        let mut names_kept = chance.part_of(unsafe_names.count());
        let mut image =
            Image { names: HashMap::from([(self.root.clone(), Named::Directory)]), ..Image::default() };
        for operation in before {
            match &operation.change {
                Change::Sync { .. } => {}
                Change::Write { file, offset, bytes } => {
                    let safe = is_safe(operation, Synced::File(*file));
                    image.write(*file, *offset, bytes, |_| safe || chance.keeps());
                }
                Change::Extend { file, len } | Change::Cut { file, len } => {
                    if is_safe(operation, Synced::File(*file)) || chance.keeps() {
                        image.resize(*file, *len, matches!(operation.change, Change::Cut { .. }));
                    }
                }
                change => {
                    let parent = parent_of(change).expect("what is left changes names");
                    let safe = is_safe(operation, Synced::Directory(parent));
                    if safe || names_kept > 0 {
                        names_kept -= usize::from(!safe);
                        image.change_names(change);
                    }
                }
            }
        }
        image.write_to(&self.root, into);
    }
}

/// For everything synced before the cut: where its last completed sync began.
fn last_syncs(before: &[Operation], cut: usize) -> HashMap<Synced, usize> {
    let mut syncs = HashMap::new();
    for operation in before {
        if let (Change::Sync { what }, true) = (&operation.change, operation.returned < cut) {
            syncs.insert(what.clone(), operation.begun);
        }
    }
    syncs
}

/// The directory whose sync makes a change of names durable.
fn parent_of(change: &Change) -> Option<PathBuf> {
    match change {
        Change::Name { path, .. } | Change::Remove { path } | Change::Rename { to: path, .. } => {
            path.parent().map(Path::to_owned)
        }
        _ => None,
    }
}

/// Moves a name and all below it; false when there is no such name.
fn rename(names: &mut HashMap<PathBuf, Named>, from: &Path, to: &Path) -> bool {
    let moved: Vec<PathBuf> = names.keys().filter(|path| path.starts_with(from)).cloned().collect();
    for path in &moved {
        let Some(named) = names.remove(path) else { continue };
        let below = path.strip_prefix(from).expect("it was chosen by its prefix");
        names.insert(if below.as_os_str().is_empty() { to.to_owned() } else { to.join(below) }, named);
    }
    !moved.is_empty()
}

/// A directory tree in the making.
#[derive(Default)]
struct Image {
    names: HashMap<PathBuf, Named>,
    contents: HashMap<usize, Vec<u8>>,
}

impl Image {
    /// Writes those blocks of the file for which `keeps` says so.
    fn write(&mut self, file: usize, offset: u64, bytes: &[u8], mut keeps: impl FnMut(usize) -> bool) {
        let content = self.contents.entry(file).or_default();
        let mut at = offset as usize;
        let mut rest = bytes;
        while !rest.is_empty() {
            let (block, others) = rest.split_at(rest.len().min(BLOCK_BYTES - at % BLOCK_BYTES));
            if keeps(at / BLOCK_BYTES) {
                content.resize(content.len().max(at + block.len()), 0);
                content[at..at + block.len()].copy_from_slice(block);
            }
            at += block.len();
            rest = others;
        }
    }

    fn resize(&mut self, file: usize, len: u64, cut: bool) {
        let content = self.contents.entry(file).or_default();
        let len = if cut { len as usize } else { content.len().max(len as usize) };
        content.resize(len, 0);
    }

    fn change_names(&mut self, change: &Change) {
        match change {
            Change::Name { path, named } => drop(self.names.insert(path.clone(), *named)),
            Change::Remove { path } => drop(self.names.remove(path)),
            Change::Rename { from, to } => drop(rename(&mut self.names, from, to)),
            _ => {}
        }
    }

    fn write_to(&self, root: &Path, into: &Path) {
        let mut names: Vec<_> = self.names.iter().collect();
        // A directory comes before what is in it; what lost its directory is lost with it.
        names.sort();
        let mut directories = HashSet::new();
        for (path, named) in names {
            let target = into.join(path.strip_prefix(root).expect("only names below the root are kept"));
            let reachable = path == root || path.parent().is_some_and(|parent| directories.contains(parent));
            match named {
                Named::Directory if reachable => {
                    fs::create_dir_all(&target).unwrap();
                    directories.insert(path.as_path());
                }
                Named::File(file) if reachable => {
                    fs::write(&target, self.contents.get(file).map_or(&[][..], Vec::as_slice)).unwrap();
                }
                _ => {}
            }
        }
    }
}

impl PartialOrd for Named {
    fn partial_cmp(&self, other: &Named) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Named {
    fn cmp(&self, _: &Named) -> std::cmp::Ordering {
        std::cmp::Ordering::Equal // Paths are unique; nothing else orders names.
    }
}

/// xorshift64*, so that a failing seed can be run again.
struct Chance(Option<u64>);

impl Chance {
    fn of(unsynced: Unsynced, moment: usize) -> Chance {
        match unsynced {
            Unsynced::Lost => Chance(None),
            Unsynced::Torn { seed } => {
                Chance(Some((seed ^ moment as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1))
            }
        }
    }

    fn next(&mut self) -> Option<u64> {
        let state = self.0.as_mut()?;
        *state ^= *state >> 12;
        *state ^= *state << 25;
        *state ^= *state >> 27;
        Some(state.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33)
    }

    fn keeps(&mut self) -> bool {
        self.next().is_some_and(|number| number % 2 == 0)
    }

    fn part_of(&mut self, count: usize) -> usize {
        self.next().map_or(0, |number| number as usize % (count + 1))
    }
}

/// The number of a descriptor in `7</path>`.
fn descriptor(argument: &str) -> &str {
    argument.split('<').next().unwrap_or_default().trim()
}

/// The path of a descriptor or of a quoted argument.
fn path_of(argument: &str) -> Option<PathBuf> {
    let inner = match argument.split_once('<') {
        Some((_, path)) => path.split_once('>')?.0,
        None => argument.strip_prefix('"')?.strip_suffix('"')?,
    };
    Some(path_from(&unhexed(inner)))
}

fn in_directory(directory: &str, path: &str) -> Vec<u8> {
    let joined = path_of(directory).unwrap_or_default().join(path_from(&unquoted(path)));
    joined.into_os_string().into_encoded_bytes()
}

fn path_from(bytes: &[u8]) -> PathBuf {
    PathBuf::from(String::from_utf8_lossy(bytes).into_owned())
}

fn unquoted(argument: &str) -> Vec<u8> {
    assert!(!argument.ends_with("..."), "strace has cut an argument short");
    unhexed(argument.trim_matches('"'))
}

/// Bytes written as `\x2f\x74`; anything else, as in `AT_FDCWD` or `pipe:[7]`, stands for itself.
fn unhexed(text: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len() / 4);
    let mut rest = text.as_bytes();
    while let Some((&first, others)) = rest.split_first() {
        match rest {
            [b'\\', b'x', high, low, others @ ..] => {
                let digit =
                    |byte: u8| (byte as char).to_digit(16).expect("strace writes hexadecimal digits") as u8;
                bytes.push(digit(*high) << 4 | digit(*low));
                rest = others;
            }
            _ => {
                bytes.push(first);
                rest = others;
            }
        }
    }
    bytes
}
