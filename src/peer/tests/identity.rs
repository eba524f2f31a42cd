//! Who is let in, and who finds whom.

use super::*;

/// Dials `b` from `a`, which fails on both sides for one reason.
async fn refused(a: PeerSettings, b: PeerSettings, reason: Reason) -> String {
    let (a, b) = (Node::start(a).await, Node::start(b).await);
    a.peers.set_targets(vec![b.address]);
    let why = a.failure(b.address).await;
    assert!(why.contains(reason.label()), "{why}");
    let both_know = async {
        while a.refusals(reason) == 0 || b.refusals(reason) == 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, both_know).await.expect("both sides know");
    assert!(!a.peers.is_up(b.id) && b.peers.seen_inbound().borrow().is_empty());
    why
}

#[tokio::test]
async fn without_a_common_secret_nobody_is_let_in() {
    let other = PeerSettings { secrets: secrets("t"), ..settings("b") };
    let why = refused(settings("a"), other, Reason::WrongSecret).await;
    assert!(why.contains("FASTPACA_CLUSTER_SECRET"), "{why}");
    let open = PeerSettings { secrets: Secrets::new(&[], &[]), ..settings("b") };
    refused(settings("a"), open, Reason::WrongSecret).await;
}

#[tokio::test]
async fn clusters_do_not_mix() {
    let of = |name, cluster| PeerSettings { cluster: Some(cluster), ..settings(name) };
    let why = refused(of("a", 7), of("b", 8), Reason::OtherCluster).await;
    assert!(why.contains("\"a\"") && why.contains("\"b\""), "{why}");
}

#[tokio::test]
async fn two_nodes_with_one_name_or_one_id_are_told() {
    let same_name = PeerSettings { node_id: 99, ..settings("a") };
    refused(settings("a"), same_name, Reason::SameName).await;
    let same_id = PeerSettings { name: "b".into(), ..settings("a") };
    refused(settings("a"), same_id, Reason::SameId).await;
}

#[tokio::test]
async fn a_third_node_under_a_connected_name_is_refused() {
    let (a, b) = (Node::start(settings("a")).await, Node::start(settings("b")).await);
    let pretender = Node::start(PeerSettings { node_id: 99, ..settings("b") }).await;
    a.link(&[&b]).await;
    pretender.peers.set_targets(vec![a.address]);
    let why = pretender.failure(a.address).await;
    assert!(why.contains("same_name"), "{why}");
}

#[tokio::test]
async fn secrets_rotate() {
    let with = |name, list| PeerSettings { secrets: secrets(list), ..settings(name) };
    for (dials, accepts) in [("old", "new,old"), ("new,old", "old"), ("new,old", "new")] {
        let (a, b) = (Node::start(with("a", dials)).await, Node::start(with("b", accepts)).await);
        a.link(&[&b]).await;
    }
}

#[tokio::test]
async fn a_node_recognises_itself_and_a_second_address() {
    let (a, b) = (Node::start(settings("a")).await, Node::start(settings("b")).await);
    let second = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let second_address = second.local_addr().unwrap();
    let _listening = AbortOnDropHandle::new(listen(second, b.peers.clone()));
    a.link(&[&b]).await;
    a.peers.set_targets(vec![a.address, b.address, second_address]);
    a.until(a.address, |link| link.state == LinkState::Myself).await;
    a.until(second_address, |link| link.state == LinkState::Duplicate).await;
    assert!(a.peers.is_up(b.id) && !a.peers.is_up(a.id));
    // Without the first address, the second one takes over.
    a.peers.set_targets(vec![second_address]);
    a.until(second_address, LinkInfo::is_up).await;
}

