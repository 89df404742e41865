//! Calls about containers that do more than delegate.

use bulkhead_proto::agent;

use crate::container::{Container, ContainerError, Containers, Phase, cgroup, spec::SpecError};
use crate::process::exit::Exit;

/// An exit in the service's terms.
pub fn exit(exit: &Exit) -> agent::Exit {
    agent::Exit {
        code: exit.code(),
        signal: exit.signal(),
        oom_killed: exit.oom_killed,
        finished_at_unix_ns: exit.finished_at_unix_ns,
    }
}

/// A container's state in the service's terms.
pub fn state(container: &Container) -> agent::ContainerState {
    let phase = match container.phase() {
        Phase::Created => agent::Phase::Created,
        Phase::Running => agent::Phase::Running,
        Phase::Exited => agent::Phase::Exited,
    };
    agent::ContainerState {
        container_id: container.id.clone(),
        phase: phase.into(),
        started_at_unix_ns: container.started_at_unix_ns().unwrap_or(0),
        exit: container.exit().as_ref().map(exit),
    }
}

/// Changes a container's limits.
///
/// # Errors
/// For resources that are none, or a value the kernel refuses.
pub fn update(containers: &Containers, id: &str, resources: &[u8]) -> Result<(), ContainerError> {
    let container = containers.get(id)?;
    let resources = serde_json::from_slice(resources).map_err(SpecError::Json)?;
    Ok(cgroup::apply(&container.cgroup, &resources)?)
}
