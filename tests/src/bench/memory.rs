//! What it costs a pod without a memory limit that its virtual machine starts small and grows:
//! memory written for the first time, beside the same in a pod whose machine has all of it from the
//! start; and what the machine has while the pod is idle, before and after.

use std::time::Duration;

use bulkhead_proto::cri::{LinuxContainerConfig, LinuxContainerResources};

use super::{
    figures::{Figures, milliseconds},
    streams::{BULK, programs},
};
use crate::{
    Failure, Outcome,
    cri::{self, Cri},
    pod_cgroup::{PodCgroup, pod_in},
};

/// What is written.
const BYTES: u64 = 2 << 30;
/// Of the pod that has its memory from the start.
const LIMIT: i64 = 4 << 30;
/// How often each writes: every time in a pod of its own.
const REPEAT: usize = 3;
/// What a pod is given to fall back to what it needs.
const IDLE: Duration = Duration::from_secs(60);

/// Measures in pods of its own, one at a time and in turn.
///
/// # Errors
/// If anything of it does not work.
pub async fn measure(cri: &Cri, image: &str, figures: &mut Figures) -> Outcome {
    const NAMES: [&str; 2] = ["first write of 2 GiB, grown", "first write of 2 GiB, had"];
    for round in 0..REPEAT {
        for (name, limit) in NAMES.into_iter().zip([0, LIMIT]) {
            let idle = limit == 0 && round == 0;
            let took = in_a_pod(cri, image, limit, idle, figures).await?;
            figures.add(name, "ms", milliseconds(took));
        }
    }
    if let [Some(grown), Some(had)] = NAMES.map(|name| figures.median(name)) {
        figures.hold("first write of 2 GiB, grown against had", grown / had, 1.5);
    }
    Ok(())
}

/// How long the write took; with `idle`, what the guest has before and long after is a figure.
async fn in_a_pod(
    cri: &Cri,
    image: &str,
    limit: i64,
    idle: bool,
    figures: &mut Figures,
) -> Result<Duration, Failure> {
    let cgroup = PodCgroup::make("/kubepods/burstable/podbench-memory")?;
    let config = pod_in("bench-memory", cgroup.parent(), limit, 0);
    let pod = cri.run_pod(config.clone()).await?;
    let mut container = cri::script("c", image, "sleep 100000");
    container.mounts = vec![programs()?];
    container.linux = Some(LinuxContainerConfig {
        resources: (limit != 0).then(|| LinuxContainerResources {
            memory_limit_in_bytes: limit,
            ..LinuxContainerResources::default()
        }),
        ..LinuxContainerConfig::default()
    });
    let id = cri.run(&pod, &config, container).await?;
    let has = async |when: &str, figures: &mut Figures| -> Outcome {
        let text = cri
            .shell(&id, "awk '/MemTotal/ {print $2 / 1024}' /proc/meminfo")
            .await?;
        figures.add(
            &format!("memory of a guest, {when}"),
            "MiB",
            text.trim().parse()?,
        );
        Ok(())
    };
    if idle {
        has("new", figures).await?;
        idle_for_a_while().await;
        has("idle for a minute", figures).await?;
    }
    let printed = cri.shell(&id, &format!("{BULK} memset {BYTES}")).await?;
    if idle {
        has("after 2 GiB", figures).await?;
        idle_for_a_while().await;
        has("a minute after 2 GiB", figures).await?;
    }
    cri.remove_pod(&pod).await?;
    cgroup.remove()?;
    Ok(Duration::from_micros(printed.trim().parse()?))
}

/// The time is what is measured: nothing is waited for.
#[allow(clippy::disallowed_methods)]
async fn idle_for_a_while() {
    tokio::time::sleep(IDLE).await;
}
