//! The pod's network, in a network namespace with a dummy device in place of virtio-net.

// Tests fail by panicking, and say what they measured or why they are skipped.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    clippy::indexing_slicing
)]

#[allow(dead_code)] // each test program uses a part
mod common;

use std::process::Command;

use bulkhead_proto::agent::*;
use common::TestAgent;
use serde_json::Value;
use tonic::Code;

struct Namespace(String);

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip")
            .args(["netns", "delete", &self.0])
            .status();
    }
}

impl Namespace {
    /// With one device of this MAC address; `None` where it cannot be made.
    fn new(test: &str, mac: &str) -> Option<Self> {
        if let Some(reason) = common::obstacle() {
            eprintln!("skipped: {reason}");
            return None;
        }
        let name = format!("agent-{test}-{}", std::process::id());
        assert!(ip(&["netns", "add", &name]));
        let namespace = Self(name);
        if !namespace.add("ens5", mac) {
            eprintln!("skipped: neither dummy nor veth network devices");
            return None;
        }
        Some(namespace)
    }

    /// Adds a device: a dummy, or where there are none one end of a pair.
    fn add(&self, name: &str, mac: &str) -> bool {
        let add = |kind: &[&str]| {
            let device = ["-n", &self.0, "link", "add", name, "address", mac, "type"];
            ip(&[&device, kind].concat())
        };
        let peer = format!("{name}-peer");
        add(&["dummy"])
            || add(&["veth", "peer", "name", &peer])
                && ip(&["-n", &self.0, "link", "set", &peer, "up"])
    }

    fn show(&self, args: &[&str]) -> Vec<Value> {
        let output = Command::new("ip")
            .args(["-n", &self.0, "-j"])
            .args(args)
            .output()
            .unwrap();
        assert!(output.status.success(), "{args:?}");
        if output.stdout.is_empty() {
            return Vec::new();
        }
        serde_json::from_slice(&output.stdout).unwrap()
    }
}

fn ip(args: &[&str]) -> bool {
    Command::new("ip").args(args).status().unwrap().success()
}

fn network() -> Network {
    let route = |destination: &str, gateway: &str| Route {
        interface: "eth0".into(),
        destination: destination.into(),
        gateway: gateway.into(),
        ..Route::default()
    };
    Network {
        interfaces: vec![Interface {
            mac: "02:00:00:00:00:05".into(),
            name: "eth0".into(),
            mtu: 1410,
            addresses: vec!["10.88.0.5/16".into(), "fd00::5/64".into()],
            hardware_address: "0a:58:0a:58:00:05".into(),
            ..Interface::default()
        }],
        routes: vec![
            route("", "10.88.0.1"),
            route("", "fd00::1"),
            Route {
                mtu: 1300,
                advmss: 1260,
                metric: 7,
                ..route("192.168.7.0/24", "10.88.0.9")
            },
            Route {
                scope: 253,
                ..route("169.254.1.1/32", "")
            },
            Route {
                onlink: true,
                ..route("172.16.0.0/12", "169.254.9.9")
            },
        ],
        neighbours: vec![Neighbour {
            interface: "eth0".into(),
            address: "10.88.0.1".into(),
            mac: "0a:58:0a:58:00:01".into(),
        }],
        ..Network::default()
    }
}

