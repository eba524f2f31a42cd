//! Torn tails, cut at every byte, and flipped bits, everywhere: what is damaged is named, or it
//! provably does no harm.

use super::rig::Rig;
use super::*;
use crate::journal::format::{BLOCK_BYTES, Position, segment_file};
use crate::journal::sim::{Rng, SimDisk};

/// A batch on disk: where it begins, where its frames end, what it carries.
struct Written {
    base: Position,
    end: Position,
}

/// A few segments with batches of all sizes, proven by a watermark at the end.
fn journal(rng: &mut Rng) -> (SimDisk, Vec<Written>) {
    let disk = SimDisk::new();
    let mut rig = Rig::open(&disk, ScanFrom::Beginning).unwrap();
    let mut batches = Vec::new();
    for number in 0..24_u8 {
        rig.prepare();
        let payloads: Vec<Vec<u8>> =
            (0..1 + rng.below(3)).map(|_| vec![number; rng.below(2500) as usize]).collect();
        let positions = rig.append(0, &payloads).unwrap();
        assert!(rig.write());
        batches.push(Written { base: start_of(positions[0]), end: rig.journal.synced() });
        if number == 12 {
            let at = rig.journal.end();
            assert!(rig.checkpoint(at, b"half way"));
            batches.push(Written { base: at.align_up(), end: rig.journal.synced() });
        }
    }
    let before = rig.journal.end();
    assert!(rig.write(), "the watermark");
    rig.prepare();
    batches.push(Written { base: before.align_up(), end: rig.journal.synced() });
    (disk, batches)
}

/// The block in which a batch begins whose first payload is here.
fn start_of(position: Position) -> Position {
    Position { offset: position.offset / BLOCK_BYTES * BLOCK_BYTES, ..position }
}

fn frames(disk: &SimDisk) -> Result<Vec<Frame>, OpenError> {
    Rig::open(&disk.after_kill(), ScanFrom::Beginning).map(|rig| rig.frames)
}

#[test]
fn a_tail_torn_at_any_byte_is_cut_off() {
    let disk = SimDisk::new();
    let mut rig = Rig::open(&disk, ScanFrom::Beginning).unwrap();
    rig.append_synced(b"stays");
    let before = rig.journal.end();
    rig.append(1, &[vec![0xAA; 700], vec![0xBB; 4000]]).unwrap();
    rig.write();
    let (from, to) = (before.align_up().offset, rig.journal.end().offset);
    let name = segment_file(1);

    for cut in from..=to {
        let torn = disk.after_kill();
        torn.tamper(&name, |bytes| bytes[cut as usize..].fill(0));
        let mut rig = Rig::open(&torn, ScanFrom::Beginning).unwrap();
        let whole = cut == to;
        assert_eq!(rig.frames.len(), if whole { 3 } else { 1 }, "cut at {cut}");
        match rig.recovery.torn_tail {
            None => assert!(whole || cut == from, "cut at {cut}"),
            Some(ref tail) => {
                assert_eq!((&tail.file, tail.offset), (&name, from));
                assert!(tail.bytes <= cut - from, "{tail:?}");
                let cleared = torn.contents(&name).unwrap();
                assert!(cleared[from as usize..].iter().all(|&byte| byte == 0));
            }
        }
        // What is appended in its place is there the next time, under a new epoch.
        let epoch = rig.recovery.epoch;
        rig.append_synced(b"later");
        drop(rig);
        let rig = Rig::open(&torn, ScanFrom::Beginning).unwrap();
        assert_eq!(rig.frames.last().unwrap().payload, "later");
        assert_eq!(rig.recovery.epoch, epoch + 1);
        assert_eq!(rig.recovery.torn_tail, None);
    }
}

/// What became of one flipped bit.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    Named,
    Harmless,
}

