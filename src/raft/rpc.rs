//! Bytes of Raft's calls between nodes. Version first, then whom it is for; fixed-width little endian, explicit
//! ordinals.
//!
//! Every request names the group and the replica it is meant for, so that an emptied node cannot answer for the
//! replica it used to hold. Bodies of commands are neither copied on the way out nor on the way in.

use std::collections::HashMap;

use bytes::Bytes;
use openraft::EntryPayload;
use openraft::entry::RaftEntry;
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, TransferLeaderError, TransferLeaderRequest,
    TransferLeaderResponse, VoteRequest, VoteResponse,
};

use super::codec::{self, ENTRY_HEADER_BYTES, EntryKind, Reader, RecordError, VERSION};
use super::commits::Commit;
use super::snapshot::SnapshotMeta;
use super::types::{Entry, Proposal, ReplicaId, TypeConfig, Vote};
use crate::conversation::ConversationId;
use crate::store::Resume;

/// Numbers of the calls; sent.
pub(crate) mod method {
    pub(crate) const APPEND: u16 = 1;
    pub(crate) const VOTE: u16 = 2;
    pub(crate) const PRE_VOTE: u16 = 3;
    pub(crate) const TRANSFER_LEADER: u16 = 4;
    pub(crate) const SNAPSHOT_BEGIN: u16 = 5;
    pub(crate) const SNAPSHOT_BLOCKS: u16 = 6;
    pub(crate) const SNAPSHOT_END: u16 = 7;
    pub(crate) const COMMITS: u16 = 8;
    pub(crate) const CONFIRM: u16 = 9;
}

/// Commands up to this size go into the buffer of their header: a part of its own would cost more than the copy.
const INLINE_BYTES: usize = 256;
/// Most entries or blocks of one request; decoding refuses more.
const ITEMS_MAX: u32 = 1 << 20;

/// Whom a request is for; its first fields after the version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Address {
    pub(crate) group: u16,
    pub(crate) replica: ReplicaId,
}

impl Address {
    fn begin(self) -> Vec<u8> {
        let mut out = Vec::with_capacity(128);
        out.push(VERSION);
        out.extend_from_slice(&self.group.to_le_bytes());
        out.extend_from_slice(&self.replica.to_le_bytes());
        out
    }

    /// Splits a request into whom it is for and the rest.
    pub(super) fn split<'a>(what: &'static str, body: &'a [u8]) -> Result<(Self, Reader<'a>), RecordError> {
        let mut reader = Reader::new(what, body);
        reader.version()?;
        let address = Self { group: reader.u16()?, replica: reader.u64()? };
        Ok((address, reader))
    }
}

pub(crate) fn encode_append(to: Address, rpc: &AppendEntriesRequest<TypeConfig>) -> Vec<Bytes> {
    let mut out = to.begin();
    codec::put_vote(&mut out, &rpc.vote);
    codec::put_option_log_id(&mut out, rpc.prev_log_id.as_ref());
    codec::put_option_log_id(&mut out, rpc.leader_commit.as_ref());
    out.extend_from_slice(&(rpc.entries.len() as u32).to_le_bytes());
    let mut parts = Vec::new();
    for entry in &rpc.entries {
        let (kind, body) = match &entry.payload {
            EntryPayload::Blank => (EntryKind::Blank, Bytes::new()),
            EntryPayload::Normal(proposal) => (EntryKind::Command, proposal.command.clone()),
            EntryPayload::Membership(membership) => {
                (EntryKind::Membership, codec::encode_membership(membership).into())
            }
        };
        out.extend_from_slice(&codec::entry_header(&entry.log_id, kind));
        put_part(&mut parts, &mut out, body);
    }
    parts.push(out.into());
    parts
}

