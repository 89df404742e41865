//! `hosts.toml`: what it says, checked, as places to ask.
//!
//! Where it leaves a question open, containerd's reading decides (its
//! `core/remotes/docker/config`), but a file that cannot be read is an error here, not passed over.

use std::path::Path;

use reqwest::{
    Url,
    header::{HeaderMap, HeaderName, HeaderValue},
};
use serde::Deserialize;

use super::{
    duration,
    endpoint::{Endpoint, Tls, default_endpoint, is_loopback, is_registry, to_hub_api},
    error::{HostsError, read},
};

/// Most mirrors of one registry.
const MOST_HOSTS: usize = 16;

#[derive(Debug, Deserialize)]
struct RawFile {
    server: Option<String>,
    #[serde(flatten)]
    own: RawHost,
    // toml keeps the order of the file (feature preserve_order): mirrors are tried in that order.
    #[serde(default)]
    host: toml::Table,
}

#[derive(Debug, Default, Deserialize)]
struct RawHost {
    capabilities: Option<Vec<String>>,
    ca: Option<OneOrMore>,
    client: Option<RawClient>,
    #[serde(default)]
    skip_verify: bool,
    #[serde(default)]
    header: toml::Table,
    #[serde(default)]
    override_path: bool,
    #[serde(default)]
    dial_timeout: String,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum OneOrMore {
    One(String),
    More(Vec<String>),
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum RawClient {
    One(String),
    More(Vec<RawIdentity>),
}

/// A certificate with its key: in one file or in two.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum RawIdentity {
    File(String),
    Pair([String; 2]),
}

impl RawIdentity {
    fn files(self) -> (String, String) {
        match self {
            Self::File(file) => (file.clone(), file),
            // An empty name means that the key is in the certificate's file.
            Self::Pair([file, key]) if key.is_empty() => (file.clone(), file),
            Self::Pair([file, key]) => (file, key),
        }
    }
}

/// The places that a file names, in its order, the registry's own last. Blocks: reads
/// certificates.
pub(super) fn parse(path: &Path, text: &str, registry: &str) -> Result<Vec<Endpoint>, HostsError> {
    let raw: RawFile = toml::from_str(text).map_err(|source| HostsError::Parse {
        path: path.to_owned(),
        source: Box::new(source),
    })?;
    if raw.host.len() > MOST_HOSTS {
        return Err(HostsError::Value {
            path: path.to_owned(),
            key: "host".to_owned(),
            value: format!("{} tables", raw.host.len()),
            allowed: "at most 16 mirrors are allowed",
        });
    }
    let mut endpoints = Vec::new();
    for (address, value) in raw.host {
        let host: RawHost = value.try_into().map_err(|source| HostsError::Parse {
            path: path.to_owned(),
            source: Box::new(source),
        })?;
        endpoints.push(resolve_host(path, &address, host, registry)?);
    }
    let last = match raw.server.filter(|server| !server.is_empty()) {
        Some(address) => resolve_host(path, &address, raw.own, registry)?,
        None => {
            // The registry itself, which can do everything, whatever the file says.
            let own = RawHost {
                capabilities: None,
                override_path: false,
                ..raw.own
            };
            let base = default_endpoint(registry, Tls::default()).base;
            resolve_host(path, &base.origin().ascii_serialization(), own, registry)?
        }
    };
    endpoints.push(last);
    Ok(endpoints)
}

fn resolve_host(
    path: &Path,
    address: &str,
    raw: RawHost,
    registry: &str,
) -> Result<Endpoint, HostsError> {
    let wrong = |key: &str, value: &str, allowed| HostsError::Value {
        path: path.to_owned(),
        key: key.to_owned(),
        value: value.to_owned(),
        allowed,
    };
    let bad_address = || {
        wrong(
            "a host's address",
            address,
            "it must be http(s)://host[:port][/path]",
        )
    };
    let full = if address.contains("://") {
        address.to_owned()
    } else if is_loopback(address.split('/').next().unwrap_or(address)) {
        format!("http://{address}")
    } else {
        format!("https://{address}")
    };
    let mut base = Url::parse(&full).map_err(|_| bad_address())?;
    if !matches!(base.scheme(), "http" | "https")
        || base.host_str().is_none()
        || base.query().is_some()
        || base.fragment().is_some()
        || !base.username().is_empty()
        || base.password().is_some()
    {
        return Err(bad_address());
    }
    let mut at = base.path().trim_end_matches('/').to_owned();
    if !raw.override_path && !at.ends_with("/v2") {
        at.push_str("/v2");
    }
    base.set_path(&at);
    to_hub_api(&mut base);

    let (mut resolve, mut pull) = (true, true);
    // An empty list says nothing: all of them.
    if let Some(capabilities) = raw.capabilities.filter(|some| !some.is_empty()) {
        (resolve, pull) = (false, false);
        for capability in capabilities {
            match capability.to_ascii_lowercase().as_str() {
                "resolve" => resolve = true,
                "pull" => pull = true,
                "push" | "referrers" => {}
                other => {
                    return Err(wrong(
                        &format!("capabilities of {address}"),
                        other,
                        "they may be \"pull\", \"resolve\", \"push\", \"referrers\"",
                    ));
                }
            }
        }
    }

    let mut headers = HeaderMap::new();
    for (name, value) in &raw.header {
        let key = || format!("header {name} of {address}");
        let name: HeaderName = name
            .parse()
            .map_err(|_| wrong(&key(), name, "this is no name of an HTTP header"))?;
        let values: Option<Vec<&str>> = match value {
            toml::Value::String(one) => Some(vec![one.as_str()]),
            toml::Value::Array(more) => more.iter().map(toml::Value::as_str).collect(),
            _ => None,
        };
        let values =
            values.ok_or_else(|| wrong(&key(), "(not shown)", "it must be a string or strings"))?;
        for value in values {
            let mut value = HeaderValue::from_str(value)
                .map_err(|_| wrong(&key(), "(not shown)", "this is no value of an HTTP header"))?;
            value.set_sensitive(true);
            headers.append(name.clone(), value);
        }
    }

    let dir = path.parent().unwrap_or(Path::new("/"));
    let mut tls = Tls {
        skip_verify: raw.skip_verify,
        ..Tls::default()
    };
    let authorities = match raw.ca {
        None => Vec::new(),
        Some(OneOrMore::One(file)) => vec![file],
        Some(OneOrMore::More(files)) => files,
    };
    for file in authorities {
        tls.authorities.push(read(&dir.join(file))?);
    }
    let clients = match raw.client {
        None => Vec::new(),
        Some(RawClient::One(file)) => vec![RawIdentity::File(file)],
        Some(RawClient::More(more)) => more,
    };
    for (certificate, key) in clients.into_iter().map(RawIdentity::files) {
        tls.clients
            .push((read(&dir.join(certificate))?, read(&dir.join(key))?));
    }
    let dial_timeout = match raw.dial_timeout.as_str() {
        "" => None,
        text => Some(duration::parse(text).ok_or_else(|| {
            wrong(
                &format!("dial_timeout of {address}"),
                text,
                "it must be a duration such as \"500ms\", \"3s\" or \"1m30s\"",
            )
        })?),
    };
    Ok(Endpoint {
        mirror: !is_registry(&base, registry),
        base,
        resolve,
        pull,
        headers,
        tls,
        // No limit of its own.
        dial_timeout: dial_timeout.filter(|time| !time.is_zero()),
    })
}
