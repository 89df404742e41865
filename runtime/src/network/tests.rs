//! A pod's whole network with the real reference plugins, where the test runs as root on a machine
//! that has them. The guest's part is left to the end-to-end tests.

use std::{fs, process::Command};

use super::*;

/// The plugins of Debian's containernetworking-plugins.
const PLUGINS: &str = "/usr/lib/cni";

fn able() -> bool {
    let able = rustix::process::geteuid().is_root()
        && Path::new(PLUGINS).join("bridge").exists()
        && Path::new("/dev/net/tun").exists();
    if !able {
        eprintln!("skipped: needs root, /dev/net/tun and the CNI plugins in {PLUGINS}");
    }
    able
}

fn network(dir: &Path, bridge: &str) -> PodNetwork {
    let conf = dir.join("conf");
    fs::create_dir(&conf).unwrap();
    let text = format!(
        r#"{{"cniVersion":"1.0.0","name":"test","plugins":[{{"type":"bridge","bridge":"{bridge}",
        "isGateway":true,"ipam":{{"type":"host-local","dataDir":"{}",
        "ranges":[[{{"subnet":"10.213.7.0/24"}}]],"routes":[{{"dst":"0.0.0.0/0"}}]}},
        "dns":{{"nameservers":["10.96.0.10"],"search":["x.local"]}}}}]}}"#,
        dir.join("ipam").display()
    );
    fs::write(conf.join("10.conflist"), text).unwrap();
    let text = format!(
        "[paths]\nstate_dir = \"{0}/state\"\nrun_dir = \"{0}/run\"\n[network]\n\
         netns_dir = \"{0}/netns\"\ncni_conf_dir = \"{0}/conf\"\ncni_bin_dirs = [\"{PLUGINS}\", \"{0}/bin\"]\n",
        dir.display()
    );
    PodNetwork::new(&Config::parse(Path::new("test.toml"), &text).unwrap())
}