#[tokio::test]
async fn the_network_is_set_and_changed_as_given() {
    let Some(namespace) = Namespace::new("first", "02:00:00:00:00:05") else {
        return;
    };
    let mut agent = TestAgent::start_in(Some(&namespace.0)).await.unwrap();
    let setup = |network: Network| SetupSandboxRequest {
        network: Some(network),
        dns: Some(Dns {
            servers: vec!["10.96.0.10".into()],
            ..Dns::default()
        }),
        ..SetupSandboxRequest::default()
    };
    // Twice: it is repeatable.
    for _ in 0..2 {
        agent.client.setup_sandbox(setup(network())).await.unwrap();
        let link = &namespace.show(&["link", "show", "eth0"])[0];
        assert_eq!(
            (&link["mtu"], &link["address"]),
            (&1410.into(), &"0a:58:0a:58:00:05".into())
        );
        let addresses = &namespace.show(&["addr", "show", "eth0"])[0]["addr_info"];
        let addresses: Vec<_> = addresses
            .as_array()
            .unwrap()
            .iter()
            .filter(|address| address["scope"] == "global")
            .map(|address| {
                format!(
                    "{}/{}",
                    address["local"].as_str().unwrap(),
                    address["prefixlen"]
                )
            })
            .collect();
        assert_eq!(addresses, ["10.88.0.5/16", "fd00::5/64"]);
        let routes = namespace.show(&["-4", "route"]);
        let to = |destination: &str| {
            routes
                .iter()
                .find(|route| route["dst"] == destination)
                .unwrap_or_else(|| panic!("no route to {destination}: {routes:?}"))
        };
        assert_eq!(to("default")["gateway"], "10.88.0.1");
        assert_eq!(to("169.254.1.1")["scope"], "link");
        assert_eq!(to("192.168.7.0/24")["metric"], 7);
        assert_eq!(to("192.168.7.0/24")["metrics"][0]["mtu"], 1300);
        assert_eq!(to("192.168.7.0/24")["metrics"][0]["advmss"], 1260);
        assert_eq!(to("172.16.0.0/12")["flags"][0], "onlink");
        let v6 = namespace.show(&["-6", "route", "show", "default"]);
        assert_eq!(v6[0]["gateway"], "fd00::1");
        let neighbour = &namespace.show(&["neigh", "show", "10.88.0.1"])[0];
        assert_eq!(neighbour["lladdr"], "0a:58:0a:58:00:01");
    }
    // `ip netns exec` gives the agent mounts of its own, and the pod's files are on one of them.
    let state = agent.state();
    let resolv_conf = format!(
        "/proc/{}/root{}/sandbox/resolv.conf",
        agent.child.id(),
        state.display()
    );
    assert_eq!(
        std::fs::read_to_string(resolv_conf).unwrap(),
        "nameserver 10.96.0.10\n"
    );

    // Less is less.
    let mut fewer = network();
    fewer.interfaces[0].addresses.remove(1);
    fewer.routes.truncate(1);
    agent.client.setup_sandbox(setup(fewer)).await.unwrap();
    assert!(
        namespace
            .show(&["-6", "route", "show", "default"])
            .is_empty()
    );
    let routes = namespace.show(&["-4", "route"]);
    assert_eq!(routes.len(), 2, "{routes:?}");

    let mut other = network();
    other.interfaces[0].mac = "02:00:00:00:00:99".into();
    other.interfaces[0].hardware_address = String::new();
    let missing = agent.client.setup_sandbox(setup(other)).await.unwrap_err();
    assert_eq!(missing.code(), Code::NotFound);
}

