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

/// Answers a method-2 call only when told to, counts calls, and echoes the rest.
struct Holding {
    arrived: tokio::sync::mpsc::UnboundedSender<Bytes>,
    free: tokio_util::sync::CancellationToken,
}

impl Service for Holding {
    fn call<'a>(&'a self, _from: &'a Remote, method: u16, body: Bytes) -> Answer<'a> {
        let _ = self.arrived.send(body.clone());
        Box::pin(async move {
            if method == 2 {
                self.free.cancelled().await;
            }
            Ok(body)
        })
    }
}

type Arrivals = tokio::sync::mpsc::UnboundedReceiver<Bytes>;

fn holding(node: &Node) -> (Arrivals, tokio_util::sync::CancellationToken) {
    let (arrived, arrivals) = tokio::sync::mpsc::unbounded_channel();
    let free = tokio_util::sync::CancellationToken::new();
    node.peers.serve(1..=5, Arc::new(Holding { arrived, free: free.clone() }));
    (arrivals, free)
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_of_one_task_arrive_in_order_whatever_their_size() {
    let (a, b) = (Node::start(settings("a")).await, Node::start(settings("b")).await);
    let (mut arrivals, _free) = holding(&b);
    a.link(&[&b]).await;
    let sizes = (0..200u32).map(|n| if n % 20 == 0 { 1 << 20 } else { 4 + n as usize });
    let bodies: Vec<Bytes> = sizes
        .enumerate()
        .map(|(n, size)| {
            let mut body = vec![0; size];
            body[..4].copy_from_slice(&(n as u32).to_be_bytes());
            Bytes::from(body)
        })
        .collect();
    let calls =
        bodies.iter().map(|body| a.peers.call(b.id, Lane::Log, 1, std::slice::from_ref(body), PATIENCE));
    let answers = futures_util::future::join_all(calls).await;
    for (body, answer) in bodies.iter().zip(answers) {
        assert_eq!(answer.as_ref(), Ok(body));
        assert_eq!(arrivals.recv().await.as_ref().map(|arrived| &arrived[..4]), Some(&body[..4]));
    }
}

/// Queues what comes, as Raft does.
struct Queueing(tokio::sync::mpsc::Sender<Bytes>);

impl Service for Queueing {
    fn call<'a>(&'a self, _from: &'a Remote, _method: u16, body: Bytes) -> Answer<'a> {
        Box::pin(async move {
            self.0.send(body.clone()).await.map_err(|_| Refused("closed".into()))?;
            Ok(body)
        })
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_enter_a_bounded_queue_in_order() {
    let (a, b) = (Node::start(settings("a")).await, Node::start(settings("b")).await);
    let (queue, mut queued) = tokio::sync::mpsc::channel(1_000);
    b.peers.serve(1..=1, Arc::new(Queueing(queue)));
    a.link(&[&b]).await;
    let bodies: Vec<Bytes> = (0..1_000u32).map(|n| n.to_be_bytes().to_vec().into()).collect();
    let calls =
        bodies.iter().map(|body| a.peers.call(b.id, Lane::Log, 1, std::slice::from_ref(body), PATIENCE));
    let answers = futures_util::future::join_all(calls).await;
    for (body, answer) in bodies.iter().zip(answers) {
        assert_eq!(answer.as_ref(), Ok(body));
        assert_eq!(queued.recv().await.as_ref(), Some(body));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_huge_body_passes_and_holds_up_no_other_lane() {
    let (a, b) = (Node::start(settings("a")).await, Node::start(settings("b")).await);
    let (mut arrivals, free) = holding(&b);
    a.link(&[&b]).await;
    let huge = Bytes::from(vec![7; 16 << 20]);
    // The huge call is held by its service: only what does not wait for it can be answered.
    let call = a.peers.call(b.id, Lane::Log, 2, std::slice::from_ref(&huge), PATIENCE);
    let others = async {
        assert_eq!(a.call(&b, Lane::Control, 1, b"quick").await, Ok(Bytes::from_static(b"quick")));
        while arrivals.recv().await.expect("open").len() != huge.len() {}
        assert_eq!(a.call(&b, Lane::Log, 1, b"behind").await, Ok(Bytes::from_static(b"behind")));
        free.cancel();
    };
    let (answer, ()) = tokio::join!(call, others);
    assert_eq!(answer.map(|body| body.len()), Ok(huge.len()));
    let too_large = Bytes::from(vec![0; (32 << 20) + 1]);
    let refused = a.peers.call(b.id, Lane::Bulk, 1, &[too_large], PATIENCE).await;
    assert!(matches!(refused, Err(CallError::NotSent(_))), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_whose_link_breaks_is_lost_and_one_without_a_link_is_not_sent() {
    let (a, b) = (Node::start(settings("a")).await, Node::start(settings("b")).await);
    let (mut arrivals, _free) = holding(&b);
    a.link(&[&b]).await;
    let call = a.call(&b, Lane::Log, 2, b"x");
    let breaking = async {
        arrivals.recv().await.expect("it arrived");
        b.peers.close();
    };
    let (answer, ()) = tokio::join!(call, breaking);
    assert!(matches!(answer, Err(CallError::Lost(_))), "{answer:?}");
    a.until(b.address, |link| !link.is_up()).await;
    let answer = a.call(&b, Lane::Log, 2, b"x").await;
    assert!(matches!(answer, Err(CallError::NotSent(_))), "{answer:?}");
    assert!(!a.peers.is_up(b.id));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_ends_at_its_limit() {
    let (a, b) = (Node::start(settings("a")).await, Node::start(settings("b")).await);
    let (mut arrivals, free) = holding(&b);
    a.link(&[&b]).await;
    let body = [Bytes::from_static(b"x")];
    let answer = a.peers.call(b.id, Lane::Control, 2, &body, Duration::from_secs(2)).await;
    arrivals.recv().await.expect("it arrived");
    assert!(matches!(answer, Err(CallError::Lost(_))), "{answer:?}");
    free.cancel();
    assert_eq!(
        a.call(&b, Lane::Control, 1, b"y").await,
        Ok(Bytes::from_static(b"y")),
        "a late answer is dropped"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_serves_nothing_costs_bounded_memory() {
    let (a, b) = (Node::start(settings("a")).await, Node::start(settings("b")).await);
    let (mut arrivals, free) = holding(&b);
    a.link(&[&b]).await;
    // 400 MiB are offered; b serves at most 64 MiB at once, and a's queue holds 64 MiB.
    let body = [Bytes::from(vec![0; 8 << 20])];
    let calls = (0..50).map(|_| a.peers.call(b.id, Lane::Log, 2, &body, Duration::from_millis(1_500)));
    let answers = futures_util::future::join_all(calls).await;
    let not_sent = answers.iter().filter(|answer| matches!(answer, Err(CallError::NotSent(_)))).count();
    arrivals.close();
    let mut arrived = 0;
    while arrivals.recv().await.is_some() {
        arrived += 1;
    }
    assert!(arrived <= 8, "{arrived} were served at once");
    assert!(not_sent >= 50 - 8 - 1, "{not_sent} were certainly not sent");
    free.cancel();
}

/// Panics at once, after a wait, or in a task of its own.
struct Panicking;

impl Service for Panicking {
    fn call<'a>(&'a self, _from: &'a Remote, method: u16, _body: Bytes) -> Answer<'a> {
        let panicking = async {
            tokio::task::yield_now().await;
            panic!("on purpose")
        };
        match method {
            2 => panic!("on purpose"),
            3 => Box::pin(panicking),
            _ => Box::pin(served_by(tokio::spawn(panicking))),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_whose_service_panics_is_lost_at_once_and_harms_no_other() {
    let (a, b) = (Node::start(settings("a")).await, Node::start(settings("b")).await);
    b.peers.serve(1..=1, echo());
    b.peers.serve(2..=4, Arc::new(Panicking));
    a.link(&[&b]).await;
    for method in 2..=4 {
        // Not by the limit of the call, which is that of the test.
        let answer = a.call(&b, Lane::Log, method, b"x").await;
        assert_eq!(answer, Err(CallError::Lost("the node failed while it served the call".into())));
        assert_eq!(a.call(&b, Lane::Log, 1, b"y").await, Ok(Bytes::from_static(b"y")));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_is_too_large_was_served_all_the_same() {
    let small = PeerSettings { body_bytes_max: 1_000, ..settings("a") };
    let (a, b) = (Node::start(small).await, Node::start(settings("b")).await);
    b.peers.serve(1..=1, Arc::new(Serving(|_, _| Ok(Bytes::from(vec![0; 1_001])))));
    a.link(&[&b]).await;
    let answer = a.call(&b, Lane::Log, 1, b"x").await;
    assert!(matches!(&answer, Err(CallError::Lost(why)) if why.contains("1001 bytes")), "{answer:?}");
}
