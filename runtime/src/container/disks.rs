//! The disks of a pod's VM, image layers and block devices (on the host: the mounts of its agent):
//! plugged when the first container needs them, unplugged when the last one that does is gone. Who
//! needs what, and which disk a layer is on, stands in the containers' records.

use std::{collections::HashSet, os::fd::AsFd as _, sync::Arc, time::Duration};

use bulkhead_contract::vmm::ErrorKind;
use bulkhead_images::LayerDisk;
use bulkhead_proto::agent::{self, DeleteContainerRequest, ImpliedDirectories};

use super::{ContainerError, layer_files};
use crate::{
    app::App,
    error::chain,
    machine::{MachineError, vm::VmmError},
    records::{ContainerRecord, ContainerState, LayerPlace},
    sandbox::Pod,
    volumes::BlockDisk,
};

/// For one unplugging, or the deletion of a container with its disks.
const DEADLINE: Duration = Duration::from_secs(30);

/// Plugs those of the layers the pod does not have: together, as parts of one disk, or each by itself
/// where its machine knows no parts. Gives the places of all that are parts. Where each is stands in
/// the container's record before it is there.
pub(super) async fn attach(
    app: &App,
    pod: &Pod,
    container: &str,
    layers: &[&LayerDisk],
) -> Result<Vec<agent::LayerPlace>, ContainerError> {
    let mut disks = pod.disks.lock().await;
    let mut seen = HashSet::new();
    let mut missing = Vec::new();
    let mut places = Vec::new();
    for layer in layers {
        if !seen.insert(layer.serial.as_str()) {
            continue;
        }
        places.extend(disks.places.get(&layer.serial).cloned());
        if !disks.has_layer(&layer.serial) {
            missing.push(*layer);
        }
    }
    if !pod.machine.joins_layers() {
        let attach = pod
            .machine
            .attach_layers(&pod.agent, &missing, &mut disks.plugged);
        attach.await?;
        return Ok(Vec::new());
    }
    let new = layer_files::open(container, &missing).await?;
    places.extend(new.iter().flat_map(|disk| disk.places.iter().cloned()));
    if !places.is_empty() {
        let noted = places.clone();
        let note = move |record: &mut ContainerRecord| {
            Arc::make_mut(&mut record.meta).layer_places = noted;
        };
        app.records.containers.update(container, note).await?;
    }
    for disk in new {
        // Before: it may be there although no answer came.
        disks.plugged.insert(disk.serial.clone());
        if let Err(error) = pod.machine.attach_joined(&disk.serial, &disk.parts).await {
            if let MachineError::Vmm(VmmError::Request { .. }) = &error {
                disks.remove(&disk.serial);
            }
            return Err(error.into());
        }
        let there = disk.places.into_iter();
        let there = there.map(|place| (place.layer.clone(), place));
        disks.places.extend(there);
    }
    Ok(places.into_iter().map(of_agent).collect())
}

fn of_agent(place: LayerPlace) -> agent::LayerPlace {
    agent::LayerPlace {
        layer: place.layer,
        disk: place.disk,
        offset: place.offset,
        length: place.length,
    }
}

/// Plugs those of the block devices the pod does not have.
pub(super) async fn attach_devices(pod: &Pod, devices: &[BlockDisk]) -> Result<(), ContainerError> {
    let mut disks = pod.disks.lock().await;
    for device in devices {
        if disks.plugged.contains(&device.serial) {
            continue;
        }
        let attach =
            pod.machine
                .attach_device(&device.serial, device.read_only, device.file.as_fd());
        attach.await?;
        disks.plugged.insert(device.serial.clone());
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
    let mut others = app.records.containers_of(&pod.id);
    others.retain(|other| other.meta.id != record.meta.id);
    let needed: HashSet<String> = others.iter().flat_map(|other| other.meta.disks()).collect();
    let mut free = record.meta.disks();
    free.retain(|serial| disks.plugged.contains(serial) && !needed.contains(serial));
    let parts_of = |record: &ContainerRecord| {
        let parts = record.meta.layer_places.iter();
        parts.map(|place| place.layer.clone()).collect::<Vec<_>>()
    };
    let needed: HashSet<String> = others.iter().flat_map(|other| parts_of(other)).collect();
    let mut unused = parts_of(record);
    unused.retain(|layer| !needed.contains(layer));
    let request = DeleteContainerRequest {
        container_id: record.meta.id.clone(),
        release_layers: unused,
        release_disks: free.clone(),
    };
    pod.agent
        .call("delete the container", DEADLINE, |mut agent| async move {
            agent.delete_container(request).await
        })
        .await?;
    for serial in free {
        match pod.machine.detach(&serial).await {
            Ok(()) => disks.remove(&serial),
            // Of a creation that was cut off after the guest had mounted a layer of it, which another
            // container has had from there since: it stays until the pod ends.
            Err(error) if is_in_use(&error) && record.status.state == ContainerState::Creating => {
                tracing::warn!(pod = pod.id, disk = serial, "{}", chain(&error));
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Whether a machine keeps a disk because its guest does.
fn is_in_use(error: &MachineError) -> bool {
    matches!(
        error,
        MachineError::Vmm(VmmError::Request {
            kind: ErrorKind::WrongState,
            ..
        })
    )
}
