//! What a connection that failed is called elsewhere, and what to do: users search for the words that
//! containerd and Docker have for it, which are those of Go's libraries.

use std::error::Error;
use std::io;

use rustls::{CertificateError, Error as TlsError, InvalidMessage};

const AUTHORITY: &str = "; x509: certificate signed by unknown authority: name the registry's own \
                         authority by ca in its hosts.toml";
const DATES: &str = "; x509: certificate has expired or is not yet valid: renew it, or look at the \
                     clock of this node";
const NAME: &str = "; x509: certificate is valid for other names than this: use one of those, or \
                    make it anew with this name in its subjectAltName";
const PLAIN: &str = "; http: server gave HTTP response to HTTPS client: if it speaks plain http, \
                     give its http:// address in its hosts.toml";
const OTHER_TLS: &str = "; if it speaks plain http or has an own certificate authority, say so in \
                         its hosts.toml";
const NO_HOST: &str = "; no such host: check the registry's name";
const NO_ANSWER: &str = "; the name servers of this node do not answer";

/// For the end of a message about `error`, or nothing.
pub(super) fn hint(error: &(dyn Error + 'static), https: bool) -> &'static str {
    let mut next = Some(error);
    while let Some(one) = next {
        if let Some(found) = of(one) {
            return found;
        }
        next = one.source();
    }
    if https { OTHER_TLS } else { "" }
}

fn of(error: &(dyn Error + 'static)) -> Option<&'static str> {
    if let Some(error) = error.downcast_ref::<TlsError>() {
        return of_tls(error);
    }
    // What an io::Error was made of is no source of it.
    if let Some(inner) = error
        .downcast_ref::<io::Error>()
        .and_then(io::Error::get_ref)
    {
        return of(inner);
    }
    // getaddrinfo(3)'s failure is a text in the standard library.
    let text = error.to_string();
    if !text.starts_with("failed to lookup address information") {
        return None;
    }
    // EAI_AGAIN, in glibc's words.
    Some(match text.contains("Temporary failure") {
        true => NO_ANSWER,
        false => NO_HOST,
    })
}

fn of_tls(error: &TlsError) -> Option<&'static str> {
    use CertificateError::{
        Expired, ExpiredContext, NotValidForName, NotValidForNameContext, NotValidYet,
        NotValidYetContext, UnknownIssuer,
    };
    match error {
        TlsError::InvalidCertificate(UnknownIssuer) => Some(AUTHORITY),
        TlsError::InvalidCertificate(
            Expired | ExpiredContext { .. } | NotValidYet | NotValidYetContext { .. },
        ) => Some(DATES),
        TlsError::InvalidCertificate(NotValidForName | NotValidForNameContext { .. }) => Some(NAME),
        TlsError::InvalidMessage(InvalidMessage::InvalidContentType) => Some(PLAIN),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_have_the_words_users_search_for() {
        let wrapped = |error: TlsError| io::Error::other(io::Error::other(error));
        for (error, words) in [
            (
                TlsError::InvalidCertificate(CertificateError::UnknownIssuer),
                "x509: certificate signed by unknown authority",
            ),
            (
                TlsError::InvalidCertificate(CertificateError::Expired),
                "x509: certificate has expired or is not yet valid",
            ),
            (
                TlsError::InvalidCertificate(CertificateError::NotValidForName),
                "x509: certificate is valid for",
            ),
            (
                TlsError::InvalidMessage(InvalidMessage::InvalidContentType),
                "http: server gave HTTP response to HTTPS client",
            ),
            (TlsError::DecryptError, "certificate authority"),
        ] {
            let found = hint(&wrapped(error), true);
            assert!(found.contains(words), "{found} for {words}");
        }
        let lookup = "failed to lookup address information: Name or service not known";
        let found = hint(&io::Error::other(io::Error::other(lookup)), true);
        assert!(found.contains("no such host"), "{found}");
        let lookup = "failed to lookup address information: Temporary failure in name resolution";
        assert_eq!(hint(&io::Error::other(lookup), true), NO_ANSWER);
        assert_eq!(hint(&io::Error::from_raw_os_error(111), false), "");
    }
}
