//! HTTP clients with the TLS a host's configuration asks for (rustls with ring).

use std::sync::{Arc, OnceLock};

use rustls::{
    ClientConfig, RootCertStore,
    client::WebPkiServerVerifier,
    crypto::CryptoProvider,
    pki_types::{CertificateDer, pem::PemObject as _},
};

use super::{
    error::RegistryError,
    identity,
    retry::RetryPolicy,
    verify::{NoVerification, OwnAuthority},
};
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
        .connect_timeout(endpoint.dial_timeout.unwrap_or(policy.connect_timeout))
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
            .with_custom_certificate_verifier(Arc::new(NoVerification::new(provider())))
    } else {
        let mut roots = system_roots().clone();
        let mut own = Vec::new();
        for pem in &tls.authorities {
            let before = own.len();
            for certificate in CertificateDer::pem_slice_iter(pem) {
                let certificate = certificate.map_err(|error| format!("ca: {error}"))?;
                roots
                    .add(certificate.clone())
                    .map_err(|error| format!("ca: {error}"))?;
                own.push(certificate);
            }
            if own.len() == before {
                return Err("ca: a file holds no PEM certificate".to_owned());
            }
        }
        if own.is_empty() {
            builder.with_root_certificates(roots)
        } else {
            let inner = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider())
                .build()
                .map_err(|error| format!("ca: {error}"))?;
            builder
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(OwnAuthority::new(inner, own)))
        }
    };
    match identity::resolver(&tls.clients, &provider())? {
        Some(resolver) => Ok(builder.with_client_cert_resolver(resolver)),
        None => Ok(builder.with_no_client_auth()),
    }
}
