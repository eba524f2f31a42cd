//! Power loss and process death at every kind of moment, over many seeds and several lives of the
//! same journal. `JOURNAL_SEED=n` replays one seed; a failure prints its own.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use super::rig::Rig;
use super::*;
use crate::journal::sim::{Op, Rng, SimDisk, Survival};

const SEEDS: u64 = 600;
const LIVES: usize = 5;

#[test]
fn nothing_acknowledged_is_lost_and_nothing_is_invented() {
    if let Ok(seed) = std::env::var("JOURNAL_SEED") {
        World::new(seed.parse().unwrap()).run();
        return;
    }
    for seed in 0..SEEDS {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| World::new(seed).run())) {
            panic!(
                "JOURNAL_SEED={seed} replays this: {}",
                message(&*panic).unwrap_or_else(|| resume_unwind(panic))
            );
        }
    }
}

fn message(panic: &(dyn std::any::Any + Send)) -> Option<String> {
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(|&text| text.to_owned()))
}

/// One append, as the model remembers it.
#[derive(Clone)]
struct Append {
    payloads: Vec<Vec<u8>>,
    positions: Vec<Position>,
}

/// What must be there after a crash.
struct World {
    rng: Rng,
    disk: SimDisk,
    /// Appends queued in this life, after those known to be on disk from earlier ones.
    appends: Vec<Append>,
    /// How many of them were acknowledged, in this life or by having been recovered.
    acknowledged: usize,
    /// The newest acknowledged checkpoint: how many appends lie before its `scan_from`.
    checkpoint: Option<(Position, Vec<u8>)>,
    /// Checkpoints that were begun: a crash may leave any of them.
    begun: Vec<(Position, Vec<u8>)>,
    next: u64,
}

impl World {
    fn new(seed: u64) -> Self {
        World {
            rng: Rng::new(seed),
            disk: SimDisk::new(),
            appends: Vec::new(),
            acknowledged: 0,
            checkpoint: None,
            begun: Vec::new(),
            next: 0,
        }
    }

    fn run(mut self) {
        for _ in 0..LIVES {
            self.interrupt_opening();
            let rig = Rig::open(&self.disk, ScanFrom::Beginning).expect("opens after a crash");
            self.check_beginning(&rig);
            drop(rig);
            let rig = Rig::open(&self.disk, ScanFrom::Checkpoint).expect("opens again");
            self.check_checkpoint(&rig);
            self.live(rig);
            self.crash();
        }
    }

    /// Opening is itself interrupted, or fails, now and then; that must do no harm.
    fn interrupt_opening(&mut self) {
        if self.rng.chance(50) {
            self.disk.lose_power_after(self.rng.below(6));
            let _ = Rig::open(&self.disk, ScanFrom::Checkpoint);
            self.crash();
        }
        if self.rng.chance(30) {
            let nth = 1 + self.rng.below(4);
            let op = self.random_op();
            self.disk.fail(op, nth, io::ErrorKind::Other);
            let _ = Rig::open(&self.disk, ScanFrom::Checkpoint);
            self.disk = self.disk.after_kill();
        }
    }

    fn random_op(&mut self) -> Op {
        const OPS: [Op; 9] = [
            Op::Create,
            Op::Open,
            Op::Rename,
            Op::Remove,
            Op::SyncDir,
            Op::Allocate,
            Op::Write,
            Op::Sync,
            Op::Read,
        ];
        OPS[self.rng.below(OPS.len() as u64) as usize]
    }

    fn live(&mut self, mut rig: Rig) {
        if self.rng.chance(80) {
            self.disk.lose_power_after(self.rng.below(60));
        } else {
            let nth = 1 + self.rng.below(12);
            let op = self.random_op();
            self.disk.fail(op, nth, io::ErrorKind::Other);
        }
        let first = self.appends.len();
        for _ in 0..self.rng.below(120) {
            match self.rng.below(100) {
                0..55 => self.append(&mut rig),
                55..85 => drop(rig.write()),
                85..95 => rig.prepare(),
                95..98 => self.take_checkpoint(&mut rig),
                _ => self.remove_segments(&mut rig),
            }
        }
        self.count_acknowledged(&rig, first);
    }

