//! A disk in memory that can do to its files what real disks do to theirs, for tests.
//!
//! It knows which bytes and names had been synced. [`SimDisk::after_power_loss`] gives the disk as
//! a machine would find it after losing power: what was synced, plus any part of what was not, torn
//! between 512-byte sectors; unsynced creations and renames survive up to any point in their order,
//! removals as they please.
//! Any operation can be made to fail, space can run out, bits can be flipped, syncs can be held.
//! A failed sync leaves what it should have synced unsynced for ever, as Linux does.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use parking_lot::{Condvar, Mutex, MutexGuard};

use super::disk::{Disk, DiskFile};
pub(crate) use crate::testing::Rng;

/// What a power loss tears writes between.
const SECTOR_BYTES: usize = 512;

/// A kind of operation, to be counted and made to fail.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Op {
    /// [`Disk::create`].
    Create,
    /// [`Disk::open`].
    Open,
    /// [`Disk::rename`].
    Rename,
    /// [`Disk::remove`].
    Remove,
    /// [`Disk::list`].
    List,
    /// [`Disk::sync_dir`].
    SyncDir,
    /// [`DiskFile::allocate`].
    Allocate,
    /// [`DiskFile::write_at`].
    Write,
    /// [`DiskFile::read_at`].
    Read,
    /// [`DiskFile::sync_data`].
    Sync,
}

impl Op {
    /// Whether it changes what is on the disk.
    fn is_change(self) -> bool {
        !matches!(self, Op::Open | Op::List | Op::Read)
    }
}

/// How much of what was not synced a power loss leaves behind.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Survival {
    /// Nothing.
    None,
    /// Everything.
    All,
    /// Every write up to some point, the last one torn.
    Prefix,
    /// Any subset of sectors.
    AnySectors,
}

/// The simulated disk; clones share it.
#[derive(Clone, Default)]
pub(crate) struct SimDisk {
    core: Arc<Core>,
}

#[derive(Default)]
struct Core {
    state: Mutex<State>,
    released: Condvar,
}

#[derive(Default)]
struct State {
    /// The directory as programs see it: names to files.
    names: BTreeMap<String, usize>,
    /// The directory as it is on disk.
    synced_names: BTreeMap<String, usize>,
    /// Directory changes that are not synced.
    name_changes: Vec<NameChange>,
    files: Vec<FileState>,
    counts: BTreeMap<Op, u64>,
    faults: Vec<Fault>,
    /// Changing operations still allowed until the power fails.
    until_power_loss: Option<u64>,
    capacity: Option<u64>,
    hold_syncs: bool,
}

#[derive(Clone, Default)]
struct FileState {
    /// As programs see it.
    bytes: Vec<u8>,
    /// As it is on disk.
    synced: Vec<u8>,
    /// Writes since the last sync.
    unsynced: Vec<(usize, Vec<u8>)>,
    allocated: u64,
}

#[derive(Clone)]
enum NameChange {
    Put(String, usize),
    Rename(String, String),
    Remove(String),
}

struct Fault {
    op: Op,
    /// Which operation of that kind fails, counted from 1.
    nth: u64,
    kind: io::ErrorKind,
}

impl SimDisk {
    /// An empty disk of endless size.
    pub(crate) fn new() -> Self {
        SimDisk::default()
    }

    /// Makes the `nth` operation of a kind from now on fail, 1 being the next one.
    pub(crate) fn fail(&self, op: Op, nth: u64, kind: io::ErrorKind) {
        let mut state = self.core.state.lock();
        let nth = state.counts.get(&op).copied().unwrap_or(0) + nth;
        state.faults.push(Fault { op, nth, kind });
    }

    /// How many operations of a kind there were.
    pub(crate) fn count(&self, op: Op) -> u64 {
        self.core.state.lock().counts.get(&op).copied().unwrap_or(0)
    }

    /// Lets `changes` more operations that change the disk succeed, and fails all after them.
    pub(crate) fn lose_power_after(&self, changes: u64) {
        self.core.state.lock().until_power_loss = Some(changes);
    }

    /// Whether the power was lost.
    pub(crate) fn has_lost_power(&self) -> bool {
        self.core.state.lock().until_power_loss == Some(0)
    }

    /// Limits what all files may take together, in bytes.
    pub(crate) fn set_capacity(&self, bytes: Option<u64>) {
        self.core.state.lock().capacity = bytes;
    }

    /// Makes syncs of files wait until the answer is dropped.
    pub(crate) fn hold_syncs(&self) -> HeldSyncs {
        self.core.state.lock().hold_syncs = true;
        HeldSyncs(self.clone())
    }

