//! Who we are to a registry: credentials as CRI gives them, challenges (RFC 9110 §11.6.1), and
//! the token protocol of the distribution project. The parser is pure; what it reads is hostile.

use std::{collections::HashMap, fmt};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use reqwest::header::{HeaderMap, HeaderValue, WWW_AUTHENTICATE};
use serde::Deserialize;

use crate::hosts::{Endpoint, same_host};

/// Longest challenge header looked at, and most challenges in it.
const LONGEST_CHALLENGE: usize = 8 << 10;
const MOST_CHALLENGES: usize = 16;

/// Credentials as CRI's `AuthConfig` and a pull secret have them: several kinds at once.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct PullSecret {
    /// User.
    pub username: String,
    /// Its password.
    pub password: String,
    /// Base64 of `user:password`.
    pub auth: String,
    /// The host that this is for; empty means the image's own registry.
    pub server_address: String,
    /// A refresh token for the registry's token service.
    pub identity_token: String,
    /// A bearer token to send as it is.
    pub registry_token: String,
}

impl fmt::Debug for PullSecret {
    // For whom, never the secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PullSecret")
            .field("server_address", &self.server_address)
            .finish_non_exhaustive()
    }
}

/// The credentials of one pull.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Credentials {
    /// What they are.
    pub secret: Secret,
    /// For which host only (CRI `server_address`); empty means the image's own registry.
    pub server: String,
}

/// A kind of credential.
#[derive(Clone, PartialEq, Eq, Hash, Default)]
pub enum Secret {
    /// None: anonymous.
    #[default]
    None,
    /// User and password.
    Basic(String, String),
    /// A refresh token for the registry's token service (CRI `identity_token`).
    Identity(String),
    /// A bearer token to send as it is (CRI `registry_token`).
    Bearer(String),
}

impl fmt::Debug for Secret {
    // Its kind, never the secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "none",
            Self::Basic(..) => "user and password",
            Self::Identity(_) => "identity token",
            Self::Bearer(_) => "registry token",
        })
    }
}

/// CRI `AuthConfig.auth` that is not base64 of `user:password`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("AuthConfig.auth must be the base64 form of user:password")]
pub struct BadAuth;

impl Credentials {
    /// The one kind that is used. Of several given, user and password go first, then `auth`, the
    /// identity token, the registry token, as in other runtimes.
    ///
    /// # Errors
    /// `auth` is not base64 of `user:password`.
    pub fn of(secret: Option<&PullSecret>) -> Result<Self, BadAuth> {
        let Some(auth) = secret else {
            return Ok(Self::default());
        };
        let secret = if !auth.username.is_empty() || !auth.password.is_empty() {
            Secret::Basic(auth.username.clone(), auth.password.clone())
        } else if !auth.auth.is_empty() {
            let bytes = STANDARD.decode(auth.auth.trim()).map_err(|_| BadAuth)?;
            let text = String::from_utf8(bytes).map_err(|_| BadAuth)?;
            let (user, password) = text.split_once(':').ok_or(BadAuth)?;
            // Docker pads the password with NULs to a block.
            Secret::Basic(user.to_owned(), password.trim_end_matches('\0').to_owned())
        } else if !auth.identity_token.is_empty() {
            Secret::Identity(auth.identity_token.clone())
        } else if !auth.registry_token.is_empty() {
            Secret::Bearer(auth.registry_token.clone())
        } else {
            Secret::None
        };
        Ok(Self {
            secret,
            server: host_of(&auth.server_address),
        })
    }

    /// The secret to use at `endpoint` for an image of `registry`: never one meant for another
    /// host. A mirror gets it only if `server_address` names the mirror; a mirror with a secret
    /// of its own has it in `header` of its hosts.toml.
    pub fn at(&self, endpoint: &Endpoint, registry: &str) -> &Secret {
        const NONE: &Secret = &Secret::None;
        let host = endpoint.base.host_str().unwrap_or_default();
        let with_port = match endpoint.base.port() {
            Some(port) => format!("{host}:{port}"),
            None => host.to_owned(),
        };
        let fits = if self.server.is_empty() {
            !endpoint.mirror
        } else {
            same_host(&self.server, &with_port)
                || (!endpoint.mirror && same_host(&self.server, registry))
        };
        if fits { &self.secret } else { NONE }
    }
}

