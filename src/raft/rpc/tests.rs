//! Round trips, golden bytes and hostile input of the calls between nodes.

use proptest::prelude::*;

use super::*;
use crate::raft::snapshot::SnapshotMeta;
use crate::raft::types::{Host, LeaderId, LogId, Membership, StoredMembership};
use crate::testing::hex;

const TO: Address = Address { group: 0x0102, replica: 3 };

fn log_id(term: u64, index: u64) -> LogId {
    LogId { leader_id: LeaderId { term, node_id: 9 }, index }
}

fn vote(term: u64) -> Vote {
    Vote { leader_id: LeaderId { term, node_id: 9 }, committed: term.is_multiple_of(2) }
}

fn joined(parts: Vec<Bytes>) -> Bytes {
    parts.concat().into()
}

fn request(first: u64, commands: &[Vec<u8>]) -> AppendEntriesRequest<TypeConfig> {
    let hosts = std::collections::BTreeMap::from([(1, Host { node_id: 5 << 80 })]);
    let membership = Membership::new(vec![[1].into()], hosts).unwrap();
    let payloads = [EntryPayload::Blank, EntryPayload::Membership(membership)].into_iter().chain(
        commands.iter().map(|c| EntryPayload::Normal(Proposal { command: c.clone().into(), at: None })),
    );
    let entries = payloads.enumerate().map(|(i, p)| Entry::new(log_id(4, first + i as u64), p)).collect();
    let prev_log_id = first.checked_sub(1).map(|index| log_id(4, index));
    AppendEntriesRequest { vote: vote(4), prev_log_id, entries, leader_commit: Some(log_id(3, 1)) }
}

proptest! {
    #[test]
    fn append_requests_survive(first in 0..9u64, commands in proptest::collection::vec(
        proptest::collection::vec(any::<u8>(), 0..600), 0..6)) {
        let request = request(first, &commands);
        let parts = encode_append(TO, &request);
        let large = commands.iter().filter(|c| c.len() > INLINE_BYTES).count();
        prop_assert_eq!(parts.len(), 2 * large + 1);
        let body = joined(parts);
        let (to, reader) = Address::split("test", &body).unwrap();
        prop_assert_eq!(to, TO);
        let back = decode_append(&body, reader).unwrap();
        prop_assert_eq!((back.vote, back.prev_log_id, back.leader_commit),
                        (request.vote, request.prev_log_id, request.leader_commit));
        prop_assert_eq!(back.entries, request.entries);
    }

    #[test]
    fn blocks_survive(session in any::<u64>(), number in any::<u64>(), blocks in proptest::collection::vec(
        proptest::collection::vec(any::<u8>(), 0..600), 0..6)) {
        let blocks: Vec<Bytes> = blocks.into_iter().map(Bytes::from).collect();
        let body = joined(encode_blocks(TO, session, number, blocks.clone()));
        let (to, reader) = Address::split("test", &body).unwrap();
        prop_assert_eq!((to, decode_blocks(&body, reader).unwrap()), (TO, (session, number, blocks)));
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), valid in any::<bool>()) {
        let mut bytes = bytes;
        if valid && !bytes.is_empty() {
            bytes[0] = VERSION;
        }
        let body = Bytes::from(bytes);
        let open = || Address::split("test", &body).map(|(_, reader)| reader);
        if open().is_ok() {
            let _ = decode_append(&body, open().unwrap());
            let _ = decode_vote(open().unwrap());
            let _ = decode_transfer(open().unwrap());
            let _ = decode_begin(open().unwrap());
            let _ = decode_blocks(&body, open().unwrap());
            let _ = decode_end(open().unwrap());
        }
        let _ = decode_append_answer(&body);
        let _ = decode_vote_answer(&body);
        let _ = decode_commits(&body);
        let _ = decode_transfer_answer(&body);
        let _ = Wanted::decode(&body);
        let _ = decode_vote_only(&body);
    }
}

