//! The kubelet's CPU and memory managers: containers that are given processors and memory nodes of the
//! node. The test host has one processor, so that what there is to see is what cgroups and threads are
//! bound to; that containers are kept apart on many is for the daemon's own tests.

use std::{
    fs,
    path::{Path, PathBuf},
};

use bulkhead_proto::cri::{
    LinuxContainerConfig, LinuxContainerResources, UpdateContainerResourcesRequest,
};
use tonic::{Code, Status};

use super::BUSYBOX;
use crate::{
    Failure, Outcome, check,
    cri::{Cri, script},
    pod_cgroup::{PodCgroup, pod_in},
    suite::{Context, Test},
    test,
};

pub(super) fn tests() -> Vec<Test> {
    vec![test!("cpus", the_static_cpu_manager_is_honoured_for_vms)]
}

fn set(cpus: &str, mems: &str) -> LinuxContainerResources {
    LinuxContainerResources {
        cpuset_cpus: cpus.to_owned(),
        cpuset_mems: mems.to_owned(),
        ..LinuxContainerResources::default()
    }
}

async fn update(cri: &Cri, id: &str, linux: LinuxContainerResources) -> Result<(), Status> {
    let request = UpdateContainerResourcesRequest {
        container_id: id.to_owned(),
        linux: Some(linux),
        ..UpdateContainerResourcesRequest::default()
    };
    let mut runtime = cri.runtime.clone();
    runtime.update_container_resources(request).await.map(drop)
}

/// Name and own processors of each thread of a process. The kernel says what a thread asked for by
/// `Cpus_allowed_list`, within what its cgroup allows.
fn threads(cgroup: &Path) -> Result<Vec<(String, String)>, Failure> {
    let mut found = Vec::new();
    for tid in fs::read_to_string(cgroup.join("cgroup.threads"))?.lines() {
        let Ok(status) = fs::read_to_string(format!("/proc/{tid}/status")) else {
            continue;
        };
        let line = |key: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(key));
            line.unwrap_or_default().trim().to_owned()
        };
        found.push((line("Name:"), line("Cpus_allowed_list:")));
    }
    Ok(found)
}

async fn refused(cri: &Cri, id: &str, cpus: &str, words: &str) -> Outcome {
    let answer = update(cri, id, set(cpus, "")).await;
    check!(
        answer.as_ref().is_err_and(|status| {
            status.code() == Code::InvalidArgument && status.message().contains(words)
        }),
        "{cpus:?}: {answer:?}"
    );
    Ok(())
}

async fn the_static_cpu_manager_is_honoured_for_vms(context: &mut Context) -> Outcome {
    context.cri.pull(BUSYBOX).await?;
    let cgroup = PodCgroup::make("/kubepods/poduid-cpus")?;
    // A limit of two: the VM boots with two processors, of which the container is to have one.
    cgroup.set("cpu.max", "200000 100000")?;
    let config = pod_in("cpus", cgroup.parent(), 0, 0);
    let id = context.cri.run_pod(config.clone()).await?;
    let leaf: PathBuf = cgroup.path().join(format!("bulkhead-{id}"));
    let bound = |cpus: &str, mems: &str| -> Outcome {
        let [has, on] = ["cpuset.cpus", "cpuset.mems"]
            .map(|file| fs::read_to_string(leaf.join(file)).unwrap_or_default());
        check!(has.trim() == cpus && on.trim() == mems, "{has:?}, {on:?}");
        Ok(())
    };

    // As the kubelet creates the container of a guaranteed pod.
    let cri = &context.cri;
    let mut own = script("own", BUSYBOX, "sleep 1000");
    own.linux = Some(LinuxContainerConfig {
        resources: Some(set("0", "0")),
        ..LinuxContainerConfig::default()
    });
    let mut bad = own.clone();
    let made = cri.run(&id, &config, own).await?;
    bound("0", "0")?;
    let inside = cri
        .shell(
            &made,
            "nproc; cat /sys/fs/cgroup/cpuset.cpus.effective; grep -c ^processor /proc/cpuinfo",
        )
        .await?;
    check!(inside == "1\n0\n1\n", "{inside:?}");
    let threads = threads(&leaf)?;
    check!(
        threads.iter().any(|(name, _)| name == "vcpu0") && threads.iter().all(|(_, on)| on == "0"),
        "{threads:?}"
    );
    let told = cri.status(&made).await?.resources.and_then(|r| r.linux);
    check!(
        told.as_ref()
            .is_some_and(|linux| (&*linux.cpuset_cpus, &*linux.cpuset_mems) == ("0", "0")),
        "{told:?}"
    );

    // What cannot be had is refused, and changes nothing.
    refused(cri, &made, "60000", "numerical result out of range").await?;
    refused(cri, &made, "0;1", "invalid argument").await?;
    let limits = bad.linux.get_or_insert_default();
    limits.resources = Some(set("60000", ""));
    if let Some(metadata) = &mut bad.metadata {
        metadata.name = "bad".to_owned();
    }
    let answer = cri.create(&id, &config, bad).await;
    check!(
        answer
            .as_ref()
            .is_err_and(|status| status.code() == Code::InvalidArgument),
        "{answer:?}"
    );
    bound("0", "0")?;

    // One without a set may use all of the node's, beside it.
    let free = cri
        .run(&id, &config, script("free", BUSYBOX, "sleep 1000"))
        .await?;
    bound("0", "0")?;
    // As the kubelet's reconciliation finds it.
    update(cri, &free, set("0", "0")).await?;
    bound("0", "0")?;
    cri.stop(&free, 0).await?;
    cri.remove(&free).await?;

    // A daemon that starts anew leaves it so.
    context.host.stop_daemon().await?;
    context.host.start_daemon().await?;
    context.cri = context.host.cri().await?;
    bound("0", "0")?;
    context.cri.remove_pod(&id).await?;
    cgroup.remove()
}
