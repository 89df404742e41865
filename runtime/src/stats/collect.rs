//! Collects both sides of a pod's figures: the guest's from its agent, the host's from the pod's
//! cgroup and its VMM. Of several pods at once, each with a deadline.

use std::{collections::HashMap, sync::Arc, time::Duration};

use bulkhead_proto::{agent, agent::StatsRequest, cri};
use futures::future::join_all;

use crate::{
    app::App,
    cgroup::{self, PodLimits, Usage},
    clock::now_ns,
    error::chain,
    records::{ContainerRecord, MachineKind, SandboxRecord, SandboxState, Shape},
    sandbox::{self, Pod, SandboxError},
};

/// A guest that takes longer is left out of a list.
const DEADLINE: Duration = Duration::from_secs(2);
/// One pod alone may take longer: there is nothing else to answer.
const DEADLINE_ONE: Duration = Duration::from_secs(10);

/// How much is collected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Detail {
    /// What PodSandboxStats has.
    Plain,
    /// Also what the guest and the VMM have to walk memory for.
    Full,
}

/// One pod's figures.
#[derive(Debug)]
pub(super) struct Sample {
    /// The pod.
    pub(super) record: Arc<SandboxRecord>,
    /// When the host's side was read, nanoseconds since the epoch.
    pub(super) at: i64,
    /// The containers the guest reported, with their records: only the pod's own.
    pub(super) containers: Vec<OneContainer>,
    /// The whole guest.
    pub(super) guest: agent::GuestStats,
    /// The pod's cgroup on the host.
    pub(super) host: Usage,
    /// The tightest memory limit on the pod's cgroups.
    pub(super) limit: Option<u64>,
    /// What the VM may take beyond the pod's limit, if it is charged beside the pod; bytes.
    pub(super) beside: u64,
    /// The VMM's own count.
    pub(super) vmm: Option<VmmMemory>,
}

/// One container of it.
#[derive(Debug)]
pub(super) struct OneContainer {
    pub(super) record: Arc<ContainerRecord>,
    pub(super) stats: agent::ContainerStats,
}

/// What a VMM says of its memory, in bytes.
#[derive(Debug, Clone, Copy)]
pub(super) struct VmmMemory {
    /// The size of the guest.
    pub(super) guest_size: u64,
    /// How much of that is there.
    pub(super) guest_resident: u64,
    /// Everything else.
    pub(super) own: u64,
}

impl VmmMemory {
    fn of(metrics: &serde_json::Value) -> Option<Self> {
        let number = |key: &str| metrics.get(key)?.as_u64();
        Some(Self {
            guest_size: number("guest_memory_bytes")?,
            guest_resident: number("guest_resident_bytes")?,
            own: number("vmm_rss_bytes")?,
        })
    }
}

/// One pod, which must run.
pub(super) async fn from_pod(app: &App, id: &str, detail: Detail) -> Result<Sample, SandboxError> {
    let record = sandbox::find(app, id)?;
    let pod = app.pods.ready(&record.id)?;
    collect(app, &pod, record, DEADLINE_ONE, detail).await
}

/// All running pods a filter lets through, in the order of their ids. Those that do not answer in
/// time are left out, with a word in the log.
pub(super) async fn from_all(
    app: &App,
    filter: Option<&cri::PodSandboxStatsFilter>,
    detail: Detail,
) -> Vec<Sample> {
    let mut pods = app.pods.all();
    pods.sort_by(|a, b| a.id.cmp(&b.id));
    let chosen = pods.into_iter().filter_map(|pod| {
        let record = app.records.sandboxes.get(&pod.id)?;
        let included = record.state == SandboxState::Ready
            && filter.is_none_or(|filter| lets_through(filter, &record));
        included.then_some((pod, record))
    });
    let samples = join_all(chosen.map(|(pod, record)| async move {
        let sample = collect(app, &pod, record, DEADLINE, detail).await;
        sample
            .inspect_err(|error| {
                tracing::warn!(
                    pod = pod.id,
                    error = chain(error),
                    "no statistics from this pod"
                );
            })
            .ok()
    }));
    samples.await.into_iter().flatten().collect()
}

