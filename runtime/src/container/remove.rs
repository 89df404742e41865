//! RemoveContainer: kill what runs, then give back everything the container holds. Repeatable.

use std::{sync::Arc, time::Duration};

use bulkhead_proto::cri::ContainerEventType;

use super::{ContainerError, disks, find, stop};
use crate::{
    app::App,
    logs::LogError,
    records::{ContainerRecord, ContainerState},
    status,
    task::detached,
    volumes::pod_volumes,
};

/// For the last output to reach the log of a container whose processes are dead.
const DRAIN: Duration = Duration::from_secs(5);

/// Removes a container. An unknown id is fine: it is gone. Runs to its end even if the caller goes
/// away.
pub async fn remove(app: Arc<App>, id: &str) -> Result<(), ContainerError> {
    let Some(record) = find::by_id(&app, id)? else {
        return Ok(());
    };
    detached(async move { remove_now(&app, &record.meta.id).await }).await
}

async fn remove_now(app: &App, id: &str) -> Result<(), ContainerError> {
    let live = app.containers.live(id);
    let _turn = live.turn().await;
    let Some(record) = app.records.containers.get(id) else {
        return Ok(());
    };
    if record.status.state == ContainerState::Creating {
        return Err(ContainerError::State {
            action: "remove",
            id: id.to_owned(),
            state: super::error::in_words(record.status.state),
            needed: "created, running or exited",
        });
    }
    if record.status.state == ContainerState::Running
        && let Some(pod) = app.pods.get(&record.meta.sandbox_id)
    {
        stop::kill(app, &pod, id).await?;
    }
    dismantle(app, &record).await?;
    tracing::info!(
        container = id,
        pod = record.meta.sandbox_id,
        "container removed"
    );
    Ok(())
}

/// Gives back what a container holds, in reverse: its output, its place in the guest and its
/// disks, its checkpoint, its volumes, its images, its record. Repeatable; the record goes last, so that what
/// fails half-way is found again.
pub(super) async fn dismantle(app: &App, record: &ContainerRecord) -> Result<(), ContainerError> {
    let id = &record.meta.id;
    if let Some(pump) = app.containers.live(id).pump()
        && pump.ended(DRAIN).await.is_none()
    {
        pump.end();
        pump.ended(DRAIN).await;
    }
    if let Some(pod) = app.pods.get(&record.meta.sandbox_id) {
        disks::release(app, &pod, record).await?;
    }
    let (checkpoints, container) = (app.containers.checkpoints.clone(), id.clone());
    tokio::task::spawn_blocking(move || checkpoints.remove(&container))
        .await
        .map_err(|_| LogError::Ending)??;
    pod_volumes::release(app, record).await?;
    pod_volumes::release_images(app, id).await?;
    app.images.release(id).await?;
    let removed = app.records.containers.remove(id).await?;
    app.containers.forget(id);
    if let Some(pod) = app.pods.get(&record.meta.sandbox_id) {
        pod.containers_changed();
    }
    // Two may be at it, for the container and for its pod: one of them tells.
    if removed.is_some() && record.status.state != ContainerState::Creating {
        status::container_changed(app, ContainerEventType::ContainerDeletedEvent, record);
    }
    Ok(())
}
