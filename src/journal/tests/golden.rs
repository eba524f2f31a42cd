//! The bytes on disk are a contract: golden bytes of everything that is written, round trips, and
//! decoders that survive anything.

use proptest::prelude::*;

use super::rig::Rig;
use super::*;
use crate::journal::format::{
    AnyHeader, BATCH_HEADER_BYTES, BLOCK_BYTES, BatchHeader, Damage, FRAME_HEADER_BYTES, FrameHeader, Place,
    SegmentHeader, parse_segment_file, segment_file,
};
use crate::journal::scan::{Link, Scanner};
use crate::journal::sim::SimDisk;
use crate::testing::hex;

// These were computed by another program, from the layouts that `format` documents.
const GOLDEN_SEGMENT_CRC: &str = "4b6414f0";
const GOLDEN_BATCH: &str = "b7004601a7c9c9fc030000003412000005000000efbeadde0700000010400000";
const GOLDEN_FRAMES: [&str; 11] = [
    "bb5fbbe458020000040302010100ff00",
    "82d6998658020000040302010200ff00",
    "3a7cdc5b58020000040302010300ff00",
    "f0c4dc4258020000040302010400ff00",
    "486e999f58020000040302010500ff00",
    "71e7bbfd58020000040302010600ff00",
    "c94dfe2058020000040302010700ff00",
    "e596bacf58020000040302010800ff00",
    "5d3cff1258020000040302010900ff00",
    "64b5dd7058020000040302010a00ff00",
    "dc1f98ad58020000040302010b00ff00",
];
const GOLDEN_SEGMENT: &[&str] = &[
    "46504a4f55524e4c0100000001000000efcdab8967452301efcdab8967452301008000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000",
    "b7004601b29babfb010000002800000001000000000000000000000000000000e1d28bdb18000000f281a8c00100010022726f6c65223a2275736572222c227061727473223a5b5d",
    "b70046018e85a506010000001000000001000000b29babfb01000000481000005811a71100000000000000000a",
    "b70046019ddd0e52010000001d000000010000008e85a50601000000302000007fff2b1c0d000000df8a562b0600000001000000001000007374617465",
    "b7004601c3ee351a0100000010000000010000009ddd0e52010000003d30000031c4dbb100000000000000000a",
    "",
    "",
    "",
];

fn segment_header() -> SegmentHeader {
    SegmentHeader {
        number: 7,
        node_id: NODE,
        segment_bytes: 64 << 20,
        epoch: 3,
        previous_end: Position::new(6, 0x03ff_f123),
        previous_chain: 0xdead_beef,
        checkpoint: Position::new(5, 0x2000),
    }
}

#[test]
fn segment_header_bytes() {
    let block = segment_header().encode();
    assert_eq!(block.len(), BLOCK_BYTES as usize);
    assert_eq!(
        hex(&block[..64]),
        concat!(
            "46504a4f55524e4c",                 // magic
            "01000000",                         // version 1
            "07000000",                         // number
            "efcdab8967452301efcdab8967452301", // node
            "00000004",                         // segment bytes
            "03000000",                         // epoch
            "0600000023f1ff03",                 // previous end
            "efbeadde",                         // previous chain
            "0500000000200000",                 // checkpoint
            "00000000",                         // zeros from here on
        )
    );
    assert!(block[60..4092].iter().all(|&byte| byte == 0));
    assert_eq!(hex(&block[4092..]), GOLDEN_SEGMENT_CRC);
    assert_eq!(SegmentHeader::decode(&block), Ok(AnyHeader::Current(segment_header())));
}

#[test]
fn batch_header_bytes() {
    let header = BatchHeader {
        epoch: 3,
        frames_bytes: 0x1234,
        frame_count: 5,
        chain: 0xdead_beef,
        watermark: Position::new(7, 0x4010),
    };
    let (bytes, crc) = header.encode(Position::new(7, 0x5000));
    assert_eq!(hex(&bytes), GOLDEN_BATCH);
    assert_eq!(BatchHeader::decode(&bytes, Position::new(7, 0x5000)), Ok((header, crc)));
    let elsewhere = BatchHeader::decode(&bytes, Position::new(7, 0x6000));
    assert_eq!(elsewhere, Err(Damage::BatchChecksum));
}

