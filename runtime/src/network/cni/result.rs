//! What a plugin answers to ADD, as far as the daemon needs it, whatever version of the
//! specification it is of (CNI spec 1.1, "Success", and its predecessors). The answer itself is
//! passed on unread, as the next plugin's `prevResult`.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use super::versions;

/// A longer list is refused.
const MAX_LIST: usize = 256;
/// From this version on, a result lists interfaces and addresses.
const WITH_LISTS: &str = "0.3.0";

/// The part of a result that is used.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct CniResult {
    /// The interfaces made, on the host and in the namespace.
    #[serde(deserialize_with = "empty_if_null")]
    pub interfaces: Vec<CniInterface>,
    /// The addresses given.
    #[serde(deserialize_with = "empty_if_null")]
    pub ips: Vec<CniIp>,
    /// Name servers.
    #[serde(deserialize_with = "empty_if_null")]
    pub dns: CniDns,
}

/// An interface of a result.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct CniInterface {
    /// Its name.
    #[serde(deserialize_with = "empty_if_null")]
    pub name: String,
}

/// An address of a result.
#[derive(Debug, Clone, Deserialize)]
pub struct CniIp {
    /// With prefix.
    pub address: IpNet,
    /// Index into the interfaces.
    #[serde(default)]
    pub interface: Option<i64>,
}

/// Name servers of a result.
#[derive(Debug, Clone, Default, Deserialize, PartialEq, Eq)]
#[serde(default)]
pub struct CniDns {
    /// In order of use.
    #[serde(deserialize_with = "empty_if_null")]
    pub nameservers: Vec<String>,
    /// The local domain.
    #[serde(deserialize_with = "empty_if_null")]
    pub domain: String,
    /// Search list.
    #[serde(deserialize_with = "empty_if_null")]
    pub search: Vec<String>,
    /// Resolver options.
    #[serde(deserialize_with = "empty_if_null")]
    pub options: Vec<String>,
}

/// A result of 0.1.0 or 0.2.0: one interface, and an address of each family at most.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct OldResult {
    ip4: Option<OldIp>,
    ip6: Option<OldIp>,
    #[serde(deserialize_with = "empty_if_null")]
    dns: CniDns,
}

#[derive(Debug, Deserialize)]
struct OldIp {
    ip: IpNet,
}

/// Go writes an empty list as null, and reads null as an empty value.
fn empty_if_null<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

impl From<OldResult> for CniResult {
    fn from(old: OldResult) -> Self {
        let ip = |old: OldIp| CniIp {
            address: old.ip,
            interface: None,
        };
        Self {
            interfaces: Vec::new(),
            ips: [old.ip4, old.ip6].into_iter().flatten().map(ip).collect(),
            dns: old.dns,
        }
    }
}