    fn append(&mut self, rig: &mut Rig) {
        let frames = 1 + self.rng.below(3);
        let payloads: Vec<Vec<u8>> = (0..frames)
            .map(|_| {
                self.next += 1;
                let len = match self.rng.below(10) {
                    0 => self.rng.below(9000),
                    _ => self.rng.below(800),
                };
                let mut payload = self.next.to_le_bytes().to_vec();
                payload.resize(8 + len as usize, self.next as u8);
                payload
            })
            .collect();
        let queued = match self.rng.chance(25) {
            true => rig.append_lazily(&payloads),
            false => rig.append(self.appends.len() as u64, &payloads),
        };
        if let Ok(positions) = queued {
            for (payload, at) in payloads.iter().zip(&positions) {
                // What is queued can be read at once, unless the disk has just failed.
                if rig.journal.poisoned().is_none() {
                    let read = rig.journal.read(at.segment, at.offset, payload.len() as u32).unwrap();
                    assert_eq!(&read, payload);
                }
            }
            self.appends.push(Append { payloads, positions });
        }
    }

    fn take_checkpoint(&mut self, rig: &mut Rig) {
        // Anywhere between two appends that is not before the last checkpoint.
        let from = match self.rng.chance(50) {
            true => rig.journal.end(),
            false => self.checkpoint.as_ref().map_or(Position::ZERO, |c| c.0),
        };
        self.next += 1;
        let payload = self.next.to_le_bytes().repeat(1 + self.rng.below(200) as usize);
        self.begun.push((from, payload.clone()));
        if rig.checkpoint(from, &payload) {
            self.checkpoint = Some((from, payload));
        }
    }

    fn remove_segments(&mut self, rig: &mut Rig) {
        if let Some((from, _)) = &self.checkpoint {
            let _ = rig.journal.remove_segments_before(from.segment);
        }
    }

    /// Acknowledgements come in the order of the appends, and none after a failure.
    fn count_acknowledged(&mut self, rig: &Rig, first: usize) {
        let acks = rig.acks.lock();
        assert!(acks.is_sorted_by_key(|&(number, _)| number), "{acks:?}");
        assert!(acks.is_sorted_by_key(|&(_, ok)| !ok), "{acks:?}");
        if let Some(&(last, _)) = acks.iter().rfind(|(_, ok)| *ok) {
            assert!(last as usize >= first);
            self.acknowledged = last as usize + 1;
        }
    }

    fn crash(&mut self) {
        let survival = [Survival::None, Survival::All, Survival::Prefix, Survival::AnySectors];
        let survival = survival[self.rng.below(4) as usize];
        self.disk = match self.rng.chance(25) {
            true => self.disk.after_kill(),
            false => self.disk.after_power_loss(&mut self.rng, survival),
        };
    }

    /// Everything up to some point at or after the last acknowledgement, at its place, and no part
    /// of an append.
    fn check_beginning(&mut self, rig: &Rig) {
        let oldest = rig.journal.stats().oldest_segment;
        let found: Vec<&Frame> = rig.frames.iter().filter(|f| f.kind == FrameKind::Entry).collect();
        let mut found = found.into_iter();
        let mut kept = 0;
        for append in &self.appends {
            let present = append.positions[0].segment < oldest;
            if !present {
                let Some(first) = found.next() else { break };
                assert_eq!(
                    (first.position, &first.payload[..]),
                    (append.positions[0], &append.payloads[0][..])
                );
                for (at, payload) in append.positions.iter().zip(&append.payloads).skip(1) {
                    let frame = found.next().expect("an append is recovered whole");
                    assert_eq!((frame.position, &frame.payload[..]), (*at, &payload[..]));
                }
            }
            kept += 1;
        }
        assert!(found.next().is_none(), "recovered more than was appended");
        assert!(
            kept >= self.acknowledged,
            "{} appends were acknowledged, {kept} are there",
            self.acknowledged
        );
        self.appends.truncate(kept);
        self.acknowledged = kept;
    }

    /// The newest acknowledged checkpoint or a later one, then exactly what it does not cover.
    fn check_checkpoint(&mut self, rig: &Rig) {
        let (head, tail) = match rig.recovery.checkpoint {
            None => (None, &rig.frames[..]),
            Some(from) => (Some((from, rig.frames[0].payload.to_vec())), &rig.frames[1..]),
        };
        if head != self.checkpoint {
            let begun = |wanted| self.begun.iter().position(|c| Some(c) == wanted);
            let (found, acknowledged) = (begun(head.as_ref()), begun(self.checkpoint.as_ref()));
            assert!(
                found.is_some() && found > acknowledged,
                "checkpoint {found:?} instead of {acknowledged:?}"
            );
        }
        let from = head.as_ref().map_or(Position::ZERO, |c| c.0);
        let expected = self.appends.iter().flat_map(|a| a.positions.iter().zip(&a.payloads));
        let expected: Vec<_> = expected.filter(|(at, _)| **at >= from).collect();
        assert_eq!(tail.len(), expected.len());
        for (frame, (at, payload)) in tail.iter().zip(expected) {
            assert_eq!((frame.position, &frame.payload[..]), (*at, &payload[..]));
        }
        self.checkpoint = head;
    }
}
