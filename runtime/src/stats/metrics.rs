//! ListMetricDescriptors and ListPodSandboxMetrics: the table of names (`families`) filled with
//! what the pods say.

use bulkhead_proto::cri;

use super::{
    collect::{self, Detail, Sample},
    families::{self, CONTAINER, Family, POD, Value},
};
use crate::app::App;

/// Every metric this daemon gives, with its labels.
pub fn descriptors() -> Vec<cri::MetricDescriptor> {
    fn one<S>(family: &Family<S>) -> cri::MetricDescriptor {
        let labels = families::BASE_LABELS.iter().chain(family.labels);
        cri::MetricDescriptor {
            name: family.name.to_owned(),
            help: family.help.to_owned(),
            label_keys: labels.map(|label| (*label).to_owned()).collect(),
        }
    }
    let pods = POD.iter().map(one);
    pods.chain(CONTAINER.iter().map(one)).collect()
}

/// The metrics of all running pods.
pub async fn list(app: &App) -> Vec<cri::PodSandboxMetrics> {
    let samples = collect::from_all(app, None, Detail::Full).await;
    samples.iter().map(of_pod).collect()
}

fn of_pod(sample: &Sample) -> cri::PodSandboxMetrics {
    let pod = sample.record.config.metadata.clone().unwrap_or_default();
    let labels = |container: &str, id: &str, image: &str| {
        [id, container, image, container, &pod.namespace, &pod.name]
            .map(ToOwned::to_owned)
            .to_vec()
    };
    let id = &sample.record.id;
    let metrics = POD.iter().flat_map(|family| {
        let base = labels("", id, "");
        metrics_of(family, base, sample.at, (family.values)(sample))
    });
    let containers = sample.containers.iter().map(|one| {
        let (record, stats) = (&one.record, &one.stats);
        let name = record.meta.config.metadata.clone().unwrap_or_default().name;
        let image = record.meta.config.image.clone().unwrap_or_default().image;
        let base = labels(&name, &record.meta.id, &image);
        cri::ContainerMetrics {
            container_id: record.meta.id.clone(),
            metrics: CONTAINER
                .iter()
                .flat_map(|family| {
                    let values = (family.values)(one);
                    metrics_of(family, base.clone(), stats.time_unix_ns, values)
                })
                .collect(),
        }
    });
    cri::PodSandboxMetrics {
        pod_sandbox_id: id.clone(),
        container_metrics: containers.collect(),
        metrics: metrics.collect(),
    }
}

fn metrics_of<S>(
    family: &Family<S>,
    base: Vec<String>,
    timestamp: i64,
    values: Vec<Value>,
) -> Vec<cri::Metric> {
    let metric = |Value { labels, value }| cri::Metric {
        name: family.name.to_owned(),
        timestamp,
        metric_type: family.kind.into(),
        label_values: base.iter().cloned().chain(labels).collect(),
        value: Some(cri::UInt64Value { value }),
    };
    values.into_iter().map(metric).collect()
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, sync::Arc};

    use bulkhead_proto::agent;

    use super::*;
    use crate::{cgroup, records::testing};

    /// The names the validation suite of CRI asks for, less the one that cgroup v2 does not count.
    const WANTED: &str = include_str!("wanted.txt");

    fn sample() -> Sample {
        let psi = agent::Psi {
            full: Some(agent::PsiLine::default()),
            some: Some(agent::PsiLine {
                total_us: 3_000_000,
                ..Default::default()
            }),
        };
        let stats = agent::ContainerStats {
            container_id: "c".into(),
            cpu_usage_ns: 2_500_000_000,
            cpu_quota_us: 20_000,
            cpu_psi: Some(psi),
            memory_psi: Some(psi),
            io_psi: Some(psi),
            io: vec![agent::DeviceIo {
                device: "vda".into(),
                ..Default::default()
            }],
            huge_pages: vec![agent::HugePages::default()],
            filesystem: Some(agent::Filesystem::default()),
            descriptors: Some(agent::Descriptors::default()),
            ..Default::default()
        };
        let metadata = cri::ContainerMetadata {
            name: "main".into(),
            attempt: 0,
        };
        let mut container = testing::container("c", "p");
        Arc::make_mut(&mut container.meta).config.metadata = Some(metadata);
        container.status.started_at = 7_000_000_000;
        Sample {
            record: Arc::new(testing::sandbox("p")),
            at: 1,
            containers: vec![collect::OneContainer {
                record: Arc::new(container),
                stats,
            }],
            guest: agent::GuestStats {
                interfaces: vec![agent::InterfaceStats::default()],
                ..Default::default()
            },
            beside: 1,
            host: cgroup::Usage {
                cpu_ns: Some(1),
                memory: Some(cgroup::Memory::default()),
            },
            limit: None,
            vmm: Some(collect::VmmMemory {
                guest_size: 3,
                guest_resident: 2,
                own: 1,
            }),
        }
    }

    #[test]
    fn every_name_has_a_description_and_as_many_values_as_labels() {
        let descriptors = descriptors();
        let mut keys = BTreeMap::new();
        for descriptor in &descriptors {
            assert!(!descriptor.help.is_empty(), "{descriptor:?}");
            let old = keys.insert(descriptor.name.clone(), descriptor.label_keys.len());
            assert!(old.is_none(), "{} is there twice", descriptor.name);
        }
        let metrics = of_pod(&sample());
        let containers = metrics.container_metrics.iter().flat_map(|c| &c.metrics);
        let all: Vec<_> = metrics.metrics.iter().chain(containers).collect();
        for metric in &all {
            assert_eq!(
                keys.get(&metric.name),
                Some(&metric.label_values.len()),
                "{metric:?}"
            );
        }
        // The suite asks for a value of every name that is described.
        for name in keys.keys().map(String::as_str).chain(WANTED.lines()) {
            assert!(
                all.iter().any(|metric| metric.name == name),
                "{name} has no value"
            );
        }
        let one = |name: &str| all.iter().find(|m| m.name == name).unwrap();
        let cpu = one("container_cpu_usage_seconds_total");
        assert_eq!(cpu.value.unwrap().value, 2);
        assert_eq!(cpu.label_values[1], "main");
        let waiting = one("container_pressure_cpu_waiting_seconds_total");
        assert_eq!(waiting.value.unwrap().value, 3);
    }

    #[test]
    fn what_the_guest_does_not_tell_is_absent() {
        let mut sample = sample();
        sample.vmm = None;
        sample.host = cgroup::Usage::default();
        let stats = &mut sample.containers[0].stats;
        stats.descriptors = None;
        stats.cpu_psi = None;
        let metrics = of_pod(&sample);
        let containers = metrics.container_metrics.iter().flat_map(|c| &c.metrics);
        let all: Vec<_> = metrics.metrics.iter().chain(containers).collect();
        for name in [
            "container_sockets",
            "container_pressure_cpu_waiting_seconds_total",
            "bulkhead_pod_vmm_memory_bytes",
            "bulkhead_pod_memory_usage_bytes",
        ] {
            assert!(!all.iter().any(|metric| metric.name == name), "{name}");
        }
    }
}
