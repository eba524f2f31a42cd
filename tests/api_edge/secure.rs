//! TLS on the one port, and the way in for other nodes.

use std::net::SocketAddr;
use std::sync::Arc;

use fastpaca::api::PEER_PATH;
use fastpaca::config::Config;
use fastpaca::server::Server;
use reqwest::Method;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use crate::support::{Answer, CONVERSATIONS, Client, PATIENCE};

/// Connects as a client that trusts `pem` and offers one protocol.
async fn connect(address: SocketAddr, pem: &str, protocol: &[u8]) -> std::io::Result<TlsStream<TcpStream>> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()).unwrap();
    let provider = Arc::new(tokio_rustls::rustls::crypto::ring::default_provider());
    let builder =
        ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let mut config = builder.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![protocol.to_vec()];
    let stream = TcpStream::connect(address).await?;
    TlsConnector::from(Arc::new(config)).connect(ServerName::try_from("127.0.0.1").unwrap(), stream).await
}

#[tokio::test]
async fn https_is_served_with_both_versions_of_http() {
    let made = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
    let (pem, dir) = (made.cert.pem(), tempfile::tempdir().unwrap());
    let mut config = Config::for_test(dir.path());
    let [cert, key] = ["cert", "key"].map(|file| dir.path().join(file));
    std::fs::write(&cert, &pem).unwrap();
    std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    (config.tls_cert, config.tls_key) = (Some(cert), Some(key));
    let server = Server::start(config).await.unwrap();

    let mut stream = connect(server.address(), &pem, b"http/1.1").await.unwrap();
    stream.write_all(b"GET /health/live HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    let _ = timeout(PATIENCE, stream.read_to_end(&mut answer)).await.unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer));

    let mut stream = connect(server.address(), &pem, b"h2").await.unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
    let mut frame = [0; 9];
    timeout(PATIENCE, stream.read_exact(&mut frame)).await.unwrap().unwrap();
    assert_eq!(frame[3], 4, "settings come first");

    let other = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap().cert.pem();
    assert!(connect(server.address(), &other, b"http/1.1").await.is_err(), "another authority");
    let mut plain = TcpStream::connect(server.address()).await.unwrap();
    plain.write_all(b"GET /health/live HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    let _ = timeout(PATIENCE, plain.read_to_end(&mut answer)).await.unwrap();
    assert!(!answer.starts_with(b"HTTP"), "no cleartext behind TLS");
    server.shutdown().await;
}

#[tokio::test]
async fn the_way_in_for_nodes_takes_upgrades_only_and_is_in_no_document() {
    let client = Client::shared(CONVERSATIONS);
    Answer::of(client.raw(Method::GET, PEER_PATH)).await.fails(400, "invalid_request");
    let document = Answer::of(client.raw(Method::GET, "/openapi.json")).await.expect(200);
    assert!(!document.text.contains(PEER_PATH));
}
