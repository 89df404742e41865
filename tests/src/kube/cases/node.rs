//! What is done to a node while pods run on it.

use super::super::{
    case::Case,
    cluster::Cluster,
    manifests::{container, pod, web},
};
use crate::{Outcome, case, check, kube::cluster::POD};

pub(super) fn cases() -> Vec<Case> {
    vec![
        case!(alone restart_of_kubelet_and_daemon_leaves_pods_alone),
        case!(alone drain_moves_pods_away_and_uncordon_brings_them_back),
    ]
}

async fn restart_of_kubelet_and_daemon_leaves_pods_alone(cluster: &Cluster) -> Outcome {
    let serving = web(cluster).await?;
    let identity = async || {
        let told = cluster.get(&format!("pod/{serving}")).await?;
        let of = |name: &str| {
            let status = container(&told, name);
            (
                status["containerID"].clone(),
                status["restartCount"].clone(),
            )
        };
        Ok::<_, crate::Failure>([of("web"), of("echo")])
    };
    cluster
        .exec(&format!("{serving} -c web"), "touch /tmp/here")
        .await?;
    let before = identity().await?;
    cluster.host.lock().await.restart_node().await?;
    // The kubelet serves again once it has its certificate and has read the pods.
    cluster
        .exec_until(&format!("{serving} -c web"), "ls /tmp/here", |seen| {
            seen == "/tmp/here\n"
        })
        .await?;
    cluster.wait("node/node1", "condition=Ready").await?;
    let new = pod(
        "after",
        "echo up; exec sleep 100000",
        "",
        "resources: {limits: {memory: 32Mi}}",
    );
    cluster.apply(&new).await?;
    cluster.ready("after").await?;
    cluster.delete("pod/after").await?;
    let after = identity().await?;
    check!(before == after, "before {before:?}, after {after:?}");
    cluster.ready(&serving).await
}

async fn drain_moves_pods_away_and_uncordon_brings_them_back(cluster: &Cluster) -> Outcome {
    let pod = web(cluster).await?;
    let limit = format!("--timeout={}s", POD.as_secs());
    let args = [
        "drain",
        "node1",
        "--ignore-daemonsets",
        "--delete-emptydir-data",
        "--force",
        &limit,
    ];
    cluster.kubectl.run(&args).await?;
    let gone = cluster.get(&format!("pod/{pod}")).await.is_err();
    check!(gone, "{pod} is still there after the drain");
    let args = [
        "get",
        "pods",
        "-A",
        "--field-selector=spec.nodeName=node1",
        "-o",
        "name",
    ];
    let left = cluster.kubectl.run(&args).await?;
    let others: Vec<&str> = left
        .lines()
        .filter(|name| !name.contains("kube-proxy"))
        .collect();
    check!(others.is_empty(), "left on the node: {others:?}");
    cluster.kubectl.run(&["uncordon", "node1"]).await?;
    cluster.wait("deployment/web", "condition=Available").await
}
