//! Bytes of Raft records inside journal frames. Version first, fixed-width little endian, explicit ordinals.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use super::types::{Host, LeaderId, LogId, Membership, ReplicaId, StoredMembership, Vote};

pub(super) const VERSION: u8 = 1;

/// Bytes before the body of an entry frame.
pub(crate) const ENTRY_HEADER_BYTES: usize = 2 + LOG_ID_BYTES;
const LOG_ID_BYTES: usize = 24;
/// What [`encode_log_id`] makes of a present log id.
pub(crate) const SOME_LOG_ID_BYTES: usize = 2 + LOG_ID_BYTES;
/// No group has more replicas or configurations than this; decoding refuses more.
const MAX_MEMBERS: usize = 1024;

/// A frame that passed its checksum but does not decode: written by a newer version, or a bug.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("undecodable {what}: {reason}")]
pub(crate) struct RecordError {
    pub(crate) what: &'static str,
    pub(crate) reason: &'static str,
}

/// What an entry frame holds after its log id. Ordinals are persisted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum EntryKind {
    Blank = 0,
    Command = 1,
    Membership = 2,
}

/// The header of an entry frame; the body follows it.
pub(crate) fn entry_header(log_id: &LogId, kind: EntryKind) -> [u8; ENTRY_HEADER_BYTES] {
    let mut out = [0; ENTRY_HEADER_BYTES];
    out[0] = VERSION;
    out[1] = kind as u8;
    out[2..].copy_from_slice(&log_id_bytes(log_id));
    out
}

/// Splits an entry frame into log id, kind and body.
pub(crate) fn decode_entry(frame: &Bytes) -> Result<(LogId, EntryKind, Bytes), RecordError> {
    let mut reader = Reader::new("entry", frame);
    let (log_id, kind) = reader.entry_header()?;
    Ok((log_id, kind, frame.slice(ENTRY_HEADER_BYTES..)))
}

pub(crate) fn encode_vote(vote: &Vote) -> Vec<u8> {
    let mut out = vec![VERSION];
    put_vote(&mut out, vote);
    out
}

pub(crate) fn decode_vote(frame: &[u8]) -> Result<Vote, RecordError> {
    let mut reader = Reader::new("vote", frame);
    reader.version()?;
    reader.vote()
}

/// An optional log id: the payload of truncate, purge and committed frames.
pub(crate) fn encode_log_id(log_id: Option<&LogId>) -> Vec<u8> {
    let mut out = vec![VERSION];
    put_option_log_id(&mut out, log_id);
    out
}

pub(crate) fn decode_log_id(frame: &[u8]) -> Result<Option<LogId>, RecordError> {
    let mut reader = Reader::new("log id", frame);
    reader.version()?;
    reader.option_log_id()
}

/// The payload of a replica frame.
pub(crate) fn encode_replica(replica: ReplicaId) -> Vec<u8> {
    let mut out = vec![VERSION];
    out.extend_from_slice(&replica.to_le_bytes());
    out
}

pub(crate) fn decode_replica(frame: &[u8]) -> Result<ReplicaId, RecordError> {
    let mut reader = Reader::new("replica", frame);
    reader.version()?;
    reader.u64()
}

pub(crate) fn encode_membership(membership: &Membership) -> Vec<u8> {
    let mut out = vec![VERSION];
    put_membership(&mut out, membership);
    out
}

pub(crate) fn decode_membership(bytes: &[u8]) -> Result<Membership, RecordError> {
    let mut reader = Reader::new("membership", bytes);
    reader.version()?;
    reader.membership()
}

pub(crate) fn encode_stored_membership(stored: &StoredMembership) -> Vec<u8> {
    let mut out = vec![VERSION];
    put_option_log_id(&mut out, stored.log_id().as_ref());
    put_membership(&mut out, stored.membership());
    out
}

