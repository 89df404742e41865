//! One place to ask for a registry's images, and whether it is the registry itself.

use std::{
    net::{IpAddr, Ipv6Addr},
    time::Duration,
};

use reqwest::{Url, header::HeaderMap};

/// Docker Hub's name in references.
const HUB: &str = "docker.io";
/// Where Docker Hub has its API; `docker.io` itself is a web site.
const HUB_API: &str = "registry-1.docker.io";

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
    /// How long connecting may take; `None` for this node's own limit.
    pub dial_timeout: Option<Duration>,
    /// Whether it is a mirror, not the registry itself: it is told the registry's name by `?ns=`,
    /// and not given the registry's credentials.
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

/// The registry's own endpoint when nothing else is said.
pub(super) fn default_endpoint(registry: &str, tls: Tls) -> Endpoint {
    let host = if registry == HUB { HUB_API } else { registry };
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
        dial_timeout: None,
        mirror: false,
    }
}

#[allow(clippy::unwrap_used, reason = "a constant, tested")]
static NOWHERE: std::sync::LazyLock<Url> =
    std::sync::LazyLock::new(|| Url::parse("https://invalid.invalid").unwrap());

/// Sends what is written for `docker.io` to where its API is.
pub(super) fn to_hub_api(base: &mut Url) {
    if base.host_str() == Some(HUB) && base.port().is_none() {
        // A constant that is a host.
        let _ = base.set_host(Some(HUB_API));
    }
}

/// Whether a place's address is that of the registry itself, whatever path and scheme it has.
pub(super) fn is_registry(base: &Url, registry: &str) -> bool {
    let (name, port) = split_port(registry);
    let same_port = match port {
        Some(port) => base.port_or_known_default() == Some(port),
        None => base.port().is_none(),
    };
    same_port && same_host(base.host_str().unwrap_or_default(), name)
}

/// Whether two `host[:port]` are one: Docker Hub has many names, an IPv6 address many spellings.
pub fn same_host(one: &str, other: &str) -> bool {
    let canonical = |host: &str| {
        let (name, port) = split_port(host);
        let name = match name {
            "index.docker.io" | HUB_API => HUB.to_owned(),
            name => ipv6(name).map_or_else(|| name.to_ascii_lowercase(), |ip| ip.to_string()),
        };
        (name, port)
    };
    canonical(one) == canonical(other)
}

/// Splits a port off `host[:port]`; what is no port stays where it is.
fn split_port(host: &str) -> (&str, Option<u16>) {
    match host.rsplit_once(':') {
        Some((name, port)) if !port.contains(']') => match port.parse() {
            Ok(port) => (name, Some(port)),
            Err(_) => (host, None),
        },
        _ => (host, None),
    }
}

/// The address in `[…]`.
fn ipv6(host: &str) -> Option<Ipv6Addr> {
    host.strip_prefix('[')?.strip_suffix(']')?.parse().ok()
}

/// Whether a `host[:port]` is this machine: there plain http is the default, as in Docker and
/// containerd.
pub fn is_loopback(host: &str) -> bool {
    let (name, _) = split_port(host);
    name == "localhost"
        || ipv6(name)
            .map(IpAddr::V6)
            .or_else(|| name.parse().ok())
            .is_some_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_registry_by_any_of_its_addresses() {
        let same = |base: &str, registry: &str| is_registry(&base.parse().unwrap(), registry);
        for (base, registry) in [
            ("https://registry.example", "registry.example"),
            ("http://registry.example/some/path", "registry.example"),
            ("https://Registry.Example/v2", "registry.example"),
            ("https://registry.example", "registry.example:443"),
            ("https://registry.example:443", "registry.example"),
            ("http://127.0.0.1:5000/v2", "127.0.0.1:5000"),
            ("https://registry-1.docker.io/v2", "docker.io"),
            ("https://index.docker.io/v2", "docker.io"),
            ("https://docker.io/v2", "registry-1.docker.io"),
            ("http://[::1]:5000/v2", "[0:0:0:0:0:0:0:1]:5000"),
            ("https://[2001:db8::1]", "[2001:DB8::1]"),
        ] {
            assert!(same(base, registry), "{base} {registry}");
        }
        for (base, registry) in [
            ("https://mirror.example", "registry.example"),
            ("https://registry.example:5000", "registry.example"),
            ("https://registry.example", "registry.example:5000"),
            ("http://127.0.0.1:5001", "127.0.0.1:5000"),
            ("https://registry.example.evil.example", "registry.example"),
            ("https://docker.io:5000", "docker.io"),
            ("http://[::2]:5000", "[::1]:5000"),
        ] {
            assert!(!same(base, registry), "{base} {registry}");
        }
    }

    #[test]
    fn loopbacks() {
        for host in [
            "localhost",
            "localhost:1",
            "127.0.0.2:5000",
            "[::1]",
            "[::1]:5000",
        ] {
            assert!(is_loopback(host), "{host}");
        }
        for host in [
            "example.com",
            "localhost.example",
            "[::2]:5000",
            "10.0.0.1",
            "[::1",
            ":1",
        ] {
            assert!(!is_loopback(host), "{host}");
        }
    }
}
