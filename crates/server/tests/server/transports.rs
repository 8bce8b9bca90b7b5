//! TLS and Unix sockets.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use firebrick_server::{ClientCertificates, Limits, Listener, ServerConfig, Tls, TlsFiles, listen};
use rcgen::CertifiedKey;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::pki_types::{PrivateKeyDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use crate::support::{Reply, Server, Setup};

const REQUEST: &[u8] = b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";

async fn ask<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S) -> std::io::Result<Reply> {
    stream.write_all(REQUEST).await?;
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).await?;
    if bytes.is_empty() {
        return Err(std::io::ErrorKind::UnexpectedEof.into());
    }
    Ok(Reply::parse(&bytes))
}

fn certificate() -> CertifiedKey<rcgen::KeyPair> {
    rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate")
}

fn files(folder: &Path, own: &CertifiedKey<rcgen::KeyPair>) -> TlsFiles {
    let [certificates, key] = ["cert.pem", "key.pem"].map(|name| folder.join(name));
    std::fs::write(&certificates, own.cert.pem()).expect("a file can be written");
    std::fs::write(&key, own.signing_key.serialize_pem()).expect("a file can be written");
    TlsFiles { certificates, key, ..TlsFiles::default() }
}

fn start(files: &TlsFiles, setup: &Setup) -> Server {
    let tcp = listen(([127, 0, 0, 1], 0).into()).expect("a free port");
    let port = tcp.local_addr().expect("bound").port();
    let tls = Tls::from_files(files).expect("the files are valid");
    let server = Server::start_behind(Listener::from(tcp).with_tls(tls), port, setup);
    server.load(setup);
    server
}

async fn connect(
    port: u16,
    trusted: &CertifiedKey<rcgen::KeyPair>,
    own: Option<&CertifiedKey<rcgen::KeyPair>>,
) -> std::io::Result<TlsStream<TcpStream>> {
    let mut roots = RootCertStore::empty();
    roots.add(trusted.cert.der().clone()).expect("a certificate");
    let provider = Arc::new(tokio_rustls::rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("the provider knows them")
        .with_root_certificates(roots);
    let config = match own {
        Some(own) => {
            let key = PrivateKeyDer::try_from(own.signing_key.serialize_der()).expect("a key");
            builder.with_client_auth_cert(vec![own.cert.der().clone()], key).expect("they belong together")
        }
        None => builder.with_no_client_auth(),
    };
    let stream = TcpStream::connect(("127.0.0.1", port)).await?;
    let name = ServerName::try_from("localhost").expect("a name");
    TlsConnector::from(Arc::new(config)).connect(name, stream).await
}

#[tokio::test]
async fn a_server_with_a_certificate_speaks_tls_and_nothing_else() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let own = certificate();
    let limits = Limits { header_timeout: Duration::from_millis(300), ..Limits::default() };
    let config = ServerConfig { limits, log_requests: false, ..ServerConfig::default() };
    let server = start(&files(folder.path(), &own), &Setup { config, ..Setup::default() });
    let reply = ask(&mut connect(server.port, &own, None).await.expect("a handshake")).await.expect("an answer");
    assert_eq!((reply.status, &reply.json()["status"]), (200, &"healthy".into()));
    let mut plain = TcpStream::connect(("127.0.0.1", server.port)).await.expect("the port is open");
    plain.write_all(REQUEST).await.expect("taken");
    let mut bytes = Vec::new();
    let _ = plain.read_to_end(&mut bytes).await;
    assert!(!bytes.starts_with(b"HTTP"), "plain HTTP is answered");
    // Whoever says nothing is not waited for.
    let begun = Instant::now();
    let mut silent = TcpStream::connect(("127.0.0.1", server.port)).await.expect("the port is open");
    let _ = silent.read_to_end(&mut bytes).await;
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn clients_can_be_required_to_show_a_known_certificate() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (own, friend, stranger) = (certificate(), certificate(), certificate());
    let authorities = folder.path().join("clients.pem");
    std::fs::write(&authorities, friend.cert.pem()).expect("a file can be written");
    let files = TlsFiles {
        client_authorities: Some(authorities),
        client_certificates: ClientCertificates::Required,
        ..files(folder.path(), &own)
    };
    let server = start(&files, &Setup::default());
    let answer = async |client: Option<&CertifiedKey<rcgen::KeyPair>>| {
        let mut stream = connect(server.port, &own, client).await?;
        ask(&mut stream).await.map(|reply| reply.status)
    };
    assert_eq!(answer(Some(&friend)).await.ok(), Some(200));
    assert_eq!(answer(None).await.ok(), None);
    assert_eq!(answer(Some(&stranger)).await.ok(), None);
}

#[tokio::test]
async fn a_unix_socket_serves_replaces_a_dead_one_and_is_removed() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("api.sock");
    drop(std::os::unix::net::UnixListener::bind(&path).expect("a socket"));
    assert!(path.exists(), "a dead program's socket is left behind");
    let setup = Setup::default();
    let server = Server::start_behind(Listener::unix(&path).expect("it is replaced"), 0, &setup);
    server.load(&setup);
    let mut stream = UnixStream::connect(&path).await.expect("the server listens");
    assert_eq!(ask(&mut stream).await.expect("an answer").status, 200);
    assert!(Listener::unix(&path).is_err(), "a living server's socket is not taken");
    drop(server);
    let deadline = Instant::now() + Duration::from_secs(5);
    while path.exists() {
        assert!(Instant::now() < deadline, "the socket is still there");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
