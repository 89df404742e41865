//! From records to what CRI says of them, for every RPC that answers with a status and for the
//! events that carry one: each with the pod's status and that of all its containers as they are
//! right after it, so that a kubelet needs to ask nothing (KEP-3386).

mod container;
mod resources;
mod sandbox;

use std::{cmp::Reverse, collections::HashMap, sync::Arc};

use bulkhead_proto::cri::{
    ContainerEventResponse, ContainerEventType, ContainerStatus, PodSandboxStatus,
};

pub(crate) use container::{container_state, describe_container, list_container};
pub(crate) use sandbox::{describe_sandbox, list_sandbox, sandbox_state};

use crate::{
    app::App,
    clock::now_ns,
    records::{ContainerRecord, ContainerState, SandboxRecord},
};

/// Something happened to a container, and its record says so (or is gone).
pub(crate) fn container_changed(app: &App, kind: ContainerEventType, record: &ContainerRecord) {
    if !app.events.wanted() {
        return;
    }
    // A subscriber goes by the pod; without one there is nobody to tell of.
    if let Some(sandbox) = app.records.sandboxes.get(&record.meta.sandbox_id) {
        emit(app, kind, &record.meta.id, &sandbox);
    }
}

/// Something happened to a pod. For its removal the record is that from before.
pub(crate) fn sandbox_changed(app: &App, kind: ContainerEventType, record: &SandboxRecord) {
    if app.events.wanted() {
        emit(app, kind, &record.id, record);
    }
}

fn emit(app: &App, kind: ContainerEventType, id: &str, sandbox: &SandboxRecord) {
    let (pod, containers) = snapshot(app, sandbox);
    app.events.send(ContainerEventResponse {
        container_id: id.to_owned(),
        container_event_type: kind.into(),
        created_at: now_ns(),
        pod_sandbox_status: Some(pod),
        containers_statuses: containers,
    });
}

/// A pod and its containers, newest first, as the records have them now.
pub(crate) fn snapshot(
    app: &App,
    sandbox: &SandboxRecord,
) -> (PodSandboxStatus, Vec<ContainerStatus>) {
    let mut records = app.records.containers_of(&sandbox.id);
    records.retain(|record| record.status.state != ContainerState::Creating);
    records.sort_by_key(|record| Reverse(record.meta.created_at));
    let status = |record: &Arc<ContainerRecord>| {
        let image = app.images.by_id(&record.meta.image_id);
        describe_container(record, Some(sandbox), image.as_deref())
    };
    (
        describe_sandbox(sandbox),
        records.iter().map(status).collect(),
    )
}

/// Whether all wanted labels are there with the wanted values.
pub(crate) fn has_labels(
    labels: &HashMap<String, String>,
    wanted: &HashMap<String, String>,
) -> bool {
    wanted
        .iter()
        .all(|(key, value)| labels.get(key) == Some(value))
}