/// Three devices, in the order the kernel finds them, whose names are wanted otherwise; routes of two
/// networks to one destination, in a table of their own, and refusals; a policy rule.
#[tokio::test]
async fn further_networks_have_their_names_routes_and_rules() {
    let Some(namespace) = Namespace::new("further", "02:00:00:00:00:05") else {
        return;
    };
    for (name, mac) in [("eth0", "02:01:00:00:00:05"), ("net1", "02:02:00:00:00:05")] {
        assert!(namespace.add(name, mac));
    }
    let interface = |number: u8, name: &str, address: &str| Interface {
        mac: format!("02:{number:02x}:00:00:00:05"),
        name: name.into(),
        mtu: 1400,
        addresses: vec![address.into()],
        hardware_address: format!("0a:58:0a:58:{number:02x}:05"),
        ..Interface::default()
    };
    let route = |interface: &str, destination: &str, gateway: &str| Route {
        interface: interface.into(),
        destination: destination.into(),
        gateway: gateway.into(),
        ..Route::default()
    };
    let in_table = |table: u32, route: Route| Route { table, ..route };
    let refused = |kind: u32, destination: &str| Route {
        kind,
        ..route("", destination, "")
    };
    let mut second = interface(1, "net1", "10.89.0.5/16");
    // As ipvlan has it.
    second.hardware_address = "0a:58:0a:58:00:05".into();
    second.addresses_without_route = second.addresses.clone();
    let mut third = interface(2, "blue", "10.90.0.5/16");
    third.no_arp = true;
    let network = Network {
        interfaces: vec![interface(0, "eth0", "10.88.0.5/16"), second, third],
        routes: vec![
            in_table(1_000, route("net1", "10.89.0.0/16", "")),
            route("eth0", "", "10.88.0.1"),
            route("blue", "", "10.90.0.1"),
            in_table(1_000, route("net1", "0.0.0.0/0", "10.89.0.1")),
            // The network of its gateway is in the other table alone.
            route("net1", "10.93.0.0/16", "10.89.0.1"),
            refused(6, "10.91.0.0/16"),
            refused(8, "10.92.0.0/16"),
        ],
        rules: vec![rule_to(1_000, [10, 89, 0, 5])],
        sysctls: [
            ("net/ipv4/tcp_keepalive_time", "1234"),
            ("net/ipv4/conf/blue/arp_announce", "2"),
            ("net/ipv4/no_such_parameter", "1"),
        ]
        .map(|(name, value)| Sysctl {
            name: name.into(),
            value: value.into(),
        })
        .into(),
        ..Network::default()
    };
    let mut agent = TestAgent::start_in(Some(&namespace.0)).await.unwrap();
    // Twice: it is repeatable.
    for _ in 0..2 {
        let request = SetupSandboxRequest {
            network: Some(network.clone()),
            hostname: "pod".into(),
            // The pod's own come last.
            sysctls: [("net.ipv4.tcp_keepalive_intvl".into(), "33".into())].into(),
            ..SetupSandboxRequest::default()
        };
        agent.client.setup_sandbox(request).await.unwrap();
        for (number, name) in [(0, "eth0"), (1, "net1"), (2, "blue")] {
            let link = &namespace.show(&["link", "show", name])[0];
            let last = if number == 1 { 0 } else { number };
            let mac = format!("0a:58:0a:58:{last:02x}:05");
            assert_eq!(link["address"], mac, "{link}");
            let flags = link["flags"].as_array().unwrap();
            assert_eq!(flags.contains(&"NOARP".into()), name == "blue", "{link}");
        }
        let main = namespace.show(&["-4", "route"]);
        let to = |destination: &str| -> Vec<_> {
            let routes = main.iter().filter(|route| route["dst"] == destination);
            routes.map(|route| route["gateway"].clone()).collect()
        };
        assert_eq!(
            to("default"),
            ["10.88.0.1", "10.90.0.1"],
            "the first is used"
        );
        assert_eq!(to("10.91.0.0/16").len(), 1);
        assert_eq!(to("10.93.0.0/16"), ["10.89.0.1"]);
        assert!(to("10.89.0.0/16").is_empty(), "{main:?}");
        let table = namespace.show(&["-4", "route", "show", "table", "1000"]);
        assert_eq!(table.len(), 2, "{table:?}");
        let rules = namespace.show(&["rule"]);
        assert_eq!(rules.len(), 4, "{rules:?}");
        assert!(
            rules
                .iter()
                .any(|rule| rule["src"] == "10.89.0.5" && rule["table"] == "1000"),
            "{rules:?}"
        );
        for (name, value) in [
            ("net/ipv4/tcp_keepalive_time", "1234"),
            ("net/ipv4/conf/blue/arp_announce", "2"),
            ("net/ipv4/tcp_keepalive_intvl", "33"),
        ] {
            let found = Command::new("ip")
                .args(["netns", "exec", &namespace.0, "cat"])
                .arg(format!("/proc/sys/{name}"))
                .output()
                .unwrap();
            assert_eq!(
                String::from_utf8_lossy(&found.stdout).trim(),
                value,
                "{name}"
            );
        }
    }
    // The pod is called by its own interface's address.
    let hosts = format!(
        "/proc/{}/root{}/sandbox/hosts",
        agent.child.id(),
        agent.state().display()
    );
    let hosts = std::fs::read_to_string(hosts).unwrap();
    assert!(
        hosts.contains("10.88.0.5\tpod") && !hosts.contains("10.89.0.5"),
        "{hosts}"
    );
}

/// `ip rule add from ADDRESS table TABLE`, as the kernel says it: struct fib_rule_hdr, then attributes.
fn rule_to(table: u32, address: [u8; 4]) -> bytes::Bytes {
    let attribute = |kind: u16, value: [u8; 4]| {
        let mut bytes = 8_u16.to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(value);
        bytes
    };
    // AF_INET, 0 and 32 bits of destination and source, …, FR_ACT_TO_TBL.
    let mut rule = vec![2, 0, 32, 0, 252, 0, 0, 1, 0, 0, 0, 0];
    rule.extend(attribute(2, address));
    rule.extend(attribute(6, 500_u32.to_ne_bytes()));
    rule.extend(attribute(15, table.to_ne_bytes()));
    rule.into()
}
