//! The disks of a pod's VM, image layers and block devices (on the host: the mounts of its agent):
//! plugged when the first container needs them, unplugged when the last one that does is gone. Who
//! needs what stands in the containers' records.

use std::{collections::HashSet, os::fd::AsFd as _, time::Duration};

use bulkhead_images::LayerDisk;
use bulkhead_proto::agent::{DeleteContainerRequest, ImpliedDirectories};

use super::ContainerError;
use crate::{app::App, records::ContainerRecord, sandbox::Pod, volumes::BlockDisk};

/// For one unplugging, or the deletion of a container with its disks.
const DEADLINE: Duration = Duration::from_secs(30);

/// Plugs those of the layers the pod does not have.
pub(super) async fn attach(pod: &Pod, layers: &[LayerDisk]) -> Result<(), ContainerError> {
    let mut disks = pod.disks.lock().await;
    let mut missing: Vec<&LayerDisk> = Vec::new();
    for layer in layers {
        let twice = missing.iter().any(|other| other.serial == layer.serial);
        if !twice && !disks.contains(&layer.serial) {
            missing.push(layer);
        }
    }
    let attach = pod.machine.attach_layers(&pod.agent, &missing, &mut disks);
    Ok(attach.await?)
}

/// Plugs those of the block devices the pod does not have.
pub(super) async fn attach_devices(pod: &Pod, devices: &[BlockDisk]) -> Result<(), ContainerError> {
    let mut disks = pod.disks.lock().await;
    for device in devices {
        if disks.contains(&device.serial) {
            continue;
        }
        let attach =
            pod.machine
                .attach_device(&device.serial, device.read_only, device.file.as_fd());
        attach.await?;
        disks.insert(device.serial.clone());
    }
    Ok(())
}

/// The directories the agent has to look up in lower layers: the lowest layer's have none below.
pub(crate) fn implied_directories(layers: &[LayerDisk]) -> Vec<ImpliedDirectories> {
    let above = layers.iter().skip(1);
    let implied = above.filter(|layer| !layer.implicit_dirs.is_empty());
    implied
        .map(|layer| ImpliedDirectories {
            layer: layer.serial.clone(),
            paths: layer
                .implicit_dirs
                .iter()
                .cloned()
                .map(Into::into)
                .collect(),
        })
        .collect()
}

/// Deletes the container in the guest, and unplugs the disks only it needed. Repeatable.
pub(super) async fn release(
    app: &App,
    pod: &Pod,
    record: &ContainerRecord,
) -> Result<(), ContainerError> {
    let mut disks = pod.disks.lock().await;
    let needed: HashSet<String> = app
        .records
        .containers_of(&pod.id)
        .iter()
        .filter(|other| other.meta.id != record.meta.id)
        .flat_map(|other| other.meta.disks())
        .collect();
    let mut free = record.meta.disks();
    free.retain(|serial| disks.contains(serial) && !needed.contains(serial));
    free.sort();
    free.dedup();
    let request = DeleteContainerRequest {
        container_id: record.meta.id.clone(),
        release_disks: free.clone(),
    };
    pod.agent
        .call("delete the container", DEADLINE, |mut agent| async move {
            agent.delete_container(request).await
        })
        .await?;
    for serial in free {
        pod.machine.detach(&serial).await?;
        disks.remove(&serial);
    }
    Ok(())
}
