//! The least a durable append can cost: one file, one writer thread, one `write` and one `fdatasync` for all that queued
//! while the last one ran.
//!
//! The file is filled with zeros beforehand, so that `fdatasync` has no file size or extents to write, and is written
//! from the start again when full: nobody reads it.

use parking_lot::{Condvar, Mutex};
use std::fs::File;
use std::io::{Result, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use tokio::sync::oneshot;

/// Larger than what is written in any one batch, and larger than any cache a disk might hide behind for long.
const FILE_BYTES: u64 = 256 << 20;

#[derive(Default)]
struct Queue {
    bytes: Vec<u8>,
    waiting: Vec<oneshot::Sender<()>>,
}

#[derive(Default)]
struct Shared {
    queue: Mutex<Queue>,
    arrived: Condvar,
}

/// A handle to the writer thread, which lives as long as the process.
#[derive(Clone)]
pub(crate) struct GroupCommit(Arc<Shared>);

impl GroupCommit {
    pub(crate) fn create(path: &Path) -> Result<GroupCommit> {
        let mut file = File::create(path)?;
        let zeros = vec![0; 1 << 20];
        for _ in 0..FILE_BYTES / zeros.len() as u64 {
            file.write_all(&zeros)?;
        }
        file.sync_all()?;
        let shared = Arc::new(Shared::default());
        let writer = Arc::clone(&shared);
        std::thread::Builder::new()
            .name("floor-writer".into())
            .spawn(move || write_batches(&file, &writer))?;
        Ok(GroupCommit(shared))
    }

    /// Returns once `record` is on disk.
    pub(crate) async fn append(&self, record: &[u8]) {
        let (durable, waiting) = oneshot::channel();
        {
            let mut queue = self.0.queue.lock();
            queue.bytes.extend_from_slice(&(record.len() as u32).to_le_bytes());
            queue.bytes.extend_from_slice(record);
            queue.waiting.push(durable);
        }
        self.0.arrived.notify_one();
        waiting.await.expect("the writer answers every record or ends the process");
    }
}

fn write_batches(file: &File, shared: &Shared) {
    let mut batch = Queue::default();
    let mut offset = 0;
    loop {
        {
            let mut queue = shared.queue.lock();
            while queue.waiting.is_empty() {
                shared.arrived.wait(&mut queue);
            }
            std::mem::swap(&mut *queue, &mut batch);
        }
        if offset + batch.bytes.len() as u64 > FILE_BYTES {
            offset = 0;
        }
        if let Err(error) = file.write_all_at(&batch.bytes, offset).and_then(|()| file.sync_data()) {
            eprintln!("floor: {error}");
            std::process::exit(1);
        }
        offset += batch.bytes.len() as u64;
        batch.bytes.clear();
        for durable in batch.waiting.drain(..) {
            // A closed receiver is a client that hung up; its record is on disk all the same.
            durable.send(()).ok();
        }
    }
}