#[test]
fn frame_header_bytes_of_every_kind() {
    let golden = GOLDEN_FRAMES;
    for (index, kind) in FrameKind::ALL.into_iter().enumerate() {
        assert_eq!(kind as usize, index + 1, "ordinals are explicit and stay");
        let header = FrameHeader { len: 600, payload_crc: 0x0102_0304, kind, group: 255 };
        let place = Place { position: Position::new(7, 0x5020), epoch: 3 };
        let bytes = header.encode(place);
        assert_eq!(hex(&bytes), golden[index], "{kind:?}");
        assert_eq!(FrameHeader::decode(&bytes, place), Ok(header));
        let another_life = Place { epoch: 4, ..place };
        assert_eq!(FrameHeader::decode(&bytes, another_life), Err(Damage::FrameChecksum));
    }
}

/// A whole small journal: what a release wrote, every later one must read.
#[test]
fn segment_bytes() {
    let disk = SimDisk::new();
    let mut rig = Rig::open(&disk, ScanFrom::Beginning).unwrap();
    rig.append_synced(br#""role":"user","parts":[]"#);
    rig.checkpoint(Position::new(1, 4096), b"state");
    rig.write_all();
    let bytes = disk.contents(&segment_file(1)).unwrap();
    let blocks: Vec<String> = bytes
        .chunks(BLOCK_BYTES as usize)
        .map(|block| {
            let used = block.iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1);
            hex(&block[..used.min(128)])
        })
        .collect();
    assert_eq!(blocks, GOLDEN_SEGMENT);
}

#[test]
fn file_names() {
    assert_eq!(segment_file(1), "0000000001.segment");
    assert_eq!(segment_file(u32::MAX), "4294967295.segment");
    assert_eq!(parse_segment_file("0000000042.segment"), Some(42));
    for other in ["42.segment", "0000000042", "0000000042.segment.old", "+000000042.segment", "LOCK"] {
        assert_eq!(parse_segment_file(other), None, "{other}");
    }
}

#[test]
fn a_newer_format_is_refused_by_name() {
    let disk = SimDisk::new();
    Rig::open(&disk, ScanFrom::Beginning).unwrap().append_synced(b"x");
    disk.tamper(&segment_file(1), |bytes| {
        bytes[8..10].copy_from_slice(&2_u16.to_le_bytes());
        let crc = crc32c::crc32c(&bytes[..4092]);
        bytes[4092..4096].copy_from_slice(&crc.to_le_bytes());
    });
    let error = Rig::open(&disk, ScanFrom::Beginning).err().unwrap();
    let OpenError::NewerFormat { file, found: 2, newest: 1 } = &error else {
        panic!("{error}");
    };
    assert_eq!(*file, segment_file(1));
}

#[test]
fn another_nodes_journal_is_refused() {
    let disk = SimDisk::new();
    Rig::open(&disk, ScanFrom::Beginning).unwrap();
    let stranger = Options { node_id: 1, ..rig::rig_options() };
    let error = Rig::open_with(stranger, &disk, ScanFrom::Beginning).err().unwrap();
    assert!(matches!(error, OpenError::ForeignNode { expected: 1, found: NODE, .. }), "{error}");
}

fn position() -> impl Strategy<Value = Position> {
    (any::<u32>(), any::<u32>()).prop_map(|(segment, offset)| Position { segment, offset })
}

