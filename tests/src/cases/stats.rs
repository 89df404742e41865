//! Statistics and metrics: what a kubelet and an operator see of a pod, and that the two sides of a
//! virtual machine are told apart.

use std::collections::BTreeMap;

use bulkhead_proto::cri::{
    ContainerFilter, ImageFsInfoRequest, LinuxContainerConfig, LinuxContainerResources,
    ListContainersRequest, ListImagesRequest, ListMetricDescriptorsRequest,
    ListPodSandboxMetricsRequest, ListPodSandboxStatsRequest, PodSandboxStatsFilter,
    PodSandboxStatsRequest, StreamContainerStatsRequest, StreamContainersRequest,
    StreamImagesRequest, StreamPodSandboxMetricsRequest, StreamPodSandboxStatsRequest,
    StreamPodSandboxesRequest, UInt64Value,
};
use tonic::{Code, Streaming};

use super::{BUSYBOX, crictl::Crictl};
use crate::{
    Failure, Outcome, check,
    cri::{pod, script},
    suite::{Context, Test},
    test,
};

pub(super) fn tests() -> Vec<Test> {
    vec![test!("stats", a_pods_figures_are_true_everywhere_they_are_told).with_crictl()]
}

const MIB: u64 = 1 << 20;

fn number(value: Option<UInt64Value>) -> u64 {
    value.map_or(0, |value| value.value)
}

async fn all<T>(mut stream: Streaming<T>) -> Result<Vec<T>, Failure> {
    let mut messages = Vec::new();
    while let Some(message) = stream.message().await? {
        messages.push(message);
    }
    Ok(messages)
}

async fn a_pods_figures_are_true_everywhere_they_are_told(context: &mut Context) -> Outcome {
    let cri = &context.cri;
    cri.pull(BUSYBOX).await?;
    let mut config = pod("figures");
    config.labels.insert("app".to_owned(), "figures".to_owned());
    let id = cri.run_pod(config.clone()).await?;
    // 8 MiB in the writable layer, 20 MiB held in memory, three processes, a CPU at work.
    let work = "dd if=/dev/zero of=/data bs=1M count=8 && sync && \
                dd if=/dev/zero of=/dev/shm/held bs=1M count=20 && \
                sleep 1000 & sleep 1000 & wait";
    let mut busy = script("busy", BUSYBOX, work);
    busy.linux = Some(LinuxContainerConfig {
        resources: Some(LinuxContainerResources {
            cpu_period: 100_000,
            cpu_quota: 50_000,
            memory_limit_in_bytes: 96 << 20,
            ..LinuxContainerResources::default()
        }),
        ..LinuxContainerConfig::default()
    });
    let made = cri.run(&id, &config, busy).await?;
    cri.shell(
        &made,
        "for i in $(seq 100); do [ -e /dev/shm/held ] && [ $(wc -c < /dev/shm/held) = 20971520 ] \
         && exit; usleep 100000; done; exit 1",
    )
    .await?;

    of_the_pod(context, &id, &made).await?;
    metrics(context, &id, &made).await?;
    streams(context, &id).await?;
    by_hand(context, &id, &made)?;

    let mut runtime = cri.runtime.clone();
    let request = |pod_sandbox_id: &str| PodSandboxStatsRequest {
        pod_sandbox_id: pod_sandbox_id.to_owned(),
    };
    let gone = runtime.pod_sandbox_stats(request("none")).await;
    check!(
        gone.as_ref().is_err_and(|e| e.code() == Code::NotFound),
        "{gone:?}"
    );
    cri.stop_pod(&id).await?;
    let stopped = runtime.pod_sandbox_stats(request(&id)).await;
    check!(
        stopped
            .as_ref()
            .is_err_and(|e| e.code() == Code::FailedPrecondition),
        "{stopped:?}"
    );
    let fs = cri
        .images
        .clone()
        .image_fs_info(ImageFsInfoRequest {})
        .await?
        .into_inner();
    check!(
        fs.image_filesystems.len() == 1
            && fs.container_filesystems.len() == 1
            && number(fs.image_filesystems[0].used_bytes) > 0,
        "{fs:?}"
    );
    Ok(cri.remove_pod(&id).await?)
}

