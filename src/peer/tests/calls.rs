//! Calls over links that stand and links that break.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_call_is_answered_or_refused() {
    let (a, b) = (Node::start(settings("a")).await, Node::start(settings("b")).await);
    b.peers.serve(
        1..=5,
        Arc::new(Serving(|method, body: Bytes| match method {
            1 => Ok(body),
            _ => Err(Refused(format!("not {method}"))),
        })),
    );
    a.link(&[&b]).await;
    for lane in Lane::ALL {
        assert_eq!(a.call(&b, lane, 1, b"hello").await, Ok(Bytes::from_static(b"hello")));
        assert_eq!(a.call(&b, lane, 1, b"").await, Ok(Bytes::new()));
    }
    assert_eq!(a.call(&b, Lane::Log, 2, b"").await, Err(CallError::Refused("not 2".into())));
    let unserved = a.call(&b, Lane::Log, 9, b"").await;
    assert_eq!(unserved, Err(CallError::Refused("method 9 is not served here".into())));
    let parts = [Bytes::from_static(b"he"), Bytes::new(), Bytes::from_static(b"llo")];
    let whole = a.peers.call(b.id, Lane::Log, 1, &parts, PATIENCE).await;
    assert_eq!(whole, Ok(Bytes::from_static(b"hello")));
    assert!(a.peers.is_up(b.id) && !b.peers.is_up(a.id), "a link has a direction");
    assert_eq!(a.metrics.peer_links_up.get(), 1);
    assert!(matches!(a.call(&a, Lane::Log, 1, b"").await, Err(CallError::NotSent(_))));
}