#[test]
fn small_messages_survive() {
    for answer in [
        AppendEntriesResponse::Success,
        AppendEntriesResponse::PartialSuccess(None),
        AppendEntriesResponse::PartialSuccess(Some(log_id(1, 2))),
        AppendEntriesResponse::Conflict,
        AppendEntriesResponse::HigherVote(vote(5)),
    ] {
        assert_eq!(decode_append_answer(&encode_append_answer(&answer)).unwrap(), answer);
    }
    for leadership_transfer in [false, true] {
        let mut request = VoteRequest::new(vote(7), Some(log_id(6, 5)));
        request.leadership_transfer = leadership_transfer;
        let body = encode_vote(TO, &request);
        assert_eq!(decode_vote(Address::split("test", &body).unwrap().1).unwrap(), request);
        let answer = VoteResponse::new(vote(7), None, leadership_transfer);
        assert_eq!(decode_vote_answer(&encode_vote_answer(&answer)).unwrap(), answer);
    }
    let commits = [(TO, Commit { vote: vote(2), upto: log_id(1, 2) })];
    assert_eq!(decode_commits(&encode_commits(&commits.into())).unwrap(), commits);
    let request = TransferLeaderRequest::new(vote(8), 4, Some(log_id(8, 9)));
    let body = encode_transfer(TO, &request);
    assert_eq!(decode_transfer(Address::split("test", &body).unwrap().1).unwrap(), request);
    for answer in [
        Ok(()),
        Err(TransferLeaderError::VoteChanged { expected: vote(1), actual: vote(2) }),
        Err(TransferLeaderError::LogNotFlushed { expected: Some(log_id(1, 2)), actual: None }),
    ] {
        assert_eq!(decode_transfer_answer(&encode_transfer_answer(&answer)).unwrap(), answer);
    }
    let membership = StoredMembership::new(Some(log_id(1, 1)), Membership::default());
    let meta = SnapshotMeta { last_log_id: Some(log_id(2, 3)), last_membership: membership };
    let body = encode_begin(TO, &vote(2), &meta);
    assert_eq!(decode_begin(Address::split("test", &body).unwrap().1).unwrap(), (vote(2), meta));
    let body = encode_end(TO, 8, 9);
    assert_eq!(decode_end(Address::split("test", &body).unwrap().1).unwrap(), (8, 9));
}

#[test]
fn answers_to_announcements_survive() {
    let upto = ConversationId::parse("c-1").unwrap();
    for wanted in [
        Wanted::Nothing(None),
        Wanted::Nothing(Some(vote(3))),
        Wanted::Changes { session: 1, base: None, resume: None },
        Wanted::Changes { session: 2, base: Some(0), resume: Some(Resume { since: 7, upto: None }) },
        Wanted::Changes { session: 3, base: Some(4), resume: Some(Resume { since: 7, upto: Some(upto) }) },
    ] {
        assert_eq!(Wanted::decode(&wanted.encode()).unwrap(), wanted);
    }
}

#[test]
fn golden_bytes() {
    let request = AppendEntriesRequest {
        vote: vote(2),
        prev_log_id: None,
        entries: vec![Entry::new(
            log_id(2, 0),
            EntryPayload::Normal(Proposal { command: Bytes::from_static(b"hi"), at: None }),
        )],
        leader_commit: None,
    };
    assert_eq!(
        hex(&joined(encode_append(TO, &request))),
        "0102010300000000000000020000000000000009000000000000000100000100000001010200000000000000\
         09000000000000000000000000000000020000006869"
    );
    assert_eq!(
        hex(&encode_vote(TO, &VoteRequest::new(vote(1), None))),
        "0102010300000000000000010000000000000009000000000000000000 00".replace(' ', "")
    );
    assert_eq!(hex(&encode_append_answer(&AppendEntriesResponse::Conflict)), "0102");
    assert_eq!(hex(&encode_end(TO, 1, 2)), "010201030000000000000001000000000000000200000000000000");
    let commit = Commit { vote: vote(2), upto: log_id(2, 7) };
    assert_eq!(
        hex(&encode_commits(&[(TO, commit)].into())),
        "0102010300000000000000020000000000000009000000000000000102000000000000000900000000000000\
         0700000000000000"
    );
    assert_eq!(hex(&encode_confirm(TO, vote(2))), "01020103000000000000000200000000000000090000000000000001");
    assert_eq!(hex(&encode_confirm_answer(true)), "0101");
    let wanted = Wanted::Changes { session: 1, base: Some(2), resume: None };
    assert_eq!(hex(&wanted.encode()), "0101010000000000000001020000000000000000");
}
