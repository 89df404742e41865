//! Kernel parameters of a pod's namespace that the guest, whose kernel is its own, must have, too:
//! what CNI plugins set (`tuning`), and what a pod takes over from the node. What the pod itself asks
//! for goes by another way, and after these.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::Read as _,
    os::unix::fs::PermissionsExt as _,
    path::Path,
};

use bulkhead_proto::agent;

use super::pod_link::PodLink;

/// Parameters by their file below /proc/sys.
pub type Parameters = BTreeMap<String, String>;

const ROOT: &str = "/proc/sys";
/// The longest value (ports that are kept free can be many); a longer one is left out.
const MAX_VALUE: u64 = 16 << 10;
/// The most parameters that are carried over.
const MAX_CARRIED: usize = 512;

/// Directories of whose files none is the pod's: timers of the host's own neighbour table (the guest has its
/// own), loggers, the host's bridges.
const PASSED_OVER: &[&str] = &["neigh", "nf_log", "bridge"];
/// Files that are no settings, or follow from others.
const NO_SETTINGS: &[&str] = &["flush", "stable_secret", "mtu", "tcp_fastopen_key"];
/// As the node has it, whether a plugin set it or not: a new namespace takes this over from the node.
const OF_THE_NODE: &[&str] = &["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"];
/// The same of each interface.
const OF_AN_INTERFACE: &[&str] = &["accept_ra", "disable_ipv6"];

/// What the namespace that the thread is in has, of parameters that can be set in it: those of no
/// interface, and of `interfaces`. Blocks: some hundred small files.
pub fn read(interfaces: &[&str]) -> Parameters {
    let mut found = Parameters::new();
    walk("net", interfaces, &mut found);
    found
}

/// A namespace changes while it is read; what is gone, or cannot be read, is not there.
fn walk(dir: &str, interfaces: &[&str], found: &mut Parameters) {
    let of_interfaces = dir.ends_with("/conf");
    let entries = fs::read_dir(Path::new(ROOT).join(dir));
    for entry in entries.into_iter().flatten().flatten() {
        let Ok(name) = entry.file_name().into_string() else {
            continue;
        };
        let Ok(kind) = entry.file_type() else {
            continue;
        };
        let path = format!("{dir}/{name}");
        if kind.is_dir() {
            let other_interface = of_interfaces
                && !["all", "default"].contains(&&*name)
                && !interfaces.contains(&&*name);
            if !other_interface && !PASSED_OVER.contains(&&*name) {
                walk(&path, interfaces, found);
            }
        } else if !NO_SETTINGS.contains(&&*name)
            && let Some(value) = value_of(&path)
        {
            found.insert(path, value);
        }
    }
}

fn value_of(path: &str) -> Option<String> {
    let file = File::open(Path::new(ROOT).join(path)).ok()?;
    // The node's, or a figure: nothing that can be set here.
    if file.metadata().ok()?.permissions().mode() & 0o200 == 0 {
        return None;
    }
    let mut text = String::new();
    file.take(MAX_VALUE + 1).read_to_string(&mut text).ok()?;
    if text.len() as u64 > MAX_VALUE {
        return None;
    }
    Some(text.trim_end_matches('\n').to_owned())
}

/// What of the namespace the thread is in goes to the guest: what differs from a `fresh` one, and a
/// few that are the node's. In the order in which they are set. Blocks.
pub(super) fn carried(fresh: &Parameters, links: &[PodLink]) -> Vec<agent::Sysctl> {
    let names: Vec<&str> = links.iter().map(|link| link.name.as_str()).collect();
    let mut carried = differing(fresh, &read(&names), &names);
    if carried.len() > MAX_CARRIED {
        tracing::warn!(
            "the CNI plugins set {} kernel parameters; the virtual machine gets {MAX_CARRIED} of them",
            carried.len()
        );
        carried.truncate(MAX_CARRIED);
    }
    carried
}

fn differing(fresh: &Parameters, now: &Parameters, names: &[&str]) -> Vec<agent::Sysctl> {
    let mut carried: Vec<_> = now
        .iter()
        .filter(|(path, value)| {
            is_of_the_node(path, names) || before(fresh, path, names) != Some(value)
        })
        .collect();
    carried.sort_by_key(|(path, _)| (order(path), *path));
    carried
        .into_iter()
        .map(|(name, value)| agent::Sysctl {
            name: name.clone(),
            value: value.clone(),
        })
        .collect()
}