pub(crate) fn decode_stored_membership(bytes: &[u8]) -> Result<StoredMembership, RecordError> {
    let mut reader = Reader::new("stored membership", bytes);
    reader.version()?;
    let log_id = reader.option_log_id()?;
    Ok(StoredMembership::new(log_id, reader.membership()?))
}

/// The payload of an install-begin frame. An empty one means the defaults.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct ImportBegin {
    /// The blocks are what changed after this log index; the whole state, if `None`.
    pub(crate) base: Option<u64>,
    /// So many import frames since the last install-begin stay valid: an interrupted transfer goes on.
    pub(crate) kept: u32,
}

impl ImportBegin {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = vec![VERSION];
        put_option_u64(&mut out, self.base);
        out.extend_from_slice(&self.kept.to_le_bytes());
        out
    }

    pub(crate) fn decode(frame: &[u8]) -> Result<Self, RecordError> {
        if frame.is_empty() {
            return Ok(Self::default());
        }
        let mut reader = Reader::new("install begin", frame);
        reader.version()?;
        Ok(Self { base: reader.option_u64()?, kept: reader.u32()? })
    }
}

/// What a checkpoint says of one group; everything that must not live only before it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct GroupCheckpoint {
    pub(crate) group: u16,
    pub(crate) replica: u64,
    pub(crate) vote: Option<Vote>,
    pub(crate) committed: Option<LogId>,
    pub(crate) purged: Option<LogId>,
    pub(crate) last: Option<LogId>,
    /// The log id the index holds; equal to or ahead of it once the checkpoint counts.
    pub(crate) applied: Option<LogId>,
}

/// The payload of a checkpoint frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Checkpoint {
    /// The kernel's boot id when it was written: another one means that the index files may have lost writes.
    pub(crate) boot_id: String,
    pub(crate) groups: Vec<GroupCheckpoint>,
}

impl Checkpoint {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = vec![VERSION];
        let boot = self.boot_id.as_bytes();
        out.extend_from_slice(&(boot.len() as u16).to_le_bytes());
        out.extend_from_slice(boot);
        out.extend_from_slice(&(self.groups.len() as u16).to_le_bytes());
        for g in &self.groups {
            out.extend_from_slice(&g.group.to_le_bytes());
            out.extend_from_slice(&g.replica.to_le_bytes());
            out.push(u8::from(g.vote.is_some()));
            if let Some(vote) = &g.vote {
                put_vote(&mut out, vote);
            }
            for log_id in [&g.committed, &g.purged, &g.last, &g.applied] {
                put_option_log_id(&mut out, log_id.as_ref());
            }
        }
        out
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, RecordError> {
        let mut reader = Reader::new("checkpoint", bytes);
        reader.version()?;
        let length = usize::from(reader.u16()?);
        let boot_id =
            String::from_utf8(reader.take(length)?.to_vec()).map_err(|_| reader.error("boot id"))?;
        let groups = (0..reader.u16()?)
            .map(|_| {
                Ok(GroupCheckpoint {
                    group: reader.u16()?,
                    replica: reader.u64()?,
                    vote: if reader.u8()? == 0 { None } else { Some(reader.vote()?) },
                    committed: reader.option_log_id()?,
                    purged: reader.option_log_id()?,
                    last: reader.option_log_id()?,
                    applied: reader.option_log_id()?,
                })
            })
            .collect::<Result<_, RecordError>>()?;
        Ok(Self { boot_id, groups })
    }
}

fn log_id_bytes(log_id: &LogId) -> [u8; LOG_ID_BYTES] {
    let mut out = [0; LOG_ID_BYTES];
    out[..8].copy_from_slice(&log_id.leader_id.term.to_le_bytes());
    out[8..16].copy_from_slice(&log_id.leader_id.node_id.to_le_bytes());
    out[16..].copy_from_slice(&log_id.index.to_le_bytes());
    out
}

pub(super) fn put_option_log_id(out: &mut Vec<u8>, log_id: Option<&LogId>) {
    out.push(u8::from(log_id.is_some()));
    if let Some(log_id) = log_id {
        out.extend_from_slice(&log_id_bytes(log_id));
    }
}

