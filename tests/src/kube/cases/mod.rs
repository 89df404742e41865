//! The cases, by what users call it. Manifests of more than a few lines are in `tests/kube/manifests`.

mod network;
mod node;
mod pods;
mod sizes;
mod streams;
mod volumes;
mod workloads;

use super::{cluster::Cluster, runner::Case};
use crate::{Failure, Outcome, check};

/// What stands in the cluster before the first case.
pub const BASE: &str = concat!(
    include_str!("../../../kube/manifests/base.yaml"),
    "---\n",
    include_str!("../../../../packaging/kubernetes/runtimeclass-kvm.yaml"),
    "---\n",
    include_str!("../../../../packaging/kubernetes/runtimeclass-host.yaml"),
);

/// All of them. Those that wait longest come first.
#[must_use]
pub fn all() -> Vec<Case> {
    let mut all = network::cases();
    all.extend(streams::cases());
    all.extend(volumes::cases());
    all.extend(workloads::cases());
    all.extend(pods::cases());
    all.extend(sizes::cases());
    all.extend(node::cases());
    all
}

/// The image of most pods.
const BUSYBOX: &str = "10.0.2.2:5000/busybox:latest";

/// A pod of one container that runs `script`; `spec` and `container` are further lines in YAML's flow form:
/// `hostname: x, restartPolicy: Never`.
fn pod(name: &str, script: &str, spec: &str, container: &str) -> String {
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
async fn web(cluster: &Cluster) -> Result<String, Failure> {
    let up = async || -> Outcome {
        let manifest = include_str!("../../../kube/manifests/web.yaml");
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
fn container<'a>(pod: &'a serde_json::Value, name: &str) -> &'a serde_json::Value {
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
