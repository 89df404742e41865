//! HTTP clients with the TLS a host's configuration asks for (rustls with ring).

use std::sync::{Arc, OnceLock};

use rustls::{
    ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::CryptoProvider,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject as _},
};

use super::{error::RegistryError, retry::RetryPolicy};
use crate::hosts::{Endpoint, Tls, is_loopback};

/// A client for one host.
pub(super) fn client(
    endpoint: &Endpoint,
    policy: &RetryPolicy,
) -> Result<reqwest::Client, RegistryError> {
    let host = endpoint.base.host_str().unwrap_or_default().to_owned();
    let config = config(&endpoint.tls).map_err(|why| RegistryError::Tls {
        host: host.clone(),
        why,
    })?;
    let mut builder = reqwest::Client::builder()
        .tls_backend_preconfigured(config)
        // Redirects are followed by our own loop, which knows what not to send along.
        .redirect(reqwest::redirect::Policy::none())
        .connect_timeout(policy.connect_timeout)
        .user_agent(concat!("bulkhead/", env!("CARGO_PKG_VERSION")));
    if is_loopback(&host) {
        builder = builder.no_proxy();
    }
    builder
        .build()
        .map_err(|source| RegistryError::Client { host, source })
}

fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    Arc::clone(PROVIDER.get_or_init(|| Arc::new(rustls::crypto::ring::default_provider())))
}

/// The system's authorities, read once.
fn system_roots() -> &'static RootCertStore {
    static ROOTS: OnceLock<RootCertStore> = OnceLock::new();
    ROOTS.get_or_init(|| {
        let mut roots = RootCertStore::empty();
        let found = rustls_native_certs::load_native_certs();
        for error in &found.errors {
            tracing::warn!(%error, "a certificate authority of the system cannot be read");
        }
        let (added, ignored) = roots.add_parsable_certificates(found.certs);
        tracing::debug!(added, ignored, "the system's certificate authorities");
        roots
    })
}

fn config(tls: &Tls) -> Result<ClientConfig, String> {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?;
    let builder = if tls.skip_verify {
        builder
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(NoVerification))
    } else {
        let mut roots = system_roots().clone();
        for pem in &tls.authorities {
            let mut some = false;
            for certificate in CertificateDer::pem_slice_iter(pem) {
                let certificate = certificate.map_err(|error| format!("ca: {error}"))?;
                roots
                    .add(certificate)
                    .map_err(|error| format!("ca: {error}"))?;
                some = true;
            }
            if !some {
                return Err("ca: a file holds no PEM certificate".to_owned());
            }
        }
        builder.with_root_certificates(roots)
    };
    // One identity: rustls offers one chain per client; containerd's list is there for several
    // files, of which the first is what is used in practice.
    let Some((chain, key)) = tls.clients.first() else {
        return Ok(builder.with_no_client_auth());
    };
    let chain = CertificateDer::pem_slice_iter(chain)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| format!("client certificate: {error}"))?;
    let key = PrivateKeyDer::from_pem_slice(key).map_err(|error| format!("client key: {error}"))?;
    builder
        .with_client_auth_cert(chain, key)
        .map_err(|error| format!("client: {error}"))
}

/// `skip_verify = true`: the operator asked for it. Signatures of the handshake are checked even
/// so; only whom the certificate belongs to is not.
#[derive(Debug)]
struct NoVerification;

impl ServerCertVerifier for NoVerification {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &provider().signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &provider().signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider()
            .signature_verification_algorithms
            .supported_schemes()
    }
}