/// `body` is the whole request; the entries' commands are slices of it.
pub(crate) fn decode_append(
    body: &Bytes,
    mut reader: Reader<'_>,
) -> Result<AppendEntriesRequest<TypeConfig>, RecordError> {
    let vote = reader.vote()?;
    let prev_log_id = reader.option_log_id()?;
    let leader_commit = reader.option_log_id()?;
    let mut entries = Vec::new();
    for _ in 0..count(&mut reader)? {
        let (log_id, kind) = reader.entry_header()?;
        let part = take_part(body, &mut reader)?;
        let payload = match kind {
            EntryKind::Blank => EntryPayload::Blank,
            EntryKind::Command => EntryPayload::Normal(Proposal { command: part, at: None }),
            EntryKind::Membership => EntryPayload::Membership(codec::decode_membership(&part)?),
        };
        entries.push(Entry::new(log_id, payload));
    }
    Ok(AppendEntriesRequest { vote, prev_log_id, entries, leader_commit })
}

pub(crate) fn encode_append_answer(answer: &AppendEntriesResponse<TypeConfig>) -> Bytes {
    let mut out = vec![VERSION];
    match answer {
        AppendEntriesResponse::Success => out.push(0),
        AppendEntriesResponse::PartialSuccess(upto) => {
            out.push(1);
            codec::put_option_log_id(&mut out, upto.as_ref());
        }
        AppendEntriesResponse::Conflict => out.push(2),
        AppendEntriesResponse::HigherVote(vote) => {
            out.push(3);
            codec::put_vote(&mut out, vote);
        }
    }
    out.into()
}

pub(crate) fn decode_append_answer(body: &[u8]) -> Result<AppendEntriesResponse<TypeConfig>, RecordError> {
    let mut reader = Reader::new("append answer", body);
    reader.version()?;
    Ok(match reader.u8()? {
        0 => AppendEntriesResponse::Success,
        1 => AppendEntriesResponse::PartialSuccess(reader.option_log_id()?),
        2 => AppendEntriesResponse::Conflict,
        3 => AppendEntriesResponse::HigherVote(reader.vote()?),
        _ => return Err(reader.error("unknown answer")),
    })
}

/// Asks a replica whether it has voted for somebody later than this leader.
pub(crate) fn encode_confirm(to: Address, leader: Vote) -> Bytes {
    let mut out = to.begin();
    codec::put_vote(&mut out, &leader);
    out.into()
}

pub(crate) fn decode_confirm(mut reader: Reader<'_>) -> Result<Vote, RecordError> {
    reader.vote()
}

pub(crate) fn encode_confirm_answer(is_confirmed: bool) -> Bytes {
    vec![VERSION, u8::from(is_confirmed)].into()
}

pub(crate) fn decode_confirm_answer(body: &[u8]) -> Result<bool, RecordError> {
    let mut reader = Reader::new("confirm answer", body);
    reader.version()?;
    Ok(reader.u8()? != 0)
}

/// Commits of many replicas of one node.
pub(crate) fn encode_commits(commits: &HashMap<Address, Commit>) -> Bytes {
    let mut out = vec![VERSION];
    for (to, Commit { vote, upto }) in commits {
        out.extend_from_slice(&to.group.to_le_bytes());
        out.extend_from_slice(&to.replica.to_le_bytes());
        codec::put_vote(&mut out, vote);
        codec::put_log_id(&mut out, upto);
    }
    out.into()
}

pub(crate) fn decode_commits(body: &[u8]) -> Result<Vec<(Address, Commit)>, RecordError> {
    let mut reader = Reader::new("commits", body);
    reader.version()?;
    let mut commits = Vec::new();
    while !reader.rest().is_empty() {
        let to = Address { group: reader.u16()?, replica: reader.u64()? };
        commits.push((to, Commit { vote: reader.vote()?, upto: reader.log_id()? }));
    }
    Ok(commits)
}

/// Votes and pre-votes.
pub(crate) fn encode_vote(to: Address, rpc: &VoteRequest<TypeConfig>) -> Bytes {
    let mut out = to.begin();
    codec::put_vote(&mut out, &rpc.vote);
    codec::put_option_log_id(&mut out, rpc.last_log_id.as_ref());
    out.push(u8::from(rpc.leadership_transfer));
    out.into()
}

pub(crate) fn decode_vote(mut reader: Reader<'_>) -> Result<VoteRequest<TypeConfig>, RecordError> {
    let mut request = VoteRequest::new(reader.vote()?, reader.option_log_id()?);
    request.leadership_transfer = reader.u8()? != 0;
    Ok(request)
}