pub(super) fn put_log_id(out: &mut Vec<u8>, log_id: &LogId) {
    out.extend_from_slice(&log_id_bytes(log_id));
}

pub(super) fn put_option_u64(out: &mut Vec<u8>, number: Option<u64>) {
    out.push(u8::from(number.is_some()));
    if let Some(number) = number {
        out.extend_from_slice(&number.to_le_bytes());
    }
}

pub(super) fn put_vote(out: &mut Vec<u8>, vote: &Vote) {
    out.extend_from_slice(&vote.leader_id.term.to_le_bytes());
    out.extend_from_slice(&vote.leader_id.node_id.to_le_bytes());
    out.push(u8::from(vote.committed));
}

fn put_membership(out: &mut Vec<u8>, membership: &Membership) {
    let configs = membership.get_joint_config();
    out.extend_from_slice(&(configs.len() as u16).to_le_bytes());
    for config in configs {
        out.extend_from_slice(&(config.len() as u16).to_le_bytes());
        for id in config {
            out.extend_from_slice(&id.to_le_bytes());
        }
    }
    let nodes: Vec<_> = membership.nodes().collect();
    out.extend_from_slice(&(nodes.len() as u16).to_le_bytes());
    for (id, host) in nodes {
        out.extend_from_slice(&id.to_le_bytes());
        out.extend_from_slice(&host.node_id.to_le_bytes());
    }
}

