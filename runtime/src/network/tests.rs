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
         cni_conf_dir = \"{0}/conf\"\ncni_bin_dirs = [\"{PLUGINS}\"]\n",
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
    network.ready().unwrap();
    let id = "0badcafe00112233445566778899aabb";
    let nics = network.prepare(id).await.unwrap();
    assert_eq!(nics[0].mac, "02:00:0b:ad:ca:fe");
    let interface = agent::Interface {
        mac: nics[0].mac.clone(),
        ..agent::Interface::default()
    };
    let attached = network
        .attach(id, &PodSandboxConfig::default(), &[interface])
        .await
        .unwrap();
    assert_eq!(attached.addresses, ["10.213.7.2"]);
    let given = &attached.network.interfaces[0];
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
    Command::new("ip")
        .args(["link", "del", bridge])
        .status()
        .unwrap();
    rustix::mount::unmount(
        dir.path().join("run/netns"),
        rustix::mount::UnmountFlags::DETACH,
    )
    .unwrap();
}

#[tokio::test]
async fn without_a_configuration_the_condition_says_where_to_put_one() {
    let text = "[network]\ncni_conf_dir = \"/no/such/dir\"\n";
    let network = PodNetwork::new(&Config::parse(Path::new("t.toml"), text).unwrap());
    let error = network.ready().unwrap_err().to_string();
    assert!(error.contains("/no/such/dir"), "{error}");
}