pub(crate) fn encode_vote_answer(answer: &VoteResponse<TypeConfig>) -> Bytes {
    let mut out = vec![VERSION];
    codec::put_vote(&mut out, &answer.vote);
    out.push(u8::from(answer.vote_granted));
    codec::put_option_log_id(&mut out, answer.last_log_id.as_ref());
    out.into()
}

pub(crate) fn decode_vote_answer(body: &[u8]) -> Result<VoteResponse<TypeConfig>, RecordError> {
    let mut reader = Reader::new("vote answer", body);
    reader.version()?;
    let (vote, granted) = (reader.vote()?, reader.u8()? != 0);
    Ok(VoteResponse::new(vote, reader.option_log_id()?, granted))
}

pub(crate) fn encode_transfer(to: Address, rpc: &TransferLeaderRequest<TypeConfig>) -> Bytes {
    let mut out = to.begin();
    codec::put_vote(&mut out, rpc.from_leader());
    out.extend_from_slice(&rpc.to_node_id().to_le_bytes());
    codec::put_option_log_id(&mut out, rpc.last_log_id());
    out.into()
}

pub(crate) fn decode_transfer(
    mut reader: Reader<'_>,
) -> Result<TransferLeaderRequest<TypeConfig>, RecordError> {
    let (from, to) = (reader.vote()?, reader.u64()?);
    Ok(TransferLeaderRequest::new(from, to, reader.option_log_id()?))
}

pub(crate) fn encode_transfer_answer(answer: &TransferLeaderResponse<TypeConfig>) -> Bytes {
    let mut out = vec![VERSION];
    match answer {
        Ok(()) => out.push(0),
        Err(TransferLeaderError::VoteChanged { expected, actual }) => {
            out.push(1);
            codec::put_vote(&mut out, expected);
            codec::put_vote(&mut out, actual);
        }
        Err(TransferLeaderError::LogNotFlushed { expected, actual }) => {
            out.push(2);
            codec::put_option_log_id(&mut out, expected.as_ref());
            codec::put_option_log_id(&mut out, actual.as_ref());
        }
    }
    out.into()
}

pub(crate) fn decode_transfer_answer(body: &[u8]) -> Result<TransferLeaderResponse<TypeConfig>, RecordError> {
    let mut reader = Reader::new("transfer answer", body);
    reader.version()?;
    Ok(match reader.u8()? {
        0 => Ok(()),
        1 => Err(TransferLeaderError::VoteChanged { expected: reader.vote()?, actual: reader.vote()? }),
        2 => Err(TransferLeaderError::LogNotFlushed {
            expected: reader.option_log_id()?,
            actual: reader.option_log_id()?,
        }),
        _ => return Err(reader.error("unknown answer")),
    })
}

/// Announces a snapshot and asks what of it the receiver lacks.
pub(crate) fn encode_begin(to: Address, vote: &Vote, meta: &SnapshotMeta) -> Bytes {
    let mut out = to.begin();
    codec::put_vote(&mut out, vote);
    codec::put_option_log_id(&mut out, meta.last_log_id.as_ref());
    out.extend_from_slice(&codec::encode_stored_membership(&meta.last_membership));
    out.into()
}

pub(crate) fn decode_begin(mut reader: Reader<'_>) -> Result<(Vote, SnapshotMeta), RecordError> {
    let vote = reader.vote()?;
    let last_log_id = reader.option_log_id()?;
    let last_membership = codec::decode_stored_membership(reader.rest())?;
    Ok((vote, SnapshotMeta { last_log_id, last_membership }))
}

/// What the receiver of a snapshot answers to its announcement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// It has all of it. With its vote.
    Nothing(Option<Vote>),
    /// Conversations changed after `base`, except for what an interrupted transfer brought.
    Changes { session: u64, base: Option<u64>, resume: Option<Resume> },
}

impl Wanted {
    pub(crate) fn encode(&self) -> Bytes {
        let mut out = vec![VERSION];
        match self {
            Self::Nothing(vote) => {
                out.push(0);
                out.push(u8::from(vote.is_some()));
                vote.iter().for_each(|vote| codec::put_vote(&mut out, vote));
            }
            Self::Changes { session, base, resume } => {
                out.push(1);
                out.extend_from_slice(&session.to_le_bytes());
                codec::put_option_u64(&mut out, *base);
                codec::put_option_u64(&mut out, resume.as_ref().map(|resume| resume.since));
                if let Some(upto) = resume.as_ref().and_then(|resume| resume.upto.as_ref()) {
                    out.extend_from_slice(upto.as_str().as_bytes());
                }
            }
        }
        out.into()
    }

