//! TLS for the listener and for dialling other nodes, from PEM files (rustls with ring; TLS 1.2 and 1.3).
//!
//! Lacks on purpose: certificates of clients (who they are is settled by keys and secrets), reloading, and the system's
//! list of authorities (nodes trust their own).

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio_rustls::rustls::client::WebPkiServerVerifier;
use tokio_rustls::rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use tokio_rustls::rustls::crypto::{CryptoProvider, ring};
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use tokio_rustls::rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, ServerConfig,
    SignatureScheme,
};
use tokio_rustls::{TlsAcceptor, TlsConnector};

/// Largest file that is read for a certificate or key.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Which file is of no use, and why.
#[derive(Debug, thiserror::Error)]
#[error("{}: {why}", .file.display())]
pub struct TlsError {
    pub file: PathBuf,
    pub why: String,
}

/// What the listener shows: offers HTTP/2 and HTTP/1.1.
pub(crate) fn acceptor(cert: &Path, key: &Path) -> Result<TlsAcceptor, TlsError> {
    let chain = certificates(cert)?;
    let secret = PrivateKeyDer::from_pem_slice(&read(key)?)
        .map_err(|error| bad(key, format!("no PEM private key ({error})")))?;
    let builder = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|error| bad(cert, error))?
        .with_no_client_auth();
    let mut config = builder
        .with_single_cert(chain, secret)
        .map_err(|error| bad(key, format!("does not go with {} ({error})", cert.display())))?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// Dials other nodes.
#[derive(Clone)]
pub struct Dialler(TlsConnector);

impl Dialler {
    /// Trusts what is signed by a certificate of the file `ca`, for the address that is dialled or any of `names`.
    pub fn new(ca: &Path, names: &[String]) -> Result<Dialler, TlsError> {
        let mut roots = RootCertStore::empty();
        for certificate in certificates(ca)? {
            roots.add(certificate).map_err(|error| bad(ca, error))?;
        }
        let names = names.iter().filter_map(|name| ServerName::try_from(name.clone()).ok()).collect();
        let inner = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider()).build();
        let verifier = AnyName { inner: inner.map_err(|error| bad(ca, error))?, names };
        let mut config = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(|error| bad(ca, error))?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_no_client_auth();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Dialler(TlsConnector::from(Arc::new(config))))
    }

    /// Speaks TLS on a connection to this address.
    pub async fn connect<IO>(
        &self,
        address: IpAddr,
        io: IO,
    ) -> std::io::Result<tokio_rustls::client::TlsStream<IO>>
    where
        IO: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
    {
        self.0.connect(ServerName::from(address), io).await
    }
}

/// Verifies as usual, but takes a certificate for any of several names: nodes are dialled by address, and their
/// certificates are often made for the name all of them share.
#[derive(Debug)]
struct AnyName {
    inner: Arc<WebPkiServerVerifier>,
    names: Vec<ServerName<'static>>,
}

impl ServerCertVerifier for AnyName {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let verify = |name: &ServerName<'_>| {
            self.inner.verify_server_cert(end_entity, intermediates, name, ocsp_response, now)
        };
        let first = verify(server_name);
        match &first {
            Err(Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) => self.names.iter().find_map(|name| verify(name).ok()).map_or(first, Ok),
            _ => first,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let bytes = read(file)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        Ok(_) => Err(bad(file, "no PEM certificate in it")),
        Err(error) => Err(bad(file, format!("no PEM certificate ({error})"))),
    }
}

fn read(file: &Path) -> Result<Vec<u8>, TlsError> {
    let size = std::fs::metadata(file).map_err(|error| bad(file, error))?.len();
    if size > FILE_BYTES_MAX {
        return Err(bad(file, "too large for a certificate or key"));
    }
    std::fs::read(file).map_err(|error| bad(file, error))
}

fn bad(file: &Path, why: impl std::fmt::Display) -> TlsError {
    // One line, whatever a library has to say.
    TlsError { file: file.to_owned(), why: why.to_string().replace(char::is_control, " ") }
}