/// Reads fields off the front of a byte string, never past its end.
pub(super) struct Reader<'a> {
    what: &'static str,
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(super) fn new(what: &'static str, bytes: &'a [u8]) -> Self {
        Self { what, rest: bytes }
    }

    pub(super) fn error(&self, reason: &'static str) -> RecordError {
        RecordError { what: self.what, reason }
    }

    pub(super) fn take(&mut self, n: usize) -> Result<&'a [u8], RecordError> {
        let (head, rest) = self.rest.split_at_checked(n).ok_or(self.error("too short"))?;
        self.rest = rest;
        Ok(head)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], RecordError> {
        Ok(self.take(N)?.try_into().expect("take returns N bytes"))
    }

    pub(super) fn version(&mut self) -> Result<(), RecordError> {
        if self.u8()? == VERSION { Ok(()) } else { Err(self.error("unknown version")) }
    }

    pub(super) fn u8(&mut self) -> Result<u8, RecordError> {
        Ok(self.array::<1>()?[0])
    }

    pub(super) fn u16(&mut self) -> Result<u16, RecordError> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    pub(super) fn u64(&mut self) -> Result<u64, RecordError> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    pub(super) fn log_id(&mut self) -> Result<LogId, RecordError> {
        let leader_id = LeaderId { term: self.u64()?, node_id: self.u64()? };
        Ok(LogId { leader_id, index: self.u64()? })
    }

    pub(super) fn option_log_id(&mut self) -> Result<Option<LogId>, RecordError> {
        if self.u8()? == 0 { Ok(None) } else { self.log_id().map(Some) }
    }

    pub(super) fn vote(&mut self) -> Result<Vote, RecordError> {
        let leader_id = LeaderId { term: self.u64()?, node_id: self.u64()? };
        Ok(Vote { leader_id, committed: self.u8()? != 0 })
    }

    pub(super) fn u32(&mut self) -> Result<u32, RecordError> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    /// What has not been read.
    pub(super) fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// The header of an entry: [`entry_header`].
    pub(super) fn entry_header(&mut self) -> Result<(LogId, EntryKind), RecordError> {
        self.version()?;
        let kind = match self.u8()? {
            0 => EntryKind::Blank,
            1 => EntryKind::Command,
            2 => EntryKind::Membership,
            _ => return Err(self.error("unknown kind")),
        };
        Ok((self.log_id()?, kind))
    }

    pub(super) fn option_u64(&mut self) -> Result<Option<u64>, RecordError> {
        if self.u8()? == 0 { Ok(None) } else { self.u64().map(Some) }
    }

    pub(super) fn count(&mut self) -> Result<usize, RecordError> {
        let n = usize::from(self.u16()?);
        if n > MAX_MEMBERS { Err(self.error("too many members")) } else { Ok(n) }
    }

    pub(super) fn membership(&mut self) -> Result<Membership, RecordError> {
        let mut configs = Vec::new();
        for _ in 0..self.count()? {
            let ids = (0..self.count()?).map(|_| self.u64()).collect::<Result<BTreeSet<_>, _>>()?;
            configs.push(ids);
        }
        let mut nodes = BTreeMap::new();
        for _ in 0..self.count()? {
            nodes.insert(self.u64()?, Host { node_id: u128::from_le_bytes(self.array()?) });
        }
        if configs.is_empty() && nodes.is_empty() {
            return Ok(Membership::default());
        }
        Membership::new(configs, nodes).map_err(|_| self.error("voters without a host"))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::hex;

    fn log_id(term: u64, node_id: u64, index: u64) -> LogId {
        LogId { leader_id: LeaderId { term, node_id }, index }
    }

    fn membership() -> Membership {
        let nodes: BTreeMap<_, _> = (1..=3).map(|i| (i, Host { node_id: u128::from(i) << 64 })).collect();
        Membership::new(vec![BTreeSet::from([1, 2]), BTreeSet::from([2, 3])], nodes).unwrap()
    }

    #[test]
    fn golden_bytes() {
        let id = log_id(1, 2, 3);
        assert_eq!(
            hex(&entry_header(&id, EntryKind::Command)),
            "0101010000000000000002000000000000000300000000000000"
        );
        assert_eq!(hex(&encode_log_id(Some(&id))), "0101010000000000000002000000000000000300000000000000");
        assert_eq!(hex(&encode_log_id(None)), "0100");
        let vote = Vote { leader_id: id.leader_id, committed: true };
        assert_eq!(hex(&encode_vote(&vote)), "010100000000000000020000000000000001");
        assert_eq!(hex(&ImportBegin { base: Some(5), kept: 6 }.encode()), "0101050000000000000006000000");
    }

    #[test]
    fn records_survive_a_round_trip() {
        let stored = StoredMembership::new(Some(log_id(4, 5, 6)), membership());
        assert_eq!(decode_stored_membership(&encode_stored_membership(&stored)).unwrap(), stored);
        assert_eq!(decode_membership(&encode_membership(&membership())).unwrap(), membership());
        assert_eq!(
            decode_membership(&encode_membership(&Membership::default())).unwrap(),
            Membership::default()
        );
        let checkpoint = Checkpoint {
            boot_id: "boot".into(),
            groups: vec![GroupCheckpoint {
                group: 255,
                replica: 7,
                vote: Some(Vote { leader_id: LeaderId { term: 9, node_id: 7 }, committed: false }),
                committed: Some(log_id(1, 2, 3)),
                purged: None,
                last: Some(log_id(1, 2, 4)),
                applied: Some(log_id(1, 2, 3)),
            }],
        };
        assert_eq!(Checkpoint::decode(&checkpoint.encode()).unwrap(), checkpoint);
        for begin in [ImportBegin::default(), ImportBegin { base: Some(0), kept: u32::MAX }] {
            assert_eq!(ImportBegin::decode(&begin.encode()).unwrap(), begin);
        }
        assert_eq!(ImportBegin::decode(&[]).unwrap(), ImportBegin::default());
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode_entry(&Bytes::copy_from_slice(&bytes));
            let _ = decode_vote(&bytes);
            let _ = decode_log_id(&bytes);
            let _ = decode_membership(&bytes);
            let _ = decode_stored_membership(&bytes);
            let _ = Checkpoint::decode(&bytes);
            let _ = ImportBegin::decode(&bytes);
        }
    }
}