    /// The bytes of a file as programs see them.
    pub(crate) fn contents(&self, name: &str) -> Option<Vec<u8>> {
        let state = self.core.state.lock();
        Some(state.files[*state.names.get(name)?].bytes.clone())
    }

    /// Changes a file behind every program's back, synced bytes included.
    pub(crate) fn tamper(&self, name: &str, change: impl Fn(&mut Vec<u8>)) {
        let mut state = self.core.state.lock();
        let file = state.names[name];
        change(&mut state.files[file].bytes);
        change(&mut state.files[file].synced);
    }

    /// Inverts one bit of a file.
    pub(crate) fn flip_bit(&self, name: &str, offset: usize, bit: u8) {
        self.tamper(name, |bytes| bytes[offset] ^= 1 << bit);
    }

    /// A copy as a killed process leaves it: the page cache survives, with what is not synced and
    /// what a failed sync has given up. Faults are gone.
    pub(crate) fn after_kill(&self) -> SimDisk {
        let state = self.core.state.lock();
        SimDisk::with(State {
            names: state.names.clone(),
            synced_names: state.synced_names.clone(),
            name_changes: state.name_changes.clone(),
            files: state.files.clone(),
            ..State::default()
        })
    }

    /// A copy as a power loss may leave it.
    pub(crate) fn after_power_loss(&self, rng: &mut Rng, survival: Survival) -> SimDisk {
        let state = self.core.state.lock();
        let mut names = state.synced_names.clone();
        let changes = state.name_changes.len();
        let kept = match survival {
            Survival::None => 0,
            Survival::All => changes,
            Survival::Prefix | Survival::AnySectors => rng.below(changes as u64 + 1) as usize,
        };
        for (index, change) in state.name_changes.iter().enumerate() {
            // Nothing orders removals of different files.
            let loose = survival == Survival::AnySectors && matches!(change, NameChange::Remove(_));
            if if loose { rng.chance(50) } else { index < kept } {
                change.apply(&mut names);
            }
        }
        let survive = |file: &FileState| {
            let bytes = file.survive(rng, survival);
            FileState { allocated: bytes.len() as u64, synced: bytes.clone(), bytes, unsynced: Vec::new() }
        };
        SimDisk::with(State {
            files: state.files.iter().map(survive).collect(),
            synced_names: names.clone(),
            names,
            ..State::default()
        })
    }

    fn with(state: State) -> SimDisk {
        SimDisk { core: Arc::new(Core { state: Mutex::new(state), released: Condvar::new() }) }
    }

    /// Counts an operation, and fails it if it is to fail.
    fn begin(&self, op: Op) -> io::Result<MutexGuard<'_, State>> {
        let mut state = self.core.state.lock();
        let count = state.counts.entry(op).or_default();
        *count += 1;
        let count = *count;
        let due = |f: &&Fault| f.op == op && f.nth == count;
        if let Some(fault) = state.faults.iter().find(due) {
            return Err(io::Error::new(fault.kind, format!("injected into {op:?}")));
        }
        match &mut state.until_power_loss {
            Some(0) => return Err(io::Error::other("the power is off")),
            Some(left) if op.is_change() => *left -= 1,
            _ => {}
        }
        Ok(state)
    }

    fn lookup(state: &State, name: &str) -> io::Result<usize> {
        let file = state.names.get(name).copied();
        file.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, name.to_owned()))
    }

    fn handle(&self, file: usize) -> Arc<dyn DiskFile> {
        Arc::new(SimFile { disk: self.clone(), file })
    }
}

/// While it lives, syncs of files wait.
#[must_use]
pub(crate) struct HeldSyncs(SimDisk);

impl Drop for HeldSyncs {
    fn drop(&mut self) {
        self.0.core.state.lock().hold_syncs = false;
        self.0.core.released.notify_all();
    }
}

impl State {
    fn change_name(&mut self, change: NameChange) {
        change.apply(&mut self.names);
        self.name_changes.push(change);
    }

    fn used(&self) -> u64 {
        let files = self.names.values();
        files.map(|&file| self.files[file].allocated).sum()
    }

    fn free(&self) -> u64 {
        let capacity = self.capacity.unwrap_or(1 << 50);
        capacity.saturating_sub(self.used())
    }

    /// Lets a file take up to `len` bytes.
    fn grow(&mut self, file: usize, len: u64) -> io::Result<()> {
        let more = len.saturating_sub(self.files[file].allocated);
        if more > self.free() {
            return Err(io::Error::from(io::ErrorKind::StorageFull));
        }
        self.files[file].allocated += more;
        Ok(())
    }
}

