//! UpdatePodSandboxResources, and the size of a pod's VM when limits have changed: virtual CPUs are
//! brought online and offline, memory is plugged and unplugged. How large it is to be is `sizing`'s
//! to say, and where on the node it runs `cpus`'s; the VM boots without any of this.

use std::{sync::Arc, time::Duration};

use bulkhead_contract::vmm::Resize;
use bulkhead_proto::{
    agent::ResizeGuestRequest,
    cri::{LinuxContainerResources, LinuxPodSandboxConfig, UpdatePodSandboxResourcesRequest},
};

use super::{
    Pod, SandboxError,
    cpus::{self, Wishes},
    find,
    guest_setup::memory_policy,
    pids,
    placement::{Bound, cgroup_parent, pod_limits},
    sizing::{self, Sum},
};
use crate::{
    app::App,
    error::chain,
    records::{ContainerRecord, ContainerState, MachineKind, SandboxRecord, Shape},
    task::{Pauses, blocking, detached},
};

/// A processor comes up in milliseconds; going offline it waits for what runs on it.
const CPU_DEADLINE: Duration = Duration::from_secs(60);
/// How long the guest gets to take memory, or to free some and give it back. Unplugging moves what
/// is in use elsewhere, and goes on by itself if it takes longer.
const MEMORY_DEADLINE_MS: u32 = 30_000;
/// Between two tries to take processors away that no container has any more.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

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
    /// Containers have come or gone. Memory stays as it is.
    Containers,
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
    // Limits that cannot be are refused before anything is changed.
    if let Some(resources) = resources {
        // A set of its own takes the place of the one that there is, and is not bound by it.
        let mut free = SandboxRecord::clone(&record);
        if let Some(linux) = &mut free.config.linux {
            linux.resources = None;
        }
        linux.resources = Some(cpus::within(&app, &free, &resources).await?);
    }
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

/// Sees to the pod's place on the node when containers have come or gone, until the pod is gone; for the
/// first time at once: what an earlier daemon has done may be lost.
pub(super) fn follow_containers(app: &Arc<App>, pod: &Arc<Pod>) {
    if pod.machine.kind() != MachineKind::Vm {
        return;
    }
    pod.containers_changed();
    let (app, pod) = (Arc::clone(app), Arc::clone(pod));
    tokio::spawn(async move {
        let mut over = pod.over();
        loop {
            tokio::select! {
                () = pod.containers_change() => {}
                _over = over.wait_for(|over| *over) => return,
            }
            let mut pauses = Pauses::new(FIRST_PAUSE, LONGEST_PAUSE);
            while let Err(error) = fit(&app, &pod, Change::Containers).await {
                tracing::warn!(
                    pod = pod.id,
                    error = chain(&error),
                    "the pod keeps the processors of a container that is gone, for now"
                );
                tokio::select! {
                    () = pauses.pause() => {}
                    _over = over.wait_for(|over| *over) => return,
                }
            }
        }
    });
}

/// Makes the pod's VM as large as its limits say, and has it run where its containers may.
pub(crate) async fn fit(app: &App, pod: &Pod, change: Change<'_>) -> Result<(), SandboxError> {
    // Most pods have no sets: making their containers waits for no resize.
    if matches!(change, Change::Containers) && !is_placed(app, &pod.id) {
        return Ok(());
    }
    let mut applied = pod.resizing().await;
    let Some(record) = app.records.sandboxes.get(&pod.id) else {
        return Ok(());
    };
    if record.machine != MachineKind::Vm {
        return Ok(());
    }
    let linux = record.config.linux.clone().unwrap_or_default();
    let containers = alive(app, &record.id);
    let with_limits = || with_limits(&containers, change);
    let wishes = cpus::wishes(app, &record, &linux, with_limits()).await?;
    let vcpus = resized(app, pod, &record, change, &wishes).await?;
    cpus::apply(app, pod, &wishes, vcpus, &mut applied).await
}

/// Whether the pod is in a place of its own on the node, or is to be.
fn is_placed(app: &App, id: &str) -> bool {
    let Some(record) = app.records.sandboxes.get(id) else {
        return false;
    };
    let linux = record.config.linux.as_ref();
    let own = linux.and_then(|linux| linux.resources.as_ref());
    let containers = alive(app, id);
    let mut limits = containers.iter().map(|c| &c.status.resources).chain(own);
    record.placing || record.placement.is_some() || limits.any(cpus::has_set)
}

/// Resizes the VM. Gives how many vCPUs the pod's limits let it use, and how many are online.
async fn resized(
    app: &App,
    pod: &Pod,
    record: &SandboxRecord,
    change: Change<'_>,
    wishes: &Wishes,
) -> Result<(u32, u32), SandboxError> {
    let now = record.shape;
    let Some(limits) = now.limits else {
        return Ok((now.vcpus, now.vcpus));
    };
    let linux = record.config.linux.clone().unwrap_or_default();
    let mut wanted = target(app, record, &linux, change).await?;
    if limits.elastic {
        let demand = wanted.memory_mib.max(pod.demand_mib());
        wanted.memory_mib = sizing::grown(demand, limits);
    }
    let by_limits = wanted.vcpus;
    match wishes {
        Wishes::Sets(sets) => {
            wanted.vcpus = sets.vcpus(by_limits).clamp(1, limits.max_vcpus.max(1))
        }
        // It was as many as its containers had use for.
        Wishes::Keep if record.placement.is_some() => wanted.vcpus = now.vcpus,
        Wishes::Keep | Wishes::Free => {}
    }
    match change {
        Change::None => {}
        Change::Containers => {
            wanted.memory_mib = now.memory_mib;
            wanted.containers_memory = now.containers_memory;
        }
        Change::Container { .. } | Change::New(_) => {
            wanted.vcpus = wanted.vcpus.max(now.vcpus);
            wanted.memory_mib = wanted.memory_mib.max(now.memory_mib);
        }
    }
    if wanted != now {
        reach(app, pod, record, &wanted).await?;
    }
    Ok((by_limits, wanted.vcpus))
}

/// Has the VM and its guest become so large.
async fn reach(
    app: &App,
    pod: &Pod,
    record: &SandboxRecord,
    wanted: &Shape,
) -> Result<(), SandboxError> {
    let (now, wanted) = (record.shape, *wanted);
    let Some(limits) = now.limits else {
        return Ok(());
    };
    bound(app, record, wanted.memory_mib.max(now.memory_mib)).await?;
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
    bound(app, record, memory_mib).await?;
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
    let containers = alive(app, &record.id);
    let resources = with_limits(&containers, change).map(|(_, limits)| limits);
    let new = match change {
        Change::New(limits) => Some(limits),
        Change::None | Change::Container { .. } | Change::Containers => None,
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

/// The pod's containers that have not ended.
fn alive(app: &App, id: &str) -> Vec<Arc<ContainerRecord>> {
    let mut containers = app.records.containers_of(id);
    containers.retain(|container| {
        matches!(
            container.status.state,
            ContainerState::Created | ContainerState::Running
        )
    });
    containers
}

/// Each with its limits as they are about to be.
fn with_limits<'a>(
    containers: &'a [Arc<ContainerRecord>],
    change: Change<'a>,
) -> impl Iterator<Item = (&'a str, &'a LinuxContainerResources)> {
    containers.iter().map(move |container| {
        let limits = match change {
            Change::Container { id, limits } if container.meta.id == id => limits,
            _ => &container.status.resources,
        };
        (container.meta.id.as_str(), limits)
    })
}
