//! PodSandboxStats and ListPodSandboxStats.
//!
//! CPU and memory of the pod are the host's: the pod's cgroup with the VM and everything it costs,
//! as the kubelet's eviction must see it. The containers' are the guest's. The difference is what
//! the VM costs: CRI has no field for it, so it is left to be subtracted (and named in `metrics`).

use bulkhead_proto::{agent, cri};

use super::collect::{self, Detail, Sample};
use crate::{app::App, container, records::SandboxRecord, sandbox::SandboxError};

/// One pod.
pub async fn one(app: &App, id: &str) -> Result<cri::PodSandboxStats, SandboxError> {
    let sample = collect::from_pod(app, id, Detail::Plain).await?;
    Ok(convert(app, &sample))
}

/// All running pods a filter lets through.
pub async fn list(
    app: &App,
    filter: Option<&cri::PodSandboxStatsFilter>,
) -> Vec<cri::PodSandboxStats> {
    let samples = collect::from_all(app, filter, Detail::Plain).await;
    samples.iter().map(|sample| convert(app, sample)).collect()
}

fn value(value: u64) -> Option<cri::UInt64Value> {
    Some(cri::UInt64Value { value })
}

fn convert(app: &App, sample: &Sample) -> cri::PodSandboxStats {
    let containers = sample.containers.iter();
    let containers = containers.map(|one| container::to_cri(app, &one.record, &one.stats));
    cri::PodSandboxStats {
        attributes: Some(attributes(&sample.record)),
        linux: Some(cri::LinuxPodSandboxStats {
            cpu: sample.host.cpu_ns.map(|used| cpu(app, sample, used)),
            memory: memory(sample),
            network: Some(network(sample)),
            process: Some(cri::ProcessUsage {
                timestamp: sample.guest.time_unix_ns,
                process_count: value(
                    sample
                        .containers
                        .iter()
                        .map(|one| one.stats.processes)
                        .sum(),
                ),
            }),
            containers: containers.collect(),
            io: sample.guest.io_psi.as_ref().map(|psi| cri::IoUsage {
                timestamp: sample.guest.time_unix_ns,
                psi: Some(container::pressure(psi)),
            }),
        }),
        windows: None,
    }
}

fn attributes(record: &SandboxRecord) -> cri::PodSandboxAttributes {
    cri::PodSandboxAttributes {
        id: record.id.clone(),
        metadata: record.config.metadata.clone(),
        labels: record.config.labels.clone(),
        annotations: record.config.annotations.clone(),
    }
}

fn cpu(app: &App, sample: &Sample, used: u64) -> cri::CpuUsage {
    let rate = app.containers.rate(&sample.record.id, sample.at, used);
    cri::CpuUsage {
        timestamp: sample.at,
        usage_core_nano_seconds: value(used),
        usage_nano_cores: rate.map(|value| cri::UInt64Value { value }),
        psi: sample.guest.cpu_psi.as_ref().map(container::pressure),
    }
}

fn memory(sample: &Sample) -> Option<cri::MemoryUsage> {
    let psi = sample.guest.memory_psi.as_ref().map(container::pressure);
    let of = |usage: u64, working_set: u64, rss: u64| cri::MemoryUsage {
        timestamp: sample.at,
        working_set_bytes: value(working_set),
        available_bytes: sample.limit.map(|limit| cri::UInt64Value {
            value: limit.saturating_sub(working_set),
        }),
        usage_bytes: value(usage),
        rss_bytes: value(rss),
        page_faults: None,
        major_page_faults: None,
        psi,
    };
    if let Some(memory) = sample.host.memory {
        return Some(cri::MemoryUsage {
            page_faults: value(memory.page_faults),
            major_page_faults: value(memory.major_page_faults),
            ..of(memory.usage, memory.working_set, memory.rss)
        });
    }
    // The host's cgroup does not count memory; the VMM does.
    let vmm = sample.vmm?;
    let all = vmm.guest_resident.saturating_add(vmm.own);
    Some(of(all, all, all))
}

fn network(sample: &Sample) -> cri::NetworkUsage {
    let mut interfaces: Vec<_> = sample.guest.interfaces.iter().map(interface).collect();
    // The pod's first interface, as CNI gave it; the others are what further networks added.
    let first = sample.record.network.as_ref();
    let first = first.and_then(|network| network.interfaces.first());
    let default = first.and_then(|first| interfaces.iter().position(|i| i.name == first.name));
    let default_interface = default.map(|index| interfaces.remove(index));
    cri::NetworkUsage {
        timestamp: sample.guest.time_unix_ns,
        default_interface,
        interfaces,
    }
}

fn interface(stats: &agent::InterfaceStats) -> cri::NetworkInterfaceUsage {
    cri::NetworkInterfaceUsage {
        name: stats.name.clone(),
        rx_bytes: value(stats.rx_bytes),
        rx_errors: value(stats.rx_errors),
        tx_bytes: value(stats.tx_bytes),
        tx_errors: value(stats.tx_errors),
    }
}