impl NameChange {
    fn apply(&self, names: &mut BTreeMap<String, usize>) {
        match self {
            NameChange::Put(name, file) => {
                names.insert(name.clone(), *file);
            }
            NameChange::Rename(from, to) => {
                if let Some(file) = names.remove(from) {
                    names.insert(to.clone(), file);
                }
            }
            NameChange::Remove(name) => {
                names.remove(name);
            }
        }
    }
}

impl FileState {
    fn survive(&self, rng: &mut Rng, survival: Survival) -> Vec<u8> {
        let mut bytes = self.synced.clone();
        let sectors: Vec<(usize, &[u8])> =
            self.unsynced.iter().flat_map(|(at, written)| split_at_sectors(*at, written)).collect();
        let prefix = rng.below(sectors.len() as u64 + 1) as usize;
        for (index, (at, sector)) in sectors.into_iter().enumerate() {
            let survives = match survival {
                Survival::None => false,
                Survival::All => true,
                Survival::Prefix => index < prefix,
                Survival::AnySectors => rng.chance(50),
            };
            if survives {
                write_into(&mut bytes, at, sector);
            }
        }
        bytes
    }
}

/// The pieces of a write that a disk writes whole.
fn split_at_sectors(at: usize, bytes: &[u8]) -> Vec<(usize, &[u8])> {
    let mut pieces = Vec::new();
    let mut from = 0;
    while from < bytes.len() {
        let in_sector = SECTOR_BYTES - (at + from) % SECTOR_BYTES;
        let to = (from + in_sector).min(bytes.len());
        pieces.push((at + from, &bytes[from..to]));
        from = to;
    }
    pieces
}

fn write_into(target: &mut Vec<u8>, at: usize, bytes: &[u8]) {
    if target.len() < at + bytes.len() {
        target.resize(at + bytes.len(), 0);
    }
    target[at..at + bytes.len()].copy_from_slice(bytes);
}

impl Disk for SimDisk {
    fn create(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let mut state = self.begin(Op::Create)?;
        state.files.push(FileState::default());
        let file = state.files.len() - 1;
        state.change_name(NameChange::Put(name.to_owned(), file));
        Ok(self.handle(file))
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let state = self.begin(Op::Open)?;
        Ok(self.handle(SimDisk::lookup(&state, name)?))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut state = self.begin(Op::Rename)?;
        SimDisk::lookup(&state, from)?;
        state.change_name(NameChange::Rename(from.to_owned(), to.to_owned()));
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut state = self.begin(Op::Remove)?;
        SimDisk::lookup(&state, name)?;
        state.change_name(NameChange::Remove(name.to_owned()));
        Ok(())
    }

    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.begin(Op::List)?.names.keys().cloned().collect())
    }

    fn sync_dir(&self) -> io::Result<()> {
        let mut state = self.begin(Op::SyncDir)?;
        state.synced_names = state.names.clone();
        state.name_changes.clear();
        Ok(())
    }

    fn free_bytes(&self) -> io::Result<u64> {
        Ok(self.core.state.lock().free())
    }
}

struct SimFile {
    disk: SimDisk,
    file: usize,
}

impl DiskFile for SimFile {
    fn allocate(&self, len: u64) -> io::Result<()> {
        self.disk.begin(Op::Allocate)?.grow(self.file, len)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let mut state = self.disk.begin(Op::Write)?;
        state.grow(self.file, offset + bytes.len() as u64)?;
        let file = &mut state.files[self.file];
        write_into(&mut file.bytes, offset as usize, bytes);
        file.unsynced.push((offset as usize, bytes.to_vec()));
        Ok(())
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let state = self.disk.begin(Op::Read)?;
        let from = offset as usize;
        let bytes = state.files[self.file].bytes.get(from..from + buffer.len());
        buffer.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        {
            let mut state = self.disk.core.state.lock();
            while state.hold_syncs {
                self.disk.core.released.wait(&mut state);
            }
        }
        let result = self.disk.begin(Op::Sync).map(drop);
        let mut state = self.disk.core.state.lock();
        let file = &mut state.files[self.file];
        let unsynced = std::mem::take(&mut file.unsynced);
        match &result {
            Ok(()) => {
                for (at, bytes) in &unsynced {
                    write_into(&mut file.synced, *at, bytes);
                }
            }
            // With the power off nothing happens at all; what is unsynced may still be on disk.
            Err(_) if state.until_power_loss == Some(0) => {
                state.files[self.file].unsynced = unsynced;
            }
            // The kernel marks the pages clean: a later sync will not write them.
            Err(_) => {}
        }
        result
    }

    fn len(&self) -> io::Result<u64> {
        let state = self.disk.core.state.lock();
        Ok(state.files[self.file].bytes.len() as u64)
    }
}