    pub(crate) fn decode(body: &[u8]) -> Result<Self, RecordError> {
        let mut reader = Reader::new("snapshot answer", body);
        reader.version()?;
        match reader.u8()? {
            0 => Ok(Self::Nothing(if reader.u8()? == 0 { None } else { Some(reader.vote()?) })),
            1 => {
                let (session, base) = (reader.u64()?, reader.option_u64()?);
                let since = reader.option_u64()?;
                let upto = match reader.rest() {
                    [] => None,
                    id => Some(conversation_id(id).ok_or(reader.error("conversation id"))?),
                };
                Ok(Self::Changes { session, base, resume: since.map(|since| Resume { since, upto }) })
            }
            _ => Err(reader.error("unknown answer")),
        }
    }
}

fn conversation_id(bytes: &[u8]) -> Option<ConversationId> {
    ConversationId::parse(std::str::from_utf8(bytes).ok()?).ok()
}

/// Blocks of a snapshot, numbered by request from 0 within a session.
pub(crate) fn encode_blocks(to: Address, session: u64, number: u64, blocks: Vec<Bytes>) -> Vec<Bytes> {
    let mut out = to.begin();
    out.extend_from_slice(&session.to_le_bytes());
    out.extend_from_slice(&number.to_le_bytes());
    out.extend_from_slice(&(blocks.len() as u32).to_le_bytes());
    let mut parts = Vec::new();
    blocks.into_iter().for_each(|block| put_part(&mut parts, &mut out, block));
    parts.push(out.into());
    parts
}

pub(crate) fn decode_blocks(
    body: &Bytes,
    mut reader: Reader<'_>,
) -> Result<(u64, u64, Vec<Bytes>), RecordError> {
    let (session, number) = (reader.u64()?, reader.u64()?);
    let mut blocks = Vec::new();
    for _ in 0..count(&mut reader)? {
        blocks.push(take_part(body, &mut reader)?);
    }
    Ok((session, number, blocks))
}

/// Everything was sent: install it.
pub(crate) fn encode_end(to: Address, session: u64, requests: u64) -> Bytes {
    let mut out = to.begin();
    out.extend_from_slice(&session.to_le_bytes());
    out.extend_from_slice(&requests.to_le_bytes());
    out.into()
}

pub(crate) fn decode_end(mut reader: Reader<'_>) -> Result<(u64, u64), RecordError> {
    Ok((reader.u64()?, reader.u64()?))
}

/// The receiver's vote: the answer to the end of a snapshot.
pub(crate) fn decode_vote_only(body: &[u8]) -> Result<Vote, RecordError> {
    codec::decode_vote(body)
}

/// Puts a length-prefixed part behind `out`, by reference where it is large.
fn put_part(parts: &mut Vec<Bytes>, out: &mut Vec<u8>, part: Bytes) {
    out.extend_from_slice(&(part.len() as u32).to_le_bytes());
    if part.len() <= INLINE_BYTES {
        out.extend_from_slice(&part);
    } else {
        parts.push(std::mem::take(out).into());
        parts.push(part);
    }
}

fn take_part(whole: &Bytes, reader: &mut Reader<'_>) -> Result<Bytes, RecordError> {
    let length = reader.u32()? as usize;
    let from = whole.len() - reader.rest().len();
    reader.take(length)?;
    Ok(whole.slice(from..from + length))
}

fn count(reader: &mut Reader<'_>) -> Result<u32, RecordError> {
    let n = reader.u32()?;
    // Every item takes at least its length prefix.
    if n > ITEMS_MAX || n as usize > reader.rest().len() / 4 {
        return Err(reader.error("too many items"));
    }
    Ok(n)
}

/// Bytes of an entry beside its command, about.
pub(crate) const ENTRY_OVERHEAD_BYTES: usize = ENTRY_HEADER_BYTES + 4;

#[cfg(test)]
mod tests;
