//! How much memory a pod may use, as the kubelet says it: by the limits of the pod's cgroup.

use std::fs;

use bulkhead_proto::cri::{ContainerConfig, LinuxContainerConfig, LinuxContainerResources};

use super::BUSYBOX;
use crate::{
    Failure, Outcome, check,
    cri::{Cri, script},
    pod_cgroup::{PodCgroup, pod_in},
    suite::{Context, Test},
    test,
};

pub(super) fn tests() -> Vec<Test> {
    vec![
        test!("sizes", pods_with_the_smallest_memory_limits_run),
        test!("sizes", a_pod_without_a_limit_gets_memory_as_it_needs_it),
    ]
}

fn limited(name: &str, text: &str, bytes: i64) -> ContainerConfig {
    let mut config = script(name, BUSYBOX, text);
    config.linux = Some(LinuxContainerConfig {
        resources: Some(LinuxContainerResources {
            memory_limit_in_bytes: bytes,
            ..LinuxContainerResources::default()
        }),
        ..LinuxContainerConfig::default()
    });
    config
}

async fn guest_mib(cri: &Cri, container: &str) -> Result<u64, Failure> {
    let text = cri
        .shell(
            container,
            "awk '/MemTotal/ {print int($2 / 1024)}' /proc/meminfo",
        )
        .await?;
    text.trim()
        .parse()
        .map_err(|_| format!("MemTotal is {text:?}").into())
}

async fn pods_with_the_smallest_memory_limits_run(context: &mut Context) -> Outcome {
    let cri = &context.cri;
    cri.pull(BUSYBOX).await?;
    for mib in [16, 64] {
        let bytes = mib << 20;
        let cgroup = PodCgroup::make("/kubepods/burstable/poduid-small")?;
        cgroup.set("memory.max", bytes)?;
        let config = pod_in("small", cgroup.parent(), bytes, 0);
        let id = cri.run_pod(config.clone()).await?;
        let main = cri
            .run(&id, &config, limited("main", "sleep 1000", bytes))
            .await?;
        // Two thirds of it are there to be used.
        let script = format!(
            "cat /sys/fs/cgroup/memory.max; dd if=/dev/zero of=/dev/null bs={}K count=1",
            mib * 1024 * 2 / 3
        );
        let inside = cri.shell(&main, &script).await?;
        check!(inside.trim() == bytes.to_string(), "{mib} MiB: {inside:?}");
        // The VM is charged beside the pod, and bounded.
        let beside = cgroup.above().join(format!("bulkhead-{id}"));
        let max: i64 = fs::read_to_string(beside.join("memory.max"))?
            .trim()
            .parse()?;
        check!(
            (bytes + (48 << 20)..bytes + (128 << 20)).contains(&max),
            "{mib} MiB: the VM may take {max}"
        );
        // More than the limit ends in the container, not in the VM.
        let hungry = format!("dd if=/dev/zero of=/dev/null bs={}M count=1", mib + 8);
        let hungry = cri
            .run(&id, &config, limited("hungry", &hungry, bytes))
            .await?;
        let status = cri.exited(&hungry).await?;
        check!(status.reason == "OOMKilled", "{mib} MiB: {status:?}");
        let events = fs::read_to_string(beside.join("memory.events"))?;
        check!(events.contains("oom_kill 0"), "{mib} MiB: {events}");
        cri.shell(&main, "true").await?;
        cri.remove_pod(&id).await?;
        check!(!beside.exists(), "{} is left", beside.display());
        cgroup.remove()?;
    }
    Ok(())
}

async fn a_pod_without_a_limit_gets_memory_as_it_needs_it(context: &mut Context) -> Outcome {
    let cri = &context.cri;
    cri.pull(BUSYBOX).await?;
    let cgroup = PodCgroup::make("/kubepods/burstable/poduid-free")?;
    // Of one container only: the kubelet's sum is that container's limit.
    let config = pod_in("free", cgroup.parent(), 96 << 20, 0);
    let id = cri.run_pod(config.clone()).await?;
    let sidecar = cri
        .run(&id, &config, limited("sidecar", "sleep 1000", 96 << 20))
        .await?;
    let main = cri
        .run(&id, &config, script("main", BUSYBOX, "sleep 1000"))
        .await?;
    let small = guest_mib(cri, &main).await?;
    check!(small < 512, "an idle pod has {small} MiB");
    for mib in [300, 700, 3000] {
        let text = format!("dd if=/dev/zero of=/dev/null bs={mib}M count=1 && echo enough");
        let out = cri.shell(&main, &text).await?;
        check!(out.trim() == "enough", "{mib} MB: {out:?}");
        let has = guest_mib(cri, &main).await?;
        check!(has > mib, "{has} MiB after an allocation of {mib}");
    }
    // The sidecar's limit is its own.
    let inside = cri.shell(&sidecar, "cat /sys/fs/cgroup/memory.max").await?;
    check!(inside.trim() == (96 << 20).to_string(), "{inside:?}");
    for container in [&main, &sidecar] {
        let events = cri
            .shell(container, "grep oom_kill /sys/fs/cgroup/memory.events")
            .await?;
        check!(events.starts_with("oom_kill 0"), "{events:?}");
    }
    cri.remove_pod(&id).await?;
    cgroup.remove()
}