impl CniResult {
    /// Reads an answer.
    ///
    /// # Errors
    /// What is wrong with it, as text for the operator.
    pub fn parse(value: &Value) -> Result<Self, String> {
        if !value.is_object() {
            return Err("it is not a JSON object".to_owned());
        }
        let version = match value.get("cniVersion").and_then(Value::as_str) {
            None | Some("") => versions::UNSTATED,
            Some(version) => version,
        };
        let result: Self = if versions::at_least(version, WITH_LISTS) {
            serde_json::from_value(value.clone()).map_err(|error| error.to_string())?
        } else if versions::KNOWN.contains(&version) {
            serde_json::from_value::<OldResult>(value.clone())
                .map_err(|error| error.to_string())?
                .into()
        } else {
            return Err(format!(
                "a result of version {version:?}, not of {:?}",
                versions::KNOWN
            ));
        };
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

    /// The addresses of the interface `name` in the plugins' order, with those of no stated
    /// interface: further networks' and the host's are not the pod's own (as containerd has it).
    #[must_use]
    pub fn addresses_of(&self, name: &str) -> Vec<IpAddr> {
        let own = |ip: &&CniIp| match ip.interface {
            None => true,
            Some(index) => usize::try_from(index)
                .ok()
                .and_then(|index| self.interfaces.get(index))
                .is_some_and(|interface| interface.name == name),
        };
        self.ips
            .iter()
            .filter(own)
            .map(|ip| ip.address.addr())
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn addresses(value: &Value) -> Vec<String> {
        let result = CniResult::parse(value).unwrap();
        let addresses = result.addresses_of("eth0");
        addresses.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn addresses_of_the_pod_and_not_of_the_host_or_further_networks() {
        let result = json!({
            "cniVersion": "1.0.0",
            "interfaces": [{"name": "cni0", "mac": "x"}, {"name": "eth0", "sandbox": "/run/n"},
                {"name": "net1", "sandbox": "/run/n"}],
            "ips": [
                {"address": "10.1.0.1/16", "interface": 0},
                {"address": "10.1.0.2/16", "gateway": "10.1.0.1", "interface": 1},
                {"address": "10.7.0.2/16", "interface": 2},
                {"address": "fd00::2/64", "interface": 1},
                {"address": "10.9.0.2/16", "interface": null},
                {"address": "10.8.0.2/16", "interface": 77},
                {"address": "10.6.0.2/16", "interface": -1},
            ],
        });
        assert_eq!(addresses(&result), ["10.1.0.2", "fd00::2", "10.9.0.2"]);
    }

    #[test]
    fn results_of_every_version_are_read() {
        for version in ["0.1.0", "0.2.0"] {
            let old = json!({"cniVersion": version,
                "ip4": {"ip": "10.1.0.2/16", "gateway": "10.1.0.1", "routes": [{"dst": "0.0.0.0/0"}]},
                "ip6": {"ip": "fd00::2/64"}, "dns": {"nameservers": ["10.96.0.10"]}});
            assert_eq!(addresses(&old), ["10.1.0.2", "fd00::2"]);
            assert_eq!(
                CniResult::parse(&old).unwrap().dns.nameservers,
                ["10.96.0.10"]
            );
        }
        let unstated = json!({"ip4": {"ip": "10.1.0.2/16"}, "ip6": null});
        assert_eq!(addresses(&unstated), ["10.1.0.2"]);
        for version in ["0.3.0", "0.3.1", "0.4.0"] {
            let list = json!({"cniVersion": version, "interfaces": [{"name": "eth0"}],
                "ips": [{"version": "4", "address": "10.1.0.2/16", "interface": 0}]});
            assert_eq!(addresses(&list), ["10.1.0.2"], "{version}");
        }
        let newest = json!({"cniVersion": "1.1.0",
            "interfaces": [{"name": "eth0", "mtu": 1400, "socketPath": "", "pciID": ""}],
            "ips": [{"address": "10.1.0.2/16", "interface": 0}],
            "routes": [{"dst": "0.0.0.0/0", "mtu": 1400, "table": 100, "scope": 0}]});
        assert_eq!(addresses(&newest), ["10.1.0.2"]);
        let later = json!({"cniVersion": "2.0.0", "ips": []});
        assert!(CniResult::parse(&later).unwrap_err().contains("2.0.0"));
    }

    #[test]
    fn null_is_what_go_makes_of_it() {
        let result = json!({"cniVersion": "1.0.0", "interfaces": null, "ips": null, "routes": null,
            "dns": {"nameservers": null, "domain": null, "search": null}});
        assert!(addresses(&result).is_empty());
        let result = json!({"cniVersion": "1.0.0", "dns": null, "interfaces": [{"name": null}]});
        assert_eq!(CniResult::parse(&result).unwrap().dns, CniDns::default());
    }

    #[test]
    fn nonsense_is_refused() {
        let of = |mut value: Value| {
            value["cniVersion"] = "1.0.0".into();
            CniResult::parse(&value)
        };
        assert!(of(json!({"ips": [{"address": "10.1.0.2"}]})).is_err());
        assert!(of(json!({"ips": "none"})).is_err());
        let many = vec![json!({"address": "10.1.0.2/16"}); MAX_LIST + 1];
        assert!(of(json!({ "ips": many })).is_err());
        assert!(CniResult::parse(&json!({"ip4": {"ip": "x"}})).is_err());
        assert!(CniResult::parse(&json!([])).is_err());
        assert!(addresses(&json!({})).is_empty());
    }
}
