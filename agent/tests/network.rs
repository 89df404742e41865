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
    fn new(mac: &str) -> Option<Self> {
        if let Some(reason) = common::obstacle() {
            eprintln!("skipped: {reason}");
            return None;
        }
        let name = format!("agent-test-{}", std::process::id());
        assert!(ip(&["netns", "add", &name]));
        let namespace = Self(name);
        let device = [
            "-n",
            &namespace.0,
            "link",
            "add",
            "ens5",
            "address",
            mac,
            "type",
            "dummy",
        ];
        if !ip(&device) {
            eprintln!("skipped: no dummy network devices");
            return None;
        }
        Some(namespace)
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
    }
}

#[tokio::test]
async fn the_network_is_set_and_changed_as_given() {
    let Some(namespace) = Namespace::new("02:00:00:00:00:05") else {
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
