//! Where an image is fetched from: containerd's `hosts.toml` layout.
//!
//! `<config dir>/<host[:port]>/hosts.toml`, or `_default/hosts.toml` for every host without a
//! directory of its own, names mirrors to try in order, then the registry itself. A directory
//! with certificates only (`*.crt`, `*.cert` with `*.key`) is read as Docker does. Without any
//! file a registry is asked at its own name by https, and by http where that name is a loopback.
//!
//! The files are read at every pull, so a change needs no restart. This module reads and checks;
//! it opens no connection.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use reqwest::{
    Url,
    header::{HeaderMap, HeaderName, HeaderValue},
};
use serde::Deserialize;

/// Largest `hosts.toml` and certificate file read.
const LARGEST_FILE: u64 = 1 << 20;
/// Most mirrors of one registry.
const MOST_HOSTS: usize = 16;

/// One place to ask, ready for use.
#[derive(Debug, Clone)]
pub struct Endpoint {
    /// The base, ending in what stands before `/<repository>/…` (mostly `/v2`), without a slash.
    pub base: Url,
    /// Whether tags may be resolved here (capability `resolve`).
    pub resolve: bool,
    /// Whether manifests by digest and blobs may be fetched here (capability `pull`).
    pub pull: bool,
    /// Headers to send with each request to this host, and to no other.
    pub headers: HeaderMap,
    /// How TLS is done.
    pub tls: Tls,
    /// Whether it is a mirror, not the registry itself: it is told the registry's name by `?ns=`.
    pub mirror: bool,
}

/// TLS of one host.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub struct Tls {
    /// PEM bundles of authorities trusted beside the system's.
    pub authorities: Vec<Vec<u8>>,
    /// PEM of the client's certificate chain and key.
    pub clients: Vec<(Vec<u8>, Vec<u8>)>,
    /// Whether the server's certificate is not checked at all.
    pub skip_verify: bool,
}

impl std::fmt::Debug for Tls {
    // Never the keys.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tls")
            .field("authorities", &self.authorities.len())
            .field("clients", &self.clients.len())
            .field("skip_verify", &self.skip_verify)
            .finish()
    }
}

/// What is wrong with the hosts' configuration.
#[derive(Debug, thiserror::Error)]
pub enum HostsError {
    /// A file is not readable.
    #[error("cannot read {path}, part of the registry hosts' configuration: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file is not TOML of the right form.
    #[error("{path} is not a valid hosts.toml: {source}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// Why, with the line.
        source: Box<toml::de::Error>,
    },
    /// A value that cannot be.
    #[error("{path}: {key} is {value:?}; {allowed}")]
    Value {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
        /// What it is.
        value: String,
        /// What it may be.
        allowed: &'static str,
    },
}

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
    More(Vec<String>),
    Pairs(Vec<[String; 2]>),
}

/// The places to ask for images of `registry`, in order; never empty. Blocks: reads files.
pub fn endpoints(config_dir: &Path, registry: &str) -> Result<Vec<Endpoint>, HostsError> {
    let Some(dir) = host_dir(config_dir, registry) else {
        return Ok(vec![default_endpoint(registry, Tls::default())]);
    };
    let path = dir.join("hosts.toml");
    match read(&path) {
        Ok(bytes) => parse(&path, &String::from_utf8_lossy(&bytes), registry),
        Err(HostsError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            Ok(vec![default_endpoint(registry, docker_certs(&dir)?)])
        }
        Err(other) => Err(other),
    }
}

/// The registry's own endpoint when nothing else is said.
fn default_endpoint(registry: &str, tls: Tls) -> Endpoint {
    let host = if registry == "docker.io" {
        "registry-1.docker.io"
    } else {
        registry
    };
    let scheme = if is_loopback(host) && !host.ends_with(":443") {
        "http"
    } else {
        "https"
    };
    let base = Url::parse(&format!("{scheme}://{host}/v2")).unwrap_or_else(|_| {
        // The grammar of references allows no host that is not a URL's host, but for a port
        // beyond 65535; such a one gets an address that refuses connections.
        let mut nowhere = NOWHERE.clone();
        nowhere.set_path("/v2");
        nowhere
    });
    Endpoint {
        base,
        resolve: true,
        pull: true,
        headers: HeaderMap::new(),
        tls,
        mirror: false,
    }
}

#[allow(clippy::unwrap_used, reason = "a constant, tested")]
static NOWHERE: std::sync::LazyLock<Url> =
    std::sync::LazyLock::new(|| Url::parse("https://invalid.invalid").unwrap());

