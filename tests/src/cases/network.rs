//! Pods' networks, by the real reference plugins.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpStream},
    os::unix::fs::PermissionsExt as _,
    path::Path,
    time::Duration,
};

use bulkhead_proto::cri::{LinuxPodSandboxConfig, PortMapping, StatusRequest};
use tokio::time::Instant;

use super::{BUSYBOX, image};
use crate::{
    Failure, Outcome, check,
    cri::{PATIENCE, container, pause, pod, script},
    host::{Host, Options},
    leaks::{self, Snapshot},
    suite::{Context, Test},
    test,
};

pub(super) fn tests() -> Vec<Test> {
    vec![
        test!("network", a_pod_answers_at_its_addresses_and_host_port),
        test!("network", without_a_configuration_the_status_says_so),
        test!("network", a_plugin_that_fails_leaves_nothing),
        test!("network", a_second_network_and_tuning_reach_the_guest),
        test!("network", plugins_are_asked_for_status_check_and_garbage),
    ]
}

/// A page fetched over plain HTTP, from the host.
async fn fetch(address: SocketAddr, deadline: Instant) -> Result<String, Failure> {
    loop {
        let attempt = || -> std::io::Result<String> {
            let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(5))?;
            stream.set_read_timeout(Some(Duration::from_secs(20)))?;
            stream.write_all(b"GET / HTTP/1.0\r\nHost: pod\r\n\r\n")?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok(answer)
        };
        match attempt() {
            Ok(answer) if answer.contains("200 OK") => return Ok(answer),
            other => pause(deadline, &format!("{address} to answer; last: {other:?}")).await?,
        }
    }
}

async fn a_pod_answers_at_its_addresses_and_host_port(context: &mut Context) -> Outcome {
    let (cri, host) = (&context.cri, &context.host);
    let nginx = image("nginx");
    cri.pull(&nginx).await?;
    cri.pull(BUSYBOX).await?;
    let mut config = pod("web");
    config.port_mappings = vec![PortMapping {
        host_port: 12_000,
        container_port: 80,
        ..PortMapping::default()
    }];
    let id = cri.run_pod(config.clone()).await?;
    cri.run(&id, &config, container("nginx", &nginx, &[]))
        .await?;
    let deadline = Instant::now() + PATIENCE;
    let network = cri.pod_status(&id).await?.0.network.unwrap_or_default();
    let first: IpAddr = network.ip.parse()?;
    check!(first.is_ipv4(), "{network:?}");
    let page = fetch((first, 80).into(), deadline).await?;
    check!(page.contains("Welcome to nginx in a microVM"), "{page}");
    let second: IpAddr = network
        .additional_ips
        .first()
        .ok_or("no second address")?
        .ip
        .parse()?;
    check!(second.is_ipv6(), "{network:?}");
    fetch((second, 80).into(), deadline).await?;
    fetch(([127, 0, 0, 1], 12_000).into(), deadline).await?;
    fetch((host.gateway(), 12_000).into(), deadline).await?;

    let shell = cri
        .run(&id, &config, script("shell", BUSYBOX, "sleep 1000"))
        .await?;
    let mtu = cri.shell(&shell, "cat /sys/class/net/eth0/mtu").await?;
    check!(
        mtu.trim() == "1400",
        "the CNI interface's MTU was not taken: {mtu}"
    );
    let gateway = host.gateway();
    cri.shell(&shell, &format!("ping -c 1 -W 10 {gateway}"))
        .await?;
    let routes = cri.shell(&shell, "ip route").await?;
    check!(
        routes.contains(&format!("default via {gateway}")),
        "{routes}"
    );
    Ok(cri.remove_pod(&id).await?)
}

