//! Memory and processors: limits, none, more of them, overhead, and what is told of their use.

use super::super::{
    case::Case,
    cluster::Cluster,
    manifests::{container, pod, web},
};
use crate::{Outcome, case, check};

pub(super) fn cases() -> Vec<Case> {
    vec![
        case!(resize_in_place),
        case!(runtimeclass_overhead_is_in_the_pods_cgroup),
        case!(a_pod_without_limits_uses_the_nodes_memory),
        case!(a_small_limit_holds),
        case!(top_has_figures_of_pods),
    ]
}

async fn resize_in_place(cluster: &Cluster) -> Outcome {
    let sizes = |memory: &str, cpu: &str| {
        format!(
            "resources: {{requests: {{memory: {memory}, cpu: {cpu}}}, limits: {{memory: {memory}, cpu: {cpu}}}}}"
        )
    };
    let manifest = pod("resized", "exec sleep 100000", "", &sizes("64Mi", "100m"));
    cluster.apply(&manifest).await?;
    cluster.ready("resized").await?;
    let look = "cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/cpu.max";
    let seen = cluster.exec("resized", look).await?;
    check!(seen == "67108864\n10000 100000\n", "at first {seen}");
    for (memory, cpu, wanted) in [
        ("128Mi", "200m", "134217728\n20000 100000\n"),
        ("96Mi", "150m", "100663296\n15000 100000\n"),
    ] {
        let size = serde_json::json!({"memory": memory, "cpu": cpu});
        let main =
            serde_json::json!({"name": "main", "resources": {"requests": size, "limits": size}});
        let patch = serde_json::json!({"spec": {"containers": [main]}}).to_string();
        let args = [
            "patch",
            "pod",
            "resized",
            "--subresource=resize",
            "-p",
            &patch,
        ];
        cluster.kubectl.run(&args).await?;
        let pod = cluster
            .until("pod/resized", "the new size in its status", |pod| {
                let limits = &container(pod, "main")["resources"]["limits"];
                limits["memory"] == memory && limits["cpu"] == cpu
            })
            .await?;
        check!(
            container(&pod, "main")["restartCount"] == 0,
            "it was started again"
        );
        let seen = cluster.exec("resized", look).await?;
        check!(seen == wanted, "with {memory}: {seen}");
    }
    cluster.delete("pod/resized").await
}

async fn runtimeclass_overhead_is_in_the_pods_cgroup(cluster: &Cluster) -> Outcome {
    let limits = "resources: {limits: {memory: 64Mi, cpu: 100m}}";
    let manifest = pod(
        "over",
        "exec sleep 100000",
        "runtimeClassName: bulkhead-kvm",
        limits,
    );
    cluster.apply(&manifest).await?;
    cluster.ready("over").await?;
    let pod = cluster.get("pod/over").await?;
    check!(
        pod["spec"]["overhead"]["memory"] == "96Mi",
        "its overhead is {}",
        pod["spec"]["overhead"]
    );
    let uid = pod["metadata"]["uid"].as_str().unwrap_or_default();
    let look = format!(
        "cat /sys/fs/cgroup/kubepods/pod{uid}/memory.max; cat /sys/fs/cgroup/kubepods/pod{uid}/*/cgroup.procs | wc -l"
    );
    let seen = cluster.host.lock().await.shell(&look).await?;
    let lines: Vec<&str> = seen.lines().collect();
    check!(
        lines.first() == Some(&"167772160")
            && lines.get(1).is_some_and(|count| count.trim() != "0"),
        "the pod's cgroup on the node: {seen}"
    );
    let inside = cluster
        .exec("over", "cat /sys/fs/cgroup/memory.max")
        .await?;
    check!(inside == "67108864\n", "the container's limit: {inside}");
    cluster.delete("pod/over").await
}

async fn a_pod_without_limits_uses_the_nodes_memory(cluster: &Cluster) -> Outcome {
    let script = "dd if=/dev/zero of=/dev/null bs=700M count=1 2>&1 | tail -n 1 | cut -d' ' -f1";
    let manifest = pod("unlimited", script, "restartPolicy: Never", "");
    let seen = cluster.succeeds("unlimited", &manifest).await?;
    check!(seen == "734003200\n", "it said {seen}");
    Ok(())
}

async fn a_small_limit_holds(cluster: &Cluster) -> Outcome {
    let script = "dd if=/dev/zero of=/dev/null bs=16M count=1 2>/dev/null && echo fits; dd if=/dev/zero of=/dev/null bs=64M count=1 2>/dev/null; echo beyond";
    let limit = "resources: {limits: {memory: 32Mi}}";
    cluster
        .apply(&pod("small", script, "restartPolicy: Never", limit))
        .await?;
    let pod = cluster.ended("small").await?;
    // The kubelet wants a container killed as a whole.
    let ended = &container(&pod, "main")["state"]["terminated"];
    let said = cluster.kubectl.run(&["logs", "small"]).await?;
    check!(
        ended["reason"] == "OOMKilled" && ended["exitCode"] == 137 && said == "fits\n",
        "{ended}, and it said {said}"
    );
    cluster.delete("pod/small").await
}

async fn top_has_figures_of_pods(cluster: &Cluster) -> Outcome {
    let name = web(cluster).await?;
    // What metrics-server asks for, and what `kubectl top` shows of it.
    let path = "/api/v1/nodes/node1/proxy/metrics/resource";
    let deadline = tokio::time::Instant::now() + super::super::cluster::POD;
    for metric in [
        format!(
            "container_cpu_usage_seconds_total{{container=\"web\",namespace=\"default\",pod=\"{name}\"}}"
        ),
        format!(
            "container_memory_working_set_bytes{{container=\"web\",namespace=\"default\",pod=\"{name}\"}}"
        ),
        format!("pod_memory_working_set_bytes{{namespace=\"default\",pod=\"{name}\"}}"),
        "node_memory_working_set_bytes".to_owned(),
    ] {
        loop {
            let text = cluster.kubectl.run(&["get", "--raw", path]).await?;
            let line = text.lines().find_map(|line| line.strip_prefix(&metric));
            let value = line.and_then(|line| line.trim().split(' ').next()?.parse::<f64>().ok());
            if value.is_some_and(|value| value > 0.0) {
                break;
            }
            crate::waiting::pause(deadline, &metric).await?;
        }
    }
    Ok(())
}