/// Whether a `host[:port]` is this machine: there plain http is the default, as in Docker and
/// containerd.
pub fn is_loopback(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or(rest),
        None => host.split(':').next().unwrap_or(host),
    };
    name == "localhost"
        || name
            .parse::<std::net::IpAddr>()
            .is_ok_and(|address| address.is_loopback())
}

fn host_dir(config_dir: &Path, registry: &str) -> Option<PathBuf> {
    // A registry's name holds no slash and is not `..` (the grammar of references).
    let mut names = vec![registry.to_owned()];
    if let Some((host, port)) = registry.rsplit_once(':') {
        names.push(format!("{host}_{port}_"));
    }
    names.push("_default".to_owned());
    names
        .into_iter()
        .map(|name| config_dir.join(name))
        .find(|dir| dir.is_dir())
}

fn read(path: &Path) -> Result<Vec<u8>, HostsError> {
    use io::Read as _;
    let failed = |source| HostsError::Read {
        path: path.to_owned(),
        source,
    };
    let file = fs::File::open(path).map_err(failed)?;
    let mut bytes = Vec::new();
    file.take(LARGEST_FILE + 1)
        .read_to_end(&mut bytes)
        .map_err(failed)?;
    if bytes.len() as u64 > LARGEST_FILE {
        return Err(failed(io::Error::new(
            io::ErrorKind::FileTooLarge,
            format!("it is larger than {LARGEST_FILE} bytes"),
        )));
    }
    Ok(bytes)
}

fn parse(path: &Path, text: &str, registry: &str) -> Result<Vec<Endpoint>, HostsError> {
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
        endpoints.push(resolve_host(path, &address, host, true)?);
    }
    let own = default_endpoint(registry, Tls::default());
    let server = match raw.server {
        Some(address) => resolve_host(path, &address, raw.own, false)?,
        None => {
            let address = own.base.origin().ascii_serialization();
            resolve_host(path, &address, raw.own, false)?
        }
    };
    // A server with another name than the registry's is a stand-in for it like a mirror.
    let mirror = server.base.host_str() != own.base.host_str()
        || server.base.port_or_known_default() != own.base.port_or_known_default();
    endpoints.push(Endpoint { mirror, ..server });
    Ok(endpoints)
}

fn resolve_host(
    path: &Path,
    address: &str,
    raw: RawHost,
    mirror: bool,
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

    let (mut resolve, mut pull) = (true, true);
    if let Some(capabilities) = raw.capabilities {
        (resolve, pull) = (false, false);
        for capability in capabilities {
            match capability.as_str() {
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
        let values = match value {
            toml::Value::String(one) => vec![one.as_str()],
            toml::Value::Array(more) => more.iter().filter_map(toml::Value::as_str).collect(),
            other => {
                return Err(wrong(
                    &key(),
                    &other.to_string(),
                    "it must be a string or strings",
                ));
            }
        };
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
    let clients: Vec<(String, String)> = match raw.client {
        None => Vec::new(),
        Some(RawClient::One(file)) => vec![(file.clone(), file)],
        Some(RawClient::More(files)) => files.into_iter().map(|f| (f.clone(), f)).collect(),
        Some(RawClient::Pairs(pairs)) => pairs.into_iter().map(|[c, k]| (c, k)).collect(),
    };
    for (certificate, key) in clients {
        // An empty key file means that the key is in the certificate's file (containerd).
        let key = if key.is_empty() {
            certificate.clone()
        } else {
            key
        };
        tls.clients
            .push((read(&dir.join(certificate))?, read(&dir.join(key))?));
    }
    Ok(Endpoint {
        base,
        resolve,
        pull,
        headers,
        tls,
        mirror,
    })
}

/// Docker's layout: `ca.crt` (any `*.crt`) and pairs of `*.cert` and `*.key`.
fn docker_certs(dir: &Path) -> Result<Tls, HostsError> {
    let failed = |source| HostsError::Read {
        path: dir.to_owned(),
        source,
    };
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).map_err(failed)? {
        files.push(entry.map_err(failed)?.path());
    }
    files.sort();
    let mut tls = Tls::default();
    for file in files {
        match file.extension().and_then(|extension| extension.to_str()) {
            Some("crt") => tls.authorities.push(read(&file)?),
            Some("cert") => {
                let key = file.with_extension("key");
                tls.clients.push((read(&file)?, read(&key)?));
            }
            _ => {}
        }
    }
    Ok(tls)
}

#[cfg(test)]
#[path = "hosts_tests.rs"]
mod tests;
