//! Links over TLS, with certificates made for the occasion.

use std::path::PathBuf;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};

use super::*;
use crate::tls::{self, Dialler};

/// An authority, and a certificate it signed for `name`.
struct Papers {
    dir: tempfile::TempDir,
}

impl Papers {
    fn make(name: &str) -> Papers {
        let mut authority = CertificateParams::new(Vec::new()).unwrap();
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority_key = KeyPair::generate().unwrap();
        let ca = authority.self_signed(&authority_key).unwrap().pem();
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        let cert = params.signed_by(&key, &Issuer::new(authority, authority_key)).unwrap().pem();
        let dir = tempfile::tempdir().unwrap();
        for (file, text) in [("ca", ca), ("cert", cert), ("key", key.serialize_pem())] {
            std::fs::write(dir.path().join(file), text).unwrap();
        }
        Papers { dir }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn dialler(&self, names: &[&str]) -> Dialler {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        Dialler::new(&self.file("ca"), &names).unwrap()
    }
}

/// A node whose listener speaks TLS only.
async fn start(papers: &Papers) -> Node {
    let acceptor = tls::acceptor(&papers.file("cert"), &papers.file("key")).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (settings, metrics) = (settings("b"), Metrics::new());
    let id = settings.node_id;
    let peers = Peers::start(settings, Handle::current(), Handle::current(), metrics.clone());
    peers.serve(1..=1, echo());
    let inside = peers.clone();
    let listening = tokio::spawn(async move {
        let mut open = tokio::task::JoinSet::new();
        while let Ok((stream, from)) = listener.accept().await {
            let (inside, acceptor) = (inside.clone(), acceptor.clone());
            open.spawn(async move {
                let Ok(stream) = acceptor.accept(stream).await else { return };
                assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"http/1.1"[..]));
                let socket = tokio_tungstenite::accept_async(stream).await.unwrap();
                inside.accept(socket.into_inner(), from, ()).await;
            });
        }
    });
    Node { peers, id, address, metrics, _listening: AbortOnDropHandle::new(listening) }
}

#[tokio::test]
async fn a_link_stands_over_tls_by_address_or_by_the_name_of_a_seed() {
    for (name, names) in [("127.0.0.1", &[][..]), ("nodes.test", &["other.test", "nodes.test"])] {
        let papers = Papers::make(name);
        let b = start(&papers).await;
        let a = Node::start(PeerSettings { tls: Some(papers.dialler(names)), ..settings("a") }).await;
        a.link(&[&b]).await;
        let large = vec![1; 1 << 20];
        assert_eq!(a.call(&b, Lane::Bulk, 1, &large).await.map(|body| body.len()), Ok(large.len()));
    }
}

#[tokio::test]
async fn another_authority_another_name_and_no_tls_are_refused() {
    let (papers, others) = (Papers::make("127.0.0.1"), Papers::make("127.0.0.1"));
    let b = start(&papers).await;
    let a = Node::start(PeerSettings { tls: Some(others.dialler(&[])), ..settings("a") }).await;
    a.peers.set_targets(vec![b.address]);
    let why = a.failure(b.address).await;
    assert!(why.contains("no TLS with the node") && why.contains("invalid peer certificate"), "{why}");

    let named = Papers::make("nodes.test");
    let c = start(&named).await;
    let d = Node::start(PeerSettings { tls: Some(named.dialler(&["other.test"])), ..settings("d") }).await;
    d.peers.set_targets(vec![c.address]);
    let why = d.failure(c.address).await;
    assert!(why.contains("not valid for name"), "{why}");

    let plain = Node::start(settings("e")).await;
    plain.peers.set_targets(vec![b.address]);
    assert!(plain.failure(b.address).await.contains("no link"));
}

#[test]
fn files_of_no_use_are_named() {
    let (papers, others) = (Papers::make("a.test"), Papers::make("a.test"));
    let fails = |cert: PathBuf, key: PathBuf| {
        tls::acceptor(&cert, &key).map(drop).expect_err("of no use").to_string()
    };
    let mismatched = fails(papers.file("cert"), others.file("key"));
    assert!(mismatched.contains("does not go with"), "{mismatched}");
    let missing = fails(papers.file("none"), papers.file("key"));
    assert!(missing.contains("none: No such file"), "{missing}");
    let no_key = fails(papers.file("cert"), papers.file("ca"));
    assert!(no_key.contains("no PEM private key"), "{no_key}");
    let no_cert = fails(papers.file("key"), papers.file("key"));
    assert!(no_cert.contains("no PEM certificate"), "{no_cert}");
}