async fn of_the_pod(context: &Context, id: &str, container: &str) -> Outcome {
    let mut runtime = context.cri.runtime.clone();
    let filter = |label: &str| PodSandboxStatsFilter {
        label_selector: [("app".to_owned(), label.to_owned())].into(),
        ..PodSandboxStatsFilter::default()
    };
    let list = async |filter| {
        let request = ListPodSandboxStatsRequest {
            filter: Some(filter),
        };
        let answer = runtime.clone().list_pod_sandbox_stats(request).await?;
        Ok::<_, Failure>(answer.into_inner().stats)
    };
    check!(list(filter("other")).await?.is_empty(), "the filter");
    let listed = list(filter("figures")).await?;
    check!(listed.len() == 1, "{listed:?}");
    let request = PodSandboxStatsRequest {
        pod_sandbox_id: id.to_owned(),
    };
    let one = runtime.pod_sandbox_stats(request).await?.into_inner();
    let one = one.stats.unwrap_or_default();
    check!(one.attributes == listed[0].attributes, "{one:?}");
    let pod = one.linux.unwrap_or_default();
    let (cpu, memory) = (pod.cpu.unwrap_or_default(), pod.memory.unwrap_or_default());
    check!(pod.containers.len() == 1, "{:?}", pod.containers);
    let inner = &pod.containers[0];
    check!(
        inner.attributes.as_ref().is_some_and(|a| a.id == container),
        "{inner:?}"
    );
    let (in_cpu, in_memory) = (
        inner.cpu.unwrap_or_default(),
        inner.memory.unwrap_or_default(),
    );
    // The pod's side is the host's: a whole machine, beside which the container is small.
    let (outer, inner_used) = (number(memory.usage_bytes), number(in_memory.usage_bytes));
    check!(
        inner_used > 28 * MIB && inner_used < 96 * MIB,
        "{inner_used} in the container"
    );
    check!(
        outer > inner_used + 20 * MIB && outer < 700 * MIB,
        "{outer} on the host, {inner_used} in the container"
    );
    check!(number(memory.working_set_bytes) <= outer, "{memory:?}");
    check!(
        number(in_memory.available_bytes) == 96 * MIB - number(in_memory.working_set_bytes),
        "{in_memory:?}"
    );
    check!(
        number(cpu.usage_core_nano_seconds) > number(in_cpu.usage_core_nano_seconds)
            && number(in_cpu.usage_core_nano_seconds) > 0,
        "{cpu:?} {in_cpu:?}"
    );
    check!(
        cpu.psi.is_some() && in_cpu.psi.is_some(),
        "{cpu:?} {in_cpu:?}"
    );
    check!(pod.io.is_some() && inner.io.is_some(), "io");
    let written = inner.writable_layer.clone().unwrap_or_default();
    check!(
        (8 * MIB..12 * MIB).contains(&number(written.used_bytes)),
        "{written:?}"
    );
    let processes = number(pod.process.unwrap_or_default().process_count);
    check!((3..6).contains(&processes), "{processes} processes");
    let network = pod.network.unwrap_or_default();
    check!(
        network
            .default_interface
            .as_ref()
            .is_some_and(|i| i.name == "eth0"),
        "{network:?}"
    );
    Ok(())
}

async fn metrics(context: &Context, id: &str, container: &str) -> Outcome {
    let mut runtime = context.cri.runtime.clone();
    let descriptors = runtime
        .list_metric_descriptors(ListMetricDescriptorsRequest {})
        .await?
        .into_inner()
        .descriptors;
    let labels: BTreeMap<_, _> = descriptors
        .iter()
        .map(|descriptor| (descriptor.name.as_str(), descriptor.label_keys.len()))
        .collect();
    check!(labels.len() == descriptors.len(), "names are there twice");
    let pods = runtime
        .list_pod_sandbox_metrics(ListPodSandboxMetricsRequest {})
        .await?
        .into_inner()
        .pod_metrics;
    let pod = pods.iter().find(|pod| pod.pod_sandbox_id == id);
    let pod = pod.ok_or("no metrics of the pod")?;
    let inner = pod.container_metrics.iter();
    let inner = inner
        .filter(|metrics| metrics.container_id == container)
        .flat_map(|metrics| &metrics.metrics);
    let mut values: BTreeMap<&str, u64> = BTreeMap::new();
    for metric in pod.metrics.iter().chain(inner) {
        check!(
            labels.get(metric.name.as_str()) == Some(&metric.label_values.len()),
            "labels: {metric:?}"
        );
        *values.entry(&metric.name).or_default() += number(metric.value);
    }
    for name in labels.keys() {
        check!(values.contains_key(name), "{name} has no value");
    }
    let between = |name: &str, least: u64, most: u64| -> Outcome {
        let value = values.get(name).copied().unwrap_or_default();
        check!(
            (least..=most).contains(&value),
            "{name} is {value}, not {least} to {most}"
        );
        Ok(())
    };
    between("container_spec_cpu_quota", 50_000, 50_000)?;
    between("container_spec_memory_limit_bytes", 96 * MIB, 96 * MIB)?;
    between("container_processes", 3, 5)?;
    between("container_threads", 3, 5)?;
    between("container_file_descriptors", 6, 100)?;
    between("container_memory_max_usage_bytes", 28 * MIB, 96 * MIB)?;
    between("container_fs_usage_bytes", 8 * MIB, 12 * MIB)?;
    between("container_fs_writes_bytes_total", 8 * MIB, 64 * MIB)?;
    between("container_fs_limit_bytes", 64 * MIB, u64::MAX)?;
    between("container_start_time_seconds", 1_600_000_000, 1 << 40)?;
    between("container_ulimits_soft", 1_024, 1 << 40)?;
    // What the VM costs: the VMM by itself is small, the guest is not.
    between("bulkhead_pod_vmm_memory_bytes", MIB, 32 * MIB)?;
    between(
        "bulkhead_pod_guest_memory_resident_bytes",
        40 * MIB,
        512 * MIB,
    )?;
    between("bulkhead_pod_guest_memory_bytes", 512 * MIB, 512 * MIB)?;
    between("bulkhead_pod_memory_usage_bytes", 40 * MIB, 700 * MIB)
}

