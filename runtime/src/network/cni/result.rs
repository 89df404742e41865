//! What a plugin answers to ADD, as far as the daemon needs it (CNI spec 1.1, "Success"). The
//! answer itself is passed on unread, as the next plugin's `prevResult`.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::Deserialize;
use serde_json::Value;

/// A longer list is refused.
const MAX_LIST: usize = 256;

/// The part of a result that is used.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct CniResult {
    /// The interfaces made, on the host and in the namespace.
    pub interfaces: Vec<CniInterface>,
    /// The addresses given.
    pub ips: Vec<CniIp>,
    /// Name servers.
    pub dns: CniDns,
}

/// An interface of a result.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct CniInterface {
    /// Its name.
    pub name: String,
    /// The namespace it is in; empty on the host.
    pub sandbox: String,
}

/// An address of a result.
#[derive(Debug, Clone, Deserialize)]
pub struct CniIp {
    /// With prefix.
    pub address: IpNet,
    /// Index into the interfaces.
    #[serde(default)]
    pub interface: Option<usize>,
}

/// Name servers of a result.
#[derive(Debug, Clone, Default, Deserialize, PartialEq, Eq)]
#[serde(default)]
pub struct CniDns {
    /// In order of use.
    pub nameservers: Vec<String>,
    /// The local domain.
    pub domain: String,
    /// Search list.
    pub search: Vec<String>,
    /// Resolver options.
    pub options: Vec<String>,
}

impl CniResult {
    /// Reads an answer.
    ///
    /// # Errors
    /// What is wrong with it, as text for the operator.
    pub fn parse(value: &Value) -> Result<Self, String> {
        let result: Self =
            serde_json::from_value(value.clone()).map_err(|error| error.to_string())?;
        if result
            .interfaces
            .len()
            .max(result.ips.len())
            .max(result.dns.nameservers.len())
            > MAX_LIST
        {
            return Err(format!("a list of more than {MAX_LIST} entries"));
        }
        Ok(result)
    }

    /// The pod's addresses in the plugins' order: those of interfaces in the namespace, or of no
    /// stated interface.
    #[must_use]
    pub fn pod_addresses(&self) -> Vec<IpAddr> {
        let in_pod = |ip: &&CniIp| match ip.interface.map(|index| self.interfaces.get(index)) {
            None => true,
            Some(interface) => interface.is_some_and(|interface| !interface.sandbox.is_empty()),
        };
        self.ips
            .iter()
            .filter(in_pod)
            .map(|ip| ip.address.addr())
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn addresses_of_the_pod_and_not_of_the_host() {
        let result = CniResult::parse(&json!({
            "cniVersion": "1.0.0",
            "interfaces": [{"name": "cni0", "mac": "x"}, {"name": "eth0", "sandbox": "/run/n"}],
            "ips": [
                {"address": "10.1.0.1/16", "interface": 0},
                {"address": "10.1.0.2/16", "gateway": "10.1.0.1", "interface": 1},
                {"address": "fd00::2/64", "interface": 1},
                {"address": "10.9.0.2/16"},
                {"address": "10.8.0.2/16", "interface": 77},
            ],
        }))
        .unwrap();
        let addresses: Vec<_> = result
            .pod_addresses()
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(addresses, ["10.1.0.2", "fd00::2", "10.9.0.2"]);
    }

    #[test]
    fn nonsense_is_refused() {
        assert!(CniResult::parse(&json!({"ips": [{"address": "10.1.0.2"}]})).is_err());
        assert!(CniResult::parse(&json!({"ips": "none"})).is_err());
        let many = vec![json!({"address": "10.1.0.2/16"}); MAX_LIST + 1];
        assert!(CniResult::parse(&json!({ "ips": many })).is_err());
        assert!(
            CniResult::parse(&json!({}))
                .unwrap()
                .pod_addresses()
                .is_empty()
        );
    }
}