async fn network_message(host: &Host) -> Result<(bool, String), Failure> {
    let request = StatusRequest { verbose: false };
    let status = host
        .cri()
        .await?
        .runtime
        .status(request)
        .await?
        .into_inner()
        .status;
    let conditions = status.unwrap_or_default().conditions;
    let found = conditions.into_iter().find(|c| c.r#type == "NetworkReady");
    let condition = found.ok_or("no condition NetworkReady")?;
    Ok((condition.status, condition.message))
}

async fn without_a_configuration_the_status_says_so(context: &mut Context) -> Outcome {
    let options = Options {
        cni: Some(String::new()),
        ..Options::default()
    };
    let mut host = Host::start("nocni", &context.results, options).await?;
    let (ready, message) = network_message(&host).await?;
    check!(!ready && message.contains("cni"), "{message}");
    let refused = host.cri().await?.run_pod(pod("nocni")).await;
    check!(
        refused.as_ref().is_err_and(|s| s.message().contains("CNI")),
        "{refused:?}"
    );
    // It is seen as soon as it is there.
    let conf = r#"{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"bridge"}]}"#;
    fs::write(host.dir().join("cni/10-late.conflist"), conf)?;
    let (ready, message) = network_message(&host).await?;
    check!(ready, "{message}");
    host.stop_daemon().await
}

async fn a_plugin_that_fails_leaves_nothing(context: &mut Context) -> Outcome {
    // The bridge plugin works, the one after it does not: its answer is an error object.
    let conf = r#"{"cniVersion":"1.0.0","name":"badcni","plugins":[
        {"type":"bridge","bridge":"bhbad0","isGateway":true,
         "ipam":{"type":"host-local","dataDir":"/run/badcni-ipam","ranges":[[{"subnet":"10.250.0.0/24"}]]}},
        {"type":"tuning","sysctl":{"net.no.such.key":"1"}}]}"#;
    let options = Options {
        cni: Some(conf.to_owned()),
        ..Options::default()
    };
    let mut host = Host::start("badcni", &context.results, options).await?;
    // The bridge itself stays, as it does for every user of the plugin.
    leaks::output("ip", &["link", "add", "bhbad0", "type", "bridge"])?;
    let before = Snapshot::take(&host)?;
    let refused = host.cri().await?.run_pod(pod("badcni")).await;
    check!(
        refused
            .as_ref()
            .is_err_and(|s| s.message().contains("tuning")),
        "{refused:?}"
    );
    before.compare(&host).await?;
    let leases = fs::read_dir("/run/badcni-ipam/badcni")?
        .filter_map(Result::ok)
        .filter(|entry| entry.file_name().to_string_lossy().starts_with("10."))
        .count();
    check!(leases == 0, "{leases} addresses are still leased");
    host.stop_daemon().await?;
    leaks::output("ip", &["link", "del", "bhbad0"])?;
    Ok(())
}

/// A meta plugin, as Multus is one: the bridge plugin for `net1`, source based routing for that, and the
/// bridge plugin again for `eth0`, whose result is the pod's.
const META: &str = r#"#!/bin/sh
here=$(dirname "$0")
cat >/dev/null
second() { CNI_IFNAME=net1 "/usr/lib/cni/$1"; }
case $CNI_COMMAND in
ADD)
    second bridge <"$here/net1.json" >"$here/net1.out" || { cat "$here/net1.out"; exit 1; }
    printf '{"cniVersion":"1.0.0","name":"net1","type":"sbr","prevResult":%s}' "$(cat "$here/net1.out")" |
        second sbr >"$here/sbr.out" || { cat "$here/sbr.out"; exit 1; }
    ;;
DEL) second bridge <"$here/net1.json" || exit 1 ;;
*) exit 0 ;;
esac
exec /usr/lib/cni/bridge <"$here/eth0.json"
"#;

/// Two bridges in place of the node's one, and `tuning` after them.
fn write_meta_plugin(dir: &Path) -> Outcome {
    let plugins = dir.join("plugins");
    fs::create_dir_all(&plugins)?;
    for (name, bridge, net, mtu) in [
        ("eth0", "bhmeta0", "10.251", 1450),
        ("net1", "bhmeta1", "10.252", 1350),
    ] {
        let conf = format!(
            r#"{{"cniVersion":"1.0.0","name":"{name}","type":"bridge","bridge":"{bridge}",
            "isGateway":true,"mtu":{mtu},"ipam":{{"type":"host-local","dataDir":"{leases}",
            "ranges":[[{{"subnet":"{net}.0.0/24"}}],[{{"subnet":"fd00:{number}::/64"}}]]}}}}"#,
            leases = dir.join("meta-ipam").display(),
            number = mtu,
        );
        fs::write(plugins.join(format!("{name}.json")), conf)?;
    }
    let meta = plugins.join("meta");
    fs::write(&meta, META)?;
    fs::set_permissions(&meta, fs::Permissions::from_mode(0o755))?;
    Ok(())
}