/// The streams give what the lists give.
async fn streams(context: &Context, id: &str) -> Outcome {
    let (mut runtime, mut images) = (context.cri.runtime.clone(), context.cri.images.clone());
    let answer = runtime.stream_pod_sandboxes(StreamPodSandboxesRequest::default());
    let pods = all(answer.await?.into_inner()).await?;
    let pods = pods.iter().flat_map(|message| &message.pod_sandboxes);
    check!(
        pods.filter(|pod| pod.id == id).count() == 1,
        "StreamPodSandboxes"
    );

    let filter = Some(ContainerFilter {
        pod_sandbox_id: id.to_owned(),
        ..ContainerFilter::default()
    });
    let request = StreamContainersRequest {
        filter: filter.clone(),
    };
    let answer = runtime.stream_containers(request).await?;
    let streamed = all(answer.into_inner()).await?;
    let streamed: Vec<_> = streamed.into_iter().flat_map(|m| m.containers).collect();
    let listed = runtime
        .list_containers(ListContainersRequest { filter })
        .await?
        .into_inner();
    check!(
        streamed.len() == 1 && streamed == listed.containers,
        "{streamed:?} {listed:?}"
    );
    let answer = runtime.stream_container_stats(StreamContainerStatsRequest::default());
    let stats = all(answer.await?.into_inner()).await?;
    check!(!stats.is_empty(), "StreamContainerStats");
    let answer = runtime.stream_pod_sandbox_stats(StreamPodSandboxStatsRequest::default());
    let stats = all(answer.await?.into_inner()).await?;
    check!(!stats.is_empty(), "StreamPodSandboxStats");
    let answer = runtime.stream_pod_sandbox_metrics(StreamPodSandboxMetricsRequest::default());
    let metrics = all(answer.await?.into_inner()).await?;
    check!(!metrics.is_empty(), "StreamPodSandboxMetrics");

    let answer = images.stream_images(StreamImagesRequest::default());
    let streamed = all(answer.await?.into_inner()).await?;
    let streamed: Vec<_> = streamed.into_iter().flat_map(|m| m.images).collect();
    let listed = images.list_images(ListImagesRequest::default()).await?;
    check!(streamed == listed.into_inner().images, "StreamImages");
    Ok(())
}

/// What an operator types.
fn by_hand(context: &Context, id: &str, container: &str) -> Outcome {
    let crictl = match Crictl::new(context) {
        Ok(crictl) => crictl,
        // The rest has been seen; without the tool there is nothing to add.
        Err(_) => return Ok(()),
    };
    let stats = crictl.call(&["stats", container])?;
    check!(stats.contains("busy"), "stats: {stats}");
    let stats = crictl.call(&["statsp", "--id", id])?;
    check!(stats.contains("figures"), "statsp: {stats}");
    let metrics = crictl.call(&["metricsp"])?;
    check!(
        metrics.contains("bulkhead_pod_vmm_memory_bytes"),
        "metricsp: {metrics}"
    );
    let names = crictl.call(&["metricdescs"])?;
    check!(
        names.contains("container_cpu_usage_seconds_total"),
        "metricdescs: {names}"
    );
    Ok(())
}