fn host_of(address: &str) -> String {
    let (scheme, rest) = address.split_once("://").unwrap_or(("", address));
    let host = rest.split('/').next().unwrap_or(rest).to_ascii_lowercase();
    // As a URL has it: the scheme's own port is not written.
    let default = match scheme {
        "https" => ":443",
        "http" => ":80",
        _ => "",
    };
    host.strip_suffix(default).unwrap_or(&host).to_owned()
}

/// `Authorization: Basic …`.
pub(super) fn basic(user: &str, password: &str) -> Option<HeaderValue> {
    sensitive(&format!(
        "Basic {}",
        STANDARD.encode(format!("{user}:{password}"))
    ))
}

/// `Authorization: Bearer …`; `None` if the token cannot stand in a header.
pub(super) fn bearer(token: &str) -> Option<HeaderValue> {
    sensitive(&format!("Bearer {token}"))
}

fn sensitive(text: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(text).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// One challenge of a `WWW-Authenticate` header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Challenge {
    /// The scheme, in lower case.
    pub scheme: String,
    /// Its parameters, names in lower case.
    pub parameters: HashMap<String, String>,
}

/// All challenges of a response; what cannot be parsed is left out.
pub(super) fn challenges(headers: &HeaderMap) -> Vec<Challenge> {
    let mut all = Vec::new();
    for value in headers.get_all(WWW_AUTHENTICATE) {
        if let Ok(text) = value.to_str()
            && text.len() <= LONGEST_CHALLENGE
        {
            parse_challenges(text, &mut all);
        }
        if all.len() >= MOST_CHALLENGES {
            break;
        }
    }
    all
}

/// Parses `Scheme a=b, c="d", Scheme2 …`.
fn parse_challenges(text: &str, all: &mut Vec<Challenge>) {
    let mut rest = text.trim_start_matches([' ', '\t', ',']);
    while !rest.is_empty() && all.len() < MOST_CHALLENGES {
        let (word, after) = token(rest);
        if word.is_empty() {
            return;
        }
        let after = after.trim_start();
        if let Some(value) = after.strip_prefix('=') {
            // A parameter: of the challenge before it.
            let Some((value, after)) = parameter_value(value.trim_start()) else {
                return;
            };
            if let Some(challenge) = all.last_mut() {
                challenge
                    .parameters
                    .entry(word.to_ascii_lowercase())
                    .or_insert(value);
            }
            rest = after;
        } else {
            all.push(Challenge {
                scheme: word.to_ascii_lowercase(),
                parameters: HashMap::new(),
            });
            rest = after;
        }
        rest = rest.trim_start_matches([' ', '\t', ',']);
    }
}

fn token(text: &str) -> (&str, &str) {
    let end = text
        .find(|c: char| !(c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~/".contains(c)))
        .unwrap_or(text.len());
    text.split_at(end)
}

fn parameter_value(text: &str) -> Option<(String, &str)> {
    let Some(quoted) = text.strip_prefix('"') else {
        let (value, rest) = token(text);
        return Some((value.to_owned(), rest));
    };
    let mut value = String::new();
    let mut characters = quoted.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return Some((value, quoted.get(at + 1..)?)),
            '\\' => value.push(characters.next()?.1),
            other => value.push(other),
        }
    }
    None
}

/// The answer of a token service.
#[derive(Deserialize)]
pub(super) struct TokenAnswer {
    token: Option<String>,
    access_token: Option<String>,
    /// Seconds the token is good for; 60 when not said (the token specification).
    pub expires_in: Option<i64>,
}

