//! UpdateContainerResources and ReopenContainerLog: changes to a container that goes on.

use std::{sync::Arc, time::Duration};

use bulkhead_proto::{agent::UpdateContainerRequest, cri};

use super::{ContainerError, error::in_words, find};
use crate::{
    app::App,
    error::chain,
    logs::LogError,
    oci::{OciError, resources},
    records::{ContainerState, MachineKind},
    sandbox::{self, Change},
    task::detached,
};

const DEADLINE: Duration = Duration::from_secs(20);

/// Changes a container's limits. What is 0 or empty stays as it is.
pub async fn update(
    app: &Arc<App>,
    id: &str,
    asked: cri::LinuxContainerResources,
) -> Result<(), ContainerError> {
    let record = find::existing(app, id)?;
    let id = record.meta.id.clone();
    if !matches!(
        record.status.state,
        ContainerState::Created | ContainerState::Running
    ) {
        return Err(ContainerError::State {
            action: "change the limits of",
            id,
            state: in_words(record.status.state),
            needed: "created or running",
        });
    }
    // Checked as a whole: a limit may be impossible only together with what is there already.
    let pod = app.pods.ready(&record.meta.sandbox_id)?;
    let sandbox = app.records.sandboxes.get(&record.meta.sandbox_id);
    let on_node = sandbox
        .as_ref()
        .is_some_and(|sandbox| sandbox.machine == MachineKind::Host);
    let asked = match &sandbox {
        Some(sandbox) => sandbox::cpus::within(app, sandbox, &asked).await?,
        None => asked,
    };
    let merged = resources::merged(&record.status.resources, &asked);
    resources::build(&merged, on_node)?;
    let limits = resources::changed(&asked, &merged, on_node)?;
    let request = UpdateContainerRequest {
        container_id: id.clone(),
        resources: serde_json::to_vec(&limits)
            .map_err(OciError::Encode)?
            .into(),
    };
    let app = Arc::clone(app);
    // The guest's limits and the record change together, whether or not the caller waits.
    detached(async move {
        // Room in the VM first, where the limit grows.
        let change = Change::Container {
            id: &id,
            limits: &merged,
        };
        let fitted = sandbox::fit(&app, &pod, change).await;
        let changed = async {
            fitted?;
            let call = pod.agent.call(
                "change the container's limits",
                DEADLINE,
                |mut agent| async move { agent.update_container(request).await },
            );
            call.await?;
            Ok::<_, ContainerError>(())
        };
        if let Err(error) = changed.await {
            // Its processors are again what the record says.
            pod.containers_changed();
            return Err(error);
        }
        let change = move |record: &mut crate::records::ContainerRecord| {
            record.status.resources = resources::merged(&record.status.resources, &asked);
        };
        app.records.containers.update(&id, change).await?;
        sandbox::oom_score::fit(&app, &pod);
        // And what the limits no longer want goes back afterwards; the limit holds in any case.
        if let Err(error) = sandbox::fit(&app, &pod, Change::None).await {
            tracing::warn!(pod = pod.id, error = chain(&error), "the VM keeps its size");
        }
        Ok(())
    })
    .await
}

/// Opens a container's log anew after the kubelet has renamed it.
pub async fn reopen_log(app: &App, id: &str) -> Result<(), ContainerError> {
    let record = find::existing(app, id)?;
    let id = &record.meta.id;
    if record.status.state != ContainerState::Running {
        return Err(ContainerError::State {
            action: "reopen the log of",
            id: id.clone(),
            state: in_words(record.status.state),
            needed: in_words(ContainerState::Running),
        });
    }
    let pump = app.containers.live(id).pump();
    let pump = pump.ok_or_else(|| LogError::Closed {
        container: id.clone(),
    })?;
    Ok(pump.reopen().await?)
}
