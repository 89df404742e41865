//! How readily the node's OOM killer takes a pod's VMM (`oom_score_adj`, proc_pid_oom_score_adj(5)):
//! as the pod's QoS class says, and not as the daemon's own, which the VMM would inherit.
//!
//! The kubelet's number comes with each container: -997 for a guaranteed or critical one, 1000 for
//! best effort, between them by what a burstable one asks for (`GetContainerOOMScoreAdjust`). All of
//! a pod's containers go with its VM, so the VM has the number of the one that should last longest.
//! Within the guest each has its own. Until the first container is there, the class counts that the
//! pod's cgroup is of.
//!
//! Not here: pods on the host, whose containers have their own numbers there, too.

use std::sync::Arc;

use super::Pod;
use crate::{
    app::App,
    machine::Process,
    records::{ContainerRecord, ContainerState, MachineKind, SandboxRecord},
};

/// The kubelet's for guaranteed and critical pods.
const GUARANTEED: i64 = -997;
/// The kubelet's highest for a burstable pod: it asks for next to nothing.
const BURSTABLE: i64 = 999;
/// The kubelet's for pods that ask for nothing.
const BEST_EFFORT: i64 = 1000;
/// The OOM killer finds a VM before the daemon (-999), whatever a container asks for.
const LOWEST: i64 = -998;
/// oom_score_adj's own bound.
const HIGHEST: i64 = 1000;

/// Gives the pod's VMM the number that the records ask for. A failure is in the log: the pod is as
/// good without.
pub(crate) fn fit(app: &App, pod: &Pod) {
    if let Some(record) = app.records.sandboxes.get(&pod.id) {
        apply(app, &record, &pod.process);
    }
}

/// [`fit`] for a pod that is not there yet. Some writes into procfs, which do not wait.
pub(super) fn apply(app: &App, record: &SandboxRecord, process: &Process) {
    if record.machine != MachineKind::Vm {
        return;
    }
    let set = process.set_oom_score(|| score(record, &app.records.containers_of(&record.id)));
    match set {
        Ok(score) => tracing::debug!(pod = %record.id, score, "the VMM's oom_score_adj"),
        Err(error) => {
            tracing::warn!(pod = %record.id, "the VMM's oom_score_adj is not set: {error}");
        }
    }
}

fn score(record: &SandboxRecord, containers: &[Arc<ContainerRecord>]) -> i32 {
    let alive = containers
        .iter()
        .filter(|container| container.status.state != ContainerState::Exited);
    let linux = record.config.linux.as_ref();
    let class = of_class(linux.map_or("", |linux| linux.cgroup_parent.as_str()));
    // 0 is CRI's default, and no value of the kubelet's.
    let asked = alive.map(|container| match container.status.resources.oom_score_adj {
        0 => class,
        asked => asked,
    });
    let score = asked.min().unwrap_or(class).clamp(LOWEST, HIGHEST);
    // It fits after the clamp.
    i32::try_from(score).unwrap_or_default()
}

/// The class as the kubelet names cgroups, `/kubepods/burstable/podUID` or
/// `kubepods-burstable-podUID.slice`; other clients' pods have none.
fn of_class(cgroup_parent: &str) -> i64 {
    let mut parts = cgroup_parent.split(['/', '-', '.']);
    let has = |name| parts.clone().any(|part| part == name);
    match (has("besteffort"), has("burstable")) {
        (true, _) => BEST_EFFORT,
        (_, true) => BURSTABLE,
        _ if parts.any(|part| part == "kubepods") => GUARANTEED,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use ContainerState::{Created, Creating, Exited, Running};

    use super::*;
    use crate::records::testing;

    #[test]
    fn a_pod_without_containers_has_its_classs_score() {
        for (parent, expected) in [
            ("/kubepods/besteffort/pod1", 1000),
            ("/kubepods/burstable/pod1", 999),
            ("/kubepods/pod1", -997),
            (
                "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod1.slice",
                1000,
            ),
            ("kubepods-burstable-pod1_2.slice", 999),
            ("/kubepods.slice/kubepods-pod1.slice", -997),
            ("/own/kubepods/pod1", -997),
            ("", 0),
            ("/bulkhead", 0),
            ("/mykubepods/pod1", 0),
        ] {
            assert_eq!(of_class(parent), expected, "{parent}");
        }
    }

    #[test]
    fn the_lowest_of_the_containers_that_have_not_ended_counts() {
        let sandbox = testing::sandbox("a");
        let container = |score, state| {
            let mut record = testing::container("c", "a");
            record.status.resources.oom_score_adj = score;
            record.status.state = state;
            Arc::new(record)
        };
        let burstable = container(950, Running);
        let sidecar = container(3, Creating);
        assert_eq!(score(&sandbox, &[]), 0);
        assert_eq!(score(&sandbox, std::slice::from_ref(&burstable)), 950);
        assert_eq!(score(&sandbox, &[burstable.clone(), sidecar]), 3);
        let init = container(3, Exited);
        assert_eq!(score(&sandbox, &[burstable, init]), 950);
        let mut best_effort = testing::sandbox("a");
        let linux = best_effort.config.linux.get_or_insert_default();
        linux.cgroup_parent = "/kubepods/besteffort/pod1".to_owned();
        assert_eq!(score(&best_effort, &[container(0, Running)]), 1000);
        // The daemon outlives a VM.
        assert_eq!(score(&sandbox, &[container(-1000, Created)]), -998);
    }
}
