//! Services through kube-proxy on the handler `host`, and the cluster's own DNS.

use super::super::{case::Case, cluster::Cluster, manifests::web};
use crate::{Outcome, case, check};

pub(super) fn cases() -> Vec<Case> {
    vec![
        case!(services_by_nftables),
        case!(cluster_dns_by_coredns),
        case!(alone services_by_iptables),
    ]
}

/// kube-proxy in a mode; the rules of the other mode are its own to take away.
async fn proxy(cluster: &Cluster, mode: &str) -> Outcome {
    let dir = super::super::directory("BULKHEAD_KUBE_WORK")?;
    let manifest = include_str!("../../../kube/manifests/kube-proxy.yaml")
        .replace("MODE", mode)
        .replace("DIR", &dir.display().to_string());
    cluster.apply(&manifest).await?;
    let rollout = ["rollout", "status", "daemonset/kube-proxy", "--timeout=80s"];
    cluster.kubectl.run(&rollout).await?;
    Ok(())
}

/// The one that most cases want.
async fn any_proxy(cluster: &Cluster) -> Outcome {
    cluster
        .proxy
        .get_or_try_init(|| proxy(cluster, "nftables"))
        .await?;
    Ok(())
}

/// The web server by its cluster address from a pod, and by the node's port from the node.
async fn reached(cluster: &Cluster) -> Outcome {
    let pod = web(cluster).await?;
    let service = cluster.get("service/web").await?;
    let address = service["spec"]["clusterIP"].as_str().unwrap_or_default();
    let page = format!("wget -T 10 -qO- http://{address}/");
    let hello = |page: &str| page == "hello from a microVM\n";
    cluster
        .exec_until(&format!("{pod} -c echo"), &page, hello)
        .await?;
    let node = "wget -T 10 -qO- http://10.0.2.15:30080/ || curl -sS -m 10 http://10.0.2.15:30080/";
    let seen = cluster.host.lock().await.shell(node).await?;
    check!(hello(&seen), "from the node: {seen:?}");
    // The API server's own service, whose end is outside of the cluster.
    let api = "wget -T 10 -qO- --no-check-certificate https://10.96.0.1/version 2>&1 || nc -w 5 -z 10.96.0.1 443 && echo reached";
    cluster
        .exec_until(&format!("{pod} -c echo"), api, |seen| {
            seen.contains("reached") || seen.contains("gitVersion")
        })
        .await?;
    Ok(())
}

async fn services_by_nftables(cluster: &Cluster) -> Outcome {
    any_proxy(cluster).await?;
    reached(cluster).await?;
    let rules = cluster
        .host
        .lock()
        .await
        .shell("nft list table ip kube-proxy")
        .await?;
    check!(rules.contains("default/web"), "the node's rules: {rules}");
    Ok(())
}

async fn services_by_iptables(cluster: &Cluster) -> Outcome {
    proxy(cluster, "iptables").await?;
    // Rules of the other mode may still serve.
    let deadline = tokio::time::Instant::now() + super::super::cluster::POD;
    loop {
        let look = "iptables-save -t nat | grep -c default/web; nft list table ip kube-proxy 2>/dev/null | wc -l";
        let seen = cluster.host.lock().await.shell(look).await?;
        if !seen.starts_with("0\n") && seen.ends_with("\n0\n") {
            break;
        }
        crate::waiting::pause(deadline, &format!("rules by iptables alone: {seen}")).await?;
    }
    reached(cluster).await
}

async fn cluster_dns_by_coredns(cluster: &Cluster) -> Outcome {
    any_proxy(cluster).await?;
    cluster
        .apply(include_str!("../../../kube/manifests/coredns.yaml"))
        .await?;
    let pod = web(cluster).await?;
    let service = cluster.get("service/web").await?;
    let address = service["spec"]["clusterIP"].as_str().unwrap_or_default();
    for name in ["web", "web.default.svc.cluster.local"] {
        // By the search list of the pod, too.
        let page = format!("wget -T 10 -qO- http://{name}/");
        cluster
            .exec_until(&format!("{pod} -c echo"), &page, |page| {
                page.contains("hello")
            })
            .await?;
    }
    let command = "nslookup web.default.svc.cluster.local; nslookup -type=srv _dns._udp.kube-dns.kube-system.svc.cluster.local";
    let answer = cluster.exec(&format!("{pod} -c echo"), command).await?;
    check!(
        answer.contains(address) && answer.contains("kube-dns.kube-system"),
        "nslookup says {answer}"
    );
    Ok(())
}
