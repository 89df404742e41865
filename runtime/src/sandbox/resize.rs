//! UpdatePodSandboxResources, and the size of a pod's VM when limits have changed: virtual CPUs are
//! brought online and offline, memory is plugged and unplugged. How large it is to be is `sizing`'s
//! to say; the VM boots without any of this.

use std::{sync::Arc, time::Duration};

use bulkhead_contract::vmm::Resize;
use bulkhead_proto::{
    agent::ResizeGuestRequest,
    cri::{LinuxContainerResources, LinuxPodSandboxConfig, UpdatePodSandboxResourcesRequest},
};

use super::{
    Pod, SandboxError, find,
    guest_setup::memory_policy,
    pids,
    placement::{Bound, cgroup_parent, pod_limits},
    sizing::{self, Sum},
};
use crate::{
    app::App,
    error::chain,
    records::{ContainerState, MachineKind, SandboxRecord, Shape},
    task::{blocking, detached},
};

/// A processor comes up in milliseconds; going offline it waits for what runs on it.
const CPU_DEADLINE: Duration = Duration::from_secs(60);
/// How long the guest gets to take memory, or to free some and give it back. Unplugging moves what
/// is in use elsewhere, and goes on by itself if it takes longer.
const MEMORY_DEADLINE_MS: u32 = 30_000;

/// What is about to change, beside what the records say.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Change<'a> {
    /// Nothing: the records are as they should be. Grows and shrinks.
    None,
    /// A container is about to have these limits. Only grows: what shrinks does so afterwards.
    Container {
        /// Its id.
        id: &'a str,
        /// Its limits.
        limits: &'a LinuxContainerResources,
    },
    /// A container with these limits is being made. Only grows.
    New(&'a LinuxContainerResources),
}

/// UpdatePodSandboxResources: the pod's limits as the kubelet sums them up. Goes on to its end even
/// if the caller is dropped.
pub async fn update(
    app: Arc<App>,
    request: UpdatePodSandboxResourcesRequest,
) -> Result<(), SandboxError> {
    let id = &request.pod_sandbox_id;
    let record = find(&app, id)?;
    let pod = app.pods.ready(&record.id)?;
    let mut linux = record.config.linux.clone().unwrap_or_default();
    let UpdatePodSandboxResourcesRequest {
        overhead,
        resources,
        ..
    } = request;
    linux.overhead = overhead.or(linux.overhead);
    linux.resources = resources.or(linux.resources);
    // Limits that cannot be are refused before anything is changed.
    if record.machine == MachineKind::Vm {
        target(&app, &record, &linux, Change::None).await?;
    }
    let cgroup = cgroup_parent(&app, &record.config)?;
    detached(async move {
        let change = move |record: &mut SandboxRecord| record.config.linux = Some(linux);
        app.records.sandboxes.update(&pod.id, change).await?;
        fit(&app, &pod, Change::None).await?;
        pids::carry(&app, &pod, &cgroup).await
    })
    .await
}

/// The processors beyond those a VM boots with, of a pod that is ready: nobody waits for them.
pub(super) fn bring_up_the_rest(app: &Arc<App>, pod: &Arc<Pod>) {
    let record = app.records.sandboxes.get(&pod.id);
    if !record.is_some_and(|record| sizing::may_have_more_vcpus(&record.shape)) {
        return;
    }
    let (app, pod) = (Arc::clone(app), Arc::clone(pod));
    tokio::spawn(async move {
        if let Err(error) = fit(&app, &pod, Change::None).await {
            tracing::warn!(
                pod = pod.id,
                error = chain(&error),
                "the pod keeps the processors it has booted with"
            );
        }
    });
}

