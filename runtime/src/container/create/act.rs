//! A planned container is made: its disks, one call to the agent, the record of it.

use std::{sync::Arc, time::Duration};

use bulkhead_images::LayerDisk;
use bulkhead_proto::{agent, cri};
use prost::Message;

use super::{
    super::{ContainerError, disks},
    plan::Planned,
};
use crate::{
    agent::MAX_MESSAGE,
    app::App,
    records::ContainerState,
    sandbox::{self, Change, Pod, SandboxError},
    volumes::pod_volumes,
};

/// For the agent: the disks have to appear (10 s at most) and the launcher has a minute.
const DEADLINE: Duration = Duration::from_secs(100);
/// What directories without entries may take of the call, which the agent limits to 16 MiB.
const MAX_IMPLIED: usize = 8 << 20;

/// The agent's part, and the record of it.
#[allow(clippy::too_many_arguments)] // Each is one thing that was decided.
pub(super) async fn build(
    app: &App,
    pod: &Pod,
    config: &cri::ContainerConfig,
    planned: Planned,
    layers: &[LayerDisk],
    mut volumes: pod_volumes::Prepared,
    id: &str,
) -> Result<(), ContainerError> {
    let implied_directories = implied_directories(layers, &volumes.volumes)?;
    let limits = config.linux.as_ref().and_then(|l| l.resources.as_ref());
    if let Some(limits) = limits.filter(|l| l.hugepage_limits.iter().any(|l| l.limit > 0)) {
        // They come on top of the memory the VM was made for.
        sandbox::fit(app, pod, Change::New(limits)).await?;
    }
    sandbox::oom_score::fit(app, pod);
    pod_volumes::attach(app, pod, &mut volumes).await?;
    let all: Vec<_> = layers.iter().chain(&volumes.layers).collect();
    let layer_places = disks::attach(app, pod, id, &all).await?;
    disks::attach_devices(pod, &volumes.disks).await?;
    let plan = planned.plan;
    let request = agent::CreateContainerRequest {
        container_id: id.to_owned(),
        oci_spec: planned.spec.into(),
        layers: layers.iter().map(|layer| layer.serial.clone()).collect(),
        pid_mode: plan.pid_mode as i32,
        pid_target: plan.pid_target,
        user: Some(plan.user),
        stdin: config.stdin,
        stdin_once: config.stdin_once,
        tty: config.tty,
        implied_directories,
        apparmor_policy: planned.apparmor_policy.into(),
        host_cgroup_namespace: planned.host_cgroup_namespace,
        volumes: volumes.volumes,
        block_devices: volumes.block_devices,
        layer_places,
    };
    let bytes = request.encoded_len();
    if bytes > MAX_MESSAGE {
        return Err(ContainerError::Invalid {
            field: "config",
            what: format!(
                "with the image's own config and layers takes {bytes} bytes to describe, at most \
                 {MAX_MESSAGE} are possible"
            ),
        });
    }
    let answer = pod
        .agent
        .call("create the container", DEADLINE, |mut agent| async move {
            agent.create_container(request).await
        })
        .await?;
    let user = answer.user.map(|user| (user.uid, user.gid, user.gids));
    app.records
        .containers
        .update(id, move |record| {
            Arc::make_mut(&mut record.meta).user = user;
            record.status.state = ContainerState::Created;
        })
        .await?;
    // Before anything of it runs: its processors, and room on them beside the others.
    sandbox::fit(app, pod, Change::Containers).await?;
    // A pod that has ended meanwhile has recorded the ends of its containers without this one.
    if *pod.over().borrow() {
        let why = "it ended while the container was made".to_owned();
        let id = pod.id.clone();
        return Err(SandboxError::NotReady { id, why }.into());
    }
    Ok(())
}

/// [`disks::implied_directories`], if with those of image volumes they fit into the call.
fn implied_directories(
    layers: &[LayerDisk],
    volumes: &[agent::Volume],
) -> Result<Vec<agent::ImpliedDirectories>, ContainerError> {
    let implied = disks::implied_directories(layers);
    let of_volumes = volumes.iter().flat_map(|volume| match &volume.source {
        Some(agent::volume::Source::Image(image)) => image.implied_directories.as_slice(),
        _ => &[],
    });
    let bytes: usize = implied
        .iter()
        .chain(of_volumes)
        .map(Message::encoded_len)
        .sum();
    if bytes > MAX_IMPLIED {
        return Err(ContainerError::Invalid {
            field: "config.image and image volumes",
            what: format!(
                "have layers with {bytes} bytes of directories without an entry of their own; at \
                 most {MAX_IMPLIED} are possible"
            ),
        });
    }
    Ok(implied)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_of_all_images_must_fit_into_the_call() {
        let layer = |serial: &str, bytes: usize| LayerDisk {
            path: "/x".into(),
            serial: serial.to_owned(),
            implicit_dirs: vec![vec![b'd'; bytes]],
        };
        let image = |bytes| {
            let layers = [layer("lowest", MAX_IMPLIED), layer("above", bytes)];
            let source = agent::ImageVolume {
                implied_directories: disks::implied_directories(&layers),
                ..agent::ImageVolume::default()
            };
            agent::Volume {
                source: Some(agent::volume::Source::Image(source)),
                ..agent::Volume::default()
            }
        };
        let own = [layer("a", MAX_IMPLIED), layer("b", MAX_IMPLIED / 2)];
        // What the lowest layer has needs no look below it.
        assert_eq!(implied_directories(&own, &[image(9)]).unwrap().len(), 1);
        let much = implied_directories(&own, &[image(9), image(MAX_IMPLIED / 2)]);
        assert!(matches!(much, Err(ContainerError::Invalid { .. })));
    }
}