#[test]
fn a_flipped_bit_is_named_or_does_no_harm() {
    let mut rng = Rng::new(7);
    let (disk, batches) = journal(&mut rng);
    let whole = frames(&disk).unwrap();
    let last_segment = batches.last().unwrap().base.segment;
    assert!(last_segment >= 4);
    let (mut named, mut harmless) = (0, 0);
    for segment in 1..=last_segment + 1 {
        let name = segment_file(segment);
        for offset in 0..disk.contents(&name).unwrap().len() as u32 {
            let at = Position { segment, offset };
            let batch = batches.iter().position(|b| b.base <= at && at < b.end);
            // All of every header, a sample of the rest.
            let near = |from: Position| at >= from && at.offset - from.offset < 64;
            let in_header = offset < 64 || batch.is_some_and(|batch| near(batches[batch].base));
            if !in_header && !rng.chance(4) {
                continue;
            }
            let damaged = disk.after_kill();
            damaged.flip_bit(&name, offset as usize, rng.below(8) as u8);
            let in_segment_header = offset < BLOCK_BYTES && segment <= last_segment;
            let is_last = batch == Some(batches.len() - 1);
            let expected = match batch {
                Some(_) if !is_last => Outcome::Named,
                None if in_segment_header => Outcome::Named,
                // The zeros behind a batch, an unused segment; and the last batch, which carries
                // nothing but the proof of those before it.
                _ => Outcome::Harmless,
            };
            match frames(&damaged) {
                Ok(found) => {
                    assert_eq!(expected, Outcome::Harmless, "{at} went unnoticed");
                    assert_eq!(found, whole, "{at} changed what was recovered");
                    harmless += 1;
                }
                Err(OpenError::Corrupt { file, offset: named_at, .. }) => {
                    assert_eq!(expected, Outcome::Named, "{at} does no harm");
                    let base = batch.map_or(0, |batch| batches[batch].base.offset);
                    let end = batch.map_or(BLOCK_BYTES, |batch| batches[batch].end.offset);
                    assert_eq!(file, name);
                    assert!((u64::from(base)..u64::from(end)).contains(&named_at), "{at} named {named_at}");
                    named += 1;
                }
                Err(other) => panic!("{at}: {other}"),
            }
        }
    }
    assert!(named > 1000 && harmless > 1000, "{named} named, {harmless} harmless");
}

#[test]
fn refusing_a_corrupt_journal_changes_nothing() {
    let (disk, batches) = journal(&mut Rng::new(8));
    let victim = &batches[batches.len() - 3];
    let name = segment_file(victim.base.segment);
    disk.flip_bit(&name, victim.base.offset as usize + 40, 0);
    let before = disk.contents(&name).unwrap();
    let error = Rig::open(&disk, ScanFrom::Checkpoint).err().unwrap();
    let text = error.to_string();
    assert!(text.contains(&name) && text.contains("FASTPACA_REPLACE=true"), "{text}");
    assert_eq!(disk.contents(&name).unwrap(), before);
}

#[test]
fn a_checkpoint_spares_recovery_what_lies_before_it_but_no_header() {
    let (disk, batches) = journal(&mut Rng::new(9));
    let early = &batches[2];
    let damaged = disk.after_kill();
    damaged.flip_bit(&segment_file(early.base.segment), early.base.offset as usize + 50, 1);
    assert!(Rig::open(&damaged, ScanFrom::Checkpoint).is_ok(), "not read");
    assert!(matches!(Rig::open(&damaged, ScanFrom::Beginning), Err(OpenError::Corrupt { .. })));

    let damaged = disk.after_kill();
    damaged.flip_bit(&segment_file(1), 100, 1);
    assert!(matches!(Rig::open(&damaged, ScanFrom::Checkpoint), Err(OpenError::Corrupt { .. })));
}

#[test]
fn missing_and_swapped_segments_are_named() {
    let (disk, _) = journal(&mut Rng::new(10));
    let gone = disk.after_kill();
    gone.remove(&segment_file(2)).unwrap();
    let error = Rig::open(&gone, ScanFrom::Checkpoint).err().unwrap();
    assert!(matches!(&error, OpenError::Corrupt { file, .. } if *file == segment_file(2)), "{error}");

    let swapped = disk.after_kill();
    let (two, three) = (disk.contents(&segment_file(2)).unwrap(), disk.contents(&segment_file(3)).unwrap());
    swapped.tamper(&segment_file(2), |bytes| bytes.clone_from(&three));
    swapped.tamper(&segment_file(3), |bytes| bytes.clone_from(&two));
    let error = Rig::open(&swapped, ScanFrom::Checkpoint).err().unwrap();
    assert!(matches!(&error, OpenError::Corrupt { file, .. } if *file == segment_file(2)), "{error}");

    let short = disk.after_kill();
    short.tamper(&segment_file(1), |bytes| bytes.truncate(20_000));
    let error = Rig::open(&short, ScanFrom::Checkpoint).err().unwrap();
    assert!(matches!(&error, OpenError::Corrupt { file, .. } if *file == segment_file(1)), "{error}");
}

/// Blocks of one segment exchanged with each other: every checksum in them is right, but not there.
#[test]
fn blocks_in_the_wrong_place_are_named() {
    let disk = SimDisk::new();
    let mut rig = Rig::open(&disk, ScanFrom::Beginning).unwrap();
    for number in 0..3_u8 {
        rig.append(0, &[vec![number; 10]]).unwrap();
        rig.write();
    }
    rig.write_all();
    disk.tamper(&segment_file(1), |bytes| {
        let (first, second) = bytes[4096..].split_at_mut(4096);
        first.swap_with_slice(&mut second[..4096]);
    });
    let error = frames(&disk).unwrap_err();
    assert!(matches!(error, OpenError::Corrupt { offset: 4096, .. }), "{error}");
}