/// Makes the pod's VM as large as its limits say.
pub(crate) async fn fit(app: &App, pod: &Pod, change: Change<'_>) -> Result<(), SandboxError> {
    let _turn = pod.resizing().await;
    let Some(record) = app.records.sandboxes.get(&pod.id) else {
        return Ok(());
    };
    let now = record.shape;
    let Some(limits) = now.limits else {
        return Ok(());
    };
    let linux = record.config.linux.clone().unwrap_or_default();
    let mut wanted = target(app, &record, &linux, change).await?;
    if limits.elastic {
        let demand = wanted.memory_mib.max(pod.demand_mib());
        wanted.memory_mib = sizing::grown(demand, limits);
    }
    if !matches!(change, Change::None) {
        wanted.vcpus = wanted.vcpus.max(now.vcpus);
        wanted.memory_mib = wanted.memory_mib.max(now.memory_mib);
    }
    if wanted == now {
        return Ok(());
    }
    bound(app, &record, wanted.memory_mib.max(now.memory_mib)).await?;
    // First the VM: what the guest is to bring up must be there.
    let size = Resize {
        // No VM has so many that they do not fit.
        vcpus: (wanted.vcpus > now.vcpus).then(|| u8::try_from(wanted.vcpus).unwrap_or(u8::MAX)),
        memory_mib: (wanted.memory_mib != now.memory_mib).then_some(wanted.memory_mib),
        wait_ms: None,
    };
    pod.machine.resize(size).await?;
    let request = ResizeGuestRequest {
        online_cpus: wanted.vcpus,
        // The memory device is plugged with the first resize that adds some.
        rescan: wanted.memory_mib > limits.boot_memory_mib,
        pids_limit: None,
        memory: memory_policy(&wanted),
    };
    let guest = pod
        .agent
        .call("resize the guest", CPU_DEADLINE, |mut agent| async move {
            agent.resize_guest(request).await
        });
    let guest = guest.await?;
    let wait = Resize {
        wait_ms: Some(match limits.elastic && wanted.memory_mib < now.memory_mib {
            // Nobody waits for what goes back.
            true => 0,
            false => MEMORY_DEADLINE_MS,
        }),
        ..Resize::default()
    };
    let memory_mib = pod.machine.resize(wait).await?;
    bound(app, &record, memory_mib).await?;
    let reached = Shape {
        vcpus: wanted.vcpus,
        memory_mib,
        ..wanted
    };
    app.records
        .sandboxes
        .update(&pod.id, move |record| record.shape = reached)
        .await?;
    tracing::info!(
        pod = %pod.id, vcpus = guest.online_cpus, memory_mib, wanted_mib = wanted.memory_mib,
        "the VM is resized"
    );
    if memory_mib < wanted.memory_mib {
        return Err(SandboxError::Resize {
            id: pod.id.clone(),
            wanted_mib: wanted.memory_mib,
            got_mib: memory_mib,
            seconds: MEMORY_DEADLINE_MS / 1_000,
        });
    }
    if memory_mib > wanted.memory_mib {
        tracing::warn!(
            pod = %pod.id, memory_mib, wanted_mib = wanted.memory_mib,
            "the guest has not given all memory back yet: it is in use; it goes on trying"
        );
    }
    Ok(())
}

async fn bound(app: &App, record: &SandboxRecord, guest_mib: u64) -> Result<(), SandboxError> {
    match Bound::of(app, record, guest_mib)? {
        Some(bound) => blocking(move || bound.set()).await,
        None => Ok(()),
    }
}

/// How large the VM is to be.
async fn target(
    app: &App,
    record: &SandboxRecord,
    linux: &LinuxPodSandboxConfig,
    change: Change<'_>,
) -> Result<Shape, SandboxError> {
    let parent = cgroup_parent(app, &record.config)?;
    let cgroup = pod_limits(app, &record.config, &parent).await?;
    let mut containers = app.records.containers_of(&record.id);
    containers.retain(|container| {
        matches!(
            container.status.state,
            ContainerState::Created | ContainerState::Running
        )
    });
    let resources = containers.iter().map(|container| match change {
        Change::Container { id, limits } if container.meta.id == id => limits,
        _ => &container.status.resources,
    });
    let new = match change {
        Change::New(limits) => Some(limits),
        Change::None | Change::Container { .. } => None,
    };
    let resources = resources.chain(new);
    let given = sizing::Given {
        sandbox: &app.config.sandbox,
        vmm: &app.config.vmm,
        linux: Some(linux),
        cgroup: &cgroup,
    };
    sizing::resized(given, Sum::of(resources)?, record.shape)
}
