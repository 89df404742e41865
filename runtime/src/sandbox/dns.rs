//! Which name servers a pod's guest uses: CRI's, else those of its network, else the host's. Pure.

use bulkhead_proto::{agent::Dns, cri::DnsConfig};

/// resolv.conf(5) knows three servers; more are ignored by the C library but are no error.
const MOST_SERVERS: usize = 16;

/// The DNS settings of a pod. `host` is the text of the host's resolv.conf.
pub(super) fn choose(cri: Option<&DnsConfig>, network: Option<Dns>, host: &str) -> Dns {
    if let Some(dns) = cri
        && !(dns.servers.is_empty() && dns.searches.is_empty() && dns.options.is_empty())
    {
        return Dns {
            servers: dns.servers.clone(),
            searches: dns.searches.clone(),
            options: dns.options.clone(),
        };
    }
    match network {
        Some(dns) if !dns.servers.is_empty() => dns,
        _ => of_host(host),
    }
}

fn of_host(text: &str) -> Dns {
    let mut dns = Dns::default();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        match words.next() {
            // A stub resolver on the host's loopback does not exist in the guest.
            Some("nameserver") => dns.servers.extend(
                words
                    .take(1)
                    .filter(|a| {
                        a.parse()
                            .is_ok_and(|ip: std::net::IpAddr| !ip.is_loopback())
                    })
                    .map(str::to_owned),
            ),
            // The last search line counts (resolv.conf(5)).
            Some("search" | "domain") => dns.searches = words.map(str::to_owned).collect(),
            Some("options") => dns.options.extend(words.map(str::to_owned)),
            _ => {}
        }
    }
    dns.servers.truncate(MOST_SERVERS);
    dns
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOST: &str = "# c\nnameserver 127.0.0.53\nnameserver 10.0.0.2\nsearch a b\noptions x\n";

    #[test]
    fn cri_goes_before_the_network_and_that_before_the_host() {
        let cri = DnsConfig {
            servers: vec!["1.1.1.1".into()],
            ..Default::default()
        };
        let network = Dns {
            servers: vec!["2.2.2.2".into()],
            ..Default::default()
        };
        let servers = |dns: Dns| dns.servers;
        assert_eq!(
            servers(choose(Some(&cri), Some(network.clone()), HOST)),
            ["1.1.1.1"]
        );
        let empty = DnsConfig::default();
        assert_eq!(
            servers(choose(Some(&empty), Some(network), HOST)),
            ["2.2.2.2"]
        );
        let host = choose(None, None, HOST);
        assert_eq!(host.servers, ["10.0.0.2"]);
        assert_eq!(
            (host.searches, host.options),
            (vec!["a".into(), "b".into()], vec!["x".into()])
        );
    }
}