/// The interface a parameter is of, if it is one of these, and what it is called there.
fn of_interface<'a>(path: &'a str, names: &[&str]) -> Option<(&'a str, &'a str)> {
    let (front, parameter) = path.rsplit_once('/')?;
    let (front, name) = front.rsplit_once('/')?;
    let conf = front.strip_suffix("/conf")?;
    names.contains(&name).then_some((conf, parameter))
}

fn is_of_the_node(path: &str, names: &[&str]) -> bool {
    OF_THE_NODE.contains(&path)
        || of_interface(path, names).is_some_and(|(conf, parameter)| {
            conf == "net/ipv6" && OF_AN_INTERFACE.contains(&parameter)
        })
}

/// What a parameter was before a plugin came: an interface begins with the namespace's default.
fn before<'a>(fresh: &'a Parameters, path: &str, names: &[&str]) -> Option<&'a String> {
    match of_interface(path, names) {
        Some((conf, parameter)) => fresh.get(&format!("{conf}/conf/default/{parameter}")),
        None => fresh.get(path),
    }
}

/// Forwarding first, for it resets others; then what sets all interfaces at once, then the rest.
fn order(path: &str) -> u8 {
    match path {
        path if OF_THE_NODE.contains(&path) => 0,
        path if path.contains("/conf/all/") => 1,
        path if path.contains("/conf/default/") => 2,
        _ => 3,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parameters(all: &[(&str, &str)]) -> Parameters {
        let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        all.iter().map(owned).collect()
    }

    fn names(carried: &[agent::Sysctl]) -> Vec<&str> {
        carried.iter().map(|sysctl| sysctl.name.as_str()).collect()
    }

    #[test]
    fn what_plugins_set_and_what_is_the_nodes_is_carried_over_in_order() {
        let fresh = parameters(&[
            ("net/core/somaxconn", "4096"),
            ("net/ipv4/ip_forward", "1"),
            ("net/ipv4/tcp_keepalive_time", "7200"),
            ("net/ipv4/conf/all/rp_filter", "0"),
            ("net/ipv4/conf/default/arp_notify", "0"),
            ("net/ipv4/conf/default/rp_filter", "2"),
            ("net/ipv6/conf/default/accept_ra", "1"),
            ("net/ipv6/conf/default/disable_ipv6", "0"),
        ]);
        let now = parameters(&[
            ("net/core/somaxconn", "512"),
            ("net/ipv4/ip_forward", "1"),
            ("net/ipv4/tcp_keepalive_time", "7200"),
            ("net/ipv4/conf/all/rp_filter", "1"),
            ("net/ipv4/conf/default/arp_notify", "0"),
            ("net/ipv4/conf/default/rp_filter", "2"),
            ("net/ipv4/conf/eth0/arp_notify", "1"),
            ("net/ipv4/conf/eth0/rp_filter", "2"),
            ("net/ipv4/conf/net1.5/arp_notify", "0"),
            ("net/ipv6/conf/eth0/accept_ra", "1"),
            ("net/ipv6/conf/net1.5/disable_ipv6", "1"),
        ]);
        let carried = differing(&fresh, &now, &["eth0", "net1.5"]);
        assert_eq!(
            names(&carried),
            [
                "net/ipv4/ip_forward",
                "net/ipv4/conf/all/rp_filter",
                "net/core/somaxconn",
                "net/ipv4/conf/eth0/arp_notify",
                "net/ipv6/conf/eth0/accept_ra",
                "net/ipv6/conf/net1.5/disable_ipv6",
            ]
        );
        assert_eq!(carried[2].value, "512");
    }

    #[test]
    fn what_is_read_can_be_set() {
        let found = read(&["lo"]);
        assert!(found.contains_key("net/core/somaxconn"), "{found:?}");
        assert!(found.keys().any(|name| name.contains("/conf/lo/")));
        for (name, value) in &found {
            assert!(
                !name.contains("/neigh/") && !name.ends_with("flush"),
                "{name}"
            );
            assert!(!value.ends_with('\n'), "{name}");
        }
        assert!(read(&[]).keys().all(|name| !name.contains("/conf/lo/")));
    }
}