fn lets_through(filter: &cri::PodSandboxStatsFilter, record: &SandboxRecord) -> bool {
    let labels = &record.config.labels;
    record.id.starts_with(&filter.id)
        && filter
            .label_selector
            .iter()
            .all(|(key, value)| labels.get(key) == Some(value))
}

async fn collect(
    app: &App,
    pod: &Pod,
    record: Arc<SandboxRecord>,
    deadline: Duration,
    detail: Detail,
) -> Result<Sample, SandboxError> {
    let request = StatsRequest {
        container_ids: Vec::new(),
        detailed: detail == Detail::Full,
    };
    let guest = pod.agent.call(
        "read the pod's statistics",
        deadline,
        |mut agent| async move { agent.stats(request).await },
    );
    let (guest, (host, limits), vmm) = tokio::join!(guest, host(app, &record), async {
        // It walks its own memory for that: only on request, or where there is no cgroup's count.
        match detail {
            Detail::Full => vmm(pod, deadline).await,
            Detail::Plain => None,
        }
    });
    let guest = guest?;
    let at = now_ns();
    let vmm = match vmm {
        None if host.memory.is_none() => self::vmm(pod, deadline).await,
        known => known,
    };
    // A guest speaks for its own containers, and once for each.
    let mut own: HashMap<String, Arc<ContainerRecord>> = app
        .records
        .containers_of(&record.id)
        .into_iter()
        .map(|container| (container.meta.id.clone(), container))
        .collect();
    let containers = guest.containers.into_iter();
    let containers = containers.filter_map(|stats| {
        let record = own.remove(&stats.container_id)?;
        Some(OneContainer { record, stats })
    });
    let mut figures = guest.guest.unwrap_or_default();
    // The pod's are those it was given: a kernel has more by itself (dummy0).
    let given = record.network.as_ref().map(|network| &network.interfaces);
    if let Some(given) = given.filter(|given| !given.is_empty()) {
        figures
            .interfaces
            .retain(|interface| given.iter().any(|known| known.name == interface.name));
    }
    // A pod on the host has no machine of its own to cost anything: its memory is the host's.
    let vmm = match record.machine {
        MachineKind::Vm => vmm,
        MachineKind::Host => host.memory.map(|memory| VmmMemory {
            guest_size: figures.memory_total_bytes,
            guest_resident: memory.usage,
            own: 0,
        }),
    };
    Ok(Sample {
        at,
        containers: containers.collect(),
        guest: figures,
        host,
        limit: limits.tightest_memory(),
        beside: beside(&record.shape, &limits).unwrap_or(0),
        vmm,
        record,
    })
}

fn beside(shape: &Shape, limits: &PodLimits) -> Option<u64> {
    shape.limits.filter(|limits| limits.beside)?;
    limits.memory?.checked_sub(shape.containers_memory?)
}

/// The pod's cgroup and the limits on it.
async fn host(app: &App, record: &SandboxRecord) -> (Usage, PodLimits) {
    let Some(leaf) = record.cgroup().map(ToOwned::to_owned) else {
        return (Usage::default(), PodLimits::default());
    };
    let root = app.config.cgroup.root.clone();
    let read = tokio::task::spawn_blocking(move || {
        let limits = cgroup::pod_limits(&root, &leaf).unwrap_or_default();
        (cgroup::usage(&leaf), limits)
    });
    read.await.unwrap_or_default()
}

async fn vmm(pod: &Pod, deadline: Duration) -> Option<VmmMemory> {
    let asked = tokio::time::timeout(deadline, pod.machine.metrics()).await;
    VmmMemory::of(&asked.ok()?.ok()??)
}