proptest! {
    #[test]
    fn positions_round_trip_and_keep_their_order(a in position(), b in position()) {
        prop_assert_eq!(Position::unpack(a.pack()), a);
        prop_assert_eq!(Position::decode(&a.encode()), a);
        prop_assert_eq!(a.cmp(&b), a.pack().cmp(&b.pack()));
    }

    #[test]
    fn headers_round_trip(
        numbers in any::<[u32; 5]>(), node_id in any::<u128>(), at in position(), other in position(),
        group in any::<u16>(), kind in 0..FrameKind::ALL.len(),
    ) {
        let [number, segment_bytes, epoch, chain, count] = numbers;
        let segment = SegmentHeader {
            number, node_id, segment_bytes, epoch, previous_end: at, previous_chain: chain, checkpoint: other,
        };
        prop_assert_eq!(SegmentHeader::decode(&segment.encode()), Ok(AnyHeader::Current(segment)));

        let batch = BatchHeader { epoch, frames_bytes: segment_bytes, frame_count: count, chain, watermark: other };
        let (bytes, crc) = batch.encode(at);
        prop_assert_eq!(BatchHeader::decode(&bytes, at), Ok((batch, crc)));

        let frame = FrameHeader { len: count, payload_crc: chain, kind: FrameKind::ALL[kind], group };
        let place = Place { position: at, epoch };
        prop_assert_eq!(FrameHeader::decode(&frame.encode(place), place), Ok(frame));
    }

    #[test]
    fn decoders_survive_anything(bytes in prop::collection::vec(any::<u8>(), 0..5000), at in position(), epoch: u32) {
        let _ = SegmentHeader::decode(&bytes);
        let _ = BatchHeader::decode(&bytes, at);
        let _ = FrameHeader::decode(&bytes, Place { position: at, epoch });
    }

    /// Headers with valid checksums around anything: what only a bug or an attacker could write.
    #[test]
    fn the_scanner_survives_valid_headers_around_anything(
        frames_bytes in prop_oneof![0..20_000_u32, any::<u32>()], frame_count in 0..5_u32,
        frame in prop::option::of((prop_oneof![0..9000_u32, any::<u32>()], any::<u8>())),
        body in prop::collection::vec(any::<u8>(), 0..9000),
    ) {
        let base = Position::new(1, BLOCK_BYTES);
        let header = BatchHeader { epoch: 0, frames_bytes, frame_count, chain: 0, watermark: base };
        let mut file = vec![0; 4 * BLOCK_BYTES as usize];
        let at = BLOCK_BYTES as usize;
        file[at..at + BATCH_HEADER_BYTES].copy_from_slice(&header.encode(base).0);
        file[at + BATCH_HEADER_BYTES..][..body.len()].copy_from_slice(&body);
        if let Some((len, byte)) = frame {
            let place = Place { position: base.plus(BATCH_HEADER_BYTES), epoch: 0 };
            let kind = FrameKind::ALL[usize::from(byte) % FrameKind::ALL.len()];
            let head = FrameHeader { len, payload_crc: 0, kind, group: 0 }.encode(place);
            file[at + BATCH_HEADER_BYTES..][..FRAME_HEADER_BYTES].copy_from_slice(&head);
        }
        let disk = SimDisk::new();
        let sim = disk.create("x").unwrap();
        sim.write_at(&file, 0).unwrap();
        let mut scanner = Scanner::new(sim, 1, file.len() as u32);
        let _ = scanner.next(BLOCK_BYTES, &mut Link { chain: 0, epoch: 0 });
        let _ = scanner.survey(BLOCK_BYTES, 0);
    }

    /// Any bytes as a segment file: an error or an empty journal, never a panic.
    #[test]
    fn opening_survives_anything(
        bytes in prop::collection::vec(any::<u8>(), 0..3000), length in 0..5_u32, second: bool,
    ) {
        let disk = SimDisk::new();
        let mut file = vec![0; ((length * 16) << 10) as usize];
        let used = bytes.len().min(file.len());
        file[..used].copy_from_slice(&bytes[..used]);
        let name = segment_file(if second { 2 } else { 1 });
        disk.create(&name).unwrap().write_at(&file, 0).unwrap();
        let _ = Rig::open(&disk, ScanFrom::Checkpoint);
    }

    #[test]
    fn frames_round_trip_through_a_journal(
        appends in prop::collection::vec(prop::collection::vec(prop::collection::vec(any::<u8>(), 0..2000), 0..4), 0..20),
    ) {
        let disk = SimDisk::new();
        let mut rig = Rig::open(&disk, ScanFrom::Beginning).unwrap();
        let mut expected = Vec::new();
        for (number, payloads) in appends.iter().enumerate() {
            rig.prepare();
            let positions = rig.append(number as u64, payloads).unwrap();
            expected.extend(positions.into_iter().zip(payloads));
            if number % 3 == 0 {
                rig.write();
            }
        }
        for (at, payload) in &expected {
            prop_assert_eq!(&rig.journal.read(at.segment, at.offset, payload.len() as u32).unwrap(), payload);
        }
        rig.write_all();
        drop(rig);
        let rig = Rig::open(&disk, ScanFrom::Beginning).unwrap();
        prop_assert_eq!(rig.frames.len(), expected.len());
        for (frame, (position, payload)) in rig.frames.iter().zip(expected) {
            prop_assert_eq!(frame.position, position);
            prop_assert_eq!(&frame.payload, payload);
        }
    }
}
