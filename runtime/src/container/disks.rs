//! The disks of a pod's VM, image layers and block devices (on the host: the mounts of its agent):
//! plugged when the first container needs them, unplugged when the last one that does is gone. Who
//! needs what stands in the containers' records.

use std::{collections::HashSet, fs::File, os::fd::AsFd, time::Duration};

use bulkhead_contract::vmm::{AttachDisk, ErrorKind};
use bulkhead_images::LayerDisk;
use bulkhead_proto::agent::{AddDisksRequest, DeleteContainerRequest, Disk, ImpliedDirectories};

use super::ContainerError;
use crate::{
    app::App,
    records::ContainerRecord,
    sandbox::{Machine, Pod},
    task::blocking,
    vmm::{Control, VmmError},
    volumes::BlockDisk,
};

/// For one unplugging, or the deletion of a container with its disks.
const DEADLINE: Duration = Duration::from_secs(30);

/// Plugs those of the layers the pod does not have.
pub(super) async fn attach(pod: &Pod, layers: &[LayerDisk]) -> Result<(), ContainerError> {
    let mut disks = pod.disks.lock().await;
    let control = match &pod.machine {
        Machine::Vm { control, .. } => control,
        Machine::Host { .. } => {
            // The agent mounts the files themselves.
            let missing: Vec<_> = layers
                .iter()
                .filter(|layer| !disks.contains(&layer.serial))
                .map(layer_file)
                .collect();
            if !missing.is_empty() {
                let request = AddDisksRequest {
                    disks: missing,
                    timeout_ms: 0,
                };
                pod.agent
                    .call(
                        "mount the image's layers",
                        DEADLINE,
                        |mut agent| async move { agent.add_disks(request).await },
                    )
                    .await?;
                disks.extend(layers.iter().map(|layer| layer.serial.clone()));
            }
            return Ok(());
        }
    };
    for layer in layers {
        if disks.contains(&layer.serial) {
            continue;
        }
        let path = layer.path.clone();
        let file = blocking(move || {
            File::open(&path).map_err(|source| ContainerError::Os {
                action: format!("open the image layer {}", path.display()),
                source,
            })
        })
        .await?;
        plug(control, &layer.serial, true, &file).await?;
        disks.insert(layer.serial.clone());
    }
    Ok(())
}

/// Plugs those of the block devices the pod does not have.
pub(super) async fn attach_devices(pod: &Pod, devices: &[BlockDisk]) -> Result<(), ContainerError> {
    if devices.is_empty() {
        return Ok(());
    }
    let control = pod.vmm()?;
    let mut disks = pod.disks.lock().await;
    for device in devices {
        if disks.contains(&device.serial) {
            continue;
        }
        plug(control, &device.serial, device.read_only, &device.file).await?;
        disks.insert(device.serial.clone());
    }
    Ok(())
}

async fn plug(
    control: &Control,
    serial: &str,
    read_only: bool,
    file: &impl AsFd,
) -> Result<(), VmmError> {
    let disk = AttachDisk {
        id: serial.to_owned(),
        read_only,
        queues: 1,
    };
    match control.attach(disk, file.as_fd()).await {
        Ok(_) => Ok(()),
        // Left by a daemon that died between plugging and writing so.
        Err(VmmError::Request {
            kind: ErrorKind::Exists,
            ..
        }) => Ok(()),
        Err(error) => Err(error),
    }
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
        detach(pod, &serial).await?;
        disks.remove(&serial);
    }
    Ok(())
}

fn layer_file(layer: &LayerDisk) -> Disk {
    Disk {
        serial: layer.serial.clone(),
        filesystem: "erofs".to_owned(),
        read_only: true,
        // Below the state directory, whose path is text from the configuration.
        file: layer.path.to_string_lossy().into_owned(),
    }
}

async fn detach(pod: &Pod, serial: &str) -> Result<(), ContainerError> {
    let control = match &pod.machine {
        Machine::Vm { control, .. } => control,
        // The agent has unmounted it, and there was nothing else.
        Machine::Host { .. } => return Ok(()),
    };
    match control.detach(serial).await {
        Ok(())
        | Err(VmmError::Request {
            kind: ErrorKind::NotFound,
            ..
        }) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
