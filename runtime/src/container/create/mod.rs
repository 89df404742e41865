//! CreateContainer: validate, plan, hold the image, write the record, plug the layers, one call to
//! the agent. A failure at any step takes back all before it.

mod act;
mod plan;

use std::{sync::Arc, time::Duration};

use bulkhead_proto::cri;

use self::{
    act::build,
    plan::{plan, plan_volumes, release_images},
};
use super::{ContainerError, remove::dismantle};
use crate::{
    app::App,
    clock::now_ns,
    error::chain,
    id::new_id,
    logs::LogPath,
    records::{ContainerMeta, ContainerRecord, ContainerState, ContainerStatus, SandboxState},
    sandbox::{self, Pod, SandboxError},
    status,
    task::detached,
};

/// For a creation of the same name that failed to be taken back.
const UNDO_DEADLINE: Duration = Duration::from_secs(20);
/// Between two tries to take a failed creation back.
const UNDO_EVERY: Duration = Duration::from_secs(2);

/// Makes a container in a running pod; gives its id. Runs to its end even if the caller goes away.
pub async fn create(
    app: Arc<App>,
    request: cri::CreateContainerRequest,
) -> Result<String, ContainerError> {
    detached(async move { create_now(&app, request).await }).await
}

async fn create_now(
    app: &Arc<App>,
    request: cri::CreateContainerRequest,
) -> Result<String, ContainerError> {
    let missing = |field| ContainerError::Invalid {
        field,
        what: "is missing".to_owned(),
    };
    let mut config = request.config.ok_or_else(|| missing("config"))?;
    let metadata = config
        .metadata
        .clone()
        .ok_or_else(|| missing("config.metadata"))?;
    if metadata.name.is_empty() {
        return Err(missing("config.metadata.name"));
    }
    let image = config
        .image
        .as_ref()
        .map(|spec| spec.image.clone())
        .unwrap_or_default();
    if image.is_empty() {
        return Err(missing("config.image.image"));
    }
    let sandbox = sandbox::find(app, &request.pod_sandbox_id)?;
    let pod = app.pods.ready(&sandbox.id)?;
    if sandbox.state != SandboxState::Ready {
        let why = "it is being stopped".to_owned();
        return Err(SandboxError::NotReady {
            id: sandbox.id.clone(),
            why,
        }
        .into());
    }
    let log = LogPath::new(&sandbox.config.log_directory, &config.log_path)?;

    let id = new_id().map_err(|source| ContainerError::Os {
        action: "make an id".to_owned(),
        source,
    })?;
    let containers = &app.records.containers;
    let cut_off = app
        .containers
        .cut_off(containers, &sandbox.id, &metadata.name, metadata.attempt);
    if let Some(old) = cut_off {
        // If it stays, the name is taken.
        let live = app.containers.live(&old);
        live.wait_gone(containers, &old, UNDO_DEADLINE).await;
    }
    let _name = app.containers.reserve(
        containers,
        &sandbox.id,
        &metadata.name,
        metadata.attempt,
        &id,
    )?;
    if let Some(limits) = config.linux.as_mut().and_then(|l| l.resources.as_mut()) {
        *limits = sandbox::cpus::within(app, &sandbox, limits).await?;
    }
    let volume_plan = plan_volumes(app, &sandbox, &config).await?;
    let image = app.images.hold(&id, &image).await?;
    let planned = plan(app, &sandbox, &mut config, &image, &id, volume_plan).await;
    let (planned, volumes) = match planned {
        Ok(planned) => planned,
        Err(error) => {
            release_images(app, &id).await;
            return Err(error);
        }
    };
    let layers = app.images.disks(&image);
    let record = ContainerRecord {
        meta: Arc::new(ContainerMeta {
            id: id.clone(),
            sandbox_id: sandbox.id.clone(),
            image_id: image.id.clone(),
            layers: layers.iter().map(|layer| layer.serial.clone()).collect(),
            layer_places: Vec::new(),
            log_path: log.map(|log| log.path()),
            created_at: now_ns(),
            stop_signal: planned.plan.stop_signal,
            user: None,
            volumes: volumes.records.clone(),
            extra: Default::default(),
            config: config.clone(),
        }),
        status: ContainerStatus {
            state: ContainerState::Creating,
            started_at: 0,
            finished_at: 0,
            exit_code: 0,
            oom_killed: false,
            message: String::new(),
            resources: config
                .linux
                .clone()
                .and_then(|linux| linux.resources)
                .unwrap_or_default(),
        },
    };
    let record = match containers.insert(record).await {
        Ok(record) => record,
        Err(error) => {
            release_images(app, &id).await;
            return Err(error.into());
        }
    };
    match build(app, &pod, &config, planned, &layers, volumes, &id).await {
        Ok(()) => {
            status::container_changed(app, cri::ContainerEventType::ContainerCreatedEvent, &record);
            tracing::info!(
                container = id,
                pod = sandbox.id,
                name = metadata.name,
                image = image.id,
                "container created"
            );
            Ok(id)
        }
        Err(error) => {
            // With what was added meanwhile: where its layers are.
            let record = containers.get(&id).unwrap_or(record);
            if let Err(undo) = dismantle(app, &record).await {
                let undo = chain(&undo);
                tracing::warn!(
                    container = id,
                    undo,
                    "a failed creation is taken back later"
                );
                undo_later(app, &pod, record);
            }
            Err(error)
        }
    }
}

/// Takes a failed creation back as soon as the guest lets it (an agent that was too slow may still
/// be at it), or the pod goes. Until then its record keeps the name taken and the image held.
fn undo_later(app: &Arc<App>, pod: &Pod, record: Arc<ContainerRecord>) {
    let app = Arc::clone(app);
    let mut over = pod.over();
    tokio::spawn(async move {
        loop {
            let ended = over.wait_for(|over| *over);
            let gone = tokio::time::timeout(UNDO_EVERY, ended).await.is_ok();
            match dismantle(&app, &record).await {
                Ok(()) => {
                    tracing::info!(
                        container = record.meta.id,
                        "a failed creation is taken back"
                    );
                    return;
                }
                Err(error) => tracing::debug!(container = record.meta.id, %error, "not yet"),
            }
            if gone {
                // The pod's removal, or the sweep at the next start, does the rest.
                return;
            }
        }
    });
}
