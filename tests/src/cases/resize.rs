//! In-place resize: a pod's VM gets processors and memory, and gives them back.

use bulkhead_proto::cri::{
    LinuxContainerConfig, LinuxContainerResources, UpdateContainerResourcesRequest,
    UpdatePodSandboxResourcesRequest,
};
use tonic::Code;

use super::BUSYBOX;
use crate::{
    Failure, Outcome, check,
    cri::{Cri, pod, script},
    suite::{Context, Test},
    test,
    waiting::Progress,
};

pub(super) fn tests() -> Vec<Test> {
    vec![test!("resize", a_pods_vm_follows_its_limits_both_ways)]
}

fn limits(cpus: i64, mib: i64) -> LinuxContainerResources {
    LinuxContainerResources {
        cpu_period: 100_000,
        cpu_quota: cpus * 100_000,
        memory_limit_in_bytes: mib << 20,
        ..LinuxContainerResources::default()
    }
}

async fn update_pod(
    cri: &Cri,
    id: &str,
    limits: LinuxContainerResources,
) -> Result<(), tonic::Status> {
    let request = UpdatePodSandboxResourcesRequest {
        pod_sandbox_id: id.to_owned(),
        overhead: None,
        resources: Some(limits),
    };
    let mut runtime = cri.runtime.clone();
    runtime
        .update_pod_sandbox_resources(request)
        .await
        .map(drop)
}

async fn update_container(cri: &Cri, id: &str, limits: LinuxContainerResources) -> Outcome {
    let request = UpdateContainerResourcesRequest {
        container_id: id.to_owned(),
        linux: Some(limits),
        ..UpdateContainerResourcesRequest::default()
    };
    cri.runtime
        .clone()
        .update_container_resources(request)
        .await?;
    Ok(())
}

/// Processors online and MiB of memory, as the guest sees them.
async fn guest(cri: &Cri, container: &str) -> Result<(u64, u64), Failure> {
    let script =
        "grep -c ^processor /proc/cpuinfo; awk '/MemTotal/ {print int($2 / 1024)}' /proc/meminfo";
    let text = cri.shell(container, script).await?;
    let mut lines = text.lines().map(str::parse::<u64>);
    match (lines.next(), lines.next()) {
        (Some(Ok(cpus)), Some(Ok(mib))) => Ok((cpus, mib)),
        _ => Err(format!("{text:?}").into()),
    }
}

async fn a_pods_vm_follows_its_limits_both_ways(context: &mut Context) -> Outcome {
    let cri = &context.cri;
    cri.pull(BUSYBOX).await?;
    let mut config = pod("resize");
    if let Some(linux) = &mut config.linux {
        linux.resources = Some(limits(1, 160));
    }
    let id = cri.run_pod(config.clone()).await?;
    let mut main = script("main", BUSYBOX, "sleep 1000");
    main.linux = Some(LinuxContainerConfig {
        resources: Some(limits(1, 96)),
        ..LinuxContainerConfig::default()
    });
    let made = cri.run(&id, &config, main).await?;
    let (cpus, small) = guest(cri, &made).await?;
    check!(
        cpus == 1 && (160..230).contains(&small),
        "{cpus} CPUs, {small} MiB"
    );

    // As a kubelet does it: first the pod grows, then its container.
    update_pod(cri, &id, limits(2, 160 + 256)).await?;
    let (cpus, large) = guest(cri, &made).await?;
    check!(
        cpus == 2 && (small + 240..=small + 264).contains(&large),
        "{cpus} CPUs, {large} MiB after {small}"
    );
    update_container(cri, &made, limits(2, 320)).await?;
    let status = cri.status(&made).await?;
    let told = status.resources.and_then(|r| r.linux).unwrap_or_default();
    check!(
        told.memory_limit_in_bytes == 320 << 20 && told.cpu_quota == 200_000,
        "{told:?}"
    );
    let inside = cri
        .shell(
            &made,
            "cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/cpu.max",
        )
        .await?;
    check!(inside == "335544320\n200000 100000\n", "{inside:?}");
    // More than there was before is really there.
    cri.shell(&made, "dd if=/dev/zero of=/dev/null bs=280M count=1")
        .await?;
    let (_, info) = cri.pod_status(&id).await?;
    check!(
        info.values()
            .any(|text| text.contains("\"memory_mib\":488")),
        "the size in the verbose status: {info:?}"
    );

    // And back: first the container, then the pod.
    update_container(cri, &made, limits(1, 96)).await?;
    check!(
        guest(cri, &made).await? == (2, large),
        "the pod's limit is as before"
    );
    update_pod(cri, &id, limits(1, 160)).await?;
    let mut progress = Progress::default();
    loop {
        let (cpus, mib) = guest(cri, &made).await?;
        check!(cpus == 1, "{cpus} CPUs");
        // The guest may keep a block or two that it cannot move.
        if mib < small + 32 {
            break;
        }
        let what = format!("the guest to give memory back, it has {mib} MiB");
        progress.pause(mib, &what).await?;
    }

    // A container alone (crictl update): the VM gets the room.
    update_container(cri, &made, limits(2, 300)).await?;
    let (cpus, mib) = guest(cri, &made).await?;
    check!(cpus == 2 && mib > small + 100, "{cpus} CPUs, {mib} MiB");

    let refused = update_pod(cri, &id, limits(1, -8)).await;
    check!(
        refused
            .as_ref()
            .is_err_and(|e| e.code() == Code::InvalidArgument),
        "{refused:?}"
    );
    let unknown = update_pod(cri, "none", limits(1, 160)).await;
    check!(
        unknown.as_ref().is_err_and(|e| e.code() == Code::NotFound),
        "{unknown:?}"
    );
    Ok(cri.remove_pod(&id).await?)
}