impl TokenAnswer {
    /// The token, by either of its two names.
    pub fn token(&self) -> Option<&str> {
        [&self.token, &self.access_token]
            .into_iter()
            .filter_map(Option::as_deref)
            .find(|token| !token.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Vec<(String, Vec<(String, String)>)> {
        let mut all = Vec::new();
        parse_challenges(text, &mut all);
        all.into_iter()
            .map(|challenge| {
                let mut parameters: Vec<_> = challenge.parameters.into_iter().collect();
                parameters.sort();
                (challenge.scheme, parameters)
            })
            .collect()
    }

    fn pair(a: &str, b: &str) -> (String, String) {
        (a.to_owned(), b.to_owned())
    }

    #[test]
    fn challenges_as_registries_write_them() {
        assert_eq!(
            parsed(
                r#"Bearer realm="https://auth.example/token",service="r",scope="repository:a/b:pull,push""#
            ),
            [(
                "bearer".to_owned(),
                vec![
                    pair("realm", "https://auth.example/token"),
                    pair("scope", "repository:a/b:pull,push"),
                    pair("service", "r"),
                ]
            )]
        );
        assert_eq!(
            parsed(r#"Basic realm="a \"b\" c", Bearer realm=x , charset="UTF-8""#),
            [
                ("basic".to_owned(), vec![pair("realm", "a \"b\" c")]),
                (
                    "bearer".to_owned(),
                    vec![pair("charset", "UTF-8"), pair("realm", "x")]
                ),
            ]
        );
        assert_eq!(parsed("Negotiate"), [("negotiate".to_owned(), vec![])]);
        assert_eq!(
            parsed(r#"Basic realm="never closed"#),
            [("basic".to_owned(), vec![])]
        );
        assert_eq!(parsed("\u{1}\u{2}"), []);
    }

    proptest::proptest! {
        #[test]
        fn parsing_is_total(text in "\\PC{0,200}") {
            let _ = parsed(&text);
        }
    }

    fn endpoint(base: &str, mirror: bool) -> Endpoint {
        Endpoint {
            base: base.parse().unwrap(),
            resolve: true,
            pull: true,
            headers: HeaderMap::new(),
            tls: crate::hosts::Tls::default(),
            dial_timeout: None,
            mirror,
        }
    }

    #[test]
    fn a_secret_goes_to_its_own_host_only() {
        let mut credentials = Credentials {
            secret: Secret::Bearer("t".to_owned()),
            server: String::new(),
        };
        let own = endpoint("https://example.com:8443/v2", false);
        let mirror = endpoint("http://mirror.example:5000/v2", true);
        let hub = endpoint("https://registry-1.docker.io/v2", false);
        assert!(credentials.at(&own, "example.com:8443") == &credentials.secret);
        assert!(credentials.at(&mirror, "example.com:8443") == &Secret::None);
        credentials.server = host_of("https://Mirror.example:5000/v1/");
        assert!(credentials.at(&mirror, "example.com:8443") == &credentials.secret);
        assert!(credentials.at(&own, "example.com:8443") == &Secret::None);
        credentials.server = host_of("https://Example.com:443/v2/");
        let plain = endpoint("https://example.com/v2", false);
        assert!(credentials.at(&plain, "example.com") == &credentials.secret);
        credentials.server = host_of("https://index.docker.io/v1/");
        assert!(credentials.at(&hub, "docker.io") == &credentials.secret);
    }

    #[test]
    fn credentials_of() {
        let auth = |change: fn(&mut PullSecret)| {
            let mut auth = PullSecret::default();
            change(&mut auth);
            Credentials::of(Some(&auth)).map(|credentials| credentials.secret)
        };
        let basic = Secret::Basic("u".to_owned(), "p:w".to_owned());
        assert!(auth(|_| {}) == Ok(Secret::None));
        assert!(auth(|a| a.auth = "dTpwOncAAAA=".to_owned()) == Ok(basic));
        assert!(auth(|a| a.auth = "%%".to_owned()) == Err(BadAuth));
        assert!(auth(|a| a.auth = "dXNlcg==".to_owned()) == Err(BadAuth));
        assert!(auth(|a| a.identity_token = "i".to_owned()) == Ok(Secret::Identity("i".into())));
        assert!(auth(|a| a.registry_token = "r".to_owned()) == Ok(Secret::Bearer("r".into())));
        let shown = format!("{:?}", Credentials::default());
        assert!(shown.contains("none"), "{shown}");
    }
}