#[tokio::test]
async fn who_dialled_is_known_with_the_address_to_dial_back() {
    let (a, b) = (Node::start(settings("a")).await, Node::start(settings("b")).await);
    a.link(&[&b]).await;
    let mut seen = b.peers.seen_inbound();
    let seen = tokio::time::timeout(PATIENCE, seen.wait_for(|seen| !seen.is_empty()))
        .await
        .unwrap()
        .unwrap()
        .clone();
    assert_eq!((seen[&a.id].address, seen[&a.id].name.as_str()), (a.address, "a"));
    b.peers.set_targets(vec![seen[&a.id].address]);
    b.until(a.address, LinkInfo::is_up).await;

    let advertising = PeerSettings { advertise: Some("127.0.0.9:77".into()), ..settings("c") };
    let c = Node::start(advertising).await;
    c.link(&[&b]).await;
    let mut seen = b.peers.seen_inbound();
    let seen = seen.wait_for(|seen| seen.contains_key(&c.id)).await.unwrap();
    assert_eq!(seen[&c.id].address.to_string(), "127.0.0.9:77");
}

#[tokio::test]
async fn a_node_started_anew_is_linked_again() {
    let (a, b) = (Node::start(settings("a")).await, Node::start(settings("b")).await);
    b.peers.serve(1..=1, echo());
    a.link(&[&b]).await;
    let address = b.address;
    drop(b);
    a.until(address, |link| !link.is_up()).await;
    let b = Node::start_at(PeerSettings { incarnation: 2, ..settings("b") }, address).await;
    b.peers.serve(1..=1, echo());
    let link = a.until(address, LinkInfo::is_up).await;
    assert_eq!(link.remote.map(|remote| remote.incarnation), Some(2));
    assert_eq!(a.call(&b, Lane::Log, 1, b"x").await, Ok(Bytes::from_static(b"x")));
    assert!(a.metrics.peer_reconnects_total.get() > 0);
}

#[tokio::test]
async fn a_cluster_once_known_ends_links_to_others() {
    let (a, b) = (Node::start(settings("a")).await, Node::start(settings("b")).await);
    b.peers.set_cluster(8);
    a.link(&[&b]).await;
    a.peers.set_cluster(7);
    let why = a.until(
        b.address,
        |link| matches!(&link.state, LinkState::Down(why) if why.contains("other_cluster")),
    );
    why.await;
}

#[tokio::test]
async fn garbage_instead_of_a_handshake_is_cut_off() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let b = Node::start(settings("b")).await;
    let url = format!("ws://{}{PATH}", b.address);
    let stream = tokio::net::TcpStream::connect(b.address).await.unwrap();
    let (socket, _) = tokio_tungstenite::client_async(url, stream).await.unwrap();
    let mut raw = socket.into_inner();
    raw.write_all(&[0x82, 0x84, 0, 0, 0, 0, 1, 2, 3, 4]).await.unwrap();
    let mut answer = Vec::new();
    tokio::time::timeout(PATIENCE, raw.read_to_end(&mut answer)).await.unwrap().unwrap();
    assert!(String::from_utf8_lossy(&answer).contains("expected a hello"));
    assert_eq!(b.refusals(Reason::Malformed), 1);
}

#[tokio::test]
async fn what_an_unproven_connection_holds_is_given_back_with_the_proof() {
    let (a, b) = (Node::start(settings("a")).await, Node::start(settings("b")).await);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    #[allow(clippy::async_yields_async)] // The connection is looked at while it is served.
    let enter = async |unproven: Arc<()>| {
        let (stream, from) = listener.accept().await.unwrap();
        let socket = tokio_tungstenite::accept_async(stream).await.unwrap();
        let peers = b.peers.clone();
        tokio::spawn(async move { peers.accept(socket.into_inner(), from, unproven).await })
    };
    let unproven = Arc::new(());
    let given_back = async || {
        while Arc::strong_count(&unproven) > 1 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let silent = tokio_tungstenite::client_async(format!("ws://{address}"), stream);
    let (running, silent) = tokio::join!(enter(unproven.clone()), silent);
    let early = tokio::time::timeout(Duration::from_millis(200), given_back()).await;
    assert!(early.is_err(), "nothing was proven");
    drop(silent);
    running.await.unwrap();
    tokio::time::timeout(PATIENCE, given_back()).await.expect("the connection ended");

    a.peers.set_targets(vec![address]);
    let running = enter(unproven.clone()).await;
    tokio::time::timeout(PATIENCE, given_back()).await.expect("it is a node");
    assert!(!running.is_finished());
}
