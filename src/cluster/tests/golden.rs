//! Bytes that other versions read: they may gain fields, and nothing else may change.

use std::collections::BTreeSet;

use xxhash_rust::xxh3::xxh3_64;

use super::super::founding::{Durable, Message};
use super::super::state::*;
use super::*;

#[test]
fn the_document() {
    let mut state = found(3);
    state.nodes.get_mut(&NodeId(2)).unwrap().state = NodeState::Draining;
    let third = state.nodes.get_mut(&NodeId(3)).unwrap();
    (third.incarnation, third.mark) = (None, None);
    state.groups[1].replicas[0].role = Role::Leaving;
    let text = state.encode();
    let (head, groups) = text.split_once("\"groups\":").unwrap();
    assert_eq!(
        head,
        concat!(
            r#"{"format":1,"cluster":"000000000000000000000000000000c1","nodes":{"#,
            r#""00000000000000000000000000000001":{"name":"a","address":"a.example:4000","state":"active","#,
            r#""incarnation":1,"mark":{"value":18446744073709551614,"instance":18446744073709551615},"#,
            r#""protocol":[1,1],"joined_ms":1800000000000},"#,
            r#""00000000000000000000000000000002":{"name":"b","address":"b.example:4000","state":"draining","#,
            r#""incarnation":1,"mark":{"value":18446744073709551614,"instance":18446744073709551615},"#,
            r#""protocol":[1,1],"joined_ms":1800000000000},"#,
            r#""00000000000000000000000000000003":{"name":"c","address":"c.example:4000","state":"active","#,
            r#""protocol":[1,1],"joined_ms":1800000000000}},"#,
        )
    );
    assert!(groups.starts_with("[[4,[[1,0,0],[2,1,0],[3,2,0]]],[4,[[1,1,2],"), "{groups}");
    assert_eq!(ClusterState::decode(&text).unwrap(), state);
}

#[test]
fn a_newer_document_is_read_or_refused() {
    let state = found(2);
    let newer = state.encode().replace(r#""format":1"#, r#""format":1,"colour":{"of":["the","bikeshed"]}"#);
    let newer = newer.replace(r#""name":"a""#, r#""name":"a","zone":"eu-1""#);
    assert_eq!(ClusterState::decode(&newer).unwrap(), state);

    let other = r#"{"format":2,"nodes":"elsewhere"}"#;
    assert!(matches!(ClusterState::decode(other), Err(BadDocument::Format(2))));
    for broken in ["", "{}", "[]", r#"{"format":1}"#] {
        assert!(matches!(ClusterState::decode(broken), Err(BadDocument::Json(_))), "{broken}");
    }
    for (from, to) in
        [("[1,0,0]", "[1,9,0]"), ("[1,0,0]", "[2,0,0]"), ("[1,0,0]", "[1,0,7]"), ("[3,[[1", "[1,[[1")]
    {
        let broken = state.encode().replacen(from, to, 1);
        assert!(matches!(ClusterState::decode(&broken), Err(BadDocument::Inconsistent(_))), "{from} -> {to}");
    }
}

/// Members compute it on their own, so it must never change.
#[test]
fn the_founding_placement() {
    let digest = |count| {
        let text = found(count).encode();
        xxh3_64(text.split_once("\"groups\":").unwrap().1.as_bytes())
    };
    let digests: Vec<u64> = (1..=5).map(digest).collect();
    assert_eq!(digests, DIGESTS, "a founding by nodes of two versions would split");
}

const DIGESTS: [u64; 5] =
    [14304919668078196500, 13152639915667845788, 570557005082273790, 332298005650430464, 4019639521836650872];

#[test]
fn documents_are_small() {
    assert_eq!(
        [3, 9].map(|nodes| found(nodes).encode().len().div_ceil(100)),
        [85, 99],
        "the doc comment says so"
    );
}

#[test]
fn what_a_node_remembers() {
    let (founder, founding, cluster) = (NodeId(1), ClusterId(0xf), ClusterId(0xf));
    let members = BTreeSet::from([NodeId(1), NodeId(2)]);
    let both = r#"["00000000000000000000000000000001","00000000000000000000000000000002"]"#;
    let id = "0000000000000000000000000000000f";
    for (durable, text) in [
        (Durable::Nothing, r#"{"state":"nothing"}"#.to_owned()),
        (
            Durable::Promised { founder, founding, members: members.clone() },
            format!(
                r#"{{"state":"promised","founder":"00000000000000000000000000000001","founding":"{id}","members":{both}}}"#
            ),
        ),
        (
            Durable::Founding { founding, members: members.clone() },
            format!(r#"{{"state":"founding","founding":"{id}","members":{both}}}"#),
        ),
        (
            Durable::Founded { cluster, members: members.clone() },
            format!(r#"{{"state":"founded","cluster":"{id}","members":{both}}}"#),
        ),
        (Durable::Member { cluster }, format!(r#"{{"state":"member","cluster":"{id}"}}"#)),
    ] {
        assert_eq!(serde_json::to_string(&durable).unwrap(), text);
        assert_eq!(serde_json::from_str::<Durable>(&text).unwrap(), durable);
    }
    for (message, text) in [
        (
            Message::Ask { founding, members },
            format!(r#"{{"kind":"ask","founding":"{id}","members":{both}}}"#),
        ),
        (Message::Grant { founding }, format!(r#"{{"kind":"grant","founding":"{id}"}}"#)),
        (
            Message::Refuse { founding, why: "no".to_owned() },
            format!(r#"{{"kind":"refuse","founding":"{id}","why":"no"}}"#),
        ),
        (Message::Check { founding }, format!(r#"{{"kind":"check","founding":"{id}"}}"#)),
        (Message::Release { founding }, format!(r#"{{"kind":"release","founding":"{id}"}}"#)),
        (Message::Commit { founding }, format!(r#"{{"kind":"commit","founding":"{id}"}}"#)),
    ] {
        assert_eq!(serde_json::to_string(&message).unwrap(), text);
        assert_eq!(serde_json::from_str::<Message>(&text).unwrap(), message);
    }
}