#[tokio::test]
async fn a_pods_network_comes_and_goes() {
    if !able() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let bridge = "bhtest0";
    let network = network(dir.path(), bridge);
    network.ready().await.unwrap();
    let id = "0badcafe00112233445566778899aabb";
    let nics = network.prepare(id).await.unwrap();
    assert_eq!(nics[0].mac, "02:00:0b:ad:ca:fe");
    let (attached, further) = network
        .attach(id, &PodSandboxConfig::default(), true)
        .await
        .unwrap();
    assert!(further.is_empty());
    assert_eq!(attached.addresses, ["10.213.7.2"]);
    let given = &attached.network.interfaces[0];
    assert_eq!(given.mac, nics[0].mac);
    assert!(given.addresses_without_route.is_empty() && !given.no_arp);
    assert_eq!(given.addresses, ["10.213.7.2/24"]);
    assert_eq!(
        (given.name.as_str(), given.mtu, given.hardware_address.len()),
        ("eth0", 1500, 17)
    );
    assert!(
        attached
            .network
            .routes
            .iter()
            .any(|route| route.gateway == "10.213.7.1"),
        "{:?}",
        attached.network.routes
    );
    assert_eq!(attached.dns.unwrap().servers, ["10.96.0.10"]);
    let path = network.netns(id).unwrap();
    assert!(path.ends_with(format!("netns/bulkhead-{id}")));
    let filters = Command::new("nsenter")
        .arg(format!("--net={}", path.display()))
        .args(["tc", "filter", "show", "dev", "tap0", "ingress"])
        .output()
        .unwrap();
    let filters = String::from_utf8_lossy(&filters.stdout).into_owned();
    assert!(filters.contains("Redirect to device eth0"), "{filters}");

    network
        .teardown(id, &PodSandboxConfig::default(), &path)
        .await
        .unwrap();
    network
        .teardown(id, &PodSandboxConfig::default(), &path)
        .await
        .unwrap();
    assert!(!path.exists());
    let leases: Vec<_> = fs::read_dir(dir.path().join("ipam/test"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .filter(|name| name.to_string_lossy().starts_with("10."))
        .collect();
    assert!(leases.is_empty(), "{leases:?}");

    // A pod whose daemon was lost in between is swept.
    network.prepare(id).await.unwrap();
    assert_eq!(network.ids().await.unwrap(), [id.to_owned()]);
    assert!(path.exists(), "it has a record");
    network.sweep(&[id.to_owned()]).await;
    assert!(network.ids().await.unwrap().is_empty());
    assert!(!path.exists());
    clear(dir.path(), &[bridge]);
}

/// Takes away what plugins and namespaces leave when their pods are gone.
fn clear(dir: &Path, bridges: &[&str]) {
    for bridge in bridges {
        Command::new("ip")
            .args(["link", "del", bridge])
            .status()
            .unwrap();
    }
    rustix::mount::unmount(dir.join("netns"), rustix::mount::UnmountFlags::DETACH).unwrap();
}

/// A meta plugin: the bridge twice, as Multus has it with two networks, and what others do around it.
const MULTI: &str = r#"#!/bin/sh
here=$(dirname "$0")
cat >/dev/null
[ $CNI_COMMAND = ADD ] || exit 0
CNI_IFNAME=net1 /usr/lib/cni/bridge <$here/net1.json >$here/out || { cat $here/out; exit 1; }
in="nsenter --net=$CNI_NETNS"
$in ip route add 10.99.0.0/16 via 10.214.7.1 mtu 1300
# As sbr: the network's route goes to a table of its own, and a rule leads there.
$in ip route add 10.214.7.0/24 dev net1 table 100
$in ip route add default via 10.214.7.1 dev net1 table 100
$in ip route del 10.214.7.0/24 dev net1
$in ip rule add from 10.214.7.2 table 100
$in ip link add spare0 type veth peer name idle0
$in ip link set spare0 up
$in sysctl -qw net.core.somaxconn=777 net.ipv4.conf.net1.arp_announce=2
exec /usr/lib/cni/bridge <$here/eth0.json
"#;

#[tokio::test]
async fn every_interface_gets_in_with_what_it_has() {
    use std::os::unix::fs::PermissionsExt as _;

    if !able() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let network = network(dir.path(), "bhtest1");
    let bin = dir.path().join("bin");
    fs::create_dir(&bin).unwrap();
    for (name, bridge, subnet, mtu) in [
        ("eth0", "bhtest1", "10.213.7", 1500),
        ("net1", "bhtest2", "10.214.7", 1350),
    ] {
        let text = format!(
            r#"{{"cniVersion":"1.0.0","name":"{name}","type":"bridge","bridge":"{bridge}","mtu":{mtu},
            "isGateway":true,"ipam":{{"type":"host-local","dataDir":"{}",
            "ranges":[[{{"subnet":"{subnet}.0/24"}}]]}}}}"#,
            dir.path().join("ipam").display()
        );
        fs::write(bin.join(format!("{name}.json")), text).unwrap();
    }
    fs::write(bin.join("multi"), MULTI).unwrap();
    fs::set_permissions(bin.join("multi"), fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(
        dir.path().join("conf/10.conflist"),
        r#"{"cniVersion":"1.0.0","name":"many","plugins":[{"type":"multi"}]}"#,
    )
    .unwrap();

    let id = "0badcafe00112233445566778899aacc";
    // The tap is there for as long as it is held.
    let _nics = network.prepare(id).await.unwrap();
    let pod = PodSandboxConfig::default();
    let (attached, further) = network.attach(id, &pod, true).await.unwrap();
    let found = &attached.network;
    let names: Vec<_> = found.interfaces.iter().map(|i| i.name.as_str()).collect();
    assert_eq!(names, ["eth0", "net1", "spare0"]);
    assert_eq!(further.len(), 2);
    let ids: Vec<_> = further.iter().map(|nic| nic.id.as_str()).collect();
    assert_eq!(ids, ["eth1", "eth2"]);
    let net1 = &found.interfaces[1];
    assert_eq!((net1.mtu, net1.mac.as_str()), (1350, "02:01:0b:ad:ca:fe"));
    assert_eq!(net1.mac, further[0].mac);
    assert_eq!(net1.addresses, ["10.214.7.2/24"]);
    assert_eq!(net1.addresses_without_route, ["10.214.7.2/24"]);
    // The pod's own addresses are those of eth0 alone.
    assert_eq!(attached.addresses, ["10.213.7.2"]);
    let route = |destination: &str, table: u32| {
        let found = found.routes.iter();
        let mut found = found.filter(|r| r.destination == destination && r.table == table);
        found
            .next()
            .unwrap_or_else(|| panic!("{destination} {table}"))
            .clone()
    };
    assert_eq!(route("10.99.0.0/16", 0).interface, "net1");
    assert_eq!(route("10.99.0.0/16", 0).mtu, 1300);
    assert_eq!(route("10.214.7.0/24", 100).interface, "net1");
    assert_eq!(route("0.0.0.0/0", 100).gateway, "10.214.7.1");
    assert_eq!(found.rules.len(), 1);
    let sysctl = |name: &str| {
        let found = found.sysctls.iter().find(|sysctl| sysctl.name == name);
        found.map(|sysctl| sysctl.value.clone())
    };
    assert_eq!(sysctl("net/core/somaxconn").unwrap(), "777");
    assert_eq!(sysctl("net/ipv4/conf/net1/arp_announce").unwrap(), "2");
    assert!(sysctl("net/ipv4/ip_forward").is_some());
    assert!(found.sysctls.len() < 40, "{:?}", found.sysctls);

    let path = network.netns(id).unwrap();
    for (tap, link) in [("tap0", "eth0"), ("tap1", "net1"), ("tap2", "spare0")] {
        let filters = Command::new("nsenter")
            .arg(format!("--net={}", path.display()))
            .args(["tc", "filter", "show", "dev", tap, "ingress"])
            .output()
            .unwrap();
        let filters = String::from_utf8_lossy(&filters.stdout).into_owned();
        let wanted = format!("Redirect to device {link}");
        assert!(filters.contains(&wanted), "{filters}");
    }
    network.teardown(id, &pod, &path).await.unwrap();
    clear(dir.path(), &["bhtest1", "bhtest2"]);
}

#[tokio::test]
async fn after_a_reboot_a_pod_is_taken_down_without_a_namespace() {
    use std::os::unix::fs::PermissionsExt as _;

    let dir = tempfile::tempdir().unwrap();
    let network = network(dir.path(), "unused");
    fs::create_dir(dir.path().join("bin")).unwrap();
    let plugin = dir.path().join("bin/plug");
    let script = r#"#!/bin/sh
        echo "$CNI_COMMAND [$CNI_NETNS]" >>"$(dirname "$0")/log"
        [ $CNI_COMMAND = DEL ] || echo '{"cniVersion":"1.0.0"}'"#;
    fs::write(&plugin, script).unwrap();
    fs::set_permissions(&plugin, fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(
        dir.path().join("conf/10.conflist"),
        r#"{"cniVersion":"1.0.0","name":"n","type":"plug"}"#,
    )
    .unwrap();
    let id = "0badcafe00112233445566778899aadd";
    let pod = PodSandboxConfig::default();
    let there = Path::new("/proc/self/ns/net");
    let added = network.cni.add(attachment(id, there, &pod), &pod).await;
    added.unwrap();
    let gone = network.netns(id).unwrap();
    network.teardown(id, &pod, &gone).await.unwrap();
    let log = fs::read_to_string(dir.path().join("bin/log")).unwrap();
    assert_eq!(log, "ADD [/proc/self/ns/net]\nDEL []\n");
    assert!(network.ids().await.unwrap().is_empty());
}

#[tokio::test]
async fn without_a_configuration_the_condition_says_where_to_put_one() {
    let text = "[network]\ncni_conf_dir = \"/no/such/dir\"\n";
    let network = PodNetwork::new(&Config::parse(Path::new("t.toml"), text).unwrap());
    let error = network.ready().await.unwrap_err().to_string();
    assert!(error.contains("/no/such/dir"), "{error}");
}
