//! The Stats call.

use std::path::Path;
use std::sync::Arc;

use bulkhead_proto::agent::{ContainerStats, StatsResponse};

use crate::blocking;
use crate::container::{Container, ContainerError, Containers};
use crate::stats::{self, cgroup_stats, processes, usage::Usage};

/// Collects numbers for the given containers, or for all.
///
/// # Errors
/// For an unknown container.
pub async fn collect(
    containers: &Containers,
    usage: &Usage,
    ids: &[String],
    detailed: bool,
) -> Result<StatsResponse, ContainerError> {
    let wanted = if ids.is_empty() {
        containers.all()
    } else {
        ids.iter()
            .map(|id| containers.get(id))
            .collect::<Result<_, _>>()?
    };
    let mut answers = Vec::new();
    for container in &wanted {
        let written = usage.of(&container.id, &container.rootfs.upper()).await;
        let container = Arc::clone(container);
        // A walk over the processes of a busy container takes its time.
        let read = move || Ok::<_, ContainerError>(one(&container, written, detailed));
        answers.push(blocking::run(read).await?);
    }
    if ids.is_empty() {
        usage.retain(|id| wanted.iter().any(|container| container.id == id));
    }
    Ok(StatsResponse {
        containers: answers,
        guest: Some(match containers.paths.host() {
            None => stats::guest(containers.paths.cgroup_root()),
            Some(pod) => stats::on_host(pod),
        }),
    })
}

fn one(container: &Container, written: (u64, u64), detailed: bool) -> ContainerStats {
    let pids = processes::of_cgroup(&container.cgroup);
    let mut figures = cgroup_stats::container(&container.id, &container.cgroup, written);
    for io in &mut figures.io {
        io.device = stats::device_name(io.major, io.minor);
    }
    figures.processes = pids.len().try_into().unwrap_or(u64::MAX);
    figures.filesystem = stats::filesystem(&container.rootfs.upper());
    figures.descriptors = detailed.then(|| processes::descriptors(Path::new("/proc"), &pids));
    figures
}
