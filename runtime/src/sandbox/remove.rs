//! RemovePodSandbox: a pod is stopped if it was not, and forgotten with its containers. May be
//! repeated.

use std::sync::Arc;

use bulkhead_proto::cri::ContainerEventType;

use super::{SandboxError, find, names, stop::stop_in_turn};
use crate::{app::App, container, status, task::detached};

/// Removes a pod; an unknown id is no error. Goes on to its end even if the caller is dropped.
pub async fn remove(app: Arc<App>, id: &str) -> Result<(), SandboxError> {
    let Some(record) = find::by_id(&app, id)? else {
        return Ok(());
    };
    let id = record.id.clone();
    detached(async move {
        let _turn = app.pods.turn(&id).await;
        let Some(record) = app.records.sandboxes.get(&id) else {
            return Ok(());
        };
        stop_in_turn(&app, &id).await?;
        let removed = container::pod_removed(&app, &id).await;
        removed.map_err(|error| SandboxError::containers(&id, error))?;
        let last = app.records.sandboxes.get(&id);
        app.records.sandboxes.remove(&id).await?;
        if let Some(last) = last {
            status::sandbox_changed(&app, ContainerEventType::ContainerDeletedEvent, &last);
        }
        app.pods
            .reserved()
            .free_name(&names::of_record(&record), &id);
        tracing::info!(pod = %id, "the pod is removed");
        Ok(())
    })
    .await
}
