//! Pods' networks, by the real reference plugins.

use std::{
    io::{Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpStream},
    time::Duration,
};

use bulkhead_proto::cri::{PortMapping, StatusRequest};
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
    std::fs::write(host.dir().join("cni/10-late.conflist"), conf)?;
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
    let leases = std::fs::read_dir("/run/badcni-ipam/badcni")?
        .filter_map(Result::ok)
        .filter(|entry| entry.file_name().to_string_lossy().starts_with("10."))
        .count();
    check!(leases == 0, "{leases} addresses are still leased");
    host.stop_daemon().await?;
    leaks::output("ip", &["link", "del", "bhbad0"])?;
    Ok(())
}