async fn a_second_network_and_tuning_reach_the_guest(context: &mut Context) -> Outcome {
    let conf = r#"{"cniVersion":"1.0.0","name":"meta","plugins":[{"type":"meta"},
        {"type":"tuning","sysctl":{"net.core.somaxconn":"777","net.ipv4.tcp_keepalive_time":"1234",
         "net.ipv4.tcp_keepalive_intvl":"33"}}]}"#;
    let options = Options {
        cni: Some(conf.to_owned()),
        ..Options::default()
    };
    let mut host = Host::start("metacni", &context.results, options).await?;
    write_meta_plugin(host.dir())?;
    let cri = host.cri().await?;
    cri.pull(BUSYBOX).await?;
    let mut config = pod("meta");
    let own = [("net.ipv4.tcp_keepalive_time".to_owned(), "99".to_owned())];
    config.linux = Some(LinuxPodSandboxConfig {
        sysctls: own.into(),
        ..config.linux.unwrap_or_default()
    });
    let id = cri.run_pod(config.clone()).await?;
    let network = cri.pod_status(&id).await?.0.network.unwrap_or_default();
    check!(network.ip.starts_with("10.251.0."), "{network:?}");
    check!(network.additional_ips.len() == 1, "{network:?}");
    let shell = cri
        .run(&id, &config, script("shell", BUSYBOX, "sleep 1000"))
        .await?;

    // Where CNI daemons look, and by that name.
    let netns = format!("/var/run/netns/bulkhead-{id}");
    let outside = leaks::output(
        "nsenter",
        &[&format!("--net={netns}"), "cat", "/proc/self/net/dev"],
    )?;
    check!(outside.contains("net1:"), "{outside}");
    let of = async |command: &str| cri.shell(&shell, command).await;
    let addresses = of("ip -o address show net1").await?;
    check!(
        addresses.contains("10.252.0.2/24") && addresses.contains("fd00:1350::2/64"),
        "{addresses}"
    );
    let device = of("cat /sys/class/net/net1/mtu /sys/class/net/net1/address").await?;
    let (mtu, mac) = device.trim().split_once('\n').ok_or("no address")?;
    check!(mtu == "1350", "{device}");
    let links = leaks::output("nsenter", &[&format!("--net={netns}"), "ip", "link"])?;
    check!(links.contains(mac), "{mac} is not in {links}");
    // What sbr made: traffic from net1's address leaves by net1's own table.
    let rules = of("ip rule").await?;
    check!(rules.contains("from 10.252.0.2"), "{rules}");
    let table = of("ip route show table 100").await?;
    check!(table.contains("default via 10.252.0.1"), "{table}");
    let main = of("ip route").await?;
    check!(!main.contains("net1"), "{main}");
    of("ping -c 1 -W 10 -I 10.252.0.2 10.252.0.1").await?;
    of("ping -c 1 -W 10 10.251.0.1").await?;

    for (name, value) in [
        ("net/core/somaxconn", "777"),
        ("net/ipv4/tcp_keepalive_intvl", "33"),
        // The pod's own wins.
        ("net/ipv4/tcp_keepalive_time", "99"),
    ] {
        let found = of(&format!("cat /proc/sys/{name}")).await?;
        check!(found.trim() == value, "{name} is {found}");
    }
    let forward = "/proc/sys/net/ipv4/ip_forward";
    let (inside, node) = (
        of(&format!("cat {forward}")).await?,
        fs::read_to_string(forward)?,
    );
    check!(inside.trim() == node.trim(), "ip_forward: {inside}");

    cri.remove_pod(&id).await?;
    check!(!Path::new(&netns).exists(), "{netns} is still there");
    host.stop_daemon().await?;
    for bridge in ["bhmeta0", "bhmeta1"] {
        leaks::output("ip", &["link", "del", bridge])?;
    }
    Ok(())
}

/// A plugin of CNI 1.1 in front of the bridge plugin, which is of an older version.
const VERBS: &str = r#"#!/bin/sh
here=$(dirname "$0")
cat >"$here/input.$CNI_COMMAND"
case $CNI_COMMAND in
ADD | DEL) exec /usr/lib/cni/bridge <"$here/eth0.json" ;;
CHECK) echo '{"cniVersion":"1.1.0","code":100,"msg":"an address is missing"}'; exit 1 ;;
STATUS)
    [ ! -e "$here/down" ] || { echo '{"cniVersion":"1.1.0","code":50,"msg":"the store is away"}'; exit 1; }
    ;;
esac
"#;

async fn plugins_are_asked_for_status_check_and_garbage(context: &mut Context) -> Outcome {
    let conf = r#"{"cniVersions":["1.0.0","1.1.0"],"name":"verbs","plugins":[{"type":"verbs"}]}"#;
    let options = Options {
        cni: Some(conf.to_owned()),
        ..Options::default()
    };
    let mut host = Host::start("verbscni", &context.results, options).await?;
    write_meta_plugin(host.dir())?;
    let plugins = host.dir().join("plugins");
    fs::write(plugins.join("verbs"), VERBS)?;
    fs::set_permissions(plugins.join("verbs"), fs::Permissions::from_mode(0o755))?;

    let (ready, message) = network_message(&host).await?;
    check!(ready, "{message}");
    fs::write(plugins.join("down"), "")?;
    let (ready, message) = network_message(&host).await?;
    check!(!ready && message.contains("the store is away"), "{message}");
    fs::remove_file(plugins.join("down"))?;

    let id = host.cri().await?.run_pod_on("host", pod("verbs")).await?;
    host.kill_daemon()?;
    host.start_daemon().await?;
    let deadline = Instant::now() + PATIENCE;
    let log = loop {
        let log = fs::read_to_string(host.log())?;
        if log.contains("an address is missing") {
            break log;
        }
        pause(deadline, "the check of the pod's network").await?;
    };
    check!(log.contains("not as the CNI plugins made it"), "{log}");
    let collected = fs::read_to_string(plugins.join("input.GC"))?;
    let valid =
        format!(r#""cni.dev/valid-attachments":[{{"containerID":"{id}","ifname":"eth0"}}]"#);
    check!(collected.contains(&valid), "{collected}");
    // The pod lives on.
    host.cri().await?.remove_pod(&id).await?;
    host.stop_daemon().await?;
    leaks::output("ip", &["link", "del", "bhmeta0"])?;
    Ok(())
}
