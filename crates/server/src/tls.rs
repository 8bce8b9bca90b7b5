//! TLS for the listener: certificates from PEM files, through rustls.
//!
//! The files are read once, at start; a renewed certificate needs a restart. What is wrong with a file is said with its
//! name. Nothing here logs a key.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::ring::default_provider;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::server::danger::ClientCertVerifier;
use tokio_rustls::rustls::{RootCertStore, ServerConfig};

/// Whether clients show certificates of their own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ClientCertificates {
    /// They are not asked.
    #[default]
    Ignored,
    /// They may; a wrong one is refused.
    Optional,
    /// They must.
    Required,
}

/// Where certificates and keys are.
#[derive(Clone, Debug, Default)]
pub struct TlsFiles {
    /// The server's certificate, followed by those that lead to a known authority.
    pub certificates: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// Authorities that clients' certificates must come from.
    pub client_authorities: Option<PathBuf>,
    /// Whether clients are asked for a certificate.
    pub client_certificates: ClientCertificates,
}

/// A server's certificate and key, ready for connections.
#[derive(Clone)]
pub struct Tls(TlsAcceptor);

impl Tls {
    /// Reads the files; the error names the one at fault.
    pub fn from_files(files: &TlsFiles) -> Result<Self, String> {
        let certificates = certificates(&files.certificates)?;
        let key = PrivateKeyDer::from_pem_file(&files.key)
            .map_err(|error| format!("{}: no private key in PEM form: {error}", files.key.display()))?;
        let builder = ServerConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| format!("TLS cannot be set up: {error}"))?;
        let builder = match verifier(files)? {
            Some(verifier) => builder.with_client_cert_verifier(verifier),
            None => builder.with_no_client_auth(),
        };
        let mut config = builder.with_single_cert(certificates, key).map_err(|error| {
            let (certificates, key) = (files.certificates.display(), files.key.display());
            format!("{certificates} and {key} do not belong together: {error}")
        })?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self(TlsAcceptor::from(Arc::new(config))))
    }

    pub(crate) fn acceptor(&self) -> &TlsAcceptor {
        &self.0
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let wrong = |error: &dyn std::fmt::Display| format!("{}: no certificates in PEM form: {error}", path.display());
    let read = CertificateDer::pem_file_iter(path).map_err(|error| wrong(&error))?;
    let certificates = read.collect::<Result<Vec<_>, _>>().map_err(|error| wrong(&error))?;
    if certificates.is_empty() { Err(wrong(&"the file has none")) } else { Ok(certificates) }
}

fn verifier(files: &TlsFiles) -> Result<Option<Arc<dyn ClientCertVerifier>>, String> {
    if files.client_certificates == ClientCertificates::Ignored {
        return Ok(None);
    }
    let path = files.client_authorities.as_deref();
    let path = path.ok_or("clients' certificates are asked for, but no authorities are named")?;
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        roots.add(certificate).map_err(|error| format!("{}: {error}", path.display()))?;
    }
    let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::new(default_provider()));
    let builder = match files.client_certificates {
        ClientCertificates::Required => builder,
        _ => builder.allow_unauthenticated(),
    };
    builder.build().map(Some).map_err(|error| format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_is_said_with_the_files_name() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let [certificate, key] = ["cert.pem", "key.pem"].map(|name| folder.path().join(name));
        let files = TlsFiles { certificates: certificate.clone(), key: key.clone(), ..TlsFiles::default() };
        let refusal = |files: &TlsFiles| Tls::from_files(files).err().expect("refused");
        assert!(refusal(&files).contains("cert.pem"));
        std::fs::write(&certificate, "no PEM").expect("a file can be written");
        assert!(refusal(&files).contains("the file has none"));
        let own = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
        std::fs::write(&certificate, own.cert.pem()).expect("a file can be written");
        assert!(refusal(&files).contains("key.pem"));
        let other = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
        std::fs::write(&key, other.signing_key.serialize_pem()).expect("a file can be written");
        assert!(refusal(&files).contains("do not belong together"));
        std::fs::write(&key, own.signing_key.serialize_pem()).expect("a file can be written");
        assert!(Tls::from_files(&files).is_ok());
        let asking = TlsFiles { client_certificates: ClientCertificates::Required, ..files };
        assert!(refusal(&asking).contains("no authorities"));
    }
}
