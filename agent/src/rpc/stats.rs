//! The Stats call.

use bulkhead_proto::agent::StatsResponse;

use crate::container::{ContainerError, Containers};
use crate::stats::{self, usage::Usage};

/// Collects numbers for the given containers, or for all.
///
/// # Errors
/// For an unknown container.
pub async fn collect(
    containers: &Containers,
    usage: &Usage,
    ids: &[String],
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
        answers.push(stats::container(&container.id, &container.cgroup, written));
    }
    if ids.is_empty() {
        usage.retain(|id| wanted.iter().any(|container| container.id == id));
    }
    Ok(StatsResponse {
        containers: answers,
        guest: Some(stats::guest(containers.paths.cgroup_root())),
    })
}
