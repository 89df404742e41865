//! What cases ask of the cluster in the same words: what it has from the beginning, pods of a line, and a web
//! server.

use super::cluster::Cluster;
use crate::{Failure, Outcome, check};

/// What stands in the cluster before the first case.
pub(super) const BASE: &str = concat!(
    include_str!("../../kube/manifests/base.yaml"),
    "---\n",
    include_str!("../../../packaging/kubernetes/runtimeclass-kvm.yaml"),
    "---\n",
    include_str!("../../../packaging/kubernetes/runtimeclass-host.yaml"),
);

/// The image of most pods.
pub(super) const BUSYBOX: &str = "10.0.2.2:5000/busybox:latest";

/// A pod of one container that runs `script`; `spec` and `container` are further lines in YAML's flow form:
/// `hostname: x, restartPolicy: Never`.
pub(super) fn pod(name: &str, script: &str, spec: &str, container: &str) -> String {
    let comma = |text: &str| if text.is_empty() { "" } else { ", " };
    let script = serde_json::Value::from(script);
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, labels: {{app: {name}}}}}\n\
         spec: {{terminationGracePeriodSeconds: 1{}{spec}, containers: [{{name: main, image: \"{BUSYBOX}\", \
         command: [sh, -c, {script}]{}{container}}}]}}\n",
        comma(spec),
        comma(container),
    )
}

/// A name of the running web server's pod, which the first caller brings up.
pub(super) async fn web(cluster: &Cluster) -> Result<String, Failure> {
    let up = async || -> Outcome {
        let manifest = include_str!("../../kube/manifests/web.yaml");
        cluster.apply(manifest).await?;
        cluster.wait("deployment/web", "condition=Available").await
    };
    cluster.web.get_or_try_init(up).await?;
    let name = "jsonpath={.items[0].metadata.name}";
    // The oldest: another may be there for the case that scales.
    let oldest = "--sort-by=.metadata.creationTimestamp";
    let args = ["get", "pods", "-l", "app=web", oldest, "-o", name];
    let name = cluster.kubectl.run(&args).await?;
    check!(name.starts_with("web-"), "no pod of the web server: {name}");
    Ok(name)
}

/// The status of a container in a pod's status.
pub(super) fn container<'a>(pod: &'a serde_json::Value, name: &str) -> &'a serde_json::Value {
    const NONE: &serde_json::Value = &serde_json::Value::Null;
    [
        "containerStatuses",
        "initContainerStatuses",
        "ephemeralContainerStatuses",
    ]
    .iter()
    .filter_map(|list| pod["status"][list].as_array())
    .flatten()
    .find(|status| status["name"] == name)
    .unwrap_or(NONE)
}
