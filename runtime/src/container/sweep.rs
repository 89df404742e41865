//! The daemon's start, as far as it concerns containers.

use std::{collections::HashSet, sync::Arc};

use super::remove::dismantle;
use crate::{app::App, error::chain, records::ContainerState, volumes::pod_volumes};

/// At the daemon's start, after the pods are recovered: notes which disks their VMs have, and takes
/// away what no pod's or container's record owns any more.
pub async fn recover(app: &Arc<App>) {
    for pod in app.pods.all() {
        let containers = app.records.containers_of(&pod.id);
        let mut disks = pod.disks.lock().await;
        for record in containers {
            disks.plugged.extend(record.meta.disks());
            // Nobody knows whether the disks of a creation that was cut off are there. They are not
            // counted on, and go when it is taken back.
            if record.status.state != ContainerState::Creating {
                let places = record.meta.layer_places.iter();
                let places = places.map(|place| (place.layer.clone(), place.clone()));
                disks.places.extend(places);
            }
        }
    }
    for record in app.records.containers.list() {
        let pod = app.records.sandboxes.get(&record.meta.sandbox_id);
        let orphan = pod.is_none()
            || (record.status.state == ContainerState::Creating
                && app.pods.get(&record.meta.sandbox_id).is_none());
        if orphan && let Err(error) = dismantle(app, &record).await {
            let error = chain(&error);
            tracing::warn!(
                container = record.meta.id,
                error,
                "an orphan is not removed whole"
            );
        }
    }
    let known: HashSet<String> = app
        .records
        .containers
        .list()
        .iter()
        .map(|record| record.meta.id.clone())
        .collect();
    for holder in app.images.holders() {
        if !known.contains(pod_volumes::container_of(&holder))
            && let Err(error) = app.images.release(&holder).await
        {
            tracing::warn!(
                holder,
                error = chain(&error),
                "an image stays held by nobody"
            );
        }
    }
    let checkpoints = app.containers.checkpoints.clone();
    let swept = tokio::task::spawn_blocking(move || {
        for container in checkpoints.list()? {
            if !known.contains(&container) {
                checkpoints.remove(&container)?;
            }
        }
        Ok::<_, crate::logs::LogError>(())
    });
    if let Ok(Err(error)) = swept.await {
        tracing::warn!(
            error = chain(&error),
            "log checkpoints without a container are left behind"
        );
    }
}
