//! Who we are to a registry by TLS: the certificates of a host's `client`, of which the one that
//! the server can check is shown.

use std::sync::Arc;

use rustls::{
    SignatureScheme,
    client::ResolvesClientCert,
    crypto::CryptoProvider,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    sign::CertifiedKey,
};

use super::der;

/// The configured identities, in their order.
#[derive(Debug)]
struct Identities(Vec<Arc<CertifiedKey>>);

/// Reads pairs of PEM, certificate chain and key; `None` if there are none.
pub(super) fn resolver(
    pairs: &[(Vec<u8>, Vec<u8>)],
    provider: &CryptoProvider,
) -> Result<Option<Arc<dyn ResolvesClientCert>>, String> {
    let mut identities = Vec::new();
    for (chain, key) in pairs {
        let chain = CertificateDer::pem_slice_iter(chain)
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| format!("client certificate: {error}"))?;
        if chain.is_empty() {
            return Err("client certificate: a file holds no PEM certificate".to_owned());
        }
        let key =
            PrivateKeyDer::from_pem_slice(key).map_err(|error| format!("client key: {error}"))?;
        let identity = CertifiedKey::from_der(chain, key, provider)
            .map_err(|error| format!("client: {error}"))?;
        identities.push(Arc::new(identity));
    }
    if identities.is_empty() {
        return Ok(None);
    }
    Ok(Some(Arc::new(Identities(identities))))
}

impl ResolvesClientCert for Identities {
    fn resolve(
        &self,
        authorities: &[&[u8]],
        schemes: &[SignatureScheme],
    ) -> Option<Arc<CertifiedKey>> {
        let mut usable = self
            .0
            .iter()
            .filter(|identity| identity.key.choose_scheme(schemes).is_some());
        let first = usable.clone().next();
        // A server may say whose certificates it takes (RFC 8446 §4.2.4).
        usable
            .find(|identity| is_issued_by(identity, authorities))
            .or(first)
            .cloned()
    }

    fn has_certs(&self) -> bool {
        true
    }
}

fn is_issued_by(identity: &CertifiedKey, authorities: &[&[u8]]) -> bool {
    identity.cert.iter().any(|certificate| {
        der::parts(certificate).is_some_and(|parts| authorities.contains(&parts.issuer))
    })
}
